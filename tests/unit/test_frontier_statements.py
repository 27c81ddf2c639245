"""What a frontier says of its table: values between runs, differences beyond two standard errors, and costs."""

import math

import numpy as np
import pytest
import torch
from closeness import same

from trl_dpo_ext.frontier.prefixes import beginnings
from trl_dpo_ext.frontier.reference_points import optimum
from trl_dpo_ext.frontier.statements import at_kl, costs, statements
from trl_dpo_ext.frontier.table import SFT, Point, last_points, read_table, write_table
from trl_dpo_ext.theory import optimal_policy


def point(method: str, reward: float, kl: float, se: float = 0.01, **more) -> Point:
    cost = {"wall_s": 10.0, "samples_drawn": 100, "reward_calls": 100}
    values = {"knob": "", "seed": 0, "update": 10, "kl_se": 0.0, "kl_k1": kl, "finished_share": 1.0}
    values |= {"mean_length": 20.0, "new_words": 0.0, **cost, **more}
    return Point(method=method, reward=reward, reward_se=se, kl=kl, **values)


def test_reward_between_two_runs():
    ends = [point("DPO", 0.6, 0.5, 0.03, knob="a"), point("DPO", 0.8, 1.5, 0.04, knob="b")]
    assert at_kl(ends, 1.0) == (same(0.7), same(0.5 * math.hypot(0.03, 0.04)))
    assert at_kl(ends, 0.75) == (same(0.65), same(math.hypot(0.75 * 0.03, 0.25 * 0.04)))
    assert at_kl(ends, 0.5) == (same(0.6), same(0.03))
    assert at_kl(ends, 0.4) is None and at_kl(ends, 1.6) is None


def compared(difference: float, se: float) -> str:
    """What is said of two methods at 1 nat whose rewards differ by `difference`."""
    rows = [
        point(name, 0.5 + shift, kl, se, knob=str(kl))
        for name, shift in (("DPO", difference), ("RLOO", 0.0))
        for kl in (0.9, 1.1)
    ]
    [line] = [line for line in statements(rows) if "at equal KL" in line]
    return line


def test_an_order_is_claimed_beyond_two_standard_errors_only():
    # The standard error of each at 1 nat is 0.01 / sqrt(2), and of their difference 0.01
    assert "DPO is better by 0.021 +- 0.010" in compared(0.021, 0.01)
    assert "RLOO is better by 0.021" in compared(-0.021, 0.01)
    for difference in (0.019, -0.019, 0.0):
        assert "they cannot be told apart" in compared(difference, 0.01) and "better" not in compared(difference, 0.01)


def test_what_is_said_of_chance():
    # Methods with the same true reward: an order is claimed in about 5 % of the comparisons
    generator, claimed, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        noise = generator.normal(0, 0.01, 4)
        rows = [
            point(name, 0.5 + noise[2 * i + j], kl, 0.01, knob=str(kl))
            for i, name in enumerate(("DPO", "RLOO"))
            for j, kl in enumerate((0.9, 1.1))
        ]
        claimed += any("is better" in line for line in statements(rows))
    assert claimed / runs < 0.046 + 4 * (0.046 * 0.954 / runs) ** 0.5


def test_seeds_are_named():
    rows = [point("DPO", reward, 1.0, knob="beta=1", seed=seed) for seed, reward in enumerate((0.70, 0.72, 0.69))]
    lines = statements(rows)
    assert "DPO: 3 runs, which end at a reward of 0.690 to 0.720 and a KL of 1.00 nats." in lines
    assert any("3 seeds of DPO with beta=1 differ by 0.030 in reward" in line for line in lines)


def test_costs_at_a_reward_that_all_reach():
    rows = [
        point(SFT, 0.5, 0.0, update=0, samples_drawn=0),
        point("DPO", 0.6, 0.4, knob="beta=1", update=50, samples_drawn=8000, reward_calls=8000, wall_s=5),
        point("DPO", 0.66, 0.8, knob="beta=1", update=100, samples_drawn=8000, reward_calls=8000, wall_s=9),
        point("RLOO", 0.64, 0.7, knob="beta=0.1", update=50, samples_drawn=6400, reward_calls=6400, wall_s=30),
        point("RLOO", 0.72, 1.2, knob="beta=0.1", update=100, samples_drawn=12800, reward_calls=12800, wall_s=60),
        point("Preferred-FT", 0.51, 0.1),  # gains less than two standard errors
    ]
    assert costs(rows) == [
        "To a reward of 0.660, which all of these reach:",
        "DPO (beta=1, update 100): 8,000 samples, 8,000 true rewards, 9 s of training, at KL 0.80.",
        "RLOO (beta=0.1, update 100): 12,800 samples, 12,800 true rewards, 60 s of training, at KL 1.20.",
    ]
    assert costs(rows[:3]) == []


@pytest.mark.parametrize("beta", [1.0, 10**0.5])
def test_the_optimum_is_that_of_eq_4_where_samples_are_all_completions(beta):
    rewards = np.random.default_rng(0).random((3, 64))
    uniform = torch.full((3, 64), -math.log(64), dtype=torch.float64)
    policy = optimal_policy(uniform, torch.from_numpy(rewards), beta=beta)  # (3, 64), log-probabilities
    [(_, found_reward, found_kl)] = [found for found in optimum(rewards) if found[0] == pytest.approx(beta)]
    assert found_reward[0] == same(float((policy.exp() * torch.from_numpy(rewards)).sum(1).mean()))
    assert found_kl[0] == same(float((policy.exp() * (policy - uniform)).sum(1).mean()))


def test_the_optimum_ends_where_few_samples_have_all_the_weight():
    rewards = np.random.default_rng(0).random((50, 64))
    for beta, _, (kl, _) in optimum(rewards):
        weights = np.exp(rewards / beta) / np.exp(rewards / beta).sum(1, keepdims=True)
        assert (1 / (weights**2).sum(1)).mean() >= 8 and kl < math.log(64 / 8) + 0.5
    assert beta < 0.3


def test_table_goes_round(tmp_path):
    rows = [point("DPO", 1 / 3, 2.0, knob="beta=0.1", update=50), point("Best of N", 0.5, 0.19, new_words=math.nan)]
    write_table(tmp_path / "frontier.csv", rows)
    assert "nan" not in (tmp_path / "frontier.csv").read_text()
    first, second = read_table(tmp_path / "frontier.csv")
    assert first.reward == 0.333333 and first.update == 50 and math.isnan(second.new_words)
    assert last_points([rows[0], point("DPO", 0.4, 2.1, knob="beta=0.1", update=100)])[0].reward == 0.4


def test_beginnings_end_with_a_word():
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    texts = ["The film was good and warm.", "The film was bad."]
    found = beginnings(texts, tokenizer, (2, 20), seed=0)
    assert len(found) == len(set(found)) and set(found) > {"The film", "The film was"}
    for prefix in found:
        text = next(text for text in texts if text.startswith(prefix))
        assert text[len(prefix)] == " " and 2 <= len(tokenizer(prefix)["input_ids"]) <= 20
    assert beginnings(texts, tokenizer, (2, 20), seed=1) != found and sorted(
        beginnings(texts, tokenizer, (2, 20), seed=1)
    ) == sorted(found)
