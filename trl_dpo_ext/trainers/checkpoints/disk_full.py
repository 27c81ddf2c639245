"""A disk that is full while a checkpoint is written: an error in words, and no half checkpoint to resume from."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["full_disk_explained"]

_ALMOST_NOTHING = 2**20  # bytes; torch and safetensors report a full disk in words of their own


@contextmanager
def full_disk_explained(folder: str | Path) -> Iterator[None]:
    """
    Writes a checkpoint `folder` whole or not at all.

    Raises:
        OSError: If the disk is full. The folder is removed, so that a resumed run starts from the one before.
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
            f"The disk is full: {folder} could not be written, and has been removed. Free space, or keep fewer "
            "checkpoints (`save_total_limit`), and go on from the last one with `resume_from_checkpoint=True`",
        ) from error
