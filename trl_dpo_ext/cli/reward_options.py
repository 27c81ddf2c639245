"""Options that name rewards, which several commands share."""

import argparse
from pathlib import Path
from typing import Any

from trl_dpo_ext.cli.launch import hub_name_explained


__all__ = ["add_reward_options", "load_rewards"]


def add_reward_options(group: Any) -> None:
    """Adds the options that name rewards."""
    group.add_argument(
        "--reward_function",
        metavar="MODULE:NAME",
        action="append",
        default=[],
        help="function f(prompts, completions) that returns the rewards, of a module or a .py file; may be repeated",
    )
    group.add_argument("--reward_model", metavar="FOLDER", help="sequence classifier or reward model")
    group.add_argument(
        "--reward_label", metavar="LABEL", help="label of the classifier whose probability is the reward"
    )
    group.add_argument("--implicit_reward", metavar="FOLDER", help="policy trained by DPO, as a reward model")


def load_rewards(options: argparse.Namespace) -> dict[str, Any]:
    """
    Loads the rewards that are named, on `options.device`.

    Raises:
        ValueError: If one cannot be loaded, two have the same name, or a label has no classifier.
    """
    from trl_dpo_ext.evaluation.rewards.classifier_reward import ClassifierReward
    from trl_dpo_ext.evaluation.rewards.reward_function import load_function
    from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel

    if options.reward_label is not None and options.reward_model is None:
        raise ValueError("--reward_label has no effect without --reward_model.")
    rewards: list[tuple[str, Any]] = []
    for name in options.reward_function:
        rewards.append((name.rpartition(":")[2], load_function(name)))
    if options.reward_model:
        with hub_name_explained(options.reward_model):
            reward = ClassifierReward.from_pretrained(
                options.reward_model, options.reward_label, device=options.device
            )
        rewards.append((Path(options.reward_model).name, reward))
    if options.implicit_reward:
        with hub_name_explained(options.implicit_reward):
            model = ImplicitRewardModel.from_pretrained(options.implicit_reward, device=options.device, progress=False)
        rewards.append((f"implicit reward of {Path(options.implicit_reward).name}", model))
    names = [name for name, _ in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two rewards have the name `{name}`. Rename one.")
    return dict(rewards)
