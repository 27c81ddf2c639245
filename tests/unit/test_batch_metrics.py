"""`batch_metrics` of pairs against a loop over rows and tokens."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import same
from scipy.stats import pearsonr
from torch import Tensor

from trl_dpo_ext.batches import stacked_to_pairs
from trl_dpo_ext.logps import CompletionLogps
from trl_dpo_ext.metrics.sums import results
from trl_dpo_ext.run_files import split_metric_name
from trl_dpo_ext.trainers.forward.batch_result import BatchResult
from trl_dpo_ext.trainers.logs.batch_metrics import batch_distributions, batch_metrics


pytestmark = pytest.mark.usefixtures("float64")

ROWS, TOKENS = 5, 7


def random_batch(weights: list[float], aux_loss: float | None = None, reference: bool = True) -> BatchResult:
    """A batch of random numbers; its completions have 0 to 7 tokens."""
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
    return BatchResult(
        losses=random(ROWS).requires_grad_(),
        rewards=rewards,
        ref_logps=random(ROWS, 2) if reference else None,
        policy=policy.regrouped(stacked_to_pairs),
        weights=torch.tensor(weights),
        ref_token_logps=stacked_to_pairs(random(2 * ROWS, TOKENS) * mask) if reference else None,
        ranks=torch.arange(2).expand(ROWS, 2),
        exists=torch.ones(ROWS, 2, dtype=torch.bool),
    )


def by_loop(batch: BatchResult) -> dict[str, float]:
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
        chosen, rejected = (row, 0), (row, 1)
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
            for token in ((*completion, place) for place in range(TOKENS)):
                if policy.mask[token]:
                    note("entropy", policy.entropy[token])
                    if batch.ref_token_logps is not None:
                        gap = (policy.token_logps - batch.ref_token_logps)[token].item()
                        found.setdefault("kl_per_token", []).append(math.exp(gap) - 1 - gap)
                    note(f"logits/{side}", policy.mean_logits[token])
                    if side == "chosen":
                        note("mean_token_accuracy", policy.is_top1[token])
    means = {name: float(np.mean(values)) for name, values in found.items()}
    bins = np.digitize(confidences, np.linspace(0.5, 1, 11)[1:-1])
    gaps = [abs(np.sum((np.array(right) - confidences)[bins == b])) for b in range(10)]
    means["rewards/calibration_error"] = sum(gaps) / len(confidences)
    if len(set(lengths)) > 1:
        means["rewards/length_correlation"] = pearsonr(rewards, lengths).statistic
    return means


class TestPairs:
    @pytest.mark.parametrize(
        "weights", [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], ids=["all", "three", "one"]
    )
    @pytest.mark.parametrize("aux_loss", [None, 0.25], ids=["dense", "moe"])
    def test_against_a_loop(self, weights, aux_loss):
        batch = random_batch([float(weight) for weight in weights], aux_loss)
        expected = by_loop(batch)
        means = results(batch_metrics(batch, 2))
        assert means.keys() == expected.keys()
        assert ("aux_loss" in means) == (aux_loss is not None)
        for name, value in expected.items():
            assert means[name] == same(value), name

    def test_a_repeated_row_of_weight_0_changes_nothing(self):
        real, repeated = random_batch([1.0, 1.0, 1.0, 1.0, 0.0]), random_batch([1.0, 1.0, 1.0, 1.0, 0.0])
        repeated.rewards[4] += 100.0
        repeated.policy.logps[4] -= 100.0
        repeated.policy.entropy[4] += 100.0
        repeated.policy.token_logps[4] += 1.0
        for name, sums in batch_metrics(real, 2).items():
            assert torch.equal(sums.values, batch_metrics(repeated, 2)[name].values), name

    def test_no_real_row(self):
        sums = batch_metrics(random_batch([0.0] * ROWS), 2)
        assert sums  # a process without rows takes part in the collective
        assert results(sums) == {}

    def test_batches_add_up(self):
        whole, first, second = (random_batch([float(w) for w in weights]) for weights in ("11111", "11000", "00111"))
        added = {name: sums + batch_metrics(second, 2)[name] for name, sums in batch_metrics(first, 2).items()}
        expected = results(batch_metrics(whole, 2))
        assert results(added) == same(expected)
        # A correlation is not the mean of the batches' correlations
        parts = [results(batch_metrics(batch, 2))["rewards/length_correlation"] for batch in (first, second)]
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
        assert set(batch_metrics(random_batch([1.0] * ROWS), 2)) == trls | more | with_reference
        assert set(batch_metrics(random_batch([1.0] * ROWS, reference=False), 2)) == trls | more

    def test_distributions_are_those_of_the_means(self):
        batch = random_batch([1.0] * ROWS)
        means = results(batch_metrics(batch, 2))
        for name, values in batch_distributions(batch, 2).items():
            assert values.mean().item() == same(means[name])


def test_the_report_knows_every_metric() -> None:
    """One that it did not know it would leave out without a word."""
    pairs = random_batch([1.0] * ROWS, aux_loss=0.25)
    rankings = replace(pairs, order_losses=pairs.losses.detach())
    names = batch_metrics(rankings, 2).keys() | batch_distributions(pairs, 2).keys()
    assert {"logits/chosen", "rewards/margins_neighbors", "rewards/rank_2"} <= names
    assert {name: split_metric_name(name) for name in names} == {name: (None, name) for name in names}
    assert {split_metric_name(f"eval_hh_{name}") for name in names} == {("eval_hh", name) for name in names}
