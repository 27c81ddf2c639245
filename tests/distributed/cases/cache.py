"""A reference that is cached."""

from pathlib import Path
from typing import Any

from launch import TRAININGS, TWO_PROCESSES_ONLY, Launch, case, evaluate, explicit_reference, make_trainer, train
from tiny import preference_rows


def files_of(folder: Path) -> dict[str, int]:
    """When each file of a folder was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def cached_options(folder: Path) -> dict[str, Any]:
    return {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(folder), "num_train_epochs": 2}


@case(TRAININGS)
def cached(launch: Launch) -> dict[str, Any]:
    """`ragged` with its reference cached; a second trainer, of another beta and output folder, reads the same file."""
    folder = launch.folder / "cache"
    trainer = make_trainer(launch, 11, options=cached_options(folder))
    logps = [list(trainer.train_dataset[name]) for name in ("ref_chosen_logps", "ref_rejected_logps")]
    result = train(launch, trainer, "cached")
    files = files_of(folder)
    make_trainer(launch, 11, options=cached_options(folder) | {"folder": "second", "beta": 0.5})
    return result | {"logps": logps, "files": files, "files_after_second": files_of(folder)}


@case(TWO_PROCESSES_ONLY)
def cached_before(launch: Launch) -> dict[str, Any]:
    """`ragged` with the file that `cached` wrote in the launch before."""
    folder = launch.reuse / "cached" / "cache"
    before = files_of(folder)
    result = train(launch, make_trainer(launch, 11, options=cached_options(folder)), "cached_before")
    return result | {"files": before, "files_after_second": files_of(folder)}


@case()
def cached_evaluates(launch: Launch) -> dict[str, Any]:
    """`evaluates` with its reference cached."""
    rows = preference_rows(9, start=40)
    options = cached_options(launch.folder / "cache")
    trainer = make_trainer(launch, options=options, eval_dataset=rows, ref_model=explicit_reference())
    return evaluate(trainer, rows)
