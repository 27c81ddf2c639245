"""Where `trl.DPOTrainer` refuses a call, ours does: with the same type and text, or earlier, by option and value."""

import re
from typing import NamedTuple

import peft
import pytest
from harness import Case, assert_same_refusal, make_trainer, train
from tiny import lora_config, preference_rows, tiny_processor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


class Refusal(NamedTuple):
    case: Case
    error: type[Exception]
    match: str  # in TRL's text


def refusals(*table: Refusal) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("refusal", [pytest.param(refusal, id=refusal.case.id) for refusal in table])


def _model_as_its_own_reference(folder, tag):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {"model": model, "ref_model": model}


def _streamed(tag):
    return preference_rows(12, tag=tag).to_iterable_dataset()


@refusals(
    Refusal(Case("none", build=lambda folder, tag: {"train_dataset": None}), ValueError, "is required"),
    Refusal(
        Case("list", build=lambda folder, tag: {"train_dataset": list(preference_rows(4))}), TypeError, "got `list`"
    ),
    Refusal(
        Case("dict", build=lambda folder, tag: {"train_dataset": {"train": preference_rows(4)}}),
        TypeError,
        "got `dict`",
    ),
    Refusal(
        Case(
            "streaming_without_max_steps",
            {"max_steps": -1},
            build=lambda folder, tag: {"train_dataset": _streamed(tag)},
        ),
        ValueError,
        "max_steps",
    ),
    Refusal(Case("images_for_a_text_model", rows="vision"), ValueError, "vision-related"),
)
def test_train_dataset(refusal, llama_folder, tmp_path):
    assert_same_refusal(*refusal, llama_folder, tmp_path)


PRECOMPUTE = {"precompute_ref_log_probs": True}


@refusals(
    Refusal(
        Case("streaming", PRECOMPUTE, build=lambda folder, tag: {"train_dataset": _streamed(tag)}),
        ValueError,
        "not supported with IterableDataset",
    ),
    Refusal(
        Case("streaming_eval", PRECOMPUTE, build=lambda folder, tag: {"eval_dataset": _streamed(tag)}),
        ValueError,
        "not supported with IterableDataset",
    ),
    Refusal(
        Case("evaluate_later", PRECOMPUTE, finish=lambda trainer, tag: trainer.evaluate(preference_rows(4, tag=tag))),
        ValueError,
        "after training has started",
    ),
    Refusal(
        Case(
            "evaluate_dict_later",
            PRECOMPUTE,
            finish=lambda trainer, tag: trainer.evaluate({"a": preference_rows(4, tag=tag)}),
        ),
        ValueError,
        "after training has started",
    ),
    Refusal(Case("sync_ref_model", {**PRECOMPUTE, "sync_ref_model": True}), ValueError, "sync_ref_model=True"),
)
def test_precompute(refusal, llama_folder, tmp_path):
    assert_same_refusal(*refusal, llama_folder, tmp_path)


@refusals(
    Refusal(Case("precompute", PRECOMPUTE), ValueError, "not supported for vision datasets"),
    Refusal(Case("keep_end", {"truncation_mode": "keep_end"}), ValueError, "keep_end"),
    Refusal(Case("pad_to_multiple_of", {"pad_to_multiple_of": 8}), NotImplementedError, "vision-language"),
)
def test_vision(refusal, tiny_folder, tmp_path):
    case = refusal.case
    vision = Case(case.id, case.config, rows="vision")
    assert_same_refusal(vision, refusal.error, refusal.match, tiny_folder("vlm"), tmp_path)


def test_cut_image(tiny_folder, tmp_path):
    """TRL notices it at the first update; ours before the trainer is built, with the row."""
    case = Case("cut_image", {"max_length": 4}, rows="vision")
    with pytest.raises(ValueError, match="image placeholder tokens"):
        train("trl", case, tiny_folder("vlm"), tmp_path)
    with pytest.raises(ValueError, match="`max_length=4`.*row 0 of the train dataset"):
        make_trainer("ours", case, tiny_folder("vlm"), tmp_path)


@refusals(
    Refusal(Case("model_as_reference", build=_model_as_its_own_reference), ValueError, "cannot be the same object"),
    Refusal(
        Case("sync_with_peft", {"sync_ref_model": True}, build=lambda folder, tag: {"peft_config": lora_config()}),
        NotImplementedError,
        "sync_ref_model=True",
    ),
    Refusal(
        Case("lm_head_adapter", build=lambda folder, tag: {"peft_config": lora_config(target_modules=["lm_head"])}),
        ValueError,
        "`lm_head` is not supported",
    ),
    Refusal(Case("dict_as_peft_config", build=lambda folder, tag: {"peft_config": {"r": 2}}), TypeError, "got dict"),
    Refusal(
        Case(
            "peft_model_and_config",
            build=lambda folder, tag: {
                "model": peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora_config()),
                "peft_config": lora_config(),
            },
        ),
        ValueError,
        "`PeftModel` instance together with a `peft_config`",
    ),
    Refusal(
        Case(
            "quantized_instance",
            build=lambda folder, tag: {
                "model": AutoModelForCausalLM.from_pretrained(folder),
                "quantization_config": BitsAndBytesConfig(load_in_4bit=True),
            },
        ),
        ValueError,
        "already instantiated",
    ),
    Refusal(
        Case(
            "quantized_twice",
            {"model_init_kwargs": {"quantization_config": {"load_in_4bit": True}}},
            build=lambda folder, tag: {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)},
        ),
        ValueError,
        "in only one place",
    ),
    Refusal(
        Case("image_processor", build=lambda folder, tag: {"processing_class": tiny_processor().image_processor}),
        TypeError,
        "`processing_class` must be",
    ),
    Refusal(Case("pad_token", {"pad_token": "<nowhere>"}), ValueError, "<nowhere>"),
    Refusal(Case("dense_router", {"router_aux_loss_coef": 0.1}), ValueError, "not a Mixture-of-Experts model"),
)
def test_model(refusal, llama_folder, tmp_path):
    assert_same_refusal(*refusal, llama_folder, tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "theirs", "ours"),
    [
        pytest.param(
            {"loss_type": "exo_pair"},
            ValueError,
            "greater than 0.0",
            "`loss_type=['exo_pair']` needs `label_smoothing` above 0",
            id="exo_pair",
        ),
        pytest.param(
            {"loss_type": ["sigmoid", "exo_pair"]},
            ValueError,
            "greater than 0.0",
            "`loss_type=['sigmoid', 'exo_pair']` needs `label_smoothing` above 0",
            id="exo_pair_in_mixture",
        ),
        pytest.param(
            {"loss_type": "bco_pair", "f_divergence_type": "forward_kl"},
            ValueError,
            "only supported",
            "`f_divergence_type='forward_kl'` is not defined for `loss_type=['bco_pair']`",
            id="f_divergence",
        ),
        pytest.param(
            {"f_divergence_type": "chi2"},
            ValueError,
            "chi2",
            "`f_divergence_type='chi2'` does not exist",
            id="unknown_f_divergence",
        ),
        pytest.param(
            {"loss_type": "aot", "use_weighting": True},
            NotImplementedError,
            "WPO",
            "`use_weighting=True` is not defined for `loss_type=['aot']`",
            id="wpo_aot",
        ),
        pytest.param(
            {"loss_type": "sigmoidal"},
            ValueError,
            "Unknown loss type: sigmoidal",
            "`loss_type='sigmoidal'` does not exist. Did you mean 'sigmoid'?",
            id="unknown",
        ),
    ],
)
def test_objective(options, error, theirs, ours, llama_folder, tmp_path):
    """TRL notices some of these at the first update; ours all before the trainer is built."""
    case = Case("objective", options)
    with pytest.raises(error, match=re.escape(theirs)):
        train("trl", case, llama_folder, tmp_path)
    with pytest.raises(ValueError, match=re.escape(ours)):
        make_trainer("ours", case, llama_folder, tmp_path)
