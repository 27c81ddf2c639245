"""Preference models (Eq. 1, 18) and closed forms (Eq. 4, 5, 8, 9): identities, optimality, extreme and bad inputs."""

import math
from itertools import permutations

import pytest
import torch
from scipy.optimize import minimize

from trl_dpo_ext.theory import bradley_terry, log_partition, optimal_policy, plackett_luce, project_reward


CLOSED_FORMS = [log_partition, optimal_policy, project_reward]
BETAS = [0.05, 0.5, 1.0, 5.0]


def random_problem(num_prompts: int = 3, num_answers: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference log-probabilities and rewards, both (B, Y) in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_prompts, num_answers)
    ref = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
    return ref, torch.randn(shape, generator=generator, dtype=torch.float64)


def objective(logprobs: torch.Tensor, ref: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """Eq. 3 for each prompt: expected reward minus beta KL, in reward."""
    return (logprobs.exp() * (rewards - beta * (logprobs - ref))).sum(-1)


class TestPreferenceModels:
    def test_bradley_terry_by_hand(self):
        r1, r2 = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]], dtype=torch.float64)
        expected = torch.tensor([math.e**2 / (math.e**2 + 1), 1 / (math.e**2 + 1), 0.5], dtype=torch.float64).log()
        torch.testing.assert_close(bradley_terry(r1, r2), expected, rtol=1e-14, atol=0.0)
        assert bradley_terry(torch.tensor(3.0), torch.tensor(3.0)).item() == pytest.approx(-math.log(2))

    def test_bradley_terry_sums_to_one(self):
        r1, r2 = random_problem()
        total = bradley_terry(r1, r2).exp() + bradley_terry(r2, r1).exp()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-15, atol=0.0)

    def test_bradley_terry_is_plackett_luce_with_two(self):
        r1, r2 = random_problem(num_answers=50)
        assert torch.equal(plackett_luce(torch.stack([r1, r2], dim=-1)), bradley_terry(r1, r2))

    def test_plackett_luce_by_hand(self):
        # First e^2 of e^2 + e + 1, then e of e + 1.
        expected = math.log(math.e**2 / (math.e**2 + math.e + 1)) + math.log(math.e / (math.e + 1))
        assert plackett_luce(torch.tensor([2.0, 1.0, 0.0]).double()).item() == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("num_completions", [2, 3, 4, 5])
    def test_plackett_luce_over_all_orders_sums_to_one(self, num_completions):
        rewards = 3 * random_problem(num_answers=num_completions)[1]
        orders = torch.tensor(list(permutations(range(num_completions))))  # (K!, K)
        total = plackett_luce(rewards[:, orders]).exp().sum(-1)  # (B,)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0.0, atol=1e-12)

    @pytest.mark.parametrize("num_completions", [1, 2, 3, 6])
    def test_plackett_luce_of_equal_rewards_is_one_of_all_orders(self, num_completions):
        rewards = torch.full((num_completions,), 0.3, dtype=torch.float64)
        assert plackett_luce(rewards).item() == pytest.approx(-math.log(math.factorial(num_completions)), abs=1e-14)

    def test_plackett_luce_marginal_is_bradley_terry(self):
        # Whether a beats b does not depend on who else is ranked.
        rewards = random_problem(num_prompts=1, num_answers=4)[1][0]
        orders = torch.tensor([order for order in permutations(range(4)) if order.index(2) < order.index(0)])
        marginal = plackett_luce(rewards[orders]).logsumexp(0)
        torch.testing.assert_close(marginal, bradley_terry(rewards[2], rewards[0]), rtol=1e-13, atol=1e-13)

    def test_plackett_luce_equals_its_definition(self):
        rewards = random_problem(num_prompts=20, num_answers=7)[1]
        expected = sum(rewards[:, k] - rewards[:, k:].logsumexp(-1) for k in range(7))
        torch.testing.assert_close(plackett_luce(rewards), expected, rtol=1e-13, atol=1e-13)

    def test_leading_axes(self):
        rewards = random_problem(num_prompts=6, num_answers=4)[1]
        assert torch.equal(plackett_luce(rewards.view(2, 3, 4)), plackett_luce(rewards).view(2, 3))
        assert plackett_luce(rewards[0]).shape == ()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_extreme_rewards(self, dtype):
        rewards = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [1e4, 1e4 + 1, 1e4]], dtype=dtype).requires_grad_()
        logprobs = plackett_luce(rewards)
        logprobs.sum().backward()
        # -2e4 and -1e4 for the reversed order; the last row is (0, 1, 0) shifted.
        shifted = plackett_luce(torch.tensor([0.0, 1.0, 0.0], dtype=dtype)).item()
        expected = torch.tensor([0.0, -3e4, shifted], dtype=dtype)
        torch.testing.assert_close(logprobs.detach(), expected, rtol=1e-6, atol=1e-30)
        assert rewards.grad.isfinite().all()
        assert bradley_terry(rewards[1, 0].detach(), rewards[1, 2].detach()).item() == -2e4

    def test_gradcheck(self):
        rewards = random_problem(num_answers=4)[1].requires_grad_()
        assert torch.autograd.gradcheck(plackett_luce, (rewards,))

    def test_refused(self):
        with pytest.raises(ValueError, match=r"`r1` and `r2` of one shape, got \(3,\) and \(3, 1\)\."):
            bradley_terry(torch.zeros(3), torch.zeros(3, 1))
        for shape, text in (((), r"\(\)"), ((3, 0), r"\(3, 0\)")):
            with pytest.raises(ValueError, match=rf"`rewards` of shape \(\.\.\., K\), best first, got {text}\."):
                plackett_luce(torch.zeros(shape))


class TestClosedForms:
    @pytest.mark.parametrize("beta", BETAS)
    def test_equation_4_as_printed(self, beta):
        ref, rewards = random_problem()
        weights = ref.exp() * (rewards / beta).exp()
        partition = weights.sum(-1)
        torch.testing.assert_close(log_partition(ref, rewards, beta=beta), partition.log(), rtol=1e-12, atol=1e-12)
        policy = optimal_policy(ref, rewards, beta=beta).exp()
        torch.testing.assert_close(policy, weights / partition[:, None], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(policy.sum(-1), torch.ones(3, dtype=torch.float64), rtol=1e-14, atol=0.0)

    @pytest.mark.parametrize("beta", BETAS)
    def test_optimal_policy_maximizes_equation_3(self, beta):
        ref, rewards = random_problem()
        optimum = optimal_policy(ref, rewards, beta=beta)
        value = objective(optimum, ref, rewards, beta)
        torch.testing.assert_close(value, beta * log_partition(ref, rewards, beta=beta), rtol=1e-12, atol=1e-12)

        generator = torch.Generator().manual_seed(1)
        for scale in (1e-3, 1e-1, 1.0):
            noise = scale * torch.randn(200, *ref.shape, generator=generator, dtype=torch.float64)
            others = (optimum + noise).log_softmax(-1)
            worse = objective(others, ref, rewards, beta)
            # What is lost is exactly beta KL[pi || pi*] (App. A.1).
            lost = beta * (others.exp() * (others - optimum)).sum(-1)
            torch.testing.assert_close(value - worse, lost, rtol=1e-6, atol=1e-13)
            # Six terms are rounded about six times each: where less is lost, as by a policy that beta = 0.05 makes
            # nearly sure of one answer, the order of the sum decides.
            seen = lost > 36 * torch.finfo(torch.float64).eps * value.abs()
            assert (worse < value)[seen].all()
            assert seen.float().mean() > 0.6

    @pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])  # below, the softmax saturates and BFGS stops early
    def test_a_numerical_optimizer_finds_nothing_better(self, beta):
        ref, rewards = random_problem(num_prompts=1)

        def loss_and_gradient(logits):
            logits = torch.tensor(logits).requires_grad_()
            loss = -objective(logits.log_softmax(-1), ref[0], rewards[0], beta)
            loss.backward()
            return loss.item(), logits.grad.numpy()

        found = minimize(loss_and_gradient, ref[0].numpy(), jac=True, method="BFGS", options={"gtol": 1e-10})
        best = beta * log_partition(ref, rewards, beta=beta).item()
        assert -found.fun <= best + 1e-12
        assert -found.fun == pytest.approx(best, abs=1e-8)
        policy = optimal_policy(ref, rewards, beta=beta)[0].exp()
        torch.testing.assert_close(torch.tensor(found.x).softmax(-1), policy, rtol=0.0, atol=1e-5)

    @pytest.mark.parametrize("beta", BETAS)
    def test_equation_5_recovers_the_reward(self, beta):
        ref, rewards = random_problem()
        log_ratios = optimal_policy(ref, rewards, beta=beta) - ref
        recovered = beta * log_ratios + beta * log_partition(ref, rewards, beta=beta)[:, None]
        torch.testing.assert_close(recovered, rewards, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("beta", BETAS)
    def test_projection(self, beta):
        ref, rewards = random_problem()
        optimum = optimal_policy(ref, rewards, beta=beta)
        projected = project_reward(ref, rewards, beta=beta)
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(projected, beta * (optimum - ref), **close)  # Theorem 1
        torch.testing.assert_close(  # Eq. 9
            log_partition(ref, projected, beta=beta), torch.zeros(3, dtype=torch.float64), **close
        )
        torch.testing.assert_close(plackett_luce(projected), plackett_luce(rewards), **close)  # Lemma 1
        torch.testing.assert_close(
            bradley_terry(projected[:, 0], projected[:, 1]), bradley_terry(rewards[:, 0], rewards[:, 1]), **close
        )
        torch.testing.assert_close(optimal_policy(ref, projected, beta=beta), optimum, **close)  # Lemma 2
        torch.testing.assert_close(project_reward(ref, projected, beta=beta), projected, **close)

    @pytest.mark.parametrize("beta", BETAS)
    def test_a_constant_per_prompt_changes_nothing(self, beta):
        ref, rewards = random_problem()
        constants = torch.tensor([[-3.0], [0.5], [100.0]], dtype=torch.float64)
        shifted, close = rewards + constants, {"rtol": 1e-12, "atol": 1e-11}
        torch.testing.assert_close(
            optimal_policy(ref, shifted, beta=beta), optimal_policy(ref, rewards, beta=beta), **close
        )
        torch.testing.assert_close(
            project_reward(ref, shifted, beta=beta), project_reward(ref, rewards, beta=beta), **close
        )
        torch.testing.assert_close(plackett_luce(shifted), plackett_luce(rewards), **close)
        difference = log_partition(ref, shifted, beta=beta) - log_partition(ref, rewards, beta=beta)
        torch.testing.assert_close(difference, constants[:, 0] / beta, **close)

    def test_limits_of_beta(self):
        ref, rewards = random_problem()
        torch.testing.assert_close(optimal_policy(ref, rewards, beta=1e9), ref, rtol=0.0, atol=1e-8)
        greedy = optimal_policy(ref, rewards, beta=1e-9).exp()
        assert torch.equal(greedy, torch.nn.functional.one_hot(rewards.argmax(-1), 6).double())

    def test_equal_rewards_leave_the_reference(self):
        ref, _ = random_problem()
        rewards = torch.full_like(ref, 7.0)
        torch.testing.assert_close(optimal_policy(ref, rewards, beta=0.1), ref, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(project_reward(ref, rewards, beta=0.1), torch.zeros_like(ref), rtol=0.0, atol=1e-14)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("best", [1e4, -1e4])
    def test_large_rewards_do_not_swallow_the_reference(self, dtype, best):
        # Rewards best, best and best - 0.1, at beta 0.1: the answer is that of 0, 0 and -0.1, to the dtype's precision
        # of the rewards themselves (0.001 at 1e4 in float32; here they differ by 0.125, which is exact).
        ref = torch.tensor([0.7, 0.2, 0.1], dtype=dtype).log()
        offsets = torch.tensor([0.0, 0.0, -0.125], dtype=dtype)
        close = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-13, "atol": 1e-13}
        for function in (optimal_policy, project_reward):
            expected = function(ref, offsets, beta=0.1)
            torch.testing.assert_close(function(ref, best + offsets, beta=0.1), expected, **close)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_extreme_rewards_and_impossible_answers(self, dtype):
        ref = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5]], dtype=dtype).log()
        rewards = torch.tensor([[1e4, -1e4, 2e4], [-1e4, 1e4, 0.0], [-1e4, 1e4, -1e4]], dtype=dtype).requires_grad_()
        policy = optimal_policy(ref, rewards, beta=0.1)
        assert torch.equal(
            policy.exp().detach(), torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=dtype)
        )
        assert (policy[ref == -math.inf] == -math.inf).all()
        expected = torch.tensor([1e5 + math.log(0.5), -1e5, 1e5 + math.log(0.25)], dtype=dtype)
        torch.testing.assert_close(log_partition(ref, rewards, beta=0.1), expected, rtol=1e-7, atol=0.0)
        projected = project_reward(ref, rewards, beta=0.1)
        expected = torch.tensor([-0.1 * math.log(0.5), 0.0, -0.1 * math.log(0.25)], dtype=dtype)
        torch.testing.assert_close(projected[[0, 1, 2], [0, 0, 1]], expected, rtol=1e-5, atol=1e-7)

        expected_reward = (policy.exp() * rewards.detach()).sum()
        for value in (expected_reward, log_partition(ref, rewards, beta=0.1).sum(), projected.sum()):
            (gradient,) = torch.autograd.grad(value, rewards, retain_graph=True)
            assert gradient.isfinite().all()

    def test_impossible_answers_could_as_well_be_absent(self):
        ref, rewards = random_problem()
        impossible = torch.full((3, 2), -math.inf, dtype=torch.float64)
        padded = torch.cat([ref, impossible], dim=-1), torch.cat([rewards, 50 + 0 * impossible.exp()], dim=-1)
        for function in CLOSED_FORMS:
            expected, actual = function(ref, rewards, beta=0.5), function(*padded, beta=0.5)
            actual = actual[..., :6] if actual.dim() == 2 else actual
            torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)

    def test_gradients(self):
        ref, rewards = random_problem()
        rewards.requires_grad_()
        for function in CLOSED_FORMS:
            assert torch.autograd.gradcheck(lambda r, f=function: f(ref, r, beta=0.5), (rewards,))
        (gradient,) = torch.autograd.grad(log_partition(ref, rewards, beta=0.5).sum(), rewards)
        policy = optimal_policy(ref, rewards.detach(), beta=0.5).exp()  # beta grad log Z = pi*
        torch.testing.assert_close(0.5 * gradient, policy, rtol=1e-13, atol=1e-15)

    def test_leading_axes_and_dtypes(self):
        ref, rewards = random_problem(num_prompts=6)
        for function in CLOSED_FORMS:
            table = function(ref, rewards, beta=0.5)
            nested = function(ref.view(2, 3, 6), rewards.view(2, 3, 6), beta=0.5)
            assert torch.equal(nested.flatten(0, 1), table)
            assert torch.equal(function(ref[0], rewards[0], beta=0.5), table[0])
            assert function(ref.float(), rewards.half(), beta=0.5).dtype == torch.float32
            assert function(ref.float(), rewards, beta=0.5).dtype == torch.float64

    @pytest.mark.parametrize("function", CLOSED_FORMS)
    def test_refused(self, function):
        ref, rewards = random_problem()
        with pytest.raises(ValueError, match=r"`ref_logprobs` and `rewards` of one shape, got \(3, 6\) and \(6,\)\."):
            function(ref, rewards[0], beta=0.5)
        with pytest.raises(ValueError, match=r"`ref_logprobs` and `rewards` of shape \(\.\.\., Y\), got \(\)\."):
            function(torch.tensor(0.0), torch.tensor(0.0), beta=0.5)
        for beta in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="`beta` to be a finite number above 0"):
                function(ref, rewards, beta=beta)

        unnormalized = ref.clone()
        unnormalized[1] += 0.25
        with pytest.raises(ValueError, match=r"0 within 0\.0001, got 0\.25 for prompt 1 of 3\. .*`log_softmax\(-1\)`"):
            function(unnormalized, rewards, beta=0.5)
        with pytest.raises(ValueError, match=r"`logsumexp\(-1\)` 0 within .*, got 1\.95843 for prompt 0 of 3"):
            function(torch.full_like(ref, 1 / 6), rewards, beta=0.5)  # probabilities instead: 1/6 + log 6
        with pytest.raises(ValueError, match=r"got -inf for prompt 2 of 3"):
            function(torch.cat([ref[:2], torch.full_like(ref[:1], -math.inf)]), rewards, beta=0.5)
        with pytest.raises(ValueError, match=r"got nan for prompt 0 of 3"):
            function(torch.full_like(ref, math.nan), rewards, beta=0.5)
        function(ref + 5e-5, rewards, beta=0.5)  # rounding is not an error
