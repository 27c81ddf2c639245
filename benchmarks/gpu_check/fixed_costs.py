"""What an update costs whatever the data: the optimizer, of a model with as many parameters as Llama 3.2 1B."""

import torch
from torch import nn

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.sections import Found


__all__ = ["measure_fixed_costs"]

_PARAMETERS, _TENSORS = 1_235_814_400, 146

_OPTIMIZERS = {
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters),
}


def measure_fixed_costs(machine: Machine, found: Found) -> None:
    """Puts the milliseconds of an update by HF's default optimizer and by the paper's into `found`."""
    for name, make in _OPTIMIZERS.items():
        size = machine.size(_PARAMETERS // _TENSORS, 1000)
        parameters = [nn.Parameter(torch.zeros(size, device=machine.device)) for _ in range(_TENSORS)]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = make(parameters)
        found[name] = machine.milliseconds(optimizer.step, repeats=8)
