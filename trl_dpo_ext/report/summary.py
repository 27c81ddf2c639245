"""The head and the table of the report: settings of the run, and the first, last and best value of its metrics."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from trl_dpo_ext.report.run_data import RunData


__all__ = ["SummaryRow", "facts", "format_number", "summary_rows"]

# The metrics of the table, and whether the smallest or the largest value is best, if either is
_BEST = {
    "loss": min,
    "reward": max,
    "objective": max,
    "kl_sequence": None,
    "completions/finished": max,
    "completions/mean_length": None,
    "value_loss": min,
    "rewards/accuracies": max,
    "rewards/accuracies_from_length": None,
    "rewards/kendall_tau": max,
    "rewards/top1_accuracies": max,
    "rewards/order_probabilities": max,
    "rewards/margins": max,
    "rewards/margins_neighbors": max,
    "rewards/chosen": None,
    "rewards/rejected": None,
    "rewards/calibration_error": min,
    "rewards/length_correlation": None,
    "rewards/gradient_weight": None,
    "rewards/gradient_weight_near_0": None,
    "logps/chosen": None,
    "logps/rejected": None,
    "logps/chosen_drift": None,
    "logps/rejected_drift": None,
    "logits/chosen": None,
    "logits/rejected": None,
    "kl_per_token": None,
    "entropy": None,
    "mean_token_accuracy": max,
}


@dataclass(frozen=True)
class SummaryRow:
    """
    A row of the table; values that are not finite are ignored.

    Args:
        metric (`str`): Name, as logged.
        where (`str`): `"training"` or the evaluation set.
        first (`float`): First value.
        last (`float`): Last value.
        best (`tuple[float, int]` or `None`): Best value and its update; `None` if neither end is better.
    """

    metric: str
    where: str
    first: float
    last: float
    best: tuple[float, int] | None


def summary_rows(run: RunData) -> list[SummaryRow]:
    """Returns the first, last and best value of each metric of the run, in training and on every evaluation set."""
    rows = []
    for metric, better in _BEST.items():
        for where, curve in run.curves(metric).items():
            points = curve.finite()
            best = better(points, key=lambda point: point[1]) if better else None
            rows.append(SummaryRow(metric, where, points[0][1], points[-1][1], (best[1], best[0]) if best else None))
    return rows


def facts(run: RunData) -> dict[str, str]:
    """Returns the entries at the head of the page; unknown ones are left out."""
    settings = run.settings
    reference, beta = settings.get("reference"), settings.get("beta")
    described: dict[str, Any] = {
        "trainer": settings.get("trainer"),
        "beta": f"{beta:.4g}" if isinstance(beta, float) else beta,
        "reference": reference.get("kind") if isinstance(reference, dict) else reference,
    }
    curves = [curve for names in (run.training, *run.evaluation.values()) for curve in names.values()]
    described["updates"] = f"{max(curve.steps[-1] for curve in curves):,}"
    for metric, name, form in (("epoch", "epochs", "{:.3g}"), ("num_tokens", "tokens", "{:,.0f}")):
        if metric in run.training and (points := run.training[metric].finite()):
            described[name] = form.format(points[-1][1])
    if run.seconds is not None:
        described["time"] = str(timedelta(seconds=round(run.seconds)))
    described["trl-dpo-ext"] = settings.get("trl_dpo_ext")
    return {name: str(value) for name, value in described.items() if value is not None}


def format_number(value: float) -> str:
    """
    Returns a number with a typographic minus sign: four decimals below 1, four significant digits above.

    Example:
    ```python
    >>> from trl_dpo_ext.report.summary import format_number

    >>> [format_number(value) for value in (0.69, -51.188, 12345.6, 1e-6)]
    ['0.6900', '\u221251.19', '12,346', '1e\u221206']

    ```
    """
    size = abs(value)
    form = ",.0f" if size >= 1e4 else ".4f" if 1e-3 <= size < 1 or not size else ".4g"
    return format(value, form).replace("-", "\N{MINUS SIGN}")
