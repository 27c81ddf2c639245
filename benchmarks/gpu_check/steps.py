"""Optimizer steps of a model of a billion parameters, as `python -m benchmarks --size gpu` measures them."""

import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec

from tqdm.auto import tqdm

from benchmarks.command import build_task, time_shape
from benchmarks.contenders import CONTENDERS
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.sections import Found
from benchmarks.measure import Measurement
from benchmarks.models import build_model
from benchmarks.results import timing_rows, where_and_when
from benchmarks.sizes import SIZES


__all__ = ["PLAN", "measure_steps"]

_REPEATS = 3

# What the targets need first
PLAN = (
    ("hh", "trl cached"),
    ("hh", "ours cached packed"),
    ("hh", "ours cached varlen"),
    ("ultrafeedback", "ours cached packed"),
    ("ultrafeedback", "ours cached varlen"),
    ("long-eight", "ours cached packed"),
    ("long-eight", "ours cached varlen"),
    ("very-long", "ours cached packed"),
    ("very-long", "ours cached varlen"),
    ("hh", "ours cached compiled"),
    ("ultrafeedback", "trl cached"),
    ("hh", "trl cached cudnn off"),
    ("ultrafeedback", "ours cached compiled"),
    ("hh", "ours varlen"),
    ("hh", "ours packed"),
    ("hh", "trl"),
    ("hh", "ours cached dense"),
    ("hh", "ours cached padded"),
    ("very-long", "ours cached compiled"),
    ("long-eight", "ours cached compiled"),
    ("hh", "trl cached flash"),
    ("hh", "ours cached flash"),
    ("hh", "ours cached liger"),
    ("hh", "ours cached flex"),
)

# Compiles with inductor, or has no backward on a CPU
_NOT_ON_CPU = ("compiled", "flex", "cudnn off", "dense")


def measure_steps(machine: Machine, found: Found) -> None:
    """Puts rows as those of `results/gpu-*.csv` into `found`, after every contender, and why others are left out."""
    size = SIZES["tiny" if machine.dry else "gpu"]
    model = build_model(size.model, size.device)
    measured: dict[str, dict[str, Measurement]] = {}
    rows: dict[str, list[Found]] = {}
    tasks = {}
    found |= {"rows": [], "left_out": {}}
    for shape_name, name in _plan(machine):
        package = CONTENDERS[name].package
        if package is not None and find_spec(package) is None:
            found["left_out"][f"{shape_name}, {name}"] = f"not installed: {package}"
            continue
        shape = size.shape(shape_name)
        if shape_name not in tasks:
            folder = f"{machine.folder}/{shape_name}"
            repeats = machine.size(_REPEATS, 1)
            tasks[shape_name] = build_task(model, size, shape, size.num_groups(shape), repeats, folder)
        task = tasks[shape_name]
        try:
            with tqdm(disable=True) as bar:
                measured.setdefault(shape_name, {}).update(time_shape(task, [name], machine.size(_REPEATS, 1), bar))
        except Exception:
            found["left_out"][f"{shape_name}, {name}"] = traceback.format_exc()[-1000:]
            continue
        common = where_and_when(task, shape, size.model)
        rows[shape_name] = [asdict(row) for row in timing_rows(common, task, shape, measured[shape_name])]
        found["rows"] = [row for of_shape in rows.values() for row in of_shape]


def _plan(machine: Machine) -> Sequence[tuple[str, str]]:
    if not machine.dry:
        return PLAN
    return [(shape, name) for shape, name in PLAN[:11] if not name.endswith(_NOT_ON_CPU)]
