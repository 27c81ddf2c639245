"""The parts of the reward model that need no training: rows, batches, reports, and what is said of bad input."""

import math
import random
from functools import partialmethod

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from tiny import preference_rows, tiny_gpt2, tiny_llama, tiny_processor, tiny_tokenizer

from trl_dpo_ext import ImplicitRewardModel
from trl_dpo_ext.data.options import RowOptions
from trl_dpo_ext.reward_model.batching import PromptPart, TokenizedRow, batches_of, parts_of, rows_from, tokenize_rows
from trl_dpo_ext.reward_model.results import PreferenceAccuracy, PreferenceReport


@pytest.fixture(scope="module")
def toy() -> ImplicitRewardModel:
    return ImplicitRewardModel(tiny_gpt2(1), tiny_gpt2(0), tiny_tokenizer(), beta=0.1)


def _random_rows() -> list[TokenizedRow]:
    chance = random.Random(0)

    def ids(most: int) -> list[int]:
        return [chance.randrange(3) for _ in range(chance.randint(1, most))]

    return [TokenizedRow(ids(3), [ids(9) for _ in range(chance.randint(1, 5))], False) for _ in range(60)]


class TestBatches:
    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("budget", [1, 12, 50, 10_000])
    def test_every_completion_is_in_one_batch_within_the_budget(self, budget, shared):
        rows = _random_rows()
        batches = batches_of(parts_of(rows, budget, shared), budget, shared)
        flat = [(prompt, ids) for prompt, answers, _ in rows for ids in answers]
        found = {}
        for batch in batches:
            rows_run = sum(len(part.numbers) for part in batch)
            longest = max(part.longest for part in batch)
            tokens = sum(part.distinct for part in batch) if shared else rows_run * longest
            assert tokens <= budget or rows_run == 1
            assert len(batch) * max(len(part.numbers) for part in batch) * longest <= max(
                8 * budget, longest * rows_run
            )
            for part in batch:
                found |= {n: (part.prompt_ids, ids) for n, ids in zip(part.numbers, part.completion_ids, strict=True)}
        assert [found[number] for number in range(len(flat))] == flat
        if budget == 10_000:
            assert len(batches) == 1
            prompts = [tuple(part.prompt_ids) for part in batches[0]]
            assert len(prompts) == len(set(prompts)) < 60  # equal prompts of different rows are run once

    def test_largest_first(self):
        parts = [PromptPart([1], [[2] * n], [n]) for n in (3, 9, 1, 5)]
        sizes = [[part.distinct for part in batch] for batch in batches_of(parts, 10, True)]
        assert sizes == [[10], [6, 4], [2]]

    def test_nothing(self, toy):
        assert batches_of([], 10, True) == [] == parts_of([], 10, True)
        assert toy.score([], []) == toy.rank([], []) == toy.score_tokens([], []) == []


class TestRows:
    def test_one_or_several_completions(self):
        assert rows_from(["a"], ["b"]) == ([{"prompt": "a", "completions": ["b"]}], False)
        assert rows_from(["a"], [["b", "c"]]) == ([{"prompt": "a", "completions": ["b", "c"]}], True)
        turns, answer = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
        assert rows_from([turns], [answer]) == ([{"prompt": turns, "completions": [answer]}], False)
        assert rows_from([turns], [[answer, answer]]) == ([{"prompt": turns, "completions": [answer] * 2}], True)

    def test_the_columns_of_a_data_set(self, toy):
        rows = preference_rows(2)
        assert toy.score(rows["prompt"], rows["chosen"]) == toy.score(rows["prompt"][:], rows["chosen"][:])

    def test_relabelled_answers_keep_their_tool_calls(self, toy, monkeypatch):
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
        row = {"prompt": [{"role": "user", "content": "So?"}], "chosen": [{"role": "assistant", "content": "No."}]}
        row["rejected"] = [{"role": "assistant", "content": "", "tool_calls": [call]}]
        monkeypatch.setattr(toy, "score_rows", lambda rows, name="": [[1.0, 0.0], [0.0, 1.0]])
        # `datasets` takes types from the rows that it writes first, by default a thousand
        monkeypatch.setattr(Dataset, "map", partialmethod(Dataset.map, writer_batch_size=1))
        same, swapped = toy.relabel(Dataset.from_list([row, row]))
        assert (swapped["chosen"], swapped["rejected"]) == (row["rejected"], row["chosen"])
        assert (same["chosen"], same["rejected"]) == (row["chosen"], row["rejected"])

    def test_cuts_are_counted(self, caplog):
        rows = [{"prompt": "x" * n, "completions": ["y"]} for n in (2, 30, 40)]
        options = RowOptions(max_length=20)
        with caplog.at_level("WARNING", "trl_dpo_ext"):
            tokenized = tokenize_rows(rows, tiny_tokenizer(), options, "scored")
        assert "2 of 3 rows exceed `max_length=20` and are truncated as in training." in caplog.text
        assert [len(row.prompt_ids) for row in tokenized] == [2, 10, 10]

    def test_rows_of_which_nothing_is_left_get_0(self, caplog):
        toy = ImplicitRewardModel(
            tiny_gpt2(1), tiny_gpt2(0), tiny_tokenizer(), beta=0.1, tokenization="joint", max_length=20
        )
        with caplog.at_level("WARNING", "trl_dpo_ext"):
            cut, whole = toy.score(["x" * 30, "x"], ["y", "y"])
        assert cut == 0.0 != whole
        assert (
            "1 of 2 rows exceed `max_length=20` and are truncated as in training. 1 of them have no completion left"
            in caplog.text
        )
        assert toy.score_tokens(["x" * 30], ["y"])[0].token_ids == []

    def test_options(self):
        assert RowOptions().max_prompt_length == 256 and RowOptions().prompt_truncation_mode == "keep_end"
        for options, message in (
            ({"tokenization": "apart"}, "`tokenization='apart'` does not exist. Choose one of 'separate', 'joint'"),
            ({"truncation_mode": "end"}, "`truncation_mode='end'` does not exist"),
            ({"max_length": 1}, "`max_length=1` leaves no room"),
            ({"max_length": 10, "max_prompt_length": 10}, "must be above 0 and below `max_length=10`"),
            ({"max_length": None, "max_prompt_length": 10}, "has no effect with `max_length=None`"),
            ({"truncation_mode": "keep_end"}, "has no effect with `tokenization='separate'`"),
            ({"tokenization": "joint", "max_prompt_length": 9}, "has no effect with `tokenization='joint'`"),
            ({"tokenization": "joint", "prompt_truncation_mode": "keep_end"}, "has no effect with"),
        ):
            with pytest.raises(ValueError, match=message):
                RowOptions(**options)


class TestReport:
    def test_counts(self):
        part = PreferenceAccuracy.of([1.0, 2.0, 0.5, -1.0], [0.0, 2.0, 1.0, -3.0])
        assert part == PreferenceAccuracy(count=4, accuracy=0.5, ties=0.25, margin=0.625)

    def test_subsets_count_once_each(self):
        parts = {"a": PreferenceAccuracy(9, 1.0, 0.0, 0.1), "b": PreferenceAccuracy(1, 0.0, 0.0, -0.1)}
        report = PreferenceReport(PreferenceAccuracy(10, 0.9, 0.0, 0.08), parts)
        assert report.mean_over_subsets == 0.5
        assert report.as_dict()["subsets"]["a"] == {"count": 9, "accuracy": 1.0, "ties": 0.0, "margin": 0.1}
        assert str(report).splitlines()[-2:] == [
            "all: accuracy 0.9000, ties 0.0000, margin 0.0800, 10 pairs",
            "mean over subsets: accuracy 0.5000",
        ]
        assert PreferenceReport(report.overall).mean_over_subsets == 0.9


class TestMessages:
    @pytest.mark.parametrize(
        ("prompts", "completions", "message"),
        [
            ("a", ["b"], "`prompts` is a text. Expected a list"),
            (["a"], "b", "`completions` is a text. Expected a list"),
            (["a", "b"], ["c"], "`prompts` has 2 entries but `completions` has 1"),
            (["a", "b"], ["c", ["d"]], r"`completions\[0\]` is one completion but `completions\[1\]` is a list"),
            (["a"], [[]], "`completions` in row 0 of the scored dataset is empty"),
            (["a", "b"], [["c"], ["d", None]], r"`completions\[1\]` in row 1 of the scored dataset is None"),
            ([None], ["c"], "`prompt` in row 0 of the scored dataset is None"),
            ([[{"role": "user", "content": "a"}]], ["b"], "In row 0 .* is text and `prompt` is messages"),
            ([""], ["b"], "`prompt` in row 0 of the scored dataset is empty and the tokenizer adds no BOS"),
        ],
    )
    def test_rows(self, toy, prompts, completions, message):
        with pytest.raises(ValueError, match=message):
            toy.score(prompts, completions)

    def test_lists_of_completions(self, toy):
        for method in (toy.rank, toy.best_of_n):
            with pytest.raises(ValueError, match="Expected a list of completions for each prompt"):
                method(["a"], ["b"])

    def test_models(self):
        policy, tokenizer = tiny_llama(), tiny_tokenizer()
        adapter = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        for arguments, message in (
            ((policy, policy, tokenizer), "`policy` and `reference` .* as `reference`"),
            ((adapter, adapter.get_base_model(), tokenizer), "`policy` and `reference` .* Leave `reference` out"),
            ((policy, None, tokenizer), "`reference=None` .*policy.* adapter.*`reference_free=True`"),
            (("folder", policy, tokenizer), "`policy` is a `str`.* loaded model"),
            ((policy, "folder", tokenizer), "`reference` is a `str`.* loaded model"),
            ((policy, tiny_llama(), tiny_processor()), "`processing_class` is a processor"),
        ):
            with pytest.raises(ValueError, match=message):
                ImplicitRewardModel(*arguments, beta=0.1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"beta": 0.0}, "Expected `beta` to be a finite number above 0"),
            ({"beta": math.nan}, "Expected `beta` to be a finite number above 0"),
            ({"mixed_precision": "fp8"}, "`mixed_precision='fp8'` does not exist. Choose one of 'no', 'bf16', 'fp16'"),
            ({"max_tokens_per_batch": 0}, "`max_tokens_per_batch=0` must be at least 1"),
            ({"reference_free": True}, "`reference` has no effect with `reference_free=True`"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            ImplicitRewardModel(tiny_llama(1), tiny_llama(0), tiny_tokenizer(), **({"beta": 0.1} | options))

    def test_weights_that_are_not_finite(self):
        policy = tiny_llama(1)
        with torch.no_grad():
            policy.lm_head.weight[0, 0] = math.nan
        reward_model = ImplicitRewardModel(policy, tiny_llama(0), tiny_tokenizer(), beta=0.1)
        with pytest.raises(ValueError, match="The policy .* not finite.*`dtype='float32'`"):
            reward_model.score(["a"], ["b"])
        assert "forward" not in vars(policy) and policy.config._attn_implementation == "sdpa"

    def test_data_sets(self, toy):
        rows = preference_rows(2)
        for dataset, message in (
            (rows.add_column("score_chosen", [0.0, 1.0]), "already has a column `score_chosen`. Rename it"),
            (rows.rename_column("chosen", "choosen"), "no column `chosen`.* Is it `choosen`?"),
            (rows.add_column("completions", [["a"], ["b"]]), "`completions` of a ranking and `chosen` and `rejected`"),
            (preference_rows(2, "vision"), "the column `images`.* text and chat only"),
            (rows.select([]), "The dataset has no rows"),
            (Dataset.from_list([{"completions": ["a"], "scores": [1.0]}]), "already has a column `scores`"),
            (Dataset.from_list([{"prompt": "a", "text": "b"}]), "no column `completions`"),
            (
                Dataset.from_list([{"prompt_ids": [1], "completion_ids": [[2], [3]]}]),
                "The dataset has token ids but no text",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                toy.score_dataset(dataset)
        with pytest.raises(ValueError, match="already has a column `swapped`"):
            toy.relabel(rows.add_column("swapped", [True, False]))
        with pytest.raises(TypeError, match="got a `DatasetDict`.* pass one split"):
            toy.score_dataset(DatasetDict(train=rows))
        with pytest.raises(TypeError, match="got a `IterableDataset`.*`Dataset.from_list"):
            toy.evaluate_preferences(rows.to_iterable_dataset())


def test_the_name_under_which_trl_logs_it(toy):
    assert toy.__name__ == "implicit_reward" and ImplicitRewardModel.__name__ == "ImplicitRewardModel"
    assert not isinstance(toy, torch.nn.Module)
    assert toy(prompts=["a"], completions=[" b"], completion_ids=[[1]], other=["c"]) == toy.score(["a"], [" b"])
