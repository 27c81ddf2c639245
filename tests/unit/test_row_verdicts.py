"""What decides of a row: its columns, empty answers, reference log-probabilities, the same for all who read it."""

import logging

import pytest
from datasets import Dataset, IterableDataset
from tiny import tiny_tokenizer

from trl_dpo_ext.data.checks import check_columns
from trl_dpo_ext.data.columns import is_image
from trl_dpo_ext.data.dataset_preparation import prepare_dataset
from trl_dpo_ext.data.doctor.examination import examine
from trl_dpo_ext.data.rankings.checks import check_ranking_columns
from trl_dpo_ext.reward_model.reward_columns import completions_of, reward_columns


TOKENIZER = tiny_tokenizer()
USER = {"role": "user", "content": "Is it good?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes, it is.", "No, not at all."))
PAIR = {"prompt": "Is it good?", "chosen": " Yes.", "rejected": " No."}


def pairs(rows):
    return prepare_dataset(rows, TOKENIZER, as_pairs=True)


def rankings(rows):
    return prepare_dataset(rows, TOKENIZER)


def refusals(rows):
    return [finding.meaning for finding in examine(rows, TOKENIZER, progress=False).findings]


class TestColumns:
    @pytest.mark.parametrize("name", ["prompt_id", "prompt_hash", "id_prompt", "prompt-id"])
    def test_a_name_with_a_word_more_is_not_misspelt(self, name):
        check_columns([name, "chosen", "rejected"], "train")
        check_ranking_columns([name, "completions", "ranks"], "train")

    @pytest.mark.parametrize("name", ["promt", "prompts", "Prompt"])
    def test_a_misspelt_one_is_refused(self, name):
        for check, columns in ((check_columns, ["chosen", "rejected"]), (check_ranking_columns, ["completions"])):
            with pytest.raises(ValueError, match=f"no column `prompt`, but one named `{name}`"):
                check([name, *columns], "train")

    def test_ids_of_the_prompt_alone(self):
        with pytest.raises(ValueError, match="has token ids .prompt_ids. but no column `chosen_ids`"):
            check_columns(["prompt_ids", "chosen", "rejected"], "train")

    def test_two_kinds_at_once(self):
        rows = Dataset.from_list([PAIR | {"completions": ["a", "b"]}])
        for prepare in (pairs, rankings):
            with pytest.raises(ValueError) as error:
                prepare(rows)
            assert "`dataset.remove_columns(['completions'])`" in str(error.value)
            assert "`dataset.remove_columns(['chosen', 'rejected'])`" in str(error.value)

    def test_some_ids_beside_text_are_not_read(self):
        row = PAIR | {"chosen_ids": [1]}
        (pair,), (ranking,) = pairs(Dataset.from_list([row]))[0], rankings(Dataset.from_list([row]))[0]
        assert ranking["completion_ids"] == [pair["chosen_ids"], pair["rejected_ids"]]
        assert ranking["prompt_ids"] == pair["prompt_ids"] == TOKENIZER("Is it good?")["input_ids"]

    def test_the_name_of_an_image_that_lies_elsewhere(self):
        found = [is_image(value) for value in ("x.png", ["a/b.JPEG"], "no image", "x.txt", "", None, "a.png is red")]
        assert found == [True, True, False, False, False, False, False]


class TestPairsInATrainerOfRankings:
    """A pair is the same pair, whichever trainer reads it."""

    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_the_same_tokens_of_an_implicit_prompt(self, tokenization):
        start = "\n\nHuman: Is it?\n\nAssistant:"
        rows = Dataset.from_list([{"chosen": f"{start} It is.", "rejected": f"{start} It was not."}])
        (pair,), (ranking,), (best,) = (
            prepare_dataset(rows, TOKENIZER, tokenization=tokenization, **options)[0]
            for options in ({"as_pairs": True}, {}, {"alone": True})
        )
        assert [ranking["prompt_ids"], *ranking["completion_ids"]] == [
            pair[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        ]
        assert (best["prompt_ids"], best["completion_ids"]) == (pair["prompt_ids"], [pair["chosen_ids"]])

    @pytest.mark.parametrize(
        ("row", "why"),
        [
            (PAIR | {"chosen": ""}, "an answer is empty"),
            (PAIR | {"chosen": " No."}, "both answers are the same"),
            (PAIR | {"chosen": " No." + TOKENIZER.eos_token}, "have the same tokens"),
        ],
    )
    def test_the_same_reason(self, row, why):
        rows = Dataset.from_list([PAIR, row])
        for prepare in (pairs, rankings):
            report = prepare(rows)[1]
            assert (report.rows, report.dropped) == (1, 1) and why in report.first_dropped


class TestEmptyAnswers:
    def test_preferred_ft_counts_them(self):
        answers = [[YES], [], [{"role": "assistant", "content": ""}], [YES]]
        rows = [{"prompt": [USER], "chosen": answer, "rejected": [NO]} for answer in answers]
        left, report = prepare_dataset(Dataset.from_list(rows), TOKENIZER, alone=True)
        assert (report.rows, report.dropped, len(left)) == (2, 2, 2)
        assert report.first_dropped == "row 1, its best completion is empty"

    def test_a_ranking_of_none(self):
        rows = Dataset.from_list([{"prompt": "a", "completions": texts} for texts in (["b"], [], ["", "c"], ["d"])])
        _, report = prepare_dataset(rows, TOKENIZER, alone=True)
        assert (report.rows, report.dropped, report.first_dropped) == (2, 2, "row 1, its best completion is empty")

    def test_two_empty_conversations_beside_a_text_prompt(self):
        good = {"prompt": "Is it good?", "chosen": [USER, YES], "rejected": [USER, NO]}
        rows = Dataset.from_list([good, good | {"chosen": [], "rejected": []}])
        for prepare in (pairs, rankings):
            assert prepare(rows)[1].dropped == 1
        assert examine(rows, TOKENIZER, progress=False).preparation.dropped == 1


class TestReferenceLogProbabilities:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (["x", 1.0], "`ref_logps[0]` in row 0 of the train dataset is 'x'"),
            ([1.0], "`ref_logps` in row 0 of the train dataset has 1 entries but a pair has 2"),
            ([1.0, 10**400], "`ref_logps[1]` in row 0 of the train dataset is 1000"),
            (None, "`ref_logps` in row 0 of the train dataset is None"),
        ],
    )
    def test_of_pairs(self, values, message):
        rows = IterableDataset.from_generator(lambda: iter([PAIR | {"ref_logps": values}]))
        for prepare in (pairs, rankings):
            with pytest.raises(ValueError) as error:
                list(prepare(rows)[0])
            assert message in str(error.value)
        assert message in " ".join(refusals(rows))


class TestRepeatedPrompts:
    def test_the_doctor_names_rows_that_repeat_them_alone(self):
        rows = [PAIR, {name: "Is it good?" + PAIR[name] * (name != "prompt") for name in PAIR}, PAIR]
        found = {finding.name: finding for finding in examine(Dataset.from_list(rows), TOKENIZER).findings}
        assert found["prompt-in-some-answers"].rows == [1] and found["prompt-in-some-answers"].severity == "warning"
        report = examine(Dataset.from_list(rows[1:2]), TOKENIZER, progress=False)
        assert "prompt-in-some-answers" not in {finding.name for finding in report.findings}
        assert report.preparation.prompts_repeated == 1

    @pytest.mark.parametrize("prepare", [pairs, rankings])
    def test_a_stream_says_so(self, prepare, caplog):
        row = {"prompt": "Q: a?", "chosen": "Q: a? b", "rejected": "Q: a? c"}
        logging.getLogger("trl_dpo_ext.data.prompts").propagate = True
        name = prepare.__name__
        stream = IterableDataset.from_generator(lambda: iter([row]))
        options = {"dataset_name": name}
        if prepare is pairs:
            (left,) = prepare_dataset(stream, TOKENIZER, as_pairs=True, **options)[0]
        else:
            (left,) = prepare_dataset(stream, TOKENIZER, **options)[0]
        assert left["prompt_ids"] == TOKENIZER("Q: a?")["input_ids"]
        assert f"Answers of the {name} stream begin with their prompt" in caplog.text


class TestScorer:
    def test_pairs_with_a_completion_are_pairs(self):
        row = PAIR | {"completion": {"x": 1}}
        assert completions_of(row, "rows") == PAIR
        assert reward_columns(list(row)) == ("score_chosen", "score_rejected")

    def test_the_column_that_holds_a_missing_prompt_is_looked_at(self):
        row = {"question": "So?", "chosen": "It is.", "rejected": "It was."}
        assert completions_of(row, "rows") == row
