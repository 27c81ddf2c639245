"""`trl-dpo-ext env`: versions and hardware for a bug report."""

import platform
from importlib.metadata import PackageNotFoundError, version

from trl_dpo_ext.cli.words import WordParser


__all__ = ["run"]

_PACKAGES = (
    "trl-dpo-ext",
    "trl",
    "transformers",
    "torch",
    "accelerate",
    "peft",
    "datasets",
    "bitsandbytes",
    "deepspeed",
)


def run(argv: list[str]) -> int:
    """Prints one fact per line. Importing the trainers also checks that the installed TRL is supported."""
    WordParser("env", description="Print the versions and hardware that a bug report needs.").parse_args(argv)

    import torch

    import trl_dpo_ext.compat  # noqa: F401 - raises an ImportError if TRL has changed

    print(f"Python: {platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        try:
            print(f"{package}: {version(package)}")
        except PackageNotFoundError:
            print(f"{package}: not installed")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(devices) or 'none'}")
    return 0
