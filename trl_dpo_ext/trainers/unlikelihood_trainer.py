"""The paper's unlikelihood baseline (App. C.3)."""

from torch import Tensor

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.logps import CompletionLogps
from trl_dpo_ext.objectives import token_unlikelihood_loss, unlikelihood_loss
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer
from trl_dpo_ext.trainers.forward.batch_result import BatchResult
from trl_dpo_ext.trainers.unlikelihood_config import UnlikelihoodConfig


__all__ = ["UnlikelihoodTrainer"]


class UnlikelihoodTrainer(BaseDPOTrainer):
    r"""
    Raises the probability of preferred answers and lowers that of the others. A baseline, not a recommendation.

    $$ L = -\log \pi_\theta(y_w|x) + \alpha \log \pi_\theta(y_l|x) $$

    Appendix C.3 of [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290), see
    [`~trl_dpo_ext.objectives.unlikelihood_loss`]: sums over tokens, the mean over examples. The loss is unbounded
    below, and with \\( \alpha = 1 \\) models degenerate. Training stops with an error if it diverges
    (`divergence_guard`).

    **Inputs**: a preference dataset, as for [`DPOPaperTrainer`].

    **Relations**: with \\( \alpha = 1 \\) the gradient is DPO's without its weight \\( \beta\, \sigma(r_l - r_w) \\).
    It needs no reference. With one (`ref_model=`, or `reference_free=False`), implicit rewards are logged.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference of the logged rewards. By default there is none, and rewards are beta log pi.
        args ([`UnlikelihoodConfig`] or [`trl.DPOConfig`], *optional*):
            Options.

    The other arguments are the same as in [`trl.DPOTrainer`], in the same order.

    Example:

    ```python
    from datasets import load_dataset
    from trl_dpo_ext import UnlikelihoodConfig, UnlikelihoodTrainer

    trainer = UnlikelihoodTrainer(
        model="path/to/sft-model",
        args=UnlikelihoodConfig("unlikelihood-model", alpha=0.5, per_device_train_batch_size=8),
        train_dataset=load_dataset("json", data_files="preferences.jsonl", split="train"),
    )
    trainer.train()
    ```
    """

    _name = "Unlikelihood"
    config_class = UnlikelihoodConfig
    equation = r"L = -\log \pi_\theta(y_w|x) + \alpha \log \pi_\theta(y_l|x)"
    args: UnlikelihoodConfig

    def losses(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        return unlikelihood_loss(policy_logps, alpha=self.args.alpha)

    def losses_of(self, policy: CompletionLogps, ref_logps: Tensor | None, batch: Batch) -> Tensor:
        if self.args.unlikelihood_form == "sequence":
            return super().losses_of(policy, ref_logps, batch)
        return token_unlikelihood_loss(
            policy.logps[:, 0], policy.token_logps[:, 1], policy.mask[:, 1], alpha=self.args.alpha
        )

    def divergence_of(self, result: BatchResult) -> Tensor | None:
        if self.args.divergence_guard is None:
            return None
        logps, tokens = result.policy.logps[:, 1].detach(), result.policy.mask[:, 1].sum(dim=1)  # (B,)
        mean = (logps / tokens.clamp(min=1) * result.weights).sum() / result.weights.sum().clamp(min=1)
        return -mean / self.args.divergence_guard

    @property
    def divergence(self) -> str:
        return (
            f"The log-probability of the rejected answers is below -{self.args.divergence_guard} nats per token "
            f"(`divergence_guard`). The loss has no lower bound, and the model degenerates. Lower `alpha` (now "
            f"{self.args.alpha:g}), `learning_rate` or the number of updates, use `unlikelihood_form='token'`, or "
            "raise the guard or set it to `None`."
        )
