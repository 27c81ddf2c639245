"""Logits of a policy at the last positions of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor

from trl_dpo_ext.models.comparison import in_evaluation_mode
from trl_dpo_ext.models.limits import check_is_causal_lm
from trl_dpo_ext.models.precision import PRECISIONS
from trl_dpo_ext.models.reference_adapter import use_reference_adapter


__all__ = ["PolicyForward"]


class PolicyForward:
    """
    Forward passes of a policy without gradient. The model must be in evaluation mode.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        mixed_precision (`str`):
            Autocast: `"no"`, `"bf16"` or `"fp16"`.
        reference_adapter (`bool`, *optional*, defaults to `False`):
            With a PEFT model: whether to run the reference inside it. This is the adapter `"ref"` if there is one,
            else the model without its adapter.
    """

    def __init__(self, model: Any, mixed_precision: str, *, reference_adapter: bool = False):
        check_is_causal_lm(model)
        self.model = model
        self.reference_adapter = reference_adapter
        self.device = model.device
        base = model.get_base_model() if is_peft_model(model) else model
        self._dtype = PRECISIONS[mixed_precision]
        self._keeps_logits = base._supports_logits_to_keep()
        self._options: dict[str, Any] = {}
        if getattr(base.config.get_text_config(), "output_router_logits", False):
            self._options["output_router_logits"] = False  # no load-balancing loss is needed
        # With virtual tokens, a cache is longer than the tokens that it is of
        self.can_cache = not (is_peft_model(model) and model.active_peft_config.is_prompt_learning)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Sets the model to evaluation mode, with the adapter of this forward, and restores both afterwards."""
        with in_evaluation_mode(self.model):
            with use_reference_adapter(self.model) if self.reference_adapter else nullcontext():
                yield

    def __call__(self, input_ids: Tensor, num_last: int, **inputs: Any) -> tuple[Tensor, Any]:
        """
        Runs the model.

        Args:
            input_ids (`torch.Tensor` of shape `(N, T)`):
                Token ids, on any device.
            num_last (`int`):
                Number of positions, from the end, whose logits are needed.
            inputs:
                Other arguments of the model.

        Returns:
            `tuple[torch.Tensor, Any]`: Logits `(N, num_last, V)`, and the cache, if there is one.
        """
        if self._keeps_logits:
            inputs["logits_to_keep"] = num_last
        # No inference mode, because buffers created in it cannot be used in training afterwards
        with torch.no_grad(), torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            outputs = self.model(input_ids=input_ids.to(self.device), **inputs, **self._options)
        return outputs.logits[:, -num_last:], outputs.get("past_key_values")
