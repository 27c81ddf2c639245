"""Options shared by all trainers, and how presets, batch sizes and tokenization options are resolved."""

import copy
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import get_int_from_env, parse_flag_from_env
from trl import DPOConfig

from trl_dpo_ext.data.options import RowOptions
from trl_dpo_ext.shared_prompt.paths import PATHS
from trl_dpo_ext.trainers.options.installed import check_installed
from trl_dpo_ext.trainers.options.option_checks import check_options
from trl_dpo_ext.trainers.options.secrets import without_secrets
from trl_dpo_ext.trainers.presets import PRESETS, preset_values


__all__ = ["BaseDPOConfig"]

# Options that only affect TRL's pairwise losses
_PAIRWISE_ONLY = (
    "discopop_tau",
    "f_alpha_divergence_coef",
    "f_divergence_type",
    "label_smoothing",
    "label_smoothing_factor",
    "ld_alpha",
    "loss_type",
    "loss_weights",
    "use_weighting",
)

# `None` means no truncation for `max_length`, so its default needs another value that a command line can show
_MAX_LENGTH_OF_PRESET = -1

_NEAR = 12  # number of batch sizes suggested in a message


@dataclass(repr=False)
class BaseDPOConfig(DPOConfig):
    r"""
    Options shared by all trainers of `trl_dpo_ext`, in addition to those of [`trl.DPOConfig`].

    Options that a preset sets are `None` (`max_length`: -1) until they are resolved by the constructor. Values that
    are passed explicitly replace those of the preset.

    Parameters:
        preset (`str`, *optional*, defaults to `"paper"`):
            Default values: `"paper"`, `"paper_tldr"`, `"authors_code"` or `"trl"`. See
            [`~trl_dpo_ext.trainers.presets.preset_values`].
        global_batch_size (`int`, *optional*):
            Rows per update over all data-parallel ranks. `gradient_accumulation_steps` becomes `global_batch_size /
            (per_device_train_batch_size * ranks)`, which must be a whole number. If only
            `gradient_accumulation_steps` is set, it replaces the value of the preset. Both together must agree.
        tokenization (`str`, *optional*):
            `"separate"`: prompt and answers are tokenized separately and the EOS id is appended, as in the authors'
            code (chat data use the chat template). `"joint"`: TRL's tokenization and truncation.
        max_prompt_length (`int`, *optional*):
            With `tokenization="separate"`: number of tokens to which a prompt is truncated if prompt and longest
            answer exceed `max_length`. Default: half of `max_length`.
        prompt_truncation_mode (`str`, *optional*):
            With `tokenization="separate"`: which end of a truncated prompt is kept, `"keep_end"` (the authors' choice
            for dialogue) or `"keep_start"` (their choice otherwise).
        share_prompt (`bool`, *optional*):
            Whether to compute each prompt once for all its completions. `None`: if that is exact, otherwise the reason
            is logged; `True`: raise an error if it is not exact; `False`: never.
        padding_free (`bool`, *optional*):
            Whether to put several prompts with their completions in one row, without padding. `None`: if prompts are
            shared; `True`: also if they are not, and raise an error if that is not exact; `False`: never. Changes the
            shape of a micro-batch, but not its examples.
        max_tokens_per_row (`int`, *optional*):
            Maximum number of tokens of such a row (a longer prompt with its completions gets its own row). Default:
            the whole micro-batch in one row, or the longest prompt with its completions if attention needs a dense
            mask.
        completions_per_forward (`int`, *optional*):
            Number of completions of a prompt that are in memory at the same time. The activations of the others are
            recomputed in the backward pass. With `gradient_checkpointing=True`, this only lowers the peak within a
            layer.
        attention_path (`str`, *optional*, defaults to `"auto"`):
            How a model attends to prompts that completions share: `"flash"` (FlashAttention of the model), `"varlen"`
            (FlashAttention of torch), `"flex"` (block mask), `"dense"` (dense mask), `"segments"` (on a CPU) or
            `"separate"` (prompts are not shared). `"auto"`: the first that is exact. The line at the start of a run
            names it, and the reason why it is not a better one. Raises an error if the requested one is not exact.
        log_samples (`int`, *optional*, defaults to 0):
            Number of prompts of each evaluation set that policy and reference answer at every evaluation. The answers
            and their rewards are saved in `run_log/samples.jsonl` and sent to the trackers. They are sampled at
            temperature 1 with the same random numbers at every evaluation, on any number of processes.
        ref_logps_cache_dir (`str`, *optional*):
            With `precompute_ref_log_probs=True`: folder of the cached reference log-probabilities. Default:
            `trl_dpo_ext/` inside the `datasets` cache.

    Raises:
        ValueError: If an option has an unknown value, has no effect, or contradicts another one.
    """

    preset: str = field(
        default="paper",
        metadata={"help": "Default values of options that are not set.", "choices": list(PRESETS)},
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows per update over all ranks; sets `gradient_accumulation_steps`. Paper: 64."},
    )
    tokenization: str | None = field(
        default=None,
        metadata={
            "help": "'separate': tokenize prompt and answers separately, append EOS (paper). 'joint': as in TRL.",
            "choices": ["separate", "joint"],
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Tokens to which the prompt of a long row is truncated. Default: half of `max_length`."},
    )
    prompt_truncation_mode: str | None = field(
        default=None,
        metadata={"help": "Which end of a truncated prompt is kept.", "choices": ["keep_start", "keep_end"]},
    )
    share_prompt: bool | None = field(
        default=None,
        metadata={"help": "Compute each prompt once for its completions. Default: if exact. True: error if not."},
    )
    padding_free: bool | None = field(
        default=None,
        metadata={"help": "Put several prompts in a row, without padding. Default: if prompts are shared."},
    )
    max_tokens_per_row: int | None = field(
        default=None, metadata={"help": "Maximum tokens of a row with several prompts. Default: depends on attention."}
    )
    completions_per_forward: int | None = field(
        default=None, metadata={"help": "Completions of a prompt in memory at the same time. Default: all."}
    )
    attention_path: str = field(
        default="auto",
        metadata={
            "help": "How a model attends to shared prompts. Default: the best way that is exact.",
            "choices": list(PATHS),
        },
    )
    log_samples: int = field(
        default=0,
        metadata={"help": "Prompts that policy and reference answer at every evaluation, as a table of samples."},
    )
    ref_logps_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of cached reference log-probabilities. Default: in the `datasets` cache."},
    )

    # Options of TRL that a preset sets
    beta: float | None = field(default=None, metadata={"help": "Strength of the KL constraint, > 0. Paper: 0.1."})
    learning_rate: float | None = field(default=None, metadata={"help": "Peak learning rate. Paper: 1e-6."})
    optim: str | None = field(default=None, metadata={"help": "Optimizer. Paper: 'rmsprop'."})
    lr_scheduler_type: str | None = field(
        default=None,
        metadata={"help": "Schedule. Paper: 'constant_with_warmup', with a paper preset (k + 1)/(W + 1) at update k."},
    )
    warmup_steps: float | None = field(
        default=None, metadata={"help": "Warm-up updates, or a share of all updates if below 1. Paper: 150."}
    )
    max_grad_norm: float | None = field(default=None, metadata={"help": "Gradient clipping. Authors' code: 10."})
    num_train_epochs: float | None = field(default=None, metadata={"help": "Epochs. Authors' code: 1."})
    max_length: int | None = field(
        default=_MAX_LENGTH_OF_PRESET,
        metadata={
            "help": "Maximum tokens of a prompt with an answer. null: no truncation. -1: the preset's (paper: 512)."
        },
    )
    gradient_accumulation_steps: int | None = field(
        default=None, metadata={"help": "Micro-batches per update. Default: derived from `global_batch_size`."}
    )

    def __post_init__(self) -> None:
        check_options(self)
        values = preset_values(self.preset)
        self._resolve_batch(values.pop("global_batch_size"))
        if self.fp16:
            values.pop("bf16")
        if self.tokenization == "joint":
            values["prompt_truncation_mode"] = None
        for name, value in values.items():
            unset = _MAX_LENGTH_OF_PRESET if name == "max_length" else None
            if getattr(self, name) == unset:
                setattr(self, name, value)
        self._resolve_tokenization()
        self._check_layout()
        check_installed(self)
        super().__post_init__()
        if self.dataloader_pin_memory and torch.cuda.is_available() and not self.use_cpu:
            self.accelerator_config.non_blocking = True  # batches are copied while the GPU computes

        announced = _announced_world_size()
        if self.world_size != announced:
            raise ValueError(
                f"This process group has {self.world_size} processes, but the environment announced {announced} "
                "when `gradient_accumulation_steps` was derived. Start the script with `accelerate launch` or "
                "`torchrun`, which set WORLD_SIZE."
            )

    @classmethod
    def from_trl(cls, args: DPOConfig) -> Self:
        """
        Converts a resolved [`trl.DPOConfig`] so that every option of TRL keeps its value.

        Args:
            args (`trl.DPOConfig`):
                Configuration to convert. It is not modified.

        Returns:
            An instance of this class with `preset="trl"`.
        """
        config = object.__new__(cls)
        own = {f.name: f.default for f in fields(cls) if f.name not in vars(args)}
        vars(config).update(own | vars(args) | {"preset": "trl", "tokenization": "joint"})
        config.padding_free = args.padding_free or None  # TRL only supports `False` at present
        check_options(config)
        check_installed(config)
        return config

    def __getstate__(self) -> dict[str, Any]:
        # For `training_args.bin`, which is uploaded with the weights
        return vars(self) | {
            name: without_secrets(value, name, mask=None)
            for name, value in vars(self).items()
            if isinstance(value, (str, dict))
        }

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __str__(self) -> str:
        options = ",\n".join(f"{name}={value!r}" for name, value in sorted(self.to_dict().items()))
        return f"{type(self).__name__}(\n{options},\n)"

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Same as [`transformers.TrainingArguments.to_dict`], which trackers log, but without secrets."""
        return without_secrets(super().to_dict())

    @property
    def data_parallel_ranks(self) -> int:
        """Number of processes with different rows (tensor, context and sequence parallel ranks share rows)."""
        parallelism = self.parallelism_config
        if parallelism is None and parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"):
            parallelism = ParallelismConfig()
        shared = 1 if parallelism is None else parallelism.tp_size * parallelism.cp_size * parallelism.sp_size
        state = vars(self).get("distributed_state")
        world_size = _announced_world_size() if state is None else state.num_processes
        return world_size // shared

    @property
    def uses_paper_schedule(self) -> bool:
        """Whether `constant_with_warmup` is the authors' warm-up, (k + 1)/(W + 1)."""
        return self.preset != "trl" and self.lr_scheduler_type == "constant_with_warmup"

    def default_cache_dir(self) -> Path:
        """Folder of the cached reference log-probabilities."""
        import datasets

        return Path(self.ref_logps_cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "trl_dpo_ext"))

    def check_no_reference_options(self) -> None:
        """Raises a `ValueError` for options that need a reference if `reference_free=True`."""
        for name in ("precompute_ref_log_probs", "sync_ref_model"):
            if getattr(self, name):
                raise ValueError(f"`{name}=True` has no effect with `reference_free=True`. Leave it out.")

    def check_no_pairwise_options(self, what: str) -> None:
        """Raises a `ValueError` for options that only affect TRL's pairwise losses. `what` is the objective."""
        for option in fields(DPOConfig):
            if option.name in _PAIRWISE_ONLY:
                default = option.default_factory() if callable(option.default_factory) else option.default
                if getattr(self, option.name) != default:
                    raise ValueError(
                        f"`{option.name}={getattr(self, option.name)!r}` has no effect on {what}, because it changes "
                        "a pairwise loss. Leave it out, or use `DPOPaperTrainer`."
                    )

    def _resolve_batch(self, of_preset: int | None) -> None:
        rows = self.per_device_train_batch_size * self.data_parallel_ranks
        if self.global_batch_size is None and self.gradient_accumulation_steps is None:
            self.global_batch_size = of_preset
        if self.global_batch_size is None:
            self.gradient_accumulation_steps = self.gradient_accumulation_steps or 1
            if not self.auto_find_batch_size:
                self.global_batch_size = rows * self.gradient_accumulation_steps
            return

        if self.auto_find_batch_size:
            raise ValueError(
                f"`auto_find_batch_size` changes the batch size set by `global_batch_size={self.global_batch_size}`. "
                "Disable it, or set `gradient_accumulation_steps` instead of `global_batch_size`."
            )
        if self.global_batch_size % rows:
            raise ValueError(self._batch_message(rows))
        derived = self.global_batch_size // rows
        if self.gradient_accumulation_steps not in (None, derived):
            raise ValueError(
                f"`global_batch_size={self.global_batch_size}` = {self.per_device_train_batch_size} per device x "
                f"{self.data_parallel_ranks} rank(s) x {derived}, which contradicts "
                f"`gradient_accumulation_steps={self.gradient_accumulation_steps}`. Leave one of them out."
            )
        self.gradient_accumulation_steps = derived

    def _batch_message(self, rows: int) -> str:
        size, ranks = self.global_batch_size, self.data_parallel_ranks
        if size % ranks:
            nearest = {max(size // rows, 1) * rows, (size // rows + 1) * rows}
            return (
                f"`global_batch_size={size}` cannot be split over {ranks} ranks of {self.per_device_train_batch_size} "
                f"rows. Nearest possible sizes: {' and '.join(map(str, sorted(nearest)))}."
            )
        per_device = self.per_device_train_batch_size
        # Divisors up to the square root and beyond, because a size may be in the billions
        small = [n for n in range(1, math.isqrt(size // ranks) + 1) if size // ranks % n == 0]
        working = sorted({*small, *(size // ranks // n for n in small)})
        near = sorted(sorted(working, key=lambda n: abs(n - per_device))[:_NEAR])
        return (
            f"`global_batch_size={size}` is not a multiple of {rows} = {per_device} per device "
            f"x {ranks} rank(s). Set `per_device_train_batch_size` to one of {', '.join(map(str, near))}; or "
            "set `gradient_accumulation_steps` instead of `global_batch_size`."
        )

    def _check_layout(self) -> None:
        separate = self.share_prompt is False and not self.padding_free
        if separate and self.attention_path not in ("auto", "separate"):
            raise ValueError(
                f"`attention_path={self.attention_path!r}` has no effect with `share_prompt=False`: every completion "
                "is run with its own prompt. Leave it out, or set `padding_free=True`."
            )
        if self.attention_path == "separate" and self.max_tokens_per_row is not None:
            raise ValueError(
                f"`max_tokens_per_row={self.max_tokens_per_row}` has no effect with `attention_path='separate'`. "
                "Leave one of them out."
            )
        if self.max_tokens_per_row is not None and (self.padding_free is False or separate):
            raise ValueError(
                f"`max_tokens_per_row={self.max_tokens_per_row}` has no effect with "
                f"`share_prompt={self.share_prompt}` and `padding_free={self.padding_free}`, because no row has "
                "several prompts. Set `padding_free=True`."
            )

    def _resolve_tokenization(self) -> None:
        vars(self).update(vars(RowOptions.of(self)))


def _announced_world_size() -> int:
    # From the launchers' variables, because the process group exists only after `TrainingArguments.__post_init__`
    return int(get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1))
