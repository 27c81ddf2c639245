"""Every Python snippet of README and docs runs, and gives what it promises."""

import ast
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_within_rounding, in_float64, same
from docs.pages import BLOCKS, SNIPPETS
from tiny import preference_rows, save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

from trl_dpo_ext import DPOPaperConfig
from trl_dpo_ext.run_files import STATE


Names = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that snippets run in: models, an adapter that the snippet `lora` trains, and data."""
    folder = tmp_path_factory.mktemp("user")
    for seed, name in enumerate(("sft-model", "base-model", "dpo-model")):
        save_tiny(tiny_llama(seed), tiny_tokenizer(), folder / name)
    rows = preference_rows(70)
    rows.to_json(folder / "preferences.jsonl")
    rows.select(range(4)).select_columns("prompt").to_json(folder / "prompts.jsonl")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run("lora", adapted=lambda code: code.replace("2e-5", "2e-3"))
        yield folder


def run(name: str, adapted: Callable[[str], str] = str) -> Names:
    # transformers wants bf16 on a CPU to be asked for
    code = adapted(SNIPPETS[name]).replace("bf16=True", "bf16=True, use_cpu=True")
    module = ModuleType(f"snippet_{name}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, module.__name__, module)  # classes are pickled with a checkpoint
        exec(compile(code, f"snippet {name}", "exec"), vars(module))
    return vars(module)


def printed_values(text: str) -> list[Any]:
    return [ast.literal_eval(line.replace("nan", "None")) for line in text.splitlines()]


# What holds after a snippet, from its names and what it printed


def trained(updates: int) -> Callable[[Names, str], None]:
    def check(names: Names, printed: str) -> None:
        trainer = names["trainer"]
        assert trainer.state.global_step == updates
        moved = trainer.state.log_history[-1]["train_loss"]
        assert math.isfinite(moved)

    return check


def full(names: Names, printed: str) -> None:
    trained(2)(names, printed)  # 70 rows in updates of 64
    assert names["rewards"].shape == (70, 2)


def ranking(names: Names, printed: str) -> None:
    trained(2)(names, printed)
    assert names["rewards"].shape == (128, 3) and np.isnan(names["rewards"][1::2, 2]).all()


def using(names: Names, printed: str) -> None:
    assert printed.startswith("The film was")
    ids = names["write"].tokenizer("The film was", return_tensors="pt")["input_ids"]
    adapted, base = names["write"].model, AutoModelForCausalLM.from_pretrained("sft-model")
    merged = AutoModelForCausalLM.from_pretrained("dpo-merged")
    logits = [{"logits": model(ids).logits} for model in (merged, adapted)]
    with in_float64():
        assert_within_rounding(*logits, {"logits": adapted.double()(ids).logits})
    assert (base(ids).logits - logits[1]["logits"]).abs().max() > 0.1


def evaluation_sets(names: Names, printed: str) -> None:
    margins, prediction = names["logged"], names["prediction"]
    assert margins["eval_first_rewards/margins"] != margins["eval_second_rewards/margins"]
    rewards = prediction.predictions
    assert rewards.shape == (6, 2)
    assert prediction.metrics["test_rewards/accuracies"] == same((rewards[:, 0] > rewards[:, 1]).mean())


def from_trl(names: Names, printed: str) -> None:
    trained(2)(names, printed)
    args = names["trainer"].args
    assert (args.preset, args.learning_rate, args.bf16) == ("trl", 1e-6, True)


def closed_forms(names: Names, printed: str) -> None:
    ref, reward = names["ref"].double(), names["reward"].double()
    policy = (ref + reward / 0.5).softmax(0)
    lines = printed.splitlines()
    assert lines[1] == lines[2] and lines[3].strip("tensor([])") == lines[4].strip("tensor([])")
    shown = torch.tensor(ast.literal_eval(lines[0].removeprefix("tensor(").removesuffix(")")))
    assert (shown - policy).abs().max() < 1e-4  # four digits
    loss = math.log1p(math.exp(-2))  # the rewards of the pair differ by 2
    assert abs(float(lines[4].removeprefix("tensor(").removesuffix(")")) - loss) < 1e-4


def conversions(names: Names, printed: str) -> None:
    first, second, third = printed.splitlines()
    ranked = ast.literal_eval(first)
    assert (ranked["completions"], ranked["ranks"]) == ([" 4", " four", " 5"], [0, 0, 1])
    assert len(names["pairs"]) == 2 and second.endswith(" []")
    assert [row[0]["content"] for row in ast.literal_eval(third)["completions"]] == ["4", "5"]


def doctor(names: Names, printed: str) -> None:
    report = names["report"]
    assert report.healthy and report.examined == 70 and str(report) in printed


def metrics(names: Names, printed: str) -> None:
    found = [next(iter(metric.values())) for metric in printed_values(printed)]
    sure, wrong = (1 / (1 + math.exp(-margin)) for margin in (0.3, 0.7))
    assert found == same([0.5, 0.0, (1 - sure + wrong) / 2, -0.2, 0.75])


def metric_functions(names: Names, printed: str) -> None:
    accuracy, calibration, margin, tau, wins, outcomes = printed_values(printed)
    sure, wrong = (1 / (1 + math.exp(-margin)) for margin in (0.3, 0.7))
    assert accuracy["preference_accuracy"] == 0.5 and calibration == same((1 - sure + wrong) / 2)
    assert margin["reward_margin"] == same(-0.2) and tau["kendall_tau"] == same(1.0)
    assert wins["win_rate"] == 0.75 and outcomes["win_rate"] == same(2.5 / 4)


def policy_evaluator(names: Names, printed: str) -> None:
    evaluation = names["evaluation"]
    assert evaluation.kl.shape == (2, 8) and (evaluation.kl > 1).all() and (evaluation.reference.kl == 0).all()
    found = {row["n"]: row["reward"] for row in evaluation.summary(best_of=(1, 4, 8))["best_of_n"]}
    assert found[1] == same(evaluation.reward.mean()) and found[8] == same(evaluation.reward.max(axis=1).mean())


def sampler(names: Names, printed: str) -> None:
    samples = names["samples"]
    assert [len(group) for group in samples] == [2, 2]
    assert all(0 < len(sample.token_ids) <= 16 and sample.logp < 0 for group in samples for sample in group)


def best_of_n(names: Names, printed: str) -> None:
    # All pairs of four samples: the largest counts three times, the next twice, then once
    means = [(3 * row[-1] + 2 * row[-2] + row[-3]) / 6 for row in map(sorted, names["rewards"])]
    first, second = printed.splitlines()
    assert float(first.split()[0]) == same(np.mean(means))
    kl, bound = map(float, second.split())
    assert bound == same(math.log(2) - 0.5) and 0 <= kl <= math.log(2)


def judging(names: Names, printed: str) -> None:
    rate, _, flips = map(float, printed.split())
    assert rate == same(2 / 3) and flips == 0
    assert len(Path("verdicts.jsonl").read_text().splitlines()) == 6  # three comparisons in two orders


def agreement(names: Names, printed: str) -> None:
    people, kappa = printed.split()
    assert float(people) == same(2 / 3)  # ann and bob differ on the second of three items
    assert kappa == "nan" or abs(float(kappa)) < 1e-12  # a judge that always says the same


def reward_model(names: Names, printed: str) -> None:
    assert names["best"] == max(zip(names["rewards"][0], (" superb.", " dull."), strict=False))[1]
    scores = names["reward_model"].score_dataset(names["pairs"])
    chosen, rejected = np.array(scores["score_chosen"]), np.array(scores["score_rejected"])
    assert len(names["clear"]) == (chosen > rejected).sum() > 0
    assert names["relabelled"]["swapped"] == (chosen < rejected).tolist()


def readme_reward_model(names: Names, printed: str) -> None:
    assert names["best"] == max(zip(names["rewards"][0], (" superb.", " dull."), strict=False))[1]


def token_rewards(names: Names, printed: str) -> None:
    [[whole]] = names["reward_model"].score(["The film was"], [[" superb."]])
    assert float(printed.splitlines()[-1]) == pytest.approx(whole, rel=1e-5)  # sums of float32 in another order


def save_reward_model(names: Names, printed: str) -> None:
    assert Path("reward-model", STATE).is_file()


def margin_objective(names: Names, printed: str) -> None:
    trained(2)(names, printed)
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    assert names["trainer"].losses(zeros, zeros).item() == same(math.log1p(math.exp(0.5)))


def own_metric(names: Names, printed: str) -> None:
    assert float(printed) == 0  # of the policy before training


def own_reward(names: Names, printed: str) -> None:
    value, verdict = printed.splitlines()
    assert value == "[1.0]" and "Preferred: A" in verdict


def own_converter(names: Names, printed: str) -> None:
    assert "'4'" in printed


def own_preset(names: Names, printed: str) -> None:
    assert printed.split() == ["0.05", "64", "512"] and isinstance(names["args"], DPOPaperConfig)


def reward_file(names: Names, printed: str) -> None:
    assert names["sentiment"](["a", "b"], [" superb.", " dull."]) == [1.0, 0.0]


CHECKS = {
    "4-bit": trained(2),
    "agreement": agreement,
    "best-of-n": best_of_n,
    "closed-forms": closed_forms,
    "conversions": conversions,
    "doctor": doctor,
    "evaluation-sets": evaluation_sets,
    "from-trl": from_trl,
    "full": full,
    "grpo": trained(1),
    "judging": judging,
    "lora": trained(2),
    "metric-functions": metric_functions,
    "metrics": metrics,
    "own-converter": own_converter,
    "own-metric": own_metric,
    "own-objective": margin_objective,
    "own-preset": own_preset,
    "own-reward": own_reward,
    "policy-evaluator": policy_evaluator,
    "ppo": trained(2),
    "preferred-ft": trained(2),
    "ranking": ranking,
    "readme-lora": trained(2),
    "readme-reward-model": readme_reward_model,
    "readme-train": trained(2),
    "reward-file": reward_file,
    "reward-model": reward_model,
    "rloo": trained(2),
    "sampler": sampler,
    "save-reward-model": save_reward_model,
    "token-rewards": token_rewards,
    "unlikelihood": trained(2),
    "using": using,
}
# These write where others read
WRITES = {
    "preferred-ft": "sft-model",
    "full": "dpo-model",
    "readme-train": "dpo-model",
    "lora": "dpo-adapter",
    "readme-lora": "dpo-adapter",
}


def test_every_snippet_has_a_name_and_a_check():
    assert [page for page, name, _ in BLOCKS if name is None] == []
    names = [name for _, name, _ in BLOCKS]
    assert sorted(names) == sorted(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_snippet(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(folder)
    written = WRITES.get(name)
    names = run(name, (lambda code: code.replace(f'"{written}"', '"elsewhere"')) if written else str)
    CHECKS[name](names, capsys.readouterr().out)
