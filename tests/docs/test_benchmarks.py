"""The benchmarks run, their columns fit each other, and the README's table is made from them."""

import csv
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest


ROOT = Path(__file__).parents[2]
CONTENDERS = ["trl", "ours padded", "ours packed", "ours"]
CONTENDERS = [*CONTENDERS, *(name.replace("ours", "ours cached").replace("trl", "trl cached") for name in CONTENDERS)]

COLUMNS = (
    "date,machine,torch,trl,model,tuning,shape,prompt_tokens,answer_tokens,completions,groups,contender,seconds,"
    "speedup_over_trl_cached,times_the_floor,peak_gib"
).split(",")


def run_benchmarks(output: Path, *options: str) -> None:
    words = ["-m", "benchmarks", "--size", "tiny", "--output", str(output), *options]
    program = forked.start(words, output / "log", cwd=ROOT)
    assert program.wait(120) == 0, program.output[-3000:]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, *rows: str) -> None:
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_seconds(tmp_path: Path):
    shapes = {"hh": 2, "ultrafeedback": 4}
    run_benchmarks(tmp_path, "--shapes", *shapes)
    (path,) = tmp_path.glob("tiny-*.csv")
    rows = read(path)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    log = (tmp_path / "log").read_text()
    assert "| shape | K | head | packing | sharing | TRL over ours |" in log
    assert log.count("| ultrafeedback (lognormal, sigma 0.7), 2 x K = 4 | ") == len(CONTENDERS) + 1

    for shape, completions in shapes.items():
        of_shape = {row["contender"]: row for row in rows if row["shape"] == shape}
        assert set(of_shape) == {*CONTENDERS, "floor"}
        seconds = {name: float(row["seconds"]) for name, row in of_shape.items()}
        tokens = {name: float(row["computed_tokens"]) for name, row in of_shape.items()}
        for name, row in of_shape.items():
            assert 0 < seconds[name] < math.inf
            cached = " cached" if "cached" in name else ""
            # Six digits are written
            ratios = {
                "speedup_over_trl": seconds[f"trl{cached}"] / seconds[name],
                "speedup_over_packed_rows": seconds[f"ours{cached} packed"] / seconds[name],
                "times_the_floor": seconds[name] / seconds["floor"],
                "groups_per_second": int(row["groups"]) / seconds[name],
            }
            if name == "floor":
                del ratios["speedup_over_packed_rows"]
            else:
                # The policy starts as its reference
                orders = 2 if name.startswith("trl") else math.factorial(completions)
                assert float(row["first_loss"]) == pytest.approx(math.log(orders), abs=1e-4)
                assert row["first_loss_ok"] == "yes"
            if name in ("ours", "ours cached"):
                reached = ratios["speedup_over_packed_rows"] / float(row["flop_limit"])
                assert float(row["share_of_limit"]) == pytest.approx(reached, rel=2e-5)
            else:
                assert row["share_of_limit"] == ""
            for column, value in ratios.items():
                assert float(row[column]) == pytest.approx(value, rel=2e-5)
            # Two groups of other lengths: every padded row is longer than some other
            padded = name in ("floor", "trl", "trl cached", "ours padded", "ours cached padded")
            assert (float(row["padding_share"]) > 0) == padded
            assert row["mfu_percent"] == row["peak_gib"] == ""
        # An update reads the worst loss and the gradient norm; TRL reads each of its metrics
        waits = {name: int(row["synchronizations"]) for name, row in of_shape.items()}
        assert waits["ours"] <= 1 and waits["ours cached"] <= 1 and waits["trl cached"] > 10
        row = of_shape["ours"]
        answers = completions * int(row["groups"])
        assert tokens["ours"] == tokens["ours cached"] == float(row["distinct_tokens"]) - answers
        assert tokens["ours packed"] == float(row["row_tokens"]) - answers
        real = float(row["row_tokens"]) / (1 - float(of_shape["ours padded"]["padding_share"]))
        assert tokens["ours padded"] == pytest.approx(real, rel=1e-5)
        assert 1 < float(row["flop_limit"]) < completions
        if completions == 2:
            norms = [float(row["first_gradient_norm"]) for name, row in of_shape.items() if name != "floor"]
            assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import command, memory

    def run(words: list[str], env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
        # A fork in place of a new interpreter, which would import for ten seconds
        program = forked.start(words[1:], tmp_path / "log", env=env, cwd=ROOT)
        return subprocess.CompletedProcess(words, program.wait(120), program.output, program.output)

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=run))
    options = ["--size", "tiny", "--memory", "--shapes", "hh-like", "--contenders", "ours cached"]
    assert command.main([*options, "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("memory-tiny-*.csv")
    (row,) = read(path)
    assert 0 <= float(row["step_gib"]) < float(row["peak_gib"])
    assert row["contender"] == "ours cached" and row["groups"] == "2"


def test_page_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.page_table import END, START, main, table

    start = '2026-01-02,"CPU X, 2 threads",2.13,1.16,small,full,'
    pair, ragged = "hh-like,160,80,2,4", "hh-like-ragged,160,80,2,4"
    write(
        tmp_path / "cpu-x.csv",
        f"{start}{pair},trl,4,0.75,4,",
        f"{start}{pair},trl cached,3,1,3,",
        f"{start}{pair},ours,2.0004,1.4997,2,",
        f"{start}{pair},ours cached,1.25,2.4,1.25,",
        f"{start}{pair},floor,1,3,1,",
        f"{start}{ragged},trl,1234.5,,,",
    )
    write(
        tmp_path / "memory-cpu-x.csv",
        f"{start}{pair},trl,,,,0.5",
        f"{start}{pair},ours cached,,,,0.4",
        f"{start}{pair},floor,,,,1.23456",
        f"{start}sixteen,160,80,16,4,ours cached in twos,,,,0.5",
    )
    expected = """\
CPU X, 2 threads, `small`, full fine-tuning, TRL 1.16, torch 2.13, 2026-01-02; seconds of an optimizer step, and \
times as long as plain next-token training (floor):

| shape | K | TRL | TRL cached | ours | ours cached | floor | cached: speed-up | x floor |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 160 + K x 80 | 2 | 4 | 3 | 2 | 1.25 | 1 | 2.4x | 1.25 |
| 160 + K x 80, ragged | 2 | 1234 |  |  |  |  |  |  |

On a GPU: not measured.

CPU X, 2 threads, `small`, full fine-tuning, TRL 1.16, torch 2.13, 2026-01-02; peak GiB of a step of 4 prompts, \
weights and optimizer included:

| shape | K | TRL | TRL cached | ours | ours cached | ours cached, two answers at a time | floor |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 160 + K x 80 | 2 | 0.5 |  |  | 0.4 |  | 1.23 |
| 160 + K x 80 | 16 |  |  |  |  | 0.5 |  |

Sixteen answers, two at a time, peak at 1.25 times the memory of two answers.
"""
    assert table(tmp_path) == expected

    page = tmp_path / "performance.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    main(page, tmp_path)
    assert page.read_text(encoding="utf-8") == f"before\n{START}\n{expected}{END}\nafter\n"
    main(page, tmp_path)  # the same again
    assert page.read_text(encoding="utf-8") == f"before\n{START}\n{expected}{END}\nafter\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="benchmark:start"):
        main(page, tmp_path)


def test_the_page_shows_the_results():
    from benchmarks.page_table import END, START, table

    block = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    assert block == f"\n{table(ROOT / 'benchmarks' / 'results')}"
