"""The command that measures seconds and memory of steps."""

import argparse
import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from benchmarks.contender import Task
from benchmarks.contenders import CONTENDERS, default_contenders, missing_packages
from benchmarks.factors import factors_table
from benchmarks.measure import Measurement, check_first_steps, measure
from benchmarks.memory import measure_in_child, peak_of_step
from benchmarks.models import build_model, build_tokenizer
from benchmarks.overview import overview
from benchmarks.plot import draw
from benchmarks.results import MemoryRow, TimingRow, merge_into, timing_rows, where_and_when
from benchmarks.shapes import SHAPES, Shape, draw_batches
from benchmarks.sizes import SIZES, Size, file_name, processor_name


__all__ = ["RESULTS", "build_task", "main", "time_shape"]

RESULTS = Path(__file__).parent / "results"

# Shapes that differ in nothing but K, of as many prompts
_SHAPES_FOR_MEMORY = ["hh-like", "sixteen"]
_GROUPS_FOR_MEMORY = 2


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    size = SIZES[options.size]
    warnings.filterwarnings("ignore", category=FutureWarning)
    with tempfile.TemporaryDirectory(prefix="trl_dpo_ext_benchmarks_") as folder:
        if options.measure_memory is not None:
            shape_name, contender_name = options.measure_memory
            task = _task(options, size, size.shape(shape_name), build_model(size.model, size.device), folder)
            sys.stdout.write(json.dumps(peak_of_step(CONTENDERS[contender_name].build(task))) + "\n")
        elif options.memory:
            _measure_memory(options, size, folder)
        else:
            _measure_seconds(options, size, folder)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Seconds and memory of optimizer steps.",
        prog="python -m benchmarks",
        epilog="The check for GPUs is another command: python -m benchmarks gpu-check --help",
    )
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, metavar="CONTENDER", help=f"of {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--tuning", choices=["full", "lora"], default="full")
    parser.add_argument("--repeats", type=int, help="timed steps of each contender")
    parser.add_argument("--groups", type=int, help="prompts of a micro-batch")
    parser.add_argument("--memory", action="store_true", help="measure peak memory on a CPU instead of seconds")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--measure-memory", nargs=2, metavar=("SHAPE", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.size == "gpu" and options.memory:
        parser.error("on a GPU memory is measured together with the seconds: leave out --memory")
    if options.size == "gpu" and not torch.cuda.is_available():
        parser.error("--size gpu needs a GPU, and torch finds none")
    options.shapes = options.shapes or (_SHAPES_FOR_MEMORY if options.memory else list(SIZES[options.size].shapes))
    return options


def _measure_seconds(options: argparse.Namespace, size: Size, folder: str) -> None:
    path = options.output / file_name(size.name, processor_name(size.device))
    plan = [
        (shape, options.contenders or default_contenders(shape, size.device))
        for shape in map(size.shape, options.shapes)
    ]
    for package, names in missing_packages(size.device).items():
        tqdm.write(f"`{package}` is not installed, so that these are left out: {', '.join(names)}.")
    repeats = options.repeats or size.repeats
    model = build_model(size.model, size.device)
    rows: list[TimingRow] = []
    with tqdm(total=sum((1 + repeats) * len(names) for _, names in plan), unit="step") as bar:
        for shape, names in plan:
            bar.set_description(shape.name + (" lora" if options.tuning == "lora" else ""))
            task = _task(options, size, shape, model, folder)
            found = time_shape(task, names, repeats, bar)
            of_shape = timing_rows(where_and_when(task, shape, size.model), task, shape, found)
            # After every shape, so that an interrupted run leaves what it has
            draw(path.with_suffix(".png"), merge_into(path.with_suffix(".csv"), of_shape))
            check_first_steps(found, shape.completions, task.bf16)
            rows += of_shape
    tqdm.write(f"{overview(rows)}\n\n{factors_table(rows)}")


def time_shape(task: Task, names: Sequence[str], repeats: int, bar: tqdm) -> dict[str, Measurement]:
    """
    Builds the contenders of a task, times them, and frees them.

    On a CPU all are in memory at once and take turns, so that a machine that slows down slows all of them down. A GPU
    is not shared, and holds one at a time.
    """
    found: dict[str, Measurement] = {}
    for together in [[name] for name in names] if task.device == "cuda" else [names]:
        contenders = {}
        try:
            for name in together:
                bar.set_postfix_str(f"{name}, building")
                contenders[name] = CONTENDERS[name].build(task)
            found |= measure(contenders, task.device, repeats, bar)
        finally:
            contenders.clear()
            gc.collect()
            if task.device == "cuda":
                torch.cuda.empty_cache()
    return found


def _measure_memory(options: argparse.Namespace, size: Size, folder: str) -> None:
    model = build_model(size.model, size.device)
    shapes = [size.shape(name) for name in options.shapes]
    plan = [
        (shape, name)
        for shape in shapes
        for name in options.contenders or default_contenders(shape, size.device, memory=True)
    ]
    groups = options.groups or _GROUPS_FOR_MEMORY
    path = options.output / f"memory-{file_name(size.name, processor_name(size.device))}.csv"
    rows: dict[str, list[MemoryRow]] = {}
    with tqdm(plan, unit="process") as bar:
        for shape, name in bar:
            bar.set_description(shape.name)
            bar.set_postfix_str(name)
            found = measure_in_child(
                ["--size", size.name, "--measure-memory", shape.name, name, "--groups", str(groups)]
                + ["--tuning", options.tuning]
            )
            common = where_and_when(_task(options, size, shape, model, folder), shape, size.model) | {"groups": groups}
            rows.setdefault(shape.name, []).append(MemoryRow(**common, contender=name, **found))
            merge_into(path, rows[shape.name])


def _task(options: argparse.Namespace, size: Size, shape: Shape, model: PreTrainedModel, folder: str) -> Task:
    groups = options.groups or size.num_groups(shape)
    return build_task(model, size, shape, groups, options.repeats or size.repeats, folder, options.tuning == "lora")


def build_task(
    model: PreTrainedModel, size: Size, shape: Shape, groups: int, repeats: int, folder: str, lora: bool = False
) -> Task:
    """A task of a shape's random tokens, with a micro-batch for each repeat where its rows differ in length."""
    return Task(
        model=model,
        tokenizer=build_tokenizer(),
        batches=draw_batches(shape, groups, model.config.vocab_size, repeats if shape.sigma else 1),
        folder=folder,
        device=size.device,
        bf16=size.device == "cuda",
        lora=lora,
        most_tokens=size.most_tokens,
    )
