"""Invariant 6: what changes only memory, speed or bookkeeping changes no number."""

import shutil

import pytest
from datasets import load_dataset
from integration.conftest import CONTINUOUS, assert_same_run, updates
from tiny import lora_config, preference_rows, tiny_llama, tiny_tokenizer

from trl_dpo_ext.compat import RESUMES_ADAPTER_COPY


pytestmark = pytest.mark.usefixtures("float64")


# 12 rows: batches of 8 leave one of 4, so the last update is short in every split
SPLITS = {"8": 8, "2 x 4": 4, "4 x 2": 2, "8 x 1": 1}


@pytest.fixture
def whole_batches(trained, llama_folder):
    return trained(llama_folder, {"per_device_train_batch_size": 8, "global_batch_size": 8, "num_train_epochs": 2})


@pytest.mark.parametrize("split", list(SPLITS)[1:])
def test_accumulation(trained, llama_folder, whole_batches, split):
    options = {"per_device_train_batch_size": SPLITS[split], "global_batch_size": 8, "num_train_epochs": 2}
    assert_same_run(trained(llama_folder, options), whole_batches)


def test_a_short_last_micro_batch_weighs_by_its_rows(trained, llama_folder):
    # 10 rows: 4 + 4 + 2 in one update, against all ten at once
    rows = preference_rows(10)
    options = {"num_train_epochs": 3, "max_steps": 3}
    one = trained(
        llama_folder,
        options | {"per_device_train_batch_size": 10, "global_batch_size": 10},
        train_dataset=rows,
    )
    accumulated = trained(
        llama_folder,
        options | {"per_device_train_batch_size": 4, "global_batch_size": 12},
        train_dataset=rows,
    )
    assert_same_run(accumulated, one)


@pytest.mark.parametrize("loss_type", ["hinge", "ipo"])
def test_accumulation_of_a_loss_of_trl(trained, llama_folder, loss_type):
    options = {"loss_type": loss_type, "global_batch_size": 8, "num_train_epochs": 2}
    one = trained(llama_folder, options | {"per_device_train_batch_size": 8})
    assert_same_run(trained(llama_folder, options | {"per_device_train_batch_size": 2}), one)


def test_gradient_checkpointing(trained, llama_folder):
    off = trained(llama_folder)
    on = trained(llama_folder, {"gradient_checkpointing": True})
    assert_same_run(on, off, rel=0.0)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_cached_reference(trained, llama_folder, tmp_path, adapter):
    kwargs = {"peft_config": lora_config()} if adapter else {}
    live = trained(llama_folder, **kwargs)
    options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(tmp_path / "cache")}
    cached = trained(llama_folder, options, **kwargs)
    again = trained(llama_folder, options, **kwargs)  # read from the file
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert_same_run(cached, live, names=CONTINUOUS)
    assert_same_run(again, cached, rel=0.0)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_resumed_run_is_the_straight_run(trained, config, llama_folder, adapter):
    kwargs = {"peft_config": lora_config()} if adapter else {}
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "train_sampling_strategy": "random"}
    straight = trained(llama_folder, options, **kwargs)
    resumed = trained(llama_folder, options, resume=f"{straight.args.output_dir}/checkpoint-2", **kwargs)
    assert_same_run(resumed, straight, rel=0.0)
    assert updates(resumed)[-1]["num_tokens"] == updates(straight)[-1]["num_tokens"]


@pytest.mark.skipif(not RESUMES_ADAPTER_COPY, reason="transformers < 5.23 restores only the frozen copy; refused")
def test_resuming_a_trained_adapter_keeps_its_reference(trained, llama_folder, tmp_path):
    from peft import PeftModel, get_peft_model

    lora = lora_config(init_lora_weights=False)
    get_peft_model(tiny_llama(), lora).save_pretrained(tmp_path / "adapter")

    def policy():
        return PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter", is_trainable=True)

    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    straight = trained(policy(), options, processing_class=tiny_tokenizer())
    checkpoint = f"{straight.args.output_dir}/checkpoint-2"
    resumed = trained(policy(), options, resume=checkpoint, processing_class=tiny_tokenizer())
    assert updates(resumed)[-1]["loss"] == updates(straight)[-1]["loss"]


def test_tokens_are_counted_up_to_a_checkpoint_between_two_logs(trained, llama_folder):
    options = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "max_steps": 3}
    straight = trained(llama_folder, options)
    resumed = trained(llama_folder, options, resume=f"{straight.args.output_dir}/checkpoint-2")
    every_update = trained(llama_folder, {"max_steps": 3})
    assert updates(straight)[-1]["num_tokens"] == updates(every_update)[-1]["num_tokens"]
    assert updates(resumed)[-1]["num_tokens"] == updates(straight)[-1]["num_tokens"]


def test_resuming_against_another_reference_is_refused(trained, llama_folder, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    straight = trained(llama_folder, options)
    checkpoint = f"{straight.args.output_dir}/checkpoint-2"
    moved = shutil.copytree(checkpoint, tmp_path / "moved")  # within `output_dir` it would be written over
    with pytest.raises(ValueError, match="another reference policy"):
        trained(str(moved), options, resume=checkpoint)


def test_a_stream_gives_the_numbers_of_its_rows(trained, llama_folder, tmp_path):
    preference_rows(12).to_json(tmp_path / "rows.jsonl")
    stream = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True)
    streamed = trained(llama_folder, {"max_steps": 3}, train_dataset=stream)
    assert_same_run(streamed, trained(llama_folder, {"max_steps": 3}), rel=0.0)


def test_rows_that_do_not_fill_an_update_at_the_end_of_a_stream(trained, llama_folder, tmp_path):
    # 10 rows, updates of 4: two updates an epoch, the last two rows of each epoch are left out
    preference_rows(10).to_json(tmp_path / "rows.jsonl")
    stream = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True)
    options = {"max_steps": 4, "per_device_train_batch_size": 2}
    streamed = trained(llama_folder, options, train_dataset=stream)
    rows = trained(llama_folder, options | {"num_train_epochs": 2}, train_dataset=preference_rows(8))
    assert_same_run(streamed, rows, rel=0.0)
    assert streamed.state.global_step == 4
