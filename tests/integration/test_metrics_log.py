"""Invariant 7: logged and evaluated metrics are means over examples, whatever the batches."""

import numpy as np
import pytest
from closeness import same
from integration.conftest import updates
from tiny import preference_rows


pytestmark = pytest.mark.usefixtures("float64")

METRICS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen")


@pytest.fixture
def trainer(trained, llama_folder):
    """A trainer after three updates, so that rewards differ."""
    return trained(llama_folder, {"learning_rate": 3e-3, "max_steps": 3})


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_evaluation_is_a_mean_over_examples(trainer, batch_size):
    rows = preference_rows(9, start=20)
    rewards = trainer.predict(rows).predictions
    trainer.args.per_device_eval_batch_size = batch_size
    metrics = trainer.evaluate(rows)
    assert metrics["eval_rewards/chosen"] == same(rewards[:, 0].mean())
    assert metrics["eval_rewards/accuracies"] == (rewards[:, 0] > rewards[:, 1]).mean()
    assert metrics["eval_rewards/margins"] == same((rewards[:, 0] - rewards[:, 1]).mean())
    losses = np.log1p(np.exp(rewards[:, 1] - rewards[:, 0]))
    assert metrics["eval_loss"] == same(losses.mean())


def test_several_evaluation_sets_keep_their_metrics(trained, llama_folder):
    sets = {"small": preference_rows(3, start=20), "large": preference_rows(9, start=30)}
    trainer = trained(
        llama_folder,
        {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
        eval_dataset=sets,
    )
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    for name, rows in sets.items():
        alone = trainer.evaluate(rows)
        for metric in METRICS:
            assert logged[f"eval_{name}_{metric}"] == alone[f"eval_{metric}"]
    assert logged["eval_small_rewards/margins"] != logged["eval_large_rewards/margins"]
    assert "eval_rewards/margins" not in logged


def test_a_log_window_is_a_mean_over_its_examples(trained, llama_folder):
    # 10 rows an epoch in updates of 4, 4 and 2
    rows = preference_rows(10)
    each = updates(trained(llama_folder, {"num_train_epochs": 1}, train_dataset=rows))
    window = updates(trained(llama_folder, {"num_train_epochs": 1, "logging_steps": 3}, train_dataset=rows))
    assert len(each) == 3 and len(window) == 1
    for metric in METRICS:
        expected = np.average([entry[metric] for entry in each], weights=[4, 4, 2])
        assert window[0][metric] == same(expected), metric
    assert window[0]["num_tokens"] == each[-1]["num_tokens"]


def test_predictions_are_rewards_and_ranks_in_the_order_of_the_rows(trainer):
    rows = preference_rows(7, start=20)
    all_at_once = trainer.predict(rows)
    assert all_at_once.predictions.shape == (7, 2)
    assert (all_at_once.label_ids == [[0, 1]] * 7).all()
    one_by_one = [trainer.predict(rows.select([i])).predictions[0] for i in range(7)]
    assert all_at_once.predictions == same(np.array(one_by_one))


def test_compute_metrics_gets_rewards(trained, llama_folder):
    def accuracy(prediction):
        assert prediction.label_ids.shape == prediction.predictions.shape == (9, 2)
        return {"mine": float((prediction.predictions[:, 0] > prediction.predictions[:, 1]).mean())}

    trainer = trained(
        llama_folder, {"max_steps": 2}, compute_metrics=accuracy, eval_dataset=preference_rows(9, start=20)
    )
    metrics = trainer.evaluate()
    assert metrics["eval_mine"] == metrics["eval_rewards/accuracies"]


def test_the_best_checkpoint_is_chosen_by_an_exact_metric(trained, llama_folder):
    trainer = trained(
        llama_folder,
        {
            "num_train_epochs": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "rewards/margins",
            "greater_is_better": True,
        },
        eval_dataset=preference_rows(9, start=20),
    )
    margins = [e["eval_rewards/margins"] for e in trainer.state.log_history if "eval_rewards/margins" in e]
    assert trainer.state.best_metric == max(margins)
    assert trainer.evaluate()["eval_rewards/margins"] == same(max(margins))
