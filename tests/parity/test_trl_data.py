"""Every kind of data, cut, cache and evaluation set that `trl.DPOTrainer` takes, through both trainers."""

import numpy as np
import pytest
from closeness import EXACT
from datasets import DatasetDict
from harness import Case, cases, make_trainer, train_both
from tiny import preference_rows, tiny_llama, tiny_tokenizer
from trl.trainer.dpo_trainer import DataCollatorForPreference


pytestmark = pytest.mark.usefixtures("float64")

# Rows


@cases(
    *(Case(kind, rows=kind) for kind in ("plain", "chat", "implicit", "implicit_chat", "tools", "template")),
    Case("short_last_batch", build=lambda folder, tag: {"train_dataset": preference_rows(10, tag=tag)}),
    Case("two_epochs", {"max_steps": -1, "num_train_epochs": 2}),
    Case("all_columns_kept", {"remove_unused_columns": False}),
    Case("processing_class", build=lambda folder, tag: {"processing_class": tiny_tokenizer()}),
    Case("two_workers", {"dataset_num_proc": 2, "dataloader_num_workers": 1}, slow=True),
)
def test_rows(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


@cases(*(Case(kind, rows=kind) for kind in ("plain", "chat")))
def test_tokenizer_with_bos(case, bos_folder, tmp_path):
    train_both(case, bos_folder, tmp_path)


def _streamed(n: int, tag: str, start: int = 0):
    return preference_rows(n, start=start, tag=tag).to_iterable_dataset()


@cases(
    Case("train", build=lambda folder, tag: {"train_dataset": _streamed(12, tag)}),
    Case(
        "dispatch_batches",  # TRL switches it off for streams, with a warning
        {"accelerator_config": {"dispatch_batches": True}},
        build=lambda folder, tag: {"train_dataset": _streamed(12, tag)},
    ),
    Case(
        "train_and_eval",
        {"eval_strategy": "steps", "eval_steps": 2},
        build=lambda folder, tag: {"train_dataset": _streamed(12, tag), "eval_dataset": _streamed(8, tag, 20)},
    ),
)
def test_streaming(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


# Cuts and padding


# The rows are 35 to 88 tokens long, their prompts 28 to 44.
@cases(
    Case("keep_start", {"max_length": 50}),
    Case("keep_start_drops_rows", {"max_length": 37, "per_device_train_batch_size": 2}),
    Case("keep_end", {"max_length": 50, "truncation_mode": "keep_end"}),
    Case("none", {"max_length": None}),
    Case("pad_to_multiple_of", {"pad_to_multiple_of": 32}),
    Case("cut_and_pad", {"max_length": 50, "pad_to_multiple_of": 32}),
    Case(
        "own_collator",
        build=lambda folder, tag: {
            "data_collator": DataCollatorForPreference(pad_token_id=0, max_length=50, pad_to_multiple_of=8)
        },
    ),
)
def test_length(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


# Evaluation sets, all of a size that the batch of 4 divides


def _eval_sets(tag: str) -> dict:
    return {"a": preference_rows(8, start=20, tag=tag), "b": preference_rows(4, "chat", start=40, tag=tag)}


EVERY_UPDATE = {"eval_strategy": "steps", "eval_steps": 1}


@cases(
    Case("one", EVERY_UPDATE, build=lambda folder, tag: {"eval_dataset": _eval_sets(tag)["a"]}),
    Case("dict", EVERY_UPDATE, build=lambda folder, tag: {"eval_dataset": _eval_sets(tag)}),
    Case("dataset_dict", EVERY_UPDATE, build=lambda folder, tag: {"eval_dataset": DatasetDict(_eval_sets(tag))}),
    Case(
        "on_start",
        {"eval_strategy": "epoch", "eval_on_start": True},
        build=lambda folder, tag: {"eval_dataset": _eval_sets(tag)["a"]},
    ),
    Case("passed_to_evaluate", finish=lambda trainer, tag: trainer.evaluate(_eval_sets(tag)["a"])),
    Case("dict_passed_to_evaluate", finish=lambda trainer, tag: trainer.evaluate(_eval_sets(tag))),
    Case(
        "name_passed_to_evaluate",
        build=lambda folder, tag: {"eval_dataset": _eval_sets(tag)},
        finish=lambda trainer, tag: trainer.evaluate("a"),
    ),
    Case(
        "prefix",
        build=lambda folder, tag: {"eval_dataset": _eval_sets(tag)["a"]},
        finish=lambda trainer, tag: trainer.evaluate(metric_key_prefix="test"),
    ),
)
def test_evaluation(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


def test_compute_metrics(llama_folder, tmp_path):
    # TRL passes logits, an argument that it deprecates. Ours are rewards and ranks, everything else is TRL's.
    seen = {}
    case = Case(
        "compute_metrics",
        EVERY_UPDATE,
        build=lambda folder, tag: {
            "eval_dataset": _eval_sets(tag)["a"],
            "compute_metrics": lambda prediction: seen.update({tag: prediction}) or {"own": 0.5},
        },
    )
    _, ours = train_both(case, llama_folder, tmp_path)

    (prediction,) = (value for tag, value in seen.items() if tag.startswith("ours"))
    last = [entry for entry in ours.history if "eval_loss" in entry][-1]
    assert prediction.predictions.shape == (8, 2)
    np.testing.assert_array_equal(prediction.label_ids, np.tile([0, 1], (8, 1)))
    chosen, rejected = prediction.predictions.T
    assert last["eval_own"] == 0.5
    assert last["eval_rewards/chosen"] == pytest.approx(chosen.mean(), rel=EXACT)
    assert last["eval_rewards/rejected"] == pytest.approx(rejected.mean(), rel=EXACT)
    assert last["eval_rewards/accuracies"] == pytest.approx((chosen > rejected).mean())
    assert last["eval_loss"] == pytest.approx(np.log1p(np.exp(rejected - chosen)).mean(), rel=EXACT)


# Cached log-probabilities of the reference


@cases(
    Case("train", {"precompute_ref_log_probs": True}),
    Case("other_batch_size", {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 3}),
    Case(
        "eval",
        {"precompute_ref_log_probs": True, **EVERY_UPDATE},
        build=lambda folder, tag: {"eval_dataset": _eval_sets(tag)},
    ),
    Case("cut", {"precompute_ref_log_probs": True, "max_length": 50}),
    Case(
        "ref_model",
        {"precompute_ref_log_probs": True},
        build=lambda folder, tag: {"ref_model": tiny_llama(seed=1)},
        finish=lambda trainer, tag: trainer.evaluate(_eval_sets(tag)["a"]),
    ),
    Case("chat", {"precompute_ref_log_probs": True}, rows="chat"),
    Case("accumulated", {"precompute_ref_log_probs": True, "gradient_accumulation_steps": 2}),
)
def test_precompute(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


def test_evaluate_before_training(llama_folder, tmp_path):
    case = Case("before", {"precompute_ref_log_probs": True})
    for which in ("trl", "ours"):
        metrics = make_trainer(which, case, llama_folder, tmp_path).evaluate(preference_rows(8, start=20, tag=which))
        assert metrics["eval_loss"] == pytest.approx(np.log(2), abs=EXACT)
