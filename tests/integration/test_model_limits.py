"""What a model cannot take is one error before training: token ids, positions, kinds of models. What it can, runs."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from integration.conftest import TINY
from peft import LoraConfig, get_peft_model
from tiny import preference_rows, save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, ImplicitRewardModel
from trl_dpo_ext.cli import main
from trl_dpo_ext.data.doctor.examination import examine
from trl_dpo_ext.data.extent import Extent, extent_of
from trl_dpo_ext.models.limits import Limits


SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "n_embd": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "rotary_dim": 4,
    "max_position_embeddings": 40,
    "n_positions": 40,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tokens(*rows: tuple[list[int], list[int], list[int]]) -> Dataset:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])


def trainer_of(folder: Any, model: Any, rows: Any = None, tokenizer: Any = None, **options: Any) -> DPOPaperTrainer:
    return DPOPaperTrainer(
        model,
        args=DPOPaperConfig(str(folder), **TINY | {"max_steps": 1} | options),
        train_dataset=preference_rows(4) if rows is None else rows,
        processing_class=tiny_tokenizer() if tokenizer is None else tokenizer,
    )


@pytest.mark.parametrize(
    ("kind", "learned"),
    [
        ("gpt2", 40),
        ("opt", 40),
        ("gptj", 40),
        ("codegen", 40),
        ("ctrl", 40),
        ("roberta", 39),  # counts on from the padding's id, 0
        ("llama", None),
        ("gpt_neox", None),
    ],
)
def test_learned_positions(kind, learned):
    config = AutoConfig.for_model(kind, **SMALL | ({"is_decoder": True} if kind == "roberta" else {}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert Limits(model).positions == learned
    with torch.no_grad():
        model(input_ids=torch.full((1, learned or 40), 5), use_cache=False)
        if learned is None:
            model(input_ids=torch.full((1, 80), 5), use_cache=False)
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, learned + 1), 5), use_cache=False)


def test_extent_of_pairs_and_rankings():
    rows = tokens(([5, 6], [9], [3, 4, 2]), ([7], [1], [300]), ([], [4, 4, 4, 4], [8]))
    assert extent_of(rows, "prompt_ids", ["chosen_ids", "rejected_ids"]) == Extent(1, 300, 5)
    assert extent_of(rows.select([2, 1]), "prompt_ids", ["chosen_ids", "rejected_ids"]) == Extent(1, 300, 4)
    rankings = Dataset.from_list(
        [
            {"prompt_ids": [5, 6], "completion_ids": [[9], [], [3, 4, 11]]},
            {"prompt_ids": [7] * 4, "completion_ids": [[1, 2], [-3]]},
        ]
    )
    assert extent_of(rankings, "prompt_ids", ["completion_ids"]) == Extent(-3, 11, 6)


@pytest.mark.parametrize("worst", [384, 50_000, -1])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_ids_beyond_the_vocabulary(worst, place, tmp_path):
    row = [[5, 6, 7], [8, 9], [10, 11]]
    row[place][-1] = worst
    with pytest.raises(ValueError, match=rf"train dataset.*token id {worst}\b|id.*{worst}\b"):
        trainer_of(tmp_path, tiny_llama(), tokens(([5, 6], [7], [8]), tuple(row)))


def test_ids_of_a_stream_and_of_a_cached_reference(tmp_path):
    rows = tokens(*[([5, 6, 7], [8, 384], [10, 11])] * 4)
    with pytest.raises(ValueError, match=r"The batch has the token id 384.*from 0 to 383"):
        trainer_of(tmp_path, tiny_llama(), rows.to_iterable_dataset()).train()
    with pytest.raises(ValueError, match=r"token id 384.*from 0 to 383"):
        trainer_of(tmp_path, tiny_llama(), rows, precompute_ref_log_probs=True)


def test_tokenizer_larger_than_the_model(tmp_path):
    """Text is tokenized into the new token; the fix that the error names trains."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<wonderful>"])
    rows = preference_rows(4).map(lambda row: {"chosen": row["chosen"] + " <wonderful>"})
    model = tiny_llama()
    with pytest.raises(ValueError, match=r"train dataset has the token id 384.*resize_token_embeddings"):
        trainer_of(tmp_path, model, rows, tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    assert Limits(model).vocabulary == 385
    trainer_of(tmp_path, model, rows, tokenizer).train()
    # A token that no row has does no harm
    trainer_of(tmp_path, tiny_llama(), preference_rows(4), tokenizer).train()


def test_padding_token_without_an_embedding(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=r"'\[PAD\]' has the id 384.*from 0 to 383.*eos_token"):
        trainer_of(tmp_path, tiny_llama(), None, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    trainer_of(tmp_path, tiny_llama(), None, tokenizer).train()


@pytest.mark.parametrize("wrapped", ["embed_tokens", "lm_head", "tokens"])
def test_vocabulary_under_an_adapter(wrapped):
    options = {
        "embed_tokens": {"target_modules": ["embed_tokens"]},
        "lm_head": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        "tokens": {"trainable_token_indices": [3], "target_modules": ["q_proj"]},
    }[wrapped]
    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **options))
    assert Limits(model.get_base_model()).vocabulary == 384


def test_rows_longer_than_the_positions(tmp_path):
    model = tiny_gpt2()
    rows = tokens(([5] * 400, [6] * 113, [7]), ([5], [6], [7]))  # 513 tokens, 512 positions
    with pytest.raises(ValueError, match=r"train dataset has a row of 513 tokens.*`gpt2` has 512 .*max_length=512"):
        trainer_of(tmp_path, model, rows, max_length=None)
    trainer_of(tmp_path, model, rows, max_length=512).train()
    # Short rows are trained, whatever `max_length` would allow
    trainer_of(tmp_path, model, max_length=4096).train()
    with pytest.raises(ValueError, match=r"The batch has a row of 513 tokens.*512 learned positions"):
        trainer_of(tmp_path, tiny_gpt2(), rows.to_iterable_dataset(), max_length=None).train()
    trainer_of(tmp_path, tiny_llama(), rows, max_length=None).train()  # rotary positions


def test_the_scorer_has_the_same_limits():
    def scorer(model: Any) -> ImplicitRewardModel:
        return ImplicitRewardModel(
            model, None, tiny_tokenizer(), beta=0.1, reference_free=True, max_length=None, progress=False
        )

    with pytest.raises(ValueError, match="`gpt2` has 512 learned positions"):
        scorer(tiny_gpt2()).score(["word " * 600], ["answer"])
    larger = tiny_tokenizer()
    larger.add_tokens(["<wonderful>"])
    with pytest.raises(ValueError, match=r"token id 384.*from 0 to 383"):
        ImplicitRewardModel(tiny_llama(), None, larger, beta=0.1, reference_free=True, progress=False).score(
            ["How?"], ["<wonderful>"]
        )
    with pytest.raises(ValueError, match="`BartForConditionalGeneration` is an encoder-decoder model"):
        scorer(bart())


def bart() -> PreTrainedModel:
    torch.manual_seed(0)
    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 512}
    return BartForConditionalGeneration(BartConfig(vocab_size=384, d_model=16, **small, **sizes))


def t5() -> PreTrainedModel:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=384, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2))


@pytest.mark.parametrize("build", [bart, t5])
@pytest.mark.parametrize("how", ["instance", "path", "adapter"])
def test_encoder_decoder(build, how, tmp_path):
    model: Any = build()
    if how == "path":
        model = save_tiny(model, tiny_tokenizer(), tmp_path / "model")
    elif how == "adapter":
        model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    with pytest.raises(ValueError, match=rf"`{type(build()).__name__}` is an encoder-decoder model.*decoder-only"):
        trainer_of(tmp_path / "out", model)


def test_a_model_without_a_head(tmp_path):
    torch.manual_seed(0)
    backbone = LlamaModel(tiny_llama().config)
    with pytest.raises(ValueError, match="`LlamaModel` has no language-model head.*AutoModelForCausalLM"):
        trainer_of(tmp_path, backbone)


@pytest.mark.parametrize("kind", ["encoder-decoder", "no head", "positions"])
def test_known_from_the_config(kind, tmp_path, capsys, monkeypatch):
    """By `--dry_run`, the command and the trainer, and before weights are loaded."""
    torch.manual_seed(0)
    model = {"encoder-decoder": t5, "no head": lambda: LlamaModel(tiny_llama().config), "positions": tiny_gpt2}[kind]()
    folder = save_tiny(model, tiny_tokenizer(), tmp_path / "model")
    rows = Dataset.from_list([{"prompt": "word " * 600, "chosen": " yes", "rejected": " no, not at all"}] * 4)
    rows.to_json(tmp_path / "rows.jsonl")
    problem = {
        "encoder-decoder": "`T5ForConditionalGeneration` is an encoder-decoder model",
        "no head": "`LlamaModel` has no language-model head",
        "positions": "512 learned positions",
    }[kind]
    words = ["dpo", "--model_name_or_path", folder, "--dataset_name", str(tmp_path / "rows.jsonl")]
    words += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--bf16", "false", "--report_to", "none"]
    words += ["--max_length", "4096", "--eval_strategy", "no"]
    assert main([*words, "--dry_run"]) == 2
    assert problem in capsys.readouterr().err
    assert main(words) == 2
    assert problem in capsys.readouterr().err
    if kind != "positions":
        monkeypatch.setattr("trl_dpo_ext.models.loading.create_model_from_path", lambda *a, **k: pytest.fail("loaded"))
        with pytest.raises(ValueError, match=problem):
            trainer_of(tmp_path / "out", folder)


@pytest.mark.parametrize("limit", ["vocabulary", "padding", "positions"])
def test_rows_and_tokenizer_are_judged_alike(limit, tmp_path, capsys):
    """By `--dry_run`, the doctor and the trainer."""
    tokenizer, text = tiny_tokenizer(), {"vocabulary": " <new>", "padding": "", "positions": " word" * 600}[limit]
    if limit == "vocabulary":
        tokenizer.add_tokens(["<new>"])
    elif limit == "padding":
        tokenizer.add_special_tokens({"pad_token": "<new>"})
    folder = save_tiny(tiny_gpt2(), tokenizer, tmp_path / "model")
    rows = preference_rows(4).map(lambda row: {"chosen": row["chosen"] + text})
    rows.to_json(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError) as refused:
        trainer_of(tmp_path / "out", folder, rows, tokenizer, max_length=None)
    words = ["--model_name_or_path", folder, "--dataset_name", str(tmp_path / "rows.jsonl"), "--max_length", "none"]
    words += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--bf16", "false", "--report_to", "none"]
    assert main(["dpo", *words, "--dry_run"]) == 2
    assert str(refused.value) in capsys.readouterr().err
    doctor = ["doctor", str(tmp_path / "rows.jsonl"), "--tokenizer", folder, "--max_length"]
    assert main([*doctor, "none"]) == 1
    assert str(refused.value) in capsys.readouterr().err
    if limit == "positions":  # rows are truncated
        assert main([*doctor, "64"]) == 0
        trainer_of(tmp_path / "out", folder, rows, tokenizer, max_length=64)


def test_a_token_that_truncation_removes(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    rows = preference_rows(4).map(lambda row: {"chosen": row["chosen"] + " word" * 50 + " <new>"})
    folder = save_tiny(tiny_gpt2(), tokenizer, tmp_path / "model")
    rows.to_json(tmp_path / "rows.jsonl")
    trainer = trainer_of(tmp_path / "out", folder, rows, tokenizer, max_length=32)
    found = extent_of(trainer.train_dataset, "prompt_ids", ["chosen_ids", "rejected_ids"])
    assert found.largest_id < 384 and found.longest == 32
    report = examine(rows, tokenizer, progress=False, max_length=32)
    assert report.extent == found
    assert examine(rows, tokenizer, progress=False).extent.largest_id == 384
    assert main(["doctor", str(tmp_path / "rows.jsonl"), "--tokenizer", folder, "--max_length", "32"]) == 0
