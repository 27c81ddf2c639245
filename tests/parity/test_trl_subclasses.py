"""Subclasses as users write them of `trl.DPOTrainer`, on either trainer: the same metrics, the same weights."""

import harness
import pytest
from harness import Case, assert_same_metrics, train_both
from tiny import preference_rows
from transformers import TrainerCallback


pytestmark = pytest.mark.usefixtures("float64")

ACCUMULATED = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2, "max_steps": 2}


class AddsATerm:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs=False, num_items_in_batch=num_items_in_batch)
        return loss + 1e-4 * sum(parameter.square().sum() for parameter in model.parameters())


class LeavesOutNumItems:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


class HasItsOwnMetrics:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        metrics = self._metrics["train" if model.training else "eval"]
        metrics["rows"].append(len(inputs["input_ids"]))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class HasItsOwnLoss:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = inputs["input_ids"]
        outputs = model(input_ids=ids, attention_mask=inputs["attention_mask"], labels=ids)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class OverridesTheStep:
    def training_step(self, *args, **kwargs):
        return super().training_step(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.param_groups[0]["weight_decay"] = 0.5
        return optimizer


@pytest.fixture
def both(monkeypatch, llama_folder, tmp_path):
    """Trains a subclass of each trainer with the same methods."""

    def train(methods, config=None, build=lambda folder, tag: {}, finish=lambda trainer, tag: {}):
        for which, trainer in list(harness.TRAINERS.items()):
            monkeypatch.setitem(harness.TRAINERS, which, type(methods.__name__, (methods, trainer), {}))
        return train_both(Case("", config or {}, build=build, finish=finish), llama_folder, tmp_path)

    return train


@pytest.mark.parametrize("methods", [AddsATerm, LeavesOutNumItems, HasItsOwnMetrics, HasItsOwnLoss, OverridesTheStep])
@pytest.mark.parametrize("config", [{}, ACCUMULATED], ids=["one", "accumulated"])
def test_training(both, methods, config):
    both(methods, config)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_metrics_of_a_subclass(both, loss_type):
    _, ours = both(
        HasItsOwnMetrics,
        {"loss_type": loss_type},
        finish=lambda trainer, tag: trainer.evaluate(preference_rows(8, start=20, tag=tag)),
    )
    assert [entry.get("rows", entry.get("eval_rows")) for entry in ours.history] == [8.0] * len(ours.history)


def test_an_own_loss_with_compute_metrics(both):
    shapes = []
    both(
        HasItsOwnLoss,
        build=lambda folder, tag: {
            "compute_metrics": lambda prediction: shapes.append(prediction.predictions.shape) or {"own": 0.5}
        },
        finish=lambda trainer, tag: trainer.evaluate(preference_rows(4, start=20, tag=tag)),
    )
    assert len(shapes) == 2 and shapes[0] == shapes[1]  # logits


class _StopsAt3(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


@pytest.mark.parametrize(
    ("config", "has_metrics"),
    [
        ({"logging_steps": 2}, True),
        ({"logging_steps": 10}, True),
        ({"logging_strategy": "no"}, True),
        ({"logging_steps": 2, "max_steps": 6}, True),
        ({"logging_steps": 2, "loss_type": "ipo"}, True),
        ({"logging_strategy": "epoch"}, False),
    ],
    ids=["last_window", "short_run", "no", "stopped_early", "ipo", "epoch"],
)
def test_the_end_of_the_log(llama_folder, tmp_path, config, has_metrics):
    case = Case("end", {"max_steps": 3} | config, build=lambda folder, tag: {"callbacks": [_StopsAt3()]})
    theirs, ours = (run.trainer.state.log_history[-1] for run in _runs(case, llama_folder, tmp_path))
    assert ("rewards/margins" in theirs) == ("rewards/margins" in ours) == has_metrics
    assert_same_metrics([theirs], [ours], case)


def _runs(case, folder, output_dir):
    return [harness.train(which, case, folder, output_dir) for which in harness.TRAINERS]
