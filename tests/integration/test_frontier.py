"""`trl-dpo-ext frontier`: a small frontier of every method, interrupted, changed, and with runs that fail."""

import csv
import errno
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from closeness import same
from transformers import AutoModelForCausalLM

from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation.rewards.classifier_reward import ClassifierReward
from trl_dpo_ext.frontier import points, runs, stages
from trl_dpo_ext.frontier.config import KL_TARGET_OPTIONS, FrontierConfig
from trl_dpo_ext.frontier.runs import run_folder
from trl_dpo_ext.frontier.stages import SharedParts


OWN = """
from reinforced import EOS_IDS
from tiny import tiny_gpt2, tiny_tokenizer

def base_model():
    model = tiny_gpt2()
    model.generation_config.eos_token_id = EOS_IDS
    return model, tiny_tokenizer(chat_template=False)

def letters(prompts, completions):
    return [float(len(set(text))) for text in completions]
"""
NUM_PROMPTS, NUM_SAMPLES, UPDATES = 12, 3, 4
COLUMNS = (
    "method,knob,seed,update,reward,reward_se,kl,kl_se,kl_k1,finished_share,mean_length,new_words,wall_s,samples_drawn,"
    "reward_calls"
)


def config(*more: dict[str, Any], **changed: Any) -> dict[str, Any]:
    shared = {"learning_rate": 1e-3, "warmup_steps": 1, "use_cpu": True, "max_steps": UPDATES}
    return {
        "model": "own.py:base_model",
        "reward": "own.py:letters",
        "texts": "texts.jsonl",
        "num_held_out_texts": 6,
        "sft": {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True},
        "prefix_tokens": [2, 6],
        "num_prompts": NUM_PROMPTS,
        "num_test_prompts": 6,
        "samples_per_prompt": NUM_SAMPLES,
        "reference_samples": 16,
        "max_new_tokens": 5,
        "evaluate_every": 2,
        "training": {**shared, "global_batch_size": 4, "per_device_train_batch_size": 4},
        "rl": {**shared, "per_device_train_batch_size": 8, "num_generations": 2},
        "reward_model": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "use_cpu": True},
        "runs": [
            {"method": "dpo", "beta": [0.1, 1]},
            {"method": "ranking-dpo", "beta": 1},
            {"method": "unlikelihood", "alpha": 0.5, "divergence_guard": None},
            {"method": "preferred-ft", "seed": [0, 1]},
            {"method": "rloo-gt", "beta": 0.1},
            {"method": "rloo", "beta": 0.1},
            {"method": "ppo-gt", "kl_target": 1, "kl_horizon": 100, "initial_beta": 0.5},
            {"method": "ppo", "beta": 0.1},
            *more,
        ],
    } | changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the config names, which is the current one."""
    path = tmp_path_factory.mktemp("frontier")
    (path / "own.py").write_text(OWN)
    words = ("good", "bad", "warm", "clear", "short", "sunny")
    texts = [f"The {a} film was {b} and the {c} book" for a in words for b in words for c in words[:2]]
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


def frontier(output: str, options: dict[str, Any], *words: str, page: bool = False) -> int:
    Path(f"{output}.yaml").write_text(yaml.safe_dump(options))
    with pytest.MonkeyPatch.context() as patch:
        if not page:  # two seconds in every run
            patch.setattr("trl_dpo_ext.cli.frontier.write_pictures", lambda *arguments: None)
        return main(["frontier", f"{output}.yaml", "--output_dir", output, *words])


def table(output: str) -> list[dict[str, str]]:
    with Path(output, "frontier.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(output: str) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in table(output)]


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    """A frontier of all methods."""
    assert frontier("whole", config(), page=True) == 0
    return "whole"


def test_the_table(whole):
    assert Path(whole, "frontier.csv").read_text().splitlines()[0] == COLUMNS
    rows = table(whole)
    ends = Counter((row["method"], row["knob"], row["seed"]) for row in rows if row["update"] == str(UPDATES))
    assert set(ends) == {
        ("DPO", "beta=0.1", "0"), ("DPO", "beta=1", "0"), ("Ranking-DPO", "beta=1", "0"),
        ("Unlikelihood", "alpha=0.5", "0"), ("Preferred-FT", "", "0"), ("Preferred-FT", "", "1"),
        ("RLOO, true reward", "beta=0.1", "0"), ("RLOO, reward model", "beta=0.1", "0"),
        ("PPO, true reward", "kl_target=1", "0"), ("PPO, reward model", "beta=0.1", "0"),
    }  # fmt: skip
    of_runs = [row for row in rows if row["update"] != "0"]
    assert len(of_runs) == 2 * len(ends) and {row["update"] for row in of_runs} == {"2", "4"}
    # The two policies of a run are those of different updates, and none is the initial one
    assert all(float(row["kl"]) > 0 and float(row["reward_se"]) > 0 for row in of_runs)
    assert len({row["kl"] for row in of_runs}) == len(of_runs)


def test_costs_are_counted(whole):
    shared = NUM_PROMPTS * NUM_SAMPLES
    rollouts = {2: 16, 4: 32}  # RLOO: 8 an update
    for row in table(whole):
        update, found = int(row["update"]), (int(row["samples_drawn"]), int(row["reward_calls"]))
        if row["method"] in ("DPO", "Ranking-DPO", "Unlikelihood", "Preferred-FT"):
            assert found == (shared, shared)
        elif row["method"] == "RLOO, true reward":
            assert found == (rollouts[update], rollouts[update])
        elif row["method"] == "RLOO, reward model":
            assert found == (shared + rollouts[update], shared)
        elif row["method"] == "PPO, true reward":
            assert found == (8, 8)  # four passes over the completions of a generation
        elif row["method"] == "PPO, reward model":
            assert found == (shared + 8, shared)
        else:
            assert found == (0, 0)


def test_estimates_of_the_initial_policy(whole):
    rows = table(whole)
    parts = SharedParts(FrontierConfig.from_dict(config()), Path(whole))
    rewards = parts.of_reference.reward  # (6, 16)
    [initial] = [row for row in rows if row["method"] == "SFT"]
    assert float(initial["reward"]) == pytest.approx(rewards.mean(), rel=1e-5) and float(initial["kl"]) == 0
    [best_of_two] = [row for row in rows if row["knob"] == "N=2"]
    pairs = [max(a, b) for own in rewards for i, a in enumerate(own) for b in own[:i]]
    assert float(best_of_two["reward"]) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert float(best_of_two["kl_k1"]) == pytest.approx(np.log(2) - 0.5, rel=1e-5)
    optimum = [row for row in rows if row["method"] == "Optimum (estimate)"]
    values = [(float(row["kl"]), float(row["reward"])) for row in optimum]
    assert values == sorted(values) and len(values) > 3
    beta, (kl, reward) = float(optimum[3]["knob"].removeprefix("beta=")), values[3]
    weights = np.exp(rewards / beta) / np.exp(rewards / beta).sum(1, keepdims=True)
    assert reward == pytest.approx((weights * rewards).sum(1).mean(), rel=1e-3)  # beta has four digits
    assert kl == pytest.approx((weights * np.log(16 * weights)).sum(1).mean(), rel=3e-3)


def test_the_reward_model_is_fitted_to_the_pairs(whole):
    found = json.loads(Path(whole, "frontier.json").read_text())["reward_model"]
    parts = SharedParts(FrontierConfig.from_dict(config()), Path(whole))
    validation = parts.preferences.select([NUM_PROMPTS - 1])
    reward = ClassifierReward.from_pretrained(str(Path(whole, "reward_model")))
    row = validation[0]
    predicted = reward([row["prompt"]] * NUM_SAMPLES, row["completions"])
    ordered = [
        (predicted[i] > predicted[j])
        for i in range(NUM_SAMPLES)
        for j in range(NUM_SAMPLES)
        if row["scores"][i] > row["scores"][j] and row["completions"][i] and row["completions"][j]
    ]
    assert found["num_validation_pairs"] == len(ordered)
    assert found["preference_accuracy"] == same(np.mean(ordered))


def test_preferences_are_samples_with_their_rewards(whole):
    rows = [json.loads(line) for line in Path(whole, "preferences.jsonl").read_text().splitlines()]
    assert len(rows) == NUM_PROMPTS and len({row["prompt"] for row in rows}) == NUM_PROMPTS
    assert all(row["scores"] == [len(set(text)) for text in row["completions"]] for row in rows)
    test = SharedParts(FrontierConfig.from_dict(config()), Path(whole)).prompts[1]
    assert not {row["prompt"] for row in rows} & set(test) and len(test) == 6


def test_what_is_done_is_kept(whole, monkeypatch):
    before = Path(whole, "frontier.csv").read_text()

    def refuse(*arguments: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "_train", refuse)
    monkeypatch.setattr(stages, "make_initial_policy", refuse)
    monkeypatch.setattr(stages, "reference_points", refuse)
    monkeypatch.setattr(stages, "fit_reward_model", refuse)
    assert frontier(whole, config()) == 0
    assert Path(whole, "frontier.csv").read_text() == before


def test_a_changed_beta_trains_its_run_alone(whole, monkeypatch):
    trained: list[str] = []
    train = runs._train

    def noted(folder: Any, parts: Any) -> None:
        trained.append(folder.run.name)
        train(folder, parts)

    monkeypatch.setattr(runs, "_train", noted)
    options = config()
    options["runs"][0] = {"method": "dpo", "beta": [0.1, 2]}
    assert frontier(whole, options | {"save_policies": True}) == 0
    assert trained == ["dpo_beta=2_seed=0"]
    [saved] = Path(whole, "runs").glob("*/policy")
    parts = SharedParts(FrontierConfig.from_dict(options), Path(whole))
    evaluation = parts.evaluator.evaluate(AutoModelForCausalLM.from_pretrained(saved), parts.prompts[1])
    [end] = [row for row in table(whole) if (row["knob"], row["update"]) == ("beta=2", str(UPDATES))]
    assert evaluation.summary()["kl"] == pytest.approx(float(end["kl"]), rel=1e-5)
    knobs = {row["knob"] for row in table(whole) if row["method"] == "DPO"}
    assert knobs == {"beta=0.1", "beta=2"}
    assert frontier(whole, config()) == 0  # the other one is still there
    assert trained == ["dpo_beta=2_seed=0"]


SHORT = [{"method": "dpo", "beta": 0.1}, {"method": "rloo", "beta": 0.1}, {"method": "ppo-gt", "kl_target": 1}]


@pytest.mark.slow
def test_interrupted_at_five_moments(folder, monkeypatch):
    options = config(runs=SHORT)
    assert frontier("straight", options) == 0
    evaluate, count, stop_at = points.RunPoints._evaluate, [0], [-1]

    def stopping(self: Any, model: Any, update: int) -> None:
        evaluate(self, model, update)
        count[0] += 1
        if count[0] == stop_at[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(points.RunPoints, "_evaluate", stopping)
    fit = stages.fit_reward_model

    def stopping_fit(*arguments: Any) -> None:
        fit(*arguments)
        count[0] += 1
        if count[0] == stop_at[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(stages, "fit_reward_model", stopping_fit)
    # The first that each run comes to: an evaluation of DPO, its last one, the reward model, two evaluations of RLOO
    for _ in range(5):
        stop_at[0] = count[0] + 1
        assert frontier("interrupted", options) == 130
    stop_at[0] = -1
    assert frontier("interrupted", options) == 0
    assert without_times("interrupted") == without_times("straight")


def test_runs_that_fail_are_marked_and_the_others_go_on(folder, monkeypatch, capsys):
    options = config(runs=[*SHORT, {"method": "unlikelihood", "alpha": 1, "learning_rate": 1e8}])
    calls = [0]

    def failing(self: Any, prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
        self.num_calls += len(completions)
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("the reward server is gone")
        return self.reward(prompts, completions)

    with monkeypatch.context() as patch:
        patch.setattr(points.CountedReward, "__call__", failing)
        write = points.write_text

        def full(path: Path, text: str) -> None:
            if "dpo_beta=0.1" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, text)

        patch.setattr(points, "write_text", full)
        assert frontier("failing", options) == 1
    states = {run["run"]: run for run in json.loads(Path("failing", "frontier.json").read_text())["runs"]}
    assert "No space left on device" in states["dpo_beta=0.1_seed=0"]["error"]
    assert "the reward server is gone" in states["rloo_beta=0.1_seed=0"]["error"]
    assert states["ppo-gt_kl_target=1_seed=0"]["state"] == "done"
    assert states["unlikelihood_alpha=1_seed=0"]["state"] == "failed"
    assert "finite" in states["unlikelihood_alpha=1_seed=0"]["error"]
    assert "rloo_beta=0.1_seed=0 failed" in capsys.readouterr().err
    assert {row["method"] for row in table("failing") if row["update"] == "4"} == {"PPO, true reward"}
    assert frontier("failing", options) == 1  # they are not tried again,
    assert frontier("failing", config(runs=SHORT), "--retry") == 0  # unless one asks for it
    done = {row["method"] for row in table("failing") if row["update"] == "4"}
    assert done == {"DPO", "RLOO, reward model", "PPO, true reward"}


def test_the_page(whole):
    page = Path(whole, "frontier.html").read_text()
    assert "Reward against KL" in page and "RLOO, true reward" in page and "10 of 10 done" in page
    assert Path(whole, "frontier.png").stat().st_size > 50_000
    assert "mathdefault" not in page


def test_a_seed_changes_a_run_and_a_folder_is_its_identity(whole):
    parts = SharedParts(FrontierConfig.from_dict(config()), Path(whole))
    folders = [run_folder(run, parts).folder.name for run in parts.config.runs]
    assert len(set(folders)) == 10 and all(Path(whole, "runs", name, "status.json").exists() for name in folders)
    seeds = {row["seed"]: row["reward"] for row in table(whole) if row["method"] == "Preferred-FT"}
    assert len(set(seeds.values())) == 2


MISTAKES = {
    "model": ({"model": None}, "`model` is missing."),
    "option": ({"num_promts": 3}, "There is no option `num_promts`. Did you mean `num_prompts`?"),
    "type": ({"num_prompts": "many"}, "`num_prompts` is 'many'. Expected a whole number."),
    "bool": ({"save_policies": "no"}, "`save_policies` is 'no'. Expected true or false."),
    "bool for int": ({"seed": True}, "`seed` is True. Expected a whole number."),
    "method": ({"runs": [{"method": "dpoo", "beta": 1}]}, "There is no method `dpoo` in `runs`"),
    "knob": ({"runs": [{"method": "dpo"}]}, "A run of `dpo` needs one of `beta`."),
    "two knobs": ({"runs": [{"method": "ppo", "beta": 1, "kl_target": 3}]}, "needs one of `beta` and `kl_target`."),
    "no target": ({"runs": [{"method": "ppo", "beta": 1, "kl_horizon": 9}]}, "`kl_horizon` of a run of `ppo` has no"),
    "value": ({"runs": [{"method": "dpo", "beta": "small"}]}, "`beta` in `runs` is 'small'. Expected a number"),
    "twice": ({"runs": [{"method": "dpo", "beta": [1, 1.0]}]}, "`runs` has dpo_beta=1_seed=0 2 times."),
    "prefix": (
        {"prefix_tokens": [8, 2]},
        "`prefix_tokens=[8, 2]` must be two numbers, of which the first is the smaller.",
    ),
    "texts": ({"texts": None, "sft": None}, "`texts`, or `prompts` and `test_prompts`, are needed."),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(folder, name, capsys):
    changed, expected = MISTAKES[name]
    assert frontier("mistake", config(**changed)) == 2
    message = capsys.readouterr().err
    assert expected in message and "mistake.yaml" in message and "Traceback" not in message


def test_dry_run(folder, capsys):
    assert frontier("dry", config(), "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["DPO", "beta=0.1", "seed", "0"] and lines[-1] == "10 runs"
    assert not Path("dry").exists()


def test_recipes_are_read(pytestconfig):
    for path in (pytestconfig.rootpath / "recipes" / "frontier").glob("*.yaml"):
        read = FrontierConfig.from_dict(yaml.safe_load(path.read_text()))
        for run in read.runs:
            names = {option.name for option in fields(run.of.load().config)}
            assert set(run.options) - set(KL_TARGET_OPTIONS) <= names
