"""Resumable pass of the reference policy over a dataset, with a spot check of cached values."""

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, tqdm
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.reference.cache import RefLogpsFile, sample_rows


__all__ = ["reference_pass"]

logger = get_logger(__name__)

_SECONDS_BETWEEN_WRITES = 60


def reference_pass(
    dataset: Dataset,
    *,
    logps_of: Callable[[dict[str, Any]], Tensor],
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    to_device: Callable[[dict[str, Any]], dict[str, Any]],
    tolerance_of: Callable[[Tensor], Tensor],
    accelerator: Accelerator,
    batch_size: int,
    file: RefLogpsFile,
    name: str,
) -> Tensor:
    """
    Returns the reference log-probabilities of all rows, using the values in the file.

    Args:
        dataset (`Dataset`):
            Tokenized rows.
        logps_of (`Callable`):
            Computes the reference log-probabilities `(B, K)` of a batch.
        collate (`Callable`):
            Makes a batch of rows.
        to_device (`Callable`):
            Moves a batch to the device of this process.
        tolerance_of (`Callable`):
            Computes the largest rounding difference, in nats, of given log-probabilities.
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator that divides the rows among the processes.
        batch_size (`int`):
            Rows per process and batch.
        file ([`~trl_dpo_ext.reference.cache.RefLogpsFile`]):
            File with the results. Only the main process reads and writes it.
        name (`str`):
            Name of the dataset in messages.

    Returns:
        `torch.Tensor` of shape `(n, K)`, float32, on the CPU of every process.
    """
    known = _broadcast(accelerator, file.read() if accelerator.is_main_process else None)
    if known is not None and len(known):
        rows = sample_rows(len(known))
        again = logps_of(to_device(collate([dataset[row] for row in rows]))).cpu()
        difference = (again - known[rows]).abs()
        agrees = bool((difference <= tolerance_of(again)).all())
        if not _broadcast(accelerator, agrees):
            logger.warning(
                f"The cached reference log-probabilities of the {name} dataset in {file.path} differ by "
                f"{difference.max():.3g} nats from the reference policy. They are recomputed."
            )
            known = None
    pieces = [known] if known is not None else []
    done = sum(map(len, pieces))
    if done == len(dataset):
        return known

    loader = DataLoader(dataset.select(range(done, len(dataset))), batch_size=batch_size, collate_fn=collate)
    written = time.monotonic()
    with tqdm(
        total=len(dataset), initial=done, unit="row", desc=f"Computing reference log-probabilities of {name} dataset"
    ) as progress:
        for batch in accelerator.prepare(loader):
            pieces.append(accelerator.gather_for_metrics(logps_of(batch)).cpu())
            progress.update(len(pieces[-1]))
            if accelerator.is_main_process and time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                file.write(pieces)
                written = time.monotonic()
    if accelerator.is_main_process:
        file.write(pieces)
    return torch.cat(pieces)


def _broadcast(accelerator: Accelerator, value: Any) -> Any:
    # The main process decides for all, so that no process waits for another one
    box = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(box, from_process=0)
    return box[0]
