"""How often the host would wait for a GPU in an update, from the data loader's batches on, counted on a CPU."""

from pathlib import Path
from typing import Any

import pytest
import trl
from flash_on_cpu import flash_on_cpu
from integration.conftest import TINY
from tiny import preference_rows, ranking_rows, tiny_llama, tiny_tokenizer
from torch import Tensor
from transformers import TrainerCallback

import trl_dpo_ext
from benchmarks.synchronizations import SynchronizingCalls


class SecondUpdate(TrainerCallback):
    """Counts from the start of the second update to its end, with weights and batches on the device."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.collect, trainer.get_batch_samples = trainer.get_batch_samples, self.get_batch_samples

    def get_batch_samples(self, *args: Any) -> Any:
        self.batches, divisor = self.collect(*args)
        return self.batches, divisor

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            models = [model for model in (self.trainer.model, self.trainer.ref_model) if model is not None]
            tensors = [weight for model in models for weight in model.parameters()]
            tensors += [value for batch in self.batches for value in batch.values() if isinstance(value, Tensor)]
            self.calls = SynchronizingCalls(tensors)
            self.calls.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.calls.__exit__(None, None, None)


def calls_of(folder: Path, method: str, rows: Any, **options: Any) -> dict[str, int]:
    """Of an update of four micro-batches that is not logged."""
    options = TINY | {"max_steps": 3, "logging_steps": 10, "per_device_train_batch_size": 1} | options
    trainer = getattr(trl_dpo_ext, f"{method}Trainer")(
        tiny_llama(),
        args=getattr(trl_dpo_ext, f"{method}Config")(str(folder), **options),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    counter = SecondUpdate(trainer)
    trainer.add_callback(counter)
    trainer.train()
    return dict(counter.calls.found)


@pytest.fixture(autouse=True)
def _head_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # There TRL's head picks the tokens that have a label
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: True)


@pytest.mark.parametrize(
    ("method", "options"),
    [(method, {}) for method in ("DPOPaper", "RankingDPO", "Unlikelihood", "PreferredFT")]
    + [(method, {"completions_per_forward": 1, "padding_free": False}) for method in ("DPOPaper", "RankingDPO")],
    ids=str,
)
def test_not_within_a_micro_batch(method, options, tmp_path):
    """What is read is read once an update: the flags of the guard and the norm of the gradients."""
    rows = ranking_rows(12, [2, 4, 3]) if method == "RankingDPO" else preference_rows(12)
    with flash_on_cpu():
        found = calls_of(tmp_path, method, rows, attention_path="varlen", **options)
    assert sum(found.values()) <= 1, found


def test_it_is_counted(tmp_path):
    """Separate rows, whose tokens TRL's head picks, wait in every micro-batch."""
    assert calls_of(tmp_path, "DPOPaper", preference_rows(12), share_prompt=False)["index"] >= 4 * 2
