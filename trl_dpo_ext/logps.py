"""Log-probabilities of completions from a batch and a model, with TRL's fused LM head (without full logits)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


__all__ = [
    "CompletionLogps",
    "completion_logps",
    "completion_token_logps",
    "from_fused_output",
]

# Entries of a batch that are not inputs of the model
_NOT_FOR_THE_MODEL = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}


@dataclass
class CompletionLogps:
    r"""
    Output of a forward pass for N completions with T - 1 scored positions. By prompt, `N` becomes `(B, K)`.

    Args:
        logps (`torch.Tensor` of shape `(N,)`):
            \\( \log \pi(y|x) \\), summed over the tokens of the completion including EOS, in nats, float32, with
            gradient.
        token_logps (`torch.Tensor` of shape `(N, T - 1)`):
            Same for each token, 0 outside `mask`, with gradient.
        mask (`torch.Tensor` of shape `(N, T - 1)`, bool):
            `True` where the next token belongs to the completion.
        entropy, mean_logits, is_top1 (`torch.Tensor` of shape `(N, T - 1)`):
            Entropy of the next-token distribution in nats, mean logit, and whether the token is the most likely one. 0
            outside `mask`. Without gradient.
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

    def regrouped(self, to_groups: Callable[[Tensor], Tensor]) -> "CompletionLogps":
        """Returns the same by prompt, in shapes `(B, K, ...)`, see [`~trl_dpo_ext.batches.Batch.to_groups`]."""
        return CompletionLogps(
            logps=to_groups(self.logps),
            token_logps=to_groups(self.token_logps),
            mask=to_groups(self.mask),
            entropy=to_groups(self.entropy),
            mean_logits=to_groups(self.mean_logits),
            is_top1=to_groups(self.is_top1),
            aux_loss=self.aux_loss,
        )


def completion_logps(model: Callable[..., Any], batch: Mapping[str, Any], **model_kwargs: Any) -> CompletionLogps:
    """
    Runs `model` on a batch in the layout of TRL's preference collators and sums log-probabilities by completion.

    Args:
        model (`Callable`):
            Causal language model with TRL's fused LM head, or anything that calls one with the same arguments.
        batch (`Mapping`):
            `input_ids` and `completion_mask` of shape `(N, T)`, and other inputs of the model; `prompt_groups` for a
            model with a [`~trl_dpo_ext.shared_prompt.forward.GroupedForward`].
        model_kwargs:
            Other arguments of the model.

    Returns:
        [`CompletionLogps`]
    """
    return from_fused_output(_fused_output(model, batch, **model_kwargs), batch)


def completion_token_logps(
    model: Callable[..., Any], batch: Mapping[str, Any], **model_kwargs: Any
) -> tuple[Tensor, Tensor]:
    """
    Runs `model` like [`completion_logps`], but only for log-probabilities, so the fused LM head can skip the rest.

    Args:
        model (`Callable`):
            Same as in [`completion_logps`].
        batch (`Mapping`):
            Same as in [`completion_logps`].
        model_kwargs:
            Other arguments of the model.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Log-probability of each next token `(N, T - 1)` in nats, 0 outside
        completions, with gradient; and a mask `(N, T - 1)`, bool, `True` in completions.
    """
    mask = batch["completion_mask"][:, 1:].bool()
    log_probs: Tensor = _fused_output(model, batch, **model_kwargs).log_probs
    return log_probs[:, -mask.size(1) :], mask


def _fused_output(model: Callable[..., Any], batch: Mapping[str, Any], **model_kwargs: Any) -> Any:
    inputs = {name: value for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return model(**inputs, **model_kwargs, use_cache=False, labels=labels, fused_lm_head=True)


def from_fused_output(outputs: Any, batch: Mapping[str, Any]) -> CompletionLogps:
    """Reads a [`CompletionLogps`] from the output of a fused LM head that scored `batch`."""
    mask = batch["completion_mask"][:, 1:].bool()  # (N, T - 1)
    # Prompt-learning adapters add virtual tokens at the start. The last T - 1 positions are the real ones
    length = mask.size(1)
    token_logps = outputs.log_probs[:, -length:]  # (N, T - 1); 0 outside the completion
    return CompletionLogps(
        logps=token_logps.sum(dim=1),  # (N,)
        token_logps=token_logps,
        mask=mask,
        entropy=outputs.entropy[:, -length:].detach(),
        mean_logits=outputs.mean_logits[:, -length:],
        is_top1=outputs.is_top1[:, -length:],
        aux_loss=outputs.aux_loss,
    )
