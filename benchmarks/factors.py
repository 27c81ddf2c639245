"""What the LM head, packing and sharing each give of the factor between TRL's step and ours."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from benchmarks.tables import markdown, number


__all__ = ["factors_of", "factors_table"]

# Each gives what the one before it takes as long as it: TRL's padded rows, then the same rows with our tiles of the LM
# head (K > 2: and each answer once, not in K - 1 pairs), then without padding, then with each prompt once
_CHAIN = ("trl cached", "ours cached padded", "ours cached packed", "ours cached")
_NAMES = ("head", "packing", "sharing")


def factors_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """
    The factors of the contenders' seconds, and their product; empty if one was not measured.

    Example:
    ```python
    >>> from benchmarks.factors import factors_of

    >>> factors_of({"trl cached": 6.0, "ours cached padded": 4.0, "ours cached packed": 2.0, "ours cached": 1.0})
    {'head': 1.5, 'packing': 2.0, 'sharing': 2.0, 'all': 6.0}

    ```
    """
    chain = [*_CHAIN[:-1], "ours cached" if "ours cached" in seconds else "ours cached varlen"]
    if not all(name in seconds for name in chain):
        return {}
    times = [seconds[name] for name in chain]
    factors = {name: times[i] / times[i + 1] for i, name in enumerate(_NAMES)}
    return factors | {"all": times[0] / times[-1]}


def factors_table(rows: Sequence[Any]) -> str:
    """The factors of each shape among timing rows in Markdown; empty if there are none."""
    seconds: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        values: Mapping[str, Any] = asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
        of_shape = seconds.setdefault((values["shape"], str(values["completions"])), {})
        of_shape[values["contender"]] = float(values["seconds"])
    lines = []
    for (shape, completions), of_shape in seconds.items():
        if factors := factors_of(of_shape):
            lines.append([shape, completions, *(number(factors[name], "x") for name in (*_NAMES, "all"))])
    return markdown(("shape", "K", *_NAMES, "TRL over ours"), lines) if lines else ""
