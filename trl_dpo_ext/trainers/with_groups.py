"""How a trainer runs the completions of a prompt: together where that is exact, with the reason where it is not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from trl_dpo_ext.data.checks import REF_LOGPS_COLUMNS
from trl_dpo_ext.data.extent import extent_of
from trl_dpo_ext.logps import CompletionLogps, completion_logps, find_groups, stacked_to_pairs
from trl_dpo_ext.models.limits import Limits, check_is_causal_lm, check_pad_token
from trl_dpo_ext.models.lm_head import CheckedHead
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.shared_prompt.forward import GroupedForward, LayoutOptions
from trl_dpo_ext.shared_prompt.support import is_ordinary, is_tested, noise_in, whole_rows_for_adapter
from trl_dpo_ext.trainers.arguments import datasets_by_name
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.figures import ExactFigures


__all__ = ["WithGroups"]

logger = get_logger(__name__)

# What a batch of text holds. Other entries are arguments of the model that follow its rows
_KNOWN = {"input_ids", "attention_mask", "completion_mask", "prompt_groups", *REF_LOGPS_COLUMNS}


class WithGroups(ExactFigures):
    """A trainer whose models compute a prompt once for its completions (`share_prompt`), without padding."""

    model: PreTrainedModel
    token_columns: ClassVar[tuple[str, ...]]
    _grouped: GroupedForward | None = None
    _forwards_are_ready = False
    _limits: list[Limits]
    _why_separate = ""
    # Completions of the largest group of all data sets, the same on every process
    _num_places = 2

    def __init__(self, *positional: Any, args: BaseDPOConfig, **keywords: Any):
        # TRL has no such thing at present, and would warn
        self._padding_free, args.padding_free = args.padding_free, False
        try:
            super().__init__(*positional, args=args, **keywords)
        finally:
            args.padding_free = self._padding_free
        self.group_forwards()

    def group_forwards(self) -> None:
        """Gives policy and reference their checked LM head and the forward on groups, once they have TRL's head."""
        if self._forwards_are_ready:
            return
        self._forwards_are_ready = True
        self._limits = []
        options, self._why_separate = self._layout_options()
        for model in (self.ref_model, self.model):  # the policy's last: it is the one that is described
            if isinstance(model, nn.Module):
                model = self.accelerator.unwrap_model(model)
                model = model.get_base_model() if is_peft_model(model) else model
                if hasattr(model, "config") and hasattr(model, "base_model"):
                    check_is_causal_lm(model)
                    self._limits.append(Limits(model))
                    head = CheckedHead(model, known=is_tested(model) and is_ordinary(model))
                    if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # else when it first runs
                        head.check()
                    if options is not None:
                        self._grouped = GroupedForward(model, options, self.accelerator.device)
        for limits in self._limits:
            check_pad_token(self._tokenizer, limits)
        if options is None:
            return
        if self._grouped is not None and self._grouped.reason and options.share_prompt is None:
            logger.warning(f"Every completion is run with its own prompt: {self._grouped.reason}.")

    @property
    def layout_description(self) -> str:
        """How prompts are computed, in words."""
        if self._grouped is None:
            return f"with every completion ({self._why_separate})"
        return str(self._grouped) + (f" ({self._why_separate})" if self._why_separate else "")

    def check_rows_fit(self) -> None:
        """
        Checks that the models have an embedding for every token id of the datasets, and a position for every token.

        Raises:
            ValueError: If one has not. Streams are checked batch by batch.
        """
        if self._is_vision_dataset:
            return
        prompts, *completions = (name for name in self.token_columns if name.endswith("_ids"))
        for name, dataset in datasets_by_name(self.train_dataset, self.eval_dataset).items():
            if isinstance(dataset, Dataset):
                smallest, largest, longest = extent_of(dataset, prompts, completions)
                for limits in self._limits:
                    limits.check(
                        smallest, largest, min(longest, self.args.max_length or longest), f"The {name} dataset"
                    )

    def with_groups(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Adds to a batch of text which of its rows share a prompt, at the one synchronisation of a forward."""
        if self._is_vision_dataset or "prompt_groups" in inputs:
            return dict(inputs)
        return dict(inputs) | {"prompt_groups": find_groups(inputs, self._num_places)}

    def rows_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The rows `(N, T)` of a batch, as the models take them."""
        return dict(inputs)

    def model_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The rows of a batch, with their groups where the models can run them together."""
        inputs = self.with_groups(inputs)
        if "prompt_groups" in inputs:
            groups = inputs["prompt_groups"]
            for limits in self._limits:
                limits.check(groups.smallest_id, groups.largest_id, max(groups.lengths), "The batch")
        rows = self.rows_of(inputs)
        others = sorted(name for name, value in rows.items() if name not in _KNOWN and isinstance(value, torch.Tensor))
        if self._grouped is not None:
            if not others:
                return rows
            found = f"the batch has {', '.join(others)} for each row"
            if self.args.share_prompt:
                raise ValueError(f"`share_prompt=True` is not exact here: {found}. Leave it out.")
            logger.warning_once(f"Every completion is run with its own prompt: {found}.")
        rows.pop("prompt_groups", None)
        return rows

    def run_policy(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[CompletionLogps, Tensor]:
        """Runs the policy on a batch: what it says of each completion, and log-probabilities by row, `(B, 2)`."""
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        inputs = self.with_groups(inputs)
        policy = completion_logps(model, self.model_inputs(inputs), **router)
        return policy, self.to_rows(policy.logps, inputs)

    def to_rows(self, logps: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Log-probabilities of a batch's completions by row, `(B, 2)`."""
        return stacked_to_pairs(logps)

    def _layout_options(self) -> tuple[LayoutOptions | None, str]:
        args = self.args
        options = LayoutOptions(
            share_prompt=args.share_prompt,
            padding_free=self._padding_free,
            max_tokens_per_row=args.max_tokens_per_row,
            completions_per_forward=args.completions_per_forward,
            longest=args.max_length or LayoutOptions.longest,
        )
        asked = {
            name: value
            for name in ("share_prompt", "padding_free", "completions_per_forward")
            if (value := getattr(options, name))
        }
        if args.completions_per_forward and is_deepspeed_zero3_enabled() and not args.gradient_checkpointing:
            raise ValueError(
                f"`completions_per_forward={args.completions_per_forward}` under DeepSpeed ZeRO-3 needs "
                "`gradient_checkpointing=True`: TRL's fused head cannot gather its weights for a forward that is run "
                "again as a whole."
            )
        adapter = whole_rows_for_adapter(self.model)
        parallelism = args.parallelism_config
        splits_rows = parallelism is not None and parallelism.cp_size * parallelism.sp_size > 1
        router = self.aux_loss_enabled or getattr(self.model.config.get_text_config(), "output_router_logits", False)
        reasons = {
            "rows hold images": self._is_vision_dataset,
            adapter or "": adapter is not None,
            "the load-balancing loss of the router counts the tokens of separate rows": router,
            "context or sequence parallelism splits rows": splits_rows,
            "NEFTune scales its noise by the length of a row": args.neftune_noise_alpha is not None,
        }
        for reason, holds in reasons.items():
            if holds:
                for name, value in asked.items():
                    raise ValueError(f"`{name}={value}` is not exact here: {reason}. Leave it out.")
                return None, reason

        noise = noise_in(self.model)
        if noise is not None and args.share_prompt is not False:
            reason = f"dropout is on in `{noise}`, and the completions of a prompt would share its noise"
            if args.share_prompt:
                raise ValueError(f"`share_prompt=True` is not exact here: {reason}. Leave it out.")
            logger.warning(f"Every completion is run with its own prompt: {reason}.")
            return replace(options, share_prompt=False), reason
        if args.torch_compile and args.share_prompt is None:  # exact, but a minute and more for each batch
            return replace(options, share_prompt=False), "`torch_compile` would compile the layout of every batch anew"
        return options, ""
