"""Check of TRL's fused LM head, which is replaced by the model's own logits if the two differ."""

from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trl_dpo_ext.compat import FusedCausalLMOutput
from trl_dpo_ext.models.comparison import ERRORS, in_evaluation_mode
from trl_dpo_ext.processes import get_logger


__all__ = ["CheckedHead", "score_logits"]

logger = get_logger(__name__)

_TOKENS = 16  # length of the row used for the comparison
_TOLERANCE = 2e-4  # nats, in addition to the rounding of logits
_ROWS, _ROWS_HALF = 1e-3, 5e-2  # tolerance for the same tokens in another row, relative to the mean logit


class CheckedHead:
    """
    Makes a model with TRL's fused LM head return correct log-probabilities.

    The fused head is compared with the model's own logits on a short row, once, by [`check`] or at the first call with
    `fused_lm_head=True`. If they differ, log-probabilities are computed from the logits. Causes are a soft cap or a
    scale under another name, a head that is not a linear layer, or an option that the model does not read.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model after TRL's `add_fused_lm_head`, without a PEFT wrapper.
        known (`bool`):
            Whether the model has a tested type. Then it is compared only if its head is not a plain linear layer.
    """

    def __init__(self, model: PreTrainedModel, known: bool):
        self.model = model
        self._fused = model.forward
        update_wrapper(self, model.forward, updated=())  # `generate` reads the signature
        self._known = known
        self._agrees = True if known and type(model.get_output_embeddings()) is nn.Linear else None
        model.forward = self

    def __call__(self, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return self._fused(*args, **kwargs)
        self.check()
        if self._agrees:
            return self._fused(*args, fused_lm_head=True, **kwargs)
        labels, shift_labels = kwargs.pop("labels", None), kwargs.pop("shift_labels", None)
        kwargs["use_cache"] = False
        return score_logits(self._fused(*args, **kwargs), labels, shift_labels)

    def check(self) -> None:
        """
        Compares the fused head with the model's logits, unless this has been done.

        Raises:
            ValueError: If the model's logits depend on later tokens or on padding.
        """
        if self._agrees is None:
            with torch.no_grad(), in_evaluation_mode(self.model):
                self._agrees = self._compare()

    def _compare(self) -> bool:
        config = self.model.config.get_text_config()
        input_ids = torch.arange(_TOKENS, device=self.model.device)[None] % config.vocab_size
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}
        try:
            logits = self._fused(**inputs).logits
        except ERRORS:
            return True  # a model with other inputs than text raises an error at its first batch
        if not self._known:
            self._check_rows(input_ids, logits)
        expected = score_logits(logits, input_ids).log_probs
        try:
            found = self._fused(**inputs, labels=input_ids, fused_lm_head=True).log_probs
        except ERRORS as error:
            what = f"TRL's fused LM head does not run on it ({error})"
        else:
            gap = (found - expected).abs().max()
            # Both round their logits
            rounding = 2 * torch.finfo(logits.dtype).eps * logits.abs().max()
            if gap <= _TOLERANCE + rounding:
                return True
            what = f"TRL's fused LM head gives other log-probabilities than its logits (by up to {gap:.3g} nats)"
        logger.warning(
            f"`{config.model_type}`: {what}. Log-probabilities are computed from the logits, which takes more memory."
        )
        return False

    def _check_rows(self, input_ids: Tensor, logits: Tensor) -> None:
        # The first half of the row alone, and with padding in place of the second half
        half = _TOKENS // 2
        mask = torch.ones_like(input_ids)
        mask[:, half:] = 0
        config = self.model.config.get_text_config()
        padded_ids = torch.where(mask.bool(), input_ids, getattr(config, "pad_token_id", None) or 0)
        alone = self._fused(input_ids=input_ids[:, :half], attention_mask=mask[:, :half], use_cache=False).logits
        padded = self._fused(input_ids=padded_ids, attention_mask=mask, use_cache=False).logits
        # Rounding depends on the shape. Attention to the wrong tokens changes the logits by about their own size
        most = (_ROWS if logits.dtype.itemsize >= 4 else _ROWS_HALF) * float(alone.abs().mean())
        if not float((logits[:, :half] - alone).abs().mean()) <= most:
            raise ValueError(
                f"`{config.model_type}` is not causal: its logits depend on later tokens, so they define no "
                "log-probability of a completion. Use a causal model (for encoders such as BERT, set "
                "`is_decoder=True` in the config)."
            )
        if not float((padded[:, :half] - alone).abs().mean()) <= most:
            raise ValueError(
                f"`{config.model_type}` gives other logits for a row that is padded on the right, as in batches. Its "
                "log-probabilities would be wrong. Use another model."
            )


def score_logits(logits: Any, labels: Tensor | None, shift_labels: Tensor | None = None) -> FusedCausalLMOutput:
    """
    Computes the log-probabilities of labels from logits, in the format of TRL's fused LM head.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`, or a model's output that has them):
            Logits.
        labels (`torch.Tensor` of shape `(N, T)`, *optional*):
            Tokens, -100 for tokens that are not scored.
        shift_labels (`torch.Tensor` of shape `(N, T)`, *optional*):
            Next token of each token, instead of `labels`.

    Returns:
        [`~trl.trainer.utils.FusedCausalLMOutput`]: Values per token, `(N, T - 1)`, or `(N, T)` with `shift_labels`.
    """
    aux_loss = None
    if not isinstance(logits, Tensor):
        logits, aux_loss = logits.logits, getattr(logits, "aux_loss", None)
    if shift_labels is None:
        assert labels is not None
        logits, shift_labels = logits[:, :-1], labels[:, 1:]
    mask = shift_labels != -100
    targets = shift_labels[mask]  # (M,)
    scored = logits[mask].float()  # (M, V)
    # In two steps, so that `log_softmax` of all tokens is never in memory
    log_probs = scored.gather(-1, targets[:, None])[:, 0] - scored.logsumexp(dim=-1)
    with torch.no_grad():
        logp = scored.log_softmax(dim=-1)
        statistics = {
            "entropy": -(logp.exp() * logp).sum(dim=-1),
            "log_sum_sq_probs": (2 * logp).logsumexp(dim=-1),
            "mean_logits": scored.mean(dim=-1),
            "is_top1": (scored.argmax(dim=-1) == targets).float(),
        }

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    loss = -log_probs.sum() / mask.sum().clamp(min=1)
    return FusedCausalLMOutput(
        loss=loss,
        log_probs=spread(log_probs),
        label_mask=mask,
        aux_loss=aux_loss,
        **{name: spread(values) for name, values in statistics.items()},
    )
