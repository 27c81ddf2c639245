"""`dpo_loss` and `implicit_rewards` against numbers printed by the authors' `preference_loss` (`tests/golden`)."""

import json
from pathlib import Path

import pytest
import torch

from trl_dpo_ext.objectives import dpo_loss
from trl_dpo_ext.rewards import implicit_rewards


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
CASES = {name: case for name, case in GOLDEN["preference_loss"].items() if not case["kwargs"].get("ipo", False)}
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def pairs(model: str, dtype: torch.dtype) -> torch.Tensor:
    columns = [GOLDEN["inputs"][f"{model}_{side}_logps"] for side in ("chosen", "rejected")]
    return torch.tensor(columns, dtype=dtype).T.contiguous()  # (12, 2)


def assert_golden(actual: torch.Tensor, expected: list[float] | float, dtype_name: str) -> None:
    assert actual.dtype == DTYPES[dtype_name]
    expected = torch.tensor(expected, dtype=DTYPES[dtype_name])
    torch.testing.assert_close(actual, expected, **GOLDEN["tolerance"][dtype_name])


def test_every_case_without_ipo_is_covered():
    assert GOLDEN["tolerance"]["float64"] == {"rtol": 1e-12, "atol": 1e-12}
    assert len(CASES) == 12
    assert {key for case in CASES.values() for key in case["kwargs"]} == {
        "beta",
        "label_smoothing",
        "reference_free",
    }


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(name: str, dtype_name: str):
    kwargs, expected = dict(CASES[name]["kwargs"]), CASES[name][dtype_name]
    policy = pairs("policy", DTYPES[dtype_name]).requires_grad_()
    ref = None if kwargs.pop("reference_free", False) else pairs("reference", DTYPES[dtype_name])

    losses = dpo_loss(policy, ref, **kwargs)
    losses.mean().backward()

    assert_golden(losses.detach(), expected["losses"], dtype_name)
    assert_golden(losses.detach().mean(), expected["mean_loss"], dtype_name)
    assert_golden(policy.grad[:, 0], expected["grad_policy_chosen"], dtype_name)
    assert_golden(policy.grad[:, 1], expected["grad_policy_rejected"], dtype_name)


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_rewards(name: str, dtype_name: str):
    # The authors log rewards against the reference in every case, `reference_free` included.
    expected = CASES[name][dtype_name]
    policy, ref = pairs("policy", DTYPES[dtype_name]), pairs("reference", DTYPES[dtype_name])

    rewards = implicit_rewards(policy, ref, beta=CASES[name]["kwargs"]["beta"])

    assert_golden(rewards[:, 0], expected["chosen_rewards"], dtype_name)
    assert_golden(rewards[:, 1], expected["rejected_rewards"], dtype_name)
    assert (rewards[:, 0] > rewards[:, 1]).double().mean().item() == expected["reward_accuracy"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["kwargs"].get("reference_free")])
def test_reference_free_rewards_differ_from_the_authors(name: str):
    # Ours are the rewards that the reference-free loss optimizes (beta log pi), and so explain the loss.
    kwargs, expected = CASES[name]["kwargs"], CASES[name]["float64"]
    rewards = implicit_rewards(pairs("policy", torch.float64), None, beta=kwargs["beta"])
    assert (rewards[:, 0] - torch.tensor(expected["chosen_rewards"], dtype=torch.float64)).abs().max() > 1.0

    margins, epsilon = rewards[:, 0] - rewards[:, 1], kwargs.get("label_smoothing", 0.0)
    losses = (1 - epsilon) * torch.log1p(torch.exp(-margins)) + epsilon * torch.log1p(torch.exp(margins))
    assert_golden(losses, expected["losses"], "float64")
