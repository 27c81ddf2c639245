"""
Measures an optimizer step of TRL's `DPOTrainer`, of this package's trainers, and of plain next-token training.

    python -m benchmarks --size cpu                 # seconds, about two hours on two cores
    python -m benchmarks --size cpu --memory        # peak memory
    python -m benchmarks --size gpu --tuning full --shapes hh-like eight
    python -m benchmarks --size tiny                # to see that it runs

Results go to `benchmarks/results/`; see `benchmarks/README.md`.
"""

# ruff: noqa: E402

import argparse
import gc
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path


# Read when torch, `datasets` and `huggingface_hub` are imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait busily slow a shared machine down
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from benchmarks.contender import Task
from benchmarks.contenders import CONTENDERS, default_contenders
from benchmarks.measure import check_first_steps, measure
from benchmarks.memory import measure_in_child, peak_of_step
from benchmarks.models import build_model, build_tokenizer
from benchmarks.plot import draw
from benchmarks.results import MemoryRow, TimingRow, merge_into, timing_rows, where_and_when
from benchmarks.shapes import SHAPES, Shape, draw_batches
from benchmarks.sizes import SIZES, Size


RESULTS = Path(__file__).parent / "results"

# Of every shape, so that their memory can be compared
_GROUPS_FOR_MEMORY = 2


def main() -> None:
    options = parse()
    size = SIZES[options.size]
    warnings.filterwarnings("ignore", category=FutureWarning)
    with tempfile.TemporaryDirectory(prefix="trl_dpo_ext_benchmarks_") as folder:
        if options.measure_memory is not None:
            shape_name, contender_name = options.measure_memory
            task = build_task(options, size, size.shape(shape_name), options.tuning[0], build(options, size), folder)
            sys.stdout.write(json.dumps(peak_of_step(CONTENDERS[contender_name](task))) + "\n")
        elif options.memory:
            measure_memory(options, size, folder)
        else:
            measure_seconds(options, size, folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1], prog="python -m benchmarks")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--model-size", choices=["0.5b", "1.5b"], default="0.5b", help="with --size gpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, metavar="CONTENDER", help=f"of {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--tuning", nargs="+", choices=["full", "lora"], help="default: full; on a GPU both")
    parser.add_argument("--attention", choices=["sdpa", "flex_attention", "eager"], default="sdpa")
    parser.add_argument("--repeats", type=int, help="timed steps of each contender")
    parser.add_argument("--groups", type=int, help="prompts of a micro-batch")
    parser.add_argument("--memory", action="store_true", help="measure peak memory on a CPU instead of seconds")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--measure-memory", nargs=2, metavar=("SHAPE", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.size != "gpu" and options.model_size != "0.5b":
        parser.error("--model-size needs --size gpu")
    if options.size == "gpu" and options.memory:
        parser.error("on a GPU memory is measured together with the seconds: leave out --memory")
    options.tuning = options.tuning or list(SIZES[options.size].tunings)
    options.shapes = options.shapes or [
        name for name, shape in SHAPES.items() if not (options.memory and shape.ragged)
    ]
    return options


def measure_seconds(options: argparse.Namespace, size: Size, folder: str) -> None:
    name = size.name
    if options.model_size != "0.5b":
        name += f"-{options.model_size}"
    if options.attention != "sdpa":
        name += f"-{options.attention}"
    plan = [
        (tuning, shape, options.contenders or default_contenders(shape, memory=False))
        for tuning in options.tuning
        for shape in map(size.shape, options.shapes)
    ]
    total = sum((1 + repeats_of(options, size, shape)) * len(names) for _, shape, names in plan)
    model = build(options, size)
    with tqdm(total=total, unit="step") as bar:
        for tuning, shape, names in plan:
            bar.set_description(shape.name + (" lora" if tuning == "lora" else ""))
            rows = time_shape(options, size, shape, names, tuning, model, folder, bar)
            # After every shape, so that an interrupted run leaves what it has
            draw(options.output / f"{name}.png", merge_into(options.output / f"{name}.csv", rows))


def time_shape(
    options: argparse.Namespace,
    size: Size,
    shape: Shape,
    names: list[str],
    tuning: str,
    model: PreTrainedModel,
    folder: str,
    bar: tqdm,
) -> list[TimingRow]:
    """Builds the contenders of a shape, times them, and frees them."""
    task = build_task(options, size, shape, tuning, model, folder)
    contenders = {}
    for name in names:
        bar.set_postfix_str(f"{name}, building")
        contenders[name] = CONTENDERS[name](task)
    found = measure(contenders, size.device, repeats_of(options, size, shape), bar)
    check_first_steps(found, shape.completions, task.bf16)
    contenders.clear()
    gc.collect()
    if size.device == "cuda":
        torch.cuda.empty_cache()
    common = where_and_when(task, shape, options.attention, model_of(options, size))
    return timing_rows(common, task, shape, found)


def measure_memory(options: argparse.Namespace, size: Size, folder: str) -> None:
    model = build(options, size)
    tuning = options.tuning[0]
    shapes = [size.shape(name) for name in options.shapes]
    plan = [(shape, name) for shape in shapes for name in options.contenders or default_contenders(shape, memory=True)]
    groups = options.groups or _GROUPS_FOR_MEMORY
    rows: dict[str, list[MemoryRow]] = {}
    with tqdm(plan, unit="process") as bar:
        for shape, name in bar:
            bar.set_description(shape.name)
            bar.set_postfix_str(name)
            found = measure_in_child(
                ["--size", size.name, "--measure-memory", shape.name, name, "--groups", str(groups)]
                + ["--tuning", tuning, "--attention", options.attention]
            )
            task = build_task(options, size, shape, tuning, model, folder)
            common = where_and_when(task, shape, options.attention, model_of(options, size)) | {"groups": groups}
            rows.setdefault(shape.name, []).append(MemoryRow(**common, contender=name, **found))
            merge_into(options.output / "memory.csv", rows[shape.name])


def build(options: argparse.Namespace, size: Size) -> PreTrainedModel:
    return build_model(model_of(options, size), options.attention, size.device)


def model_of(options: argparse.Namespace, size: Size) -> str:
    return f"qwen2-{options.model_size}" if size.name == "gpu" else size.model


def build_task(
    options: argparse.Namespace, size: Size, shape: Shape, tuning: str, model: PreTrainedModel, folder: str
) -> Task:
    # Equally long rows take equally long, whatever their tokens
    num_batches = repeats_of(options, size, shape) if shape.ragged else 1
    groups = options.groups or size.num_groups(shape)
    return Task(
        model=model,
        tokenizer=build_tokenizer(),
        batches=draw_batches(shape, groups, model.config.vocab_size, num_batches),
        folder=folder,
        device=size.device,
        bf16=size.device == "cuda",
        lora=tuning == "lora",
    )


def repeats_of(options: argparse.Namespace, size: Size, shape: Shape) -> int:
    return options.repeats or size.num_repeats(shape)


if __name__ == "__main__":
    main()
