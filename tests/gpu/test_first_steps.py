"""Before the first update in bf16, on every path: rewards exactly 0, and the loss of a policy at its reference."""

import math

import pytest
from closeness import ROUNDING
from gpu.conftest import attention
from integration.conftest import updates
from tiny import lora_config


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
@pytest.mark.parametrize("path", ["varlen", "flash", "dense", "flex", "separate"])
def test_rewards_are_zero(path, adapter, build, device):
    if path == "flex" and device == "cpu":
        pytest.skip("flex attention has no backward on a CPU")
    with attention(device, path):
        trainer = build("DPOPaper", path, max_steps=2, **({"peft_config": lora_config()} if adapter else {}))
        trainer.train()
    first, second = updates(trainer)
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0
    assert first["loss"] == pytest.approx(math.log(2), rel=ROUNDING)
    assert second["rewards/margins"] != 0.0
    assert str(trainer.runner).startswith("with every completion" if path == "separate" else "computed once")
