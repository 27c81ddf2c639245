"""Scores to rankings, pairs to rankings and back, and rows of public schemas."""

import itertools
import random

import pytest
from datasets import Dataset
from tiny import tiny_tokenizer

from trl_dpo_ext.data.conversion.from_pairs import pairs_to_rankings
from trl_dpo_ext.data.conversion.to_pairs import all_pairs, best_random_pairs, best_worst_pairs, scores_to_ranking
from trl_dpo_ext.data.dataset_preparation import prepare_dataset


def ranking(completions: str, ranks: list | None = None, prompt: str = "q") -> dict:
    return {"prompt": prompt, "completions": list(completions)} | ({} if ranks is None else {"ranks": ranks})


def pairs_of(dataset) -> list[str]:
    return [row["chosen"] + row["rejected"] for row in dataset]


def chat(text: str, role: str = "assistant") -> list[dict]:
    return [{"role": role, "content": text}]


class TestScoresToRanking:
    ROW = {"prompt": "q", "completions": list("abcd"), "scores": [1.0, 3.0, 2.5, 1.0]}

    def test_row(self):
        expected = {"prompt": "q", "completions": list("bcad"), "scores": [3.0, 2.5, 1.0, 1.0], "ranks": [0, 1, 2, 2]}
        assert scores_to_ranking(self.ROW) == expected
        assert scores_to_ranking(self.ROW, score_tie_gap=0.5)["ranks"] == [0, 0, 1, 1]

    def test_dataset(self):
        dataset = Dataset.from_list([self.ROW] * 2).map(
            scores_to_ranking, with_indices=True, fn_kwargs={"score_tie_gap": 0.5}
        )
        assert dataset["ranks"][:] == [[0, 0, 1, 1]] * 2
        assert dataset["completions"][1] == list("bcad")

    def test_it_prepares_to_the_same_rows(self):
        dataset, tokenizer = Dataset.from_list([self.ROW]), tiny_tokenizer()
        prepared, _ = prepare_dataset(dataset, tokenizer)
        converted, _ = prepare_dataset(dataset.map(scores_to_ranking), tokenizer)
        assert converted.to_list() == prepared.to_list()

    @pytest.mark.parametrize(
        ("scores", "message"),
        [([1.0, float("nan"), 0.0, 2.0], r"`scores\[1\]` in row 7 is nan"), (None, "`scores` in row 7 is missing")],
    )
    def test_bad(self, scores, message):
        with pytest.raises(ValueError, match=message):
            scores_to_ranking(self.ROW | {"scores": scores}, 7)


class TestRankingToPairs:
    def test_all_pairs_of_every_k(self):
        for k in range(2, 7):
            expected = [a + b for a, b in itertools.combinations("abcdef"[:k], 2)]
            assert pairs_of(all_pairs(Dataset.from_list([ranking("abcdef"[:k])]))) == expected

    @pytest.mark.parametrize(
        ("completions", "ranks", "every", "extremes", "against_best"),
        [
            ("abc", [0, 1, 1], ["ab", "ac"], "ac", {"ab", "ac"}),
            ("abc", [0, 0, 1], ["ac", "bc"], "ac", {"ac"}),
            ("abc", [2, 0, 1], ["bc", "ba", "ca"], "ba", {"bc", "ba"}),
            ("abcd", [None, 4, None, 9], ["bd", "ba", "bc", "da", "dc"], "bc", {"bd", "ba", "bc"}),
            ("aba", [0, 1, 2], [], None, set()),  # the copies have no place: nothing is left to compare
            ("aab", [0, 1, 2], ["ab"], "ab", {"ab"}),
        ],
    )
    def test_ties_and_copies_are_never_a_pair(self, completions, ranks, every, extremes, against_best):
        rows = Dataset.from_list([ranking(completions, ranks), ranking("xy", [0, 1])])
        assert pairs_of(all_pairs(rows)) == [*every, "xy"]
        assert pairs_of(best_worst_pairs(rows)) == ([extremes, "xy"] if extremes else ["xy"])
        drawn = {pair for seed in range(20) for pair in pairs_of(best_random_pairs(rows, seed=seed))}
        assert drawn == {*against_best, "xy"}

    def test_draws_are_those_of_the_seed_and_the_row(self):
        rows = Dataset.from_list([ranking("abcdef")] * 60)
        drawn = pairs_of(best_random_pairs(rows, seed=1))
        assert drawn == pairs_of(best_random_pairs(rows, seed=1, num_proc=2))
        assert drawn == pairs_of(best_random_pairs(rows.to_iterable_dataset(), seed=1))
        assert drawn != pairs_of(best_random_pairs(rows, seed=2))
        assert {pair[0] for pair in drawn} == {"a"} and {pair[1] for pair in drawn} == set("bcdef")

    def test_scores(self):
        row = {"prompt": "q", "completions": list("abc"), "scores": [1.0, 3.0, 2.8]}
        assert pairs_of(all_pairs(Dataset.from_list([row]))) == ["bc", "ba", "ca"]
        assert pairs_of(all_pairs(Dataset.from_list([row]), score_tie_gap=0.5)) == ["ba", "ca"]

    def test_columns(self):
        row = ranking("ba", [1, 0]) | {"id": 3, "ref_logps": [-2.0, -1.0], "scores": [0.5, 0.75]}
        assert all_pairs(Dataset.from_list([row])).to_list() == [
            {
                "prompt": "q",
                "id": 3,
                "chosen": "a",
                "rejected": "b",
                "ref_chosen_logps": -1.0,
                "ref_rejected_logps": -2.0,
            }
        ]

    def test_prepared_rankings_give_pairs_of_text(self):
        prepared, _ = prepare_dataset(Dataset.from_list([ranking("ab", [1, 0])]), tiny_tokenizer())
        assert all_pairs(prepared).to_list() == [{"prompt": "q", "chosen": "b", "rejected": "a"}]

    def test_messages_and_implicit_prompts(self):
        user = chat("q", "user")
        rows = [{"completions": [user + chat(text) for text in "abc"], "ranks": [0, 2, 1]}]
        (pair,) = best_worst_pairs(Dataset.from_list(rows))
        assert pair == {"chosen": user + chat("a"), "rejected": user + chat("b")}

    def test_rankings_that_say_nothing_are_counted(self, caplog):
        caplog.set_level("WARNING")
        rows = [ranking("ab", [0, 0]), ranking("ab"), ranking("a"), ranking("ba")]
        rows = [row | {"ranks": row.get("ranks", list(range(len(row["completions"]))))} for row in rows]
        assert pairs_of(all_pairs(Dataset.from_list(rows))) == ["ab", "ba"]
        assert "2 of 4 rankings give no pair" in caplog.text
        with pytest.raises(ValueError, match="No ranking gives a pair"):
            all_pairs(Dataset.from_list(rows[:1]))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (ranking("ab", [0, -1]), r"`ranks\[1\]` in row 1 is -1"),
            (ranking("ab", [0]), "`ranks` in row 1 has 1 entries"),
        ],
    )
    def test_bad(self, row, message):
        with pytest.raises(ValueError, match=message):
            all_pairs(Dataset.from_list([ranking("ab", [0, 1]), row]))

    def test_pairs_are_no_rankings(self):
        with pytest.raises(ValueError, match="no column `completions`; found chosen, rejected. Expected rankings"):
            all_pairs(Dataset.from_list([{"chosen": "a", "rejected": "b"}]))


def pair_rows(*pairs, prompt: str = "q") -> list[dict]:
    return [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]


class TestPairsToRankings:
    @pytest.mark.parametrize(
        ("pairs", "completions", "ranks"),
        [
            (["ab"], "ab", [0, 1]),
            (["ab", "bc"], "abc", [0, 1, 2]),  # a over c follows
            (["bc", "ab", "ac", "ab"], "abc", [0, 1, 2]),  # said twice
            (["ab", "ac", "ad"], "abcd", [0, 1, 1, 1]),  # one against the rest
            (["ac", "bc"], "abc", [0, 0, 1]),
            (["ac", "ad", "bc", "bd"], "abcd", [0, 0, 1, 1]),
            (["cb", "ba", "dc"], "dcba", [0, 1, 2, 3]),
        ],
    )
    def test_one_order(self, pairs, completions, ranks):
        rankings, report = pairs_to_rankings(Dataset.from_list(pair_rows(*pairs)))
        (row,) = rankings
        order = sorted(zip(row["ranks"], row["completions"], strict=True))
        assert order == list(zip(ranks, completions, strict=True))
        assert row["ranks"] == ranks
        assert (report.rankings, report.cyclic, report.incomplete) == (1, [], [])

    @pytest.mark.parametrize(
        ("pairs", "cyclic", "incomplete"),
        [
            (["ab", "ba"], [[0, 1]], []),  # annotators who disagree
            (["ab", "bc", "ca"], [[0, 1, 2]], []),
            (["xa", "ab", "bc", "ca", "cz"], [[1, 2, 3]], []),  # only the rows on the cycle
            (["ab", "cd"], [], [[0, 1]]),
            (["ab", "bc", "ad"], [], [[0, 1, 2]]),  # d is below a, and open against b and c
        ],
    )
    def test_no_order(self, pairs, cyclic, incomplete, caplog):
        caplog.set_level("WARNING")
        other = pair_rows("ab", prompt="p")
        rankings, report = pairs_to_rankings(Dataset.from_list(pair_rows(*pairs) + other))
        assert rankings.to_list() == [ranking("ab", [0, 1], "p")]
        assert (report.rankings, report.cyclic, report.incomplete) == (1, cyclic, incomplete)
        why = "contradict each other" if cyclic else "do not determine the order"
        first = ", ".join(map(str, (cyclic or incomplete)[0]))
        assert (
            f"pairs of 1 prompts of the train dataset {why}" in caplog.text and f"(first: rows {first})" in caplog.text
        )

    def test_what_has_no_order_may_stay_pairs(self):
        rows = pair_rows("ab", "cd", "ab") + pair_rows("xy", "yz", prompt="p")
        rankings, report = pairs_to_rankings(Dataset.from_list(rows), unordered="pairs")
        assert rankings.to_list() == [
            ranking("ab", [0, 1]),
            ranking("cd", [0, 1]),
            ranking("xyz", [0, 1, 2], "p"),
        ]
        assert (report.rankings, report.incomplete) == (3, [[0, 1, 2]])

    def test_every_ranking_comes_back_from_its_pairs(self):
        # Ties included: all pairs of a ranking say no more than the ranking
        draw = random.Random(0)
        rows = [
            ranking("abcdefg"[:k], sorted(draw.randrange(k) for _ in range(k)), f"prompt {k} {i}")
            for k in range(2, 8)
            for i in range(6)
        ]
        rows = [row for row in rows if len(set(row["ranks"])) > 1]
        prepared, _ = prepare_dataset(Dataset.from_list(rows), tiny_tokenizer())
        pairs = all_pairs(Dataset.from_list(rows)).shuffle(seed=0)
        rankings, report = pairs_to_rankings(pairs)
        assert report.rankings == len(rows)
        found = {row["prompt"]: dict(zip(row["completions"], row["ranks"], strict=True)) for row in rankings}
        assert found == {row["prompt"]: dict(zip(row["completions"], row["ranks"], strict=True)) for row in prepared}

    def test_prompts_in_order_and_tools_apart(self):
        first, second = ({"type": "function", "function": {"name": name}} for name in ("f", "g"))
        rows = [row | {"tools": [tool]} for tool in (second, first) for row in pair_rows("ab", "bc")]
        rankings, _ = pairs_to_rankings(Dataset.from_list(rows))
        assert [row["tools"][0]["function"]["name"] for row in rankings] == ["g", "f"]
        assert [row["completions"] for row in rankings] == [list("abc")] * 2

    def test_messages(self):
        rows = [{"prompt": chat("q", "user"), "chosen": chat(a), "rejected": chat(b)} for a, b in ("bc", "ab")]
        rankings, _ = pairs_to_rankings(Dataset.from_list(rows))
        assert rankings[0]["completions"] == [chat("a"), chat("b"), chat("c")]
        assert prepare_dataset(rankings, tiny_tokenizer())[1].completions == 3

    def test_pairs_that_say_nothing_are_counted(self, caplog):
        caplog.set_level("WARNING")
        _, report = pairs_to_rankings(Dataset.from_list(pair_rows("ab", "aa", "bb")))
        assert (report.dropped, report.first_dropped) == (2, "row 1, both answers are the same")
        assert "2 pairs of the train dataset are dropped (first: row 1, both answers are the same)" in caplog.text

    def test_nothing_left(self):
        with pytest.raises(
            ValueError, match="No pairs of the train dataset .*: 0 pairs .* 1 prompts contradict each other"
        ):
            pairs_to_rankings(Dataset.from_list(pair_rows("ab", "ba")))

    def test_bad(self):
        rows = Dataset.from_list(pair_rows("ab"))
        with pytest.raises(ValueError, match="no column `prompt` .*`dataset.map"):
            pairs_to_rankings(rows.remove_columns("prompt"))
        with pytest.raises(ValueError, match="`streaming=True`"):
            pairs_to_rankings(rows.to_iterable_dataset())
        with pytest.raises(ValueError, match="`unordered='keep'` does not exist"):
            pairs_to_rankings(rows, unordered="keep")
        with pytest.raises(ValueError, match="`chosen` in row 0 of the eval dataset is None"):
            pairs_to_rankings(
                Dataset.from_list([{"prompt": "q", "chosen": None, "rejected": "b"}]), dataset_name="eval"
            )
