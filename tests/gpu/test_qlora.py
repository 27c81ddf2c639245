"""An adapter on weights in 4 bits."""

import math

import pytest
import torch
from closeness import ROUNDING
from gpu.conftest import attention, small_llama
from integration.conftest import updates
from tiny import lora_config, save_tiny, tiny_tokenizer
from transformers import BitsAndBytesConfig


def test_four_bit_model(build, device, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(small_llama(), tiny_tokenizer(), tmp_path / "model")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    with attention(device, "varlen"):
        trainer = build("DPOPaper", "varlen", folder, peft_config=lora_config(), quantization_config=quantization)
        trainer.train()
    first, *_, last = updates(trainer)
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0
    assert first["loss"] == pytest.approx(math.log(2), rel=ROUNDING)
    assert last["rewards/margins"] != 0.0
    assert str(trainer.runner).startswith("computed once")
