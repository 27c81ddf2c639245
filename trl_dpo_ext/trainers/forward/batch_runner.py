"""Runs the models of a trainer on a batch: the completions of a prompt together where that is exact."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.data.extent import extent_of
from trl_dpo_ext.logps import CompletionLogps, completion_logps
from trl_dpo_ext.models.limits import Limits, check_is_causal_lm, check_pad_token
from trl_dpo_ext.models.lm_head import CheckedHead
from trl_dpo_ext.processes import get_logger, is_sharded
from trl_dpo_ext.shared_prompt.forward import GroupedForward, LayoutOptions
from trl_dpo_ext.shared_prompt.paths import COMPILED, choose_path
from trl_dpo_ext.shared_prompt.support import is_ordinary, is_tested, noise_in, whole_rows_for_adapter
from trl_dpo_ext.trainers.base_config import BaseDPOConfig
from trl_dpo_ext.trainers.forward.compiled_layers import compile_layers
from trl_dpo_ext.trainers.forward.precision import compute_dtype


__all__ = ["BatchRunner"]

logger = get_logger(__name__)

# What rows of text hold. Other entries are arguments of the model that follow its rows
_KNOWN = {"input_ids", "attention_mask", "completion_mask"}


class BatchRunner:
    """
    Gives policy and reference their checked LM head and the forward on shared prompts, and runs them on batches.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy, with TRL's fused LM head.
        ref_model ([`~torch.nn.Module`], *optional*):
            Reference of its own, with the head, too.
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options.
        padding_free (`bool`, *optional*):
            The option of that name, which TRL must not see.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, whose padding token the models must have.
        has_images (`bool`):
            Whether rows hold images.
        counts_router_tokens (`bool`):
            Whether the load-balancing loss of a mixture of experts is part of the loss.

    Raises:
        ValueError: If an option asks for what is not exact here, or a model cannot be trained this way.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        ref_model: nn.Module | None,
        args: BaseDPOConfig,
        padding_free: bool | None,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        has_images: bool,
        counts_router_tokens: bool,
    ):
        self.args = args
        self.has_images = has_images
        self.counts_router_tokens = counts_router_tokens
        self._limits: list[Limits] = []
        self._grouped: GroupedForward | None = None
        options, self._why_separate = self._layout_options(policy, padding_free, accelerator)
        for model in (ref_model, policy):  # the policy's last: it is the one that is described
            if isinstance(model, nn.Module):
                model = accelerator.unwrap_model(model)
                model = model.get_base_model() if is_peft_model(model) else model
                if hasattr(model, "config") and hasattr(model, "base_model"):
                    check_is_causal_lm(model)
                    limits = Limits(model)
                    check_pad_token(tokenizer, limits)  # before the head's check, which pads
                    self._limits.append(limits)
                    head = CheckedHead(model, known=is_tested(model) and is_ordinary(model))
                    if not is_sharded(accelerator):  # else when it first runs
                        head.check()
                    if args.torch_compile:
                        compile_layers(model, args)
                    if options is not None:
                        dtype = compute_dtype(accelerator, model)
                        self._grouped = GroupedForward(model, options, accelerator.device, dtype)
        # One that is not to share, or may not because of noise, has been told so
        decides_itself = options is not None and options.share_prompt is None
        if decides_itself and self._grouped is not None and not self._grouped.shares:
            logger.warning(f"Every completion is run with its own prompt: {self._grouped.reason}.")

    def __str__(self) -> str:
        """How prompts are computed, in words."""
        if self._grouped is None:
            return f"with every completion ({self._why_separate})"
        return str(self._grouped) + (f" ({self._why_separate})" if self._why_separate else "")

    def check_rows_fit(self, datasets: Mapping[str, Any], token_columns: tuple[str, ...]) -> None:
        """
        Checks that the models have an embedding for every token id of the datasets, and a position for every token.

        Args:
            datasets (`Mapping`):
                Datasets by name. Streams are checked batch by batch.
            token_columns (`tuple[str]`):
                Names of their tokenized columns.

        Raises:
            ValueError: If one has not.
        """
        if self.has_images:
            return
        prompts, *completions = (name for name in token_columns if name.endswith("_ids"))
        for name, dataset in datasets.items():
            if isinstance(dataset, Dataset):
                extent = extent_of(dataset, prompts, completions)
                for limits in self._limits:
                    limits.check_extent(extent, self.args.max_length, f"The {name} dataset")

    def run_policy(self, model: nn.Module, batch: Batch) -> CompletionLogps:
        """Runs the policy, as accelerate has wrapped it: what it says of the completions, `(B, K, ...)`."""
        router = {"output_router_logits": True} if self.counts_router_tokens else {}
        return completion_logps(model, self.model_inputs(batch), **router).regrouped(batch.to_groups)

    def model_inputs(self, batch: Batch) -> dict[str, Any]:
        """
        The rows `(N, T)` of a batch, with their groups where the models can run them together.

        Raises:
            ValueError: If a model has no embedding or position for a token, or rows have more entries than shared
                prompts allow.
        """
        groups = batch.groups
        if groups is None:
            return dict(batch.rows)
        for limits in self._limits:
            limits.check(groups.smallest_id, groups.largest_id, max(groups.lengths), "The batch")
        if self._grouped is None:
            return dict(batch.rows)
        others = sorted(
            name for name, value in batch.rows.items() if name not in _KNOWN and isinstance(value, torch.Tensor)
        )
        if not others:
            return dict(batch.rows) | {"prompt_groups": groups}
        found = f"the batch has {', '.join(others)} for each row"
        if self.args.share_prompt:
            raise ValueError(f"`share_prompt=True` is not exact here: {found}. Leave it out.")
        logger.warning_once(f"Every completion is run with its own prompt: {found}.")
        return dict(batch.rows)

    def _layout_options(
        self, policy: PreTrainedModel, padding_free: bool | None, accelerator: Accelerator
    ) -> tuple[LayoutOptions | None, str]:
        args = self.args
        options = LayoutOptions(
            share_prompt=args.share_prompt,
            padding_free=padding_free,
            max_tokens_per_row=args.max_tokens_per_row,
            completions_per_forward=args.completions_per_forward,
            attention_path=args.attention_path,
            longest=args.max_length or LayoutOptions.longest,
        )
        asked = {
            name: value
            for name in ("share_prompt", "padding_free", "completions_per_forward")
            if (value := getattr(options, name))
        }
        if args.attention_path not in ("auto", "separate"):
            asked["attention_path"] = args.attention_path
        if args.completions_per_forward and is_deepspeed_zero3_enabled() and not args.gradient_checkpointing:
            raise ValueError(
                f"`completions_per_forward={args.completions_per_forward}` under DeepSpeed ZeRO-3 needs "
                "`gradient_checkpointing=True`: TRL's fused head cannot gather its weights for a forward that is run "
                "again as a whole."
            )
        adapter = whole_rows_for_adapter(policy)
        parallelism = args.parallelism_config
        splits_rows = parallelism is not None and parallelism.cp_size * parallelism.sp_size > 1
        router = self.counts_router_tokens or getattr(policy.config.get_text_config(), "output_router_logits", False)
        reasons = {
            "rows hold images": self.has_images,
            adapter or "": adapter is not None,
            "the load-balancing loss of the router counts the tokens of separate rows": router,
            "context or sequence parallelism splits rows": splits_rows,
            "NEFTune scales its noise by the length of a row": args.neftune_noise_alpha is not None,
        }
        for reason, holds in reasons.items():
            if holds:
                for name, value in asked.items():
                    raise ValueError(f"`{name}={value!r}` is not exact here: {reason}. Leave it out.")
                return None, reason

        noise = noise_in(policy)
        if noise is not None and args.share_prompt is not False:
            reason = f"dropout is on in `{noise}`, and the completions of a prompt would share its noise"
            if args.share_prompt:
                raise ValueError(f"`share_prompt=True` is not exact here: {reason}. Leave it out.")
            logger.warning(f"Every completion is run with its own prompt: {reason}.")
            return replace(options, share_prompt=False), reason
        if args.torch_compile and args.share_prompt is None:
            model = policy.get_base_model() if is_peft_model(policy) else policy
            dtype = compute_dtype(accelerator, model)
            path, _ = choose_path(model, accelerator.device, dtype, args.attention_path)
            if path not in COMPILED:
                reason = "`torch_compile` would compile the layout of every batch anew"
                return replace(options, share_prompt=False), reason
        return options, ""
