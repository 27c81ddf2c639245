"""The comparison itself: it sees small changes of a trainer, and says what changed."""

import inspect

import harness
import pytest
import trl
from harness import Case, train_both
from tiny import tiny_llama
from transformers import AutoModelForCausalLM

from trl_dpo_ext import DPOPaperTrainer


class _OtherBeta(trl.DPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta *= 1.0001


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
        (_OtherRate, "step 2: loss"),
        (_OtherReference, "step 1: rewards/chosen"),
        (_NoAccuracies, "rewards/accuracies: TRL 0.0, ours None"),
    ],
)
def test_a_difference_is_seen(trainer_class, says, llama_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(harness.TRAINERS, "ours", trainer_class)
    with pytest.raises(AssertionError, match=says):
        train_both(Case("different"), llama_folder, tmp_path)


def test_same_arguments_in_the_same_order():
    assert list(inspect.signature(DPOPaperTrainer).parameters) == list(inspect.signature(trl.DPOTrainer).parameters)
