"""Two prompts with six answers each, a known reward, a reference, and a policy that is one logit per answer."""

from collections.abc import Callable

import torch


REWARDS = torch.tensor(
    [[1.2, 0.4, 0.0, -0.3, -0.9, 0.7], [-2.0, 1.0, 0.5, 0.0, 1.5, -1.0]], dtype=torch.float64
)  # (B, Y)
REF = torch.tensor(
    [[0.05, 0.10, 0.40, 0.20, 0.15, 0.10], [0.30, 0.02, 0.08, 0.25, 0.05, 0.30]], dtype=torch.float64
).log()


def train(loss_of_policy: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Log-probabilities (B, Y) of the policy that minimizes the loss, started at the reference."""
    logits = REF.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of_policy(logits.log_softmax(-1))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


def kl_to(closed_form: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    return (closed_form.exp() * (closed_form - policy)).sum(-1)  # (B,)
