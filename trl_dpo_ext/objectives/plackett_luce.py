r"""
The Plackett-Luce loss on rankings of K completions (Eq. 20), exact for ties, partial rankings and rows of unequal K.

Each rank compares its completion with all completions ranked below it, so the loss only needs to know who ranks below
whom. Axes: **B** prompts, **K** completions, **M** groups of tied completions in the batch, **G** completions in the
largest group, **S** nodes of a quadrature.
"""

import math
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._checks import check_beta, check_logps, check_same_shape


__all__ = ["plackett_luce_loss"]


def plackett_luce_loss(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    *,
    beta: float = 0.1,
    mask: Tensor | None = None,
    ranks: Tensor | None = None,
    top_m: int | None = None,
    has_ties: bool | None = None,
) -> Tensor:
    r"""
    Negative log-likelihood of each observed ranking under the Plackett-Luce model, with implicit rewards.

    $$ L = -\sum_{k=1}^{K} \log \frac{\exp r_k}{\sum_{j \ge k} \exp r_j}, \qquad
       r_k = \beta \log \frac{\pi_\theta(y_k|x)}{\pi_{ref}(y_k|x)} $$

    [Eq. 20](https://huggingface.co/papers/2305.18290) of Rafailov et al. (2023), App. A.3. With `K = 2` this is Eq. 7,
    [`dpo_loss`].
    Differs from the paper: rows may have fewer than K completions, ranks may be tied, and only the first ranks may be
    observed. A tie means that the order is unknown, not that the rewards are equal. The loss is minus the logarithm of
    the summed probability of all orders that the ranking allows,

    $$ L = -\sum_G \log P(G \succ R), \qquad
       P(G \succ R) = \int_{-\infty}^{\infty} e^{s - e^s} \prod_{a \in G} \left(1 - \exp(-e^{s + r_a - s_R})\right) ds,
       \qquad s_R = \log \sum_{j \in R} \exp r_j $$

    over the groups G of equal rank, where R are all completions ranked below G. The last group has none below it and
    no loss, so a row with a single tie has loss 0. A group of one is a term of Eq. 20.
    The loss is one value per ranking, not its expectation. Take the mean for Eq. 20.

    Args:
        policy_logps (`torch.Tensor` of shape `(B, K)`, float):
            Log-probability of each completion under the policy, summed over its tokens, in nats. Memory grows with K
            squared.
        ref_logps (`torch.Tensor` of shape `(B, K)`, float, or `None`):
            Same under the frozen reference, computed without gradient. `None` means a log-ratio of 0 between any two
            completions (reference-free).
        beta (`float`, *optional*, defaults to `0.1`):
            Strength of the KL constraint, > 0, in reward per nat.
        mask (`torch.Tensor` of shape `(B, K)`, bool, *optional*):
            `True` where a completion exists, at least twice in a row. Other values have no effect, and their gradient
            is 0. By default all completions exist.
        ranks (`torch.Tensor` of shape `(B, K)`, integer, *optional*):
            Rank of each completion, 0 or more, the lowest is best. Only their order counts. Gaps are allowed, equal
            ranks are ties, and completions without a rank share the highest. By default the columns are in ranked
            order, best first.
        top_m (`int`, *optional*):
            Number of observed ranks, >= 1. The completions after rank `top_m` are below the others and otherwise
            unordered. A tie that extends beyond this rank counts completely. By default all ranks are observed.
        has_ties (`bool`, *optional*):
            `False` if it is known that no two completions of a row share a rank, and that all rows are valid. Then
            no value is read and the host does not wait for an accelerator. By default rows are checked.

    Returns:
        `torch.Tensor` of shape `(B,)`: losses in nats, with gradient. float64 if `policy_logps` or `ref_logps` is,
        float32 otherwise. The integral is computed in float64 (except on MPS), to about 1e-14 of its loss.

    Raises:
        ValueError: If `policy_logps` is not `(B, K)` with K >= 2, a shape differs, `mask` is not boolean or `ranks`
            not integer, an option is out of range, or a row has a negative rank or fewer than two completions.
            The rows are checked only with `ranks`, which synchronizes an accelerator once, or twice if there are ties.
            Without `ranks`, a single completion has loss 0.

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.objectives import plackett_luce_loss
    >>> ref = torch.tensor([[-12.0, -15.0, -11.0], [-30.0, -20.0, -25.0]])
    >>> plackett_luce_loss(ref, ref)  # nothing learned yet: log 3!
    tensor([1.7918, 1.7918])
    >>> policy = torch.tensor([[-2.0, -15.0, -21.0], [-30.0, -20.0, -25.0]])  # r = (1, 0, -1) and (0, 0, 0)
    >>> plackett_luce_loss(policy, ref, beta=0.1)
    tensor([0.7209, 1.7918])
    >>> ranks = torch.tensor([[0, 0, 1], [0, 1, 1]])  # the third is last; the first is best: 2 of 3! orders each
    >>> plackett_luce_loss(policy, ref, beta=0.1, ranks=ranks)
    tensor([0.3540, 1.0986])
    >>> plackett_luce_loss(policy, ref, beta=0.1, top_m=1)  # the first is best
    tensor([0.4076, 1.0986])

    ```
    """
    policy_logps, ref_logps = check_logps(policy_logps, ref_logps)
    check_beta(beta)
    _check_arguments(policy_logps, mask, ranks, top_m)
    if mask is None:
        exist = torch.ones_like(policy_logps, dtype=torch.bool)
    else:  # values without a completion, also NaN, must not reach a sum or a gradient
        exist = mask
        policy_logps = policy_logps.masked_fill(~mask, 0.0)
        ref_logps = None if ref_logps is None else ref_logps.masked_fill(~mask, 0.0)

    # Entry (k, j): whether j ranks below k
    both_exist = exist[:, :, None] & exist[:, None, :]  # (B, K, K)
    if ranks is None:
        below, tied = both_exist.triu(1), None
    else:
        below = both_exist & (ranks[:, None, :] > ranks[:, :, None])
        tied = both_exist & (ranks[:, None, :] == ranks[:, :, None])
    contested = below.any(-1)  # (B, K); a completion without any below it has probability 1
    counted = contested if top_m is None else contested & (below.sum(-2) < top_m)  # number of completions above
    largest_tie = 1
    if has_ties is not False:
        largest_tie = _largest_tie(exist, ranks, None if tied is None else tied.sum(-1) * counted)

    # Differences within each model first, as in `dpo_loss`: with K = 2 the numbers are the same, and they are exactly
    # 0 if the policy equals the reference.
    differences = policy_logps[:, None, :] - policy_logps[:, :, None]  # (B, K, K), of j to k
    if ref_logps is not None:
        differences = differences - (ref_logps[:, None, :] - ref_logps[:, :, None])
    # log sum_{j below k} exp(r_j - r_k). Rows without any below stay unmasked: they are finite, and not counted.
    rest = (beta * differences).masked_fill(~below & contested[:, :, None], -torch.inf).logsumexp(-1)  # (B, K)
    losses = (-logsigmoid(-rest)).masked_fill(~counted, 0.0)  # (B, K), Eq. 20
    if tied is not None and largest_tie > 1:
        losses = _with_ties(losses, rest, tied & counted[:, :, None], largest_tie)
    return losses.sum(-1)


def _with_ties(losses: Tensor, rest: Tensor, tied: Tensor, largest_tie: int) -> Tensor:
    """Returns the losses by rank `(B, K)`, with the loss of each tie in its first column and 0 in its others."""
    shares = tied.sum(-1) > 1  # (B, K)
    first = ~tied.tril(-1).any(-1)  # (B, K)
    rows, columns = (shares & first).nonzero(as_tuple=True)  # (M,)
    members = tied[rows, columns]  # (M, K)
    to_front = members.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :largest_tie]  # (M, G)
    of_ties = _tie_losses(rest[rows].gather(-1, to_front), members.gather(-1, to_front))  # (M,)
    return losses.masked_fill(shares, 0.0).index_put((rows, columns), of_ties.to(losses.dtype))


def _tie_losses(rest: Tensor, members: Tensor) -> Tensor:
    r"""
    Returns \\(-\log P(G \succ R)\\) of each tie, `(M,)` in float64, from \\(s_R - r_a\\) and a mask, both `(M, G)`.

    If a arrives at rate \\(e^{r_a}\\) and the first of R at rate \\(e^{s_R}\\), the integral is the probability that
    all of G arrive before the first of R. The integrand has one peak, is analytic and falls off at least exponentially
    on both sides, so the error of the trapezoid rule falls faster than any power of the step.
    """
    # MPS has no float64. float32 is accurate to 1e-6 here
    leads = -rest.to(torch.float32 if rest.device.type == "mps" else torch.float64)  # (M, G), r_a - s_R
    lowest = leads.detach().masked_fill(~members, torch.inf).amin(-1, keepdim=True)  # (M, 1)

    # The peak lies between 0 and log(G + 1), and narrows as 1 / sqrt(G). If all of G are far above R, 1 - P comes from
    # around -lowest.
    size = members.shape[1]
    lower, upper = -40.0, 4.0 + math.log(size + 1)
    num_steps = math.ceil((upper - lower) * (24.0 + 6.5 * math.sqrt(size)) / math.tau)
    grid = torch.linspace(lower, upper, num_steps + 1, dtype=leads.dtype, device=leads.device)  # (S,)
    step = (upper - lower) / num_steps
    s = grid - lowest.clamp(min=0.0)  # (M, S), logarithm of the time, in units of the mean time until R arrives
    log_density = s - s.exp()

    # log(1 - exp(-e^x)) is 0 above x = 7 and x below x = -40, to the last digit, and so are the gradients.
    x = (s[:, :, None] + leads[:, None, :]).clamp(max=7.0)  # (M, S, G)
    middle = x.clamp(min=-40.0)
    log_arrived = (-torch.expm1(-middle.exp())).log() + (x - middle)
    log_arrived = log_arrived.masked_fill(~members[:, None, :], 0.0).sum(-1)  # (M, S)

    # Near 1, the logarithm of P would lose digits, so 1 - P is summed instead
    log_p = (log_density + log_arrived).logsumexp(-1) + math.log(step)  # (M,)
    missing = -(log_density.exp() * log_arrived.expm1()).sum(-1) * step
    near_one = missing < 0.5
    return torch.where(near_one, -torch.log1p(-missing.where(near_one, 0.5)), -log_p)


def _check_arguments(logps: Tensor, mask: Tensor | None, ranks: Tensor | None, top_m: int | None) -> None:
    """Checks the arguments without reading values of tensors."""
    if logps.shape[1] < 2:
        raise ValueError(
            f"Expected `policy_logps` of shape (B, K) with at least 2 completions, got {tuple(logps.shape)}."
        )
    if mask is not None:
        check_same_shape("policy_logps", logps, "mask", mask)
        if mask.dtype != torch.bool:
            raise ValueError(f"Expected `mask` to be boolean, True where a completion exists, got {mask.dtype}.")
    if ranks is not None:
        check_same_shape("policy_logps", logps, "ranks", ranks)
        if ranks.dtype == torch.bool or ranks.dtype.is_floating_point or ranks.dtype.is_complex:
            raise ValueError(f"Expected `ranks` to be integers, 0 for the best, got {ranks.dtype}.")
    if top_m is not None and (not isinstance(top_m, Integral) or isinstance(top_m, bool) or top_m < 1):
        raise ValueError(
            "Expected `top_m` to be the number of observed ranks, an integer of at least 1, or `None` for all, "
            f"got {top_m!r}."
        )


def _largest_tie(exist: Tensor, ranks: Tensor | None, sizes: Tensor | None) -> int:
    """Returns the largest of the `sizes` of ties `(B, K)`, and checks the rows. Synchronizes the device once."""
    wrong = exist.sum(-1) < 2  # (B,)
    if ranks is None or sizes is None:
        if exist.device.type == "cpu" and wrong.any():
            raise _row_error(wrong, exist, ranks)
        return 1
    wrong = wrong | (exist & (ranks < 0)).any(-1)
    if len(wrong) == 0:
        return 1
    any_wrong, largest_tie = torch.stack([wrong.any().long(), sizes.max()]).tolist()
    if any_wrong:
        raise _row_error(wrong, exist, ranks)
    return int(largest_tie)


def _row_error(wrong: Tensor, exist: Tensor, ranks: Tensor | None) -> ValueError:
    row = int(wrong.nonzero()[0])
    num_completions = int(exist[row].sum())
    if ranks is None or num_completions < 2:
        return ValueError(
            f"Expected at least 2 completions in every row, got {num_completions} in row {row} of {len(exist)}. Drop "
            "rows with fewer before training, or correct `mask`."
        )
    return ValueError(
        f"Expected `ranks` of 0 or more where a completion exists, got {ranks[row][exist[row]].tolist()} in row {row} "
        f"of {len(exist)}. Count from 0 for the best, and set `mask` to False where there is no completion."
    )
