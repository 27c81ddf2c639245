"""Presets, batch arithmetic, the command line, plain `trl.DPOConfig`s, copies, and the paper's warm-up."""

import copy
import dataclasses
import pickle
import re

import pytest
import torch
import trl
from accelerate.parallelism_config import ParallelismConfig
from integration.conftest import TINY
from tiny import preference_rows, tiny_llama, tiny_tokenizer
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR
from transformers.utils import is_torch_tf32_available
from unit.configs import MACHINE, config, refused

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.trainers.presets import PRESETS, preset_values


PAPER = {
    "beta": 0.1,
    "global_batch_size": 64,
    "gradient_accumulation_steps": 8,  # 64 = 8 x 8 x 1
    "optim": "rmsprop",
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 150,
    "max_grad_norm": 10.0,
    "num_train_epochs": 1.0,
    "max_length": 512,
    "max_prompt_length": 256,
    "tokenization": "separate",
    "prompt_truncation_mode": "keep_end",
    "bf16": False,
    "fp16": False,
    "tf32": True if is_torch_tf32_available() else None,
}


def values(args: trl.DPOConfig, names) -> dict:
    return {name: getattr(args, name) for name in names}


class TestPresets:
    def test_paper_is_the_default(self):
        assert config().preset == "paper"
        assert values(config(), PAPER) == PAPER

    def test_paper_tldr(self):
        differs = {"beta": 0.5, "prompt_truncation_mode": "keep_start"}
        assert values(config(preset="paper_tldr"), PAPER) == PAPER | differs

    def test_authors_code(self):
        assert values(config(preset="authors_code"), PAPER) == PAPER | {"learning_rate": 5e-7}

    def test_trl_is_trl_s_config_field_by_field(self):
        theirs = trl.DPOConfig(**MACHINE)
        # TRL's `padding_free` is switched off at present; ours is on where that is exact
        names = [field.name for field in dataclasses.fields(trl.DPOConfig) if field.name != "padding_free"]
        assert len(names) > 100
        # Compared by text where the objects have no equality
        assert {name: str(getattr(config(preset="trl"), name)) for name in names} == {
            name: str(getattr(theirs, name)) for name in names
        }

    def test_trl_has_trl_s_tokens_and_no_cut_of_ours(self):
        args = config(preset="trl")
        assert values(args, ("tokenization", "max_prompt_length", "prompt_truncation_mode", "global_batch_size")) == {
            "tokenization": "joint",
            "max_prompt_length": None,
            "prompt_truncation_mode": None,
            "global_batch_size": 8,
        }
        assert not args.uses_paper_schedule

    @pytest.mark.parametrize("preset", PRESETS)
    def test_every_preset_sets_the_same_options(self, preset):
        assert preset_values(preset).keys() == preset_values("paper").keys()

    def test_what_no_preset_sets_is_trl_s(self):
        theirs, ours = trl.DPOConfig(**MACHINE), config()
        for field in dataclasses.fields(trl.DPOConfig):
            if field.name not in PAPER and field.name != "padding_free":
                assert str(getattr(ours, field.name)) == str(getattr(theirs, field.name)), field.name

    @pytest.mark.parametrize("preset", ["papr", None, ""])
    def test_unknown(self, preset):
        with pytest.raises(
            ValueError, match=rf"`preset={preset!r}` does not exist. Choose one of 'paper', 'paper_tldr'"
        ):
            config(preset=preset)
        with pytest.raises(ValueError, match="does not exist"):
            preset_values(preset)


EXPLICIT = {
    "beta": 0.25,
    "learning_rate": 3e-4,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,  # falsy, and still a choice
    "max_grad_norm": 0.0,
    "num_train_epochs": 2.5,
    "max_length": 100,
    "bf16": True,
    "tf32": False,
    "gradient_accumulation_steps": 3,
    "global_batch_size": 16,
    "tokenization": "separate",
}


class TestExplicitValuesWin:
    @pytest.mark.parametrize("preset", PRESETS)
    @pytest.mark.parametrize("name", EXPLICIT)
    def test_over_every_preset(self, preset, name):
        args = config(preset=preset, **{name: EXPLICIT[name]})
        assert getattr(args, name) == EXPLICIT[name]

    @pytest.mark.parametrize("preset", PRESETS)
    def test_no_cut(self, preset):
        args = config(preset=preset, max_length=None)
        assert args.max_length is None and args.max_prompt_length is None

    def test_max_length_minus_one_is_the_preset_s(self):
        assert config(max_length=-1).max_length == 512
        assert config(max_length=-1, preset="trl").max_length == 1024

    def test_half_of_max_length_is_the_prompt_s(self):
        assert config(max_length=101).max_prompt_length == 50
        assert config(max_length=2).max_prompt_length == 1
        assert config(max_length=101, max_prompt_length=100).max_prompt_length == 100

    def test_fp16_switches_the_preset_s_bf16_off(self):
        assert values(config(fp16=True), ("fp16", "bf16")) == {"fp16": True, "bf16": False}

    def test_joint_tokens_under_a_paper_preset(self):
        args = config(tokenization="joint")
        assert values(args, ("tokenization", "prompt_truncation_mode", "max_prompt_length", "max_length")) == {
            "tokenization": "joint",
            "prompt_truncation_mode": None,
            "max_prompt_length": None,
            "max_length": 512,
        }
        assert config(tokenization="joint", truncation_mode="keep_end").truncation_mode == "keep_end"

    def test_separate_tokens_under_trl_s_preset(self):
        args = config(preset="trl", tokenization="separate")
        assert (args.prompt_truncation_mode, args.max_prompt_length) == ("keep_end", 512)


class TestBatch:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, (64, 8, 8)),
            ({"per_device_train_batch_size": 16}, (64, 16, 4)),
            ({"per_device_train_batch_size": 64}, (64, 64, 1)),
            ({"global_batch_size": 24}, (24, 8, 3)),
            ({"gradient_accumulation_steps": 3}, (24, 8, 3)),
            ({"gradient_accumulation_steps": 8}, (64, 8, 8)),
            ({"gradient_accumulation_steps": 3, "global_batch_size": 24}, (24, 8, 3)),
            ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 7}, (14, 7, 2)),
            ({"auto_find_batch_size": True, "gradient_accumulation_steps": 2}, (None, 8, 2)),
            ({"auto_find_batch_size": True, "preset": "trl"}, (None, 8, 1)),
            ({"preset": "trl", "global_batch_size": 32}, (32, 8, 4)),
        ],
    )
    def test_arithmetic(self, options, expected):
        args = config(**options)
        found = (args.global_batch_size, args.per_device_train_batch_size, args.gradient_accumulation_steps)
        assert found == expected

    def test_not_divisible_names_the_working_values(self):
        with pytest.raises(
            ValueError, match=r"`global_batch_size=64` is not a multiple of 12 = 12 per device x 1 rank"
        ):
            config(per_device_train_batch_size=12)
        with pytest.raises(ValueError, match=r" 1, 2, 3, 4, 6, 12; or set `gradient_accumulation_steps`"):
            config(per_device_train_batch_size=8, global_batch_size=12)

    def test_smaller_than_a_device_s_batch(self):
        with pytest.raises(
            ValueError, match=r"`global_batch_size=2` .* `per_device_train_batch_size` to one of 1, 2;"
        ):
            config(global_batch_size=2)

    def test_contradiction(self):
        with pytest.raises(
            ValueError,
            match=r"`global_batch_size=24` = 8 per device x 1 rank\(s\) x 3, .*`gradient_accumulation_steps=4`",
        ):
            config(global_batch_size=24, gradient_accumulation_steps=4)

    @pytest.mark.parametrize("size", [None, 8])
    def test_auto_find_batch_size(self, size):
        with pytest.raises(ValueError, match=rf"`auto_find_batch_size` changes .*`global_batch_size={size or 64}`"):
            config(auto_find_batch_size=True, global_batch_size=size)

    @pytest.mark.parametrize(
        "options",
        [
            {"global_batch_size": 0},
            {"global_batch_size": -4},
            {"gradient_accumulation_steps": 0},
            {"gradient_accumulation_steps": -1},
            {"per_device_train_batch_size": 0},
            {"per_device_train_batch_size": -8},
        ],
        ids=str,
    )
    def test_sizes_below_one(self, options):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"`{name}={value}`") as error:
            config(**options)
        assert "1 and 1" not in str(error.value) and "-3" not in str(error.value)  # no nonsense for a fix


class TestSeveralRanks:
    @pytest.fixture
    def of_ranks(self, monkeypatch):
        """A config as on one of several ranks. `TrainingArguments.__post_init__` would wait for the others."""

        def make(variable: str = "WORLD_SIZE", ranks: int = 4, group: int | None = None, **options):
            for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv(variable, str(ranks))
            monkeypatch.setattr(trl.DPOConfig, "__post_init__", lambda self: None)
            monkeypatch.setattr(trl.DPOConfig, "world_size", group or ranks)
            return config(**options)

        return make

    @pytest.mark.parametrize("variable", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
    def test_accumulation(self, of_ranks, variable):
        args = of_ranks(variable)
        assert (args.data_parallel_ranks, args.gradient_accumulation_steps) == (4, 2)  # 64 = 8 x 2 x 4

    def test_accumulation_alone_gives_the_global_batch(self, of_ranks):
        assert of_ranks(gradient_accumulation_steps=3).global_batch_size == 96

    def test_not_divisible(self, of_ranks):
        with pytest.raises(ValueError, match=r"multiple of 24 = 8 per device x 3 rank.* one of 1, 2, 4; or set"):
            of_ranks(ranks=3, global_batch_size=12)

    @pytest.mark.parametrize("size", [2, 64, 100])
    def test_sizes_that_the_message_proposes_work(self, of_ranks, size):
        with pytest.raises(ValueError, match=rf"`global_batch_size={size}` cannot be split over 3 ranks") as error:
            of_ranks(ranks=3, global_batch_size=size)
        proposed = [int(number) for number in re.findall(r"\d+", str(error.value).partition("Nearest")[2])]
        assert proposed
        for number in proposed:
            assert of_ranks(ranks=3, global_batch_size=number).global_batch_size == number

    @pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"cp_size": 2}, {"tp_size": 4}], ids=str)
    def test_ranks_that_share_rows_do_not_count(self, of_ranks, sizes):
        (size,) = sizes.values()
        args = of_ranks(ranks=8, parallelism_config=ParallelismConfig(**sizes))
        assert args.data_parallel_ranks == 8 // size
        assert args.gradient_accumulation_steps == 64 // (8 * 8 // size)

    def test_parallelism_of_the_launcher(self, of_ranks, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
        monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
        assert of_ranks().gradient_accumulation_steps == 4  # 64 = 8 x 4 x 2

    def test_a_group_that_the_environment_did_not_announce(self, of_ranks):
        with pytest.raises(
            ValueError, match=r"has 2 processes, but the environment announced 1 .*`accelerate launch`"
        ):
            of_ranks(ranks=1, group=2)


def parse(words: str = "", recipe: str | None = None, folder=None) -> DPOPaperConfig:
    argv = ["--output_dir", "out", "--use_cpu", "--report_to", "none", *words.split()]
    if recipe is not None:
        path = folder / "recipe.yaml"
        path.write_text(recipe)
        argv += ["--config", str(path)]
    (args,) = trl.TrlParser((DPOPaperConfig,)).parse_args_and_config(argv)
    return args


class TestCommandLine:
    def test_nothing_given(self):
        assert values(parse(), PAPER) == PAPER

    @pytest.mark.parametrize("preset", PRESETS)
    def test_preset(self, preset):
        expected = config(preset=preset)
        names = [*PAPER, "loss_type", "per_device_train_batch_size"]
        assert values(parse(f"--preset {preset}"), names) == values(expected, names)

    def test_every_option_can_be_overridden(self):
        options = EXPLICIT | {
            "gradient_accumulation_steps": 2,
            "max_prompt_length": 30,
            "prompt_truncation_mode": "keep_start",
            "loss_type": "ipo",
        }
        words = " ".join(f"--{name} {value}" for name, value in options.items())
        assert values(parse(words), options) == values(config(**options), options) == options | {"loss_type": ["ipo"]}

    def test_recipe(self, tmp_path):
        args = parse(
            recipe="preset: paper_tldr\nlearning_rate: 5e-7\nbeta: null\nglobal_batch_size: 16\nbf16: true\n",
            folder=tmp_path,
        )
        assert values(args, ("learning_rate", "beta", "gradient_accumulation_steps", "bf16")) == {
            "learning_rate": 5e-7,
            "beta": 0.5,
            "gradient_accumulation_steps": 2,
            "bf16": True,
        }

    @pytest.mark.parametrize(
        ("line", "expected"),
        [("", 512), ("max_length: null", None), ("max_length: -1", 512), ("max_length: 64", 64)],
    )
    def test_max_length(self, tmp_path, line, expected):
        assert parse(recipe=f"preset: paper\n{line}\n", folder=tmp_path).max_length == expected

    def test_the_command_line_wins_over_the_recipe(self, tmp_path):
        assert parse("--beta 0.3", recipe="beta: 0.2\n", folder=tmp_path).beta == 0.3

    @pytest.mark.parametrize(
        "words", ["--preset papr", "--tokenization apart", "--prompt_truncation_mode both", "--betta 1"]
    )
    def test_what_does_not_exist(self, words):
        with pytest.raises((SystemExit, ValueError)):
            parse(words)

    def test_help_can_be_shown(self):
        text = trl.TrlParser((DPOPaperConfig,)).format_help()
        for name in ("--preset", "--global_batch_size", "--max_prompt_length", "--reference_free"):
            assert name in text


TRL_OPTIONS = {
    "beta": 0.7,
    "learning_rate": 2e-5,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 11,
    "max_length": None,
    "gradient_accumulation_steps": 5,
    "per_device_train_batch_size": 3,
    "loss_type": ["sigmoid", "sft"],
    "loss_weights": [1.0, 0.1],
    "discopop_tau": 0.3,  # without effect, and still TRL's business
    "bf16": False,
    "seed": 7,
}


class TestFromTRL:
    @pytest.mark.parametrize("options", [{}, TRL_OPTIONS], ids=["defaults", "options"])
    def test_every_value_is_kept(self, options):
        theirs = trl.DPOConfig(**MACHINE | options)
        before = dict(vars(theirs))
        ours = DPOPaperConfig.from_trl(theirs)
        assert (before.pop("padding_free"), ours.padding_free) == (False, None)
        for name, value in before.items():
            assert getattr(ours, name) is value, name
        assert vars(theirs) == before | {"padding_free": False}
        assert values(ours, ("preset", "tokenization", "reference_free", "global_batch_size")) == {
            "preset": "trl",
            "tokenization": "joint",
            "reference_free": False,
            "global_batch_size": None,
        }
        assert type(ours) is DPOPaperConfig

    def test_what_trl_would_ignore_is_refused(self):
        with pytest.raises(ValueError, match=r"TRL ignores `label_smoothing=0.1` .*`DPOPaperConfig`.*set it to 0.0"):
            DPOPaperConfig.from_trl(trl.DPOConfig(**MACHINE, label_smoothing=0.1))

    def test_label_smoothing_that_trl_reads(self):
        theirs = trl.DPOConfig(**MACHINE, label_smoothing=0.1, loss_type="robust")
        assert DPOPaperConfig.from_trl(theirs).label_smoothing == 0.1


class TestCopies:
    @pytest.mark.parametrize(
        "change", [{"beta": 0.3}, {"learning_rate": 1e-4}, {"output_dir": "other"}, {"seed": 3}, {"max_length": 600}]
    )
    @pytest.mark.parametrize("preset", ["paper", "trl"])
    def test_replace_changes_only_what_it_names(self, preset, change):
        before = config(preset=preset)
        after = dataclasses.replace(before, **change)
        names = [*PAPER, "output_dir", "seed", "preset"]
        assert values(after, names) == values(before, names) | change

    def test_replace_a_batch(self):
        resolved = config()
        with refused(r"contradicts `gradient_accumulation_steps=8`"):
            dataclasses.replace(resolved, per_device_train_batch_size=16)
        after = dataclasses.replace(resolved, per_device_train_batch_size=16, gradient_accumulation_steps=None)
        assert after.gradient_accumulation_steps == 4

    def test_replace_what_came_from_trl(self):
        after = dataclasses.replace(DPOPaperConfig.from_trl(trl.DPOConfig(**MACHINE)), beta=0.5)
        assert values(after, ("beta", "preset", "tokenization", "learning_rate")) == {
            "beta": 0.5,
            "preset": "trl",
            "tokenization": "joint",
            "learning_rate": 1e-6,
        }

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda args: pickle.loads(pickle.dumps(args))])
    def test_deepcopy_and_pickle(self, duplicate):
        assert values(duplicate(config(beta=0.3)), PAPER) == PAPER | {"beta": 0.3}

    def test_to_dict_shows_resolved_values(self):
        shown = config().to_dict()
        assert {name: shown[name] for name in PAPER} == PAPER
        assert shown["preset"] == "paper"


@pytest.fixture
def rates(tmp_path):
    """Learning rates of the updates `which` (0 is the first), of a run of `num_updates`, as shares of the peak."""

    def of(which, num_updates=400, optimizers=(None, None), **options):
        options = {name: value for name, value in TINY.items() if name != "warmup_steps"} | options
        trainer = DPOPaperTrainer(
            tiny_llama(),
            args=DPOPaperConfig(str(tmp_path), **options | {"learning_rate": 1.0}),
            train_dataset=preference_rows(2),
            processing_class=tiny_tokenizer(),
            optimizers=optimizers,
        )
        trainer.create_optimizer_and_scheduler(num_updates)
        found = {}
        for update in range(max(which) + 1):
            found[update] = trainer.lr_scheduler.get_last_lr()[0]
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        return [found[update] for update in which]

    return of


class TestWarmUp:
    def test_the_paper_s(self, rates):
        expected = [1 / 151, 2 / 151, 150 / 151, 1.0, 1.0, 1.0]
        assert rates([0, 1, 149, 150, 151, 399]) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("warmup", [0, 1, 3])
    def test_other_lengths(self, rates, warmup):
        expected = [min(1.0, (k + 1) / (warmup + 1)) for k in range(6)]
        assert rates(range(6), warmup_steps=warmup) == pytest.approx(expected, rel=1e-12)

    def test_a_share_of_all_updates(self, rates):
        assert rates([0, 3, 4, 5], num_updates=40, warmup_steps=0.1) == pytest.approx([0.2, 0.8, 1.0, 1.0], rel=1e-12)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"lr_scheduler_type": "constant"}, [1.0, 1.0, 1.0, 1.0]),
            ({"lr_scheduler_type": "linear", "warmup_steps": 2}, [0.0, 0.5, 1.0, 7 / 8]),
            ({"preset": "trl", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, [0.0, 0.5, 1.0, 1.0]),
            ({"preset": "trl"}, [1.0, 0.9, 0.8, 0.7]),  # linear without warm-up
        ],
        ids=str,
    )
    def test_other_schedules_are_hf_s(self, rates, options, expected):
        assert rates(range(4), num_updates=10, **options) == pytest.approx(expected, rel=1e-12)

    def test_a_scheduler_that_was_passed_wins(self, rates):
        optimizer = SGD(tiny_llama().parameters(), lr=1.0)
        optimizers = (optimizer, ConstantLR(optimizer, factor=0.5, total_iters=100))
        assert rates([0, 1, 2], optimizers=optimizers) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("options", "expected"), [({}, True), ({"dataloader_pin_memory": False}, False)], ids=str)
def test_batches_are_copied_while_a_gpu_computes(options, expected, tmp_path, monkeypatch):
    """From pinned memory, that is; on a CPU nothing changes."""
    assert not DPOPaperConfig(str(tmp_path), use_cpu=True).accelerator_config.non_blocking
    args = DPOPaperConfig(str(tmp_path), bf16=False, **options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(DPOPaperConfig, "world_size", 1)
    args.__post_init__()
    assert args.accelerator_config.non_blocking is expected
