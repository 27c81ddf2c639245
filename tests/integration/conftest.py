"""What the integration tests share: tiny configs, trainers and runs, and the same run in plain torch."""

import re
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import EXACT, same
from tiny import preference_rows, tiny_llama, tiny_tokenizer

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


TINY = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "global_batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "gradient_checkpointing": False,
    "train_sampling_strategy": "sequential",
}

# Metrics that the sign of a reward does not decide, which rounding decides where a reward is 0
CONTINUOUS = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "entropy")

# How far log-probabilities and rewards of the same bfloat16 products may be apart, which may be summed in other tiles:
# a logit near 8 is rounded by 8 * 2**-9 = 0.016, a sum of 30 tokens with errors of either sign is off by
# sqrt(30) * 0.016 = 0.09 nats, and beta 0.1 times the two models' difference by 0.1 * sqrt(2) * 0.09 = 0.012 (measured
# on CPUs: 0 to 3e-6, of rewards near 3)
BFLOAT16_LOGP, BFLOAT16_REWARD = 0.09, 0.012


@pytest.fixture(scope="session", autouse=True)
def tiny_layers_in_four_bits() -> Iterator[None]:
    """bitsandbytes 0.50 repacks weights to evaluate on CPUs with AVX512-BF16, which fails below 32 outputs."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("bitsandbytes") is not None:
            patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
        yield


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DPOPaperConfig]:
    """Makes a `DPOPaperConfig` for a tiny run; options override."""

    def make(folder: str = "out", **options: Any) -> DPOPaperConfig:
        return DPOPaperConfig(str(tmp_path / folder), **TINY | options)

    return make


@pytest.fixture
def trained(config: Callable[..., DPOPaperConfig]) -> Callable[..., DPOPaperTrainer]:
    """Builds a trainer on tiny rows, trains it, and returns it."""

    def run(model: Any, options: dict[str, Any] | None = None, resume: Any = None, **kwargs: Any) -> DPOPaperTrainer:
        kwargs.setdefault("train_dataset", preference_rows(12))
        trainer = DPOPaperTrainer(model=model, args=config(**options or {}), **kwargs)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def updates(trainer: DPOPaperTrainer) -> list[dict[str, float]]:
    """The training log, one entry an update."""
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def builder(trainer_class: type[BaseDPOTrainer], folder: Path) -> Callable[..., Any]:
    """Makes a function that builds a trainer on 12 tiny rows, from its arguments and the options of its config."""

    def build(model: Any = None, **options: Any) -> BaseDPOTrainer:
        names = ("ref_model", "peft_config", "train_dataset", "eval_dataset", "quantization_config")
        arguments = {name: options.pop(name) for name in names if name in options}
        return trainer_class(
            model or tiny_llama(),
            args=trainer_class.config_class(str(folder / "out"), **TINY | options),
            **{"train_dataset": preference_rows(12), "processing_class": tiny_tokenizer()} | arguments,
        )

    return build


def assert_fits(message: str, pattern: str) -> None:
    """Asserts that a message is `pattern`, where ` ... ` stands for prose."""
    assert re.fullmatch(".*".join(map(re.escape, re.split(r" ?\.\.\. ?", pattern))), message.strip()), message


def assert_same_run(
    one: BaseDPOTrainer, other: BaseDPOTrainer, rel: float = EXACT, names: Collection[str] | None = None
) -> None:
    """The metrics of every update (all that both log, unless named), and the weights."""
    assert len(updates(one)) == len(updates(other)) > 0
    for ours, theirs in zip(updates(one), updates(other), strict=True):
        for name in names or ours.keys() & theirs.keys() - {"step", "epoch"}:
            assert ours[name] == pytest.approx(theirs[name], rel=rel, abs=rel), name
    weights = dict(other.model.named_parameters())
    for name, weight in one.model.named_parameters():
        assert (weight - weights[name]).norm() <= rel * weights[name].norm(), name


def token_logps(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probability of each token of an answer, by full logits and a loop."""
    logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return torch.stack([logits[len(prompt) + i - 1, token] for i, token in enumerate(answer)])


def assert_trains_as_plain_torch(
    trainer: BaseDPOTrainer, loss_of: Callable[[torch.nn.Module, list[dict[str, Any]]], torch.Tensor]
) -> None:
    """
    Trains, and compares losses, norms and weights with SGD in plain torch on updates of four rows.

    Args:
        trainer (`BaseDPOTrainer`): Trainer of `tiny_llama()` with `optim="sgd"` and `max_grad_norm=1.0`.
        loss_of (`Callable`): The loss of a model on the rows of an update, with gradient.
    """
    rows, model = trainer.train_dataset.to_list(), tiny_llama()
    trainer.train()
    for update, entry in enumerate(updates(trainer)):
        loss = loss_of(model, rows[4 * update : 4 * update + 4])
        model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert entry["loss"] == same(loss.item())
        assert entry["grad_norm"] == same(norm.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= entry["learning_rate"] * parameter.grad
    for (name, ours), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        assert (ours - theirs).norm() <= EXACT * theirs.norm(), name
