"""The examples run, and their results are plausible."""

import json
import math
import re
from pathlib import Path

import forked
import pytest
from closeness import ROUNDING


EXAMPLES = Path(__file__).parents[2] / "examples"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def run_example(name: str, *options: str, folder: Path) -> str:
    """What an example prints that runs in `folder`."""
    return run([str(EXAMPLES / name), *options], folder / f"{name}.log", folder)


def run(words: list[str], log: Path, folder: Path) -> str:
    program = forked.start(words, log, cwd=folder)
    assert program.wait(300) == 0, program.output[-3000:]
    return program.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new checkout's folder, with what `make quickstart` leaves in `outputs`, made of less."""
    folder = tmp_path_factory.mktemp("checkout")
    run(["-m", "trl_dpo_ext.cli", "quickstart", "--quick"], folder / "quickstart.log", folder)
    return folder


def check_picture(path: Path) -> None:
    picture = path.read_bytes()
    assert picture.startswith(PNG_SIGNATURE)
    assert len(picture) > 10_000  # more than empty axes


def check_evaluation(summary: dict[str, float], is_reference: bool, num_prefixes: int) -> None:
    assert 0.3 < summary["reward"] < 0.8
    assert 0 < summary["reward_se"] <= 0.5 / (num_prefixes - 1) ** 0.5  # of numbers between 0 and 1
    assert 0.5 < summary["finished_share"] <= 1
    if is_reference:
        assert summary["kl"] == summary["kl_se"] == 0  # one model, computed twice in the same way
    else:
        assert 2 * summary["kl_se"] < summary["kl"] < 5
        assert summary["kl_se"] > 0


@pytest.mark.slow
def test_own_objective(tmp_path: Path):
    printed = run_example("own_objective.py", folder=tmp_path)
    first, last = map(float, re.search(r"margin (-?[\d.]+) -> (-?[\d.]+)", printed).groups())
    assert first == 0  # before the first update the policy is the reference
    assert last > 0.02


@pytest.mark.slow
def test_quickstart(folder: Path):
    output_dir = folder / "outputs" / "quickstart_quick"
    results = json.loads((output_dir / "results.json").read_text())
    assert set(results) >= {"before", "after", "seconds", "settings"}
    num_prefixes = results["settings"]["num_test_prefixes"]
    check_evaluation(results["before"], True, num_prefixes)
    check_evaluation(results["after"], False, num_prefixes)
    assert results["seconds"] > 0
    check_picture(output_dir / "training_curves.png")
    for file in ("policy/model.safetensors", "sft/model.safetensors", "preferences.jsonl", "preferences_test.jsonl"):
        assert (output_dir / file).stat().st_size > 0

    printed = run_example("reward_model.py", "--run_dir", str(output_dir), folder=folder)
    logged = [json.loads(line) for line in (output_dir / "dpo" / "run_log" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in logged if "eval_loss" in line][-1]
    accuracy, margin = map(
        float, re.search(r"all: accuracy ([\d.]+), ties [\d.]+, margin ([\d.-]+),", printed).groups()
    )
    # Four digits are printed; a margin that ends in a 5 may be rounded either way
    assert accuracy == pytest.approx(last["eval_rewards/accuracies"], abs=0.5e-4 + ROUNDING)
    assert margin == pytest.approx(last["eval_rewards/margins"], abs=0.5e-4 + ROUNDING)
    random, picked, best = map(float, re.findall(r"true reward ([\d.]+)", printed))
    assert random < best and picked <= best


@pytest.mark.slow
def test_the_command_that_the_quickstart_prints(folder: Path):
    printed = (folder / "quickstart.log").read_text()
    [command] = re.findall(r"^  trl-dpo-ext (evaluate .*)$", printed, flags=re.MULTILINE)
    words = command.replace("--num_samples 8", "--num_samples 2").split()
    run(["-m", "trl_dpo_ext.cli", *words], folder / "evaluate.log", folder)
    output_dir = folder / "outputs" / "quickstart_quick"
    found = json.loads((output_dir / "evaluation" / "evaluation.json").read_text())
    expected = json.loads((output_dir / "results.json").read_text())
    for entry, summary in ((found["policies"]["policy"], expected["after"]), (found["reference"], expected["before"])):
        check_evaluation(entry, entry is found["reference"], found["num_prompts"])
        for name in ("reward", "kl"):
            assert abs(entry[name] - summary[name]) <= 4 * (summary[f"{name}_se"] + ROUNDING)  # other samples
    check_picture(output_dir / "evaluation" / "evaluation.png")


@pytest.mark.slow
def test_ranking_vs_pairs(folder: Path):
    printed = run_example("ranking_vs_pairs.py", "--quick", folder=folder)
    output_dir = folder / "outputs" / "ranking_vs_pairs_quick"
    assert "Rankings - pairs" in printed
    check_picture(output_dir / "ranking_vs_pairs.png")

    rows = [json.loads(line) for line in (output_dir / "rankings.jsonl").read_text().splitlines()]
    for row in rows:
        assert set(row) == {"prompt", "completions", "scores"}
        assert len(row["completions"]) == len(set(row["scores"])) == 4

    results = json.loads((output_dir / "results.json").read_text())
    settings = results["settings"]
    rankings, pairs = results["curves"]["whole rankings"], results["curves"]["all pairs"]
    assert len(rankings) == len(pairs) == len(settings["seeds"])
    for run, other in zip(rankings, pairs, strict=True):
        assert run[0] == other[0]  # the same start
        assert [point["num_sequences"] for point in run] == [point["num_sequences"] for point in other]
        assert run[-1]["num_sequences"] == settings["num_updates"] * settings["sequences_per_update"]
        for point in run + other:
            check_evaluation(point, point["num_sequences"] == 0, settings["num_test_prefixes"])
    assert len(results["comparison"]) == 6
    for row in results["comparison"]:
        assert math.isfinite(row["difference"]) and row["stderr"] > 0
        clear = abs(row["difference"]) > 2 * row["stderr"]
        assert clear or row["verdict"] == "no clear difference"


@pytest.mark.slow
def test_baselines(folder: Path):
    output_dir = folder / "elsewhere"
    printed = run_example("baselines.py", "--quick", "--output_dir", str(output_dir), folder=folder)
    check_picture(output_dir / "baselines.png")
    results = json.loads((output_dir / "results.json").read_text())
    methods = ["DPO", "Preferred-FT", "unlikelihood 0.1", "unlikelihood 1"]
    assert list(results["curves"]) == methods
    starts = []
    for method in methods:
        assert method in printed
        [run] = results["curves"][method]
        starts.append(run[0])
        check_evaluation(run[0], True, results["settings"]["num_test_prefixes"])
        assert run[-1]["num_sequences"] == results["settings"]["num_updates"] * 64
        assert 0 < run[-1]["kl"] < 50
        mean, stderr = results["table"][method]["reward at end"]
        assert mean == pytest.approx(run[-1]["reward"]) and stderr == pytest.approx(run[-1]["reward_se"])
    assert all(start == starts[0] for start in starts)  # one model, one set of prefixes
