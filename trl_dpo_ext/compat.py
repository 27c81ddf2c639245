"""
The only module that uses private names of TRL, with a list of the TRL methods that the trainers depend on.

Importing it checks the signatures of these methods, so that an incompatible version of TRL or transformers raises an
`ImportError` instead of giving wrong numbers.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import transformers
import trl
from packaging.version import Version
from trl import DPOTrainer
from trl.models.utils import prepare_deepspeed
from trl.scripts.utils import DatasetConfig
from trl.trainer import utils as trl_utils
from trl.trainer.utils import (
    FusedCausalLMOutput,
    add_fused_lm_head,
    create_model_from_path,
    get_config_model_id,
    use_adapter,
)


__all__ = [
    "PPO_SEAMS",
    "RESUMES_ADAPTER_COPY",
    "RLOO_SEAMS",
    "SEAMS",
    "DatasetConfig",
    "FusedCausalLMOutput",
    "add_fused_lm_head",
    "check_seams",
    "create_model_from_path",
    "get_config_model_id",
    "lm_head_on_every_token",
    "lm_head_tiles_for",
    "loading_models_by",
    "prepare_deepspeed",
    "use_adapter",
]

# Older versions restore only the frozen copy if a checkpoint has a trained adapter and its copy, so training would
# start again without an error (measured with 5.17, 5.20 and 5.22)
RESUMES_ADAPTER_COPY = Version(transformers.__version__) >= Version("5.23.0")

# Methods of `trl.DPOTrainer` (some inherited from `transformers.Trainer`) that the trainers override or call, with the
# parameters that they depend on, except `self`
SEAMS = {
    "__init__": (
        "model",
        "ref_model",
        "args",
        "data_collator",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "compute_metrics",
        "callbacks",
        "optimizers",
        "quantization_config",
        "peft_config",
    ),
    "_get_dataloader": ("dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"),
    "_get_eval_sampler": ("eval_dataset",),
    "_init_training_state": (
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_rng_state": ("checkpoint",),
    "_get_grad_norm": ("model", "grad_norm"),
    "_precompute_ref_logps": ("dataset", "name", "batch_size"),
    "_prepare_dataset": ("dataset", "processing_class", "args", "dataset_name"),
    "_save_checkpoint": ("model", "trial"),
    "_save_rng_state": ("output_dir",),
    "_set_signature_columns_if_needed": (),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "compute_ref_log_probs": ("model", "inputs"),
    "create_model_card": ("model_name", "dataset_name", "tags"),
    "create_accelerator_and_postprocess": (),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "evaluate": ("eval_dataset", "ignore_keys", "metric_key_prefix"),
    "evaluation_loop": ("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "get_eval_dataloader": ("eval_dataset",),
    "log": ("logs", "start_time"),
    "predict": ("test_dataset", "ignore_keys", "metric_key_prefix"),
    "prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
    "save_model": ("output_dir", "_internal_call"),
    "train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
}

# The same for `trl.RLOOTrainer`
RLOO_SEAMS = {
    "__init__": (
        "model",
        "reward_funcs",
        "args",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "reward_processing_classes",
        "callbacks",
        "optimizers",
        "quantization_config",
        "peft_config",
    ),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "save_model": ("output_dir", "_internal_call"),
}

# The same for `trl.GRPOTrainer`, on which PPO is built
PPO_SEAMS = RLOO_SEAMS | {
    "__init__": (*RLOO_SEAMS["__init__"], "tools", "rollout_func", "environment_factory"),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
        "pixel_values",
        "image_grid_thw",
        "num_images",
        "pixel_attention_mask",
        "spatial_shapes",
        "num_tiles",
        "image_sizes",
        "token_type_ids",
        "mm_token_type_ids",
        "image_position_ids",
    ),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_optimizer": ("model",),
}


def check_seams(trainer_class: type = DPOTrainer, seams: Mapping[str, tuple[str, ...]] = SEAMS) -> None:
    """
    Checks that methods exist on `trainer_class` with the expected parameters.

    Args:
        trainer_class (`type`, *optional*, defaults to `trl.DPOTrainer`):
            Class to check.
        seams (`Mapping[str, tuple[str, ...]]`, *optional*, defaults to [`SEAMS`]):
            Names of the methods, with their parameters except `self`.

    Raises:
        ImportError: If not. The message has the first method, its signature now, and the installed versions.
    """
    for name, expected in seams.items():
        method = getattr(trainer_class, name, None)
        found = None if method is None else tuple(list(inspect.signature(method).parameters)[1:])
        if found != expected:
            now = "is missing" if found is None else f"is now ({', '.join(found)})"
            raise ImportError(
                f"`{trainer_class.__name__}.{name}({', '.join(expected)})` {now} in trl {trl.__version__} with "
                f"transformers {transformers.__version__}, but trl_dpo_ext depends on it. Install a version listed in "
                "constraints.txt, or upgrade trl_dpo_ext."
            )


@contextmanager
def lm_head_tiles_for(device: torch.device) -> Iterator[None]:
    """
    Makes the vocabulary tiles of TRL's fused LM head, which are 32,768 wide for GPUs, fit the cache of a CPU.

    Measured on two cores (1,200 tokens, 512 wide, 32,000 tokens of vocabulary, float32, forward and backward): 1.42 s
    at 8,192, 0.81 s at 1,024. The backward pass uses the width of the forward pass.
    """
    given = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    if device.type == "cpu":
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(given, 1024)
    try:
        yield
    finally:
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = given


@contextmanager
def lm_head_on_every_token() -> Iterator[None]:
    """
    Has TRL's fused LM head score all tokens that it is given, and not pick those with a label first.

    To pick them waits for a GPU several times, in the forward and in the backward. The numbers are the same.
    """
    given = trl_utils._use_triton  # read there for this choice alone
    trl_utils._use_triton = lambda device: False
    try:
        yield
    finally:
        trl_utils._use_triton = given


@contextmanager
def loading_models_by(load: Callable[..., torch.nn.Module], trainer_class: type = DPOTrainer) -> Iterator[None]:
    """Makes a trainer of TRL use `load` to load a policy or reference by its path."""
    module = sys.modules[trainer_class.__module__]
    given = module.create_model_from_path
    module.create_model_from_path = load  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.create_model_from_path = given  # type: ignore[attr-defined]


check_seams()
