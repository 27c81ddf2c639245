"""The public names: `__all__` of the modules that users import from."""

import importlib
from functools import cache


PUBLIC_MODULES = (
    "trl_dpo_ext",
    "trl_dpo_ext.data",
    "trl_dpo_ext.evaluation",
    "trl_dpo_ext.reward_model",
    "trl_dpo_ext.objectives",
    "trl_dpo_ext.rewards",
    "trl_dpo_ext.theory",
)


def public_names(module: str) -> list[str]:
    """Full names of what a module makes public, sorted as in its `__all__`."""
    return [f"{module}.{name}" for name in importlib.import_module(module).__all__]


@cache
def all_public_names() -> dict[str, str]:
    """Full name of every public name. Of a name in several modules it is the first."""
    found: dict[str, str] = {}
    for module in PUBLIC_MODULES:
        for full in public_names(module):
            found.setdefault(full.rpartition(".")[2], full)
    return found
