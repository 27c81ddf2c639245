"""
Trains `trl.DPOTrainer` and `trl_dpo_ext.DPOPaperTrainer` with the same plain `trl.DPOConfig`, and compares them.

A [`Case`] is one row of a test table. Whatever a trainer could change (models, data, callbacks) is built anew for each
of the two trainers, and their data have different fingerprints, so neither can read a cache of the other.
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from closeness import EXACT, ROUNDING, same
from tiny import preference_rows
from transformers import PrinterCallback

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.trainers.argument_checks import config_from


class SeparateRows(DPOPaperTrainer):
    """
    Runs every completion with its own prompt, as TRL does: the same kernels on the same shapes.

    `tests/integration/test_shared_prompt.py` compares a shared prompt with this way.
    """

    def __init__(self, model: Any, *, args: trl.DPOConfig, **arguments: Any):
        options = config_from(args, model, DPOPaperConfig, self._name)
        options.share_prompt = False
        super().__init__(model, args=options, **arguments)


TRAINERS = {"trl": trl.DPOTrainer, "ours": SeparateRows}

# One process, float64 (see `closeness`), and a rate at which later losses depend visibly on the first updates.
CONFIG = {
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}

# Both trainers run the same kernels on the same shapes, so what is not computed in float64 has the same bits in both
# up to the log-probabilities, and so have the gradients and weights. Metrics are sums of these over at most 64 tokens
# and rows, in another order: each addition in float32 rounds the sum by at most half of `ROUNDING`. (Measured: weights
# have the same bits, metrics are within 5e-7.)
SAME_KERNELS = 64 * ROUNDING / 2

# Means over tokens, which TRL averages over micro-batches: equal where an entry of the log is one micro-batch.
_TOKEN_METRICS = re.compile(r"entropy|logits/|mean_token_accuracy|aux_loss")
# Softmax ignores what a bias of the keys adds where positions are not rotary: the gradient is rounding, of which Adam
# makes whole steps.
_KEY_BIASES = re.compile(r"c_attn\.bias|vision_tower.*k_proj\.bias")
_TIMINGS = re.compile(r"runtime|_per_second|^step$|total_flos")
_tags = itertools.count()


@dataclass(frozen=True)
class Case:
    """
    One run of both trainers.

    Args:
        id (`str`):
            Name of the test.
        config (`dict`, *optional*):
            Options of `trl.DPOConfig`, on top of `CONFIG`.
        model (`str`, *optional*, defaults to `"llama"`):
            Name of the saved model, see `tiny.MODELS`.
        rows (`str`, *optional*, defaults to `"plain"`):
            Kind of the 12 training rows, see `tiny.preference_rows`.
        build (`Callable`, *optional*):
            From the model's folder and a tag for data to arguments of the trainer. They replace the defaults.
        finish (`Callable`, *optional*):
            Function of the trained trainer and a tag that returns further metrics to compare.
        loss_atol (`float`, *optional*, defaults to `EXACT`):
            Absolute tolerance of losses, for losses that are not of the order of one.
        tolerance (`float`, *optional*):
            Relative and absolute tolerance of everything, where it is not computed in float64.
        slow (`bool`, *optional*, defaults to `False`):
            Whether it is marked `slow`.
    """

    id: str
    config: dict[str, Any] = field(default_factory=dict)
    model: str = "llama"
    rows: str = "plain"
    build: Callable[[str, str], dict[str, Any]] = lambda folder, tag: {}
    finish: Callable[[trl.DPOTrainer, str], dict[str, float]] = lambda trainer, tag: {}
    loss_atol: float = EXACT
    tolerance: float | None = None
    slow: bool = False


@dataclass
class Run:
    """What one trainer logged, in order, and the weights it ended at."""

    history: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    start: dict[str, torch.Tensor]
    trainer: trl.DPOTrainer


def cases(*table: Case) -> pytest.MarkDecorator:
    """`@cases(Case(...), ...)` runs a test once per case."""
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case.id, marks=[pytest.mark.slow] if case.slow else []) for case in table]
    )


def make_trainer(which: str, case: Case, folder: str, output_dir: Path) -> trl.DPOTrainer:
    """The trainer of a case, `which` being `"trl"` or `"ours"`."""
    tag = f"{which} {next(_tags)}"
    arguments = {"model": folder, "train_dataset": preference_rows(12, case.rows, tag=tag), **case.build(folder, tag)}
    args = trl.DPOConfig(str(output_dir / which), **{**CONFIG, **case.config})
    trainer = TRAINERS[which](args=args, **arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(which: str, case: Case, folder: str, output_dir: Path) -> Run:
    """Builds the trainer of a case, trains it and takes its metrics and weights."""
    trainer = make_trainer(which, case, folder, output_dir)
    start = _weights(trainer)
    trainer.train()
    further = case.finish(trainer, f"{which} {next(_tags)}")
    history = [entry for entry in [*trainer.state.log_history, further] if entry and "train_runtime" not in entry]
    return Run(history, _weights(trainer), start, trainer)


def train_both(case: Case, folder: str, output_dir: Path) -> tuple[Run, Run]:
    """Runs a case with TRL's trainer and with ours, and asserts that they did the same."""
    theirs, ours = (train(which, case, folder, output_dir) for which in TRAINERS)
    assert_trained(theirs)
    assert_same_metrics(theirs.history, ours.history, case)
    assert_same_weights(theirs.weights, ours.weights, rtol=case.tolerance or EXACT)
    return theirs, ours


def assert_same_refusal(case: Case, error: type[Exception], match: str, folder: str, output_dir: Path) -> None:
    """TRL refuses a case with that error, while it builds, trains or finishes; ours with the same type and text."""
    with pytest.raises(error, match=match) as theirs:
        train("trl", case, folder, output_dir)
    with pytest.raises(Exception) as ours:
        train("ours", case, folder, output_dir)
    text = str(ours.value).replace(SeparateRows.__name__, trl.DPOTrainer.__name__)
    assert (type(ours.value), text) == (type(theirs.value), str(theirs.value)), f"{ours.value!r} != {theirs.value!r}"


def assert_trained(run: Run) -> None:
    """A case shows nothing where losses are not finite or weights hardly move."""
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert losses and all(map(math.isfinite, losses)), losses
    moved = [_distance(run.start[name], run.weights[name]) for name in run.start]
    assert max(moved) > 1e-3, f"no weight moved: {max(moved)}"


def assert_same_metrics(theirs: list[dict[str, float]], ours: list[dict[str, float]], case: Case) -> None:
    """Every metric that TRL logged is in our log of the same update, with the same value."""
    assert len(theirs) == len(ours), f"TRL logged {len(theirs)} entries, ours {len(ours)}"
    several = max(case.config.get(name, 1) for name in ("gradient_accumulation_steps", "logging_steps")) > 1
    several = several or case.config.get("logging_strategy") == "epoch"
    wrong = []
    for their_entry, our_entry in zip(theirs, ours, strict=True):
        one_batch = "loss" in their_entry and not several
        for name, value in their_entry.items():
            if _TIMINGS.search(name) or (_TOKEN_METRICS.search(name) and not one_batch):
                continue
            found = our_entry.get(_our_name(name, their_entry))
            if found != _approximately(name, value, case):
                wrong.append(f"step {their_entry.get('step')}: {name}: TRL {value!r}, ours {found!r}")
    assert not wrong, "\n".join(wrong)


def assert_same_weights(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], *, rtol: float) -> None:
    """Same names, and every tensor within `rtol` of its norm."""
    assert theirs.keys() == ours.keys()
    distances = {name: _distance(theirs[name], ours[name]) for name in theirs if not _KEY_BIASES.search(name)}
    wrong = {name: distance for name, distance in distances.items() if distance > rtol}
    assert not wrong, wrong


def _approximately(name: str, value: float, case: Case):
    if case.tolerance is not None:
        return pytest.approx(value, rel=case.tolerance, abs=case.tolerance)
    if name.endswith("loss"):
        return pytest.approx(value, rel=EXACT, abs=case.loss_atol)
    return same(value)


def _our_name(name: str, entry: dict[str, float]) -> str:
    # With several evaluation sets, or a prefix passed to `evaluate`, TRL logs `eval_rewards/...` beside
    # `eval_<set>_loss` or `<prefix>_loss`, and the last set wins. Ours have the prefix of the loss.
    prefixes = [key.removesuffix("loss") for key in entry if re.fullmatch(".+_loss", key) and key != "aux_loss"]
    if not name.startswith("eval_") or name.startswith(tuple(prefixes)):
        return name
    return name.replace("eval_", prefixes[-1], 1)


def _weights(trainer: trl.DPOTrainer) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().clone()
        for name, tensor in trainer.model.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return ((a - b).norm() / a.norm().clamp(min=1e-6)).item()
