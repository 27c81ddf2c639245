"""Training on Bradley-Terry preferences recovers the closed form: Eq. 4 by the policy, Eq. 5 by its implicit rewards.

Two prompts with six answers each, a policy that is one logit per answer, preferences drawn from a known reward. DPO
never sees that reward, only who won.
"""

import pytest
import torch
from exactness.two_prompts import REF, REWARDS, kl_to, train

from trl_dpo_ext.objectives import dpo_loss
from trl_dpo_ext.rewards import implicit_rewards
from trl_dpo_ext.theory import bradley_terry, optimal_policy, project_reward


# Every ordered pair of different answers, for both prompts: (60, ) prompts, (60, 2) chosen and rejected.
PROMPTS, CHOSEN, REJECTED = (
    (torch.ones(6, 6, dtype=torch.bool) & ~torch.eye(6, dtype=torch.bool)).expand(2, 6, 6).nonzero().T
)
ANSWERS = torch.stack([CHOSEN, REJECTED], dim=1)
PROBABILITIES = bradley_terry(REWARDS[PROMPTS, CHOSEN], REWARDS[PROMPTS, REJECTED]).exp()  # (60,)


def reward_error(policy: torch.Tensor, beta: float) -> torch.Tensor:
    """Largest distance of the implicit rewards from the true ones, up to a constant per prompt."""
    difference = implicit_rewards(policy, REF, beta=beta) - REWARDS
    return (difference - difference.mean(-1, keepdim=True)).abs().max()


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 3.0])
def test_exact_expectation(beta):
    # The loss of Eq. 7 as an expectation: all pairs, each in both orders, weighted by the probability of the order.
    def expected_loss(policy: torch.Tensor) -> torch.Tensor:
        index = PROMPTS[:, None], ANSWERS
        losses = dpo_loss(policy[index], REF[index], beta=beta)
        return (PROBABILITIES * losses).sum() / PROBABILITIES.sum()

    policy = train(expected_loss)
    closed_form = optimal_policy(REF, REWARDS, beta=beta)

    assert kl_to(closed_form, REF).min() > 0.01  # the closed form is not where training started
    assert kl_to(closed_form, policy).abs().max() < 1e-10
    assert reward_error(policy, beta) < 1e-5
    # Theorem 1: the constant is not arbitrary, the implicit reward is the projected one.
    torch.testing.assert_close(
        implicit_rewards(policy, REF, beta=beta), project_reward(REF, REWARDS, beta=beta), rtol=0.0, atol=1e-5
    )


def test_sampled_pairs():
    beta, num_pairs = 1.0, 60_000
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(PROMPTS), (num_pairs,), generator=generator)
    won = torch.rand(num_pairs, generator=generator, dtype=torch.float64) < PROBABILITIES[drawn]
    answers = torch.where(won[:, None], ANSWERS[drawn], ANSWERS[drawn].flip(1))
    index = PROMPTS[drawn][:, None], answers

    policy = train(lambda policy: dpo_loss(policy[index], REF[index], beta=beta).mean())
    closed_form = optimal_policy(REF, REWARDS, beta=beta)

    assert kl_to(closed_form, policy).max() < 1e-3
    assert reward_error(policy, beta) < 0.1
    assert kl_to(closed_form, REF).min() > 0.1


def test_the_sign_that_the_appendix_misprints():
    # Descent on Eq. 21 as printed, sigma(r_l - r_w), ranks the answers backwards: the control for the tests above.
    policy = train(
        lambda policy: (
            PROBABILITIES * dpo_loss(policy[PROMPTS[:, None], ANSWERS.flip(1)], REF[PROMPTS[:, None], ANSWERS.flip(1)])
        ).sum()
    )
    assert torch.equal(implicit_rewards(policy, REF, beta=0.1).argsort(-1), REWARDS.argsort(-1, descending=True))
