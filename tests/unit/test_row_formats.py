"""Schemas, formats and values of rows: what is taken, as which tokens, and what is refused by which words."""

import pytest
import trl
from datasets import Dataset
from tiny import EOS_TOKEN, preference_rows, tiny_tokenizer
from unit.conftest import stream

from trl_dpo_ext.data.columns import opened
from trl_dpo_ext.data.dataset_preparation import prepare_dataset
from trl_dpo_ext.data.doctor.examination import examine
from trl_dpo_ext.data.token_ids import check_ids, suspects
from trl_dpo_ext.reward_model.reward_columns import completions_of


TOKENIZER = tiny_tokenizer()
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
USER = {"role": "user", "content": "Is it good?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes, it is.", "No."))
CHAT = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
ROW_1 = "row 1 of the train dataset"


def pairs(rows, tokenizer=TOKENIZER, joint=False, keep_end=True, **options):
    rows = Dataset.from_list(rows) if isinstance(rows, list) else rows
    options |= {"tokenization": "joint" if joint else "separate"}
    options |= {"truncation_mode" if joint else "prompt_truncation_mode": "keep_end" if keep_end else "keep_start"}
    dataset, report = prepare_dataset(rows, tokenizer, as_pairs=True, **options)
    return [{name: row[name] for name in IDS} for row in dataset], report


class TestPromptOnce:
    @pytest.mark.parametrize("joint", [False, True])
    def test_a_text_prompt_with_conversations(self, joint):
        """The schema of ultrafeedback_binarized: token for token the conversation without the column."""
        turns = [{"role": "system", "content": "Be brief."}, USER]
        rows = [
            {"prompt": "Is it good?", "chosen": [*start, YES], "rejected": [*start, NO]}
            for start in ([USER], turns, [USER, YES, {"role": "user", "content": "Sure?"}])
        ]
        implicit = [{name: row[name] for name in ("chosen", "rejected")} for row in rows]
        expected = []
        for row in implicit:
            apart = trl.extract_prompt(row)
            prompt = TOKENIZER.apply_chat_template(apart["prompt"], add_generation_prompt=True)["input_ids"]
            whole = [TOKENIZER.apply_chat_template(row[name])["input_ids"] for name in ("chosen", "rejected")]
            expected.append([prompt, *(ids[len(prompt) :] for ids in whole)])
        prepared, report = pairs(rows, joint=joint)
        assert [list(row.values()) for row in prepared] == expected
        assert (report.rows, report.prompts_repeated) == (3, 3)
        assert examine(Dataset.from_list(rows), TOKENIZER, progress=False).preparation == pairs(rows)[1]

    def test_rankings_and_the_best_of_them(self):
        row = {"prompt": "Is it good?", "completions": [[USER, YES], [USER, NO]], "ranks": [0, 1]}
        rows, expected = Dataset.from_list([row]), pairs([CHAT])[0][0]
        dataset, report = prepare_dataset(rows, TOKENIZER)
        assert dataset[0]["completion_ids"] == [expected["chosen_ids"], expected["rejected_ids"]]
        assert dataset[0]["prompt_ids"] == expected["prompt_ids"] and report.prompts_repeated == 1
        best, report = prepare_dataset(rows, TOKENIZER, alone=True)
        assert best[0]["completion_ids"] == [expected["chosen_ids"]] and best[0]["completions"] == [[YES]]
        assert best[0]["prompt_ids"] == expected["prompt_ids"] and report.prompts_repeated == 1

    def test_text_answers_that_begin_with_their_prompt(self):
        rows = [{"prompt": f"{q}?", "chosen": f"{q}? Yes", "rejected": f"{q}? No"} for q in ("So", "Why")]
        apart = [row | {name: row[name][len(row["prompt"]) :] for name in ("chosen", "rejected")} for row in rows]
        prepared, report = pairs(rows)
        assert prepared == pairs(apart)[0] and report.prompts_repeated == 2

    def test_one_answer_that_echoes_its_prompt_is_left_alone(self):
        echo = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi!"}
        prepared, report = pairs([echo, {"prompt": "So?", "chosen": " Yes", "rejected": " No"}])
        assert TOKENIZER.decode(prepared[0]["chosen_ids"]) == f"Hi there{EOS_TOKEN}"
        assert report.prompts_repeated == 0

    def test_messages_that_hold_the_prompt_too(self):
        whole = {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}
        prepared, report = pairs([whole, CHAT])
        assert prepared[0] == prepared[1] and report.prompts_repeated == 1

    @pytest.mark.parametrize("bos", [False, True])
    @pytest.mark.parametrize("joint", [False, True])
    @pytest.mark.parametrize("shared", ["", "It is "])
    def test_a_prompt_of_another_name(self, bos, joint, shared):
        row = {"system": "Be brief.", "question": "Is it?", "chosen": f"{shared}Yes", "rejected": f"{shared}No"}
        with pytest.raises(ValueError, match="row 0 of the train dataset does not hold the text of `question`"):
            pairs([row], tiny_tokenizer(bos=bos), joint=joint)


class TestCut:
    @pytest.mark.parametrize("joint", [False, True])
    def test_answers_equal_after_the_cut(self, joint):
        good = {"prompt": "zz", "chosen": "q", "rejected": "x"}
        long = {"prompt": "zz", "chosen": "zzzzzzzzzq", "rejected": "zzzzzzzzzx"}
        prepared, report = pairs([good, long], joint=joint, max_length=8, keep_end=not joint)
        why = "row 1, both answers are the same after truncation to `max_length=8`"
        assert (len(prepared), report.dropped, report.first_dropped) == (1, 1, why)

    def test_a_copy_after_the_cut_leaves_a_ranking(self):
        row = {"prompt": "zz", "completions": ["q", "zzzzzzzzzq", "zzzzzzzzzx"], "ranks": [0, 1, 1]}
        dataset, report = prepare_dataset(Dataset.from_list([row]), TOKENIZER, max_length=8)
        assert len(dataset[0]["completion_ids"]) == 2
        assert report.first_completion_dropped == "row 0, completion 2 is a copy of completion 1 after truncation"


class TestTokenIds:
    @pytest.mark.parametrize(
        "ids", [None, [], "text", 5, [1.0, 2.0], [1, -100], [1, None], [[1]], ["a"], [True], [2**40], {"a": 1}]
    )
    def test_bad_ids(self, ids):
        good = {"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7]}
        for name in IDS:
            rows = [good, good | {name: ids}]
            for dataset in [stream(*rows)]:
                with pytest.raises(ValueError, match=rf"`{name}(\[\d\])?` in {ROW_1}"):
                    pairs(dataset)
            report = examine(stream(*rows), TOKENIZER, progress=False)
            assert report.findings[0].rows == [1] and report.refused == 1

    def test_columns_of_a_wrong_type_by_arrow(self):
        columns = {"a": [[1.0], [2.0]], "b": ["x", "y"], "c": [[[1]], [[2]]], "d": [[1], [-1]], "e": [[1], [None, 2]]}
        dataset = Dataset.from_dict(columns)
        assert [suspects(dataset, [name]) for name in columns] == [[0, 1]] * 3 + [[1]] * 2
        for name in columns:
            with pytest.raises(ValueError, match=f"`{name}"):
                check_ids(dataset[1][name], name, ROW_1)


class TestChat:
    @pytest.mark.parametrize(
        ("broken", "match"),
        [
            ({"chosen": [YES | {"content": 5}]}, r"`chosen\[0\].content` in {row} is of type int"),
            ({"chosen": [YES | {"content": {"a": 1}}]}, r"`chosen\[0\].content` in {row} is of type dict"),
            ({"chosen": [YES | {"content": [None]}]}, r"`chosen\[0\].content\[0\]` in {row} is None"),
            ({"prompt": [USER | {"role": None}]}, r"`prompt\[0\].role` in {row} is None"),
            ({"chosen": [YES | {"tool_calls": "x"}]}, r"`chosen\[0\].tool_calls` in {row} is of type str"),
            ({"chosen": [YES | {"tool_calls": 5}]}, r"`chosen\[0\].tool_calls` in {row} is of type int"),
            ({"chosen": [YES | {"tool_calls": [{"id": 1}]}]}, r"`chosen\[0\].tool_calls\[0\]` in {row}"),
            ({"tools": "{bad"}, "`tools` in {row} is text and not JSON"),
            ({"tools": ["weather"]}, r"`tools\[0\]` in {row} is 'weather'"),
            ({"tools": 5}, "`tools` in {row} is of type int"),
            ({"chat_template_kwargs": [1]}, "`chat_template_kwargs` in {row} is of type list"),
            ({"chat_template_kwargs": {"tokenize": False}}, "`chat_template_kwargs` in {row} sets `tokenize`"),
            ({"chat_template_kwargs": {"messages": []}}, "`chat_template_kwargs` in {row} sets `messages`"),
            ({"chosen": [{"from": "gpt", "value": "a"}]}, "`chosen` in {row} holds messages of the ShareGPT format"),
        ],
    )
    def test_one_error_with_row_and_column(self, broken, match):
        rows = (CHAT, CHAT | broken)
        with pytest.raises(ValueError, match=match.format(row=ROW_1)):
            pairs(stream(*rows))
        report = examine(stream(*rows), TOKENIZER, progress=False)
        assert [finding.rows for finding in report.findings if finding.name == "malformed-row"] == [[1]]

    def test_none_is_no_template_argument(self):
        none = CHAT | {"chat_template_kwargs": None, "tools": None}
        assert pairs(stream(none))[0] == pairs([CHAT])[0]

    def test_text_after_messages_keeps_its_eos(self):
        text = {"prompt": "So?", "chosen": " Yes", "rejected": " No"}
        for joint in (False, True):
            prepared, _ = pairs(stream(CHAT, text), joint=joint)
            assert prepared[1] == pairs([text], joint=joint)[0][0]
            assert prepared[1]["chosen_ids"][-1] == TOKENIZER.eos_token_id


class TestOpened:
    @pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
    @pytest.mark.parametrize("rows", ["plain", "chat"])
    def test_a_format_changes_nothing(self, kind, rows):
        dataset = preference_rows(3, rows)
        assert pairs(opened(dataset.with_format(kind), "train"))[0] == pairs(dataset)[0]

    def test_a_transform_is_refused(self):
        with pytest.raises(ValueError, match="The train dataset makes its rows with a transform"):
            opened(preference_rows(2).with_transform(lambda rows: rows), "train")

    def test_columns_that_hold_no_image_are_not_used(self):
        for value in (None, [], "a cat", 5):
            rows = Dataset.from_list([CHAT | {"images": value, "image": None}] * 2)
            assert opened(rows, "train").column_names == ["prompt", "chosen", "rejected"]
        assert "images" in opened(preference_rows(2, "vision"), "train").column_names

    def test_a_column_named_as_row_numbers(self):
        assert pairs([CHAT | {"__row": 9}])[0] == pairs([CHAT])[0]


class TestOtherKinds:
    @pytest.mark.parametrize(
        ("columns", "what"),
        [
            (["prompt", "completion", "label"], "unpaired answers with a label"),
            (["prompt", "completion"], "supervised fine-tuning"),
            (["messages"], "conversations without a comparison"),
            (["prompt", "completions", "labels"], "process reward model"),
            (["prompt", "solution"], "prompts without answers"),
            (["conversations"], "ShareGPT"),
            (["instruction", "input", "output"], "the Alpaca format"),
        ],
    )
    def test_they_are_named(self, columns, what):
        rows = Dataset.from_list([dict.fromkeys(columns, "a")])
        for prepare in (pairs, lambda rows: prepare_dataset(rows, TOKENIZER)):
            with pytest.raises(ValueError, match=what):
                prepare(rows)
        assert what in str(examine(rows, TOKENIZER, progress=False))

    def test_pairs_with_completions(self):
        rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c", "completions": ["b", "c"]}])
        match = "`completions` of a ranking and `chosen` and `rejected` of a preference pair"
        for prepare in (pairs, lambda rows: prepare_dataset(rows, TOKENIZER)):
            with pytest.raises(ValueError, match=match):
                prepare(rows)
        assert "`completions` of a ranking" in str(examine(rows, TOKENIZER, progress=False))

    def test_reference_log_probabilities_of_text(self):
        row = {"prompt": "a", "chosen": "b", "rejected": "c", "ref_chosen_logps": "x", "ref_rejected_logps": "y"}
        with pytest.raises(ValueError, match="`ref_chosen_logps` in row 0 of the train dataset is 'x'"):
            pairs([row])

    def test_an_image_column_without_an_image_is_scored(self):
        assert completions_of(CHAT | {"image": "none"}, "rows")["chosen"] == [YES]
