"""Loading of the package's metrics with Hugging Face `evaluate`, without network access."""

from pathlib import Path
from typing import Any


__all__ = ["known_metrics", "load_metric"]

_MODULES = Path(__file__).parent / "modules"


def known_metrics() -> list[str]:
    """Names that [`load_metric`] accepts."""
    return sorted(path.parent.name for path in _MODULES.glob("*/*.py") if path.stem == path.parent.name)


def load_metric(name: str, config_name: str | None = None, **kwargs: Any) -> Any:
    """
    Loads a metric with `evaluate.load` from its folder in this package.

    Args:
        name (`str`):
            `"preference_accuracy"`, `"kendall_tau"`, `"preference_calibration"`, `"reward_margin"` or `"win_rate"`.
        config_name (`str`, *optional*):
            Variant of the metric: `"subsets"` for `preference_accuracy`, `"outcomes"` for `win_rate`.
        kwargs:
            Arguments of `evaluate.load`, such as `num_process`, `process_id`, `experiment_id` and `cache_dir`.

    Returns:
        `evaluate.Metric`

    Raises:
        ValueError: If there is no such metric.
        ImportError: If `evaluate` is not installed.

    Example:
    ```python
    >>> from trl_dpo_ext.evaluation.metric_loading import load_metric

    >>> metric = load_metric("preference_accuracy", keep_in_memory=True)
    >>> metric.compute(predictions=[[0.4, 0.1], [0.2, 0.9]], references=[[0, 1], [1, 0]])["preference_accuracy"]
    1.0

    ```
    """
    if name not in known_metrics():
        raise ValueError(f"There is no metric {name!r}. The metrics are {', '.join(known_metrics())}.")
    try:
        import evaluate
    except ImportError as error:
        raise ImportError('Metrics need evaluate: pip install "trl-dpo-ext[evaluate]"') from error
    return evaluate.load(str(_MODULES / name), config_name, **kwargs)
