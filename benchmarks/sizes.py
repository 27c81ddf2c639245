"""How large a benchmark is: which model, on which device, on which data, how often."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.shapes import SHAPES, Shape, scale_down


__all__ = ["SIZES", "Size", "file_name", "machine_name", "processor_name"]


@dataclass(frozen=True)
class Size:
    """
    A size.

    Args:
        name (`str`): Name on the command line.
        model (`str`): Name of the model.
        device (`str`): `"cpu"` or `"cuda"`.
        shapes (`tuple[str, ...]`): Names of the shapes that are measured, unless told.
        repeats (`int`): Timed steps of each contender.
        most_tokens (`int`, *optional*): Most tokens of a forward with gradient. A contender that computes more takes
            several micro-batches. On a GPU 18,000 tokens of the model's activations fit beside it into 80 GB.
    """

    name: str
    model: str
    device: str
    shapes: tuple[str, ...]
    repeats: int
    most_tokens: int | None = None

    def shape(self, name: str) -> Shape:
        """A shape by its name, at this size."""
        return scale_down(SHAPES[name]) if self.name == "tiny" else SHAPES[name]

    def num_groups(self, shape: Shape) -> int:
        """Groups of a micro-batch."""
        return shape.cpu_groups if self.device == "cpu" else shape.gpu_groups


_REAL = ("hh", "ultrafeedback", "long-eight", "very-long")
_CPU = ("hh", "ultrafeedback", "long-eight", "hh-like", "tldr-like", "sixteen")

SIZES = {
    size.name: size
    for size in (
        Size("tiny", "llama-tiny", "cpu", _REAL, repeats=1),
        Size("cpu", "llama-58m", "cpu", _CPU, repeats=5),
        Size("gpu", "llama-1b", "cuda", _REAL, repeats=5, most_tokens=18_000),
    )
}


def processor_name(device: str) -> str:
    """Model of the GPU or of the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.processor() or platform.machine()


def machine_name(device: str) -> str:
    """Model of the GPU, or of the CPU with the number of threads that torch uses."""
    name = processor_name(device)
    return name if device == "cuda" else f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}"


def file_name(size: str, processor: str) -> str:
    """
    Name of the results of a size on a processor, without its ending.

    Example:
    ```python
    >>> from benchmarks.sizes import file_name

    >>> file_name("cpu", "Intel(R) Xeon(R) Processor")
    'cpu-intel-xeon-processor'

    ```
    """
    words = re.sub(r"\((r|tm)\)", " ", processor.lower())
    return "-".join([size, *re.findall(r"[a-z0-9.]+", words)])
