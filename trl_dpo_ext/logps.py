"""From a batch and a model to log-probabilities of completions, through TRL's fused LM head (never full logits)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trl_dpo_ext.shared_prompt.groups import PromptGroups


__all__ = [
    "CompletionLogps",
    "completion_logps",
    "completion_token_logps",
    "existing_completions",
    "find_groups",
    "from_fused_output",
    "stacked_to_pairs",
    "to_groups",
]

# Entries of a batch that are not arguments of the model
_NOT_FOR_THE_MODEL = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}


@dataclass
class CompletionLogps:
    r"""
    What one forward says about N completions of T - 1 scored positions.

    Args:
        logps (`torch.Tensor` of shape `(N,)`):
            \\( \log \pi(y|x) \\), summed over the completion's tokens, EOS included; nats, float32, with gradient.
        token_logps (`torch.Tensor` of shape `(N, T - 1)`):
            The same of each token, 0 outside `mask`; with gradient.
        mask (`torch.Tensor` of shape `(N, T - 1)`, bool):
            `True` where the next token belongs to the completion.
        entropy, mean_logits, is_top1 (`torch.Tensor` of shape `(N, T - 1)`):
            Entropy of the next-token distribution in nats, mean logit, and whether the token is the most likely one;
            0 outside `mask`. No gradient.
        aux_loss (`torch.Tensor`, *optional*):
            Load-balancing loss of a mixture-of-experts model.
    """

    logps: Tensor
    token_logps: Tensor
    mask: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor
    aux_loss: Tensor | None


def completion_logps(model: Callable[..., Any], batch: Mapping[str, Any], **model_kwargs: Any) -> CompletionLogps:
    """
    Runs `model` on a batch in the layout of TRL's preference collators and sums the completions' log-probabilities.

    Args:
        model (`Callable`):
            Causal language model with TRL's fused LM head, or anything that calls one with the same arguments.
        batch (`Mapping`):
            `input_ids` and `completion_mask` of shape `(N, T)`, with whatever else the model takes; `prompt_groups`
            for a model with a [`~trl_dpo_ext.shared_prompt.forward.GroupedForward`].
        model_kwargs:
            Further arguments of the model.

    Returns:
        [`CompletionLogps`]
    """
    return from_fused_output(_fused_output(model, batch, **model_kwargs), batch)


def completion_token_logps(
    model: Callable[..., Any], batch: Mapping[str, Any], **model_kwargs: Any
) -> tuple[Tensor, Tensor]:
    """
    Runs `model` as [`completion_logps`] does, for log-probabilities alone: the fused LM head may compute nothing else.

    Args:
        model (`Callable`):
            As in [`completion_logps`].
        batch (`Mapping`):
            As in [`completion_logps`].
        model_kwargs:
            Further arguments of the model.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Log-probability of each next token `(N, T - 1)` in nats, 0 where it does
        not belong to the completion, with gradient; and `(N, T - 1)`, bool, `True` where it does.
    """
    mask = batch["completion_mask"][:, 1:].bool()
    log_probs: Tensor = _fused_output(model, batch, **model_kwargs).log_probs
    return log_probs[:, -mask.size(1) :], mask


def _fused_output(model: Callable[..., Any], batch: Mapping[str, Any], **model_kwargs: Any) -> Any:
    inputs = {name: value for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return model(**inputs, **model_kwargs, use_cache=False, labels=labels, fused_lm_head=True)


def from_fused_output(outputs: Any, batch: Mapping[str, Any], ld_alpha: float | None = None) -> CompletionLogps:
    """
    Reads a [`CompletionLogps`] from the output of a fused LM head that scored `batch`.

    With `ld_alpha`, tokens beyond the length that a pair's completions share count `ld_alpha` times (LD-DPO).
    """
    mask = batch["completion_mask"][:, 1:].bool()  # (N, T - 1)
    # Prompt-learning adapters put virtual tokens in front; the last T - 1 positions are the real ones
    length = mask.size(1)
    token_logps = outputs.log_probs[:, -length:]  # (N, T - 1); 0 outside the completion
    if ld_alpha is None:
        logps = token_logps.sum(dim=1)
    else:
        lengths = stacked_to_pairs(mask.sum(dim=1))  # (B, 2)
        shared = lengths.amin(dim=1).repeat(2)[:, None]  # (N, 1)
        tail = mask.cumsum(dim=1) > shared
        # Added up as TRL's reference is, so that equal policies have equal sums to the last bit
        logps = (token_logps * ~tail).sum(dim=1) + ld_alpha * (token_logps * tail).sum(dim=1)
    return CompletionLogps(
        logps=logps,  # (N,)
        token_logps=token_logps,
        mask=mask,
        entropy=outputs.entropy[:, -length:].detach(),
        mean_logits=outputs.mean_logits[:, -length:],
        is_top1=outputs.is_top1[:, -length:],
        aux_loss=outputs.aux_loss,
    )


def stacked_to_pairs(stacked: Tensor) -> Tensor:
    """Turns TRL's stacked rows, `[all chosen; all rejected]` of shape `(2B, ...)`, into `(B, 2, ...)`."""
    pairs: Tensor = torch.unflatten(stacked, 0, (2, -1)).transpose(0, 1)
    return pairs


def find_groups(batch: Mapping[str, Any], most: int | None = None) -> PromptGroups:
    """
    Finds which rows of a batch share a prompt: TRL's stacked pairs, or groups `(B, K, T)` of ranked completions.

    `most` is the number of completions of the largest group of any process's batches.
    """
    ranked = "rank_mask" in batch
    names = ("input_ids", "attention_mask", "completion_mask")
    in_groups = {name: batch[name] if ranked else stacked_to_pairs(batch[name]) for name in names}
    return PromptGroups.find(**in_groups, stacked=not ranked, most=most)


def existing_completions(batch: Mapping[str, Any], groups: PromptGroups) -> dict[str, Tensor]:
    """The completions `(N, T)` that exist in a batch of groups `(B, K, T)`, row by row: absent ones are never run."""
    rows = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask", "completion_mask")}
    return rows if groups.places is None else {name: values[groups.places] for name, values in rows.items()}


def to_groups(values: Tensor, groups: PromptGroups) -> Tensor:
    """Puts values `(N, ...)` of the completions that exist back in their groups, `(B, K, ...)`, 0 where none is."""
    size = (len(groups.members), groups.completions)
    if groups.places is not None:
        whole = values.new_zeros(size[0] * size[1], *values.shape[1:])
        values = whole.index_copy(0, groups.places, values)
    return torch.unflatten(values, 0, size)
