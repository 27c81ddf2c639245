"""Every Python snippet of the README runs, its preset table is the presets', and its tree is the package's."""

import ast
import math
import re
from pathlib import Path

import pytest
from closeness import assert_within_rounding, in_float64, same
from tiny import preference_rows, save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM

import trl_dpo_ext
from trl_dpo_ext.trainers.presets import PRESETS, preset_values


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS[:5], ids=["full", "lora", "4-bit", "ranking", "preferred-ft"])
def test_training_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("sft-model", "base-model"):
        save_tiny(tiny_llama(), tiny_tokenizer(), tmp_path / folder)
    preference_rows(70).to_json(tmp_path / "preferences.jsonl")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    snippet = snippet.replace("bf16=True", "bf16=True, use_cpu=True")  # transformers wants bf16 on a CPU asked for
    exec(compile(snippet, "README.md", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 2  # 70 or 128 rows in updates of 64
    if "rewards" in names:
        assert names["rewards"].shape in ((70, 2), (128, 3))


@pytest.mark.slow
def test_reward_model_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_tiny(tiny_llama(), tiny_tokenizer(), tmp_path / "sft-model")
    rows = preference_rows(70)
    rows.to_json(tmp_path / "preferences.jsonl")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for snippet in (SNIPPETS[1].replace("2e-5", "2e-3"), SNIPPETS[6]):  # the adapter that is then scored
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["best"] == max(zip(names["rewards"][0], (" superb.", " dull."), strict=False))[1]
    rewards = names["trainer"].predict(rows).predictions
    assert len(names["clear"]) == (rewards[:, 0] > rewards[:, 1]).sum()
    assert names["relabelled"]["swapped"] == (rewards[:, 0] < rewards[:, 1]).tolist()


@pytest.mark.slow
def test_using_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    save_tiny(tiny_llama(), tiny_tokenizer(), tmp_path / "sft-model")
    preference_rows(70).to_json(tmp_path / "preferences.jsonl")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(SNIPPETS[1].replace("2e-5", "2e-3"), "README.md", "exec"), names)
    capsys.readouterr()
    exec(compile(SNIPPETS[5], "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("The film was")
    ids = names["write"].tokenizer("The film was", return_tensors="pt")["input_ids"]
    adapted, base = names["write"].model, AutoModelForCausalLM.from_pretrained("sft-model")
    merged = AutoModelForCausalLM.from_pretrained("dpo-merged")
    logits = [{"logits": model(ids).logits} for model in (merged, adapted)]
    with in_float64():
        assert_within_rounding(*logits, {"logits": adapted.double()(ids).logits})
    assert (base(ids).logits - logits[1]["logits"]).abs().max() > 0.1


def test_metrics_snippet_runs(capsys: pytest.CaptureFixture):
    exec(compile(SNIPPETS[7], "README.md", "exec"), {})
    metrics = [ast.literal_eval(line.replace("nan", "None")) for line in capsys.readouterr().out.splitlines()]
    found = [next(iter(metric.values())) for metric in metrics]
    sure, wrong = (1 / (1 + math.exp(-margin)) for margin in (0.3, 0.7))
    assert found == same([0.5, 0.0, (1 - sure + wrong) / 2, -0.2, 0.75])


@pytest.mark.slow
def test_evaluation_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for seed, folder in enumerate(("sft-model", "dpo-model")):
        save_tiny(tiny_llama(seed), tiny_tokenizer(), tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(SNIPPETS[8], "README.md", "exec"), names)
    evaluation = names["evaluation"]
    assert evaluation.kl.shape == (2, 8) and (evaluation.kl > 1).all() and (evaluation.reference.kl == 0).all()
    found = {row["n"]: row["reward"] for row in evaluation.summary(best_of=(1, 4, 8))["best_of_n"]}
    assert found[1] == same(evaluation.reward.mean()) and found[8] == same(evaluation.reward.max(axis=1).mean())


def test_preset_table():
    section = README[README.index("## Presets") : README.index("## What differs")]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section, flags=re.MULTILINE))
    for position, preset in enumerate(PRESETS):
        for name, value in preset_values(preset).items():
            if name == "tf32" and preset != "trl":
                value = True  # where the hardware has it
            assert rows[name].split("|")[position].strip() == str(getattr(value, "value", value)), (preset, name)
    assert set(rows) == set(preset_values("paper"))


def test_every_folder_has_its_line_in_the_tree():
    tree = re.search(r"^trl_dpo_ext/\n(.*?)^examples/", README, flags=re.MULTILINE | re.DOTALL)[1]
    folders = re.findall(r"^  (  )?(\w+)/ ", tree, flags=re.MULTILINE)
    listed, parent = [], ""
    for nested, name in folders:
        parent = parent if nested else name
        listed.append(f"{parent}/{name}" if nested else name)
    package = ROOT / "trl_dpo_ext"
    found = {str(path.parent.relative_to(package)) for path in package.rglob("__init__.py")}
    assert {name for name in found if not name.startswith("evaluation/modules/")} - {"."} == set(listed)
    files = {name for line in tree.splitlines() for name in re.findall(r"^  (?=\w)(.*?)  ", line)}
    single = {word for names in files for word in names.split() if word.endswith(".py")}
    assert all((package / name).is_file() for name in single)


def test_public_names_are_documented():
    for name in trl_dpo_ext.__all__:
        assert f"`{name}`" in README
