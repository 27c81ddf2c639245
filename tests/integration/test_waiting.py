"""How often the host would wait for a GPU in an update, counted on a CPU by the operations that read a value."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from flash_on_cpu import flash_on_cpu
from integration.conftest import TINY
from tiny import preference_rows, ranking_rows, tiny_llama, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

import trl_dpo_ext


READS = {"_local_scalar_dense", "nonzero", "masked_select", "masked_scatter", "is_nonzero", "equal", "unique"}
# What they compute is on the host: the collator's batch, its groups, their layout and its segments
ON_THE_HOST = ("shared_prompt/groups.py", "shared_prompt/layout.py", "shared_prompt/segments.py", "/batches.py")
ON_THE_HOST += ("flash_on_cpu.py", "collator.py", "data_collator.py")


class Reads(TorchDispatchMode):
    """Counts operations that wait for a device, by the function of this package or another that asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operations += 1
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1] or []
        )
        if name in READS or by_mask:
            frames = [frame for frame in traceback.extract_stack() if "_python_dispatch" not in frame.filename]
            asked = [f"{frame.filename}:{frame.name}" for frame in frames if "/torch/" not in frame.filename]
            asked = [line for line in asked if Path(line.partition(":")[0]).name != Path(__file__).name]
            if not any(part in line for line in asked for part in ON_THE_HOST):
                short = [line.split("site-packages/")[-1].split("trl_dpo_ext/")[-1] for line in asked[-1:]]
                self.lines[short[0] if short else "backward"] += 1
        return func(*args, **(kwargs or {}))


class SecondUpdate(TrainerCallback):
    """Counts from the start of the second update to its end, logs left out."""

    def __init__(self) -> None:
        self.reads = Reads()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.reads.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.reads.__exit__(None, None, None)


def reads_of(folder: Path, method: str, rows: Any, **options: Any) -> Reads:
    counter = SecondUpdate()
    options = TINY | {"max_steps": 3, "logging_steps": 10, "per_device_train_batch_size": 1} | options
    trainer = getattr(trl_dpo_ext, f"{method}Trainer")(
        tiny_llama(),
        args=getattr(trl_dpo_ext, f"{method}Config")(str(folder), **options),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        callbacks=[counter],
    )
    trainer.train()
    return counter.reads


@pytest.mark.parametrize(
    ("method", "options"),
    [(method, {}) for method in ("DPOPaper", "RankingDPO", "Unlikelihood", "PreferredFT")]
    + [(method, {"completions_per_forward": 1, "padding_free": False}) for method in ("DPOPaper", "RankingDPO")],
    ids=str,
)
def test_once_an_update(method, options, tmp_path, monkeypatch):
    """Of four micro-batches: whether its losses and rewards are as they must be."""
    # As on a GPU, where TRL's head picks the tokens that have a label
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: True)
    rows = ranking_rows(12, [2, 4, 3]) if method == "RankingDPO" else preference_rows(12)
    with flash_on_cpu():
        reads = reads_of(tmp_path, method, rows, attention_path="varlen", **options)
    ours = {line: number for line, number in reads.lines.items() if not line.startswith(("torch", "transformers"))}
    assert sum(ours.values()) <= 1 + ours.get("accelerate/optimizer.py:step", 0), ours


def test_they_are_seen(tmp_path, monkeypatch):
    """Without groups from the collator, and with TRL's choice of tokens, every micro-batch waits several times."""
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: True)
    reads = reads_of(tmp_path, "DPOPaper", preference_rows(12), share_prompt=False)
    assert reads.lines["trl/trainer/utils.py:_fused_forward"] >= 4 * 2
