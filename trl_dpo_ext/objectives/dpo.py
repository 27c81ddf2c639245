"""The DPO loss on pairs (Eq. 7) and its conservative form for noisy labels (cDPO)."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from ._checks import check_beta, check_logps


__all__ = ["dpo_loss"]


def dpo_loss(
    policy_logps: Tensor, ref_logps: Tensor | None, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    r"""
    Negative log-likelihood of each observed preference under the Bradley-Terry model, with implicit rewards.

    $$ L = -(1 - \epsilon) \log \sigma(\beta h) - \epsilon \log \sigma(-\beta h), \qquad
       h = \log \frac{\pi_\theta(y_w|x)}{\pi_{ref}(y_w|x)} - \log \frac{\pi_\theta(y_l|x)}{\pi_{ref}(y_l|x)} $$

    With `label_smoothing` \\(\epsilon = 0\\) this is [Eq. 7](https://huggingface.co/papers/2305.18290) of Rafailov et
    al. (2023), and its gradient is that of section 4, \\(-\beta\, \sigma(r_l - r_w) [\nabla \log \pi_\theta(y_w|x) -
    \nabla \log \pi_\theta(y_l|x)]\\). With \\(\epsilon > 0\\) it is conservative DPO (Eq. 3 of
    https://ericmitchell.ai/cdpo.pdf).
    Differs from the paper: `label_smoothing` and the reference-free form come from the authors' code. The loss is one
    value per pair, not its expectation. Take the mean for Eq. 7.

    Args:
        policy_logps (`torch.Tensor` of shape `(B, 2)`, float):
            Log-probability of each completion under the policy, summed over its tokens, in nats. Column 0 is the
            chosen completion, column 1 the rejected one.
        ref_logps (`torch.Tensor` of shape `(B, 2)`, float, or `None`):
            Same under the frozen reference, computed without gradient. `None` means a log-ratio of 0 between the
            completions (reference-free).
        beta (`float`, *optional*, defaults to `0.1`):
            Strength of the KL constraint, > 0, in reward per nat.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Probability that a label is flipped, in [0, 0.5). At 0.5 the labels carry no information, and the loss is
            smallest where the policy does not prefer either completion. Above 0.5 the rejected one would win.

    Returns:
        `torch.Tensor` of shape `(B,)`: losses in nats, with gradient. float64 if an input is, float32 otherwise.

    Raises:
        ValueError: If `policy_logps` is not `(B, 2)`, the two shapes differ, or an option is out of its range.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.objectives import dpo_loss
    >>> ref = torch.tensor([[-12.0, -15.0], [-30.0, -20.0]])
    >>> dpo_loss(ref, ref)  # nothing learned yet: log 2
    tensor([0.6931, 0.6931])
    >>> policy = torch.tensor([[-10.0, -18.0], [-31.0, -19.0]])  # h = 5 and -2
    >>> dpo_loss(policy, ref, beta=0.1)
    tensor([0.4741, 0.7981])

    ```
    """
    policy_logps, ref_logps = check_logps(policy_logps, ref_logps, pairs=True)
    check_beta(beta)
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(
            "Expected `label_smoothing` to be the probability that a label is flipped, in [0, 0.5), got "
            f"{label_smoothing!r}."
        )
    # Chosen minus rejected within each model first, as the authors do. The sums then round as in their code, and h is
    # exactly 0 if the policy equals the reference.
    h = policy_logps[:, 0] - policy_logps[:, 1]  # (B,)
    if ref_logps is not None:
        h = h - (ref_logps[:, 0] - ref_logps[:, 1])
    logits = beta * h
    # Eq. 7. The flipped term is -log sigmoid(-z) = -log sigmoid(z) + z. In this form, h = 0 gives exactly log 2 for
    # any `label_smoothing`.
    return -logsigmoid(logits) + label_smoothing * logits
