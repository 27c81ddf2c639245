"""`plackett_luce_loss`: values, ties and partial rankings as sums over orders, masks, gradients, dtypes."""

import math
from fractions import Fraction
from functools import cache
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor
from unit.random_rankings import losses_of_rewards, random_rankings

from trl_dpo_ext.objectives import dpo_loss, plackett_luce_loss
from trl_dpo_ext.rewards import implicit_rewards
from trl_dpo_ext.theory import plackett_luce


CLOSE = {"rtol": 1e-13, "atol": 2e-14}  # the absolute part is for the sums compared with


def random_logps(num_rows: int = 16, num_completions: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Policy and reference, (B, K) in float64; rewards are of size 1 at beta 0.1."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_completions)
    ref = -100 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return ref + 10 * torch.randn(shape, generator=generator, dtype=torch.float64), ref


def loss_over_orders(rewards: Tensor, ranks: list[int], top_m: int | None = None) -> Tensor:
    """Minus the log of the probability (Eq. 18), summed over all orders that the observation allows."""
    above = [sum(other < rank for other in ranks) for rank in ranks]
    seen = [min(place, len(ranks) if top_m is None else top_m) for place in above]  # places that one cannot tell apart
    orders = torch.tensor([order for order in permutations(range(len(ranks))) if _ascends([seen[i] for i in order])])
    return -plackett_luce(rewards[orders]).logsumexp(0)


def _ascends(numbers: list[int]) -> bool:
    return all(first <= second for first, second in zip(numbers, numbers[1:], strict=False))


def loss_by_recursion(tied: Tensor, rest: Tensor) -> Tensor:
    """Of one tie above the others: who of its members comes first, who next ..., over subsets instead of orders."""
    s_rest = rest.logsumexp(0)

    @cache
    def log_probability(left: tuple[int, ...]) -> Tensor:
        if not left:
            return tied.new_zeros(())
        branches = [tied[i] + log_probability(tuple(j for j in left if j != i)) for i in left]
        return torch.stack(branches).logsumexp(0) - torch.logaddexp(tied[list(left)].logsumexp(0), s_rest)

    return -log_probability(tuple(range(len(tied))))


class TestRankings:
    def test_value_by_hand(self):
        # Log-ratios to the reference 10, 0, -10, so r = (1, 0, -1): e of e + 1 + 1/e, then 1 of 1 + 1/e.
        policy = torch.tensor([[-2.0, -15.0, -21.0]], dtype=torch.float64)
        ref = torch.tensor([[-12.0, -15.0, -11.0]], dtype=torch.float64)
        expected = -math.log(math.e / (math.e + 1 + 1 / math.e)) - math.log(1 / (1 + 1 / math.e))
        assert plackett_luce_loss(policy, ref, beta=0.1).item() == pytest.approx(expected, rel=1e-15)
        # Reference-free at beta 0.05: r = (-0.1, -0.75, -1.05).
        weights = [math.exp(-0.1), math.exp(-0.75), math.exp(-1.05)]
        expected = -math.log(weights[0] / sum(weights)) - math.log(weights[1] / sum(weights[1:]))
        assert plackett_luce_loss(policy, None, beta=0.05).item() == pytest.approx(expected, rel=1e-14)

    def test_default_beta_is_the_paper_s(self):
        policy, ref = random_logps()
        assert torch.equal(plackett_luce_loss(policy, ref), plackett_luce_loss(policy, ref, beta=0.1))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("num_completions", [2, 3, 4, 9])
    def test_policy_equal_to_reference_gives_log_factorial(self, num_completions, dtype):
        logps = random_logps(64, num_completions)[1].to(dtype)
        losses = plackett_luce_loss(logps, logps.clone(), beta=5.0)
        expected = torch.full_like(losses, math.lgamma(num_completions + 1))
        torch.testing.assert_close(losses, expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
        assert (losses == losses[0]).all()  # rewards are exactly 0, whatever the log-probabilities

    @pytest.mark.parametrize("reference_free", [False, True])
    def test_is_eq_18_of_the_implicit_rewards(self, reference_free):
        policy, ref = random_logps(50, 7)
        ref = None if reference_free else ref
        expected = -plackett_luce(implicit_rewards(policy, ref, beta=0.3))
        torch.testing.assert_close(plackett_luce_loss(policy, ref, beta=0.3), expected, **CLOSE)

    @pytest.mark.parametrize("num_completions", [2, 3, 4, 5])
    def test_all_orders_sum_to_one(self, num_completions):
        policy, ref = random_logps(4, num_completions)
        orders = torch.tensor(list(permutations(range(num_completions))))  # (K!, K)
        for row in range(4):
            by_column = plackett_luce_loss(policy[row, orders], ref[row, orders])
            repeated = policy[row].expand(len(orders), -1), ref[row].expand(len(orders), -1)
            by_rank = plackett_luce_loss(*repeated, ranks=orders)
            assert (-by_column).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
            assert (-by_rank).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
            by_rank_of_column = plackett_luce_loss(*repeated, ranks=orders.argsort(-1))
            torch.testing.assert_close(by_rank_of_column, by_column, **CLOSE)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("reference_free", [False, True])
    @pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
    def test_two_completions_are_dpo(self, dtype, reference_free, beta):
        policy, ref = (logps.to(dtype) for logps in random_logps(1000, 2))
        ref = None if reference_free else ref
        ranks = torch.randint(0, 2, (1000, 1)) ^ torch.tensor([[0, 1]])  # (0, 1) or (1, 0)
        chosen_first = ranks.argsort(-1)
        sorted_ref = None if ref is None else ref.gather(1, chosen_first)

        def value_and_gradient(loss_of_logps):
            logps = policy.clone().requires_grad_()
            losses = loss_of_logps(logps)
            losses.sum().backward()
            return losses.detach(), logps.grad

        expected = value_and_gradient(lambda logps: dpo_loss(logps.gather(1, chosen_first), sorted_ref, beta=beta))
        by_rank = value_and_gradient(lambda logps: plackett_luce_loss(logps, ref, beta=beta, ranks=ranks))
        by_column = value_and_gradient(
            lambda logps: plackett_luce_loss(logps.gather(1, chosen_first), sorted_ref, beta=beta)
        )
        for value, gradient in (by_rank, by_column):
            assert torch.equal(value, expected[0])
            assert torch.equal(gradient, expected[1])

    def test_small_losses_keep_their_digits(self):
        rewards = torch.tensor([[80.0, 40.0, 0.0], [80.0, 81.0, 0.0]], dtype=torch.float64)
        order, tie = losses_of_rewards(rewards, ranks=torch.tensor([[0, 1, 2], [0, 0, 1]]))
        assert order.item() == pytest.approx(2 * math.exp(-40) + math.exp(-80), rel=1e-13, abs=0.0)
        # The third column comes before the first or before the second, less before both.
        expected = math.exp(-80) + math.exp(-81) - 1 / (math.exp(80) + math.exp(81))
        assert tie.item() == pytest.approx(expected, rel=1e-13, abs=0.0)
        # Beside a larger tie, whose other member here trails.
        rewards = torch.tensor([[80.0, 81.0, 0.0, -40.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
        tie, _ = losses_of_rewards(rewards, ranks=torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]))
        assert tie.item() == pytest.approx(expected, rel=1e-13, abs=0.0)


class TestTies:
    @pytest.mark.parametrize("num_completions", [2, 3, 4, 5, 6])
    @pytest.mark.parametrize("top_m", [None, 1, 2, 3, 6])
    def test_sum_over_the_orders_allowed(self, num_completions, top_m):
        policy, ref = random_logps(24, num_completions)
        ranks, mask = random_rankings(24, num_completions)
        losses = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks, top_m=top_m)
        rewards = implicit_rewards(policy, ref, beta=0.1)
        for row in range(24):
            expected = loss_over_orders(rewards[row, mask[row]], ranks[row, mask[row]].tolist(), top_m)
            torch.testing.assert_close(losses[row], expected, **CLOSE)

    def test_by_hand(self):
        # Rates 4, 2, 1. Not the last: 4/7 2/3 + 2/7 4/5. Best: 4/7. Worst: 2/7 1/5 + 1/7 2/6.
        rewards = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64).log().expand(4, 3)
        losses = losses_of_rewards(rewards, ranks=torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 0], [2, 2, 2]]))
        expected = [-math.log(8 / 21 + 8 / 35), -math.log(4 / 7), -math.log(2 / 35 + 1 / 21), 0.0]
        assert losses.tolist() == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_who_is_in_the_first_tie_sums_to_one(self, size):
        rewards = random_logps(1, 5)[0] / 10
        ranks = torch.tensor([[int(i not in best) for i in range(5)] for best in combinations(range(5), size)])
        losses = losses_of_rewards(rewards.expand(len(ranks), -1), ranks=ranks)
        assert (-losses).exp().sum().item() == pytest.approx(1.0, abs=1e-14)

    @pytest.mark.parametrize("size", [2, 3, 5, 7])
    @pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
    def test_equals_the_recursion_and_so_do_gradients(self, size, spread):
        generator = torch.Generator().manual_seed(size)
        rewards = spread * torch.randn(6, size + 3, generator=generator, dtype=torch.float64)
        rewards += torch.tensor([-20.0, -3.0, 0.0, 2.0, 6.0, 20.0])[:, None] * (torch.arange(size + 3) < size)
        rewards.requires_grad_()
        ranks = (torch.arange(size + 3) >= size).long().expand(6, -1)
        losses = losses_of_rewards(rewards, ranks=ranks)
        (gradient,) = torch.autograd.grad(losses.sum(), rewards)
        expected = torch.stack([loss_by_recursion(row[:size], row[size:]) for row in rewards])
        (expected_gradient,) = torch.autograd.grad(expected.sum(), rewards)
        torch.testing.assert_close(losses, expected, **CLOSE)
        torch.testing.assert_close(gradient, expected_gradient, **CLOSE)

    @pytest.mark.parametrize("size", [2, 3, 16, 63, 64, 65, 200])
    def test_equal_rewards_in_closed_form(self, size):
        # The next to arrive is one of i = size, ..., 1 members: P = prod i e^d / (i e^d + 1). To the last digits for
        # leads from far below to far above the rest.
        leads = torch.tensor(
            [-1e4, -300.0, -20.0, -3.0, -1.0, 0.0, 0.5, 1.5, 2.0, 4.0, 5.0, 8.0, 40.0, 300.0], dtype=torch.float64
        )
        rewards = torch.cat([leads[:, None].expand(-1, size), torch.zeros(len(leads), 1)], dim=1).requires_grad_()
        ranks = (torch.arange(size + 1) == size).long().expand_as(rewards)
        losses = losses_of_rewards(rewards, ranks=ranks)
        odds = -leads[:, None] - torch.arange(1, size + 1, dtype=torch.float64).log()  # (14, size)
        torch.testing.assert_close(
            losses, torch.nn.functional.softplus(odds, threshold=800).sum(-1), rtol=2e-14, atol=0.0
        )

        in_float32 = losses_of_rewards(rewards.detach().float(), ranks=ranks)  # the integral is taken in float64
        torch.testing.assert_close(in_float32, losses.detach().float(), rtol=1.2e-7, atol=0.0)

        losses.sum().backward()
        slope = odds.sigmoid().sum(-1)  # minus the derivative by the lead, which the members share
        off = (rewards.grad / torch.where(ranks == 1, slope[:, None], -slope[:, None] / size) - 1).abs()
        assert (off.amax(-1) < 3e-13 + 1e-15 * losses).all()

    @pytest.mark.parametrize(("low", "high"), [(-8.0, 8.0), (-2.0, 0.25), (-1.0, 3.0), (1.0, 3.0), (3.0, 12.0)])
    @pytest.mark.parametrize("size", [10, 64])
    def test_two_rewards_against_exact_fractions(self, size, low, high):
        # Inclusion and exclusion over who arrives after the rest; its terms cancel, so in rational numbers.
        half = size // 2
        rates = Fraction(math.exp(low)), Fraction(math.exp(high))
        probability = sum(
            (-1) ** (i + j) * math.comb(half, i) * math.comb(half, j) / (1 + i * rates[0] + j * rates[1])
            for i in range(half + 1)
            for j in range(half + 1)
        )
        expected = -math.log(probability) if probability < 0.5 else -math.log1p(-float(1 - probability))
        rewards = torch.tensor([[low] * half + [high] * half + [0.0]], dtype=torch.float64)
        loss = losses_of_rewards(rewards, ranks=torch.tensor([[0] * size + [1]])).item()
        assert loss == pytest.approx(expected, rel=2e-14, abs=0.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_row_that_is_one_tie_has_no_loss_and_no_gradient(self, dtype):
        policy, ref = (logps.to(dtype) for logps in random_logps(3, 5))
        policy.requires_grad_()
        mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
        ranks = torch.tensor([[7, 7, 7, 7, 7], [0, 2, 1, 2, 2], [0, 1, 1, 0, 2]])
        losses = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks)
        losses.sum().backward()
        assert torch.equal(losses[:2], torch.zeros(2, dtype=dtype)) and losses[2] > 0
        assert torch.equal(policy.grad[:2], torch.zeros(2, 5, dtype=dtype)) and (policy.grad[2] != 0).all()

    def test_only_the_order_of_ranks_counts(self):
        policy, ref = random_logps(30, 6)
        ranks, mask = random_rankings(30, 6)
        expected = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks)
        for other in (3 * ranks + 2, ranks**3, ranks.to(torch.uint8), ranks.to(torch.int32)):
            assert torch.equal(plackett_luce_loss(policy, ref, mask=mask, ranks=other), expected)

    def test_columns_may_stand_in_any_order(self):
        policy, ref = random_logps(30, 6)
        ranks, mask = random_rankings(30, 6)
        expected = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks, top_m=3)
        order = torch.rand(30, 6).argsort(-1)
        shuffled = [tensor.gather(1, order) for tensor in (policy, ref, mask, ranks)]
        actual = plackett_luce_loss(*shuffled[:2], mask=shuffled[2], ranks=shuffled[3], top_m=3)
        torch.testing.assert_close(actual, expected, **CLOSE)

    def test_ranks_in_column_order_are_the_default(self):
        policy, ref = random_logps(30, 6)
        ranks, mask = torch.arange(6).expand(30, -1), random_rankings(30, 6)[1]
        for top_m in (None, 2):
            by_rank = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks, top_m=top_m)
            assert torch.equal(plackett_luce_loss(policy, ref, mask=mask, top_m=top_m), by_rank)


class TestPartialRankings:
    @pytest.mark.parametrize("top_m", [1, 2, 3, 4, 5, 100])
    def test_is_the_probability_of_the_first_places(self, top_m):
        rewards = random_logps(4, 5)[0] / 10
        losses = losses_of_rewards(rewards, top_m=top_m)
        for row in range(4):
            orders = [order for order in permutations(range(5)) if order[:top_m] == tuple(range(5))[:top_m]]
            expected = -plackett_luce(rewards[row, torch.tensor(orders)]).logsumexp(0)
            torch.testing.assert_close(losses[row], expected, **CLOSE)

    def test_top_1_is_softmax(self):
        rewards = random_logps(4, 5)[0] / 10
        torch.testing.assert_close(losses_of_rewards(rewards, top_m=1), -rewards.log_softmax(-1)[:, 0], **CLOSE)

    def test_the_last_place_goes_without_saying(self):
        policy, ref = random_logps(4, 5)
        assert torch.equal(plackett_luce_loss(policy, ref, top_m=4), plackett_luce_loss(policy, ref))

    def test_unranked_completions_share_the_last_rank(self):
        rewards = random_logps(4, 5)[0] / 10
        losses = losses_of_rewards(rewards, ranks=torch.tensor([[0, 1, 9, 9, 9]]).expand(4, -1))
        torch.testing.assert_close(losses, losses_of_rewards(rewards, top_m=2), **CLOSE)

    def test_a_tie_that_reaches_beyond_the_place_counts_whole(self):
        rewards, ranks = random_logps(4, 6)[0] / 10, torch.tensor([[0, 1, 1, 1, 2, 3]]).expand(4, -1)
        as_observed = losses_of_rewards(rewards, ranks=torch.tensor([[0, 1, 1, 1, 2, 2]]).expand(4, -1))
        for top_m in (2, 3, 4):
            torch.testing.assert_close(losses_of_rewards(rewards, ranks=ranks, top_m=top_m), as_observed, **CLOSE)
        for top_m, last in ((1, [0, 1, 1, 1, 1, 1]), (5, [0, 1, 1, 1, 2, 3])):
            expected = losses_of_rewards(rewards, ranks=torch.tensor([last]).expand(4, -1))
            torch.testing.assert_close(losses_of_rewards(rewards, ranks=ranks, top_m=top_m), expected, **CLOSE)

    def test_absent_completions_take_no_place(self):
        rewards = random_logps(4, 5)[0] / 10
        mask = torch.tensor([[False, True, True, False, True]]).expand(4, -1)
        for ranks in (None, torch.tensor([[0, 1, 2, 3, 4]]).expand(4, -1)):
            losses = losses_of_rewards(rewards, mask=mask, ranks=ranks, top_m=1)
            torch.testing.assert_close(losses, losses_of_rewards(rewards[:, [1, 2, 4]], top_m=1), **CLOSE)


class TestNothingElseCounts:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("rubbish", [0.0, -1e30, math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("with_ranks", [False, True])
    @pytest.mark.parametrize("top_m", [None, 2])
    def test_padding(self, dtype, rubbish, with_ranks, top_m):
        policy, ref = (logps.to(dtype) for logps in random_logps(12, 5))
        ranks, mask = random_rankings(12, 5)
        ranks = ranks if with_ranks else None
        close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0.0}  # a longer row may be summed in another order

        def padded(tensor, value):
            left, right = torch.full((2, 12, 3), value, dtype=tensor.dtype)
            return torch.cat([left, tensor, right], dim=1)

        policy.requires_grad_()
        expected = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks, top_m=top_m)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), policy)

        wide = padded(policy.detach().masked_fill(~mask, rubbish), rubbish).requires_grad_()
        wide_ref = padded(ref.masked_fill(~mask, rubbish), rubbish)
        wide_ranks = None if ranks is None else padded(ranks.masked_fill(~mask, -7), -7)
        losses = plackett_luce_loss(wide, wide_ref, mask=padded(mask, False), ranks=wide_ranks, top_m=top_m)
        losses.sum().backward()
        torch.testing.assert_close(losses, expected, **close)
        torch.testing.assert_close(wide.grad[:, 3:8], expected_gradient, rtol=8 * torch.finfo(dtype).eps, atol=1e-17)
        assert (wide.grad.masked_select(~padded(mask, False)) == 0).all()
        assert (expected_gradient.masked_select(~mask) == 0).all()

        free = plackett_luce_loss(wide, None, mask=padded(mask, False), ranks=wide_ranks, top_m=top_m)
        torch.testing.assert_close(
            free, plackett_luce_loss(policy, None, mask=mask, ranks=ranks, top_m=top_m), **close
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("with_ranks", [False, True])
    def test_rows_do_not_see_each_other(self, dtype, with_ranks):
        policy, ref = (logps.to(dtype) for logps in random_logps(40, 6))
        ranks, mask = random_rankings(40, 6)

        def losses_of(rows):
            rank_kwarg = {"ranks": ranks[rows]} if with_ranks else {}
            return plackett_luce_loss(policy[rows], ref[rows], mask=mask[rows], **rank_kwarg)

        everything = losses_of(slice(None))
        close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0.0}
        order = torch.randperm(40)
        torch.testing.assert_close(losses_of(order), everything[order], **close)
        for row in range(40):
            torch.testing.assert_close(losses_of(slice(row, row + 1)), everything[row : row + 1], **close)
        assert losses_of(slice(0, 0)).shape == (0,)

    def test_nan_stays_in_its_row(self):
        policy, ref = random_logps(3, 4)
        ranks = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 2], [0, 1, 2, 2]])
        policy[1, 0] = math.nan
        losses = plackett_luce_loss(policy, ref, ranks=ranks)
        assert losses.isnan().tolist() == [False, True, False]

    def test_a_larger_tie_beside_it(self):
        # Above 64 the grid of the integral depends on the largest tie of the batch, its sum does not.
        policy, ref = random_logps(2, 200)
        mask = torch.ones(2, 200, dtype=torch.bool)
        mask[0, 7:] = False
        ranks = torch.tensor([[0, 0, 0, 1, 2, 2, 3] + [0] * 193, [0] * 180 + [1] * 20])
        alone = plackett_luce_loss(policy[:1, :7], ref[:1, :7], ranks=ranks[:1, :7])
        together = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks)
        torch.testing.assert_close(together[:1], alone, rtol=1e-14, atol=0.0)

    @pytest.mark.filterwarnings("ignore:Anomaly Detection")
    def test_no_nan_on_the_way(self):
        policy, ref = random_logps(12, 5)
        ranks, mask = random_rankings(12, 5)
        ranks[0], policy[~mask] = 0, math.nan
        policy.requires_grad_()
        with torch.autograd.detect_anomaly(check_nan=True):
            plackett_luce_loss(policy, ref, mask=mask, ranks=ranks).sum().backward()
            plackett_luce_loss(policy, ref, mask=mask, top_m=2).sum().backward()

    def test_inputs_untouched(self):
        tensors = [*random_logps(12, 5), *random_rankings(12, 5)]
        before = [tensor.clone() for tensor in tensors]
        plackett_luce_loss(tensors[0], tensors[1], ranks=tensors[2], mask=tensors[3], top_m=2)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


class TestGradients:
    @pytest.mark.parametrize("top_m", [None, 1, 3])
    @pytest.mark.parametrize("with_ranks", [False, True])
    @pytest.mark.parametrize("reference_free", [False, True])
    def test_gradcheck(self, with_ranks, reference_free, top_m):
        policy, ref = random_logps(8, 5)
        ranks, mask = random_rankings(8, 5)
        policy.requires_grad_()
        ref = None if reference_free else ref
        kwargs = {"mask": mask, "ranks": ranks if with_ranks else None, "top_m": top_m}
        assert torch.autograd.gradcheck(lambda p: plackett_luce_loss(p, ref, **kwargs), (policy,))

    @pytest.mark.parametrize("shift", [-30.0, -2.0, 0.5, 3.0, 8.0])
    def test_gradcheck_of_ties_far_from_the_rest(self, shift):
        rewards = random_logps(2, 5)[0] / 10 + torch.tensor([shift] * 3 + [0.0] * 2)
        ranks = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, 2]])
        assert torch.autograd.gradcheck(lambda r: losses_of_rewards(r, ranks=ranks), (rewards.requires_grad_(),))

    def test_by_hand(self):
        # Eq. 20: each place gives -1 to its completion and its softmax to all that are left.
        rewards = (random_logps(3, 4)[0] / 10).requires_grad_()
        losses_of_rewards(rewards).sum().backward()
        expected = torch.zeros(3, 4, dtype=torch.float64)
        for place in range(4):
            expected[:, place] -= 1
            expected[:, place:] += rewards[:, place:].softmax(-1).detach()
        torch.testing.assert_close(rewards.grad, expected, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("top_m", [None, 2])
    def test_a_constant_per_prompt_changes_nothing(self, top_m):
        policy, ref = random_logps(24, 6)
        ranks, mask = random_rankings(24, 6)
        policy.requires_grad_()
        plackett_luce_loss(policy, ref, mask=mask, ranks=ranks, top_m=top_m).sum().backward()
        torch.testing.assert_close(policy.grad.sum(-1), torch.zeros(24, dtype=torch.float64), rtol=0.0, atol=1e-15)


class TestDtypes:
    @pytest.mark.parametrize(
        ("policy_dtype", "ref_dtype", "expected"),
        [
            (torch.float16, torch.float16, torch.float32),
            (torch.bfloat16, None, torch.float32),
            (torch.float32, torch.float32, torch.float32),
            (torch.bfloat16, torch.float64, torch.float64),
            (torch.float64, None, torch.float64),
        ],
    )
    def test_result(self, policy_dtype, ref_dtype, expected):
        policy, ref = random_logps(16, 5)
        policy, ref = policy.to(policy_dtype), None if ref_dtype is None else ref.to(ref_dtype)
        ranks, mask = random_rankings(16, 5)
        policy.requires_grad_()
        losses = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks)
        losses.mean().backward()
        assert losses.dtype == expected
        assert policy.grad.dtype == policy_dtype and policy.grad.isfinite().all()
        in_full = policy.to(expected), None if ref is None else ref.to(expected)
        assert torch.equal(losses, plackett_luce_loss(*in_full, mask=mask, ranks=ranks))

    @pytest.mark.parametrize("top_m", [None, 2])
    def test_float32_is_close_to_float64(self, top_m):
        policy, ref = (logps.float() for logps in random_logps(200, 6))
        ranks, mask = random_rankings(200, 6)
        losses = {}
        for dtype in (torch.float32, torch.float64):
            losses[dtype] = plackett_luce_loss(policy.to(dtype), ref.to(dtype), mask=mask, ranks=ranks, top_m=top_m)
        torch.testing.assert_close(losses[torch.float32].double(), losses[torch.float64], rtol=2e-6, atol=2e-6)

    def test_autocast_changes_nothing(self):
        policy, ref = (logps.float() for logps in random_logps(16, 5))
        ranks, mask = random_rankings(16, 5)
        expected = plackett_luce_loss(policy, ref, mask=mask, ranks=ranks)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(plackett_luce_loss(policy, ref, mask=mask, ranks=ranks), expected)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("top_m", [None, 2])
def test_without_ranks_no_value_is_read(with_mask, top_m):
    # Reading a value makes the host wait for an accelerator; tensors on "meta" have none to read.
    policy = torch.empty(3, 5, device="meta", requires_grad=True)
    mask = torch.empty(3, 5, dtype=torch.bool, device="meta") if with_mask else None
    losses = plackett_luce_loss(policy, policy.detach(), mask=mask, top_m=top_m)
    losses.mean().backward()
    assert losses.shape == (3,) and policy.grad.shape == (3, 5)
