"""`trl-dpo-ext evaluate`: results that the records give again, resumed and by any number of processes, and errors."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from closeness import same
from datasets import Dataset
from peft import get_peft_model
from tiny import lora_config, preference_rows, save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

from trl_dpo_ext import ImplicitRewardModel
from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import PolicyEvaluator, best_of_n
from trl_dpo_ext.evaluation.policies import measured_samples
from trl_dpo_ext.sampling import options as sampling_options


pytestmark = pytest.mark.usefixtures("float64")
OPTIONS = {"num_samples": 4, "max_new_tokens": 6, "seed": 7}
WORDS = [str(word) for name, value in OPTIONS.items() for word in (f"--{name}", value)]
REWARD = """
def letters(prompts, completions):
    return [one.count("e") - 0.1 * len(one) for one in completions]

def length(prompts, completions):
    return [len(one) for one in completions]
"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling_options, "_SAMPLES_PER_PART", 8)  # parts of two prompts
    Path("my_rewards.py").write_text(REWARD)
    prompts = list(dict.fromkeys(preference_rows(5)["prompt"]))
    assert len(prompts) == 5
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    with torch.random.fork_rng(devices=[]):
        return save_tiny(tiny_llama(1), tiny_tokenizer(), tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the page, whose pictures are two thirds of a command's time, where others of these tests draw it."""
    drawing = "trl_dpo_ext.report.evaluation_page.write_evaluation_page"
    monkeypatch.setattr(drawing, lambda path: (path.with_suffix(".html"), path.with_suffix(".png")))


def evaluate(*words: str, output: str = "out") -> int:
    return main(["evaluate", *words, "--output", output, *WORDS])


def results(output: str = "out/evaluation.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(output).read_text())
    return found


def records(name: str, folder: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "evaluation.records", f"{name}.jsonl").read_text().splitlines()]


# Values


def test_every_number_follows_from_the_records(policy, llama_folder, capsys):
    other = save_tiny(tiny_llama(2), tiny_tokenizer(), Path("other"))
    words = ("--reward_function", "my_rewards:letters", "--reward_function", "my_rewards.py:length")
    assert evaluate(policy, other, "prompts.jsonl", "--reference", llama_folder, *words) == 0
    printed = capsys.readouterr().out
    found = results()
    assert list(found["policies"]) == ["policy", "other"] and found["reference"]["name"] == Path(llama_folder).name
    assert (found["num_prompts"], found["num_samples"], found["temperature"]) == (5, 4, 1.0)
    assert found["rewards"] == ["letters", "length"]
    of_reference = records(found["reference"]["name"])
    by_name = {}
    for name, entry in {**found["policies"], found["reference"]["name"]: found["reference"]}.items():
        rows = records(name)
        assert [(row["prompt_id"], row["sample"]) for row in rows] == [(i, j) for i in range(5) for j in range(4)]
        values = {
            "reward": [row["rewards"]["letters"] for row in rows],
            "kl": [row["kl"] for row in rows],
            "kl_k1": [row["logp"] - row["ref_logp"] for row in rows],
            "finished_share": [row["finished"] for row in rows],
            "mean_length": [len(row["token_ids"]) for row in rows],
        }
        for key, flat in values.items():
            of_prompts = np.array(flat, dtype=float).reshape(5, 4).mean(axis=1)
            assert (entry[key], entry[f"{key}_se"]) == same((of_prompts.mean(), of_prompts.std(ddof=1) / 5**0.5))
        assert [row["rewards"] for row in rows] == [
            {"letters": row["completion"].count("e") - 0.1 * len(row["completion"]), "length": len(row["completion"])}
            for row in rows
        ]
        scores = np.array([list(row["rewards"].values()) for row in rows]).T.reshape(2, 5, 4)
        for row in entry["best_of_n"]:
            by = scores[found["rewards"].index(row["selected_by"])]
            assert row["reward"] == same(best_of_n(by, row["n"], values=scores[0]).mean())
        assert [(row["n"], row["selected_by"]) for row in entry["best_of_n"]] == [
            (n, by) for by in ("letters", "length") for n in (1, 4)
        ]
        wins = [
            (ours["rewards"]["letters"] > theirs["rewards"]["letters"])
            + 0.5 * (ours["rewards"]["letters"] == theirs["rewards"]["letters"])
            for ours in rows
            for theirs in of_reference
            if ours["prompt_id"] == theirs["prompt_id"]
        ]
        if name != found["reference"]["name"]:
            assert entry["win_over_reference"] == same(float(np.mean(wins)))
            assert f"{entry['reward']:.3f} +- {entry['reward_se']:.3f}" in printed
        by_name[name] = values
    assert found["reference"]["kl"] == 0
    assert [(row["policy"], row["other"]) for row in found["differences"]] == [
        ("policy", "other"),
        ("policy", found["reference"]["name"]),
        ("other", found["reference"]["name"]),
    ]
    for row in found["differences"]:
        difference = np.subtract(*(by_name[row[which]]["kl"] for which in ("policy", "other"))).mean()
        assert row["kl"] == same(difference) and row["kl_low"] < row["kl"] < row["kl_high"]


def test_the_command_is_the_evaluator(policy, llama_folder):
    assert evaluate(policy, "prompts.jsonl", "--reference", llama_folder, output="one.json") == 0
    models = [AutoModelForCausalLM.from_pretrained(name) for name in (llama_folder, policy)]
    evaluator = PolicyEvaluator(models[0], AutoTokenizer.from_pretrained(policy), progress=False, **OPTIONS)
    prompts = [json.loads(line)["prompt"] for line in Path("prompts.jsonl").read_text().splitlines()]
    summary = evaluator.evaluate(models[1], prompts).summary()
    entry = results("one.json")["policies"]["policy"]
    assert {name: entry[name] for name in summary} == same(summary)
    assert sorted(path.name for path in Path().glob("one*")) == [
        "one.html",
        "one.json",
        "one.png",
        "one.records",
        "one.samples",
    ]


def test_the_reference_of_an_adapter_and_rewards_of_models(llama_folder, monkeypatch):
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama_folder), lora_config(init_lora_weights=False))
    ImplicitRewardModel(model, None, tiny_tokenizer(), beta=0.5).save_pretrained("adapter")
    config = model.config
    config.num_labels, config.pad_token_id = 1, tiny_tokenizer().pad_token_id
    save_tiny(LlamaForSequenceClassification(config), tiny_tokenizer(), Path("reward"))
    assert evaluate("adapter", "prompts.jsonl", "--reward_model", "reward", "--implicit_reward", "adapter") == 0
    found = results()
    assert found["rewards"] == ["reward", "implicit reward of adapter"]
    rows = records("adapter")
    # The samples have no part that scoring truncates or appends, if they are finished
    finished = [row for row in rows if row["finished"]]
    assert [row["rewards"]["implicit reward of adapter"] for row in finished] == same(
        [0.5 * (row["logp"] - row["ref_logp"]) for row in finished]
    )
    assert found["reference"]["name"] == "reference" and found["reference"]["kl"] == 0
    assert found["policies"]["adapter"]["kl"] > 0.01


def test_chat_and_a_warped_policy(policy, llama_folder):
    rows = [{"prompt": row["prompt"]} for row in preference_rows(3, "chat")]
    Dataset.from_list(rows).to_parquet("chat.parquet")
    source = "def last(prompts, completions):\n    return [len(one[-1]['content']) for one in completions]"
    Path("my_rewards.py").write_text(source)
    words = ("--reference", llama_folder, "--reward_function", "my_rewards.py:last")
    assert evaluate(policy, "chat.parquet", *words, "--temperature", "0.7", "--top_k", "3") == 0
    for row in records("policy"):
        assert row["rewards"]["last"] == len(row["completion"]) and row["prompt"][0]["role"] == "user"
    assert results()["reference"]["kl"] > 0.1  # of the reference at temperature 0.7 from itself
    assert results()["top_k"] == 3


# Interruptions, processes, and what is kept


@pytest.mark.usefixtures("no_page")
def test_what_exists_is_kept(policy, llama_folder, monkeypatch, capsys):
    words = ("prompts.jsonl", "--reference", llama_folder, "--reward_function", "my_rewards.py:letters")
    assert evaluate(policy, *words) == 0
    expected = results()
    measured: list[int] = []
    real = measured_samples.measure

    def counted(sequence_kl, rewards, prompts, samples, **options):
        measured.append(len(prompts))
        return real(sequence_kl, rewards, prompts, samples, **options)

    monkeypatch.setattr("trl_dpo_ext.evaluation.policies.policy_files.measure", counted)
    assert evaluate(policy, *words) == 0
    assert measured == [] and results() == expected
    other = save_tiny(tiny_llama(2), tiny_tokenizer(), Path("other"))
    assert evaluate(policy, other, *words) == 0
    assert measured == [2, 2, 1]  # the other policy alone
    assert results()["policies"]["policy"] == expected["policies"]["policy"]
    # Another reward: refused by name, then measured again with the same samples
    Path("my_rewards.py").write_text(REWARD.replace("0.1", "0.2"))
    capsys.readouterr()
    assert evaluate(policy, *words) == 2
    assert (
        "already exists and was made with other settings: `reward letters` changed. Choose" in capsys.readouterr().err
    )
    samples = Path("out/evaluation.samples/policy.jsonl").read_bytes()
    assert evaluate(policy, *words, "--overwrite") == 0
    assert Path("out/evaluation.samples/policy.jsonl").read_bytes() == samples
    assert results()["policies"]["policy"]["reward"] < expected["policies"]["policy"]["reward"]
    assert evaluate(policy, *words, "--temperature", "0.5") == 2
    assert "`temperature` was 1.0, is 0.5" in capsys.readouterr().err


@pytest.mark.usefixtures("no_page")
def test_killed_while_it_measures_and_resumed(policy, llama_folder, monkeypatch):
    words = ("prompts.jsonl", "--reference", llama_folder, "--reward_function", "my_rewards.py:letters")
    assert evaluate(policy, *words, output="straight") == 0
    real = measured_samples.measure
    calls = 0

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl_dpo_ext.evaluation.policies.policy_files.measure", failing)
        with pytest.raises(KeyboardInterrupt):
            evaluate(policy, *words)
    assert not Path("out/evaluation.json").exists()
    assert evaluate(policy, *words) == 0
    assert results() == results("straight/evaluation.json")
    assert records("policy") == records("policy", "straight")


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.float32
def test_two_processes_give_the_same_results(policy, llama_folder, monkeypatch):
    monkeypatch.setattr(sampling_options, "_SAMPLES_PER_PART", 512)  # as in the programs
    words = [policy, "prompts.jsonl", "--reference", llama_folder, "--reward_function", "my_rewards.py:letters"]
    words += ["--num_samples", "200", "--max_new_tokens", "2"]  # parts of two prompts
    command = ["-m", "trl_dpo_ext.cli", "evaluate", *words, "--output", "two"]
    programs = forked.start_ranks(2, command, Path("logs"))
    assert main(["evaluate", *words, "--output", "one"]) == 0
    statuses, printed = forked.wait_for_all(programs, 200), "".join(program.output for program in programs)
    assert statuses == [0, 0], printed
    assert printed.count("Wrote two/evaluation.json") == 1
    samples = [Path(folder, "evaluation.samples", "policy.jsonl").read_bytes() for folder in ("one", "two")]
    assert samples[0] == samples[1]
    one, two = (results(f"{folder}/evaluation.json")["policies"]["policy"] for folder in ("one", "two"))
    assert two.pop("best_of_n")[-1] == pytest.approx(one.pop("best_of_n")[-1])
    del one["path"], two["path"], one["records"], two["records"]
    assert two == pytest.approx(one, rel=1e-5)  # float32


# Samples of others


@pytest.mark.usefixtures("no_page")
def test_samples_in_place_of_sampling(policy, llama_folder, capsys):
    words = ("prompts.jsonl", "--reference", llama_folder)
    assert evaluate(policy, *words, output="straight") == 0
    samples = "straight/evaluation.samples/policy.jsonl"
    given = ["evaluate", policy, *words, "--samples", samples, "--output", "out"]
    assert main(given) == 0  # the options are those of the samples
    assert results()["policies"]["policy"]["kl"] == results("straight/evaluation.json")["policies"]["policy"]["kl"]
    assert not Path("out/evaluation.samples/policy.jsonl").exists()

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main([*words, "--overwrite"]) == 2
        return capsys.readouterr().err

    found = refused(*given, "--temperature", "0.5")
    assert "was sampled with `temperature=1.0`, not 0.5. Leave the option out" in found
    other = save_tiny(tiny_llama(2), tiny_tokenizer(), Path("other"))
    assert "has samples of another model than other, by the hash" in refused("evaluate", other, *given[2:])
    # Samples of another program: without settings, and so with a comparison of log-probabilities
    rows = [json.loads(line) for line in Path(samples).read_text().splitlines()]

    def write(rows: list[dict[str, Any]]) -> list[str]:
        Path("foreign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["evaluate", policy, *words, "--samples", "foreign.jsonl", "--output", "foreign", *WORDS[2:]]

    assert main(write(rows[::-1])) == 0  # in any order
    assert results("foreign/evaluation.json")["num_samples"] == 4
    unnumbered = [{name: value for name, value in row.items() if name != "sample"} for row in rows]
    assert main([*write(unnumbered), "--overwrite"]) == 0
    assert [row["sample"] for row in records("policy", "foreign")] == [0, 1, 2, 3] * 5
    found = refused("evaluate", other, *write(rows)[2:])
    assert re.search(r"Sample \d of prompt \d has the log-probability -[\d.]+ in the file, and -[\d.]+ under", found)
    changes: list[tuple[Callable[[list[dict[str, Any]]], Any], str]] = [
        (lambda rows: rows.pop(), "has 4 samples of prompt 0 and 3 of prompt 4. Every prompt needs the same number"),
        (lambda rows: rows.__delitem__(slice(4, 8)), "has no sample of prompt 1, and PROMPTS has the prompts 0 to 4"),
        (lambda rows: rows[5].update(prompt="Other"), "The prompt 1 in foreign.jsonl is not the one in PROMPTS"),
        (lambda rows: rows[5].pop("logp"), "line 6 of foreign.jsonl has no `logp`. A row of samples needs prompt_id"),
        (lambda rows: rows[5].update(finished="yes"), '`finished` in line 6 of foreign.jsonl is "yes". Expected bool'),
        (lambda rows: rows[5].update(token_ids=[1, -2]), "`token_ids` in line 6 of foreign.jsonl has a value"),
    ]
    for change, problem in changes:
        changed = json.loads(json.dumps(rows))
        change(changed)
        assert problem in refused(*write(changed))
    assert "--samples has 1 files for 2 policies" in refused("evaluate", policy, other, *given[2:])
    found = refused(*given[:-4], "--samples", "none.jsonl", "--output", "x")
    assert "The file of samples none.jsonl does not exist" in found


# Errors


def test_one_clear_error_each(policy, llama_folder, capsys):
    Path("my_rewards.py").write_text(
        "def nan(prompts, completions):\n    return [float('nan')] * len(completions)\n"
        "def few(prompts, completions):\n    return [1.0]\n"
    )
    config = tiny_llama().config
    config.num_labels, config.pad_token_id = 2, 0
    save_tiny(LlamaForSequenceClassification(config), tiny_tokenizer(), Path("sentiment"))
    Path("long.jsonl").write_text(json.dumps({"prompt": "word " * 900}) + "\n")
    Path("empty.jsonl").write_text("")
    words = (policy, "prompts.jsonl", "--reference", llama_folder)
    nan, few = (("--reward_function", f"my_rewards.py:{name}") for name in ("nan", "few"))
    for given, problem in {
        (*words, *nan): "The reward `nan` is nan for sample 0 of prompt 0, '",
        (*words, *few): "The reward `few` returned 1 values for 8 completions",
        (*words, *nan, *nan): "Two rewards have the name `nan`. Rename one.",
        (*words, "--reward_model", "sentiment"): "sentiment is a classifier of 'LABEL_0', 'LABEL_1'. Pass the label "
        "whose probability is the reward, as --reward_label.",
        (*words, "--reward_label", "x"): "--reward_label has no effect without --reward_model.",
        (*words, "--reward_model", llama_folder): "missing weights `score.weight`",
        (policy, "long.jsonl", "--reference", llama_folder): "exceed the 512 positions of the model",
        (policy, "empty.jsonl", "--reference", llama_folder): "empty.jsonl has no rows.",
        (*words, "--best_of_n", "4", "8"): "--best_of_n 8 needs as many samples. --num_samples is 4.",
        (policy, "prompts.jsonl"): "does not record its reference. Pass --reference",
        (policy, llama_folder, "prompts.jsonl"): "Several policies need a common reference. Pass --reference.",
        (policy, policy, "prompts.jsonl", "--reference", llama_folder): "is given twice.",
    }.items():
        capsys.readouterr()
        assert evaluate(*given, "--overwrite") == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("trl-dpo-ext evaluate: ") and problem in err, given
    assert not Path("out/evaluation.json").exists()
