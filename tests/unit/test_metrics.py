"""The metrics of preferences against scipy, scikit-learn and loops."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, pearsonr
from sklearn.calibration import calibration_curve

from trl_dpo_ext.metrics.calibration import calibration_error, calibration_sums, reliability
from trl_dpo_ext.metrics.comparisons import comparison_sums, pairs_of_ranking
from trl_dpo_ext.metrics.correlation import within_group_correlation_sums
from trl_dpo_ext.metrics.divergence import token_kl
from trl_dpo_ext.metrics.rankings import best_and_worst_means, kendall_tau_b
from trl_dpo_ext.metrics.sums import results


def rankings(rows: int = 40, places: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rankings with ties and absent completions; rewards and lengths have ties, too."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, places + 1, size=rows)
    mask = np.arange(places) < sizes[:, None]
    ranks = np.sort(rng.integers(0, 4, size=(rows, places)), axis=1)
    ranks -= ranks[:, :1]
    return {
        "rewards": np.round(rng.normal(size=(rows, places)), 1),
        "lengths": rng.integers(1, 9, size=(rows, places)).astype(float),
        "ranks": np.where(mask, ranks, -1),
        "mask": mask,
        "weights": rng.integers(0, 3, size=rows).astype(float),
    }


def tensors(data: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in data.items()}


class TestCalibration:
    @pytest.mark.parametrize("bins", [5, 10, 15])
    def test_against_scikit_learn(self, bins):
        rng = np.random.default_rng(bins)
        margins = rng.normal(scale=2, size=500)
        confidence, right = 1 / (1 + np.exp(-abs(margins))), margins > 0
        # Of [0, 1] the upper half holds all confidences
        accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=2 * bins)
        counts = np.histogram(confidence, bins=np.linspace(0, 1, 2 * bins + 1))[0]
        expected = np.average(abs(accuracy - mean_confidence), weights=counts[counts > 0])
        assert calibration_error(torch.tensor(margins), bins=bins) == pytest.approx(expected, rel=1e-12)

        points = reliability(calibration_sums(torch.tensor(margins), torch.ones(500), bins))
        there = [count > 0 for count in points.counts]
        assert points.edges == pytest.approx(np.linspace(0.5, 1, bins + 1))
        assert [c for c in points.counts if c] == counts[counts > 0].tolist()
        assert np.array(points.accuracy)[there] == pytest.approx(accuracy, rel=1e-12)
        assert np.array(points.confidence)[there] == pytest.approx(mean_confidence, rel=1e-12)

    def test_rewards_that_are_right_as_often_as_they_say(self):
        rng = np.random.default_rng(0)
        strength = rng.normal(size=200_000)
        preferred = rng.random(200_000) < 1 / (1 + np.exp(-strength))  # Bradley-Terry
        margins = torch.tensor(np.where(preferred, strength, -strength))
        assert calibration_error(margins) < 0.01
        assert calibration_error(3 * margins) > 0.1  # the same accuracy, too sure

    def test_equal_rewards_are_calibrated(self):
        assert calibration_error(torch.zeros(7)) == 0

    def test_without_a_pair(self):
        assert math.isnan(calibration_error(torch.zeros(0)))
        assert all(
            math.isnan(share) for share in reliability(calibration_sums(torch.zeros(0), torch.zeros(0))).accuracy
        )

    def test_saturated_rewards(self):
        assert calibration_error(torch.tensor([1e4, 1e4, 1e4, -1e4])) == pytest.approx(0.25)


class TestCorrelation:
    def test_against_scipy(self):
        data = rankings()
        x, y = [], []
        for b, weight in enumerate(data["weights"]):
            there = data["mask"][b]
            for _ in range(int(weight)):  # a weight of two is the row twice
                x += (data["rewards"][b][there] - data["rewards"][b][there].mean()).tolist()
                y += (data["lengths"][b][there] - data["lengths"][b][there].mean()).tolist()
        given = tensors(data)
        sums = within_group_correlation_sums(given["rewards"], given["lengths"], given["mask"], given["weights"])
        assert sums.result() == pytest.approx(pearsonr(x, y).statistic, rel=1e-12)

    def test_prompts_of_other_levels_change_nothing(self):
        given = tensors(rankings())
        levels = 1000.0 * torch.arange(len(given["rewards"]))[:, None]
        found = [
            within_group_correlation_sums(rewards, given["lengths"], given["mask"], given["weights"]).result()
            for rewards in (given["rewards"], given["rewards"] + levels)
        ]
        assert found[1] == pytest.approx(found[0], rel=1e-9)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_reward_that_is_the_length(self, sign):
        lengths = torch.tensor([[3.0, 5.0], [9.0, 1.0]])
        everywhere = torch.ones(2, 2, dtype=torch.bool)
        assert within_group_correlation_sums(sign * lengths, lengths, everywhere, torch.ones(2)).result() == sign

    def test_without_variation_there_is_none(self):
        everywhere = torch.ones(2, 2, dtype=torch.bool)
        sums = within_group_correlation_sums(torch.randn(2, 2), torch.ones(2, 2), everywhere, torch.ones(2))
        assert math.isnan(sums.result())


class TestComparisons:
    def test_rankings_against_a_loop(self):
        data = rankings()
        found = {name: [] for name in ("accuracies", "accuracies_from_length", "gradient_weight")}
        for b, weight in enumerate(data["weights"]):
            pairs = [
                (data["rewards"][b, i] - data["rewards"][b, j], data["lengths"][b, i] - data["lengths"][b, j])
                for i in range(6)
                for j in range(6)
                if data["mask"][b, i] and data["mask"][b, j] and data["ranks"][b, i] < data["ranks"][b, j]
            ]
            if not pairs:
                continue
            margins, longer = map(np.array, zip(*pairs, strict=True))
            for name, values in (
                ("accuracies", margins > 0),
                ("accuracies_from_length", (np.sign(longer) + 1) / 2),
                ("gradient_weight", 1 / (1 + np.exp(margins))),
            ):
                found[name].append((np.mean(values), weight))
        sums = results(comparison_sums(pairs_of_ranking(**tensors(data))))
        for name, rows in found.items():
            values, weights = zip(*rows, strict=True)
            assert sums[f"rewards/{name}"] == pytest.approx(np.average(values, weights=weights), rel=1e-12)

    def test_rows_and_columns_in_any_order(self):
        data = rankings()
        expected = results(comparison_sums(pairs_of_ranking(**tensors(data))))
        rng = np.random.default_rng(1)
        rows, columns = rng.permutation(40), rng.permutation(6)
        shuffled = {
            name: values[rows] if values.ndim == 1 else values[rows][:, columns] for name, values in data.items()
        }
        assert results(comparison_sums(pairs_of_ranking(**tensors(shuffled)))) == pytest.approx(expected, rel=1e-12)


class TestKendall:
    def test_against_scipy(self):
        data = rankings(rows=200)
        given = tensors(data)
        found = kendall_tau_b(given["rewards"], given["ranks"], given["mask"]).tolist()
        for b, tau in enumerate(found):
            there = data["mask"][b]
            expected = kendalltau(data["rewards"][b][there], -data["ranks"][b][there]).statistic
            assert tau == pytest.approx(0 if np.isnan(expected) else expected, abs=1e-12)


class TestBestAndWorst:
    @pytest.mark.parametrize("unranked", [False, True])
    def test_against_a_loop(self, unranked):
        data = rankings(rows=200)
        ranks = data["ranks"] + 2.0  # the best need not be 0
        if unranked:
            ranks[data["ranks"] == 3] = np.inf
        best, worst = best_and_worst_means(
            torch.tensor(data["rewards"]), torch.tensor(ranks), torch.tensor(data["mask"])
        )
        for b, there in enumerate(data["mask"]):
            rewards, places = data["rewards"][b][there], ranks[b][there]
            assert best[b] == pytest.approx(np.mean(rewards[places == min(places)]), rel=1e-12)
            assert worst[b] == pytest.approx(np.mean(rewards[places == max(places)]), rel=1e-12)

    def test_a_row_without_a_completion(self):
        mask = torch.tensor([[True, True, True], [False, False, False]])
        values, ranks = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]), torch.tensor([[1, 0, 1], [-1, -1, -1]])
        best, worst = best_and_worst_means(values, ranks, mask)
        assert (best.tolist(), worst.tolist()) == ([2.0, 0.0], [3.5, 0.0])


class TestTokenKL:
    def test_its_mean_under_the_reference_is_the_divergence(self):
        torch.manual_seed(0)
        policy, reference = torch.randn(2, 50, dtype=torch.float64).log_softmax(dim=-1)
        mean = (reference.exp() * token_kl(policy, reference)).sum()
        torch.testing.assert_close(mean, (reference.exp() * (reference - policy)).sum(), rtol=1e-12, atol=0)

    def test_it_is_never_negative_and_0_where_both_agree(self):
        logps = -10 * torch.rand(1000)
        assert (token_kl(logps, -10 * torch.rand(1000)) >= 0).all()
        assert token_kl(logps, logps).eq(0).all()

    def test_it_keeps_no_graph(self):
        assert not token_kl(torch.zeros(3, requires_grad=True), torch.zeros(3)).requires_grad
