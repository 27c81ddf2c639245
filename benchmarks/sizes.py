"""How large a benchmark is: which model, on which device, how often."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.shapes import SHAPES, Shape, scale_down


__all__ = ["SIZES", "Size", "machine_name"]


@dataclass(frozen=True)
class Size:
    """
    A size.

    Args:
        name (`str`): Name on the command line.
        model (`str`): Name of the model.
        device (`str`): `"cpu"` or `"cuda"`.
        tunings (`tuple[str, ...]`): What is trained, unless told: `"full"`, `"lora"`.
        repeats (`int`): Timed steps of each contender.
        repeats_of_many (`int`): The same where a prompt has eight answers or more, which takes TRL minutes on a CPU.
    """

    name: str
    model: str
    device: str
    tunings: tuple[str, ...]
    repeats: int
    repeats_of_many: int

    def shape(self, name: str) -> Shape:
        """A shape by its name, at this size."""
        return scale_down(SHAPES[name]) if self.name == "tiny" else SHAPES[name]

    def num_groups(self, shape: Shape) -> int:
        """Groups of a micro-batch."""
        return shape.cpu_groups if self.device == "cpu" else shape.gpu_groups

    def num_repeats(self, shape: Shape) -> int:
        """Timed steps of each contender."""
        return self.repeats if shape.completions < 8 else self.repeats_of_many


SIZES = {
    size.name: size
    for size in (
        Size("tiny", "llama-tiny", "cpu", ("full",), repeats=1, repeats_of_many=1),
        Size("cpu", "llama-58m", "cpu", ("full",), repeats=5, repeats_of_many=3),
        Size("gpu", "qwen2-0.5b", "cuda", ("full", "lora"), repeats=5, repeats_of_many=5),
    )
}


def machine_name(device: str) -> str:
    """Model of the GPU, or of the CPU with the number of threads that torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}"
