"""The comparison itself: it sees small changes of a trainer, and says what changed."""

import inspect

import harness
import pytest
import torch
import trl
from closeness import assert_within_rounding, in_float64
from harness import SAME_KERNELS, Case, train, train_both
from tiny import tiny_llama
from transformers import AutoModelForCausalLM

from trl_dpo_ext import DPOPaperTrainer


pytestmark = pytest.mark.usefixtures("float64")


class _OtherBeta(trl.DPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta *= 1 + 1e-4


class _HardlyAnotherBeta(trl.DPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta *= 1 + 1e-7


class _OtherRate(trl.DPOTrainer):
    def create_optimizer(self, *args, **kwargs):
        self.args.learning_rate *= 1.0001
        return super().create_optimizer(*args, **kwargs)


class _OtherReference(trl.DPOTrainer):
    def __init__(self, model, *args, **kwargs):
        ref_model = AutoModelForCausalLM.from_pretrained(model)
        ref_model.lm_head.weight.data += 1e-4 * tiny_llama(seed=1).lm_head.weight.data
        super().__init__(model, ref_model, *args, **kwargs)


class _NoAccuracies(trl.DPOTrainer):
    def log(self, logs, *args, **kwargs):
        self._metrics["train"].pop("rewards/accuracies", None)
        super().log(logs, *args, **kwargs)


@pytest.mark.parametrize(
    ("trainer_class", "says"),
    [
        (_OtherBeta, "step 2: loss"),
        (_HardlyAnotherBeta, "step 2: loss"),
        (_OtherRate, "step 2: loss"),
        (_OtherReference, "step 1: rewards/chosen"),
        (_NoAccuracies, "rewards/accuracies: TRL 0.0, ours None"),
    ],
)
def test_a_difference_is_seen(trainer_class, says, llama_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(harness.TRAINERS, "ours", trainer_class)
    with pytest.raises(AssertionError, match=says):
        train_both(Case("different"), llama_folder, tmp_path)


@pytest.mark.float32
@pytest.mark.parametrize("trainer_class", [_OtherBeta, _OtherRate])
def test_a_difference_is_seen_in_bfloat16(trainer_class, llama_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(harness.TRAINERS, "ours", trainer_class)
    with pytest.raises(AssertionError, match="step 2: "):
        train_both(Case("different", {"bf16": True}, tolerance=SAME_KERNELS), llama_folder, tmp_path)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_float32(name, tiny_folder, tmp_path):
    """As users train: ours is as near to a run in float64 as TRL's is, and one with another rate is not."""
    # Not Adam, which makes whole steps of gradients that are rounding
    case = Case("float32", {"optim": "sgd", "learning_rate": 0.3})

    def changes(which: str, case: Case = case) -> dict[str, torch.Tensor]:
        run = train(which, case, tiny_folder(name), tmp_path)
        return {name: run.weights[name].double() - run.start[name].double() for name in run.weights}

    theirs = changes("trl")
    with in_float64():
        exact = changes("trl")
    assert_within_rounding(changes("ours"), theirs, exact)
    other = Case("other rate", case.config | {"learning_rate": 0.3 * (1 + 1e-4)})
    with pytest.raises(AssertionError, match="from float64"):
        assert_within_rounding(changes("ours", other), theirs, exact)


def test_same_arguments_in_the_same_order():
    assert list(inspect.signature(DPOPaperTrainer).parameters) == list(inspect.signature(trl.DPOTrainer).parameters)
