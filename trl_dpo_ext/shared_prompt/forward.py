"""A model's fused forward on rows of distinct tokens, in the place of its forward on padded rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from trl_dpo_ext.compat import FusedCausalLMOutput, lm_head_on_every_token, lm_head_tiles_for
from trl_dpo_ext.models.comparison import ERRORS, in_evaluation_mode
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.shared_prompt.attention import SDPA, share_flash_attention
from trl_dpo_ext.shared_prompt.groups import PromptGroups
from trl_dpo_ext.shared_prompt.layout import Layout, lay_out, to_device
from trl_dpo_ext.shared_prompt.masks import block_mask, dense_mask, window_mark
from trl_dpo_ext.shared_prompt.paths import COMPILED, DESCRIPTIONS, HALF, choose_path
from trl_dpo_ext.shared_prompt.segments import segments_of
from trl_dpo_ext.shared_prompt.support import hands_on_arguments, is_ordinary, is_tested, windows_of


__all__ = ["GroupedForward", "LayoutOptions"]

logger = get_logger(__name__)

# Largest difference of a log-probability, in nats, at which two ways to run a model agree
_TOLERANCE = 2e-4
_TOLERANCE_HALF = 5e-2  # of the mean difference, in half precision
_ROUNDING_HALF = 2e-2  # of a log-probability

# Tokens of the rows on which a model of a tested type is compared, at least
_SHORT = 32

# What the tokens of a row with a mask are a multiple of on a GPU: fewer shapes, and tiles that are full
_MULTIPLE = {"dense": 64, "flex": 128}


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
        attention_path (`str`, *optional*, defaults to `"auto"`):
            One of [`~trl_dpo_ext.shared_prompt.paths.PATHS`].
        longest (`int`, *optional*, defaults to `1024`):
            Tokens of the longest row: up to this length a model whose type is not tested is compared both ways.
    """

    share_prompt: bool | None = None
    padding_free: bool | None = None
    max_tokens_per_row: int | None = None
    completions_per_forward: int | None = None
    attention_path: str = "auto"
    longest: int = 1024


class _Scored(NamedTuple):
    # What TRL's fused LM head says of M predicted tokens, (M,) each, and their places in the flattened (N, T - 1)
    log_probs: Tensor
    entropy: Tensor | None
    log_sum_sq_probs: Tensor | None
    mean_logits: Tensor | None
    is_top1: Tensor | None
    aux_loss: Tensor | None
    targets: Tensor

    @classmethod
    def of(cls, output: FusedCausalLMOutput, targets: Tensor) -> "_Scored":
        by_token: dict[str, Any] = {name: getattr(output, name) for name in _BY_TOKEN}
        flat: dict[str, Any] = {
            name: None if values is None else values.flatten() for name, values in by_token.items()
        }
        return cls(**flat, aux_loss=output.aux_loss, targets=targets)


_BY_TOKEN = _Scored._fields[:5]


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
        dtype (`torch.dtype`, *optional*):
            Dtype that it computes in. Defaults to its weights'.

    Raises:
        ValueError: If an option is asked for that the model cannot have, with the reason.
    """

    def __init__(
        self, model: PreTrainedModel, options: LayoutOptions, device: torch.device, dtype: torch.dtype | None = None
    ):
        self.model = model
        self.options = options
        self.path, self.reason = choose_path(
            model, device, dtype or model.dtype, options.attention_path, shares=options.share_prompt is not False
        )
        self._windows = windows_of(model)
        self._is_tested = is_tested(model)
        self._is_checked = self._is_tested and is_ordinary(model)
        self._is_gpu = device.type == "cuda"
        self._hands_on = hands_on_arguments(model)
        if self.path is None:
            self._refuse()
        elif self._lays_out:
            self._register(self.path)
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
        if self.path is None or not self._lays_out:
            return "with every completion" + (f" ({self.reason})" if self.reason else "")
        shared = "computed once" if self.shares else "with every completion"
        why = f"; {self.reason}" if self.reason else ""
        return f"{shared} ({DESCRIPTIONS[self.path]}{', packed' if self.packs else ''}{why})"

    @property
    def shares(self) -> bool:
        """Whether prompts are computed once."""
        return self.path is not None and self.options.share_prompt is not False

    @property
    def packs(self) -> bool:
        """Whether several groups are put in a row."""
        return self._lays_out and self.options.padding_free is not False

    @property
    def _lays_out(self) -> bool:
        return self.shares or (self.path is not None and self.options.padding_free is True)

    def _register(self, path: str) -> None:
        attention = self.model.config.get_text_config()._attn_implementation
        if path == "flash":
            share_flash_attention(attention)
        elif path in SDPA and self._takes_plan:
            self.model.set_attn_implementation(SDPA[path])

    @property
    def _takes_plan(self) -> bool:
        # The attention functions of this package do. That of a mask differs from transformers' own on a GPU
        if self.path == "dense":
            attention = self.model.config.get_text_config()._attn_implementation
            return self._is_gpu and self._hands_on and attention not in ("eager", None)
        return self.path in ("flash", "segments", "varlen")

    def _refuse(self) -> None:
        for name in ("share_prompt", "padding_free"):
            if getattr(self.options, name):
                raise ValueError(f"`{name}=True` is not exact here: {self.reason}. Leave it out.")

    def _run(self, groups: PromptGroups, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **kwargs: Any):
        parts = groups.parts(self.options.completions_per_forward)
        idle = [parts[0].one_row()] * self._num_idle(groups, len(parts))
        # With gradient checkpointing every layer is recomputed already; twice would be once too many
        again = len(parts + idle) > 1 and torch.is_grad_enabled() and not _checkpoints_layers(self.model)
        run = partial(self._run_part, input_ids, attention_mask, labels, kwargs)
        scored, idle_scored = ([_again(run, part) if again else run(part) for part in some] for some in (parts, idle))

        shape = (labels.size(0), labels.size(1) - 1)
        targets = torch.cat([part.targets for part in scored])
        whole: dict[str, Tensor] = {}
        for name in _BY_TOKEN:
            if getattr(scored[0], name) is not None:
                values = torch.cat([getattr(part, name) for part in scored])
                whole[name] = values.new_zeros(shape[0] * shape[1]).index_copy(0, targets, values).view(shape)
        for part in idle_scored:
            whole["log_probs"] = whole["log_probs"] + 0.0 * part.log_probs.sum()
        return FusedCausalLMOutput(**whole, label_mask=labels[:, 1:] != -100, aux_loss=scored[0].aux_loss)

    def _num_idle(self, groups: PromptGroups, num_parts: int) -> int:
        size = self.options.completions_per_forward
        if size is None or not _is_sharded(self.model):
            return 0
        # Weights are gathered for every forward, so that all processes make as many
        return max(-(-groups.most // size) - num_parts, 0)

    def _run_part(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, kwargs: dict[str, Any], part: PromptGroups
    ) -> _Scored:
        if self._can_lay_out(part):
            return self._run_laid_out(input_ids, labels, kwargs, part)
        members = sorted(row for group in part.members for row in group)
        width = labels.size(1) - 1
        if len(members) == len(labels):
            output = self._fused(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
            return _Scored.of(output, torch.arange(labels.size(0) * width, device=labels.device))
        rows = to_device(torch.tensor(members), labels.device)
        output = self._fused(
            input_ids=input_ids[rows], attention_mask=attention_mask[rows], labels=labels[rows], **kwargs
        )
        return _Scored.of(output, (rows[:, None] * width + torch.arange(width, device=labels.device)).flatten())

    def _run_laid_out(self, input_ids: Tensor, labels: Tensor, kwargs: dict[str, Any], part: PromptGroups) -> _Scored:
        if not self.shares:
            part = part.apart()
        multiple = _MULTIPLE.get(self.path or "", 1) if self._is_gpu else 1
        layout = lay_out(part, self._budget(part), input_ids.device, multiple)
        with _only(self.model.base_model, layout.scored), lm_head_on_every_token():
            output = self._fused(
                input_ids=input_ids.flatten()[layout.tokens],
                position_ids=layout.positions,
                shift_labels=labels.flatten()[layout.labels][None],
                **self._attention_arguments(layout),
                **kwargs,
            )
        return _Scored.of(output, layout.targets)

    def _budget(self, part: PromptGroups) -> int | None:
        if not self.packs:
            return 0
        if self.options.max_tokens_per_row is None and self.path == "dense":
            return max(part.sizes)  # a longer row would only have more scores that nobody sees
        return self.options.max_tokens_per_row

    def _attention_arguments(self, layout: Layout) -> dict[str, Any]:
        make: Callable[..., Any] = window_mark
        if self.path == "flex":
            make = block_mask
        elif self.path == "dense":
            # Eager attention adds its mask: a boolean one would be wrong without an error
            is_added = self.model.config.get_text_config()._attn_implementation in ("eager", None)
            make = partial(dense_mask, additive=self.model.dtype if is_added else None)
        masks = {kind: make(layout, window) for kind, window in self._windows.items()}
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        if not self._takes_plan:
            return {"attention_mask": mask}
        if self.path not in COMPILED:
            return {"attention_mask": mask, "plan": layout}
        return {"attention_mask": mask, "plan": segments_of(layout, merges=self.path == "varlen")}

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
                scored = self._run_laid_out(input_ids, labels, kwargs, groups)
        except ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            difference, found = float("inf"), f"it does not run on a layout of them ({error})"
        else:
            expected = expected.flatten()[scored.targets]
            gaps = (expected - scored.log_probs).abs()
            half = torch.is_autocast_enabled(gaps.device.type) or self.model.dtype in HALF
            # A tested type is here to show a config or a layer that is another, and not for its rounding
            rounding = _ROUNDING_HALF * expected.abs().mean() if self._is_tested else 0.0
            difference = float(gaps.mean() / (_TOLERANCE_HALF + rounding) if half else gaps.max() / _TOLERANCE)
            found = f"its log-probabilities differ by up to {gaps.max():.3g} nats"
        if not difference <= 1:
            self.path = None
            which = "with this config or adapter" if self._is_tested else "is not a tested model, and"
            self.reason = f"`{config.model_type}` {which} with one prompt for two completions {found}"
            self._refuse()
            logger.warning(f"Every completion is run with its own prompt: {self.reason}.")


def _again(run: Callable[[PromptGroups], _Scored], part: PromptGroups) -> _Scored:
    # Runs a part whose activations are computed again in the backward
    if torch.distributed.is_initialized():  # hooks of DDP, FSDP and ZeRO wait for each gradient once
        return _Scored(*checkpoint(run, part, use_reentrant=False))

    def run_for_gradient(_: Tensor) -> _Scored:
        scored = run(part)
        others = {name: values.detach() for name in _BY_TOKEN[1:] if (values := getattr(scored, name)) is not None}
        return scored._replace(**others)

    # Its backward adds to the gradients of the weights part by part, in place. The other way sums the parts first, in
    # a second copy of them all. It wants an input that has a gradient
    needed = torch.zeros((), requires_grad=True)
    return _Scored(*checkpoint(run_for_gradient, needed, use_reentrant=True))


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
