"""`plackett_luce_loss`: extreme inputs, and what is refused."""

import math

import pytest
import torch
from unit.random_rankings import losses_of_rewards, random_rankings

from trl_dpo_ext.objectives import plackett_luce_loss


class TestExtremeInputs:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_orders(self, dtype):
        rewards = torch.tensor(
            [[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [1e4, 1e4, 1e4], [0.0, 1e4, 0.0]], dtype=dtype
        ).requires_grad_()
        losses = losses_of_rewards(rewards)
        losses.sum().backward()
        expected = torch.tensor([0.0, 3e4, math.log(6), 1e4], dtype=dtype)
        torch.testing.assert_close(losses.detach(), expected, rtol=1e-6, atol=0.0)
        expected = torch.tensor([[0, 0, 0], [-1, -1, 2], [-2 / 3, -1 / 6, 5 / 6], [-1, 1, 0]], dtype=dtype)
        torch.testing.assert_close(rewards.grad, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_ties(self, dtype):
        # Two against two: above, below, one each, all alike, and the tie itself far apart.
        rewards = torch.tensor(
            [
                [1e4, 1e4, 0.0, 0.0],
                [0.0, 0.0, 1e4, 1e4],
                [1e4, 0.0, 0.0, 1e4],
                [1e4, 1e4, 1e4, 1e4],
                [1e4, -1e4, 0.0, -1e4],
                [-1e4, 1e4, -1e4, -1e4],
            ],
            dtype=dtype,
        ).requires_grad_()
        losses = losses_of_rewards(rewards, ranks=torch.tensor([[0, 0, 1, 1]]).expand(6, -1))
        losses.sum().backward()
        # The second row: the tie in either order, each e^-1e4 / 2 then e^-1e4 / 2. The third: the first column wins a
        # toss, and the second is e^-1e4 to the fourth; or the second comes first, e^-1e4 / 2, and then a toss.
        expected = [0.0, 2e4 + math.log(2), 1e4 - math.log(1 / 2 + 1 / 4), math.log(6), 1e4, math.log(3)]
        torch.testing.assert_close(losses.detach(), torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=0.0)
        assert rewards.grad.isfinite().all()
        assert torch.equal(rewards.grad[0], torch.zeros(4, dtype=dtype))
        # Weights are exp(r - logsumexp), and at 1e4 float32 knows that difference to 5e-4.
        expected = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=dtype)
        torch.testing.assert_close(rewards.grad[1], expected, rtol=1e4 * torch.finfo(dtype).eps, atol=0.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_mixtures_stay_finite(self, dtype):
        generator = torch.Generator().manual_seed(0)
        rewards = torch.tensor([-1e4, -800.0, -40.0, 0.0, 40.0, 800.0, 1e4], dtype=dtype)
        rewards = rewards[torch.randint(7, (500, 6), generator=generator)].requires_grad_()
        ranks, mask = random_rankings(500, 6)
        losses = losses_of_rewards(rewards, mask=mask, ranks=ranks)
        losses.sum().backward()
        assert losses.isfinite().all() and (losses >= 0).all()
        assert rewards.grad.isfinite().all() and rewards.grad.abs().max() <= 5


class TestRefused:
    @pytest.mark.parametrize("shape", [(8,), (2, 8, 2), ()])
    def test_not_a_table(self, shape):
        with pytest.raises(ValueError, match=r"`policy_logps` of shape \(B, K\), one column per completion, got \("):
            plackett_luce_loss(torch.zeros(shape), None)

    @pytest.mark.parametrize("num_completions", [0, 1])
    def test_too_few_columns(self, num_completions):
        with pytest.raises(ValueError, match=rf"with at least 2 completions, got \(8, {num_completions}\)\."):
            plackett_luce_loss(torch.zeros(8, num_completions), torch.zeros(8, num_completions))

    @pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 4), (4, 8)])
    def test_shapes_differ(self, shape):
        logps, text = torch.zeros(8, 4), str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"`policy_logps` and `ref_logps` of one shape, got \(8, 4\) and {text}"):
            plackett_luce_loss(logps, torch.zeros(shape))
        with pytest.raises(ValueError, match=rf"`policy_logps` and `mask` of one shape, got \(8, 4\) and {text}\."):
            plackett_luce_loss(logps, logps, mask=torch.ones(shape, dtype=torch.bool))
        with pytest.raises(ValueError, match=rf"`policy_logps` and `ranks` of one shape, got \(8, 4\) and {text}\."):
            plackett_luce_loss(logps, logps, ranks=torch.zeros(shape, dtype=torch.long))

    def test_dtypes(self):
        logps = torch.zeros(8, 4)
        for mask in (torch.ones(8, 4), torch.ones(8, 4, dtype=torch.long)):
            with pytest.raises(ValueError, match=rf"`mask` to be boolean, True where .*, got {mask.dtype}\."):
                plackett_luce_loss(logps, logps, mask=mask)
        for ranks in (torch.ones(8, 4), torch.ones(8, 4, dtype=torch.bool), torch.ones(8, 4, dtype=torch.complex64)):
            with pytest.raises(ValueError, match=rf"`ranks` to be integers, 0 for the best, got {ranks.dtype}\."):
                plackett_luce_loss(logps, logps, ranks=ranks)

    @pytest.mark.parametrize("top_m", [0, -1, 1.0, 2.5, "2", True])
    def test_top_m(self, top_m):
        with pytest.raises(ValueError, match=r"`top_m` to be .* integer of at least 1.*, got ") as error:
            plackett_luce_loss(torch.zeros(8, 4), None, top_m=top_m)
        assert str(error.value).endswith(f"got {top_m!r}.")

    @pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan, "0.1", None])
    def test_beta(self, beta):
        with pytest.raises(ValueError, match=r"`beta` to be a finite number above 0 .*, got "):
            plackett_luce_loss(torch.zeros(8, 4), None, beta=beta)

    @pytest.mark.parametrize("num_present", [0, 1])
    @pytest.mark.parametrize("with_ranks", [False, True])
    def test_row_with_too_few_completions(self, num_present, with_ranks):
        mask = torch.ones(8, 4, dtype=torch.bool)
        mask[5, num_present:] = False
        ranks = torch.arange(4).expand(8, -1) if with_ranks else None
        with pytest.raises(ValueError, match=rf"at least 2 completions in every row, got {num_present} in row 5 of 8"):
            plackett_luce_loss(torch.zeros(8, 4), None, mask=mask, ranks=ranks)

    def test_negative_rank(self):
        mask = torch.ones(8, 4, dtype=torch.bool)
        mask[:, 1] = False
        ranks = torch.arange(4).repeat(8, 1)
        ranks[:, 1], ranks[3, 3] = -1, -1
        with pytest.raises(ValueError, match=r"`ranks` of 0 or more .*, got \[0, 2, -1\] in row 3 of 8\."):
            plackett_luce_loss(torch.zeros(8, 4), None, mask=mask, ranks=ranks)
