"""TRL's other losses, computed from stacked pairs by TRL's own code."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from trl import DPOTrainer

from trl_dpo_ext.batches import Batch, first_pairs, stacked_to_pairs
from trl_dpo_ext.logps import CompletionLogps, from_fused_output


__all__ = ["ld_logps", "trl_loss"]


def trl_loss(
    trainer: DPOTrainer, model: nn.Module, batch: Batch, inputs: Mapping[str, Any], ref_logps: Tensor
) -> tuple[Tensor, CompletionLogps]:
    """
    Runs TRL's `compute_loss` on the real pairs of a batch.

    Args:
        trainer ([`trl.DPOTrainer`]):
            Trainer whose options choose the loss.
        model ([`~torch.nn.Module`]):
            Policy, as wrapped by accelerate.
        batch ([`~trl_dpo_ext.batches.Batch`]):
            Pairs. The first B of them are real.
        inputs (`Mapping`):
            Rows of the batch as inputs of the model.
        ref_logps (`torch.Tensor` of shape `(B, 2)`):
            Reference log-probabilities, in nats.

    Returns:
        `tuple`: Mean loss `()`, with gradient, and log-probabilities of the pairs under the policy, `(B, 2, ...)`.
    """
    # A batch of text has only real rows here. A batch with images is run completely, then reduced to them
    whole: dict[str, Tensor] = {}
    pairs = len(ref_logps)
    if pairs < batch.num_prompts:
        whole = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        whole["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        rows = ("input_ids", "attention_mask", "completion_mask")
        inputs = dict(inputs) | {name: first_pairs(inputs[name], pairs) for name in rows}
    outputs: list[Any] = []

    def recorded(**kwargs: Any) -> Any:
        output = model(**kwargs | whole)
        if whole:
            by_row = {name: value for name, value in output.items() if value.dim() == 2}
            for name, value in by_row.items():
                output[name] = first_pairs(value, pairs)
        outputs.append(output)
        return output

    # TRL reads the reference log-probabilities from the batch instead of running its own reference
    inputs = dict(inputs) | {"ref_chosen_logps": ref_logps[:, 0], "ref_rejected_logps": ref_logps[:, 1]}
    cached, trainer.precompute_ref_logps = trainer.precompute_ref_logps, True
    # TRL's metrics are means of batch means. Exact metrics are computed from `outputs`
    of_users, trainer._metrics = trainer._metrics, {mode: defaultdict(list) for mode in trainer._metrics}
    try:
        with _metrics_not_gathered(trainer.accelerator):
            loss = DPOTrainer.compute_loss(trainer, recorded, inputs)
    finally:
        trainer.precompute_ref_logps, trainer._metrics = cached, of_users
    policy = from_fused_output(outputs[0], inputs).regrouped(stacked_to_pairs)
    if trainer.ld_alpha is not None:
        policy = replace(policy, logps=ld_logps(policy.token_logps, policy.mask, trainer.ld_alpha))
    return loss, policy


def ld_logps(token_logps: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """
    Returns log-probabilities of pairs in which tokens beyond the length of the shorter completion have the weight
    `alpha` ([LD-DPO](https://huggingface.co/papers/2409.06411)).

    Args:
        token_logps (`torch.Tensor` of shape `(B, 2, T - 1)`):
            Log-probabilities of tokens, 0 outside `mask`, in nats.
        mask (`torch.Tensor` of shape `(B, 2, T - 1)`, bool):
            `True` at the tokens of completions.
        alpha (`float`):
            Weight of the tokens beyond the shared length.

    Returns:
        `torch.Tensor` of shape `(B, 2)`
    """
    shared = mask.sum(dim=2).amin(dim=1)[:, None, None]  # (B, 1, 1)
    tail = mask.cumsum(dim=2) > shared
    # Summed like TRL's reference, so that equal policies have exactly equal sums
    return (token_logps * ~tail).sum(dim=2) + alpha * (token_logps * tail).sum(dim=2)


@contextmanager
def _metrics_not_gathered(accelerator: Accelerator) -> Iterator[None]:
    # TRL gathers the metrics of every micro-batch, about fifteen times. They are not used here, and processes whose
    # last batches differ in size could not gather them
    vars(accelerator).update(gather=lambda values: values, gather_for_metrics=lambda values: values)
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
