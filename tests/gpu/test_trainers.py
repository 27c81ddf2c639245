"""Every trainer on FlashAttention, three updates in bf16: as far from float32 as separate rows are."""

import pytest
import torch
from gpu.conftest import attention
from integration.conftest import updates


METHODS = {
    "DPOPaper": ("loss", "grad_norm", "logps/chosen", "logps/rejected"),
    "RankingDPO": ("loss", "grad_norm", "logps/chosen"),
    "Unlikelihood": ("loss", "grad_norm", "logps/chosen"),
    "PreferredFT": ("loss", "grad_norm", "logps/chosen"),
}

# How many times the error of separate rows an error over three updates may be, and which share of the metric besides:
# the roundings are few and differ from path to path, and bfloat16 rounds a number by 2**-9 of it
TIMES, BESIDES = 3, 2**-9


@pytest.mark.parametrize("method", METHODS)
def test_as_on_separate_rows(method, build, device):
    def metrics(path: str, **options) -> dict[str, torch.Tensor]:
        with attention(device, path):
            trainer = build(method, path, optim="sgd", **options)
            trainer.train()
        log = updates(trainer)
        assert len(log) == 3
        return {name: torch.tensor([entry[name] for entry in log]) for name in METHODS[method]}

    exact, rows = metrics("separate", bf16=False), metrics("separate")
    for path in ("varlen", "flash"):
        ours = metrics(path)
        for name, truth in exact.items():
            error, rounding = ((values[name] - truth).norm() for values in (ours, rows))
            assert error <= TIMES * rounding + BESIDES * truth.norm(), (path, name)
