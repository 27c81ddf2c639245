"""Prompts and human answers of the paper's tasks, from rows in the schemas of the public datasets."""

import random
from collections import Counter
from typing import Any

import pytest
import xxhash

from trl_dpo_ext.data.conversion.public_datasets import from_summarize_from_feedback
from trl_dpo_ext.data.prompts import split_prompt
from trl_dpo_ext.evaluation.paper_tasks import PAPER_TASKS, TaskPrompts, task_prompts
from trl_dpo_ext.reward_model.files.row_sources import Rows


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def prompts_of(task: str, rows: list[Any], *, rows_per_part: int = 2, **options: Any) -> TaskPrompts:
    return task_prompts(PAPER_TASKS[task], Rows(rows, "rows.jsonl", rows_per_part), **options)


def by_prompt(task: str, rows: list[Any], **options: Any) -> dict[str, str]:
    return {row["prompt"]: row["completion"] for row in prompts_of(task, rows, **options).rows}


def hh(question: str, chosen: str = " Yes.", rejected: str = " No.") -> dict[str, str]:
    prompt = f"{HUMAN} {question}{ASSISTANT}"
    return {"chosen": prompt + chosen, "rejected": prompt + rejected}


# Texts


class TestDialogue:
    def test_prompt_and_preferred_answer(self):
        found = prompts_of("hh", [hh("Is it so?", " Yes, it is.\n\nI am sure.")])
        prompt, answer = "\n\nHuman: Is it so?\n\nAssistant:", " Yes, it is.\n\nI am sure."
        assert found.rows == [{"prompt_id": 0, "prompt": prompt, "completion": answer}]
        assert (found.num_prompts, found.num_rows, found.left_out) == (1, 1, Counter())

    def test_same_split_as_in_training(self):
        row = hh("Is it so?", " It is, yes.", " It is not.")
        split = split_prompt(row)
        assert by_prompt("hh", [row]) == {split["prompt"]: split["chosen"]}

    @pytest.mark.parametrize(
        "dialogue",
        [
            f"{HUMAN} A?{ASSISTANT} B.{HUMAN} C?{ASSISTANT} D.",
            f"{HUMAN} A?{HUMAN} C?{ASSISTANT} D.",  # the same speaker twice
            f"{HUMAN} A?{ASSISTANT} B.{ASSISTANT} D.",
            f"{HUMAN} A?{ASSISTANT} B.{HUMAN} C?",  # an answer that goes on for the human
            f"{ASSISTANT} B.",
            f"Be kind.{HUMAN} A?{ASSISTANT} B.",
        ],
    )
    def test_dialogues_without_exactly_one_turn(self, dialogue):
        found = prompts_of("hh", [{"chosen": dialogue, "rejected": dialogue}, hh("Is it so?")])
        assert [row["prompt"] for row in found.rows] == [f"{HUMAN} Is it so?{ASSISTANT}"]
        assert found.left_out == {"without exactly one human turn": 1} and found.num_rows == 2

    def test_words_that_are_no_turns(self):
        assert len(by_prompt("hh", [hh("Who is the Human: me?", " An Assistant: I.\nHuman: you.")])) == 1


POST = {"subreddit": "pets", "title": "My cat", "post": "It sleeps a lot.\n\nIs it ill?"}
REDDIT = "SUBREDDIT: r/pets\n\nTITLE: My cat\n\nPOST: It sleeps a lot.\n\nIs it ill?\n\nTL;DR:"


class TestSummaries:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": REDDIT, "completion": " Cat sleeps."},
            {"prompt": REDDIT, "label": "Cat sleeps."},
            POST | {"id": "t3_1", "summary": "  Cat sleeps.\n"},
        ],
        ids=["trl-lib/tldr", "CarperAI/openai_summarize_tldr", "tldr_3_filtered"],
    )
    def test_schemas_of_tldr(self, row):
        source_id = {"source_id": "t3_1"} if "id" in row else {}
        expected = {"prompt_id": 0, "prompt": REDDIT, "completion": " Cat sleeps."} | source_id
        assert prompts_of("tldr", [row]).rows == [expected]

    def test_prompt_is_that_of_the_comparisons(self):
        summaries = [{"text": " Cat sleeps."}, {"text": " A dog."}]
        ranking = from_summarize_from_feedback({"info": POST, "summaries": summaries, "choice": 0})
        assert by_prompt("tldr", [POST | {"summary": "Cat sleeps."}]) == {ranking["prompt"]: " Cat sleeps."}

    def test_news(self):
        row = {"article": "(CNN) A cat slept.\nIt woke.", "highlights": "Cat slept .\nCat woke .", "id": "f00"}
        prompt = "Article:\n(CNN) A cat slept.\nIt woke.\n\nTL;DR:"
        expected = {"prompt_id": 0, "prompt": prompt, "completion": " Cat slept .\nCat woke .", "source_id": "f00"}
        assert prompts_of("cnn_dailymail", [row]).rows == [expected]
        info = {"article": row["article"]}
        ranking = from_summarize_from_feedback({"info": info, "summaries": [{"text": "A"}] * 2, "choice": 0})
        assert ranking["prompt"] == prompt


# What is left out


def test_empty_repeated_and_long_rows_are_counted():
    rows = [
        hh("One?", " First."),
        hh("One?", " Second."),
        hh("Two?", " "),
        hh(" ", " Answer."),
        hh("Three?" + "?" * 100),
        hh("Two?", " Not empty."),
        hh("One?", " Third."),
        {"chosen": f"{HUMAN} A?{ASSISTANT} B.{HUMAN} C?{ASSISTANT} D."},
    ]
    found = prompts_of("hh", rows, max_prompt_chars=60)
    answers = {f"{HUMAN} One?{ASSISTANT}": " First.", f"{HUMAN} Two?{ASSISTANT}": " Not empty."}
    assert {row["prompt"]: row["completion"] for row in found.rows} == answers
    assert found.left_out == {
        "with the prompt of an earlier row": 2,
        "with an empty question or answer": 2,
        "with a prompt of more than 60 characters": 1,
        "without exactly one human turn": 1,
    }
    assert found.num_rows == len(rows) == found.num_prompts + found.left_out.total()


@pytest.mark.parametrize(("limit", "kept"), [(10, 0), (29, 0), (30, 1)])
def test_longest_prompt(limit, kept):
    assert len(f"{HUMAN} Is it so?{ASSISTANT}") == 30
    rows = [hh("Is it so?"), hh("")]
    if kept:
        assert len(by_prompt("hh", rows, max_prompt_chars=limit)) == kept
        return
    with pytest.raises(ValueError) as error:
        by_prompt("hh", rows, max_prompt_chars=limit)
    assert str(error.value) == (
        f"rows.jsonl has 0 prompts. Left out of its 2 rows: 1 with a prompt of more than {limit} characters, 1 with "
        "an empty question or answer."
    )


@pytest.mark.parametrize("empty", ["post", "summary"])
def test_empty_posts_and_summaries(empty):
    rows = [POST | {"summary": "Cat sleeps."}, POST | {"title": "Other", "summary": "Cat."} | {empty: " \n"}]
    assert prompts_of("tldr", rows).left_out == {"with an empty question or answer": 1}


# Order


def questions(found: TaskPrompts) -> list[str]:
    return [row["prompt"].removeprefix(f"{HUMAN} ").removesuffix(ASSISTANT) for row in found.rows]


def test_order_is_of_seed_and_text():
    rows = [hh(f"{i}?") for i in range(40)]
    drawn = questions(prompts_of("hh", rows, seed=3))
    key = {f"{i}?": xxhash.xxh3_128_digest(f"3\n{HUMAN} {i}?{ASSISTANT}".encode()) for i in range(40)}
    assert drawn == sorted(key, key=key.__getitem__) and drawn != [f"{i}?" for i in range(40)]
    shuffled = random.Random(0).sample(rows, 40)
    for num in (1, 7, 40):
        found = prompts_of("hh", shuffled, rows_per_part=11, seed=3, num=num)
        assert questions(found) == drawn[:num] and found.num_prompts == 40
        assert [row["prompt_id"] for row in found.rows] == list(range(num))
    # Rows that are added take places, and change none of the others
    more = questions(prompts_of("hh", rows + [hh(f"{i}!") for i in range(40)], seed=3))
    assert [question for question in more if question.endswith("?")] == drawn
    assert questions(prompts_of("hh", rows)) != drawn


def test_every_prompt_is_drawn_equally_often():
    rows = [hh(f"{i}?") for i in range(10)]
    drawn = Counter(
        question for seed in range(600) for question in questions(prompts_of("hh", rows, num=3, seed=seed))
    )
    # 180 of 600 draws, with a standard error of sqrt(600 * 0.3 * 0.7) = 11.2
    assert len(drawn) == 10 and all(abs(count - 180) < 4 * 11.2 for count in drawn.values())


# Wrong rows


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            "hh",
            {"prompt": "A?", "answer": "B"},
            "The columns of row 1 of rows.jsonl are prompt, answer. Expected chosen, as in Anthropic/hh-rlhf.",
        ),
        (
            "tldr",
            {"prompt": "A", "chosen": "B"},
            "The columns of row 1 of rows.jsonl are prompt, chosen. Expected prompt, completion or prompt, label or "
            "subreddit, title, post, summary, as in trl-lib/tldr.",
        ),
        (
            "cnn_dailymail",
            {},
            "The columns of row 1 of rows.jsonl are none. Expected article, highlights, as in abisee/cnn_dailymail.",
        ),
        (
            "hh",
            {"chosen": [{"role": "user", "content": "A?"}]},
            "`chosen` in row 1 of rows.jsonl is of type list. Expected text, as in Anthropic/hh-rlhf.",
        ),
        (
            "tldr",
            {"prompt": "A", "completion": None},
            "`completion` in row 1 of rows.jsonl is of type NoneType. Expected text, as in trl-lib/tldr.",
        ),
        (
            "hh",
            {"chosen": "A?"},
            r"`chosen` in row 1 of rows.jsonl has no '\n\nAssistant:'. Expected a dialogue, as in Anthropic/hh-rlhf.",
        ),
        (
            "tldr",
            {"prompt": "A \ud800", "completion": "B"},
            "`prompt` in row 1 of rows.jsonl has half of a surrogate pair at character 2, which is no text. Remove "
            "it, or decode the file again.",
        ),
        ("hh", [1], "The prompt in row 1 of rows.jsonl cannot be read: "),
    ],
)
def test_rows_of_another_schema(task, row, message):
    good = {
        "hh": hh("One?"),
        "tldr": {"prompt": "A", "completion": "B"},
        "cnn_dailymail": {"article": "A", "highlights": "B"},
    }
    with pytest.raises(ValueError) as error:
        prompts_of(task, [good[task], row])
    found = str(error.value)
    assert found.startswith(message) if message.endswith(": ") else found == message


def test_more_prompts_than_there_are():
    with pytest.raises(ValueError) as error:
        prompts_of("hh", [hh("One?"), hh("One?"), hh("Two?")], num=3)
    assert str(error.value) == (
        "rows.jsonl has 2 prompts, fewer than 3. Left out of its 3 rows: 1 with the prompt of an earlier row."
    )
