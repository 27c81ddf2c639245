"""From rows to token ids: the authors' tokens and cut, TRL's tokens, implicit prompts, and what is counted."""

import random
from typing import NamedTuple

import pytest
import trl
from datasets import Dataset, IterableDataset
from integration.conftest import TINY
from tiny import BOS_TOKEN, EOS_TOKEN, preference_rows, tiny_llama, tiny_tokenizer
from tokenizers import processors
from unit.conftest import GOOD, SAME

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.data.preparation_report import DataReport
from trl_dpo_ext.data.prompts import split_prompt
from trl_dpo_ext.data.tokenization import Truncation, leading_special_ids


IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
KINDS = ("plain", "chat", "implicit", "implicit_chat", "tools", "template")
TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id

EMPTY = GOOD | {"chosen": ""}


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def tokens(n: int) -> str:
    """Text of exactly n tokens: the tiny tokenizer merges no `z`."""
    return "z" * n


class Prepared(NamedTuple):
    rows: list[dict[str, list[int]]]
    report: DataReport
    dataset: Dataset | IterableDataset

    def lengths(self) -> list[tuple[int, ...]]:
        return [tuple(len(row[name]) for name in IDS) for row in self.rows]


@pytest.fixture
def prepare(tmp_path):
    """Prepares rows as a trainer does."""

    def run(rows, tokenizer=TOKENIZER, **options) -> Prepared:
        trainer = DPOPaperTrainer(
            tiny_llama(),
            args=DPOPaperConfig(str(tmp_path), **TINY | {"max_steps": 1} | options),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            processing_class=tokenizer,
        )
        dataset = trainer.train_dataset
        return Prepared([{name: row[name] for name in IDS} for row in dataset], trainer.data_reports["train"], dataset)

    return run


@pytest.fixture
def prepared_by_trl(tmp_path):
    """Prepares rows as `trl.DPOTrainer` does."""

    def run(rows, tokenizer=TOKENIZER, **options) -> list[dict[str, list[int]]]:
        options = {name: value for name, value in TINY.items() if name != "global_batch_size"} | options
        trainer = trl.DPOTrainer(
            tiny_llama(),
            args=trl.DPOConfig(str(tmp_path), **options),
            train_dataset=rows,
            processing_class=tokenizer,
            ref_model=tiny_llama(),
        )
        return [{name: row[name] for name in IDS} for row in trainer.train_dataset]

    return run


class TestAuthorsTokens:
    def test_prompt_and_answers_apart_and_eos_appended(self, prepare):
        rows = preference_rows(9)  # borders inside words, after a space and after a colon
        expected = [
            {
                "prompt_ids": ids(row["prompt"]),
                "chosen_ids": [*ids(row["chosen"]), EOS],
                "rejected_ids": [*ids(row["rejected"]), EOS],
            }
            for row in rows
        ]
        assert prepare(rows).rows == expected

    def test_a_border_that_joint_tokens_merge(self, prepare):
        # Apart, the answer of "say: the ca" + "t runs" starts with its own first letter
        row = {"prompt": "say: the ca", "chosen": "st runs", "rejected": "t"}
        separate, joint = (prepare([row], tokenization=how).rows[0] for how in ("separate", "joint"))
        assert separate["prompt_ids"] == ids("say: the ca") and separate["chosen_ids"] == [*ids("st runs"), EOS]
        assert joint["prompt_ids"] == ids("say: the ca")[:-1]
        assert TOKENIZER.decode(joint["prompt_ids"] + joint["chosen_ids"]) == f"say: the cast runs{EOS_TOKEN}"

    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    @pytest.mark.parametrize("ending", ["", EOS_TOKEN], ids=["without", "with"])
    def test_eos_comes_once(self, prepare, tokenization, ending):
        row = {name: text + (ending if name != "prompt" else "") for name, text in GOOD.items()}
        prepared = prepare([row], tokenization=tokenization).rows[0]
        assert prepared["chosen_ids"] == [*ids(" Yes."), EOS]
        assert prepared["rejected_ids"] == [*ids(" No."), EOS]

    def test_bos_is_kept_before_the_prompt_only(self, prepare):
        tokenizer = tiny_tokenizer(bos=True)
        row = prepare([GOOD], tokenizer).rows[0]
        assert row["prompt_ids"] == [tokenizer.bos_token_id, *ids(GOOD["prompt"])]
        assert tokenizer.bos_token_id not in row["chosen_ids"] + row["rejected_ids"]

    def test_bos_predicts_the_first_token_where_there_is_no_prompt(self, prepare):
        tokenizer = tiny_tokenizer(bos=True)
        assert prepare([GOOD | {"prompt": ""}], tokenizer).rows[0]["prompt_ids"] == [tokenizer.bos_token_id]

    @pytest.mark.parametrize(
        ("single", "leading"),
        [
            ("$A", []),
            (f"{BOS_TOKEN} $A", [BOS_TOKEN]),
            (f"{BOS_TOKEN} $A {EOS_TOKEN}", [BOS_TOKEN]),
            (f"$A {EOS_TOKEN}", []),
            (f"{EOS_TOKEN} {BOS_TOKEN} $A", [EOS_TOKEN, BOS_TOKEN]),
        ],
    )
    def test_leading_special_tokens(self, prepare, single, leading):
        tokenizer = tiny_tokenizer()
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS_TOKEN, EOS_TOKEN)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[pair for pair in special if pair[0] in single]
        )
        expected = tokenizer.convert_tokens_to_ids(leading)
        assert leading_special_ids(tokenizer) == expected
        row = prepare([GOOD], tokenizer).rows[0]
        assert row["prompt_ids"] == expected + ids(GOOD["prompt"])
        assert row["chosen_ids"] == [*ids(" Yes."), EOS]


class TestTRLsTokens:
    @pytest.mark.parametrize("kind", KINDS)
    def test_joint(self, prepare, prepared_by_trl, kind):
        rows = preference_rows(6, kind)
        assert prepare(rows, tokenization="joint").rows == prepared_by_trl(rows)

    @pytest.mark.parametrize(("kind", "max_length", "left"), [("plain", 37, 4), ("chat", 50, 3), ("chat", None, 6)])
    def test_joint_leaves_out_the_rows_that_trl_leaves_out(self, prepare, prepared_by_trl, kind, max_length, left):
        rows = preference_rows(6, kind)
        ours = prepare(rows, tokenization="joint", max_length=max_length)
        assert ours.rows == prepared_by_trl(rows, max_length=max_length)
        assert ours.report.rows == len(ours.rows) == left

    @pytest.mark.parametrize("bos", [False, True], ids=["without", "with_bos"])
    def test_joint_with_a_tokenizer(self, prepare, prepared_by_trl, bos):
        rows, tokenizer = preference_rows(6), tiny_tokenizer(bos=bos)
        assert prepare(rows, tokenizer, tokenization="joint").rows == prepared_by_trl(rows, tokenizer)

    @pytest.mark.parametrize("kind", ["chat", "implicit_chat", "tools", "template"])
    def test_chat_goes_through_the_template(self, prepare, prepared_by_trl, kind):
        rows = preference_rows(6, kind)
        ours = prepare(rows).rows
        assert ours == prepared_by_trl(rows)
        assert TOKENIZER.decode(ours[1]["prompt_ids"]).endswith("<|im_start|>assistant\n")

    def test_chat_is_cut_by_the_authors_rule(self, prepare):
        rows = preference_rows(6, "chat")
        whole = prepare(rows).rows
        for before, after in zip(whole, prepare(rows, max_length=50).rows, strict=True):
            expected = authors_cut(before, 50, 25, "keep_end")
            assert after == expected and after != before


def authors_cut(row: dict[str, list[int]], max_length: int, max_prompt_length: int, mode: str) -> dict[str, list[int]]:
    """`tokenize_batch_element` of the authors' preference_datasets.py, lines 239-253, on lists."""
    prompt, chosen, rejected = (row[name] for name in IDS)
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer > max_length:
        prompt = prompt[:max_prompt_length] if mode == "keep_start" else prompt[-max_prompt_length:]
    if len(prompt) + longer > max_length:
        chosen, rejected = chosen[: max_length - max_prompt_length], rejected[: max_length - max_prompt_length]
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def texts(prompt: int, chosen: int, rejected: int = 2) -> dict[str, str]:
    """A row of so many tokens, the EOS of an answer counted."""
    return {"prompt": tokens(prompt), "chosen": tokens(chosen - 1), "rejected": "q" * (rejected - 1)}


class TestAuthorsCut:
    """Measured with the authors' code."""

    def test_a_long_answer_is_cut_to_256_whatever_the_prompt(self, prepare):
        prepared = prepare([texts(10, 600)])
        assert prepared.lengths() == [(10, 256, 2)]  # 266 tokens, although 512 were allowed
        row = prepared.rows[0]
        assert EOS not in row["chosen_ids"] and row["rejected_ids"][-1] == EOS
        assert prepared.report == DataReport(rows=1, prompts_truncated=0, answers_truncated=1)

    @pytest.mark.parametrize(
        ("row", "max_prompt_length"), [(texts(300, 100), 256), (texts(400, 101), 128), (texts(500, 12), None)]
    )
    def test_what_fits_is_left_alone_above_max_prompt_length(self, prepare, row, max_prompt_length):
        prepared = prepare([row], max_prompt_length=max_prompt_length)
        assert prepared.lengths() == [(len(row["prompt"]), len(row["chosen"]) + 1, 2)]
        assert prepared.report == DataReport(rows=1)

    def test_one_token_more_than_fits(self, prepare):
        assert prepare([texts(500, 13)]).lengths() == [(256, 13, 2)]

    def test_the_prompt_is_cut_first(self, prepare):
        prepared = prepare([texts(400, 200)])
        assert prepared.lengths() == [(256, 200, 2)]
        assert prepared.rows[0]["chosen_ids"][-1] == EOS
        assert prepared.report == DataReport(rows=1, prompts_truncated=1, answers_truncated=0)

    @pytest.mark.parametrize(("chosen", "rejected"), [(600, 300), (300, 600), (600, 100)])
    def test_the_longer_answer_decides_for_both(self, prepare, chosen, rejected):
        prepared = prepare([texts(300, chosen, rejected)])
        assert prepared.lengths() == [(256, min(chosen, 256), min(rejected, 256))]
        assert prepared.report == DataReport(rows=1, prompts_truncated=1, answers_truncated=1)

    @pytest.mark.parametrize(("mode", "kept"), [("keep_start", slice(0, 8)), ("keep_end", slice(-8, None))])
    def test_end_of_the_prompt_that_is_kept(self, prepare, mode, kept):
        row = {"prompt": "abcdefghijklmnopqrst", "chosen": " Yes.", "rejected": " No."}
        prepared = prepare([row], max_length=16, prompt_truncation_mode=mode)
        assert prepared.rows[0]["prompt_ids"] == ids(row["prompt"])[kept]

    def test_presets_keep_their_end(self, prepare):
        row = texts(600, 20) | {"prompt": "start" + tokens(600) + "end"}
        for preset, shown in (("paper", "end"), ("authors_code", "end"), ("paper_tldr", "start")):
            prompt = TOKENIZER.decode(prepare([row], preset=preset).rows[0]["prompt_ids"])
            assert (prompt[: len(shown)] == shown, prompt[-len(shown) :] == shown) == (
                shown == "start",
                shown == "end",
            )

    @pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
    def test_bos_stays_in_front_of_a_cut_prompt(self, prepare, mode):
        tokenizer = tiny_tokenizer(bos=True)
        row = {"prompt": "abcdefghijklmnopqrst", "chosen": " Yes.", "rejected": " No."}
        prompt = prepare([row], tokenizer, max_length=16, prompt_truncation_mode=mode).rows[0]["prompt_ids"]
        rest = ids(row["prompt"])
        assert prompt == [tokenizer.bos_token_id, *(rest[:7] if mode == "keep_start" else rest[-7:])]

    def test_no_cut(self, prepare):
        prepared = prepare([texts(700, 900)], max_length=None)
        assert prepared.lengths() == [(700, 900, 2)]
        assert prepared.report == DataReport(rows=1)

    @pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
    def test_random_rows_against_the_authors_code(self, mode):
        draw = random.Random(0)
        seen = set()
        for _ in range(500):
            row = {name: [draw.randrange(99) for _ in range(draw.randint(1, 40))] for name in IDS}
            max_length = draw.randint(2, 60)
            max_prompt_length = draw.randint(1, max_length - 1)
            expected = authors_cut(row, max_length, max_prompt_length, mode)
            result = Truncation(False, max_length, max_prompt_length, mode == "keep_end")(
                row["prompt_ids"], [row[name] for name in IDS[1:]]
            )
            cut = dict(zip(IDS, (result.prompt_ids, *result.completion_ids), strict=True))
            assert cut == expected
            assert result.prompt_truncated == (cut["prompt_ids"] != row["prompt_ids"])
            assert result.completions_truncated == any(cut[name] != row[name] for name in IDS[1:])
            seen.add((result.prompt_truncated, result.completions_truncated))
        assert len(seen) == 4  # every way of cutting was met


class TestImplicitPrompts:
    HISTORY = "\n\nHuman: Hi\n\nAssistant: Hello, I think\n\nHuman: And?\n\nAssistant:"

    def test_hh_is_split_after_the_last_shared_turn(self):
        row = {"chosen": self.HISTORY + " I think so, yes", "rejected": self.HISTORY + " I think not"}
        assert split_prompt(row) == {"prompt": self.HISTORY, "chosen": " I think so, yes", "rejected": " I think not"}

    def test_hh_as_the_authors_split_it(self):
        # preference_datasets.py, extract_anthropic_prompt and split_prompt_and_responses
        row = {"chosen": self.HISTORY + " I think so, yes", "rejected": self.HISTORY + " I think not"}
        end = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
        prompt = row["chosen"][:end]
        assert row["rejected"].startswith(prompt)
        assert split_prompt(row) == {
            "prompt": prompt,
            "chosen": row["chosen"][end:],
            "rejected": row["rejected"][end:],
        }

    def test_hh_where_the_answers_turn_apart_earlier(self):
        # The rejected text goes on with a turn of its own: the authors would cut it in the middle
        start = "\n\nHuman: Hi\n\nAssistant:"
        row = {"chosen": start + " Yes", "rejected": start + " No\n\nHuman: Why?\n\nAssistant: So"}
        assert split_prompt(row)["prompt"] == start
        assert split_prompt({"chosen": row["rejected"], "rejected": row["chosen"]})["prompt"] == start

    def test_other_text_is_split_where_it_turns_apart(self):
        row = {"chosen": "Is it good? Yes.", "rejected": "Is it good? No."}
        assert split_prompt(row) == trl.extract_prompt(row)
        assert split_prompt(row) == {"prompt": "Is it good?", "chosen": " Yes.", "rejected": " No."}

    def test_messages_are_split_as_trl_does(self):
        (row,) = preference_rows(1, "implicit_chat")
        explicit = preference_rows(1, "chat")[0]
        assert split_prompt(row) == {name: explicit[name] for name in ("prompt", "chosen", "rejected")}

    def test_tokens(self, prepare):
        row = {"chosen": self.HISTORY + " I think so", "rejected": self.HISTORY + " I think not"}
        prepared = prepare([row]).rows[0]
        assert prepared["prompt_ids"] == ids(self.HISTORY)
        assert prepared["chosen_ids"] == [*ids(" I think so"), EOS]


class TestPreparedAgain:
    @pytest.mark.parametrize("max_length", [512, 50], ids=["whole", "cut"])
    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    @pytest.mark.parametrize("kind", ["plain", "chat", "implicit"])
    def test_nothing_changes(self, prepare, kind, tokenization, max_length):
        options = {"tokenization": tokenization, "max_length": max_length}
        once = prepare(preference_rows(6, kind), **options)
        twice = prepare(once.dataset, **options)
        assert twice.rows == once.rows
        assert twice.report.dropped == 0

    @pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
    def test_nothing_changes_with_bos(self, prepare, mode):
        options = {"tokenizer": tiny_tokenizer(bos=True), "max_length": 50, "prompt_truncation_mode": mode}
        once = prepare(preference_rows(6), **options)
        assert prepare(once.dataset, **options).rows == once.rows


class TestTokensThatTheUserBrings:
    ROW = {"prompt_ids": [5, 6], "chosen_ids": [7, EOS], "rejected_ids": [8, 9, EOS]}

    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_they_are_taken_as_they_are(self, prepare, tokenization):
        # No EOS where there is none: tokens are the user's business
        rows = [self.ROW, self.ROW | {"chosen_ids": [7]}]
        prepared = prepare(rows, tokenization=tokenization)
        assert prepared.rows == rows
        assert prepared.report == DataReport(rows=2)

    def test_they_are_cut(self, prepare):
        rows = [{"prompt_ids": list(range(3, 23)), "chosen_ids": [7] * 3 + [EOS], "rejected_ids": [8, EOS]}]
        prepared = prepare(rows, max_length=16, max_prompt_length=6)
        assert prepared.rows[0]["prompt_ids"] == list(range(17, 23))
        assert prepared.report == DataReport(rows=1, prompts_truncated=1)

    def test_identical_answers_are_dropped_and_counted(self, prepare):
        prepared = prepare([self.ROW, self.ROW | {"chosen_ids": [8, 9, EOS]}])
        assert prepared.rows == [self.ROW]
        assert (prepared.report.dropped, prepared.report.first_dropped[:6]) == (1, "row 1,")

    def test_a_prompt_without_room_is_dropped_like_trl_drops_text(self, prepare):
        # TRL's collator keeps the first 10 tokens: no token of an answer would be left to learn from
        long = self.ROW | {"prompt_ids": [5] * 10}
        prepared = prepare([self.ROW, long], tokenization="joint", max_length=10)
        assert prepared.rows == [self.ROW]
        assert prepared.report.dropped == 1


class TestStreaming:
    @pytest.mark.parametrize("max_length", [512, 60])
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_map_style(self, prepare, kind, max_length):
        rows = preference_rows(6, kind)
        assert (
            prepare(rows.to_iterable_dataset(), max_length=max_length).rows
            == prepare(rows, max_length=max_length).rows
        )

    @pytest.mark.parametrize("kind", ["plain", "chat"])
    def test_joint_equals_map_style(self, prepare, kind):
        rows, options = preference_rows(6, kind), {"tokenization": "joint", "max_length": 60}
        assert prepare(rows.to_iterable_dataset(), **options).rows == prepare(rows, **options).rows

    def test_a_generator_without_known_columns(self, prepare):
        rows = IterableDataset.from_generator(lambda: iter([GOOD, GOOD | {"chosen": " Sure."}]))
        assert rows.column_names is None
        assert [row["chosen_ids"] for row in prepare(rows).rows] == [[*ids(" Yes."), EOS], [*ids(" Sure."), EOS]]

    def test_tokens_that_the_user_brings(self, prepare):
        row = TestTokensThatTheUserBrings.ROW
        assert prepare(Dataset.from_list([row]).to_iterable_dataset()).rows == [row]

    def test_rows_without_a_preference_are_left_out(self, prepare):
        rows = Dataset.from_list([GOOD, SAME, EMPTY, GOOD]).to_iterable_dataset()
        assert len(prepare(rows).rows) == 2

    def test_nothing_is_counted(self, prepare):
        report = prepare(Dataset.from_list([GOOD, SAME]).to_iterable_dataset()).report
        assert str(report) == "streaming, not counted"
        assert report.share_truncated == 0.0
        # A count of 0 would be a claim
        assert (report.rows, report.dropped, report.prompts_truncated, report.answers_truncated) == (
            None,
            None,
            None,
            None,
        )


class TestCounts:
    def test_dropped_and_cut(self, prepare, caplog):
        rows = [GOOD, SAME, texts(400, 200), EMPTY, texts(10, 600), texts(300, 600), GOOD]
        prepared = prepare(rows)
        assert prepared.report == DataReport(
            rows=5,
            dropped=2,
            first_dropped="row 1, both answers are the same",
            prompts_truncated=2,
            answers_truncated=2,
        )
        assert prepared.report.share_truncated == 0.8
        assert str(prepared.report) == "5 rows (2 dropped), 2 prompts and 2 answers truncated"
        assert "2 rows of the train dataset are left out (first: row 1, both answers are the same)" in caplog.text
        assert len(prepared.rows) == 5
        assert prepared.rows[0] == prepared.rows[-1]

    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (SAME, "both answers are the same"),
            (EMPTY, "an answer is empty"),
            (GOOD | {"rejected": ""}, "an answer is empty"),
        ],
    )
    def test_rows_without_a_preference(self, prepare, bad, why, tokenization):
        report = prepare([GOOD, bad, bad], tokenization=tokenization).report
        assert (report.rows, report.dropped, report.first_dropped) == (1, 2, f"row 1, {why}")

    def test_text_that_is_the_same_as_tokens(self, prepare):
        # An EOS at the end of an answer is not doubled, so these two have the same tokens
        report = prepare([GOOD, GOOD | {"chosen": f" No.{EOS_TOKEN}"}]).report
        assert (report.rows, report.dropped) == (1, 1)

    def test_implicit_prompts(self, prepare):
        good = {"chosen": "Is it? Yes", "rejected": "Is it? No"}
        start = "\n\nHuman: Hi\n\nAssistant:"
        report = prepare([good, {"chosen": start, "rejected": start + " No"}, {"chosen": "a", "rejected": "a"}]).report
        assert (report.rows, report.dropped, report.first_dropped) == (1, 2, "row 1, an answer is empty")

    def test_chat(self, prepare):
        rows = preference_rows(4, "chat").to_list()
        rows[2]["rejected"] = rows[2]["chosen"]
        report = prepare(rows).report
        assert (report.rows, report.dropped, report.first_dropped) == (3, 1, "row 2, both answers are the same")

    def test_a_message_without_text_is_an_empty_answer(self, prepare):
        rows = preference_rows(3, "chat").to_list()
        rows[1]["chosen"] = [{"role": "assistant", "content": ""}]
        report = prepare(rows).report
        assert (report.rows, report.dropped, report.first_dropped) == (2, 1, "row 1, an answer is empty")

    def test_joint_counts_what_trl_s_collator_will_cut(self, prepare):
        prepared = prepare(
            [GOOD, texts(10, 100), texts(10, 4, 100), texts(10, 30)], tokenization="joint", max_length=40
        )
        assert prepared.report == DataReport(rows=4, answers_truncated=2)
        assert prepared.lengths()[1] == (10, 100, 2)  # at collation

    def test_joint_counts_what_trl_drops(self, prepare, caplog):
        prepared = prepare([GOOD, SAME, texts(40, 5), GOOD], tokenization="joint", max_length=40)
        assert (prepared.report.rows, prepared.report.dropped) == (2, 2)
        assert "2 rows of the train dataset are left out" in caplog.text

    def test_every_set_has_its_report(self, tmp_path):
        trainer = DPOPaperTrainer(
            tiny_llama(),
            args=DPOPaperConfig(str(tmp_path), **TINY),
            train_dataset=Dataset.from_list([GOOD]),
            eval_dataset={"a": Dataset.from_list([GOOD, SAME]), "b": Dataset.from_list([GOOD, texts(10, 600)])},
            processing_class=TOKENIZER,
        )
        assert trainer.data_reports == {
            "train": DataReport(rows=1),
            "a": DataReport(rows=1, dropped=1, first_dropped="row 1, both answers are the same"),
            "b": DataReport(rows=2, answers_truncated=1),
        }


def test_other_columns_survive(prepare):
    rows = Dataset.from_list([GOOD | {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0, "source": "me"}])
    row = prepare(rows).dataset[0]
    assert (row["ref_chosen_logps"], row["ref_rejected_logps"], row["source"]) == (-1.0, -2.0, "me")
    assert row["chosen"] == " Yes."


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_two_processes_prepare_the_same(prepare, kind):
    rows = preference_rows(6, kind)
    one, two = prepare(rows, max_length=60), prepare(rows, max_length=60, dataset_num_proc=2)
    assert two.rows == one.rows and two.report == one.report
