"""One ranking: ranks from scores, ties, copies, and every malformed value as one error that names row and column."""

import itertools
import math

import pytest
import torch
from datasets import Dataset
from tiny import tiny_tokenizer

from trl_dpo_ext.data.dataset_preparation import prepare_dataset
from trl_dpo_ext.data.rankings.checks import check_ranking, check_ranking_columns
from trl_dpo_ext.data.rankings.order import (
    dense_ranks,
    ranks_from_scores,
    repeated_completions,
    split_shared_prompt,
)
from trl_dpo_ext.objectives import plackett_luce_loss


class TestRanksFromScores:
    def test_equal_scores_tie(self):
        assert ranks_from_scores([1.0, 3.0, 2.0, 3.0, 1.0]) == [2, 0, 1, 0, 2]

    def test_the_gap_is_counted_from_the_best_of_a_group(self):
        # Steps of 0.4: no chain of small steps may join 5.0 to 3.8
        assert ranks_from_scores([5.0, 4.6, 4.2, 3.8, 3.4], tie_gap=0.5) == [0, 0, 1, 1, 2]

    @pytest.mark.parametrize(("gap", "ranks"), [(0.0, [0, 1, 2]), (0.99, [0, 1, 2]), (1.0, [0, 0, 1]), (2, [0, 0, 0])])
    def test_a_difference_of_the_gap_ties(self, gap, ranks):
        assert ranks_from_scores([9, 8, 7], tie_gap=gap) == ranks

    def test_order_and_infinite_distance_do_not_matter(self):
        scores = [2.0, -1e300, 7.5, 2.25]
        for order in itertools.permutations(range(4)):
            ranks = ranks_from_scores([scores[place] for place in order], tie_gap=0.25)
            assert [ranks[order.index(place)] for place in range(4)] == [1, 2, 0, 1]

    def test_nothing(self):
        assert ranks_from_scores([]) == []

    @pytest.mark.parametrize("gap", [-0.1, math.nan, math.inf, "1"])
    def test_a_gap_that_is_none(self, gap):
        with pytest.raises(ValueError, match="`score_tie_gap=.*` must be a number of 0 or more"):
            ranks_from_scores([1.0], tie_gap=gap)


def test_dense_ranks_keep_only_the_order():
    assert dense_ranks([10, 3, 3, 400]) == [1, 0, 0, 2]
    assert dense_ranks([1, None, 0, None]) == [1, 2, 0, 2]
    assert dense_ranks([None, None]) == [0, 0]


class TestRepeatedCompletions:
    @pytest.mark.parametrize(
        ("texts", "ranks", "left_out"),
        [
            ("abc", [0, 1, 2], []),
            ("aab", [0, 1, 2], [1]),  # neighbours: one place
            ("aab", [0, 0, 1], [1]),  # a tie of two copies
            ("baa", [0, 1, 1], [2]),
            ("aba", [0, 0, 0], [2]),  # all three tie
            ("aba", [0, 1, 2], [0, 2]),  # above b and below it
            ("aba", [0, 0, 1], [0, 2]),  # level with b and below it
            ("aba", [0, 1, 1], [0, 2]),
            ("abab", [0, 1, 2, 3], [0, 1, 2, 3]),
            ("aaabc", [2, 0, 1, 3, 4], [0, 2]),  # the best of three neighbours stays
        ],
    )
    def test_what_is_left_out(self, texts, ranks, left_out):
        reasons = repeated_completions(dict(enumerate(texts)), ranks)
        assert list(reasons) == left_out

    def test_reasons(self):
        assert repeated_completions({0: "a", 1: "a"}, [1, 0]) == {0: "completion 0 is a copy of completion 1"}
        reason = "completions 0 and 2 are the same and others stand between them"
        assert repeated_completions({0: "a", 1: "b", 2: "a"}, [0, 1, 2]) == {0: reason, 2: reason}

    def test_places_that_are_gone_do_not_count(self):
        assert list(repeated_completions({0: "a", 2: "a"}, [0, 1, 2])) == [2]


class TestSharedPrompt:
    HISTORY = "\n\nHuman: Hi\n\nAssistant:"

    def test_hh_is_split_after_the_last_turn_that_all_share(self):
        texts = [" I think so\n\nHuman: Sure?\n\nAssistant: Yes", " I think so\n\nHuman: Sure?\n\nAssistant: No"]
        longer = self.HISTORY + " I think so\n\nHuman: Sure?\n\nAssistant:"
        assert split_shared_prompt([self.HISTORY + text for text in texts]) == (longer, [" Yes", " No"])
        third = [self.HISTORY + text for text in [*texts, " I think not"]]
        for order in itertools.permutations(third):
            prompt, rest = split_shared_prompt(order)
            assert prompt == self.HISTORY and [prompt + text for text in rest] == list(order)

    def test_other_text_is_split_where_the_first_turns_apart(self):
        assert split_shared_prompt(["So: ab c", "So: ab d", "So: ax"]) == ("So: a", ["b c", "b d", "x"])
        assert split_shared_prompt(["It is a", "It is b", "It is c"]) == ("It is", [" a", " b", " c"])

    def test_nothing_shared(self):
        assert split_shared_prompt(["a b ", "b", "c"]) == ("", ["a b ", "b", "c"])

    def test_messages(self):
        user, yes, no = ({"role": "user", "content": "?"}, *({"role": "assistant", "content": c} for c in "YN"))
        assert split_shared_prompt([[user, yes], [user, no], [user, yes, user, no]]) == (
            [user],
            [[yes], [no], [yes, user, no]],
        )

    def test_empty_and_single_completions(self):
        assert split_shared_prompt(["a b", "", "a c"]) == ("a", [" b", "", " c"])
        assert split_shared_prompt(["a b"]) == ("", ["a b"])
        assert split_shared_prompt(["", ""]) == ("", ["", ""])
        assert split_shared_prompt([[], []]) == ([], [[], []])
        assert split_shared_prompt([]) == (None, [])


# Bad input: every error names the row, the column, what was found and the fix

GOOD = {"prompt": "Is it?", "completions": [" Yes.", " No.", " So."]}
IN_ROW = "row 1 of the train dataset"
USER, ASSISTANT = ({"role": role, "content": "Hi"} for role in ("user", "assistant"))

BAD_ROWS = {
    "ranks: too few": ({"ranks": [0, 1]}, "`ranks` in {row} has 2 entries but `completions` has 3"),
    "ranks: too many": ({"ranks": [0, 1, 2, 3]}, "`ranks` in {row} has 4 entries but `completions` has 3"),
    "ranks: negative": ({"ranks": [0, -1, 2]}, r"`ranks\[1\]` in {row} is -1. Ranks are integers of 0 \(best\)"),
    "ranks: fraction": ({"ranks": [0, 1.5, 2]}, r"`ranks\[1\]` in {row} is 1.5. .* belong into `scores`"),
    "ranks: float": ({"ranks": [0, 1.0, 2]}, r"`ranks\[1\]` in {row} is 1.0"),
    "ranks: NaN": ({"ranks": [0, math.nan, 2]}, r"`ranks\[1\]` in {row} is nan"),
    "ranks: bool": ({"ranks": [0, True, 2]}, r"`ranks\[1\]` in {row} is True"),
    "ranks: text": ({"ranks": [0, "1", 2]}, r"`ranks\[1\]` in {row} is '1'"),
    "ranks: a number": ({"ranks": 3}, "`ranks` in {row} is of type int. Expected a list of whole numbers"),
    "ranks: None": ({"ranks": None}, "`ranks` in {row} is None. Give a value for every completion, or remove"),
    "both None": ({"ranks": None, "scores": None}, "`ranks` and `scores` in {row} are None"),
    "scores: too few": ({"scores": [0.5]}, "`scores` in {row} has 1 entries but `completions` has 3"),
    "scores: NaN": ({"scores": [1.0, math.nan, 0.0]}, r"`scores\[1\]` in {row} is nan. Expected a finite number"),
    "scores: infinite": ({"scores": [1.0, 0.0, -math.inf]}, r"`scores\[2\]` in {row} is -inf"),
    "scores: None inside": ({"scores": [1.0, None, 0.0]}, r"`scores\[1\]` in {row} is None. .* Leave out"),
    "scores: bool": ({"scores": [True, 0.5, 0.0]}, r"`scores\[0\]` in {row} is True"),
    "scores: text": ({"scores": "high"}, "`scores` in {row} is text. Expected a list of numbers"),
    "completions: text": ({"completions": "Yes"}, "`completions` in {row} is text. Expected a list of texts"),
    "completions: None": ({"completions": None}, "`completions` in {row} is None. Fill it in, or drop"),
    "completions: a number": ({"completions": 3}, "`completions` in {row} is of type int"),
    "a completion: None": ({"completions": ["a", None, "b"]}, r"`completions\[1\]` in {row} is None"),
    "a completion: a number": ({"completions": ["a", 4, "b"]}, r"`completions\[1\]` in {row} is of type int"),
    "one conversation": (
        {"completions": [USER, ASSISTANT]},
        r"`completions\[0\]` in {row} is a dict with the keys role, content.*messages into a list of their own",
    ),
    "another schema": (
        {"completions": [{"response": "a", "overall_score": 3.0}] * 2},
        r"`completions\[0\]` in {row} is a dict with the keys response, overall_score.*from_ultrafeedback",
    ),
    "a list of texts": (
        {"completions": [["a"], ["b"]]},
        r"`completions\[0\]` in {row} is a list with an entry of str",
    ),
    "message without role": (
        {"prompt": [USER], "completions": [[ASSISTANT], [{"content": "Hi"}]]},
        r"`completions\[1\]` in {row} is a list with an entry of keys \['content'\]",
    ),
    "message without content": (
        {"prompt": [USER], "completions": [[ASSISTANT], [{"role": "assistant", "content": None}]]},
        r"`completions\[1\]` in {row} has a message without `content` \(keys \['content', 'role'\]\)",
    ),
    "mixed completions": (
        {"completions": ["a", [ASSISTANT]]},
        r"In {row} `prompt` is text and `completions\[1\]` is messages. Use one of the two",
    ),
    "mixed with the prompt": (
        {"prompt": [USER]},
        r"In {row} `completions\[0\]` is text and `prompt` is messages",
    ),
    "prompt: None": ({"prompt": None}, "`prompt` in {row} is None. Fill it in"),
    "too many completions": (
        {"completions": list("abcdefgh")},
        "`completions` in {row} has 8 entries but `max_completions=7`. Raise `max_completions`, or drop",
    ),
    "ref_logps: too few": ({"ref_logps": [-1.0]}, "`ref_logps` in {row} has 1 entries but `completions` has 3"),
    "ref_logps: NaN": ({"ref_logps": [-1.0, math.nan, 0.0]}, r"`ref_logps\[1\]` in {row} is nan"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_values(change, message):
    with pytest.raises(ValueError, match=message.format(row=IN_ROW)):
        check_ranking(GOOD | change, IN_ROW, max_completions=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [[0, 1, 2], [0, -1, 1]]}, r"`ranks\[1\]` in row 1 of the train dataset is -1"),
        ({"ranks": [[0.0, 1.0, 2.0], [0.0, 0.5, 1.0]]}, r"`ranks\[0\]` in row 0 of the train dataset is 0.0"),
        ({"ranks": [[0, 1, 2], [0, 1]]}, "`ranks` in row 1 of the train dataset has 2 entries"),
        ({"ranks": [[0, 1, 2], None]}, "`ranks` in row 1 of the train dataset is None"),
        ({"scores": [[0.1, 1, 2], [0.2, math.nan, 2]]}, r"`scores\[1\]` in row 1 of the train dataset is nan"),
        ({"completions": ["Yes", "No"]}, "`completions` in row 0 of the train dataset is text"),
        ({"completions": [["a", "b"], None]}, "`completions` in row 1 of the train dataset is None"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["map", "stream"])
def test_bad_values_reach_the_user_from_a_dataset(change, message, stream):
    dataset = Dataset.from_dict({name: [value] * 2 for name, value in GOOD.items()} | change)
    with pytest.raises(ValueError, match=message):
        list(prepare_dataset(dataset.to_iterable_dataset() if stream else dataset, tiny_tokenizer())[0])


class TestRanksAndScores:
    def test_direction(self):
        # 3 is the best in both columns: a rank counts from the best, so the other end was meant
        with pytest.raises(
            ValueError,
            match="The rank direction contradicts the scores in row 1 .*: completion 0 has rank 1 and score 1.0, "
            "completion 1 has rank 2 and score 2.0. Rank 0 is the best",
        ):
            check_ranking(GOOD | {"ranks": [1, 2, 3], "scores": [1.0, 2.0, 3.0]}, IN_ROW)

    def test_some_places(self):
        with pytest.raises(
            ValueError,
            match="`ranks` and `scores` in row 1 .* contradict each other: completion 1 has rank 1 and score",
        ):
            check_ranking(GOOD | {"ranks": [0, 1, 2], "scores": [3.0, 1.0, 2.0]}, IN_ROW)

    def test_an_unranked_completion_with_the_best_score(self):
        with pytest.raises(ValueError, match="completion 1 has rank None and score 9.0"):
            check_ranking(GOOD | {"ranks": [0, None, 1], "scores": [3.0, 9.0, 2.0]}, IN_ROW)

    @pytest.mark.parametrize("ranks", [[0, 1, 2], [0, 1, 1], [0, 0, 0], [0, None, None], [3, 7, None]])
    def test_what_agrees(self, ranks):
        check_ranking(GOOD | {"ranks": ranks, "scores": [3.0, 2.0, 2.0]}, IN_ROW)


class TestColumns:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (
                ["prompt", "completion"],
                "no column `completions`.* found prompt, completion. It holds one answer for each prompt",
            ),
            (
                ["prompt", "text"],
                "no column `completions`.* It holds prompts without answers",
            ),
            (["prompt", "completions", "rank"], "no column `ranks`, but one named `rank`. .* best first"),
            (["prompt", "completions", "rankings"], "no column `ranks`, but one named `rankings`"),
            (["prompt", "completions", "score"], "no column `scores`, but one named `score`. Rename"),
            (
                ["prompts", "completions"],
                "no column `prompt`, but one named `prompts`.*common start of all completions",
            ),
            (["prompt", "completions", "chosen"], "`completions` of a ranking and `chosen` of a preference pair"),
            (
                ["prompt", "completions", "chosen", "rejected"],
                "`completions` of a ranking and `chosen` and `rejected`",
            ),
            (["prompt", "chosen"], "no column `rejected`. A preference dataset needs"),
            (["prompt", "chosen", "rejectd"], "Is it `rejectd`?"),
            (["prompt_ids", "chosen_ids"], "has token ids .* but no column `rejected_ids`"),
            (["completion_ids", "ranks"], "has the column `completion_ids` but not `prompt_ids`"),
            (["prompt", "chosen", "rejected", "ref_chosen_logps"], "but not `ref_rejected_logps`"),
        ],
    )
    def test_missing_or_misspelt(self, columns, message):
        with pytest.raises(ValueError, match=f"The train dataset .*{message}"):
            check_ranking_columns(columns, "train")

    @pytest.mark.parametrize(
        "columns",
        [
            ["completions"],
            ["prompt", "completions", "ranks", "score"],  # ranks are there: a column `score` is the user's business
            ["prompt", "completions", "scores", "source", "models"],
            ["chosen", "rejected"],
            ["prompt_ids", "completion_ids"],
            ["prompt_ids", "completion_ids", "ranks", "prompt", "completions"],
            ["prompt_ids", "chosen_ids", "rejected_ids"],
        ],
    )
    def test_what_is_enough(self, columns):
        check_ranking_columns(columns, "train")


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tokenization": "both"}, "`tokenization='both'` does not exist. Choose one of 'separate', 'joint'."),
            ({"prompt_truncation_mode": "end"}, "`prompt_truncation_mode='end'` does not exist"),
            ({"truncation_mode": "end"}, "`truncation_mode='end'` does not exist"),
            ({"score_tie_gap": -1.0}, "`score_tie_gap=-1.0` must be a number of 0 or more"),
            ({"max_completions": 1}, "`max_completions=1` must be 2 or more"),
        ],
    )
    def test_bad(self, options, message):
        with pytest.raises(ValueError, match=message):
            prepare_dataset(Dataset.from_list([GOOD]), tiny_tokenizer(), **options)


def test_completions_left_out_do_not_change_the_probability_of_the_others():
    # Why copies may be left out: summed over the places of the third, the order of two is as likely as without it
    logps = torch.tensor([[-3.0, -5.0, -4.0]], dtype=torch.float64)
    without = plackett_luce_loss(logps[:, :2], None, beta=0.7).neg().exp()
    orders = [(0, 1, 2), (0, 2, 1), (2, 0, 1)]
    total = sum(plackett_luce_loss(logps[:, list(order)], None, beta=0.7).neg().exp() for order in orders)
    assert total.item() == pytest.approx(without.item(), rel=1e-12)
