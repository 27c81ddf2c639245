"""`pair_sums` against a loop over rows and tokens."""

import math

import numpy as np
import pytest
import torch
from closeness import same
from scipy.stats import pearsonr
from torch import Tensor

from trl_dpo_ext.logps import CompletionLogps
from trl_dpo_ext.metrics.sums import results
from trl_dpo_ext.trainers.pair_figures import pair_distributions, pair_sums
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


pytestmark = pytest.mark.usefixtures("float64")

ROWS, TOKENS = 5, 7


def random_batch(weights: list[float], aux_loss: float | None = None, reference: bool = True) -> ScoredBatch:
    """A batch of random figures; its completions have 0 to 7 tokens."""
    rng = np.random.default_rng(1)

    def random(*shape: int) -> Tensor:
        return torch.tensor(rng.normal(size=shape), dtype=torch.float64)

    mask = torch.tensor(rng.integers(0, TOKENS + 1, size=2 * ROWS))[:, None] > torch.arange(TOKENS)
    policy = CompletionLogps(
        logps=random(2 * ROWS),
        token_logps=random(2 * ROWS, TOKENS) * mask,
        mask=mask,
        entropy=random(2 * ROWS, TOKENS) * mask,
        mean_logits=random(2 * ROWS, TOKENS) * mask,
        is_top1=(random(2 * ROWS, TOKENS) > 0) & mask,
        aux_loss=None if aux_loss is None else torch.tensor(aux_loss),
    )
    rewards = random(ROWS, 2)
    rewards[1] = 0.5  # a tie is no success
    return ScoredBatch(
        losses=random(ROWS).requires_grad_(),
        rewards=rewards,
        ref_logps=random(ROWS, 2) if reference else None,
        policy=policy,
        weights=torch.tensor(weights),
        ref_token_logps=random(2 * ROWS, TOKENS) * mask if reference else None,
    )


def by_loop(batch: ScoredBatch) -> dict[str, float]:
    """The means of the rows of weight 1, one at a time."""
    found: dict[str, list[float]] = {}
    policy = batch.policy
    # Of the whole, not means: confidences and whether they are right; rewards and lengths around their pair's mean
    confidences, right, rewards, lengths = [], [], [], []

    def note(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value.detach().item())

    for row in range(ROWS):
        if not batch.weights[row]:
            continue
        chosen, rejected = row, ROWS + row  # stacked: all chosen, then all rejected
        note("loss", batch.losses[row])
        note("rewards/chosen", batch.rewards[row, 0])
        note("rewards/rejected", batch.rewards[row, 1])
        note("rewards/accuracies", batch.rewards[row, 0] > batch.rewards[row, 1])
        note("rewards/margins", batch.rewards[row, 0] - batch.rewards[row, 1])
        note("logps/chosen", policy.logps[chosen])
        note("logps/rejected", policy.logps[rejected])
        margin = (batch.rewards[row, 0] - batch.rewards[row, 1]).item()
        longer = (policy.mask[chosen].sum() - policy.mask[rejected].sum()).item()
        weight = 1 / (1 + math.exp(margin))
        found.setdefault("rewards/gradient_weight", []).append(weight)
        found.setdefault("rewards/gradient_weight_near_0", []).append(weight < 0.05)
        found.setdefault("rewards/accuracies_from_length", []).append(1 if longer > 0 else 0.5 if longer == 0 else 0)
        confidences.append(max(weight, 1 - weight))
        right.append(1 if margin > 0 else 0.5 if margin == 0 else 0)
        rewards += [margin / 2, -margin / 2]
        lengths += [longer / 2, -longer / 2]
        if batch.ref_logps is not None:
            note("logps/chosen_drift", policy.logps[chosen] - batch.ref_logps[row, 0])
            note("logps/rejected_drift", policy.logps[rejected] - batch.ref_logps[row, 1])
        if policy.aux_loss is not None:
            note("aux_loss", policy.aux_loss)
        for side, completion in (("chosen", chosen), ("rejected", rejected)):
            for token in range(TOKENS):
                if policy.mask[completion, token]:
                    note("entropy", policy.entropy[completion, token])
                    if batch.ref_token_logps is not None:
                        gap = (policy.token_logps - batch.ref_token_logps)[completion, token].item()
                        found.setdefault("kl_per_token", []).append(math.exp(gap) - 1 - gap)
                    note(f"logits/{side}", policy.mean_logits[completion, token])
                    if side == "chosen":
                        note("mean_token_accuracy", policy.is_top1[completion, token])
    means = {name: float(np.mean(values)) for name, values in found.items()}
    bins = np.digitize(confidences, np.linspace(0.5, 1, 11)[1:-1])
    gaps = [abs(np.sum((np.array(right) - confidences)[bins == b])) for b in range(10)]
    means["rewards/calibration_error"] = sum(gaps) / len(confidences)
    if len(set(lengths)) > 1:
        means["rewards/length_correlation"] = pearsonr(rewards, lengths).statistic
    return means


class TestPairSums:
    @pytest.mark.parametrize(
        "weights", [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], ids=["all", "three", "one"]
    )
    @pytest.mark.parametrize("aux_loss", [None, 0.25], ids=["dense", "moe"])
    def test_against_a_loop(self, weights, aux_loss):
        batch = random_batch([float(weight) for weight in weights], aux_loss)
        expected = by_loop(batch)
        means = results(pair_sums(batch))
        assert means.keys() == expected.keys()
        assert ("aux_loss" in means) == (aux_loss is not None)
        for name, value in expected.items():
            assert means[name] == same(value), name

    def test_a_repeated_row_of_weight_0_changes_nothing(self):
        real, repeated = random_batch([1.0, 1.0, 1.0, 1.0, 0.0]), random_batch([1.0, 1.0, 1.0, 1.0, 0.0])
        repeated.rewards[4] += 100.0
        repeated.policy.logps[[4, 9]] -= 100.0
        repeated.policy.entropy[[4, 9]] += 100.0
        repeated.policy.token_logps[[4, 9]] += 1.0
        for name, sums in pair_sums(real).items():
            assert torch.equal(sums.values, pair_sums(repeated)[name].values), name

    def test_no_real_row(self):
        sums = pair_sums(random_batch([0.0] * ROWS))
        assert sums  # a process without rows takes part in the collective
        assert results(sums) == {}

    def test_batches_add_up(self):
        whole, first, second = (random_batch([float(w) for w in weights]) for weights in ("11111", "11000", "00111"))
        added = {name: sums + pair_sums(second)[name] for name, sums in pair_sums(first).items()}
        expected = results(pair_sums(whole))
        assert results(added) == same(expected)
        # A correlation is not the mean of the batches' correlations
        parts = [results(pair_sums(batch))["rewards/length_correlation"] for batch in (first, second)]
        assert abs(np.mean(parts) - expected["rewards/length_correlation"]) > 0.01

    def test_names(self):
        with_reference = {"logps/chosen_drift", "logps/rejected_drift", "kl_per_token"}
        trls = {
            "loss",
            *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")),
            *(f"logps/{name}" for name in ("chosen", "rejected")),
            *(f"logits/{name}" for name in ("chosen", "rejected")),
            "entropy",
            "mean_token_accuracy",
        }
        more = {
            "rewards/accuracies_from_length",
            "rewards/calibration_error",
            "rewards/gradient_weight",
            "rewards/gradient_weight_near_0",
            "rewards/length_correlation",
        }
        assert set(pair_sums(random_batch([1.0] * ROWS))) == trls | more | with_reference
        assert set(pair_sums(random_batch([1.0] * ROWS, reference=False))) == trls | more

    def test_distributions_are_those_of_the_means(self):
        batch = random_batch([1.0] * ROWS)
        means = results(pair_sums(batch))
        for name, values in pair_distributions(batch).items():
            assert values.mean().item() == same(means[name])
