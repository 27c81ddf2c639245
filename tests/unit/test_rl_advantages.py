"""Token rewards and generalized advantages: by hand, and by their definitions as sums."""

import pytest
import torch
from closeness import same

from trl_dpo_ext.rl.advantages import generalized_advantages, token_rewards, whitened


MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


def test_token_rewards_by_hand():
    log_ratios = torch.tensor([[0.5, -1.0, 2.0], [1.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    found = token_rewards(log_ratios, torch.tensor([10.0, 20.0, 30.0]), MASK, beta=0.1)
    expected = torch.tensor([[-0.05, 0.1, 9.8], [19.9, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)


def test_advantages_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0], [2.0, 7.0, 7.0], [7.0, 7.0, 7.0]])
    values = torch.tensor([[0.5, 0.6, 0.8], [0.5, 3.0, 3.0], [3.0, 3.0, 3.0]])
    # Differences of row 0: 0.6 - 0.5, 0.8 - 0.6, 1 - 0.8
    one_step, returns = generalized_advantages(rewards, values, MASK, gamma=1.0, lam=0.0)
    torch.testing.assert_close(one_step, torch.tensor([[0.1, 0.2, 0.2], [1.5, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.6, 0.8, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    whole, returns = generalized_advantages(rewards, values, MASK, gamma=1.0, lam=1.0)
    torch.testing.assert_close(whole, torch.tensor([[0.5, 0.4, 0.2], [1.5, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    half, _ = generalized_advantages(rewards, values, MASK, gamma=1.0, lam=0.5)
    torch.testing.assert_close(half[0], torch.tensor([0.1 + 0.1 + 0.05, 0.2 + 0.1, 0.2]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (0.5, 0.0)])
def test_advantages_by_their_definition(gamma, lam):
    torch.manual_seed(0)
    rewards, values = torch.randn(4, 7), torch.randn(4, 7)
    lengths = [7, 3, 1, 5]
    mask = torch.tensor([[int(t < length) for t in range(7)] for length in lengths])
    found, returns = generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        later = [*values[row, 1:length].tolist(), 0.0]
        deltas = [rewards[row, t].item() + gamma * later[t] - values[row, t].item() for t in range(length)]
        expected = [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, length)) for t in range(length)]
        assert found[row, :length].tolist() == same(expected)
        assert returns[row, :length].tolist() == same((found + values)[row, :length].tolist())
        assert (found[row, length:] == 0).all() and (returns[row, length:] == 0).all()


def test_whitened_over_all_processes():
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    std = (8 / 3) ** 0.5
    found = whitened(values, mask, lambda tensor: tensor)
    torch.testing.assert_close(found, torch.tensor([[-2 / std, 0.0, 0.0], [2 / std, 0.0, 0.0]]))
    # A second process with the same values changes nothing
    torch.testing.assert_close(whitened(values, mask, lambda tensor: 2 * tensor), found)
