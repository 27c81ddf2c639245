"""Every trainer on FlashAttention, torch's and the user's, imitated on a CPU: the run with separate rows."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from closeness import EXACT, assert_within_rounding, in_float64
from flash_on_cpu import flash_attn_on_cpu, flash_on_cpu, use_flash_attention_2
from integration.conftest import TINY, assert_same_run, updates
from tiny import lora_config, preference_rows, ranking_rows, tiny_llama, tiny_mistral, tiny_tokenizer

import trl_dpo_ext
from trl_dpo_ext import ImplicitRewardModel
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


pytestmark = pytest.mark.usefixtures("float64")

ADAPTER = lora_config(target_modules=["q_proj", "v_proj", "down_proj"])
METHODS = ("DPOPaper", "RankingDPO", "Unlikelihood", "PreferredFT")
PATHS = {"varlen": flash_on_cpu, "flash": flash_attn_on_cpu}
DESCRIBED = {
    "varlen": "computed once (FlashAttention of torch, packed)",
    "flash": "computed once (the model's FlashAttention, packed)",
}


@contextmanager
def on_path(path: str, make: Any = tiny_llama):
    with PATHS[path]() as calls:
        model = make()
        if path == "flash":
            use_flash_attention_2(model)
        yield model, calls


def train(model: Any, folder: Any, method: str = "DPOPaper", **options: Any):
    arguments = {name: options.pop(name) for name in ("peft_config", "eval_dataset") if name in options}
    # The last group is one of pairs, so that K is ragged; answers of one token among them
    rows = ranking_rows(8, [2, 5, 3, 4]) if method == "RankingDPO" else preference_rows(8)
    trainer = getattr(trl_dpo_ext, f"{method}Trainer")(
        model,
        args=getattr(trl_dpo_ext, f"{method}Config")(str(folder / "out"), **TINY | {"max_steps": 2} | options),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        **arguments,
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def separate(tmp_path_factory) -> Callable[..., BaseDPOTrainer]:
    """Trains `tiny_llama` on separate rows, once for each method, with an adapter or without."""

    @cache
    def run(method: str, adapter: bool = False) -> BaseDPOTrainer:
        options = {"peft_config": ADAPTER} if adapter else {}
        return train(tiny_llama(), tmp_path_factory.mktemp("separate"), method, share_prompt=False, **options)

    return run


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_every_trainer(path, method, separate, tmp_path):
    with on_path(path) as (model, calls):
        trainer = train(model, tmp_path, method, attention_path=path)
    assert str(trainer.runner) == DESCRIBED[path]
    # In every layer of both updates
    assert sum(calls.values()) >= 2 * model.config.num_hidden_layers
    assert_same_run(trainer, separate(method))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ranked", [False, True], ids=["pairs", "rankings"])
@pytest.mark.parametrize(
    "options",
    [
        {"completions_per_forward": 1},
        {"completions_per_forward": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "completions_per_forward": 2},
        {"share_prompt": False, "padding_free": True},
        {"padding_free": False},
        {"max_tokens_per_row": 100},
        {"precompute_ref_log_probs": True},
        {"peft_config": ADAPTER},
    ],
    ids=lambda options: (
        ", ".join(f"{name}={value}" for name, value in options.items() if name != "peft_config") or "lora"
    ),
)
def test_options(path, ranked, options, separate, tmp_path):
    method = "RankingDPO" if ranked else "DPOPaper"
    if "precompute_ref_log_probs" in options:
        options = options | {"ref_logps_cache_dir": str(tmp_path / "cache")}
    with on_path(path) as (model, calls):
        trainer = train(model, tmp_path, method, attention_path=path, **options)
    assert sum(calls.values())
    assert_same_run(trainer, separate(method, adapter="peft_config" in options))


@pytest.mark.parametrize("path", PATHS)
def test_windows(path, tmp_path):
    separate = train(tiny_mistral(), tmp_path, share_prompt=False)
    with on_path(path, tiny_mistral) as (model, _):
        assert_same_run(train(model, tmp_path, attention_path=path), separate)


@pytest.mark.float32
@pytest.mark.parametrize("path", PATHS)
def test_bf16(path, tmp_path):
    """Under autocast, log-probabilities are within twice the distance of separate rows to float64."""
    options = {"max_steps": 1, "optim": "sgd", "bf16": True}
    separate = train(tiny_llama(), tmp_path, share_prompt=False, **options)
    with on_path(path) as (model, _):
        found = train(model, tmp_path, attention_path=path, **options)
    with in_float64():
        exact = train(tiny_llama(), tmp_path, share_prompt=False, **options | {"bf16": False})
    names = ("logps/chosen", "logps/rejected", "entropy")
    ours, theirs, truth = (
        {"log": torch.tensor([updates(run)[0][name] for name in names], dtype=torch.float64)}
        for run in (found, separate, exact)
    )
    assert_within_rounding(ours, theirs, truth)


def test_scores():
    """The scorer, too, takes a model's FlashAttention in place."""
    rows = preference_rows(6)
    answers = [[row["chosen"], row["rejected"]] for row in rows]

    def scores(model: Any) -> torch.Tensor:
        reference = tiny_llama()
        with torch.no_grad():
            reference.lm_head.weight.mul_(1.1)
        scorer = ImplicitRewardModel(model, reference, tiny_tokenizer(), beta=0.1, progress=False)
        return torch.tensor(scorer.score(rows["prompt"], answers))

    with on_path("flash") as (model, calls):
        torch.testing.assert_close(scores(model), scores(tiny_llama()), rtol=EXACT, atol=EXACT)
    assert calls["flash_attn"]
