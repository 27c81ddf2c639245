"""Check of optional libraries before anything is loaded."""

from importlib.util import find_spec
from typing import Any

from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from trl_dpo_ext.spelling import did_you_mean


__all__ = ["check_installed", "check_package"]

# Packages to install, if they have another name than the tracker
_PACKAGES = {"azure_ml": "azureml-mlflow"}

# Optimizers of other packages, by a part of their names: module and package. The first match counts
_OPTIMIZERS = {
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "anyprecision": ("torchdistx", "torchdistx"),
    "bnb": ("bitsandbytes", "bitsandbytes"),
    "8bit": ("bitsandbytes", "bitsandbytes"),
    "paged": ("bitsandbytes", "bitsandbytes"),
    "lion": ("bitsandbytes", "bitsandbytes"),
    "ademamix": ("bitsandbytes", "bitsandbytes"),
}


def check_installed(args: Any) -> None:
    """
    Checks that the trackers and libraries named in the options of a trainer are installed.

    Args:
        args ([`trl.DPOConfig`]):
            Options of a trainer.

    Raises:
        ValueError: If a tracker does not exist.
        ImportError: If a package is not installed. The message names the option and the package.
    """
    trackers = args.report_to or []
    for tracker in [trackers] if isinstance(trackers, str) else trackers:
        if tracker in ("all", "none"):
            continue
        if tracker not in INTEGRATION_TO_CALLBACK:
            near = did_you_mean(tracker, INTEGRATION_TO_CALLBACK, repr)
            every = f" Choose one of {', '.join(map(repr, INTEGRATION_TO_CALLBACK))}, or 'none'."
            raise ValueError(f"`report_to={tracker!r}` does not exist.{near or every}")
        if tracker not in (*get_available_reporting_integrations(), "flyte"):  # not in the list of transformers
            package = _PACKAGES.get(tracker, tracker)
            raise ImportError(
                f"`report_to={tracker!r}` needs a package that is not installed, or is disabled. Install it with "
                f"`pip install {package}`, or leave it out."
            )
    optim = str(getattr(args.optim, "value", args.optim))
    of_optim = next((names for part, names in _OPTIMIZERS.items() if part in optim), None)
    if of_optim is not None:
        check_package(f"optim={optim!r}", *of_optim)
    if args.use_liger_kernel:
        check_package("use_liger_kernel=True", "liger_kernel", "liger-kernel")
    if args.deepspeed:
        check_package("deepspeed", "deepspeed", "deepspeed")


def check_package(option: str, module: str, package: str) -> None:
    """
    Checks that the package of an option is installed.

    Args:
        option (`str`): The option with its value.
        module (`str`): Name of the module to import.
        package (`str`): Name of the package to install.

    Raises:
        ImportError: If it is not installed.
    """
    if find_spec(module) is None:
        raise ImportError(
            f"`{option}` needs {package}, which is not installed. Install it with `pip install {package}`, or leave "
            "the option out."
        )
