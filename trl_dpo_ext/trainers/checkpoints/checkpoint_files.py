"""Files of a checkpoint that a resumed run needs, and whether they are complete."""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.run_files import STATE
from trl_dpo_ext.trainers.checkpoints.saved_state import read_state


__all__ = [
    "REFERENCE_FOLDER",
    "checkpoints_of",
    "epoch_start_file",
    "fault_of",
    "fault_of_weights",
    "log_window_file",
    "newest_whole",
    "newest_whole_here",
    "weight_files",
]

logger = get_logger(__name__)

REFERENCE_FOLDER = "reference"  # folder of a synced reference in a checkpoint

_BROKEN = "empty, truncated or damaged"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = "checkpoint-is-incomplete.txt"  # written by transformers on SIGTERM
_DEEPSPEED = "latest"  # contains the name of the folder with the parts
_FSDP = "pytorch_model_fsdp*"
_WHOLE = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)


def log_window_file(process: int) -> str:
    """Name of the file with the loss and the metrics that a process has not logged yet."""
    return f"log_window_{process}.pth"


def epoch_start_file(process: int) -> str:
    """Name of the file with the random state of a process at the start of the epoch and now."""
    return f"epoch_start_{process}.pth"


def checkpoints_of(run: str | Path) -> list[Path]:
    """Returns the checkpoints in the folder of a run, complete or not, the highest number first."""
    found = [(int(match[1]), path) for path in Path(run).glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def newest_whole(run: str | Path) -> str:
    """
    Returns the newest checkpoint that is complete on every process. Warns of newer ones that are not.

    Every process must call it.

    Raises:
        ValueError: If there is none. The message has the reason for each checkpoint.
    """
    faults = {path.name: fault_of(path, PartialState().process_index) for path in checkpoints_of(run)}
    of_all: list[dict[str, str | None]] = gather_object([faults])
    names = sorted({name for one in of_all for name in one}, key=lambda name: int(name.split("-")[1]), reverse=True)
    passed: list[str] = []
    for name in names:
        found = [one.get(name, f"process {i} does not find it") for i, one in enumerate(of_all)]
        fault = next((text for text in found if text is not None), None)
        if fault is None:
            if passed:
                logger.warning(
                    f"Resuming from {Path(run, name)}, the newest complete checkpoint. {'; '.join(passed)}."
                )
            return str(Path(run, name))
        passed.append(f"{name} is skipped: {fault}")
    if passed:
        raise ValueError(
            f"`resume_from_checkpoint=True`, but {run} has no complete checkpoint: {'; '.join(passed)}. Leave it out "
            "to start from the beginning."
        )
    raise ValueError(
        f"`resume_from_checkpoint=True`, but {run} has no checkpoint. Leave it out to start from the beginning, or "
        "pass a checkpoint."
    )


def newest_whole_here(run: str | Path, process: int = 0) -> Path | None:
    """Returns the newest checkpoint that is complete for a process, or `None`."""
    return next((path for path in checkpoints_of(run) if fault_of(path, process) is None), None)


def fault_of(checkpoint: str | Path, process: int = 0) -> str | None:
    """
    Returns why a run cannot resume from a checkpoint, or `None` if all files that it needs are complete.

    `trainer_state.json` is written last and deleted first, so a checkpoint whose writing or deletion was interrupted
    does not have it. Only the ends of the other files are read.

    Args:
        checkpoint (`str` or `Path`): Folder of the checkpoint.
        process (`int`): Index of the process that resumes.
    """
    folder = Path(checkpoint)
    if (folder / _UNFINISHED).exists():
        return f"its writing was interrupted ({_UNFINISHED})"
    if not (folder / TRAINER_STATE_NAME).is_file():
        return f"it has no {TRAINER_STATE_NAME}"
    progress = _read_json(folder / TRAINER_STATE_NAME)
    if not isinstance(progress, dict) or not isinstance(progress.get("global_step"), int):
        return f"{TRAINER_STATE_NAME} is {_BROKEN}"
    try:
        state = read_state(folder)
    except (OSError, ValueError):
        return f"{STATE} is {_BROKEN}"
    return fault_of_weights(folder) or _first_fault(folder, _read_beside_weights(folder, state, process))


def fault_of_weights(folder: str | Path) -> str | None:
    """Returns why the weights in a checkpoint cannot be loaded, or `None` if they are complete."""
    folder = Path(folder)
    weights = weight_files(folder)
    if not weights and not any(_shards(folder)):
        return "it has no weights"
    return _first_fault(folder, weights)


def weight_files(folder: str | Path) -> list[Path]:
    """Returns the files of the weights in a checkpoint, including those in an index and adapters in subfolders."""
    folder = Path(folder)
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / index).is_file():
            read = _read_json(folder / index)
            shards = read.get("weight_map", {}).values() if isinstance(read, dict) else [index]
            return [folder / name for name in sorted(set(shards))]
    found = [folder / name for name in _WHOLE if (folder / name).is_file()]
    return found + [path for name in _WHOLE[2:] for path in sorted(folder.glob(f"*/{name}"))]


def _read_beside_weights(folder: Path, state: dict[str, Any], process: int) -> Iterator[Path]:
    yield from _deepspeed_files(folder)
    if (state.get("reference") or {}).get("synced"):
        yield from weight_files(folder / REFERENCE_FOLDER) or [folder / REFERENCE_FOLDER / SAFE_WEIGHTS_NAME]
    of_training = [folder / OPTIMIZER_NAME, folder / SCHEDULER_NAME]
    # TRL does not record whether these files exist. If there is only one of them, the other one is missing
    if state.get("save_only_model", not any(path.exists() for path in of_training)):
        return
    yield from of_training if not any(_shards(folder)) else (path for path in of_training if path.exists())
    processes = state.get("processes")
    if processes is None:
        return
    if process < processes:
        yield folder / (f"rng_state_{process}.pth" if processes > 1 else "rng_state.pth")
        yield folder / log_window_file(process)
        yield folder / epoch_start_file(process)
    else:
        yield folder / epoch_start_file(0)


def _first_fault(folder: Path, expected: Iterable[Path]) -> str | None:
    for path in expected:
        name = path.relative_to(folder)
        if not path.is_file():
            return f"it has no {name}"
        if not _is_whole(path):
            return f"{name} is {_BROKEN}"
    return None


def _shards(folder: Path) -> Iterator[Path]:
    yield from folder.glob(_FSDP)
    yield from _deepspeed_files(folder)


def _deepspeed_files(folder: Path) -> Iterator[Path]:
    latest = folder / _DEEPSPEED
    return (folder / latest.read_text().strip()).glob("*.pt") if latest.is_file() else iter(())


def _is_whole(path: Path) -> bool:
    if path.suffix == ".json":
        return _read_json(path) is not None
    if path.suffix != ".safetensors":
        return zipfile.is_zipfile(path)  # torch saves zip files, whose directory is at the end
    try:
        with safe_open(path, framework="pt"):  # compares the size with that in the header
            return True
    except (OSError, SafetensorError):
        return False


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # errors of the file, its JSON or its encoding
        return None
