"""DPO as in the paper (Eq. 7), and TRL's other losses computed by TRL."""

from torch import Tensor, nn

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.objectives import dpo_loss
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer
from trl_dpo_ext.trainers.dpo_config import DPOPaperConfig
from trl_dpo_ext.trainers.forward.batch_result import BatchResult
from trl_dpo_ext.trainers.forward.trl_losses import trl_loss


__all__ = ["DPOPaperTrainer"]

_EQUATION_7 = (
    r"L = -\log \sigma\left(\beta \log \frac{\pi_\theta(y_w|x)}{\pi_{ref}(y_w|x)}"
    r" - \beta \log \frac{\pi_\theta(y_l|x)}{\pi_{ref}(y_l|x)}\right)"
)


class DPOPaperTrainer(BaseDPOTrainer):
    r"""
    Direct Preference Optimization as in the paper, a drop-in replacement for [`trl.DPOTrainer`].

    $$ L = -\log \sigma\Big(\beta \log \frac{\pi_\theta(y_w|x)}{\pi_{ref}(y_w|x)}
           - \beta \log \frac{\pi_\theta(y_l|x)}{\pi_{ref}(y_l|x)}\Big) $$

    [Eq. 7](https://huggingface.co/papers/2305.18290) of Rafailov et al. (2023), see
    [`~trl_dpo_ext.objectives.dpo_loss`]. With another `loss_type`, an f-divergence, LD-DPO or WPO the loss is computed
    by TRL's own code, with the reference, metrics and data preparation of this package.

    **Inputs**: a preference dataset with `prompt`, `chosen`, `rejected` (text or messages; `prompt` may be the common
    start of both answers).

    **Relations**: with `preset="trl"` or a [`trl.DPOConfig`], equal to [`trl.DPOTrainer`] on one process if the batch
    size divides the number of rows (losses within 1e-6).

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy. A folder or hub name is loaded in float32; an instance is used as it is.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference. Default: the policy at the start of training, which is the policy without its new adapter, a
            frozen copy of a trained adapter, a copy of an instance in memory, or a second load of a path.
        args ([`DPOPaperConfig`] or [`trl.DPOConfig`], *optional*):
            Options.

    The other arguments are the same as in [`trl.DPOTrainer`], in the same order. `compute_metrics` gets `predictions`,
    implicit rewards `(n, 2)`, and `label_ids`, ranks `(n, 2)`, instead of TRL's logits.

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

    def score(self, model: nn.Module, batch: Batch) -> BatchResult:
        if self.args.is_plain_dpo:
            return super().score(model, batch)
        ref_logps, ref_token_logps = self.reference_logps(batch)
        assert ref_logps is not None, "`reference_free` only exists for plain DPO"
        real = max(int(batch.weights.sum()), 1) if self._is_vision_dataset else batch.num_prompts
        ref_logps = ref_logps[:real]
        loss, policy = trl_loss(self, model, batch, self.runner.model_inputs(batch), ref_logps)
        return BatchResult(
            losses=loss.expand(real),
            rewards=self.rewards(policy.logps, ref_logps),
            policy=policy,
            ref_logps=ref_logps,
            ref_token_logps=None if ref_token_logps is None else ref_token_logps[:real],
            ranks=batch.ranks[:real],
            exists=batch.exists[:real],
            weights=batch.weights[:real],
        )
