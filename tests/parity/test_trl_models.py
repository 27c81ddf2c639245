"""Every kind of model, adapter, reference and training option that `trl.DPOTrainer` takes, through both trainers."""

import peft
import pytest
import torch
from closeness import same
from harness import SAME_KERNELS, Case, assert_same_refusal, cases, train_both
from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig, TaskType
from tiny import lora_config, preference_rows, tiny_llama, tiny_processor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback


pytestmark = pytest.mark.usefixtures("float64")


# Architectures


@cases(
    *(Case(name, model=name) for name in ("gpt2", "qwen2", "qwen3", "mistral", "gemma2")),
    Case("eager", {"model_init_kwargs": {"attn_implementation": "eager"}}),
    *(Case(f"moe_aux_{coef}", {"router_aux_loss_coef": coef}, model="moe") for coef in (None, 0.0, 0.1)),
)
def test_architecture(case, tiny_folder, tmp_path):
    theirs, _ = train_both(case, tiny_folder(case.model), tmp_path)
    has_aux_loss = case.model == "moe" and case.config["router_aux_loss_coef"] != 0.0
    assert ("aux_loss" in theirs.history[0]) == has_aux_loss


@cases(
    Case("images", model="vlm", rows="vision"),
    Case("mixed", model="vlm", rows="mixed_vision"),
    Case("gemma3", model="gemma3_vlm", rows="vision"),
    Case("images_cut", {"max_length": 60}, model="vlm", rows="vision"),
    Case("images_ipo", {"loss_type": "ipo"}, model="vlm", rows="vision"),
    Case(
        "images_eval",
        {"eval_strategy": "epoch"},
        model="vlm",
        rows="vision",
        build=lambda folder, tag: {"eval_dataset": preference_rows(8, "vision", start=20, tag=tag)},
    ),
    Case("images_accumulated", {"gradient_accumulation_steps": 2}, model="vlm", rows="vision"),
    Case("images_lora", model="vlm", rows="vision", build=lambda folder, tag: {"peft_config": lora_config()}),
    Case(
        "processing_class",
        model="vlm",
        rows="vision",
        build=lambda folder, tag: {"processing_class": tiny_processor()},
    ),
    Case("text_only", model="vlm", rows="chat"),
)
def test_vision_language_model(case, tiny_folder, tmp_path):
    train_both(case, tiny_folder(case.model), tmp_path)


# Adapters


def _load(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _peft_model(folder: str, trained: bool) -> peft.PeftModel:
    torch.manual_seed(1)
    model = peft.get_peft_model(_load(folder), lora_config())
    if trained:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def _with_peft(config: dict | None = None, **options) -> dict:
    return {"config": config or {}, "build": lambda folder, tag: {"peft_config": lora_config(**options)}}


@cases(
    Case("lora", **_with_peft()),
    Case("lora_checkpointing", **_with_peft({"gradient_checkpointing": True})),
    Case("lora_dropout", **_with_peft({"disable_dropout": False}, lora_dropout=0.2)),
    Case("lora_cached", **_with_peft({"precompute_ref_log_probs": True})),
    Case("dora", **_with_peft(use_dora=True)),
    Case(
        "ia3",
        build=lambda folder, tag: {
            "peft_config": IA3Config(
                target_modules=["k_proj", "v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"
            )
        },
    ),
    Case("lora_accumulated", **_with_peft({"gradient_accumulation_steps": 2})),
    Case(
        "lora_ref_model",
        build=lambda folder, tag: {"peft_config": lora_config(), "ref_model": tiny_llama(seed=1)},
    ),
    Case("lora_embeddings", **_with_peft(modules_to_save=["embed_tokens"])),
    Case(
        "lora_evaluate_cached",
        {"precompute_ref_log_probs": True},
        build=lambda folder, tag: {"peft_config": lora_config()},
        finish=lambda trainer, tag: trainer.evaluate(preference_rows(8, start=20, tag=tag)),
    ),
)
def test_lora(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


@cases(
    *(
        Case(
            f"{adapter}-{reference}",
            {"precompute_ref_log_probs": reference == "cached"},
            build=lambda folder, tag, trained=adapter == "trained": {"model": _peft_model(folder, trained)},
        )
        for adapter in ("fresh", "trained")
        for reference in ("live", "cached")
    ),
    Case(
        "trained-ref_model",
        build=lambda folder, tag: {"model": _peft_model(folder, True), "ref_model": _load(folder)},
    ),
)
def test_peft_model(case, llama_folder, tmp_path):
    theirs, _ = train_both(case, llama_folder, tmp_path)
    # The reference is the adapter as it was passed, except where `ref_model` says otherwise
    starts_at_reference = "ref_model" not in case.id
    assert (theirs.history[0]["rewards/margins"] == same(0)) == starts_at_reference


@cases(
    *(
        Case(
            f"{kind.__name__}-{reference}",
            {"precompute_ref_log_probs": reference == "cached"},
            build=lambda folder, tag, kind=kind: {
                "peft_config": kind(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
            },
        )
        for kind in (PromptTuningConfig, PrefixTuningConfig)
        for reference in ("live", "cached")
    )
)
def test_prompt_learning(case, llama_folder, tmp_path):
    theirs, _ = train_both(case, llama_folder, tmp_path)
    assert theirs.history[0]["rewards/chosen"] != 0  # virtual tokens change the policy before the first update


@pytest.mark.float32
@pytest.mark.parametrize("double", [False, True], ids=["nf4", "double"])
def test_4bit_lora(double, llama_folder, tmp_path):
    pytest.importorskip("bitsandbytes")

    def build(folder, tag):
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
        )
        return {"quantization_config": quantization, "peft_config": lora_config()}

    train_both(Case("4bit", build=build, tolerance=SAME_KERNELS), llama_folder, tmp_path)


# References


@cases(
    Case("instance", build=lambda folder, tag: {"model": _load(folder)}),
    Case("ref_model", build=lambda folder, tag: {"ref_model": tiny_llama(seed=1)}),
    Case("two_instances", build=lambda folder, tag: {"model": _load(folder), "ref_model": _load(folder)}),
    Case(
        "ref_model_in_bf16",
        build=lambda folder, tag: {"ref_model": tiny_llama(seed=1).to(torch.bfloat16)},
    ),
)
def test_reference(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


@cases(
    *(
        Case(f"every_{steps}", {"sync_ref_model": True, "ref_model_sync_steps": steps, "ref_model_mixup_alpha": 0.6})
        for steps in (1, 2)
    ),
    Case(
        "replaced_accumulated",
        {
            "sync_ref_model": True,
            "ref_model_sync_steps": 1,
            "ref_model_mixup_alpha": 1.0,
            "gradient_accumulation_steps": 2,
        },
    ),
)
def test_sync_ref_model(case, llama_folder, tmp_path):
    theirs, ours = train_both(case, llama_folder, tmp_path)
    for ref_name, ref_weight in theirs.trainer.ref_model.state_dict().items():
        torch.testing.assert_close(ours.trainer.ref_model.state_dict()[ref_name], ref_weight)


# Options of the training


class _KeepsLosses(TrainerCallback):
    def __init__(self):
        self.losses = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses.append(logs.get("loss"))


def _optimizers(folder: str, tag: str) -> dict:
    model = _load(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    return {"model": model, "optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5))}


@cases(
    Case("defaults", {"gradient_checkpointing": True}),
    Case("reentrant", {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}),
    Case("accumulation", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    Case("accumulation_of_3", {"gradient_accumulation_steps": 3, "max_steps": -1, "num_train_epochs": 2}),
    Case("sgd", {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 1}),
    Case("rmsprop", {"optim": "rmsprop", "weight_decay": 0.1}),
    Case("no_clipping", {"max_grad_norm": 0.0}),
    Case("other_seed", {"seed": 7, "data_seed": 3}),
    Case("neftune", {"neftune_noise_alpha": 5.0}),
    Case("own_optimizers", build=_optimizers),
    Case("callbacks", build=lambda folder, tag: {"callbacks": [_KeepsLosses()]}),
    Case("logging_every_epoch", {"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}),
    Case("logging_every_3", {"logging_steps": 3, "max_steps": 6}),
)
def test_options(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


def test_activation_offloading(llama_folder, tmp_path):
    case = Case("offloading", {"activation_offloading": True})
    if torch.accelerator.is_available():
        train_both(case, llama_folder, tmp_path)
    else:  # it looks for the accelerator to offload from
        error, words = (RuntimeError, "CUDA") if torch.version.cuda else (AttributeError, "NoneType")
        assert_same_refusal(case, error, words, llama_folder, tmp_path)


def test_dropout(gpt2_folder, tmp_path):
    theirs, _ = train_both(Case("dropout", {"disable_dropout": False}), gpt2_folder, tmp_path)
    assert theirs.history[0]["rewards/margins"] != 0  # it was on


@pytest.mark.float32
@cases(
    Case("autocast", {"bf16": True}, tolerance=SAME_KERNELS),
    Case(
        "autocast_lora",
        {"bf16": True},
        build=lambda folder, tag: {"peft_config": lora_config()},
        tolerance=SAME_KERNELS,
    ),
    Case("weights", {"model_init_kwargs": {"dtype": "bfloat16"}}, tolerance=SAME_KERNELS),
)
def test_bf16(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)
