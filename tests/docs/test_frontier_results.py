"""The frontiers that are committed in `recipes/frontier/results`: what must hold of each, whatever the seed."""

import json
import math
from pathlib import Path

import pytest

from trl_dpo_ext.frontier.statements import statements
from trl_dpo_ext.frontier.table import BEST_OF_N, OPTIMUM, SFT, Point, last_points, read_table


RESULTS = Path(__file__).parents[2] / "recipes" / "frontier" / "results"
TABLES = sorted(RESULTS.glob("synthetic*.csv"))


@pytest.fixture(params=TABLES, ids=lambda path: path.stem)
def table(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def points(table: Path) -> list[Point]:
    return read_table(table)


def ends(points: list[Point], method: str) -> dict[str, Point]:
    """Last points of the runs of a method with the first seed, by their setting."""
    return {point.knob: point for point in last_points(points) if point.method == method and point.seed == 0}


def runs(points: list[Point], method: str, knob: str) -> list[Point]:
    return [point for point in points if (point.method, point.knob, point.seed) == (method, knob, 0)]


def initial(points: list[Point]) -> Point:
    [point] = [point for point in points if point.method == SFT]
    return point


def optimal_reward(points: list[Point], kl: float) -> float:
    """Reward of the estimated optimum at a KL, between two of its points."""
    optimum = [initial(points), *(point for point in points if point.method == OPTIMUM)]
    above = next(i for i, point in enumerate(optimum) if point.kl >= kl)
    low, high = optimum[above - 1], optimum[above]
    return low.reward + (kl - low.kl) / (high.kl - low.kl) * (high.reward - low.reward)


def test_a_table_of_each_seed():
    assert [path.stem for path in TABLES] == ["synthetic", "synthetic_seed1"]


def test_kl_falls_with_beta_and_rises_with_alpha(points):
    for method in ("DPO", "Ranking-DPO"):
        kls = [ends(points, method)[f"beta={beta}"].kl for beta in ("0.05", "0.1", "1", "5")]
        assert kls == sorted(kls, reverse=True)
    alphas = [ends(points, "Unlikelihood")[f"alpha={alpha}"].kl for alpha in ("0.05", "0.1", "0.5", "1")]
    assert alphas == sorted(alphas)


def test_dpo_at_beta_1(points):
    end, start = ends(points, "DPO")["beta=1"], initial(points)
    assert end.kl < 1 and end.reward - start.reward > 0.12
    assert end.reward - start.reward > 0.7 * (optimal_reward(points, end.kl) - start.reward)


def test_unlikelihood_without_a_bound_leaves_the_language(points):
    path = runs(points, "Unlikelihood", "alpha=1")
    assert path[-1].kl > 5 and path[-1].new_words > 2 * initial(points).new_words
    assert max(point.reward for point in path) > path[-1].reward


def test_preferred_ft_gains_little(points):
    gained = [end.reward - initial(points).reward for end in ends(points, "Preferred-FT").values()]
    assert gained and all(0 < gain < 0.12 for gain in gained)


def test_nothing_lies_above_the_optimum(points):
    largest = max(point.kl for point in points if point.method == OPTIMUM)
    compared = [point for point in points if point.method not in (SFT, BEST_OF_N, OPTIMUM) and point.kl < largest]
    assert len(compared) > 10
    for point in compared:
        assert point.reward - 3 * point.reward_se < optimal_reward(points, point.kl)


def test_both_estimates_of_the_kl_agree(points):
    for point in points:
        if point.method not in (SFT, BEST_OF_N, OPTIMUM):
            # The standard error of the estimate by log-ratios is two to seven times that of the exact one
            assert abs(point.kl - point.kl_k1) < 4 * 7 * point.kl_se + 0.02 * point.kl


def test_what_is_written_is_what_the_table_shows(table, points):
    written = json.loads(table.with_suffix(".json").read_text())
    assert written["statements"] == statements(points)
    assert all(run["state"] == "done" for run in written["runs"]) and written["machine"]
    assert table.with_suffix(".png").stat().st_size > 50_000


def test_reinforcement_learning_at_kl_targets(points):
    for target in (3, 6, 9, 12):
        for method in ("PPO, true reward", "PPO, reward model"):
            found = ends(points, method).get(f"kl_target={target}")
            if found is not None:
                assert math.isfinite(found.kl) and found.kl > 1
