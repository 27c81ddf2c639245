"""`dpo_loss` and `implicit_rewards`: values by hand, gradients, extreme inputs, dtypes, and what they refuse."""

import math

import pytest
import torch

from trl_dpo_ext.objectives import dpo_loss
from trl_dpo_ext.rewards import implicit_rewards


HALF = [torch.float16, torch.bfloat16]
FULL = [torch.float32, torch.float64]


def log1pexp(x: float) -> float:
    return math.log1p(math.exp(x))


def random_pairs(num_pairs: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ref = -100 * torch.rand(num_pairs, 2, generator=generator, dtype=torch.float64)
    return ref + 3 * torch.randn(num_pairs, 2, generator=generator, dtype=torch.float64), ref


class TestDPOLoss:
    def test_value_by_hand(self):
        # Log-ratios to the reference: chosen +2 and -1, rejected -3 and +1, so h = 5 and -2.
        policy = torch.tensor([[-10.0, -18.0], [-31.0, -19.0]], dtype=torch.float64)
        ref = torch.tensor([[-12.0, -15.0], [-30.0, -20.0]], dtype=torch.float64)
        expected = torch.tensor([log1pexp(-0.5), log1pexp(0.2)], dtype=torch.float64)
        torch.testing.assert_close(dpo_loss(policy, ref, beta=0.1), expected, rtol=1e-15, atol=1e-15)

    def test_default_beta_is_the_paper_s(self):
        policy, ref = random_pairs()
        assert torch.equal(dpo_loss(policy, ref), dpo_loss(policy, ref, beta=0.1, label_smoothing=0.0))

    def test_reference_free_by_hand(self):
        policy = torch.tensor([[-10.0, -18.0], [-31.0, -19.0]], dtype=torch.float64)  # h = 8 and -12
        expected = torch.tensor([log1pexp(-4.0), log1pexp(6.0)], dtype=torch.float64)
        torch.testing.assert_close(dpo_loss(policy, None, beta=0.5), expected, rtol=1e-15, atol=1e-15)
        # A reference that gives both answers the same probability is no reference.
        assert torch.equal(dpo_loss(policy, torch.full_like(policy, -7.0)), dpo_loss(policy, None))

    @pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3, 0.49])
    def test_label_smoothing_is_the_mean_over_flipped_labels(self, epsilon):
        policy, ref = random_pairs()
        kept, flipped = dpo_loss(policy, ref), dpo_loss(policy.flip(1), ref.flip(1))
        expected = (1 - epsilon) * kept + epsilon * flipped
        torch.testing.assert_close(dpo_loss(policy, ref, label_smoothing=epsilon), expected, rtol=1e-14, atol=1e-14)

    @pytest.mark.parametrize("epsilon", [0.05, 0.2, 0.4])
    def test_label_smoothing_is_least_where_the_policy_believes_the_noise(self, epsilon):
        # sigmoid(beta h) = 1 - epsilon there: the gradient vanishes, and the loss is the entropy of a label.
        beta = 0.1
        policy = torch.tensor([[math.log((1 - epsilon) / epsilon) / beta, 0.0]], dtype=torch.float64).requires_grad_()
        loss = dpo_loss(policy, torch.zeros_like(policy), beta=beta, label_smoothing=epsilon)
        loss.sum().backward()
        assert policy.grad.abs().max() < 1e-16
        assert loss.item() == pytest.approx(
            -epsilon * math.log(epsilon) - (1 - epsilon) * math.log(1 - epsilon), rel=1e-14
        )

    @pytest.mark.parametrize("dtype", HALF + FULL)
    @pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.123, 0.3, 0.4999])
    @pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 5.0])
    def test_policy_equal_to_reference_gives_exactly_log_2(self, dtype, epsilon, beta):
        logps = random_pairs(64)[1].to(dtype)
        losses = dpo_loss(logps, logps.clone(), beta=beta, label_smoothing=epsilon)
        assert torch.equal(losses, torch.full_like(losses, math.log(2)))
        assert torch.equal(
            implicit_rewards(logps, logps.clone(), beta=beta), torch.zeros_like(logps, dtype=losses.dtype)
        )

    @pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
    @pytest.mark.parametrize("reference_free", [False, True])
    def test_gradient_is_the_paper_s(self, beta, reference_free):
        # Sec. 4: -beta sigmoid(r_l - r_w) on log pi(y_w), the opposite on log pi(y_l). (App. A.4 prints r_w - r_l.)
        policy, ref = random_pairs()
        policy.requires_grad_()
        dpo_loss(policy, None if reference_free else ref, beta=beta).sum().backward()

        rewards = implicit_rewards(policy, None if reference_free else ref, beta=beta)
        weights = beta * torch.sigmoid(rewards[:, 1] - rewards[:, 0])
        expected = torch.stack([-weights, weights], dim=1)
        torch.testing.assert_close(policy.grad, expected, rtol=1e-13, atol=1e-16)

    def test_gradient_of_parameters_is_the_paper_s(self):
        # The same through a model: -beta sigmoid(r_l - r_w) [grad log pi(y_w) - grad log pi(y_l)], summed over pairs.
        beta, generator = 0.3, torch.Generator().manual_seed(1)
        theta = torch.randn(4, 7, generator=generator, dtype=torch.float64).requires_grad_()  # (prompts, answers)
        ref = torch.randn(4, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
        prompts = torch.tensor([0, 0, 1, 2, 3, 3])
        answers = torch.tensor([[0, 1], [2, 0], [6, 5], [1, 4], [3, 2], [2, 6]])  # chosen, rejected

        logps = theta.log_softmax(-1)[prompts[:, None], answers]
        (actual,) = torch.autograd.grad(
            dpo_loss(logps, ref[prompts[:, None], answers], beta=beta).sum(), theta, retain_graph=True
        )

        expected = torch.zeros_like(theta)
        rewards = implicit_rewards(logps, ref[prompts[:, None], answers], beta=beta)
        for pair in range(len(prompts)):
            (grad_chosen,) = torch.autograd.grad(logps[pair, 0], theta, retain_graph=True)
            (grad_rejected,) = torch.autograd.grad(logps[pair, 1], theta, retain_graph=True)
            weight = torch.sigmoid(rewards[pair, 1] - rewards[pair, 0])
            expected -= beta * weight * (grad_chosen - grad_rejected)
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15)

    @pytest.mark.parametrize("epsilon", [0.0, 0.2])
    def test_gradcheck(self, epsilon):
        policy, ref = random_pairs(5)
        policy.requires_grad_()
        assert torch.autograd.gradcheck(lambda p: dpo_loss(p, ref, label_smoothing=epsilon), (policy,))
        assert torch.autograd.gradcheck(lambda p: dpo_loss(p, None, beta=0.02, label_smoothing=epsilon), (policy,))

    @pytest.mark.parametrize("dtype", FULL)
    @pytest.mark.parametrize("epsilon", [0.0, 0.1])
    def test_extreme_inputs(self, dtype, epsilon):
        policy = torch.tensor([[-1e4, 0.0], [0.0, -1e4], [-1e4, -1e4]], dtype=dtype).requires_grad_()
        ref = torch.tensor([[0.0, -1e4], [-1e4, 0.0], [-1e4, -1e4]], dtype=dtype)
        losses = dpo_loss(policy, ref, beta=1.0, label_smoothing=epsilon)  # h = -2e4, 2e4, 0
        losses.sum().backward()
        expected = torch.tensor([(1 - epsilon) * 2e4, epsilon * 2e4, math.log(2)], dtype=dtype)
        torch.testing.assert_close(losses.detach(), expected, rtol=1e-6, atol=0.0)
        expected = torch.tensor([-(1 - epsilon), epsilon, epsilon - 0.5], dtype=dtype)
        torch.testing.assert_close(policy.grad, torch.stack([expected, -expected], dim=1), rtol=1e-6, atol=0.0)

    def test_small_losses_keep_their_digits(self):
        # 1 - sigmoid would round to 0 here: the loss is exp(-40).
        loss = dpo_loss(torch.tensor([[40.0, 0.0]], dtype=torch.float64), None, beta=1.0)
        assert loss.item() == pytest.approx(math.exp(-40), rel=1e-12, abs=0.0)

    def test_pairs_do_not_see_each_other(self):
        policy, ref = random_pairs()
        order = torch.randperm(len(policy), generator=torch.Generator().manual_seed(2))
        assert torch.equal(dpo_loss(policy[order], ref[order]), dpo_loss(policy, ref)[order])
        assert torch.equal(dpo_loss(policy[3:4], ref[3:4]), dpo_loss(policy, ref)[3:4])
        assert dpo_loss(policy[:0], ref[:0]).shape == (0,)


class TestImplicitRewards:
    def test_value_by_hand(self):
        policy = torch.tensor([[-10.0, -18.0, -20.0], [-1.0, -2.0, -3.0]])
        ref = torch.tensor([[-12.0, -15.0, -20.0], [-3.0, -2.0, -1.0]])
        expected = torch.tensor([[1.0, -1.5, 0.0], [1.0, 0.0, -1.0]])
        assert torch.equal(implicit_rewards(policy, ref, beta=0.5), expected)

    def test_reference_free(self):
        policy = torch.tensor([[-10.0, -18.0, -20.0]])
        assert torch.equal(implicit_rewards(policy, None, beta=0.5), torch.tensor([[-5.0, -9.0, -10.0]]))

    @pytest.mark.parametrize("reference_free", [False, True])
    def test_detached_and_inputs_untouched(self, reference_free):
        policy, ref = random_pairs()
        policy.requires_grad_(), ref.requires_grad_()
        before = policy.detach().clone(), ref.detach().clone()
        rewards = implicit_rewards(policy, None if reference_free else ref, beta=0.1)
        assert not rewards.requires_grad and rewards.grad_fn is None
        rewards.zero_()
        assert torch.equal(policy, before[0]) and torch.equal(ref, before[1])

    def test_margin_explains_the_loss(self):
        policy, ref = random_pairs()
        rewards = implicit_rewards(policy, ref, beta=0.2)
        expected = torch.log1p(torch.exp(rewards[:, 1] - rewards[:, 0]))
        torch.testing.assert_close(dpo_loss(policy, ref, beta=0.2), expected, rtol=1e-13, atol=1e-13)

    def test_one_completion(self):
        assert implicit_rewards(torch.zeros(3, 1), torch.ones(3, 1), beta=0.1).shape == (3, 1)


@pytest.mark.parametrize(
    ("policy_dtype", "ref_dtype", "expected"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float16, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.float64, torch.float64),
        (torch.bfloat16, None, torch.float32),
        (torch.float64, None, torch.float64),
    ],
)
def test_dtypes(policy_dtype, ref_dtype, expected):
    policy, ref = random_pairs()
    policy, ref = policy.to(policy_dtype), None if ref_dtype is None else ref.to(ref_dtype)
    in_full = policy.to(expected), None if ref is None else ref.to(expected)

    losses, rewards = dpo_loss(policy, ref), implicit_rewards(policy, ref, beta=0.1)
    assert losses.dtype == rewards.dtype == expected
    assert torch.equal(losses, dpo_loss(*in_full))  # promoted before the first subtraction
    assert torch.equal(rewards, implicit_rewards(*in_full, beta=0.1))

    policy.requires_grad_()
    dpo_loss(policy, ref).mean().backward()
    assert policy.grad.dtype == policy_dtype and policy.grad.isfinite().all()


class TestRefused:
    @pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 3), (2, 8, 2), (), (2,)])
    @pytest.mark.parametrize("reference_free", [False, True])
    def test_policy_not_pairs(self, shape, reference_free):
        logps = torch.zeros(shape)
        message = rf"`policy_logps` of shape \(B, 2\), columns chosen and rejected, got {_escaped(shape)}\."
        with pytest.raises(ValueError, match=message):
            dpo_loss(logps, None if reference_free else logps)

    @pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 2), (2,), (4, 2), (8, 4)])
    def test_shapes_differ(self, shape):
        message = rf"`policy_logps` and `ref_logps` of one shape, got \(8, 2\) and {_escaped(shape)}\."
        with pytest.raises(ValueError, match=message):
            dpo_loss(torch.zeros(8, 2), torch.zeros(shape))
        with pytest.raises(ValueError, match=message):
            implicit_rewards(torch.zeros(8, 2), torch.zeros(shape), beta=0.1)

    @pytest.mark.parametrize("shape", [(8,), (2, 8, 2), ()])
    def test_rewards_not_a_table(self, shape):
        message = rf"`policy_logps` of shape \(B, K\), one column per completion, got {_escaped(shape)}\."
        with pytest.raises(ValueError, match=message):
            implicit_rewards(torch.zeros(shape), torch.zeros(shape), beta=0.1)

    @pytest.mark.parametrize("beta", [0, 0.0, -0.1, math.inf, -math.inf, math.nan, "0.1", None])
    def test_beta(self, beta):
        logps = torch.zeros(8, 2)
        for function in (dpo_loss, implicit_rewards):
            with pytest.raises(ValueError, match=r"`beta` to be a finite number above 0 .*, got ") as error:
                function(logps, logps, beta=beta)
            assert str(error.value).endswith(f"got {beta!r}.")

    @pytest.mark.parametrize("epsilon", [-0.1, 0.5, 0.9, 1.0, math.nan, math.inf])
    def test_label_smoothing(self, epsilon):
        with pytest.raises(ValueError, match=r"`label_smoothing` .* in \[0, 0\.5\), got ") as error:
            dpo_loss(torch.zeros(8, 2), torch.zeros(8, 2), label_smoothing=epsilon)
        assert str(error.value).endswith(f"got {epsilon!r}.")


def _escaped(shape: tuple[int, ...]) -> str:
    return str(shape).replace("(", r"\(").replace(")", r"\)")
