"""Versions, and what torch prefers for attention."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.sections import Found


__all__ = ["check_environment"]

_PACKAGES = ["transformers", "trl", "accelerate", "peft", "triton", "flash-attn", "kernels", "liger-kernel"]
_PACKAGES += ["bitsandbytes"]

# `torch._fused_sdp_choice`
BACKENDS = ("math", "flash", "efficient", "cudnn")


def check_environment(machine: Machine, found: Found) -> None:
    """Puts the versions into `found`, and on a GPU what it is and the order in which `sdpa` tries its kernels."""
    found |= {"python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if machine.dry:
        return
    found |= {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "free_gib": torch.cuda.mem_get_info()[0] / 2**30,
        "sdpa_order": [BACKENDS[int(backend)] for backend in torch._C._get_sdp_priority_order() if int(backend) < 4],
    }
