"""The ladder of attention paths: each fact falls to the right rung with its reason, and a refused request names it."""

from dataclasses import replace

import pytest
import torch
from flash_on_cpu import use_flash_attention_2
from tiny import tiny_gpt2, tiny_llama, tiny_mistral

from trl_dpo_ext import DPOPaperConfig
from trl_dpo_ext.shared_prompt import paths
from trl_dpo_ext.shared_prompt.paths import DESCRIPTIONS, PATHS, Facts, choose_path, why_not


CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16, FLOAT32 = torch.bfloat16, torch.float32
# A recent GPU with a recent torch
H100 = Facts("sdpa", "cuda", BF16, capability=(9, 0), has_kernel=True)
FLASH = replace(H100, attention="flash_attention_2")


def chosen(monkeypatch: pytest.MonkeyPatch, facts: Facts, asked: str = "auto") -> tuple[str | None, str]:
    monkeypatch.setattr(Facts, "of", classmethod(lambda cls, *_: facts))
    return choose_path(tiny_llama(), torch.device(facts.device), facts.dtype, asked)


@pytest.mark.parametrize(
    ("facts", "path", "reason"),
    [
        (H100, "varlen", None),
        (replace(H100, capability=(8, 0)), "varlen", None),
        (replace(H100, dtype=torch.float16, head_sizes=(128, 128)), "varlen", None),
        (replace(H100, dtype=FLOAT32), "dense", "does not compute in float32; `bf16=True`"),
        (replace(H100, capability=(7, 5)), "dense", "compute capability 7.5, and FlashAttention needs 8.0"),
        (replace(H100, has_kernel=False, torch_version="2.10.0"), "dense", "torch 2.10.0 .*; 2.11 or later"),
        (replace(H100, head_sizes=(12,)), "dense", "heads of 12: FlashAttention takes multiples of 8 up to 256"),
        (replace(H100, head_sizes=(512,)), "dense", "heads of 512"),
        (replace(H100, head_sizes=(192, 128)), "dense", "heads of 192 and 128"),
        (replace(H100, softcap=50.0), "dense", "soft cap; `attn_implementation='flash_attention_2'`"),
        (replace(H100, dropout=0.1), "dense", "`attention_dropout=0.1`"),
        (replace(H100, hands_on=False), "dense", "are not handed the arguments"),
        (replace(H100, attention="eager"), "dense", "`attn_implementation='sdpa'`; this is `'eager'`"),
        (replace(H100, attention="flex_attention"), "flex", None),
        (FLASH, "flash", None),
        (replace(FLASH, attention="kernels-community/flash-attn3"), "flash", None),
        (replace(FLASH, softcap=50.0, head_sizes=(512,), has_kernel=False), "flash", None),
        (replace(FLASH, dtype=FLOAT32), None, "does not compute in float32; `bf16=True`"),
        (replace(FLASH, hands_on=False), None, "are not handed the arguments"),
        (Facts("sdpa", "cpu", FLOAT32), "segments", None),
        (Facts("sdpa", "cpu", FLOAT32, hands_on=False), "dense", None),
        (Facts("sdpa", "cpu", BF16, has_kernel=True), "segments", None),
        (Facts("eager", "cpu", FLOAT32), "dense", None),
        (Facts("sdpa", "mps", FLOAT32), "dense", "no variable-length FlashAttention for 'mps'"),
        (Facts("another", "cpu", FLOAT32), None, "`attn_implementation='another'` has no mask"),
    ],
    ids=str,
)
def test_the_best_that_is_exact(monkeypatch, facts, path, reason):
    found, why = chosen(monkeypatch, facts)
    assert found == path
    if reason is None:
        assert why == ""
    else:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(why)


@pytest.mark.parametrize("facts", [H100, FLASH, replace(H100, dtype=FLOAT32), Facts("eager", "cpu", FLOAT32)], ids=str)
@pytest.mark.parametrize("asked", DESCRIPTIONS)
def test_by_name(monkeypatch, facts, asked):
    """What can be had is had; anything else is an error with the reason, and never another path."""
    reason = why_not(asked, facts)
    if reason is None:
        assert chosen(monkeypatch, facts, asked) == (asked, "")
    else:
        with pytest.raises(ValueError, match=f"`attention_path='{asked}'` cannot be had: .+") as error:
            chosen(monkeypatch, facts, asked)
        assert reason in str(error.value)


def test_dense_can_be_asked_for_where_there_is_better(monkeypatch):
    assert chosen(monkeypatch, H100, "dense") == ("dense", "")
    assert chosen(monkeypatch, H100, "separate") == (None, "`attention_path='separate'`")


class TestFacts:
    def test_of_a_llama(self):
        facts = Facts.of(tiny_llama(), CPU, BF16, shares=True)
        size = tiny_llama().config.head_dim
        assert facts == Facts("sdpa", "cpu", BF16, head_sizes=(size, size))

    def test_of_gpt2(self):
        config = tiny_gpt2().config
        assert Facts.of(tiny_gpt2(), CPU, FLOAT32, shares=True).head_sizes[0] == config.n_embd // config.n_head

    @pytest.mark.parametrize("shares", [True, False])
    def test_dropout_counts_where_it_may_be_on(self, shares):
        model = tiny_mistral()
        model.config.attention_dropout = 0.25
        assert Facts.of(model, CPU, FLOAT32, shares).dropout == (0.0 if shares else 0.25)

    def test_a_model_of_an_earlier_trainer_is_still_one_of_sdpa(self):
        model = tiny_llama()
        model.set_attn_implementation("sdpa_varlen")
        assert Facts.of(model, CPU, FLOAT32, shares=True).attention == "sdpa"

    def test_flash_attention_is_known_by_its_name(self):
        model = tiny_llama()
        use_flash_attention_2(model)
        assert choose_path(model, GPU, BF16) == ("flash", "")


class TestOption:
    def test_its_values(self, tmp_path):
        assert PATHS == ("auto", *DESCRIPTIONS, "separate")
        with pytest.raises(ValueError, match=r"`attention_path='varlenn'` does not exist.*'varlen'"):
            DPOPaperConfig(str(tmp_path), attention_path="varlenn", use_cpu=True)

    def test_no_effect_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match=r"`attention_path='varlen'` has no effect with `share_prompt=False`"):
            DPOPaperConfig(str(tmp_path), attention_path="varlen", share_prompt=False, use_cpu=True)
        with pytest.raises(
            ValueError, match=r"`max_tokens_per_row=64` has no effect with `attention_path='separate'`"
        ):
            DPOPaperConfig(str(tmp_path), attention_path="separate", max_tokens_per_row=64, use_cpu=True)


def test_flash_computes_in_half_precision():
    assert paths.HALF == {torch.float16, torch.bfloat16}
