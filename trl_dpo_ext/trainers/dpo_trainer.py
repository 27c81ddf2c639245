"""DPO as the paper defines it (Eq. 7), with TRL's other losses delegated to TRL."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from trl import DPOTrainer

from trl_dpo_ext.logps import from_fused_output, stacked_to_pairs
from trl_dpo_ext.objectives import dpo_loss
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer
from trl_dpo_ext.trainers.dpo_config import DPOPaperConfig
from trl_dpo_ext.trainers.rows import first_pairs
from trl_dpo_ext.trainers.scored_batch import ScoredBatch


__all__ = ["DPOPaperTrainer"]

_EQUATION_7 = (
    r"L = -\log \sigma\left(\beta \log \frac{\pi_\theta(y_w|x)}{\pi_{ref}(y_w|x)}"
    r" - \beta \log \frac{\pi_\theta(y_l|x)}{\pi_{ref}(y_l|x)}\right)"
)


@contextmanager
def _figures_not_gathered(accelerator: Accelerator) -> Iterator[None]:
    # TRL gathers the figures of every micro-batch, about fifteen times. They are not used here, and processes whose
    # last batches differ in size could not gather them
    vars(accelerator).update(gather=lambda values: values, gather_for_metrics=lambda values: values)
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


class DPOPaperTrainer(BaseDPOTrainer):
    r"""
    Direct Preference Optimization, exactly as in the paper; takes the place of [`trl.DPOTrainer`].

    $$ L = -\log \sigma\Big(\beta \log \frac{\pi_\theta(y_w|x)}{\pi_{ref}(y_w|x)}
           - \beta \log \frac{\pi_\theta(y_l|x)}{\pi_{ref}(y_l|x)}\Big) $$

    [Eq. 7](https://huggingface.co/papers/2305.18290) of Rafailov et al. (2023), by
    [`~trl_dpo_ext.objectives.dpo_loss`]. With another `loss_type`, an f-divergence, LD-DPO or WPO the loss is computed
    by TRL's own code; reference, figures and data path stay this package's.

    **Inputs**: a preference data set, `prompt`, `chosen`, `rejected` (text or messages; `prompt` may be the common
    start of both answers).

    **Relations**: with `preset="trl"` or a plain [`trl.DPOConfig`] equal to [`trl.DPOTrainer`] on one process and
    batches that divide (losses within 1e-6).

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy. A folder or hub name is loaded in float32; an instance is used as it is.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference. By default the policy as training starts: the adapter switched off (a frozen copy of a trained
            adapter), a copy of an instance as it is in memory, or a second load of a path.
        args ([`DPOPaperConfig`] or [`trl.DPOConfig`], *optional*):
            Options.

    The other arguments are [`trl.DPOTrainer`]'s, by the same names and in the same order. `compute_metrics` gets
    `predictions`, implicit rewards `(n, 2)`, and `label_ids`, ranks `(n, 2)`, where TRL passes logits.

    Example:

    ```python
    from datasets import load_dataset
    from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer

    trainer = DPOPaperTrainer(
        model="path/to/sft-model",
        args=DPOPaperConfig("dpo-model", per_device_train_batch_size=8),
        train_dataset=load_dataset("json", data_files="preferences.jsonl", split="train"),
    )
    trainer.train()
    ```
    """

    config_class = DPOPaperConfig
    args: DPOPaperConfig

    @property
    def equation(self) -> str | None:
        return _EQUATION_7 if self.args.is_plain_dpo else None

    def losses(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        return dpo_loss(policy_logps, ref_logps, beta=self.beta, label_smoothing=self.label_smoothing)

    def score(self, model: nn.Module, inputs: dict[str, Any], weights: Tensor) -> ScoredBatch:
        if self.args.is_plain_dpo:
            return super().score(model, inputs, weights)

        ref_logps, ref_token_logps = self.reference_logps(inputs)
        assert ref_logps is not None, "`reference_free` only exists for plain DPO"
        inputs = self.model_inputs(inputs)
        # Text is cut to its real rows before. A batch with images is run whole, and cut for TRL's loss
        whole: dict[str, Tensor] = {}
        pairs = len(weights)
        if self._is_vision_dataset:
            pairs = max(int(weights.sum()), 1)
            whole = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            whole["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
            cut = {
                name: first_pairs(inputs[name], pairs) for name in ("input_ids", "attention_mask", "completion_mask")
            }
            inputs, ref_logps, weights = inputs | cut, ref_logps[:pairs], weights[:pairs]
            ref_token_logps = None if ref_token_logps is None else first_pairs(ref_token_logps, pairs)
        outputs: list[Any] = []

        def recorded(**kwargs: Any) -> Any:
            output = model(**kwargs | whole)
            if whole:
                by_row = {name: value for name, value in output.items() if value.dim() == 2}
                for name, value in by_row.items():
                    output[name] = first_pairs(value, pairs)
            outputs.append(output)
            return output

        # TRL reads the reference from the batch, where it would otherwise run its own
        inputs = inputs | {"ref_chosen_logps": ref_logps[:, 0], "ref_rejected_logps": ref_logps[:, 1]}
        cached, self.precompute_ref_logps = self.precompute_ref_logps, True
        # TRL's figures are means of batch means; the exact ones are computed from `outputs`
        of_users, self._metrics = self._metrics, {mode: defaultdict(list) for mode in self._metrics}
        try:
            with _figures_not_gathered(self.accelerator):
                loss = DPOTrainer.compute_loss(self, recorded, inputs)
        finally:
            self.precompute_ref_logps, self._metrics = cached, of_users

        policy = from_fused_output(outputs[0], inputs, ld_alpha=self.ld_alpha)
        rewards = self.rewards(stacked_to_pairs(policy.logps), ref_logps)
        return ScoredBatch(
            loss.expand(len(rewards)), rewards, ref_logps, policy, weights, ref_token_logps=ref_token_logps
        )
