"""Architecture by architecture: log-probabilities and gradients on a layout of distinct tokens equal separate rows."""

import copy
from typing import Any

import pytest
import torch
from accelerate import PartialState
from closeness import EXACT, assert_within_rounding, drawn_in_float32, in_float64
from flash_on_cpu import flash_attn_on_cpu, flash_on_cpu, use_flash_attention_2
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.logps import completion_logps
from trl_dpo_ext.shared_prompt.forward import GroupedForward, LayoutOptions
from trl_dpo_ext.shared_prompt.support import TESTED, is_ordinary


pytestmark = pytest.mark.usefixtures("float64")

CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 2}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "vocab_size": 97, "initializer_range": 0.3}
GPT2 |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

# name -> (model type, its options)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", SMALL),
    "cohere": ("cohere", SMALL | {"logit_scale": 0.5}),
    "cohere2": ("cohere2", SMALL | {"logit_scale": 0.5, "sliding_window": 6}),
    "ernie4_5": ("ernie4_5", SMALL | {"head_dim": 8}),
    "exaone4": ("exaone4", SMALL | {"sliding_window": 6, "sliding_window_pattern": 2}),
    "gemma": ("gemma", SMALL | {"head_dim": 8}),
    "gemma2": ("gemma2", SMALL | {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 30.0}),
    "gemma3": (
        "gemma3_text",
        SMALL | {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "glm": ("glm", SMALL | {"head_dim": 8}),
    "glm4": ("glm4", SMALL | {"head_dim": 8}),
    "gpt2": ("gpt2", GPT2),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "gpt_neox": ("gpt_neox", SMALL | {"rotary_pct": 0.5}),
    "granite": ("granite", SMALL | {"logits_scaling": 2.0}),
    "granitemoe": ("granitemoe", SMALL | MOE),
    "helium": ("helium", SMALL | {"head_dim": 8}),
    "llama": ("llama", SMALL),
    "mistral": ("mistral", SMALL | {"sliding_window": None}),
    "mistral_window": ("mistral", SMALL | {"sliding_window": 6}),
    "mixtral": ("mixtral", SMALL | MOE | {"sliding_window": 6}),
    "olmo": ("olmo", SMALL),
    "olmo2": ("olmo2", SMALL),
    "olmo3": ("olmo3", SMALL | {"sliding_window": 6}),
    "olmoe": ("olmoe", SMALL | MOE),
    "opt": ("opt", SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "phi": ("phi", SMALL),
    "phi3": ("phi3", SMALL | {"sliding_window": 6}),
    "qwen2": ("qwen2", SMALL),
    "qwen2_window": ("qwen2", SMALL | WINDOW),
    "qwen2_moe": ("qwen2_moe", SMALL | MOE | WINDOW | {"shared_expert_intermediate_size": 32}),
    "qwen3": ("qwen3", SMALL | WINDOW | {"head_dim": 8}),
    "qwen3_moe": ("qwen3_moe", SMALL | MOE | WINDOW | {"head_dim": 8}),
    "seed_oss": ("seed_oss", SMALL | {"head_dim": 8}),
    "smollm3": ("smollm3", SMALL | WINDOW),
    "stablelm": ("stablelm", SMALL),
    "starcoder2": ("starcoder2", SMALL | {"sliding_window": 6}),
}


def build(name: str, attention: str | None) -> PreTrainedModel:
    """A small model with TRL's fused LM head."""
    kind, options = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **options)
    model = drawn_in_float32(lambda: AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval())
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model


def ragged_batch() -> dict[str, torch.Tensor]:
    """Groups of 3, 1 and 2 completions; prompts of 14, 1 and 7 tokens; completions of 1 to 12 tokens."""
    generator = torch.Generator().manual_seed(1)
    prompts, completions = [14, 1, 7], [[9, 12, 1], [5], [3, 8]]
    shape = (3, 3, 26)
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "attention_mask", "completion_mask")}
    for b, (prompt, lengths) in enumerate(zip(prompts, completions, strict=True)):
        shared = torch.randint(3, 97, (prompt,), generator=generator)
        for k, length in enumerate(lengths):
            batch["input_ids"][b, k, :prompt] = shared
            batch["input_ids"][b, k, prompt : prompt + length] = torch.randint(3, 97, (length,), generator=generator)
            batch["attention_mask"][b, k, : prompt + length] = 1
            batch["completion_mask"][b, k, prompt : prompt + length] = 1
    exists = batch["attention_mask"].any(dim=-1)  # (B, K)
    return batch | {"rank_mask": exists, "ranks": torch.where(exists, torch.arange(exists.size(1)), -1)}


def run(model: PreTrainedModel, batch: dict[str, torch.Tensor], with_groups: bool):
    """Log-probabilities of the rows, by token and summed, and the gradient of a weighted sum of them."""
    read = Batch.of(batch)
    groups, rows = read.groups, read.rows
    model.zero_grad()
    scored = completion_logps(model, rows | ({"prompt_groups": groups} if with_groups else {}))
    weights = torch.linspace(-1.0, 1.0, len(scored.logps), dtype=scored.logps.dtype)
    (scored.logps * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return scored, gradients


def assert_same(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], separate: PreTrainedModel | None = None
) -> None:
    """Runs a model both ways, in float64; `separate`: another to run on separate rows."""
    expected, expected_gradients = run(separate or model, batch, with_groups=False)
    found, gradients = run(model, batch, with_groups=True)
    assert torch.equal(found.mask, expected.mask)
    for name in ("logps", "entropy", "mean_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=EXACT, atol=EXACT)
    assert torch.equal(found.is_top1, expected.is_top1)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        # Key biases of softmax attention have a gradient of 0 but for rounding
        assert (gradients[name] - gradient).norm() <= EXACT * gradient.norm() + EXACT, name


def test_every_tested_type_is_tested():
    assert {kind for kind, _ in MODELS.values()} == TESTED


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_architecture(name, attention):
    model = build(name, attention if name != "gemma2" else "eager")
    grouped = GroupedForward(model, LayoutOptions(share_prompt=True), CPU)
    assert_same(model, ragged_batch())
    assert grouped.shares


# `gemma2` caps its scores, which torch's kernel does not; layers of `stablelm` get no arguments of the model's forward
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("gemma2", "stablelm")])
def test_varlen_attention(name):
    model = build(name, "sdpa")
    with flash_on_cpu() as calls:
        grouped = GroupedForward(model, LayoutOptions(attention_path="varlen"), CPU)
        assert_same(model, ragged_batch(), separate=build(name, "sdpa"))
    # One whose config is not ordinary is compared first
    layers, compared = model.config.num_hidden_layers, not is_ordinary(model)
    assert calls == {"forward": layers * (1 + compared), "backward": layers}
    assert str(grouped) == "computed once (FlashAttention of torch, packed)"


@pytest.mark.parametrize("name", ["llama", "gemma3", "granite", "gpt2"])
def test_many_completions_of_a_long_prompt(name):
    """No key is copied in layers without a window: two calls, merged. `gemma3` has both kinds, `granite` a scale."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 97, (2, 6, 40), generator=generator)
    ids[..., :32] = ids[:, :1, :32]
    ends = torch.tensor([[40, 37, 33, 40, 34, 36], [35, 40, 38, 39, 33, 0]])[..., None]
    places, exists = torch.arange(40), ends[..., 0] > 0
    batch = {
        "input_ids": ids * (places < ends),
        "attention_mask": (places < ends).long(),
        "completion_mask": ((places >= 32) & (places < ends)).long(),
        "rank_mask": exists,
        "ranks": torch.where(exists, torch.arange(6), -1),
    }
    model = build(name, "sdpa")
    with flash_on_cpu() as calls:
        GroupedForward(model, LayoutOptions(attention_path="varlen"), CPU)
        assert_same(model, batch, separate=build(name, "sdpa"))
    layers = model.config.num_hidden_layers
    with_window = 2 if name == "gemma3" else 0
    assert calls["backward"] == 2 * layers - with_window


# transformers cannot tell the dtype of `gpt2`, which has no linear layer, in these dtypes
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("gpt2", "qwen2_moe", "stablelm")])
def test_flash_attention_of_the_user(name):
    """In place: softcaps and windows are the kernel's."""
    model = build(name, "eager")
    use_flash_attention_2(model)
    with flash_attn_on_cpu() as calls:
        grouped = GroupedForward(model, LayoutOptions(), CPU)
        assert_same(model, ragged_batch(), separate=build(name, "eager"))
        assert calls == {"flash_attn": model.config.num_hidden_layers * (1 if is_ordinary(model) else 3)}
        assert str(grouped) == "computed once (the model's FlashAttention, packed)"


def test_a_window_that_layers_do_not_tell_flash_attention(caplog):
    """Those of `qwen2_moe` (transformers 5.23) do not, so that separate rows have none: the comparison finds it."""
    PartialState()
    model = build("qwen2_moe", "eager")
    use_flash_attention_2(model)
    with flash_attn_on_cpu():
        grouped = GroupedForward(model, LayoutOptions(), CPU)
        assert_same(model, ragged_batch())
    assert grouped.path is None
    assert "its log-probabilities differ" in grouped.reason


@pytest.mark.parametrize("fault", [{"upper_left": True}, {"window_shift": 1}], ids=str)
def test_a_wrong_kernel_is_seen(fault):
    model = build("mistral_window", "sdpa")
    with flash_on_cpu(**fault), pytest.raises(AssertionError):
        GroupedForward(model, LayoutOptions(attention_path="varlen"), CPU)
        assert_same(model, ragged_batch(), separate=build("mistral_window", "sdpa"))


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3", "qwen2_moe", "gpt2"])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "a row each"])
def test_dense_mask_of_sdpa_as_on_a_gpu(name, packs):
    model = build(name, "sdpa")
    grouped = GroupedForward(model, LayoutOptions(padding_free=packs), torch.device("cuda"))
    assert grouped.path == "dense"
    assert_same(model, ragged_batch())


@pytest.mark.float32
@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3", "granite", "smollm3", "qwen2_moe", "gpt2"])
def test_float32(name):
    """The layout is as near to float64 as separate rows are, in log-probabilities and gradients."""
    batch, results = ragged_batch(), {}
    for way, shares in (("separate", False), ("laid out", True)):
        model = build(name, "sdpa")
        if shares:
            GroupedForward(model, LayoutOptions(share_prompt=True), CPU)
        scored, gradients = run(model, batch, with_groups=shares)
        results[way] = ({"logps": scored.logps}, gradients)
    with in_float64():
        scored, gradients = run(build(name, "sdpa"), batch, with_groups=False)
    exact = ({"logps": scored.logps}, gradients)
    for found, trusted, of_float64 in zip(results["laid out"], results["separate"], exact, strict=True):
        assert_within_rounding(found, trusted, of_float64)


@pytest.mark.parametrize("weight", ["model.embed_tokens", "model.layers.1.mlp.down_proj", "lm_head"])
@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.float32)])
def test_a_difference_is_seen(weight, precision, monkeypatch):
    """A weight that is larger by 1e-4 where rows are separate fails both comparisons."""
    model = build("llama", "sdpa")
    GroupedForward(model, LayoutOptions(share_prompt=True), CPU)
    straight = globals()["run"]

    def perturbed(model: PreTrainedModel, batch: dict[str, torch.Tensor], with_groups: bool):
        tensor = model.get_parameter(f"{weight}.weight").data
        tensor *= 1.0 + 1e-4 * with_groups
        try:
            return straight(model, batch, with_groups)
        finally:
            tensor /= 1.0 + 1e-4 * with_groups

    if precision == "float64":
        monkeypatch.setitem(globals(), "run", perturbed)
        with pytest.raises(AssertionError):
            assert_same(model, ragged_batch())
        return
    trusted, found = (way(model, ragged_batch(), True)[0].logps for way in (straight, perturbed))
    with in_float64():
        exact = straight(build("llama", "sdpa"), ragged_batch(), with_groups=False)[0].logps
    assert_within_rounding({"logps": trusted}, {"logps": trusted}, {"logps": exact})
    with pytest.raises(AssertionError, match="from float64"):
        assert_within_rounding({"logps": found}, {"logps": trusted}, {"logps": exact})


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2", "gemma3"])
def test_forward_of_flex_attention(name):
    """Its backward needs a GPU (torch 2.13). What a token sees is tested in `unit/test_layouts.py`."""
    model, flex = build(name, "eager" if name == "gemma2" else "sdpa"), build(name, "flex_attention")
    assert GroupedForward(flex, LayoutOptions(share_prompt=True), CPU).path == "flex"
    batch = ragged_batch()
    read = Batch.of(batch)
    groups, rows = read.groups, read.rows
    # It is traced as for a GPU. Kernels for a CPU would be compiled for 15 s each, and know no float64
    with torch.no_grad(), torch.compiler.set_stance("default", force_backend="eager"):
        expected = completion_logps(model, rows).logps
        found = completion_logps(flex, rows | {"prompt_groups": groups}).logps
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3"])
def test_bfloat16(name):
    """Weights in bfloat16: the layout is as near to float64 as separate rows are."""
    batch = ragged_batch()
    half = build(name, "sdpa").bfloat16()
    with in_float64():
        exact = run(copy.deepcopy(half).double(), batch, with_groups=False)[0].logps
    separate = run(half, batch, with_groups=False)[0].logps
    GroupedForward(half, LayoutOptions(), CPU)
    laid_out = run(half, batch, with_groups=True)[0].logps
    assert_within_rounding({"logps": laid_out}, {"logps": separate}, {"logps": exact})
