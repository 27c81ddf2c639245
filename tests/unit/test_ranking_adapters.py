"""Rows with the schemas of public data sets, from `Dataset.map` to prepared rankings."""

import pytest
from datasets import Dataset
from tiny import EOS_TOKEN, tiny_tokenizer

from trl_dpo_ext.data.conversion.from_pairs import pairs_to_rankings
from trl_dpo_ext.data.conversion.public_datasets import (
    from_nectar,
    from_stack_exchange,
    from_summarize_from_feedback,
    from_ultrafeedback,
)
from trl_dpo_ext.data.conversion.to_pairs import all_pairs
from trl_dpo_ext.data.dataset_preparation import prepare_dataset


TOKENIZER = tiny_tokenizer()


def adapt(rows, adapter, **options):
    dataset = Dataset.from_list(rows)
    return dataset.map(adapter, fn_kwargs=options, remove_columns=dataset.column_names)


def read_back(dataset) -> list[tuple[str, list[str], list[int]]]:
    """Prompt, completions and ranks as prepared, decoded."""
    prepared, _ = prepare_dataset(dataset, TOKENIZER)
    return [
        (
            TOKENIZER.decode(row["prompt_ids"]),
            [TOKENIZER.decode(ids).strip().removesuffix(EOS_TOKEN) for ids in row["completion_ids"]],
            row["ranks"],
        )
        for row in prepared
    ]


def user(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n"


def assistant(text: str) -> str:
    return f"<|im_start|>assistant\n{text}<|im_end|>\n"


PROMPT = "<|im_start|>assistant\n"


def _ultrafeedback_answer(response: str, overall: float, fine_grained: float) -> dict:
    rating = {"Rating": "4", "Rationale": "Fine.", "Type": None}
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    return {
        "annotations": dict.fromkeys(aspects, rating),
        "critique": "Good.",
        "custom_system_prompt": "You are helpful.",
        "fine-grained_score": fine_grained,
        "model": "a",
        "overall_score": overall,
        "principle": "helpfulness",
        "response": response,
    }


class TestUltraFeedback:
    ROW = {
        "source": "evol_instruct",
        "instruction": "How do I cook rice?",
        "models": ["a", "b", "c", "d"],
        "completions": [
            _ultrafeedback_answer("Boil it.", 7.5, 4.25),
            _ultrafeedback_answer("No idea.", 2.0, 1.5),
            _ultrafeedback_answer("Rinse it, boil it.", 9.0, 4.0),
            _ultrafeedback_answer("Let it rest.", 7.5, 3.0),
        ],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }

    def test_four_completions_with_scores(self):
        dataset = adapt([self.ROW] * 2, from_ultrafeedback)
        assert sorted(dataset.column_names) == ["completions", "prompt", "scores"]
        expected = (
            user("How do I cook rice?") + PROMPT,
            ["Rinse it, boil it.", "Boil it.", "Let it rest.", "No idea."],
            [0, 1, 1, 2],
        )
        assert read_back(dataset) == [expected] * 2

    def test_fine_grained_score(self):
        ((_, completions, ranks),) = read_back(adapt([self.ROW], from_ultrafeedback, score="fine-grained_score"))
        assert completions == ["Boil it.", "Rinse it, boil it.", "Let it rest.", "No idea."]
        assert ranks == [0, 1, 2, 3]

    def test_text(self):
        row = from_ultrafeedback(self.ROW, chat=False)
        assert row["prompt"] == "\n\nHuman: How do I cook rice?\n\nAssistant:"
        assert row["completions"][:2] == [" Boil it.", " No idea."]

    def test_a_row_with_one_completion_is_counted(self):
        rows = [self.ROW, self.ROW | {"completions": self.ROW["completions"][:1]}, self.ROW | {"completions": []}]
        _, report = prepare_dataset(adapt(rows, from_ultrafeedback), TOKENIZER)
        assert (report.rows, report.dropped, report.first_dropped) == (1, 2, "row 1, one completion")

    def test_a_score_that_is_missing_is_named(self):
        rows = [self.ROW, self.ROW | {"completions": [self.ROW["completions"][0] | {"overall_score": None}] * 2}]
        with pytest.raises(ValueError, match=r"`scores\[0\]` in row 1 of the train dataset is None"):
            prepare_dataset(adapt(rows, from_ultrafeedback), TOKENIZER)

    def test_raw_rows_are_told_where_the_adapters_are(self):
        with pytest.raises(ValueError, match=r"`completions\[0\]` in row 0 .*from_ultrafeedback"):
            prepare_dataset(Dataset.from_list([self.ROW]), TOKENIZER)


class TestNectar:
    ROW = {
        "prompt": "\n\nHuman: How do I cook rice?\n\nAssistant: ",
        "answers": [
            {"answer": f"Answer {letter}.", "model": letter, "rank": rank}
            for letter, rank in zip("abcdefg", [3.0, 1.0, 7.0, 2.0, 5.0, 6.0, 4.0], strict=True)
        ],
        "turns": 1,
        "num_responses": 7,
        "source": ["lmsys-chat-1m"],
        "good_natured": True,
    }

    def test_seven_answers_and_rank_one_is_best(self):
        ((prompt, completions, ranks),) = read_back(adapt([self.ROW], from_nectar))
        assert prompt == user("How do I cook rice?") + PROMPT
        assert completions == [f"Answer {letter}." for letter in "bdagefc"]
        assert ranks == list(range(7))

    def test_turns(self):
        row = self.ROW | {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\nyou\n\nHuman: Rice?\n\nAssistant: "}
        ((prompt, *_),) = read_back(adapt([row], from_nectar))
        assert prompt == user("Hi") + assistant("Hello\nyou") + user("Rice?") + PROMPT
        text = from_nectar(row, chat=False)
        assert text["prompt"] == row["prompt"].rstrip(" ")
        assert text["completions"][0] == " Answer a."

    def test_a_marker_inside_a_turn(self):
        row = self.ROW | {"prompt": "\n\nHuman: Say\n\nHuman: again\n\nAssistant: "}
        assert from_nectar(row)["prompt"] == [{"role": "user", "content": "Say\n\nHuman: again"}]
        assert from_nectar(row, chat=False)["prompt"] == "\n\nHuman: Say\n\nHuman: again\n\nAssistant:"

    @pytest.mark.parametrize("prompt", ["How?", "", "\n\nAssistant: Hi", "\n\nHuman: a\n\nAssistant: b"])
    def test_another_format(self, prompt):
        with pytest.raises(ValueError, match="`Human:` .* `Assistant:`.* berkeley-nest/Nectar"):
            from_nectar(self.ROW | {"prompt": prompt})

    def test_a_rank_that_is_no_whole_number_is_named(self):
        answers = [answer | {"rank": answer["rank"] + 0.5} for answer in self.ROW["answers"]]
        with pytest.raises(ValueError, match=r"`ranks\[0\]` in row 0 of the train dataset is 3.5"):
            prepare_dataset(adapt([self.ROW | {"answers": answers}], from_nectar), TOKENIZER)


class TestStackExchange:
    ROW = {
        "qid": 5,
        "question": "<p>How do I cook rice?</p>",
        "answers": [
            {
                "answer_id": number,
                "author": "a",
                "author_id": number,
                "author_profile": "https://example.com",
                "pm_score": score,
                "selected": score == 4,
                "text": text,
            }
            for number, (text, score) in enumerate([("Boil.", 1), ("Rinse.", 4), ("Rest.", 1), ("Dull.", -1)])
        ],
        "date": "2020/01/01",
        "metadata": ["https://example.com"],
    }

    def test_ties_stay_ties(self):
        ((prompt, completions, ranks),) = read_back(adapt([self.ROW], from_stack_exchange))
        assert prompt == user("<p>How do I cook rice?</p>") + PROMPT
        assert completions == ["Rinse.", "Boil.", "Rest.", "Dull."]
        assert ranks == [0, 1, 1, 2]
        # The authors' loader makes 6 pairs of these, one of them of the tie
        assert len(all_pairs(adapt([self.ROW], from_stack_exchange))) == 5

    def test_text_as_in_the_authors_loader(self):
        row = from_stack_exchange(self.ROW, chat=False)
        assert row["prompt"] == "\n\nHuman: <p>How do I cook rice?</p>\n\nAssistant:"
        assert row["completions"] == [" Boil.", " Rinse.", " Rest.", " Dull."]


class TestSummarizeFromFeedback:
    INFO = {"id": "t3", "post": "It sleeps.", "title": "My cat", "subreddit": "pets", "site": None, "article": None}
    NEWS = {"id": "n1", "post": None, "title": "Rain", "subreddit": None, "site": "cnn", "article": "It rains."}

    def row(self, first: str, second: str, choice: int, info: dict = INFO) -> dict:
        summaries = [{"text": text, "policy": "sup4b", "note": "ok"} for text in (first, second)]
        extra = {"confidence": 8}
        return {"info": info, "summaries": summaries, "choice": choice, "worker": "w", "batch": "b", "extra": extra}

    def test_the_chosen_summary_is_best(self):
        rows = [self.row(" A.", " B.", 0), self.row(" A.", " B.", 1), self.row("A.", "B.", 1, self.NEWS)]
        prompt = "SUBREDDIT: r/pets\n\nTITLE: My cat\n\nPOST: It sleeps.\n\nTL;DR:"
        assert read_back(adapt(rows, from_summarize_from_feedback)) == [
            (prompt, ["A.", "B."], [0, 1]),
            (prompt, ["B.", "A."], [0, 1]),
            ("Article:\nIt rains.\n\nTL;DR:", ["B.", "A."], [0, 1]),
        ]

    def test_text_and_chat(self):
        row = self.row(" A. ", "B.", 0)
        assert from_summarize_from_feedback(row)["completions"] == [" A.", " B."]
        chat = from_summarize_from_feedback(row, chat=True)
        assert chat["completions"][0] == [{"role": "assistant", "content": "A."}]
        assert chat["prompt"] == [{"role": "user", "content": from_summarize_from_feedback(row)["prompt"]}]

    def test_comparisons_of_one_post_become_one_ranking(self):
        rows = [self.row(" B.", " A.", 1), self.row(" B.", " C.", 0), self.row(" C.", " D.", 0)]
        rankings, report = pairs_to_rankings(all_pairs(adapt(rows, from_summarize_from_feedback)))
        assert rankings["completions"][:] == [[" A.", " B.", " C.", " D."]]
        assert rankings["ranks"][:] == [[0, 1, 2, 3]]
        assert report.rankings == 1

    def test_bad(self):
        with pytest.raises(ValueError, match="`choice` is 2 with 2 summaries"):
            from_summarize_from_feedback(self.row("a", "b", 2))
        with pytest.raises(ValueError, match="`info` has neither `post` nor `article`"):
            from_summarize_from_feedback(self.row("a", "b", 0, self.INFO | {"post": None}))


@pytest.mark.parametrize(
    ("adapter", "row", "message"),
    [
        (from_ultrafeedback, {"prompt": "q", "completions": []}, "no `instruction`; found prompt, completions"),
        (from_ultrafeedback, {"instruction": "q", "completions": [{"text": "a"}]}, "no `response`; found text"),
        (from_nectar, {"prompt": "q"}, "no `answers`; found prompt. Expected a row of berkeley-nest/Nectar"),
        (from_stack_exchange, {"question": "q", "answers": [{"text": "a"}]}, "no `pm_score`; found text"),
        (from_summarize_from_feedback, {"info": {}, "choice": 0}, "no `summaries`; found info, choice"),
    ],
)
def test_rows_of_another_schema(adapter, row, message):
    with pytest.raises(ValueError, match=message):
        adapter(row)
