"""Estimate of the memory of a training on each device, from shapes alone. No weights are loaded."""

import os
from dataclasses import dataclass

import torch
from accelerate.utils import parse_flag_from_env
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from trl import ModelConfig

from trl_dpo_ext.cli.adapter import adapter_config
from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["MemoryEstimate", "estimate_memory"]

_GIB = 2**30

# Numbers that an optimizer keeps for each trained parameter; "8bit" optimizers use a byte for each
_STATES = {"sgd": 0, "adafactor": 0, "rmsprop": 1, "lion": 1, "adagrad": 1}
_ADAM_STATES = 2

# Activations of a layer in units of tokens x hidden size x 2 bytes (Korthikanti et al., 2022, Sec. 4.1: 34 bytes with
# memory-efficient attention). With checkpointing, only the input of the layer is kept
_ACTIVATIONS, _CHECKPOINTED = 17, 1


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Memory on each device, in bytes.

    Args:
        parameters (`int`): Number of parameters of the model.
        trained (`int`): Number of trained parameters.
        parts (`dict[str, float]`): Bytes by use.
    """

    parameters: int
    trained: int
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of all parts, in bytes."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / _GIB:.3g}" for name, size in self.parts.items() if size)
        return (
            f"about {self.total / _GIB:.3g} GiB on each device: {parts} ({self.trained:,} of {self.parameters:,} "
            "parameters trained; activations of the longest possible micro-batch, without the allocator's overhead)"
        )


def estimate_memory(
    args: BaseDPOConfig, model: ModelConfig, reference_in_memory: bool, tokens: int, adapter: str | None = None
) -> MemoryEstimate:
    """
    Estimates the memory of a training.

    Args:
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options of the trainer.
        model ([`trl.ModelConfig`]):
            Model, adapter and quantization.
        reference_in_memory (`bool`):
            Whether the reference is a second model.
        tokens (`int`):
            Maximum number of tokens of a micro-batch.
        adapter (`str`, *optional*):
            Use of the adapter in `model_name_or_path`: `"merge"` or `"keep"`.

    Returns:
        [`MemoryEstimate`]
    """
    trust, path = args.trust_remote_code, model.model_name_or_path
    base = path if adapter is None else PeftConfig.from_pretrained(path).base_model_name_or_path
    config = AutoConfig.from_pretrained(base, revision=model.model_revision, trust_remote_code=trust)
    with torch.device("meta"):
        whole: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        parameters = sum(parameter.numel() for parameter in whole.parameters())
        embedding = whole.get_input_embeddings().weight.numel()
        peft_config = PeftConfig.from_pretrained(path) if adapter == "keep" else adapter_config(args, model)
        if peft_config is not None:
            whole = get_peft_model(whole, peft_config)
    trained = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    dtype = getattr(torch, model.dtype) if model.dtype not in (None, "auto") else torch.float32
    weight = dtype.itemsize
    frozen = parameters * weight
    in_layers = parameters - embedding * (1 if config.get_text_config().tie_word_embeddings else 2)
    if model.load_in_4bit:  # all but the embeddings; NF4 with a scale for each 64 numbers
        frozen = (parameters - in_layers) * weight + in_layers * (0.5 + 4 / 64)
    elif model.load_in_8bit:
        frozen = (parameters - in_layers) * weight + in_layers
    of_trained = weight
    if peft_config is not None:  # TRL trains adapters in float32, or in bfloat16 on quantized weights
        of_trained = 2 if model.load_in_4bit or model.load_in_8bit else 4
    added = trained * of_trained if peft_config is not None else 0
    optimizer = str(getattr(args.optim, "value", args.optim))
    states = next((count for name, count in _STATES.items() if optimizer.startswith(name)), _ADAM_STATES)
    text = config.get_text_config()
    compute = 2 if args.bf16 or args.fp16 else weight
    kept = _CHECKPOINTED if args.gradient_checkpointing else _ACTIVATIONS
    # One layer is recomputed at a time
    activations = tokens * text.hidden_size * compute * (kept * text.num_hidden_layers + _ACTIVATIONS)
    parts = {
        "weights": frozen + added,
        "gradients": trained * of_trained,
        "optimizer": trained * states * (1 if "8bit" in optimizer else of_trained),
        "reference": frozen if reference_in_memory else 0,
    }
    for name in _sharded(args):
        parts[name] /= args.world_size
    return MemoryEstimate(parameters, trained, parts | {"activations": activations})


def _sharded(args: BaseDPOConfig) -> list[str]:
    """Returns the parts that are sharded, according to the options or to the environment of `accelerate launch`."""
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return ["weights", "gradients", "optimizer", "reference"]
    stage = 0
    if isinstance(args.deepspeed, dict):
        stage = args.deepspeed.get("zero_optimization", {}).get("stage", 0)
    elif parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 0))
    return {1: ["optimizer"], 2: ["optimizer", "gradients"]}.get(
        stage, ["weights", "gradients", "optimizer", "reference"] if stage == 3 else []
    )
