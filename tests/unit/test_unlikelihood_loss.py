"""The unlikelihood losses against hand-written formulas, and their gradients."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from trl_dpo_ext.objectives import dpo_loss, token_unlikelihood_loss, unlikelihood_loss


LOGPS = torch.tensor([[-10.0, -18.0], [-31.0, -19.0]], dtype=torch.float64)


class TestSequences:
    @pytest.mark.parametrize(("alpha", "expected"), [(0.0, [10.0, 31.0]), (0.5, [1.0, 21.5]), (1.0, [-8.0, 12.0])])
    def test_by_hand(self, alpha, expected):
        assert unlikelihood_loss(LOGPS, alpha=alpha).tolist() == expected

    def test_gradient(self):
        logps = LOGPS.clone().requires_grad_()
        unlikelihood_loss(logps, alpha=0.3).sum().backward()
        assert logps.grad.tolist() == [[-1.0, 0.3], [-1.0, 0.3]]

    def test_is_dpo_without_its_weight(self):
        beta, ref = 0.25, LOGPS.flip(0)
        plain, weighted = (LOGPS.clone().requires_grad_() for _ in range(2))
        unlikelihood_loss(plain).sum().backward()
        dpo_loss(weighted, ref, beta=beta).sum().backward()
        rewards = beta * (LOGPS - ref)
        weight = beta * torch.sigmoid(rewards[:, 1] - rewards[:, 0])
        torch.testing.assert_close(weighted.grad, weight[:, None] * plain.grad)

    def test_half_precision_is_summed_in_float32(self):
        assert unlikelihood_loss(LOGPS.bfloat16()).dtype == torch.float32

    @pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "1"])
    def test_alpha_out_of_range(self, alpha):
        with pytest.raises(ValueError, match=r"Expected `alpha` to be a number in \[0, 1\]"):
            unlikelihood_loss(LOGPS, alpha=alpha)

    def test_needs_pairs(self):
        with pytest.raises(ValueError, match=r"Expected `policy_logps` of shape \(B, 2\)"):
            unlikelihood_loss(torch.zeros(2, 3))


class TestTokens:
    CHOSEN = torch.tensor([-4.0, -2.0], dtype=torch.float64)
    TOKENS = torch.tensor([[-0.1, -2.0, -7.0], [-3.0, -0.5, 0.0]], dtype=torch.float64)
    MASK = torch.tensor([[True, True, True], [True, True, False]])

    @pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
    def test_by_hand(self, alpha):
        expected = [
            -chosen
            - alpha * sum(math.log(1 - math.exp(token)) for token, there in zip(row, mask, strict=True) if there)
            for chosen, row, mask in zip(self.CHOSEN.tolist(), self.TOKENS.tolist(), self.MASK.tolist(), strict=True)
        ]
        found = token_unlikelihood_loss(self.CHOSEN, self.TOKENS, self.MASK, alpha=alpha)
        assert found.tolist() == pytest.approx(expected, rel=1e-12)

    def test_gradient(self):
        inputs = (self.CHOSEN.clone().requires_grad_(), self.TOKENS.clone().requires_grad_())
        assert gradcheck(lambda chosen, tokens: token_unlikelihood_loss(chosen, tokens, self.MASK, alpha=0.7), inputs)

    def test_a_certain_token_is_bounded_and_finite(self):
        tokens = torch.zeros(1, 1, requires_grad=True)
        loss = token_unlikelihood_loss(torch.zeros(1), tokens, torch.ones(1, 1, dtype=torch.bool))
        loss.backward()
        assert loss.item() == pytest.approx(-math.log(1e-5), rel=1e-4)
        assert tokens.grad.item() == 0.0

    def test_rare_tokens_keep_their_digits(self):
        tokens = torch.tensor([[-30.0]])
        loss = token_unlikelihood_loss(torch.zeros(1), tokens, torch.ones(1, 1, dtype=torch.bool))
        assert loss.item() == pytest.approx(math.exp(-30.0), rel=1e-5, abs=1e-7)

    def test_shapes(self):
        with pytest.raises(ValueError, match="`rejected_token_logps` and `rejected_mask` of one shape"):
            token_unlikelihood_loss(self.CHOSEN, self.TOKENS, self.MASK[:, :2])
        with pytest.raises(ValueError, match=r"Expected `chosen_logps` of shape \(B,\)"):
            token_unlikelihood_loss(self.CHOSEN[:1], self.TOKENS, self.MASK)
