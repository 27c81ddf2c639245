"""What makes TRL's policy-gradient trainers compute the KL and the ratios of Eq. 3: positions, dropout and rewards."""

import inspect
from typing import Any

from accelerate.utils import is_peft_model
from torch import Tensor, nn

from trl_dpo_ext.evaluation.rewards.reward import Reward


__all__ = ["checked_rewards", "count_positions", "turn_dropout_off"]


def count_positions(model: Any) -> None:
    """
    Makes a model count the positions of its tokens without left padding.

    TRL pads prompts on the left and passes no positions. Models with learned positions, such as GPT-2, then count the
    padding, so the log-probabilities of a row depend on the other rows of its batch.
    """
    inner = model.get_base_model() if is_peft_model(model) else model
    if "position_ids" in inspect.signature(type(inner).forward).parameters:
        model.register_forward_pre_hook(_add_positions, with_kwargs=True)


def _add_positions(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask: Tensor | None = kwargs.get("attention_mask")
    if mask is None or mask.dim() != 2 or kwargs.get("position_ids") is not None:
        return args, kwargs
    return args, kwargs | {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


def turn_dropout_off(model: nn.Module) -> None:
    """Sets all dropout rates of a model to 0, also those that are numbers and not modules, which TRL leaves."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def checked_rewards(reward_funcs: Reward | list[Reward]) -> list[Reward]:
    """
    Returns the rewards of a trainer as a list.

    Raises:
        TypeError: If one is not a function of prompts and completions. TRL would also accept a model, and use its
            first output without the EOS token of its training, which for a classifier may be the wrong label.
    """
    rewards = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    if not rewards:
        raise TypeError("`reward_funcs` is empty. Pass a function `f(prompts, completions)` that returns numbers.")
    for reward in rewards:
        if isinstance(reward, (str, nn.Module)):
            name = repr(reward) if isinstance(reward, str) else f"a `{type(reward).__name__}`"
            fix = (
                f"`ClassifierReward.from_pretrained({name}, label=...)`"
                if isinstance(reward, str)
                else "`ClassifierReward(model, tokenizer, label=...)`"
            )
            raise TypeError(
                f"`reward_funcs` has {name}, which does not say which of its outputs is the reward. Pass {fix} of "
                "`trl_dpo_ext.evaluation`, without `label` for a reward model with one output."
            )
        if not callable(reward):
            raise TypeError(
                f"`reward_funcs` has a `{type(reward).__name__}`. Pass functions `f(prompts, completions)` that "
                "return a number for each completion."
            )
    return rewards
