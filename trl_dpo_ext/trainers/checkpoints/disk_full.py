"""Handling of a full disk while a checkpoint is written: a clear error, and no partial checkpoint."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["full_disk_explained"]

_ALMOST_NOTHING = 2**20  # bytes; torch and safetensors raise other errors if the disk is full


@contextmanager
def full_disk_explained(folder: str | Path) -> Iterator[None]:
    """
    Deletes the checkpoint `folder` if it cannot be written completely.

    Raises:
        OSError: If the disk is full.
    """
    folder = Path(folder)
    there_before = folder.exists()
    try:
        yield
    except Exception as error:
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not is_full and shutil.disk_usage(folder.parent).free >= _ALMOST_NOTHING:
            raise
        if not there_before:
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError(
            errno.ENOSPC,
            f"The disk is full: {folder} could not be written and was deleted. Free space, or keep fewer checkpoints "
            "(`save_total_limit`), and resume from the last one with `resume_from_checkpoint=True`",
        ) from error
