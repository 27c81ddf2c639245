"""Training on Plackett-Luce rankings recovers the closed form (Eq. 4): whole rankings, with ties, and of the best.

Two prompts with six answers each, a policy that is one logit per answer, and rankings of every choice of four answers,
weighted by their probability under a known reward. The loss never sees that reward, only the rankings.
"""

from itertools import combinations, permutations

import pytest
import torch
from exactness.two_prompts import REF, REWARDS, kl_to, train

from trl_dpo_ext.objectives import plackett_luce_loss
from trl_dpo_ext.rewards import implicit_rewards
from trl_dpo_ext.theory import optimal_policy, plackett_luce, project_reward


ORDERS = torch.tensor(list(permutations(range(6), 4)))  # (360, 4): each choice of four answers, in each order
PROBABILITIES = plackett_luce(REWARDS[:, ORDERS]).exp()  # (B, 360), of the order, given the four
BETAS = [0.1, 1.0, 3.0]


def observed(ranks: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What is left to see of `ORDERS` where places of one rank cannot be told apart: answers `(N, 4)`, those of one rank
    in ascending order, and the probabilities `(B, N)` of what is seen.
    """
    seen: dict[tuple[int, ...], int] = {}
    index = []
    for order in ORDERS.tolist():
        tied = tuple(answer for _, answer in sorted(zip(ranks, order, strict=True)))
        index.append(seen.setdefault(tied, len(seen)))
    probabilities = torch.zeros(2, len(seen), dtype=torch.float64)
    return torch.tensor(list(seen)), probabilities.index_add(1, torch.tensor(index), PROBABILITIES)


def expected_loss(policy: torch.Tensor, answers: torch.Tensor, probabilities: torch.Tensor, **kwargs) -> torch.Tensor:
    """Mean loss over both prompts and all that can be observed of `answers`, `(N, K)`."""
    logps, ref_logps = policy[:, answers].flatten(0, 1), REF[:, answers].flatten(0, 1)  # (B N, K)
    kwargs = {name: torch.cat([value, value]) if torch.is_tensor(value) else value for name, value in kwargs.items()}
    losses = plackett_luce_loss(logps, ref_logps, **kwargs)
    return (probabilities.flatten() * losses).sum() / probabilities.sum()


def assert_recovered(policy: torch.Tensor, beta: float) -> None:
    closed_form = optimal_policy(REF, REWARDS, beta=beta)
    assert kl_to(closed_form, REF).min() > 0.01  # the closed form is not where training started
    assert kl_to(closed_form, policy).abs().max() < 1e-10
    torch.testing.assert_close(
        implicit_rewards(policy, REF, beta=beta), project_reward(REF, REWARDS, beta=beta), rtol=0.0, atol=1e-5
    )


@pytest.mark.parametrize("beta", BETAS)
def test_whole_rankings(beta):
    assert_recovered(train(lambda policy: expected_loss(policy, ORDERS, PROBABILITIES, beta=beta)), beta)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("top_m", [1, 2])
def test_first_places_only(top_m, beta):
    answers, probabilities = observed([0, 1, 2, 3][:top_m] + [3] * (4 - top_m))
    assert len(answers) == {1: 60, 2: 180}[top_m]
    assert_recovered(train(lambda policy: expected_loss(policy, answers, probabilities, beta=beta, top_m=top_m)), beta)


@pytest.mark.parametrize("ranks", [[0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], ids=str)
def test_ties(ranks):
    answers, probabilities = observed(ranks)
    kwargs = {"beta": 0.5, "ranks": torch.tensor(ranks).expand(len(answers), -1)}
    assert_recovered(train(lambda policy: expected_loss(policy, answers, probabilities, **kwargs)), 0.5)


def test_rankings_of_two_to_four_answers_in_one_batch():
    answers, probabilities, masks = [], [], []
    for size in (2, 3, 4):
        orders = torch.tensor([order for some in combinations(range(6), size) for order in permutations(some)])
        probabilities.append(plackett_luce(REWARDS[:, orders]).exp())
        answers.append(torch.nn.functional.pad(orders, (0, 4 - size)))
        masks.append((torch.arange(4) < size).expand(len(orders), -1))
    kwargs = {"beta": 0.5, "mask": torch.cat(masks)}
    batch = torch.cat(answers), torch.cat(probabilities, dim=1)
    assert_recovered(train(lambda policy: expected_loss(policy, *batch, **kwargs)), 0.5)


def test_sampled_rankings():
    num_rankings, beta = 20_000, 1.0
    drawn = torch.multinomial(
        PROBABILITIES, num_rankings, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    counts = torch.stack([row.bincount(minlength=len(ORDERS)) for row in drawn]).double()  # (B, 360)
    policy = train(lambda policy: expected_loss(policy, ORDERS, counts, beta=beta))
    closed_form = optimal_policy(REF, REWARDS, beta=beta)
    assert kl_to(closed_form, policy).max() < 1e-3
    assert kl_to(closed_form, REF).min() > 0.1


def test_a_tie_is_not_an_order():
    # Reading tied answers as ranked in the order of their columns misses the closed form: the control for the above.
    answers, probabilities = observed([0, 1, 1, 2])
    policy = train(lambda policy: expected_loss(policy, answers, probabilities, beta=1.0))
    assert kl_to(optimal_policy(REF, REWARDS, beta=1.0), policy).min() > 1e-2
