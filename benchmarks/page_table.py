"""
Puts the results of the benchmarks into `docs/performance.md`, between its two `benchmark` comments.

    python -m benchmarks.page_table
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.factors import factors_table
from benchmarks.tables import markdown, number


__all__ = ["END", "NO_GPU", "START", "main", "table"]

START, END = "<!-- benchmark:start -->", "<!-- benchmark:end -->"
NO_GPU = "On a GPU: not measured."
_ROOT = Path(__file__).parents[1]

Row = Mapping[str, Any]


def main(
    page: Path = _ROOT / "docs" / "performance.md", results_folder: Path = _ROOT / "benchmarks" / "results"
) -> None:
    """Rewrites the block of the page."""
    text = page.read_text(encoding="utf-8")
    for mark in (START, END):
        if text.count(mark) != 1:
            raise ValueError(f"{page} should have `{mark}` once, found {text.count(mark)} times.")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n{table(results_folder)}{END}{after}", encoding="utf-8")


def table(results_folder: Path) -> str:
    """The tables of all processors, then of all GPUs, then of memory, in Markdown."""
    gpus = [
        *(_rows_of_check(path) for path in sorted(results_folder.glob("gpu-check-*.json"))),
        *(_rows_of(path) for path in sorted(results_folder.glob("gpu-*.csv"))),
    ]
    parts = [
        *_tables(map(_rows_of, sorted(results_folder.glob("cpu-*.csv"))), _on_cpu),
        *(_tables(gpus, _on_gpu) or [NO_GPU]),
        *_tables(map(_rows_of, sorted(results_folder.glob("memory-*.csv"))), _memory),
    ]
    return "\n\n".join(parts) + "\n"


def _rows_of(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _rows_of_check(path: Path) -> list[Row]:
    # A check that had no time for steps, or was a dry run, has none
    found = json.loads(path.read_text(encoding="utf-8"))
    return [] if found["dry"] else found["sections"].get("steps", {}).get("rows", [])


def _tables(files: Iterable[Sequence[Row]], write: Callable[[Sequence[Row]], str]) -> list[str]:
    # One for each of full fine-tuning and LoRA
    return [write(list(rows)) for file in files for _, rows in groupby(file, key=lambda row: row["tuning"])]


def _on_cpu(rows: Sequence[Row]) -> str:
    head = (
        f"{_what(rows[0])}; seconds of an optimizer step, and times as long as plain next-token training (floor):\n\n"
    )
    names = ("shape", "K", "TRL", "TRL cached", "ours", "ours cached", "floor", "cached: speed-up", "x floor")
    lines = []
    for shape, by_contender in _by_shape(rows):
        seconds = {name: float(row["seconds"]) for name, row in by_contender.items()}
        lines.append(
            [shape, str(_first(by_contender)["completions"])]
            + [number(seconds.get(name)) for name in ("trl", "trl cached", "ours", "ours cached", "floor")]
            + [_ratio(seconds, "trl cached", "ours cached", "x"), _ratio(seconds, "ours cached", "floor")]
        )
    factors = factors_table(rows)
    if factors:
        factors = f"\n\nWhat each part gives of the factor, with the reference cached:\n\n{factors}"
    return head + markdown(names, lines) + factors


def _on_gpu(rows: Sequence[Row]) -> str:
    head = f"{_what(rows[0])}, bf16, the reference cached; milliseconds of an optimizer step:\n\n"
    contenders = {
        "trl cached": "TRL",
        "trl cached cudnn off": "TRL, cuDNN off",
        "trl cached flash": "TRL, FlashAttention",
        "ours cached packed": "packed rows",
        "ours cached varlen": "ours",
        "ours cached compiled": "ours, compiled",
    }
    measured = {row["contender"] for row in rows}
    shown = {name: label for name, label in contenders.items() if name in measured}
    names = ("shape", "K", *shown.values(), "x TRL", "x packed rows", "limit", "MFU %")
    lines = []
    for shape, by_contender in _by_shape(rows):
        best = min(
            (row for name, row in by_contender.items() if name in ("ours cached varlen", "ours cached compiled")),
            key=lambda row: float(row["seconds"]),
            default={},
        )
        columns = ("speedup_over_trl", "speedup_over_packed_rows", "flop_limit", "mfu_percent")
        lines.append(
            [shape, str(_first(by_contender)["completions"])]
            + [number(_milliseconds(by_contender.get(name))) for name in shown]
            + [number(best.get(column)) for column in columns]
        )
    return head + markdown(names, lines)


def _memory(rows: Sequence[Row]) -> str:
    head = f"{_what(rows[0])}; peak GiB of a step of {rows[0]['groups']} prompts, weights and optimizer included:\n\n"
    contenders = {
        "trl": "TRL",
        "trl cached": "TRL cached",
        "ours": "ours",
        "ours cached": "ours cached",
        "ours cached in twos": "ours cached, two answers at a time",
        "floor": "floor",
    }
    lines = [
        [shape, str(_first(by_contender)["completions"])]
        + [number(by_contender.get(name, {}).get("peak_gib")) for name in contenders]
        for shape, by_contender in _by_shape(rows)
    ]
    return head + markdown(("shape", "K", *contenders.values()), lines) + _sixteen_to_two(rows)


def _sixteen_to_two(rows: Sequence[Row]) -> str:
    # The two shapes differ in nothing but K
    gib = {(row["shape"], row["contender"]): float(row["peak_gib"]) for row in rows if row["peak_gib"]}
    sixteen, two = gib.get(("sixteen", "ours cached in twos")), gib.get(("hh-like", "ours cached"))
    if sixteen is None or two is None:
        return ""
    return f"\n\nSixteen answers, two at a time, peak at {sixteen / two:.2f} times the memory of two answers."


def _what(row: Row) -> str:
    trained = "LoRA" if row["tuning"] == "lora" else "full fine-tuning"
    return f"{row['machine']}, `{row['model']}`, {trained}, TRL {row['trl']}, torch {row['torch']}, {row['date']}"


def _by_shape(rows: Sequence[Row]) -> Iterable[tuple[str, dict[str, Row]]]:
    for _, of_shape in groupby(rows, key=lambda row: row["shape"]):
        by_contender = {row["contender"]: row for row in of_shape}
        row = _first(by_contender)
        lengths = "ragged" if row["shape"].endswith("ragged") else row.get("lengths", "equal")
        spread = "" if lengths == "equal" else f", {lengths}"
        yield f"{row['prompt_tokens']} + K x {row['answer_tokens']}{spread}", by_contender


def _first(by_contender: Mapping[str, Row]) -> Row:
    return next(iter(by_contender.values()))


def _ratio(seconds: Mapping[str, float], above: str, below: str, unit: str = "") -> str:
    return number(seconds[above] / seconds[below], unit) if above in seconds and below in seconds else ""


def _milliseconds(row: Row | None) -> float | None:
    return None if row is None else 1000 * float(row["seconds"])


if __name__ == "__main__":
    main()
