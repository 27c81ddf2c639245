"""Every option of every config is refused by name when its value is not of its kind, and before anything is loaded."""

import copy
import inspect
import math
import pickle
import random
import re
from dataclasses import fields

import pytest
from trl import DPOConfig, DPOTrainer

from trl_dpo_ext import DPOPaperConfig, PreferredFTConfig, RankingDPOConfig, UnlikelihoodConfig
from trl_dpo_ext.trainers.options.option_checks import VALUES


CONFIGS = (DPOPaperConfig, RankingDPOConfig, UnlikelihoodConfig, PreferredFTConfig)
NAMES = [field.name for field in fields(DPOPaperConfig) if field.init and field.name != "output_dir"]
NUMBERS = [
    field.name
    for field in fields(DPOPaperConfig)
    if re.search(r"\b(int|float)\b", str(field.type)) and field.name not in ("loss_weights", "eval_on_start")
]


def refusal(**options) -> str:
    """The message by which a config refuses an option."""
    with pytest.raises((ValueError, ImportError)) as refused:
        DPOPaperConfig("out", **{"use_cpu": True} | options)
    return str(refused.value)


def test_losses_are_those_of_trl():
    listed = re.search(r"Unknown loss type: .*?\[(.*?)\]", inspect.getsource(DPOTrainer._compute_loss), re.DOTALL)
    assert set(re.findall(r"'(\w+)'", listed[1])) == set(VALUES["loss_type"])


@pytest.mark.parametrize("loss", VALUES["loss_type"])
def test_every_loss_of_trl_is_taken(loss):
    smoothing = 1e-3 if loss == "exo_pair" else 0.0
    assert DPOPaperConfig("out", loss_type=loss, label_smoothing=smoothing, use_cpu=True).loss_type == [loss]


@pytest.mark.parametrize("config_class", [DPOPaperConfig, DPOConfig], ids=["ours", "trl"])
@pytest.mark.parametrize("loss", ["simpo", ["sigmoid", "simpo"]])
def test_a_loss_that_does_not_exist(config_class, loss):
    with pytest.raises(ValueError, match=r"`loss_type='simpo'` does not exist. Choose one of 'sigmoid', 'hinge'"):
        args = config_class("out", loss_type=loss, use_cpu=True)
        DPOPaperConfig.from_trl(args)  # TRL's own says so at the first update


def test_fsdp_is_taken_as_transformers_documents_it():
    # Its annotation is still the text of older versions
    args = DPOPaperConfig("out", fsdp=True, fsdp_config={"version": 2}, use_cpu=True)
    assert args.fsdp is True


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e300, 10**30, 10**5000, -(10**30), "zzz"], ids=range(8)
)
def test_numbers(name, value):
    assert f"`{name}=" in refusal(**{name: value})


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "trackio_static_space_id"])
def test_booleans_are_no_numbers(name):
    assert refusal(**{name: True}).startswith(f"`{name}=True` is not ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train_epochs": -1.0}, "`num_train_epochs=-1.0` must be a finite number above 0."),
        ({"beta": 1e300}, "`beta=1e+300` must be at most 100000000."),
        ({"learning_rate": 0.0}, "`learning_rate=0.0` must be a finite number above 0."),
        ({"global_batch_size": 10**30}, "`global_batch_size=<an integer of 100 bits>` must be at most 2147483647."),
        ({"max_steps": 4.5}, "`max_steps=4.5` is not a whole number."),
        ({"save_total_limit": 0}, "`save_total_limit=0` must be at least 1."),
        ({"fp16": "false"}, "`fp16='false'` is not true or false."),
        ({"weight_decay": None}, "`weight_decay=None` is not a number."),
        ({"run_name": 5}, "`run_name=5` is not text. Write it in quotes."),
        ({"loss_weights": 1.0}, "`loss_weights=1.0` is not a list of a number."),
        ({"loss_weights": [None]}, "`loss_weights=None` is not a number."),
        ({"loss_type": []}, "`loss_type=[]` with `loss_weights=None` trains on nothing."),
        ({"f_divergence_type": "kl"}, "`f_divergence_type='kl'` does not exist. Choose one of 'reverse_kl', "),
        ({"train_sampling_strategy": "randm"}, "`train_sampling_strategy='randm'` does not exist. Choose one of "),
        ({"log_level": "loud"}, "`log_level='loud'` does not exist. Choose one of 'detail', "),
        (
            {"eval_strategy": "stepss"},
            "`eval_strategy='stepss'` does not exist. Choose one of 'no', 'steps', ",
        ),
        ({"pad_to_multiple_of": "x"}, "`pad_to_multiple_of='x'` does not exist. Choose one of 'auto', "),
        ({"pad_to_multiple_of": "0"}, "`pad_to_multiple_of=0` must be at least 1."),
        ({"torch_compile_mode": "fast"}, "`torch_compile_mode='fast'` does not exist. Choose one of 'default', "),
        ({"accelerator_config": "x.json"}, "`accelerator_config`: there is no file 'x.json'."),
        ({"accelerator_config": {"a": 1}}, "`accelerator_config` has 'a', which does not exist."),
        ({"accelerator_config": '{"a": 1}'}, "`accelerator_config` has 'a', which does not exist."),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrent": False}},
            "`gradient_checkpointing_kwargs` has 'use_reentrent', which does not exist. Did you mean `use_",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 1}},
            "`lr_scheduler_kwargs` has 'num_cycle', which does not exist. Did you mean `num_cycles`?",
        ),
        ({"optim_args": "momentum"}, "`optim_args='momentum'`: 'momentum' is not `name=value`."),
        ({"optim_args": "alpha=1,,eps=2"}, "`optim_args='alpha=1,,eps=2'`: '' is not `name=value`"),
        ({"optim_args": "alpha=1=2"}, "`optim_args='alpha=1=2'`: 'alpha=1=2' is not `name=value`"),
        ({"optim_args": "alpha=0.9 eps=1"}, "`optim_args='alpha=0.9 eps=1'`: 'alpha=0.9eps=1' is not `name=value`"),
        ({"model_init_kwargs": "{"}, "`model_init_kwargs` is not a JSON mapping: "),
        ({"model_init_kwargs": "bf16"}, "`model_init_kwargs='bf16'` is not a mapping. Write it as YAML, or as JSON"),
        ({"report_to": "wandbb"}, "`report_to='wandbb'` does not exist. Did you mean 'wandb'?"),
        ({"report_to": ["swanlab"]}, "`report_to='swanlab'` needs a package that is not installed"),
        ({"optim": "galore_adamw"}, "`optim='galore_adamw'` needs galore-torch, which is not installed."),
        (
            {"f_divergence_type": "forward_kl", "loss_type": "nca_pair"},
            "`f_divergence_type='forward_kl'` is not defined for `loss_type=['nca_pair']`.",
        ),
        ({"use_weighting": True, "loss_type": "aot"}, "`use_weighting=True` is not defined for `loss_type=['aot']`"),
        ({"loss_type": "exo_pair"}, "`loss_type=['exo_pair']` needs `label_smoothing` above 0."),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_refused(options, message):
    assert refusal(**options).startswith(message)


def test_a_batch_size_in_the_billions_is_told_its_neighbours_at_once():
    assert re.search(
        r"`global_batch_size=2147483646` is not a multiple of 8 .* one of 1, 2, 3, 6, 7, 9, 11, 14, 18, 21, 22, 31;",
        refusal(global_batch_size=2**31 - 2, per_device_train_batch_size=8),
    )


def test_whole_floats_become_integers():
    args = DPOPaperConfig("out", max_steps=10.0, seed=7, use_cpu=1)
    assert (args.max_steps, type(args.max_steps)) == (10, int)


def test_no_value_ends_in_anything_but_a_message_that_names_its_option():
    draw = random.Random(13)
    pool = [-3, 0, 2, 0.5, 1e300, 10**400, math.nan, True, None, "zzz", "", "{", "a\0", [], [1], [[1]], {}, {"a": 1}]
    pool += [object(), 1j, {1}, (1,), b"x"]
    for _ in range(300):
        name, value, config_class = draw.choice(NAMES), draw.choice(pool), draw.choice(CONFIGS)
        try:
            config_class("out", **{"use_cpu": True, name: value})
        except (ValueError, ImportError) as error:
            assert name in str(error) or name == "deepspeed", (name, value, error)


TOKEN = "hf_" + "a1" * 12
SECRETS = {
    "hub_token": TOKEN,
    "model_init_kwargs": {"token": "a-plain-word", "revision": "main"},
    "run_name": f"run of {TOKEN}",
}


def test_secrets_are_neither_printed_nor_pickled_and_stay_in_memory():
    args = DPOPaperConfig("out", **SECRETS, pad_token="<pad>", use_cpu=True)
    for text in (str(args), repr(args), args.to_json_string(), str(args.to_sanitized_dict())):
        assert TOKEN not in text and "a-plain-word" not in text
        assert "<secret>" in text
    assert "revision" in repr(args)
    bytes_of = pickle.dumps(args)
    assert TOKEN.encode() not in bytes_of and b"a-plain-word" not in bytes_of
    loaded = pickle.loads(bytes_of)
    assert (loaded.hub_token, loaded.model_init_kwargs["token"], loaded.pad_token) == (None, None, "<pad>")
    for same in (args, copy.copy(args), copy.deepcopy(args)):
        assert (same.hub_token, same.model_init_kwargs["token"]) == (TOKEN, "a-plain-word")
