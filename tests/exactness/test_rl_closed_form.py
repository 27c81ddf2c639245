"""RL on Eq. 3 ends at its closed form, Eq. 4, where all completions can be enumerated, and at KL targets."""

import pytest
import torch
from exactness.bandit import Bandit
from reinforced import logged

from trl_dpo_ext import KLTargetCallback
from trl_dpo_ext.theory import optimal_policy


pytestmark = pytest.mark.usefixtures("float64")


def kl(policy: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of each prompt, in nats."""
    return (policy.exp() * (policy - other)).sum(-1)


# Whitened advantages of a policy near the optimum are noise of variance 1, so PPO runs without
OPTIONS = {"rloo": {}, "ppo": {"num_iterations": 2, "whiten_advantages": False}}
# Completions of an update: half as many as PPO needs to come as near to Eq. 4
FEWER = {"per_device_train_batch_size": 128, "num_generations": 64}
TO_EQ_4 = {"rloo": {"max_steps": 60} | FEWER, "ppo": {"max_steps": 80}}
TO_A_TARGET = {"rloo": {"max_steps": 45} | FEWER, "ppo": {"max_steps": 60} | FEWER}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "beta"), [("rloo", 0.5), ("rloo", 1.0), ("ppo", 0.5)])
def test_ends_at_eq_4(kind, beta, tmp_path):
    bandit = Bandit()
    ref = bandit.logps()
    optimum = optimal_policy(ref, bandit.rewards, beta=beta)
    bandit.trainer(kind, tmp_path, beta=beta, **OPTIONS[kind] | TO_EQ_4[kind]).train()
    found = bandit.logps()

    def objective(policy):  # Eq. 3
        return ((policy.exp() * bandit.rewards).sum(-1) - beta * kl(policy, ref)).mean()

    assert kl(ref, optimum).min() > 0.1  # training has to move
    assert kl(found, optimum).max() < 0.02
    assert objective(ref) < 0.9 * objective(optimum)
    assert 0.99 * objective(optimum) < objective(found) < objective(optimum)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "target"), [("rloo", 1.0), ("rloo", 3.0), ("ppo", 3.0)])
def test_ends_at_a_kl_target(kind, target, tmp_path):
    bandit = Bandit(length=3)
    rate = {"learning_rate": 3e-3, "lr_scheduler_type": "constant_with_warmup"}
    trainer = bandit.trainer(kind, tmp_path, beta=0.35, **OPTIONS[kind] | TO_A_TARGET[kind] | rate)
    trainer.add_callback(KLTargetCallback(trainer, target=target, horizon=500))
    trainer.train()
    logs = [log for log in logged(trainer) if "kl_sequence" in log][-15:]  # of generations
    assert sum(log["kl_sequence"] for log in logs) / len(logs) == pytest.approx(target, rel=0.25)
