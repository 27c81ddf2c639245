"""Section of a model card about training, in addition to TRL's template."""

import os
from pathlib import Path
from typing import Any


__all__ = ["named_locally", "training_section"]

_BEFORE = "### Framework versions"


def training_section(
    card: str, method: str, equation: str | None, objective: dict[str, Any], state: dict[str, Any]
) -> str:
    """
    Adds the method, its equation, beta, the reference and the use of rewards to a model card.

    Args:
        card (`str`):
            TRL's model card.
        method (`str`):
            Name of the trainer.
        equation (`str`, *optional*):
            Loss in LaTeX, if there is one.
        objective (`dict`):
            Options of the loss, by name.
        state (`dict`):
            State saved with the weights.

    Returns:
        `str`
    """
    reference = state["reference"]
    source = f", `{reference['model']}`" if "model" in reference and not reference["model"].startswith("/") else ""
    hashed = f" (hash of its weights: `{reference['hash']}`)" if reference.get("hash") else ""
    minimized = f" minimized\n\n$$ {equation} $$" if equation else "."
    options = "".join(f"- {name}: {value}\n" for name, value in objective.items())
    section = (
        f"### Method\n\n`{method}` of trl_dpo_ext {state['trl_dpo_ext']}{minimized}\n\n"
        f"- beta: {state['beta']:g}\n- reference: {reference['kind']}{source}{hashed}\n{options}"
        f"- tokens: `tokenization={state['tokenization']!r}`, `max_length={state['max_length']}`\n"
    )
    if reference["kind"] != "none":
        section += (
            "\nThe policy is also a reward model, beta times the log-ratio of policy and reference:\n\n"
            "```python\nfrom trl_dpo_ext import ImplicitRewardModel\n\n"
            'reward_model = ImplicitRewardModel.from_pretrained("this model")\n'
            "rewards = reward_model.score(prompts, completions)\n```\n"
        )
    return card.replace(_BEFORE, f"{section}\n{_BEFORE}", 1)


def named_locally(card: str, started_from: str, output_dir: str) -> str:
    """
    Replaces None in TRL's template, which only supports names on the hub.

    Args:
        card (`str`):
            TRL's model card.
        started_from (`str`):
            Folder that the model was loaded from, or empty for a model built in memory.
        output_dir (`str`):
            Folder of the run.

    Returns:
        `str`
    """
    base = f"`{Path(started_from).resolve().name}`" if os.path.isdir(started_from) else "a model built in memory"
    card = card.replace("[None](https://huggingface.co/None)", base)
    return card.replace('model="None"', f'model="{Path(output_dir).resolve().name}"')
