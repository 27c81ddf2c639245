"""Rankings of which something is left out or cut, and what is counted of them."""

import pytest
from datasets import Dataset
from tiny import EOS_TOKEN, preference_rows
from unit.prepared_rankings import GOOD, TOKENIZER, ids, prepare

from trl_dpo_ext.data.preparation_report import DataReport, RankingReport


class TestCounts:
    def test_rows_that_say_nothing(self):
        rows = [
            GOOD,
            GOOD | {"completions": [" Yes."]},
            GOOD | {"completions": []},
            GOOD | {"completions": [" Yes.", " No."], "ranks": [3, 3]},
            GOOD | {"completions": [" Yes.", " No."], "ranks": [None, None]},
        ]
        rows = [row if "ranks" in row else row | {"ranks": list(range(len(row["completions"])))} for row in rows]
        prepared = prepare(rows)
        assert prepared.texts() == [GOOD["completions"]]
        assert prepared.report == RankingReport(
            rows=1, dropped=4, first_dropped="row 1, one completion", completions=3, smallest=3, largest=3
        )

    @pytest.mark.parametrize(
        ("row", "why"),
        [
            ({"completions": [" Yes."]}, "one completion"),
            ({"completions": []}, "no completion"),
            ({"completions": ["a", "b"], "scores": [1.0, 1.0]}, "all completions tie"),
            ({"completions": ["a", ""], "scores": [1.0, 0.0]}, "one completion is left (completion 1 is empty)"),
            ({"completions": ["", ""], "scores": [1.0, 0.0]}, "no completion is left (completion 0 is empty)"),
            (
                {"completions": ["a", "a"], "scores": [0.0, 1.0]},
                "one completion is left (completion 0 is a copy of completion 1)",
            ),
            (
                {"completions": ["a", "a", "b"], "scores": [1.0, 1.0, 1.0]},
                "all completions tie",
            ),
            (
                {"completions": ["b", "a", "c", "b"], "scores": [2.0, 1.0, 1.0, 0.0]},
                "all completions tie (completions 0 and 3 are the same and others stand between them)",
            ),
        ],
    )
    def test_reasons(self, row, why):
        good = GOOD | {"scores": [3.0, 2.0, 1.0]}
        row = {"prompt": "q", "scores": [float(-place) for place in range(len(row["completions"]))]} | row
        report = prepare([good, good, row, good, row]).report
        assert (report.rows, report.dropped, report.first_dropped) == (3, 2, f"row 2, {why}")

    def test_single_completions(self):
        rows = [
            {"prompt": "q", "completions": ["a", "", "b", "c"]},
            {"prompt": "q", "completions": ["a", "a", "b"]},
            {"prompt": "q", "completions": ["a", "b", "a", "c", "d"]},
            {"prompt": "q", "completions": ["a", "b"]},
        ]
        prepared = prepare(rows)
        assert prepared.texts() == [list("abc"), list("ab"), list("bcd"), list("ab")]
        assert prepared.ranks() == [[0, 1, 2], [0, 1], [0, 1, 2], [0, 1]]
        assert prepared.report == RankingReport(
            rows=4,
            completions=10,
            completions_dropped=4,
            first_completion_dropped="row 0, completion 1 is empty",
            smallest=2,
            largest=3,
        )

    def test_what_a_dropped_row_lost_is_not_counted_twice(self):
        rows = [{"prompt": "q", "completions": ["a", ""]}, {"prompt": "q", "completions": ["a", "a", "b"]}]
        report = prepare(rows).report
        assert (report.dropped, report.completions_dropped) == (1, 1)
        assert report.first_completion_dropped == "row 1, completion 1 is a copy of completion 0"

    def test_scores_and_reference_of_what_is_left(self):
        row = {"prompt": "q", "completions": ["b", "a", "a", ""], "scores": [1.0, 2.0, 2.0, 9.0]}
        dataset = prepare([row | {"ref_logps": [-1.0, -2.0, -3.0, -4.0]}]).dataset
        assert (dataset[0]["scores"], dataset[0]["ref_logps"]) == ([2.0, 1.0], [-2.0, -1.0])

    def test_text_that_is_the_same_as_tokens(self):
        # An EOS at the end is not doubled, so the first two have the same tokens
        prepared = prepare([{"prompt": "q", "completions": ["a", f"a{EOS_TOKEN}", "b"]}])
        assert prepared.texts() == [["a", "b"]]
        assert prepared.report.completions_dropped == 1

    def test_a_message_without_text_is_empty(self):
        answers = [{"role": "assistant", "content": text} for text in ("a", "", "b")]
        row = {"prompt": [{"role": "user", "content": "q"}], "completions": [[answer] for answer in answers]}
        report = prepare([row]).report
        assert (report.completions, report.completions_dropped) == (2, 1)
        assert report.first_completion_dropped == "row 0, completion 1 is empty"

    def test_a_tool_call_is_not_empty(self):
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
        row = preference_rows(1, "tools")[0]
        completions = [[{"role": "assistant", "content": "", "tool_calls": [call]}], row["chosen"]]
        assert prepare([{"prompt": row["prompt"], "completions": completions}]).report.completions_dropped == 0

    def test_a_completion_that_is_the_whole_implicit_prompt(self):
        start = "\n\nHuman: Hi\n\nAssistant:"
        prepared = prepare([{"completions": [start + " a", start, start + " b"]}])
        assert prepared.texts() == [[" a", " b"]]
        assert prepared.report.first_completion_dropped == "row 0, completion 1 is empty"

    def test_implicit_prompts_of_messages(self):
        user, *answers = (
            [{"role": role, "content": text}] for role, text in (("user", "q"), *(("assistant", c) for c in "ab"))
        )
        good = {"completions": [user + answer for answer in answers]}
        rows = [good, {"completions": []}, {"completions": [[], []]}, {"completions": [user + answers[0]]}]
        for dataset in (Dataset.from_list(rows), Dataset.from_list([*rows[1:], good])):
            prepared = prepare(dataset)
            rendered = TOKENIZER.apply_chat_template(user, add_generation_prompt=True)
            assert prepared.rows[0]["prompt_ids"] == rendered["input_ids"]
            assert prepared.report.dropped == 3

    def test_ties(self):
        rows = [GOOD | {"ranks": ranks} for ranks in ([0, 1, 2], [0, 0, 1], [None, 0, None])]
        assert prepare(rows).report.tied == 2

    def test_words(self):
        rows = [GOOD, GOOD | {"completions": ["a", "b", "b", "c"]}, GOOD | {"completions": ["a", "a"]}]
        rows += [{"prompt": "z" * 30, "completions": ["a", "b"]}]
        report = prepare(rows, max_length=24).report
        assert str(report) == (
            "3 rows of 2 to 3 completions (1 rows and 1 single completions dropped), 0 rows with ties, 1 prompts and "
            "0 answers truncated"
        )
        assert report.share_truncated == pytest.approx(1 / 3)
        assert isinstance(report, DataReport)
        assert "2 rows of 2 completions" in str(prepare([{"prompt": "q", "completions": ["a", "b"]}] * 2).report)

    def test_a_column_named_problem_is_the_users(self):
        dataset = prepare([GOOD | {"problem": "mine", "dropped": 3}]).dataset
        assert (dataset["problem"][0], dataset["dropped"][0]) == ("mine", 3)

    @pytest.mark.parametrize(
        ("rows", "why"),
        [
            ([GOOD | {"ranks": [2, 2, 2]}] * 2, "row 0, all completions tie"),
            ([GOOD | {"completions": ["a"]}], "row 0, one completion"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True], ids=["map", "stream"])
    def test_nothing_left(self, rows, why, stream):
        dataset = Dataset.from_list(rows)
        with pytest.raises(ValueError, match=rf"No row of the train dataset is usable \({why}\)"):
            prepare(dataset.to_iterable_dataset() if stream else dataset)

    def test_no_row(self):
        with pytest.raises(ValueError, match="The train dataset has no rows"):
            prepare(Dataset.from_list([GOOD]).select([]))

    def test_every_prompt_fills_max_length(self):
        with pytest.raises(ValueError, match="row 0, its prompt fills `max_length=10`"):
            prepare([GOOD | {"prompt": "z" * 10}], tokenization="joint", max_length=10)

    def test_a_first_batch_of_rows_that_say_nothing(self):
        # `datasets` takes the types of new columns from the first thousand rows
        rows = [{"completions": ["q: a"]}] * 1001 + [{"completions": ["q: a", "q: b"]}]
        prepared = prepare(rows)
        assert prepared.report.dropped == 1001
        assert prepared.rows[0]["prompt_ids"] == ids("q:") and prepared.ranks() == [[0, 1]]
