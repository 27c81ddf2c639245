"""What layers do decides how a prompt is shared, and not what a config says: windows, replicated layers, adapters."""

from typing import Any

import pytest
import torch
from closeness import EXACT
from integration.conftest import TINY
from integration.test_lm_heads import by_logits
from peft import LoraConfig, get_peft_model
from tiny import MODELS, preference_rows, tiny_gpt2, tiny_llama, tiny_mistral, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, ImplicitRewardModel
from trl_dpo_ext.shared_prompt.forward import GroupedForward
from trl_dpo_ext.shared_prompt.support import is_ordinary, is_tested, windows_of


pytestmark = pytest.mark.usefixtures("float64")


def trainer_of(folder: Any, model: Any, peft_config: Any = None, **options: Any) -> DPOPaperTrainer:
    return DPOPaperTrainer(
        model,
        args=DPOPaperConfig(str(folder), **TINY | {"max_steps": 2} | options),
        train_dataset=preference_rows(8),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def logps(trainer: DPOPaperTrainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `(B, 2)` by the trainer, and from the model's own logits."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        found = trainer.runner.run_policy(trainer.model, trainer.read_batch(batch)).logps
    return found, by_logits(trainer.model, batch)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_window_that_the_model_does_not_have(build, attention, tmp_path):
    model = build()
    model.set_attn_implementation(attention)
    model.config.sliding_window = 8
    assert windows_of(model) == {"full_attention": None}
    trainer = trainer_of(tmp_path, model)
    found, expected = logps(trainer)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert str(trainer.runner).startswith("computed once")


def test_kinds_of_layers_that_the_model_does_not_have(tmp_path):
    model = tiny_llama()
    model.config.layer_types, model.config.sliding_window = ["sliding_attention", "full_attention"], 8
    found, expected = logps(trainer_of(tmp_path, model))
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def test_a_window_that_it_has(tmp_path):
    trainer = trainer_of(tmp_path, tiny_mistral())
    assert windows_of(trainer.model) == {"sliding_attention": 8}
    found, expected = logps(trainer)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert str(trainer.runner).startswith("computed once")


def test_another_attention_in_a_tested_type_is_found(tmp_path):
    """A user's own layer, here one that attends half as sharply to the rows' first places: no config says so."""
    model = tiny_llama()
    for layer in model.model.layers:
        forward = layer.self_attn.forward

        def by_place(*args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            output, weights = forward(*args, **kwargs)
            return output * torch.linspace(0.5, 1.0, 512)[: output.size(1), None], weights

        layer.self_attn.forward = by_place
    trainer = trainer_of(tmp_path, model)
    found, expected = logps(trainer)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert "`llama` with this config or adapter with one prompt for two completions its log-probabilities differ" in (
        str(trainer.runner)
    )


@pytest.mark.parametrize("ordinary", [True, False])
def test_the_comparison_is_short_for_a_tested_type(ordinary, tmp_path, monkeypatch):
    """Two forwards of 4 x 32 tokens in a run, none at all with an ordinary config; no window beyond every row."""
    model = tiny_mistral()
    model.config.sliding_window = 4096
    if not ordinary:
        model.config.of_another_type = 1
    assert is_ordinary(model) is ordinary
    trainer = trainer_of(tmp_path, model, max_length=512)
    sizes = []
    original = trainer.model.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].numel())
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer.model.model, "forward", counted)
    logps(trainer)
    first = list(sizes)
    sizes.clear()
    logps(trainer)
    assert first == ([] if ordinary else [4 * 32, 2 * (16 + 2 * 15)]) + sizes


@pytest.mark.parametrize("name", MODELS)
def test_a_model_from_a_folder_is_as_ordinary_as_in_memory(name, tiny_folder):
    """So it is not compared. What a loaded config has besides says nothing about its layers."""
    config = AutoConfig.from_pretrained(tiny_folder(name))
    model = (AutoModelForImageTextToText if "vlm" in name else AutoModelForCausalLM).from_config(config)
    assert is_ordinary(model) and is_tested(model)


@pytest.mark.parametrize(
    "options",
    [
        {"alora_invocation_tokens": [20]},
        {"use_dora": True},
    ],
    ids=str,
)
def test_adapters(options, tmp_path):
    """They train here as in TRL, and their log-probabilities are those of the model's own logits."""
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **options)
    model = get_peft_model(tiny_llama(), adapter)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    trainer = trainer_of(tmp_path, model)
    found, expected = logps(trainer)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    trainer.train()

    rows = preference_rows(4)
    scorer = ImplicitRewardModel(model, None, tiny_tokenizer(), beta=0.1, progress=False)
    scores = torch.tensor(scorer.score(rows["prompt"], [[row["chosen"], row["rejected"]] for row in rows]))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    policy = by_logits(model, batch)
    model.set_adapter("ref")
    reference = by_logits(model, batch)
    torch.testing.assert_close(scores, 0.1 * (policy - reference), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("layers", [[[0, 2], [0, 2]], [[0, 1], [0, 2], [1, 2]]], ids=str)
def test_replicated_layers(layers, tmp_path):
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], layer_replication=layers)
    trainer = trainer_of(tmp_path, tiny_llama(), peft_config=adapter)
    trainer.train()
    found, expected = logps(trainer)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)

    with pytest.raises(ValueError, match=r"`layer_replication`.*`peft_config=`"):
        trainer_of(tmp_path, get_peft_model(tiny_llama(), adapter))


def test_a_hook_is_found(tmp_path):
    model = tiny_llama()
    assert is_ordinary(model)
    model.model.layers[1].mlp.register_forward_hook(
        lambda mlp, args, output: output * torch.linspace(0.5, 1.0, 512)[: output.size(1), None]
    )
    trainer = trainer_of(tmp_path, model)
    found, expected = logps(trainer)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert str(trainer.runner).startswith("with every completion (`llama` with this config or adapter")


def test_the_dense_mask_of_a_gpu_has_no_window_either(tmp_path, monkeypatch):
    model = tiny_llama()
    model.config.sliding_window = 8
    monkeypatch.setattr("trl_dpo_ext.shared_prompt.forward.choose_path", lambda *_, **__: ("dense", ""))
    trainer = trainer_of(tmp_path, model)
    assert isinstance(trainer.runner._grouped, GroupedForward)
    found, expected = logps(trainer)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert str(trainer.runner) == "computed once (dense mask, packed)"
