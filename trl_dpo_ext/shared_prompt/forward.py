"""A model's fused forward on rows of distinct tokens, in the place of its forward on padded rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from trl_dpo_ext.compat import lm_head_tiles_for
from trl_dpo_ext.models.comparison import ERRORS, in_evaluation_mode
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.shared_prompt.attention import SEGMENTED, block_mask, dense_mask, window_mark
from trl_dpo_ext.shared_prompt.groups import PromptGroups
from trl_dpo_ext.shared_prompt.layout import Layout, lay_out
from trl_dpo_ext.shared_prompt.support import DENSE_MASK, SEGMENTS, how_to_attend, is_ordinary, is_tested, windows_of


__all__ = ["GroupedForward", "LayoutOptions"]

logger = get_logger(__name__)

# What TRL's fused LM head says of each predicted token
_BY_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")

# Largest difference of a log-probability, in nats, at which two ways to run a model agree
_TOLERANCE = 2e-4
_TOLERANCE_HALF = 5e-2  # of the mean difference, in half precision
_ROUNDING_HALF = 2e-2  # of a log-probability

# Tokens of the rows on which a model of a tested type is compared, at least
_SHORT = 32


@dataclass(frozen=True)
class LayoutOptions:
    """
    How the completions of a batch are run; the options of a trainer's config by the same names.

    Args:
        share_prompt (`bool`, *optional*):
            Compute a prompt once for its completions. `None`: where that is exact; `True`: error where it is not.
        padding_free (`bool`, *optional*):
            Put several groups in a row, so that no padding is computed. `None`: where prompts are shared; `True`:
            also where they are not, and error where that is not exact; `False`: a row for each group.
        max_tokens_per_row (`int`, *optional*):
            Tokens of a row. `None`: all of the micro-batch in one row, or, with dense masks, the longest group's.
        completions_per_forward (`int`, *optional*):
            Completions of a prompt that are in memory at once.
        longest (`int`, *optional*, defaults to `1024`):
            Tokens of the longest row: up to this length a model whose type is not tested is compared both ways.
    """

    share_prompt: bool | None = None
    padding_free: bool | None = None
    max_tokens_per_row: int | None = None
    completions_per_forward: int | None = None
    longest: int = 1024


class GroupedForward:
    """
    Gives a causal language model's fused forward an argument `prompt_groups`, with which it runs on distinct tokens.

    `model(input_ids, attention_mask, labels, fused_lm_head=True, prompt_groups=groups)` returns what it returns
    without: per-token values of shape `(N, T - 1)`, with gradient, equal up to rounding. How the rows are run is
    decided here, so that policy, reference, an adapter that is off and TRL's own losses need not know.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model after TRL's `add_fused_lm_head`, without a PEFT wrapper.
        options ([`LayoutOptions`]):
            Options.
        device (`torch.device`):
            Where the model is going to run.

    Raises:
        ValueError: If an option is asked for that the model cannot have, with the reason.
    """

    def __init__(self, model: PreTrainedModel, options: LayoutOptions, device: torch.device):
        self.model = model
        self.options = options
        self.attention, self.reason = how_to_attend(model, device)
        self._windows = windows_of(model)
        self._is_tested = is_tested(model)
        self._is_checked = self._is_tested and is_ordinary(model)
        if self.attention is None:
            self._refuse()
        elif self.attention == SEGMENTS and self._lays_out:
            model.set_attn_implementation(SEGMENTED)
        self._fused = model.forward
        update_wrapper(self, model.forward, updated=())  # `generate` reads the signature
        # An object and no closure: a deep copy of the model has one of its own
        model.forward = self

    def __call__(self, *args: Any, prompt_groups: PromptGroups | None = None, **kwargs: Any) -> Any:
        if prompt_groups is None:
            return self._fused(*args, **kwargs)
        with lm_head_tiles_for(kwargs["input_ids"].device):
            return self._run(prompt_groups, **kwargs)

    def __str__(self) -> str:
        if not self._lays_out:
            return "with every completion" + (f" ({self.reason})" if self.reason else "")
        shared = "computed once" if self.shares else "with every completion"
        return f"{shared} ({self.attention}{', packed' if self.packs else ''})"

    @property
    def shares(self) -> bool:
        """Whether prompts are computed once."""
        return self.attention is not None and self.options.share_prompt is not False

    @property
    def packs(self) -> bool:
        """Whether several groups are put in a row."""
        return self._lays_out and self.options.padding_free is not False

    @property
    def _lays_out(self) -> bool:
        return self.shares or (self.attention is not None and self.options.padding_free is True)

    def _refuse(self) -> None:
        for name in ("share_prompt", "padding_free"):
            if getattr(self.options, name):
                raise ValueError(f"`{name}=True` is not exact here: {self.reason}. Leave it out.")

    def _run(self, groups: PromptGroups, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **kwargs: Any):
        parts = groups.chunks(self.options.completions_per_forward)
        idle = [parts[0].one_row()] * self._num_idle(groups, len(parts))
        # With gradient checkpointing every layer is recomputed already; twice would be once too many
        again = len(parts + idle) > 1 and torch.is_grad_enabled() and not _checkpoints_layers(self.model)
        run = partial(self._run_part, input_ids, attention_mask, labels, kwargs)
        outputs, idle_outputs = (
            [checkpoint(run, part, use_reentrant=False) if again else run(part) for part in some]
            for some in (parts, idle)
        )

        rows, width = labels.shape
        output, _ = outputs[0]
        targets = torch.cat([targets for _, targets in outputs])
        for name in _BY_TOKEN:
            if getattr(output, name) is not None:
                values = torch.cat([getattr(part, name).flatten() for part, _ in outputs])
                whole = values.new_zeros(rows * (width - 1)).index_copy(0, targets, values)
                setattr(output, name, whole.view(rows, width - 1))
        for part, _ in idle_outputs:
            output.log_probs = output.log_probs + 0.0 * part.log_probs.sum()
        output.label_mask = labels[:, 1:] != -100
        output.loss = -output.log_probs.sum() / output.label_mask.sum().clamp(min=1)
        return output

    def _num_idle(self, groups: PromptGroups, num_parts: int) -> int:
        size = self.options.completions_per_forward
        if size is None or not _is_sharded(self.model):
            return 0
        # Weights are gathered for every forward, so that all processes make as many
        return max(-(-groups.most // size) - num_parts, 0)

    def _run_part(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, kwargs: dict[str, Any], part: PromptGroups
    ) -> tuple[Any, Tensor]:
        # What the fused LM head says, and for each token of it the place in the flattened (N, T - 1)
        if self._can_lay_out(part):
            return self._run_laid_out(input_ids, labels, kwargs, part)
        members = sorted(row for group in part.members for row in group)
        width = labels.size(1) - 1
        if len(members) == len(labels):
            output = self._fused(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
            return output, torch.arange(labels.size(0) * width, device=labels.device)
        rows = torch.tensor(members).to(labels.device, non_blocking=True)
        output = self._fused(
            input_ids=input_ids[rows], attention_mask=attention_mask[rows], labels=labels[rows], **kwargs
        )
        return output, (rows[:, None] * width + torch.arange(width, device=labels.device)).flatten()

    def _run_laid_out(
        self, input_ids: Tensor, labels: Tensor, kwargs: dict[str, Any], part: PromptGroups
    ) -> tuple[Any, Tensor]:
        if not self.shares:
            part = part.apart()
        layout = lay_out(part, self._budget(part), input_ids.device)
        with _only(self.model.base_model, layout.scored):
            output = self._fused(
                input_ids=input_ids.flatten()[layout.tokens],
                position_ids=layout.positions,
                shift_labels=labels.flatten()[layout.labels][None],
                **self._attention_arguments(layout),
                **kwargs,
            )
        return output, layout.targets

    def _budget(self, part: PromptGroups) -> int | None:
        if not self.packs:
            return 0
        if self.options.max_tokens_per_row is None and self.attention == DENSE_MASK:
            return max(part.sizes)  # a longer row would only have more scores that nobody sees
        return self.options.max_tokens_per_row

    def _attention_arguments(self, layout: Layout) -> dict[str, Any]:
        # Eager attention adds its mask: a boolean one would be wrong without an error
        is_sdpa = self.model.config.get_text_config()._attn_implementation == "sdpa"
        additive = None if is_sdpa else self.model.dtype
        make: Callable[..., Any] = partial(dense_mask, additive=additive)
        if self.attention != DENSE_MASK:
            make = window_mark if self.attention == SEGMENTS else block_mask
        masks = {kind: make(layout, window) for kind, window in self._windows.items()}
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        return {"attention_mask": mask} | ({"layout": layout} if self.attention == SEGMENTS else {})

    def _can_lay_out(self, part: PromptGroups) -> bool:
        if not (self._lays_out and part.padded_right):
            return False
        if not self._is_checked:
            self._is_checked = True
            self._check()
        return self._lays_out and (self._is_tested or max(part.lengths) <= self.options.longest)

    def _length_of_check(self) -> int:
        # As long as rows may be; of a tested type, long enough to see past every window
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = min(self.options.longest, positions or self.options.longest)
        if not self._is_tested:
            return longest
        past = [window + _SHORT // 2 for window in self._windows.values() if window is not None and window < longest]
        return min(max([_SHORT, *past]), longest)

    def _check(self) -> None:
        """Compares the two ways to run the model on two groups, and gives up where they differ."""
        config = self.model.config.get_text_config()
        length = self._length_of_check()
        generator = torch.Generator().manual_seed(0)
        input_ids = torch.randint(config.vocab_size, (4, length), generator=generator).to(self.model.device)
        start = length // 2
        input_ids[1, :start], input_ids[3, :start] = input_ids[0, :start], input_ids[2, :start]
        labels = input_ids.clone()
        labels[:, :start] = -100
        groups = PromptGroups([[0, 1], [2, 3]], [start] * 2, [start] * 4, [length] * 4, length, 2, None, 2, True)
        kwargs = {"use_cache": False, "fused_lm_head": True}
        try:
            with torch.no_grad(), in_evaluation_mode(self.model):
                expected = self._fused(
                    input_ids=input_ids, attention_mask=torch.ones_like(input_ids), labels=labels, **kwargs
                ).log_probs
                output, targets = self._run_laid_out(input_ids, labels, kwargs, groups)
        except ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            difference, found = float("inf"), f"it does not run on a layout of them ({error})"
        else:
            expected = expected.flatten()[targets]
            gaps = (expected - output.log_probs.flatten()).abs()
            half = torch.is_autocast_enabled(gaps.device.type) or self.model.dtype.itemsize < 4
            # A tested type is here to show a config or a layer that is another, and not for its rounding
            rounding = _ROUNDING_HALF * expected.abs().mean() if self._is_tested else 0.0
            difference = float(gaps.mean() / (_TOLERANCE_HALF + rounding) if half else gaps.max() / _TOLERANCE)
            found = f"its log-probabilities differ by up to {gaps.max():.3g} nats"
        if not difference <= 1:
            self.attention = None
            which = "with this config or adapter" if self._is_tested else "is not a tested model, and"
            self.reason = f"`{config.model_type}` {which} with one prompt for two completions {found}"
            self._refuse()
            logger.warning(f"Every completion is run with its own prompt: {self.reason}.")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _checkpoints_layers(model: nn.Module) -> bool:
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _is_sharded(model: nn.Module) -> bool:
    # FSDP2, FSDP1 and ZeRO-3
    return any(isinstance(module, FSDP) for module in model.modules()) or any(
        isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


@contextmanager
def _only(backbone: nn.Module, scored: Tensor) -> Iterator[None]:
    # The LM head sees the hidden states of the tokens that predict something, (1, M, H), and no others
    def select(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[scored][None]
        return output

    hook = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()
