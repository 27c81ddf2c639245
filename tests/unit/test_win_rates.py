"""Win rates from verdicts: values by hand, coverage of the intervals, and the regression on lengths."""

import math

import numpy as np
import pytest
from closeness import same
from statsmodels.api import GLM, families

from trl_dpo_ext.evaluation.judging.asking import new_verdict, orders_of
from trl_dpo_ext.evaluation.judging.comparisons import Comparison
from trl_dpo_ext.evaluation.judging.judge_prompts import preference_of
from trl_dpo_ext.evaluation.judging.judges import Answer
from trl_dpo_ext.evaluation.judging.length_control import length_controlled
from trl_dpo_ext.evaluation.judging.verdicts import RaterIdentity, Verdict
from trl_dpo_ext.evaluation.judging.win_rates import JudgedComparisons, paired_win_rates


JUDGE = RaterIdentity("judge", "judge")
T_975_3 = 3.182446305284263  # quantile 0.975 of the t distribution with 3 degrees of freedom


def judged(*items: tuple[str, str], samples: dict[str, int] | None = None) -> JudgedComparisons:
    """Comparisons, each with a prompt and its verdicts in turn in the orders ab and ba: a, b, t(ie), u(nparsable)."""
    comparisons, verdicts = [], []
    for number, (prompt, letters) in enumerate(items):
        comparison = Comparison(prompt, f"policy {number}", f"baseline {number}")
        comparisons.append(comparison)
        verdicts.append(
            [verdict(comparison, letter, order) for letter, order in zip(letters, ("ab", "ba"), strict=False)]
        )
    return JudgedComparisons(comparisons, verdicts)


def verdict(comparison: Comparison, letter: str, order: str) -> Verdict:
    if letter == "f":
        return new_verdict(comparison, JUDGE, order, Answer(None, "broken"))
    preferred = {"a": "AB"[order == "ba"], "b": "BA"[order == "ba"], "t": "tie"}.get(letter, "?")
    found = new_verdict(comparison, JUDGE, order, Answer(f"Preferred: {preferred}"))
    assert found.verdict == {"t": "tie", "u": "unparsable"}.get(letter, letter)
    return found


def test_a_summary_by_hand():
    # Two comparisons of prompt 1. The scores of the prompts are 7 / 8, 0, 1/2 and 1
    found = judged(("1", "aa"), ("1", "at"), ("2", "bb"), ("3", "ab"), ("4", "au"), ("5", "uf")).summary()
    scores = [7 / 8, 0, 1 / 2, 1]
    mean = sum(scores) / 4
    se = math.sqrt(sum((score - mean) ** 2 for score in scores) / 3 / 4)
    assert found["win_rate"] == same(mean) and found["win_rate_se"] == same(se)
    assert found["win_rate_low"] == same(max(0, mean - T_975_3 * se)) and found["win_rate_high"] == same(1)
    low, high = found["win_rate_bounds"]
    assert low == same((7 / 8 + 0 + 1 / 2 + 1 / 2 + 0) / 5) and high == same((7 / 8 + 0 + 1 / 2 + 1 + 1) / 5)
    counts = ("num_items", "num_prompts", "num_verdicts", "consistent_wins", "consistent_losses", "ties", "flips")
    assert [found[name] for name in counts] == [6, 5, 12, 1, 1, 0, 2]
    assert [found[name] for name in ("incomplete", "unparsable", "failed")] == [2, 2, 1]
    # The first position: prompt 1 a (yes), a in ba (no), a (yes); 2: no, yes; 3: yes, yes; 4: yes
    shares = [2 / 3, 1 / 2, 1, 1]
    assert found["first_position_rate"] == same(sum(shares) / 4)
    assert math.isnan(found["length_controlled_win_rate"])
    assert found["length_controlled_note"] == "fewer than 30 prompts"


def test_without_a_verdict():
    found = judged(("1", "uu"), ("2", "")).summary()
    assert math.isnan(found["win_rate"]) and math.isnan(found["first_position_rate"])
    assert found["win_rate_bounds"] == [0, 1] and found["incomplete"] == 2


def test_paired_difference_by_hand():
    first = judged(("1", "aa"), ("2", "ab"), ("3", "uu"), ("4", "bb"))
    second = judged(("4", "bb"), ("1", "bb"), ("2", "tt"), ("3", "aa"))
    mean, se, low, high = paired_win_rates(first, second)  # differences 1, 0, 0
    assert mean == same(1 / 3) and se == same(math.sqrt((4 / 9 + 1 / 9 + 1 / 9) / 2 / 3))
    assert (low, high) == (-1, 1)  # 1 / 3 -+ 4.3 * se


def simulated(generator: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two orders of each of `num` prompts: half of the prompts are decided alike in both."""
    quality = generator.beta(2, 1.5, num)
    alike = generator.random(num) < 0.5
    first, second = generator.random((2, num)) < quality
    return first, np.where(alike, first, second)


def test_coverage_of_the_interval():
    generator, num, runs, truth = np.random.default_rng(1), 150, 400, 2 / 3.5
    names = [str(i) for i in range(num)]
    comparisons = [Comparison(name, "p", "b") for name in names]
    lines = {
        letter + order: [verdict(one, letter, order) for one in comparisons]
        for letter in "ab"
        for order in ("ab", "ba")
    }
    covered = independent = 0
    for _ in range(runs):
        first, second = simulated(generator, num)
        verdicts = [
            [lines["ba"[int(a)] + "ab"][i], lines["ba"[int(b)] + "ba"][i]]
            for i, (a, b) in enumerate(zip(first, second, strict=True))
        ]
        found = JudgedComparisons(comparisons, verdicts).summary()
        covered += found["win_rate_low"] <= truth <= found["win_rate_high"]
        both = np.concatenate([first, second])
        independent += abs(both.mean() - truth) <= 1.96 * both.std(ddof=1) / len(both) ** 0.5
    assert 0.93 <= covered / runs <= 0.97
    assert independent / runs < 0.91  # had the two orders been taken as independent


def of_lengths(generator: np.random.Generator, num: int, alpha: float, beta: float):
    """Scores of two comparisons of each prompt, by their lengths, which are drawn alike in half of the prompts."""
    differences = generator.normal(30, 60, 2 * num).round()
    design = np.tanh(differences / differences.std())
    chance = 1 / (1 + np.exp(-alpha - beta * design))
    drawn = generator.random((num, 2))
    alike = generator.random(num) < 0.5
    drawn[alike, 1] = drawn[alike, 0]
    return (drawn.ravel() < chance).astype(float), differences, [str(i // 2) for i in range(2 * num)]


def test_coverage_at_equal_length():
    generator, alpha, runs = np.random.default_rng(2), 0.3, 1000
    truth, covered, rates = 1 / (1 + math.exp(-alpha)), 0, []
    for _ in range(runs):
        scores, differences, prompts = of_lengths(generator, 150, alpha, 1.2)
        found = length_controlled(scores, differences, prompts)
        covered += found["length_controlled_win_rate_low"] <= truth <= found["length_controlled_win_rate_high"]
        rates.append(found["length_controlled_win_rate"])
    assert 0.93 <= covered / runs <= 0.97
    assert abs(np.mean(rates) - truth) < 4 * np.std(rates) / runs**0.5
    assert scores.mean() > truth + 0.05  # the raw rate is that of longer completions


def test_the_regression_is_that_of_statsmodels():
    scores, differences, prompts = of_lengths(np.random.default_rng(3), 60, 0.1, 0.8)
    design = np.column_stack([np.ones(120), np.tanh(differences / differences.std())])
    groups = np.repeat(range(60), 2)
    fit = GLM(scores, design, family=families.Binomial()).fit(cov_type="cluster", cov_kwds={"groups": groups})
    found = length_controlled(scores, differences, prompts)
    rate = 1 / (1 + math.exp(-fit.params[0]))
    assert found["length_controlled_win_rate"] == same(rate)
    assert found["length_controlled_win_rate_se"] == same(rate * (1 - rate) * fit.bse[0])
    low, high = (1 / (1 + math.exp(-fit.params[0] - sign * 1.96 * fit.bse[0])) for sign in (-1, 1))
    assert found["length_controlled_win_rate_low"] == same(low)
    assert found["length_controlled_win_rate_high"] == same(high)


@pytest.mark.parametrize(
    ("scores", "differences", "note"),
    [
        (np.tile([1.0, 0.0], 10), np.arange(20.0), "fewer than 30 prompts"),
        (np.tile([1.0, 0.0], 20), np.full(40, 7.0), "the difference of lengths is always the same"),
        (np.ones(40), np.arange(40.0), "the lengths, or the policy, decide all comparisons"),
        ((np.arange(-20, 20) >= 0) * 1.0, np.arange(-20.0, 20.0), "the lengths, or the policy, decide all"),
    ],
)
def test_no_number_where_there_is_none(scores, differences, note):
    found = length_controlled(scores, differences, [str(i) for i in range(len(scores))])
    assert math.isnan(found["length_controlled_win_rate"]) and found["length_controlled_note"].startswith(note)


@pytest.mark.parametrize(
    ("answer", "preferred"),
    [
        ("Preferred: A", "A"),
        ("A is short.\nPreferred: B\n\n", "B"),
        ("**Preferred: A**", "A"),
        ("**Preferred:** B.", "B"),
        ("> preferred : tie", "tie"),
        ("`Preferred: a`", "A"),
        ("Preferred: TIE", "tie"),
        ("Preferred: A or B", None),
        ("Preferred: C", None),
        ("Preferred: A\nBut B is fine, too.", None),
        ("My answer is Preferred: A", None),
        ("A", None),
        ("Preferred:\nA", None),
        ("", None),
        (" \n ", None),
    ],
)
def test_answers(answer, preferred):
    assert preference_of(answer) == preferred


def test_random_orders_are_fair_and_depend_on_the_seed():
    comparisons = [Comparison(f"question {i}", "a", "b") for i in range(400)]
    first, second = ([orders_of(one, "random", seed)[0] for one in comparisons] for seed in (0, 1))
    assert abs(first.count("ab") - 200) < 4 * 10 and first == [orders_of(one, "random", 0)[0] for one in comparisons]
    assert abs(sum(a == b for a, b in zip(first, second, strict=True)) - 200) < 4 * 10
