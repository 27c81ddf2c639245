"""
Puts the results of the benchmarks in the README, between its two `benchmark` comments.

    python -m benchmarks.readme_table
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path


__all__ = ["END", "START", "main", "table"]

START, END = "<!-- benchmark:start -->", "<!-- benchmark:end -->"
_ROOT = Path(__file__).parents[1]

Row = Mapping[str, str]


def main(readme: Path = _ROOT / "README.md", results_folder: Path = _ROOT / "benchmarks" / "results") -> None:
    """Rewrites the block of the README."""
    text = readme.read_text(encoding="utf-8")
    for mark in (START, END):
        if text.count(mark) != 1:
            raise ValueError(f"{readme} should have `{mark}` once, found {text.count(mark)} times.")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n{table(results_folder)}{END}{after}", encoding="utf-8")


def table(results_folder: Path) -> str:
    """The tables of `cpu.csv`, `gpu.csv` and `memory.csv`, as far as these exist, in Markdown."""
    parts = [
        part
        for name, write in (("cpu", _seconds), ("gpu", _seconds), ("memory", _memory))
        if (path := results_folder / f"{name}.csv").exists()
        for part in _parts(path, write)
    ]
    return "\n\n".join(parts) + "\n"


def _parts(path: Path, write: Callable[[Sequence[Row]], str]) -> list[str]:
    # A table for each of full fine-tuning and LoRA
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [write(list(of_tuning)) for _, of_tuning in groupby(rows, key=lambda row: row["tuning"])]


def _seconds(rows: Sequence[Row]) -> str:
    head = (
        f"{_what(rows[0])}; seconds of an optimizer step, and times as long as plain next-token training (floor):\n\n"
    )
    names = ("shape", "K", "TRL", "TRL cached", "ours", "ours cached", "floor", "cached: speed-up", "x floor")
    lines = []
    for shape, by_contender in _by_shape(rows):
        cached = by_contender.get("ours cached", {})
        lines.append(
            [shape, _first(by_contender)["completions"]]
            + [
                _number(by_contender.get(name, {}), "seconds")
                for name in ("trl", "trl cached", "ours", "ours cached", "floor")
            ]
            + [_number(cached, "speedup_over_trl_cached", "x"), _number(cached, "times_the_floor")]
        )
    return head + _markdown(names, lines)


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
        [shape, _first(by_contender)["completions"]]
        + [_number(by_contender.get(name, {}), "peak_gib") for name in contenders]
        for shape, by_contender in _by_shape(rows)
    ]
    return head + _markdown(("shape", "K", *contenders.values()), lines) + _sixteen_to_two(rows)


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
        ragged = ", ragged" if row["shape"].endswith("ragged") else ""
        yield f"{row['prompt_tokens']} + K x {row['answer_tokens']}{ragged}", by_contender


def _first(by_contender: Mapping[str, Row]) -> Row:
    return next(iter(by_contender.values()))


def _number(row: Row, column: str, unit: str = "") -> str:
    value = row.get(column)
    if not value:
        return ""
    number = float(value)
    return (f"{number:.0f}" if number >= 100 else f"{number:.3g}") + unit


def _markdown(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, rule, *lines))


if __name__ == "__main__":
    main()
