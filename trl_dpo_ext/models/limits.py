"""Limits of a model: its kind, its vocabulary, and its learned positions."""

import re
from typing import Any

import torch
import transformers
from accelerate.utils import is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


__all__ = ["Limits", "check_config", "check_is_causal_lm", "check_pad_token", "limits_of"]


_TWO_SEQUENCES = (
    " is an encoder-decoder model, but prompt and completion are trained as one sequence. Use a decoder-only model "
    "(`AutoModelForCausalLM`)."
)
_NO_HEAD = (
    " has no language-model head, so it gives no probabilities of tokens. Load the model with `AutoModelForCausalLM`, "
    "or save it so if you pass a folder."
)


class Limits:
    """
    Largest token id and longest row that a model supports.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
    """

    def __init__(self, model: PreTrainedModel):
        self.name = model.config.get_text_config().model_type
        self.vocabulary = _vocabulary(model)
        self.positions = _learned_positions(model)

    def check_extent(self, extent: tuple[int, int, int], max_length: int | None, where: str) -> None:
        """
        Checks a dataset.

        Args:
            extent (`tuple[int, int, int]`):
                Smallest and largest token id and tokens of the longest row
                ([`~trl_dpo_ext.data.extent.Extent`]).
            max_length (`int`, *optional*):
                Tokens that the collator truncates rows to.
            where (`str`):
                What holds the rows, for the error.

        Raises:
            ValueError: If the model cannot take them.
        """
        smallest_id, largest_id, longest = extent
        self.check(smallest_id, largest_id, min(longest, max_length or longest), where)

    def check(self, smallest_id: int, largest_id: int, longest: int, where: str) -> None:
        """
        Checks that the model supports rows.

        Args:
            smallest_id (`int`):
                Smallest token id.
            largest_id (`int`):
                Largest token id.
            longest (`int`):
                Number of tokens of the longest row.
            where (`str`):
                Name of the rows in the error.

        Raises:
            ValueError: If the model does not support them.
        """
        if smallest_id < 0 or largest_id >= self.vocabulary:
            raise ValueError(
                f"{where} has the token id {smallest_id if smallest_id < 0 else largest_id}, but `{self.name}` has "
                f"embeddings only for ids from 0 to {self.vocabulary - 1}. Use the model's own tokenizer, or add its "
                "tokens to the model with `model.resize_token_embeddings(len(tokenizer))`."
            )
        if self.positions is not None and longest > self.positions:
            raise ValueError(
                f"{where} has a row of {longest} tokens, but `{self.name}` has {self.positions} learned positions. "
                f"Set `max_length={self.positions}` or less."
            )


def limits_of(path: str, revision: str | None = None, trust_remote_code: bool = False) -> Limits:
    """
    Limits of a model by its config, without weights.

    Args:
        path (`str`):
            Folder or name of the model.
        revision (`str`, *optional*):
            Revision on the hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that the model comes with.

    Raises:
        ValueError: As [`check_config`].
        OSError: If there is no config.
    """
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    check_config(config)
    with torch.device("meta"):
        return Limits(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))


def check_is_causal_lm(model: Any) -> None:
    """
    Checks that a model predicts the next token of one sequence.

    Raises:
        ValueError: If it is an encoder-decoder model, or has no language-model head.
    """
    model = model.get_base_model() if is_peft_model(model) else model
    kind = f"`{type(model).__name__}`"
    if model.config.is_encoder_decoder:
        raise ValueError(kind + _TWO_SEQUENCES)
    if model.get_output_embeddings() is None:
        raise ValueError(kind + _NO_HEAD)


def check_config(config: PreTrainedConfig) -> None:
    """
    Checks a config, before weights are loaded, as [`check_is_causal_lm`] checks a model.

    Raises:
        ValueError: Same as in [`check_is_causal_lm`].
    """
    name = (config.architectures or [config.model_type])[0]
    if config.is_encoder_decoder:
        raise ValueError(f"`{name}`" + _TWO_SEQUENCES)
    # TRL loads this class. A class that is not in transformers comes with its own code
    architecture = getattr(transformers, name, None)
    if architecture is not None and not architecture.can_generate():
        raise ValueError(f"`{name}`" + _NO_HEAD)


def check_pad_token(tokenizer: Any, limits: Limits) -> None:
    """
    Checks that the model has an embedding for the padding token, which is in batches although it is masked.

    Raises:
        ValueError: If it has no such embedding.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= limits.vocabulary:
        raise ValueError(
            f"The padding token {tokenizer.pad_token!r} has the id {tokenizer.pad_token_id}, but `{limits.name}` has "
            f"embeddings only for ids from 0 to {limits.vocabulary - 1}. Use another padding token "
            "(`tokenizer.pad_token = tokenizer.eos_token`), or call `model.resize_token_embeddings(len(tokenizer))`."
        )


def _unwrapped(module: Any) -> Any:
    # The layer that an adapter has wrapped
    if isinstance(module, AuxiliaryTrainingWrapper):
        return _unwrapped(module.original_module)
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _vocabulary(model: PreTrainedModel) -> int:
    # Not by the shapes of weights, which are sharded by ZeRO-3 and FSDP
    embedding, head = _unwrapped(model.get_input_embeddings()), _unwrapped(model.get_output_embeddings())
    sizes = [embedding.num_embeddings] if isinstance(embedding, nn.Embedding) else []
    sizes += [head.out_features] if isinstance(head, nn.Linear) else []
    return min(sizes, default=model.config.get_text_config().vocab_size)


def _learned_positions(model: PreTrainedModel) -> int | None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return None
    tokens = _unwrapped(model.get_input_embeddings())
    for name, module in model.base_model.named_modules():
        # A table with a row for each position, or a few more (OPT). Encoders used as decoders start at the padding id
        is_table = isinstance(module, nn.Embedding) and module is not tokens and re.search("pos|wpe", name)
        if is_table and positions <= module.num_embeddings <= positions + 2:
            return positions if module.padding_idx is None else module.num_embeddings - module.padding_idx - 1
    for name, buffer in model.base_model.named_buffers():  # angles (GPT-J)
        if "pos" in name and buffer.dim() == 2 and len(buffer) == positions:
            return positions
    return None
