"""`Meter` against numpy's weighted means."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trl_dpo_ext.metrics.sums import Sums, mean_of_sums, means, results
from trl_dpo_ext.trainers.logs.meter import Meter


def alone(sums: Tensor) -> Tensor:
    """What one process adds up over all processes."""
    return sums


def mean(total: float, weight: float) -> Sums:
    return Sums(torch.tensor([total, weight], dtype=torch.float64), mean_of_sums)


def test_weighted_means_over_batches_of_different_sizes():
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=n), rng.random(n)) for n in (4, 4, 1, 7)]
    meter = Meter()
    for values, weights in batches:
        values, weights = torch.tensor(values), torch.tensor(weights)
        meter.add(means({"loss": values, "margin": values**2}, weights))

    values, weights = (np.concatenate(column) for column in zip(*batches, strict=True))
    found = results(meter.totals(alone))
    assert list(found) == ["loss", "margin"]
    assert found["loss"] == pytest.approx(np.average(values, weights=weights), rel=1e-12)
    assert found["margin"] == pytest.approx(np.average(values**2, weights=weights), rel=1e-12)
    mean_of_means = np.mean([np.average(v, weights=w) for v, w in batches])
    assert abs(found["loss"] - mean_of_means) > 0.01  # what it must not be


def test_it_is_true_while_it_holds_something():
    meter = Meter()
    assert not meter
    meter.add({"loss": mean(0, 1)})
    assert meter
    assert results(meter.totals(alone)) == {"loss": 0.0}
    assert not meter
    assert meter.totals(alone) == {}


def test_reduce_is_called_once_with_all_sums():
    seen = []

    def two_processes(sums):
        seen.append(sums.tolist())
        return sums + torch.tensor([10.0, 4.0, 1.0, 1.0], dtype=torch.float64)

    meter = Meter()
    meter.add({"a": mean(2, 2), "b": mean(3, 1)})
    assert results(meter.totals(two_processes)) == {"a": 2.0, "b": 2.0}
    assert seen == [[2.0, 2.0, 3.0, 1.0]]


def test_nothing_is_reduced_when_it_is_empty():
    def refuse(sums):
        raise AssertionError("a collective for nothing")

    assert Meter().totals(refuse) == {}


def test_a_name_without_weight_is_left_out():
    meter = Meter()
    meter.add({"a": mean(0, 0), "b": mean(1, 2)})
    assert results(meter.totals(alone)) == {"b": 0.5}


def test_a_name_may_appear_later():
    meter = Meter()
    meter.add({"a": mean(1, 1)})
    meter.add({"a": mean(5, 1), "aux_loss": mean(2, 4)})
    assert results(meter.totals(alone)) == {"a": 3.0, "aux_loss": 0.5}


def test_sums_are_float64_and_keep_no_graph():
    meter = Meter()
    meter.add(means({"n": torch.tensor([2.0**24], requires_grad=True)}, torch.ones(1)))
    meter.add(means({"n": torch.tensor([1.0])}, torch.ones(1)))  # 2^24 + 1 is no float32
    totals = meter.totals(alone)["n"].values
    assert not totals.requires_grad
    assert totals.tolist() == [2.0**24 + 1, 2.0]


def test_a_non_finite_value_is_not_hidden():
    meter = Meter()
    meter.add({"loss": mean(float("nan"), 1)})
    assert np.isnan(results(meter.totals(alone))["loss"])
