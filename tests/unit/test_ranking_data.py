"""From rankings to token ids: sorted rows, the authors' tokens and cut over K, TRL's tokens, and streams."""

import random
from types import SimpleNamespace

import pytest
import trl
from datasets import Dataset, IterableDataset, concatenate_datasets
from tiny import EOS_TOKEN, preference_rows, tiny_tokenizer
from transformers.utils.logging import warning_once
from unit.prepared_rankings import GOOD, IDS, TOKENIZER, ids, prepare

from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
from trl_dpo_ext.data.tokenization import leading_special_ids, tokenize_apart, truncate_completions


EOS = TOKENIZER.eos_token_id
KINDS = ("plain", "chat", "implicit", "implicit_chat", "tools", "template")


def as_rankings(pairs: Dataset) -> list[dict]:
    """Preference rows as rankings, the rejected answer first."""
    rows = []
    for row in pairs:
        completions = [row.pop("rejected"), row.pop("chosen")]
        rows.append(row | {"completions": completions, "ranks": [1, 0]})
    return rows


def prepared_by_trl(rows: Dataset, tokenizer=TOKENIZER, max_length=None) -> list[dict]:
    """Token columns that `trl.DPOTrainer` makes of pairs, as rankings."""
    args = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    dataset = trl.DPOTrainer._prepare_dataset(trainer, rows, tokenizer, args, "train")
    return [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": [row["chosen_ids"], row["rejected_ids"]],
            "ranks": [0, 1],
        }
        for row in dataset
    ]


class TestOrder:
    @pytest.mark.parametrize(
        ("order", "texts", "ranks"),
        [
            ({}, "abcd", [0, 1, 2, 3]),
            ({"ranks": [3, 0, 2, 1]}, "bdca", [0, 1, 2, 3]),
            ({"ranks": [40, 7, 7, 9]}, "bcda", [0, 0, 1, 2]),
            ({"ranks": [None, 1, None, 0]}, "dbac", [0, 1, 2, 2]),
            ({"scores": [0.5, 0.5, 2.0, 1.0]}, "cdab", [0, 1, 2, 2]),
            ({"scores": [1, 2, 3, 4]}, "dcba", [0, 1, 2, 3]),
            ({"ranks": [0, 0, 1, 1], "scores": [4.0, 3.0, 2.0, 1.0]}, "abcd", [0, 0, 1, 1]),  # ranks decide
        ],
    )
    def test_rows_come_out_best_first(self, order, texts, ranks):
        prepared = prepare([{"prompt": "q", "completions": list("abcd")} | order])
        assert prepared.texts() == [list(texts)]
        assert prepared.ranks() == [ranks]
        assert prepared.dataset["completions"][0] == list(texts)

    def test_score_tie_gap(self):
        row = {"prompt": "q", "completions": list("abcd"), "scores": [1.0, 2.0, 2.5, 4.0]}
        assert prepare([row], score_tie_gap=0.5).ranks() == [[0, 1, 1, 2]]
        assert prepare([row], score_tie_gap=1.5).ranks() == [[0, 0, 1, 1]]

    def test_scores_and_ref_logps_follow_their_completions(self):
        row = {"prompt": "q", "completions": list("abc"), "scores": [1.0, 3.0, 2.0], "ref_logps": [-1.0, -3.0, -2.0]}
        prepared = prepare([row]).dataset[0]
        assert (prepared["scores"], prepared["ref_logps"]) == ([3.0, 2.0, 1.0], [-3.0, -2.0, -1.0])

    def test_ranked_and_scored_rows_in_one_dataset(self):
        ranked = Dataset.from_list([{"prompt": "q", "completions": list("ab"), "ranks": [1, 0]}])
        scored = Dataset.from_list([{"prompt": "q", "completions": list("abc"), "scores": [1.0, 3.0, 2.0]}])
        prepared = prepare(concatenate_datasets([ranked, scored]))
        assert prepared.texts() == [list("ba"), list("bca")]
        assert prepared.ranks() == [[0, 1], [0, 1, 2]]

    def test_a_column_of_ranks_that_is_none_throughout(self):
        # Its type is "null", and whole numbers are written into it
        prepared = prepare([GOOD | {"ranks": None, "scores": [1.0, 2.0, 3.0]}] * 2)
        assert prepared.ranks() == [[0, 1, 2]] * 2
        assert prepared.texts()[0] == [" Not so.", " No.", " Yes."]

    def test_k_varies(self):
        rows = [{"prompt": "q", "completions": list("abcdefghi"[:k])} for k in (2, 9, 5)]
        prepared = prepare(rows)
        assert [len(ranks) for ranks in prepared.ranks()] == [2, 9, 5]
        assert (prepared.report.completions, prepared.report.smallest, prepared.report.largest) == (16, 2, 9)

    def test_max_completions_is_an_error_and_no_cut(self):
        rows = [GOOD, GOOD | {"completions": list("abcd")}]
        assert len(prepare(rows, max_completions=4).rows) == 2
        with pytest.raises(ValueError, match="`completions` in row 1 of the train dataset has 4 entries but"):
            prepare(rows, max_completions=3)


class TestTokens:
    def test_prompt_and_completions_apart_and_eos_appended(self):
        assert prepare([GOOD]).rows == [
            {
                "prompt_ids": ids("Is it?"),
                "completion_ids": [[*ids(text), EOS] for text in GOOD["completions"]],
                "ranks": [0, 1, 2],
            }
        ]

    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_eos_comes_once(self, tokenization):
        row = GOOD | {"completions": [text + EOS_TOKEN for text in GOOD["completions"]]}
        assert prepare([row], tokenization=tokenization).rows == prepare([GOOD], tokenization=tokenization).rows

    def test_bos_is_kept_before_the_prompt_only(self):
        tokenizer = tiny_tokenizer(bos=True)
        bos = tokenizer.bos_token_id
        for tokenization in ("separate", "joint"):
            (row,) = prepare([GOOD], tokenizer, tokenization=tokenization).rows
            assert row["prompt_ids"] == [bos, *ids("Is it?")]
            assert bos not in sum(row["completion_ids"], [])

    @pytest.mark.parametrize("kind", ["plain", "implicit"])
    def test_two_completions_are_a_pair(self, kind):
        pairs = preference_rows(9, "plain")
        leading = leading_special_ids(TOKENIZER)
        apart = pairs
        if kind == "implicit":  # the prompt ends where the two turn apart
            pairs = preference_rows(9, "implicit")
            apart = [trl.extract_prompt(row) for row in pairs]
        tokenized = [
            tokenize_apart(row["prompt"], (row["chosen"], row["rejected"]), TOKENIZER, leading, "a row")
            for row in apart
        ]
        expected = [
            {"prompt_ids": prompt, "completion_ids": completions, "ranks": [0, 1]} for prompt, completions in tokenized
        ]
        assert prepare(as_rankings(pairs)).rows == expected
        assert prepare(pairs).rows == expected

    @pytest.mark.parametrize("kind", KINDS)
    def test_joint_with_two_completions_equals_trl(self, kind):
        pairs = preference_rows(6, kind)
        expected = prepared_by_trl(pairs)
        assert prepare(as_rankings(pairs), tokenization="joint").rows == expected
        assert prepare(pairs, tokenization="joint").rows == expected

    @pytest.mark.parametrize("kind", ["chat", "implicit_chat", "tools", "template"])
    def test_chat_with_two_completions_equals_trl(self, kind):
        pairs = preference_rows(6, kind)
        assert prepare(as_rankings(pairs)).rows == prepare(pairs).rows == prepared_by_trl(pairs)

    def test_joint_with_a_bos_equals_trl(self):
        pairs, tokenizer = preference_rows(6), tiny_tokenizer(bos=True)
        assert prepare(pairs, tokenizer, tokenization="joint").rows == prepared_by_trl(pairs, tokenizer)

    def test_one_completion_moves_the_border_for_all(self):
        # Joint: "say: the ca" + "st" merges "ca" and "s", so that "ca" belongs to every completion
        row = {"prompt": "say: the ca", "completions": ["t", "st runs", "r"]}
        (joint,) = prepare([row], tokenization="joint").rows
        assert joint["prompt_ids"] == ids("say: the ca")[:-1]
        texts = [TOKENIZER.decode(joint["prompt_ids"] + c) for c in joint["completion_ids"]]
        assert texts == [f"say: the ca{text}{EOS_TOKEN}" for text in row["completions"]]
        # Without the second the border stays where the prompt ends, at least as far as tokens go
        (without,) = prepare([row | {"completions": ["q", "z"]}], tokenization="joint").rows
        assert without["prompt_ids"] == ids("say: the ca")

    def test_chat_of_many_completions_through_the_template(self):
        turns = [{"role": "user", "content": "Hello."}]
        answers = ["It was dull.", "Wonderful.", "Boil it.", "No idea, sorry."]
        row = {"prompt": turns, "completions": [[{"role": "assistant", "content": text}] for text in answers]}
        (prepared,) = prepare([row]).rows
        prompt = "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
        assert TOKENIZER.decode(prepared["prompt_ids"]) == prompt
        assert [TOKENIZER.decode(c) for c in prepared["completion_ids"]] == [f"{text}<|im_end|>\n" for text in answers]

    def test_tools_as_json_text(self):
        pairs = preference_rows(2, "tools").to_list()
        as_json = [row | {"tools": '[{"type": "function", "function": {"name": "weather"}}]'} for row in pairs]
        assert prepare(Dataset.from_list(as_json)).rows == prepared_by_trl(Dataset.from_list(as_json))

    def test_hh_text_is_split_at_the_last_shared_turn(self):
        start = "\n\nHuman: Hi\n\nAssistant:"
        prepared = prepare([{"completions": [start + text for text in (" I think so", " I think not", " I do")]}])
        assert prepared.rows[0]["prompt_ids"] == ids(start)
        assert prepared.texts() == [[" I think so", " I think not", " I do"]]

    def test_no_eos_token(self):
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = None
        for tokenization in ("separate", "joint"):
            with pytest.raises(ValueError, match="The tokenizer has no EOS token"):
                prepare([GOOD], tokenizer, tokenization=tokenization)
        assert prepare(preference_rows(2, "chat"), tokenizer).rows == prepared_by_trl(preference_rows(2, "chat"))

    @pytest.mark.parametrize(
        ("tokenization", "message"),
        [("separate", "`prompt` in row 1 of the train dataset is empty"), ("joint", "In row 1 of .* share no start")],
    )
    def test_nothing_predicts_the_first_token(self, tokenization, message):
        with pytest.raises(ValueError, match=message):
            prepare([GOOD, GOOD | {"prompt": ""}], tokenization=tokenization)

    def test_a_template_that_leaves_an_answer_out(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m.content != 'b' %}{{ m.content }}{% endif %}{% endfor %}"
        )
        row = {"prompt": [{"role": "user", "content": "q"}]}
        row["completions"] = [[{"role": "assistant", "content": text}] for text in "ab"]
        with pytest.raises(ValueError, match=r"`completions\[1\]` in row 0 .* adds no token to its prompt"):
            prepare([row], tokenizer)

    def test_a_template_that_cannot_render_a_row(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('No role tool.') }}{% endif %}"
            "{{ m.content }}{% endfor %}"
        )
        rows = preference_rows(2, "chat").to_list()
        rows[1]["prompt"][0]["role"] = "tool"
        with pytest.raises(
            ValueError, match="chat template cannot render `prompt` in row 1 of the train dataset: No role tool"
        ):
            prepare(rows, tokenizer)

    def test_a_border_that_moves_is_told_once(self, caplog):
        warning_once.cache_clear()
        caplog.set_level("WARNING")
        rows = [{"prompt": f"say: the {start}", "completions": ["st runs", "t"]} for start in ("ca", "ca", "que")]
        prepare(rows, tokenization="joint")
        assert caplog.text.count("the prompt loses its end") == 1


def tokens(n: int, letter: str = "z") -> str:
    """Text of exactly n tokens with the EOS token: the tiny tokenizer merges no `z`."""
    return letter * (n - 1)


class TestCut:
    def test_the_longest_completion_decides_for_all(self):
        row = {"prompt": "z" * 300, "completions": [tokens(2, "q"), tokens(300, "x"), tokens(50, "j")]}
        prepared = prepare([row], max_length=512)
        assert prepared.lengths() == [(256, 2, 256, 50)]
        assert [completion[-1] == EOS for completion in prepared.rows[0]["completion_ids"]] == [True, False, True]
        assert (prepared.report.prompts_truncated, prepared.report.answers_truncated) == (1, 1)

    @pytest.mark.parametrize(
        ("prompt", "longest", "expected", "num_prompts", "num_answers"),
        [(500, 12, (500, 12), 0, 0), (500, 13, (256, 13), 1, 0), (10, 600, (10, 256), 0, 1)],
    )
    def test_borders(self, prompt, longest, expected, num_prompts, num_answers):
        rows = [{"prompt": "z" * prompt, "completions": [tokens(2, "q"), tokens(3, "x"), tokens(longest)]}]
        prepared = prepare(rows, max_length=512)
        assert prepared.lengths() == [(expected[0], 2, 3, expected[1])]
        assert (prepared.report.prompts_truncated, prepared.report.answers_truncated) == (num_prompts, num_answers)

    @pytest.mark.parametrize(("mode", "kept"), [("keep_start", slice(0, 6)), ("keep_end", slice(-6, None))])
    @pytest.mark.parametrize("bos", [False, True], ids=["without", "with_bos"])
    def test_end_of_the_prompt_that_is_kept(self, mode, kept, bos):
        tokenizer = tiny_tokenizer(bos=bos)
        row = {"prompt": "abcdefghijklmnopqrst", "completions": [" Yes.", " No.", "q"]}
        options = {"max_length": 16, "max_prompt_length": 7 if bos else 6, "prompt_truncation_mode": mode}
        (prepared,) = prepare([row], tokenizer, **options).rows
        assert prepared["prompt_ids"] == [tokenizer.bos_token_id] * bos + ids(row["prompt"])[kept]

    def test_no_max_length_is_no_cut(self):
        assert prepare([{"prompt": "z" * 700, "completions": ["z" * 900, "q"]}]).lengths() == [(700, 901, 2)]

    @pytest.mark.parametrize("keep_end", [False, True])
    def test_a_shorter_completion_changes_nothing(self, keep_end):
        draw = random.Random(0)
        for _ in range(300):
            prompt, chosen, rejected = ([draw.randrange(99) for _ in range(draw.randint(1, 40))] for _ in range(3))
            max_length = draw.randint(2, 60)
            options = {"max_length": max_length, "max_prompt_length": draw.randint(1, max_length - 1)}
            options |= {"keep_end": keep_end, "leading_ids": []}
            cut = truncate_completions(prompt, [chosen, rejected], **options)
            # A third completion, no longer than the others, changes nothing for them
            third = draw.choice([chosen, rejected])[: draw.randint(1, 40)]
            assert truncate_completions(prompt, [chosen, rejected, third], **options)[1][:2] == cut[1]

    @pytest.mark.parametrize(("max_length", "left"), [(37, 4), (50, 6)])
    def test_joint_leaves_the_cut_to_the_collator_as_trl_does(self, max_length, left):
        pairs = preference_rows(6)
        prepared = prepare(pairs, tokenization="joint", max_length=max_length)
        assert prepared.rows == prepared_by_trl(pairs, max_length=max_length)
        assert (prepared.report.rows, prepared.report.dropped) == (left, 6 - left)
        longest = [prompt + max(completions) for prompt, *completions in prepared.lengths()]
        assert prepared.report.answers_truncated == sum(length > max_length for length in longest) > 0
        batch = DataCollatorForRanking(0, max_length=max_length)(prepared.rows)
        assert batch["input_ids"].shape[2] == max_length
        assert batch["completion_mask"].sum(-1).min() > 0

    def test_joint_that_keeps_the_end_drops_nothing(self):
        prepared = prepare(preference_rows(6), tokenization="joint", max_length=36, truncation_mode="keep_end")
        assert (prepared.report.rows, prepared.report.answers_truncated) == (6, 6)


class TestPreparedAgain:
    @pytest.mark.parametrize("max_length", [None, 40], ids=["whole", "cut"])
    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    @pytest.mark.parametrize("kind", ["plain", "chat", "implicit"])
    def test_nothing_changes(self, kind, tokenization, max_length):
        options = {"tokenization": tokenization, "max_length": max_length}
        once = prepare(preference_rows(6, kind), **options)
        twice = prepare(once.dataset, **options)
        assert {"prompt_ids", "completion_ids"} <= set(once.dataset.column_names)
        assert twice.rows == once.rows
        assert twice.dataset.column_names == once.dataset.column_names
        assert twice.report.dropped == twice.report.completions_dropped == 0

    def test_with_a_bos_and_ties(self):
        row = GOOD | {"ranks": [4, 2, 2], "prompt": "z" * 40}
        options = {"tokenizer": tiny_tokenizer(bos=True), "max_length": 30}
        once = prepare([row], **options)
        assert once.ranks() == [[0, 0, 1]]
        assert prepare(once.dataset, **options).rows == once.rows


class TestTokensThatTheUserBrings:
    ROW = {"prompt_ids": [5, 6], "completion_ids": [[7], [8, 9, EOS], [9]]}

    def test_they_are_taken_as_they_are(self):
        # No EOS where there is none, and without ranks they are best first
        assert prepare([self.ROW]).rows == [self.ROW | {"ranks": [0, 1, 2]}]

    def test_they_are_sorted(self):
        prepared = prepare([self.ROW | {"ranks": [7, None, 3], "ref_logps": [-1.0, -2.0, -3.0]}])
        assert prepared.rows == [{"prompt_ids": [5, 6], "completion_ids": [[9], [7], [8, 9, EOS]], "ranks": [0, 1, 2]}]
        assert prepared.dataset[0]["ref_logps"] == [-3.0, -1.0, -2.0]

    def test_they_are_cut(self):
        row = self.ROW | {"prompt_ids": list(range(3, 23))}
        prepared = prepare([row], max_length=16, max_prompt_length=6)
        assert prepared.rows[0]["prompt_ids"] == list(range(17, 23))
        assert prepared.report.prompts_truncated == 1

    def test_pairs_with_their_reference(self):
        pair = {"prompt_ids": [5], "chosen_ids": [7], "rejected_ids": [8, 9]}
        prepared = prepare([pair | {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}])
        assert prepared.dataset.to_list() == [
            {"prompt_ids": [5], "completion_ids": [[7], [8, 9]], "ranks": [0, 1], "ref_logps": [-1.0, -2.0]}
        ]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt_ids": []}, "`prompt_ids` in row 1 of the train dataset is empty"),
            ({"completion_ids": [[7], []]}, r"`completion_ids\[1\]` in row 1 of the train dataset is empty"),
            ({"completion_ids": None}, "`completion_ids` in row 1 of the train dataset is None"),
            ({"ranks": [0]}, "`ranks` in row 1 of the train dataset has 1 entries but `completion_ids` has 3"),
        ],
    )
    def test_bad(self, change, message):
        good = self.ROW | ({"ranks": [0, 1, 2]} if "ranks" in change else {})
        with pytest.raises(ValueError, match=message):
            prepare([good, good | change])

    def test_a_number_that_is_no_token(self):
        row = {"prompt_ids": [5], "completion_ids": [[1.5], [2.0]]}
        with pytest.raises(ValueError, match=r"`completion_ids\[0\]\[0\]` in row 0 .* is 1.5, of type float"):
            prepare([row])


class TestPairs:
    def test_columns(self):
        pairs = preference_rows(2)
        dataset = prepare(pairs.add_column("id", [3, 4])).dataset
        assert sorted(dataset.column_names) == ["completion_ids", "id", "prompt", "prompt_ids", "ranks"]

    def test_malformed_pairs_are_named_as_pairs(self):
        with pytest.raises(ValueError, match="`rejected` in row 1 of the train dataset is None"):
            prepare(
                [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": None}]
            )


class TestKeepAll:
    """Prediction: a row that carries no loss keeps its place, and so does each of its completions."""

    def test_nothing_is_left_out(self):
        rows = [
            {"completions": ["a", "", "a"], "ranks": [1, 0, 2]},
            {"completions": ["a"], "ranks": [4]},
            {"completions": ["a", "b"], "ranks": [None, None]},
        ]
        prepared = prepare([{"prompt": "q"} | row for row in rows], keep_all=True)
        assert prepared.texts() == [["", "a", "a"], ["a"], ["a", "b"]]
        assert prepared.ranks() == [[0, 1, 2], [0], [0, 0]]
        assert (prepared.report.dropped, prepared.report.completions_dropped) == (0, 0)

    def test_a_prompt_that_fills_max_length(self):
        options = {"tokenization": "joint", "max_length": 10, "keep_all": True}
        assert len(prepare([GOOD | {"prompt": "z" * 20}], **options).rows) == 1

    def test_no_completion(self):
        with pytest.raises(ValueError, match="`completions` in row 1 of the train dataset is empty"):
            prepare([GOOD, GOOD | {"completions": []}], keep_all=True)

    def test_malformed_rows_are_errors_all_the_same(self):
        with pytest.raises(ValueError, match=r"`ranks\[0\]` in row 0"):
            prepare([GOOD | {"ranks": [-1, 0, 1]}], keep_all=True)


class TestStreaming:
    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_map_style(self, kind, tokenization):
        options = {"tokenization": tokenization, "max_length": 60 if tokenization == "separate" else 300}
        rows = Dataset.from_list(as_rankings(preference_rows(6, kind)))
        assert prepare(rows.to_iterable_dataset(), **options).rows == prepare(rows, **options).rows

    def test_pairs(self):
        rows = preference_rows(4)
        prepared = prepare(rows.to_iterable_dataset())
        assert prepared.rows == prepare(rows).rows
        assert set(next(iter(prepared.dataset))) == {"prompt", *IDS}

    def test_a_generator_without_known_columns(self):
        rows = IterableDataset.from_generator(lambda: iter([GOOD, GOOD | {"completions": ["a", "b"]}]))
        assert rows.column_names is None
        assert prepare(rows).texts() == [GOOD["completions"], ["a", "b"]]

    def test_rows_that_say_nothing_are_left_out(self, caplog):
        caplog.set_level("WARNING")
        rows = [GOOD, GOOD | {"completions": ["a"]}, GOOD | {"completions": ["a", "a", "b"]}]
        prepared = prepare(Dataset.from_list(rows).to_iterable_dataset(), dataset_name="streamed")
        assert prepared.texts() == [GOOD["completions"], ["a", "b"]]
        assert caplog.text.count("Rows of the streamed stream that carry no preference are left out") == 1

    def test_nothing_is_counted(self):
        report = prepare(Dataset.from_list([GOOD]).to_iterable_dataset()).report
        assert str(report) == "streaming, not counted"
        assert report.share_truncated == 0.0
        # A count of 0 would be a claim
        assert {value for value in vars(report).values() if value != ""} == {None}


def test_several_processes():
    rows = Dataset.from_list([GOOD, GOOD | {"completions": ["a", "b", "a"]}] * 4)
    assert prepare(rows, num_proc=2).rows == prepare(rows).rows
