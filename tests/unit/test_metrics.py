"""`MeanMeter` against numpy's weighted means, and `preference_sums` against a loop over rows and tokens."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trl_dpo_ext.logps import CompletionLogps
from trl_dpo_ext.trainers.metrics import MeanMeter, preference_sums
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


def alone(sums: Tensor) -> Tensor:
    """What one process adds up over all processes."""
    return sums


def sums_of(values: np.ndarray, weights: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.tensor((values * weights).sum()), torch.tensor(weights.sum())


class TestMeanMeter:
    def test_weighted_means_over_batches_of_different_sizes(self):
        rng = np.random.default_rng(0)
        batches = [(rng.normal(size=n), rng.random(n)) for n in (4, 4, 1, 7)]
        meter = MeanMeter()
        for values, weights in batches:
            meter.add({"loss": sums_of(values, weights), "margin": sums_of(values**2, weights)})

        values, weights = (np.concatenate(column) for column in zip(*batches, strict=True))
        means = meter.means(alone)
        assert list(means) == ["loss", "margin"]
        assert means["loss"] == pytest.approx(np.average(values, weights=weights), rel=1e-12)
        assert means["margin"] == pytest.approx(np.average(values**2, weights=weights), rel=1e-12)
        mean_of_means = np.mean([np.average(v, weights=w) for v, w in batches])
        assert abs(means["loss"] - mean_of_means) > 0.01  # what it must not be

    def test_it_is_true_while_it_holds_something(self):
        meter = MeanMeter()
        assert not meter
        meter.add({"loss": (torch.tensor(0.0), torch.tensor(1.0))})
        assert meter
        assert meter.means(alone) == {"loss": 0.0}
        assert not meter
        assert meter.means(alone) == {}

    def test_reduce_is_called_once_with_all_sums(self):
        seen = []

        def two_processes(sums):
            seen.append(sums.clone())
            return sums + torch.tensor([[10.0, 4.0], [1.0, 1.0]], dtype=torch.float64)

        meter = MeanMeter()
        meter.add({"a": (torch.tensor(2.0), torch.tensor(2)), "b": (torch.tensor(3), torch.tensor(1))})
        assert meter.means(two_processes) == {"a": 2.0, "b": 2.0}
        assert [sums.tolist() for sums in seen] == [[[2.0, 2.0], [3.0, 1.0]]]

    def test_nothing_is_reduced_when_it_is_empty(self):
        def refuse(sums):
            raise AssertionError("a collective for nothing")

        assert MeanMeter().means(refuse) == {}

    def test_a_name_without_weight_is_left_out(self):
        meter = MeanMeter()
        meter.add({"a": (torch.tensor(0.0), torch.tensor(0)), "b": (torch.tensor(1.0), torch.tensor(2))})
        assert meter.means(alone) == {"b": 0.5}

    def test_a_name_may_appear_later(self):
        meter = MeanMeter()
        meter.add({"a": (torch.tensor(1.0), torch.tensor(1))})
        meter.add({"a": (torch.tensor(5.0), torch.tensor(1)), "aux_loss": (torch.tensor(2.0), torch.tensor(4))})
        assert meter.means(alone) == {"a": 3.0, "aux_loss": 0.5}

    def test_sums_are_float64_and_keep_no_graph(self):
        total = torch.tensor(2.0**24, requires_grad=True)
        meter = MeanMeter()
        meter.add({"n": (total, torch.tensor(1))})
        meter.add({"n": (torch.tensor(1.0), torch.tensor(0))})  # 2^24 + 1 is no float32
        assert not meter._sums["n"].requires_grad
        assert meter.means(alone) == {"n": 2.0**24 + 1}

    def test_a_non_finite_value_is_not_hidden(self):
        meter = MeanMeter()
        meter.add({"loss": (torch.tensor(float("nan")), torch.tensor(1))})
        assert np.isnan(meter.means(alone)["loss"])


ROWS, TOKENS = 5, 7


def random_batch(weights: list[float], aux_loss: float | None = None) -> ScoredBatch:
    """A batch of random figures; its completions have 0 to 7 tokens."""
    rng = np.random.default_rng(1)

    def random(*shape: int) -> Tensor:
        return torch.tensor(rng.normal(size=shape), dtype=torch.float32)

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
        ref_logps=None,
        policy=policy,
        weights=torch.tensor(weights),
    )


def by_loop(batch: ScoredBatch) -> dict[str, float]:
    """The means of the rows of weight 1, one at a time."""
    found: dict[str, list[float]] = {}
    policy = batch.policy

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
        if policy.aux_loss is not None:
            note("aux_loss", policy.aux_loss)
        for side, completion in (("chosen", chosen), ("rejected", rejected)):
            for token in range(TOKENS):
                if policy.mask[completion, token]:
                    note("entropy", policy.entropy[completion, token])
                    note(f"logits/{side}", policy.mean_logits[completion, token])
                    if side == "chosen":
                        note("mean_token_accuracy", policy.is_top1[completion, token])
    return {name: float(np.mean(values)) for name, values in found.items()}


class TestPreferenceSums:
    @pytest.mark.parametrize(
        "weights", [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], ids=["all", "three", "one"]
    )
    @pytest.mark.parametrize("aux_loss", [None, 0.25], ids=["dense", "moe"])
    def test_against_a_loop(self, weights, aux_loss):
        batch = random_batch([float(weight) for weight in weights], aux_loss)
        meter = MeanMeter()
        meter.add(preference_sums(batch))
        expected = by_loop(batch)
        means = meter.means(alone)
        assert means.keys() == expected.keys()
        assert ("aux_loss" in means) == (aux_loss is not None)
        for name, value in expected.items():
            assert means[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name

    def test_a_repeated_row_of_weight_0_changes_nothing(self):
        real, repeated = random_batch([1.0, 1.0, 1.0, 1.0, 0.0]), random_batch([1.0, 1.0, 1.0, 1.0, 0.0])
        repeated.rewards[4] += 100.0
        repeated.policy.logps[[4, 9]] -= 100.0
        repeated.policy.entropy[[4, 9]] += 100.0
        for name, (total, weight) in preference_sums(real).items():
            assert torch.equal(total, preference_sums(repeated)[name][0]), name
            assert torch.equal(weight, preference_sums(repeated)[name][1]), name

    def test_no_real_row(self):
        batch = random_batch([0.0] * ROWS)
        meter = MeanMeter()
        meter.add(preference_sums(batch))
        assert meter  # a process without rows takes part in the collective
        assert meter.means(alone) == {}

    def test_names_are_trl_s(self):
        assert set(preference_sums(random_batch([1.0] * ROWS))) == {
            "loss",
            *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")),
            *(f"logps/{name}" for name in ("chosen", "rejected")),
            *(f"logits/{name}" for name in ("chosen", "rejected")),
            "entropy",
            "mean_token_accuracy",
        }
