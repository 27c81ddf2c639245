"""Scoring with a model: adds TRL's fused LM head and the shared-prompt forward, then restores the model."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.compat import add_fused_lm_head
from trl_dpo_ext.logps import completion_token_logps
from trl_dpo_ext.models.limits import Limits, check_is_causal_lm
from trl_dpo_ext.models.lm_head import CheckedHead
from trl_dpo_ext.models.precision import PRECISIONS
from trl_dpo_ext.models.reference_adapter import use_reference_adapter
from trl_dpo_ext.shared_prompt.forward import GroupedForward, LayoutOptions
from trl_dpo_ext.shared_prompt.layout import to_device
from trl_dpo_ext.shared_prompt.support import is_ordinary, is_tested, whole_rows_for_adapter


__all__ = ["ScoringForward"]


class ScoringForward:
    """
    Log-probabilities of completions under one model, without gradient.

    A forward installed by a trainer (fused, grouped, with autocast) is replaced while [`ready`] is open, so the
    results depend only on the arguments below.

    Args:
        model (`~transformers.PreTrainedModel` or `~peft.PeftModel`):
            Causal language model, in training or evaluation mode.
        mixed_precision (`str`):
            `"no"`, `"bf16"` or `"fp16"`.
        longest (`int`, *optional*):
            Number of tokens of the longest prompt with a completion.
    """

    def __init__(self, model: Any, mixed_precision: str, longest: int | None):
        self.model = model
        self.base: Any = model.get_base_model() if is_peft_model(model) else model
        self.mixed_precision = mixed_precision
        check_is_causal_lm(self.base)
        self._limits = Limits(self.base)
        with _left_as_it_was(model, self.base):
            if not hasattr(self.base, "_hf_hook"):
                vars(self.base).pop("forward", None)  # set by a trainer, with its autocast
            add_fused_lm_head(self.base)
            CheckedHead(self.base, known=is_tested(self.base) and is_ordinary(self.base))
            self._grouped = None
            if whole_rows_for_adapter(model) is None:
                options = LayoutOptions(longest=longest or LayoutOptions.longest)
                dtype = PRECISIONS[mixed_precision]
                self._grouped = GroupedForward(self.base, options, model.device, dtype)
            self._forward = self.base.forward
            self._attention = self.base.config._attn_implementation

    @property
    def shares_prompts(self) -> bool:
        """Whether each prompt is computed once for its completions, without padding."""
        return self._grouped is not None and self._grouped.packs

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Sets the model to evaluation mode with the scoring forward, and restores it afterwards."""
        with _left_as_it_was(self.model, self.base):
            self.model.eval()
            if self.model is not self.base and not hasattr(self.model, "_hf_hook"):
                vars(self.model).pop("forward", None)  # autocast of a trainer
            self.base.forward = self._forward
            _set_attention(self.base, self._attention)
            yield

    def token_logps(self, batch: Mapping[str, Tensor], reference_adapter: bool = False) -> tuple[Tensor, Tensor]:
        """
        Computes the log-probabilities of a batch of [`~trl_dpo_ext.data.rankings.collator.DataCollatorForRanking`].

        Args:
            batch (`Mapping[str, torch.Tensor]`):
                Groups `(B, K, T)` on the CPU.
            reference_adapter (`bool`, *optional*, defaults to `False`):
                With a PEFT model: whether to run the reference inside it. This is the adapter `"ref"` if there is
                one, else the model without its adapter.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Log-probabilities `(N, T - 1)` of the N completions, row by row,
            float32 on the CPU, and the mask `(N, T - 1)` of completion tokens.
        """
        read = Batch.of(batch)
        groups = read.groups
        assert groups is not None, "rows hold text"
        self._limits.check(groups.smallest_id, groups.largest_id, max(groups.lengths), "The batch")
        rows = {name: to_device(values, self.model.device) for name, values in read.rows.items()}
        arguments: dict[str, Any] = {}
        if self._grouped is not None:
            arguments["prompt_groups"] = groups
        if getattr(self.base.config.get_text_config(), "output_router_logits", False):
            arguments["output_router_logits"] = False  # no load-balancing loss is needed
        adapter: AbstractContextManager[None] = nullcontext()
        if reference_adapter:
            adapter = use_reference_adapter(self.model)
        # No inference mode, because buffers created in it cannot be used in training afterwards
        with torch.no_grad(), self._autocast(), adapter:
            token_logps, mask = completion_token_logps(self.model, rows, **arguments)
        return token_logps.float().cpu(), mask.cpu()

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.mixed_precision]
        return torch.autocast(self.model.device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def _left_as_it_was(model: nn.Module, base: Any) -> Iterator[None]:
    forwards = [(module, vars(module).get("forward")) for module in (model, base)]
    modes = [(module, module.training) for module in model.modules()]
    attention = base.config._attn_implementation
    try:
        yield
    finally:
        for module, forward in forwards:
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward
        for module, mode in modes:
            module.training = mode
        _set_attention(base, attention)


def _set_attention(base: Any, attention: str | None) -> None:
    if base.config._attn_implementation != attention:
        base.set_attn_implementation(attention)
