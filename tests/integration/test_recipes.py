"""Every recipe: its keys, the command and the arithmetic in its head, and two updates of a tiny model of its kind."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import forked
import pytest
import torch
import trl
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from closeness import ROUNDING
from datasets import Dataset
from integration.conftest import BFLOAT16_REWARD
from safetensors.torch import load_file
from tiny import VOCAB_SIZE, save_tiny, tiny_gpt2, tiny_llama, tiny_qwen2, tiny_tokenizer
from transformers import AutoModelForCausalLM, GPTJConfig, GPTNeoXConfig, PreTrainedConfig, PreTrainedModel

from trl_dpo_ext import DPOPaperTrainer, PreferredFTTrainer, RankingDPOTrainer, UnlikelihoodTrainer
from trl_dpo_ext.cli import main
from trl_dpo_ext.cli.recipe import parse
from trl_dpo_ext.data.conversion.from_pairs import pairs_to_rankings
from trl_dpo_ext.data.conversion.public_datasets import from_ultrafeedback


ROOT = Path(__file__).parents[2]
LAUNCHERS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
FRONTIERS = sorted((ROOT / "recipes" / "frontier").glob("*.yaml"))  # see `test_frontier.py`
RECIPES = sorted(set((ROOT / "recipes").rglob("*.yaml")) - set(LAUNCHERS) - set(FRONTIERS))
SMOKE = [recipe for recipe in RECIPES if recipe.parent.name == "smoke"]
TRAINERS = {
    "dpo": DPOPaperTrainer,
    "preferred-ft": PreferredFTTrainer,
    "rank": RankingDPOTrainer,
    "unlikelihood": UnlikelihoodTrainer,
}
BATCH = re.compile(r"= (\d+) per device x (\d+) accumulated x (\d+) (?:GPU|process)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes").with_suffix(""))


every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
every_launcher = pytest.mark.parametrize("launcher", LAUNCHERS, ids=name_of)


def command_of(recipe: Path) -> str:
    return recipe.stem.rpartition("_")[2]


def head_of(recipe: Path) -> str:
    """The comment at the top, in one line."""
    lines = recipe.read_text().partition("\n\n")[0].splitlines()
    return " ".join(line.removeprefix("#").strip().removesuffix("\\").strip() for line in lines)


def batch_of(recipe: Path) -> tuple[int, int, int]:
    """Rows per device, accumulation and processes that a recipe states."""
    stated = BATCH.search(recipe.read_text())
    assert stated is not None
    per_device, accumulated, processes = map(int, stated.groups())
    return per_device, accumulated, processes


# Models


def tiny_of(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


TOKENS = {"vocab_size": VOCAB_SIZE, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}


def tiny_gptj() -> PreTrainedModel:
    return tiny_of(GPTJConfig(n_embd=32, n_layer=2, n_head=4, n_positions=512, rotary_dim=4, **TOKENS))


def tiny_gpt_neox() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return tiny_of(GPTNeoXConfig(**sizes, max_position_embeddings=512, **TOKENS))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt-j": tiny_gptj,
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "pythia": tiny_gpt_neox,
    "qwen2": tiny_qwen2,
}


# Rows in the schemas of the real data


def pair(i: int) -> dict[str, str]:
    # Six pairs of each prompt, of four completions
    better, worse = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)][i % 6]
    answers = [" a delight.", " fine, in parts.", " long.", " dull and far too long."]
    return {"prompt": f"The film number {i // 6} was", "chosen": answers[better], "rejected": answers[worse]}


def hh(i: int) -> dict[str, str]:
    return {side: f"\n\nHuman: {pair(i)['prompt']}?\n\nAssistant:{pair(i)[side]}" for side in ("chosen", "rejected")}


def tldr(i: int) -> dict[str, str]:
    row = pair(i)
    post = f"SUBREDDIT: r/films\n\nTITLE: Number {i}\n\nPOST: {row['prompt']} what I saw.\n\nTL;DR:"
    return row | {"prompt": post}


def ultrafeedback_pair(i: int) -> dict[str, Any]:
    row = pair(i)
    question = {"role": "user", "content": row["prompt"] + "?"}
    chats = {side: [question, {"role": "assistant", "content": row[side].strip()}] for side in ("chosen", "rejected")}
    return chats | {"score_chosen": 8.5, "score_rejected": 4.0}


def ultrafeedback_ranking(i: int) -> dict[str, Any]:
    answers = [{"response": text, "overall_score": score} for text, score in (("Good.", 9.0), ("Dull.", 2.0))]
    answers += [{"response": f"Film {i} is fine.", "overall_score": 7.0}, {"response": "Long.", "overall_score": 4.5}]
    return from_ultrafeedback({"instruction": f"What about film {i}?", "completions": answers})


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "Anthropic/hh-rlhf": hh,
    "outputs/imdb/preferences.jsonl": pair,
    "outputs/quickstart/preferences.jsonl": pair,
    "outputs/ultrafeedback/rankings.jsonl": ultrafeedback_ranking,
    "trl-lib/tldr-preference": tldr,
    "trl-lib/ultrafeedback_binarized": ultrafeedback_pair,
}


def rows_of(dataset: str, n: int) -> Dataset:
    if dataset == "outputs/quickstart/rankings.jsonl":  # made by the command in the recipe's head
        return pairs_to_rankings(Dataset.from_list([pair(i) for i in range(6 * n)]))[0]
    return Dataset.from_list([ROWS[dataset](i) for i in range(n)])


def options_of(recipe: Path) -> dict[str, Any]:
    return yaml.safe_load(recipe.read_text())


def in_place(recipe: Path, folder: Path) -> list[str]:
    """Options that put a tiny model and a few rows in the place of the real ones."""
    options = options_of(recipe)
    family = next(name for name in FAMILIES if recipe.name.startswith(name))
    words = ["--model_name_or_path", save_tiny(FAMILIES[family](), tiny_tokenizer(), folder / "model")]
    rows = rows_of(options["dataset_name"], 24)
    data = folder / "rows.jsonl"
    if Path(options["dataset_name"]).suffix != ".jsonl":  # splits by name, as on the hub
        data = folder / "rows"
        rows.select(range(4)).to_json(data / f"{options.get('dataset_test_split', 'test')}.jsonl")
        rows.to_json(data / f"{options['dataset_train_split']}.jsonl")
    else:
        rows.to_json(data)
    words += ["--dataset_name", str(data), "--output_dir", str(folder / "out")]
    words += ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--use_cpu"]
    words += ["--eval_steps", "2"] if "eval_steps" in options else []
    words += ["--ref_logps_cache_dir", str(folder / "cache")] if "precompute_ref_log_probs" in options else []
    if recipe not in SMOKE:  # two micro-batches of the recipe's size
        words += ["--global_batch_size", str(2 * options["per_device_train_batch_size"])]
    return words


def reference_of(command: str, options: dict[str, Any]) -> str:
    if command in ("preferred-ft", "unlikelihood"):
        return "none"
    if "use_peft" in options:
        return "adapter off"
    return "policy at the start, cached" if "precompute_ref_log_probs" in options else "second load of the path"


def logged_metrics(folder: Path) -> Iterator[dict[str, float]]:
    """The logged metrics, one entry for each update."""
    for line in (folder / "run_log" / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "grad_norm" in entry:
            yield entry


# Tests


@every_recipe
def test_is_read_strictly(recipe):
    keys, command = options_of(recipe), command_of(recipe)
    read = parse(command, TRAINERS[command].config_class, ["--config", str(recipe), "--use_cpu", "--bf16", "false"])
    found: dict[str, Any] = {}
    for group in (read.script, read.model, read.mixture, read.stage, read.args):
        found |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    assert keys.keys() <= found.keys()
    for key in keys.keys() - {"bf16", "use_cpu", "report_to", "lora_target_modules"}:  # the first two are given above
        value = float(keys[key]) if isinstance(found[key], float) else keys[key]  # YAML reads 1e-6 as text
        assert found[key] == value, key
    # TRL reads a list of one module as its name
    assert found["lora_target_modules"] == ("all-linear" if "lora_target_modules" in keys else None)


@every_recipe
def test_batch_is_what_it_says(recipe, monkeypatch):
    # `TrainingArguments.__post_init__` would wait for the other processes
    per_device, accumulated, processes = batch_of(recipe)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(trl.DPOConfig, "__post_init__", lambda self: None)
    monkeypatch.setattr(trl.DPOConfig, "world_size", processes)
    args = parse(command_of(recipe), TRAINERS[command_of(recipe)].config_class, ["--config", str(recipe)]).args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (per_device, accumulated)
    assert args.global_batch_size == per_device * accumulated * processes == (8 if recipe in SMOKE else 64)


@every_recipe
def test_head_says_how_to_run_it(recipe):
    head = head_of(recipe)
    assert f" {command_of(recipe)} --config {recipe.relative_to(ROOT)}" in head
    assert all(f" {word}: " in head for word in ("Data", "Another value"))
    assert re.search(r"Memory( per GPU)?: ", head)
    if recipe in SMOKE:
        return
    assert "Hardware: " in head
    launcher = re.search(r"accelerate launch --config_file (\S+)", head)
    assert launcher is not None
    assert load_config_from_file(str(ROOT / launcher[1])).num_processes == batch_of(recipe)[2]


@every_recipe
def test_columns_are_those_of_the_data(recipe):
    stated = re.search(r" Data: (.*?)(?:\.|;|:) ", head_of(recipe) + " ")
    assert stated is not None
    named = set(re.findall(r"`(\w+)`", stated[1]))
    rows = rows_of(options_of(recipe)["dataset_name"], 6)
    assert named == {name for name in rows.column_names if not name.startswith("score_")}
    assert isinstance(rows[0][sorted(named)[0]], str) == ("chat messages" not in stated[1]) or "completions" in named


@every_recipe
def test_trains_a_tiny_model(recipe, tmp_path):
    datasets.disable_progress_bars()
    command, options = command_of(recipe), options_of(recipe)
    assert main([command, "--config", str(recipe), *in_place(recipe, tmp_path)]) == 0
    out = tmp_path / "out"
    state = json.loads((out / "trl_dpo_ext.json").read_text())
    assert state["trainer"] == TRAINERS[command].__name__
    assert state["reference"]["kind"] == reference_of(command, options)
    weights = load_file(out / ("adapter_model.safetensors" if "use_peft" in options else "model.safetensors"))
    if "use_peft" in options:  # TRL trains the adapter of a quantized model in bfloat16
        trained_in = torch.bfloat16 if "load_in_4bit" in options else torch.float32
        assert {weight.dtype for weight in weights.values()} == {trained_in}
    first, second = logged_metrics(out)
    assert math.isfinite(second["loss"])
    # A policy that is its reference is as likely to rank one way as another: log 2, or log K! as a sum of logarithms
    if command == "rank":
        assert first["loss"] == pytest.approx(math.log(24), rel=3 * ROUNDING)
    elif state["reference"]["kind"].endswith("cached"):  # in other batches, and half a margin is in the loss
        assert first["loss"] == pytest.approx(math.log(2), abs=BFLOAT16_REWARD)
    elif command == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), rel=ROUNDING)


def test_eight_bit_states_begin_at_4096_numbers():
    # As the head of the QLoRA recipe says
    bitsandbytes = pytest.importorskip("bitsandbytes")
    small, large = (torch.nn.Parameter(torch.ones(size)) for size in (4095, 4096))
    small.grad, large.grad = torch.ones(4095), torch.ones(4096)
    optimizer = bitsandbytes.optim.RMSprop8bit([small, large], lr=1e-3)
    optimizer.step()
    states = [optimizer.state[weights]["state1"].dtype for weights in (small, large)]
    assert states == [torch.float32, torch.uint8]


@every_launcher
def test_launcher_is_read_by_accelerate(launcher):
    config = load_config_from_file(str(launcher))
    kind = {"single_gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "two_nodes": "FSDP"}
    assert config.distributed_type == DistributedType(kind.get(launcher.stem, "DEEPSPEED"))
    assert config.mixed_precision == "no"  # else it would be on where a recipe says `bf16: false`
    options = {action.dest for action in launch_command_parser()._actions}
    assert config.fsdp_config.keys() | config.deepspeed_config.keys() <= options
    # Left to the recipe
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & config.deepspeed_config.keys()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("start", ["accelerate launch", "two processes"])
def test_smoke_recipe_from_a_launcher(start, tmp_path):
    recipe = ROOT / "recipes" / "smoke" / "gpt2_dpo.yaml"
    words = ["-m", "trl_dpo_ext.cli", "dpo", "--config", str(recipe), *in_place(recipe, tmp_path)]
    env = {"OMP_WAIT_POLICY": "passive"}
    if start == "two processes":  # `torchrun` starts them in `distributed/test_two_machines.py`
        programs = forked.start_ranks(2, words, tmp_path, env=env)
    else:
        launch = [forked.LAUNCHER, "accelerate-launch", "--cpu"]
        launch += ["--config_file", str(ROOT / "recipes/accelerate/single_gpu.yaml")]
        programs = [forked.start([*launch, *words], tmp_path / "log", env=env)]
    statuses = forked.wait_for_all(programs, 120)
    assert not any(statuses), [program.output[-3000:] for program in programs]
    batch = "4 x 1 x 2" if start == "two processes" else "4 x 2 x 1"
    assert f"8 rows an update = {batch} (per device x accumulation x ranks)" in programs[0].output
    first = next(logged_metrics(tmp_path / "out"))
    assert first["loss"] == pytest.approx(math.log(2), rel=ROUNDING)
