"""The value model of PPO: the policy at the start, with a head that predicts a number for each token."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel
from transformers.utils import CONFIG_NAME


__all__ = ["completion_values", "load_value_model", "value_model_of"]


def value_model_of(policy: PreTrainedModel) -> PreTrainedModel:
    """
    Returns a value model with a copy of the policy's layers as they are in memory. All values are 0.

    Raises:
        ValueError: If transformers has no token classifier of the policy's architecture.
    """
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    model = AutoModelForTokenClassification.from_config(config)
    setattr(model, model.base_model_prefix, copy.deepcopy(policy.base_model))
    of_policy = {id(parameter) for parameter in model.base_model.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in of_policy:
            nn.init.zeros_(parameter)
    return model.to(policy.device, policy.dtype).requires_grad_(True)


def completion_values(
    value_model: nn.Module, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, batch_size: int
) -> Tensor:
    """
    Returns the value before each of the last tokens, given the tokens before it.

    Args:
        value_model ([`~torch.nn.Module`]):
            Value model.
        input_ids (`torch.Tensor` of shape `(B, P + T)`):
            Prompts, padded on the left, and completions.
        attention_mask (`torch.Tensor` of shape `(B, P + T)`):
            1 for tokens, 0 for padding.
        num_tokens (`int`):
            T, the width of the completions.
        batch_size (`int`):
            Number of rows of a forward pass.

    Returns:
        `torch.Tensor` of shape `(B, T)`: values in float32.
    """
    rows = zip(input_ids.split(batch_size), attention_mask.split(batch_size), strict=True)
    outputs = [value_model(input_ids=ids, attention_mask=mask).logits for ids, mask in rows]  # (b, P + T, 1)
    return torch.cat(outputs)[:, -num_tokens - 1 : -1, 0].float()


def load_value_model(model: PreTrainedModel, folder: Path) -> None:
    """
    Loads the weights of a value model that `save_pretrained` saved.

    Raises:
        ValueError: If there is none.
    """
    if not Path(folder, CONFIG_NAME).is_file():
        raise ValueError(
            f"{folder.parent} cannot be resumed from: it has no folder `{folder.name}`, in which "
            "`PPOPaperTrainer` saves its value model with each checkpoint."
        )
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())
