"""Cache of reference log-probabilities on disk. Its key contains everything that changes their values."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trl_dpo_ext.data.checks import TOKENIZED_COLUMNS
from trl_dpo_ext.processes import get_logger
from trl_dpo_ext.whole_file import whole_file


__all__ = ["CacheKey", "RefLogpsFile", "hash_token_ids", "sample_rows"]

logger = get_logger(__name__)


@dataclass(frozen=True)
class CacheKey:
    """
    Everything that determines reference log-probabilities. Beta, output folder, epochs and batch sizes do not.

    Args:
        reference (`str`): Hash of the reference's weights.
        tokens (`str`): Hash of the truncated token ids.
        compute_dtype (`str`): Dtype of the weights, and of autocast.
        ld_alpha (`float`, *optional*): LD-DPO's weight of tokens beyond the length of the shorter completion.
    """

    reference: str
    tokens: str
    compute_dtype: str
    ld_alpha: float | None = None

    def __str__(self) -> str:
        return xxhash.xxh3_128(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def hash_token_ids(dataset: Dataset, columns: Sequence[str] = TOKENIZED_COLUMNS) -> str:
    """Hashes the token ids of all rows, in order."""
    digest = xxhash.xxh3_128()

    def update(ids: Any) -> None:
        digest.update(len(ids).to_bytes(4, "little"))
        if len(ids) and not np.isscalar(ids[0]):  # one list for each completion
            for inner in ids:
                update(inner)
        else:
            digest.update(np.asarray(ids).astype("<i8").tobytes())

    for batch in dataset.select_columns(list(columns)).with_format("numpy").iter(batch_size=1000):
        for name in columns:
            for ids in batch[name]:
                update(ids)
    return digest.hexdigest()


def sample_rows(num_rows: int, num_samples: int = 4) -> list[int]:
    """Returns indices spread evenly over a dataset. These rows are recomputed when a cache is loaded."""
    count = min(num_rows, num_samples)
    return [round(i * (num_rows - 1) / max(count - 1, 1)) for i in range(count)]


class RefLogpsFile:
    """
    Reference log-probabilities of a dataset in a safetensors file: shape `(n, K)`, in nats, float32.

    The file is written in steps, so an interrupted pass resumes where it stopped. A new version is moved into place
    when complete, so an interrupted process leaves no partial file.

    Args:
        folder (`Path`): Folder of the file. It is created at the first write.
        key ([`CacheKey`]): Key of the content.
    """

    def __init__(self, folder: Path, key: CacheKey):
        self.path = Path(folder) / f"ref_logps-{key}.safetensors"
        self._metadata = {name: str(value) for name, value in asdict(key).items()}

    def read(self) -> Tensor | None:
        """Returns the rows written so far, `(m, K)`, or `None` if there is no readable file."""
        try:
            with safe_open(self.path, framework="pt") as file:
                logps = file.get_tensor("ref_logps")
                checksum = (file.metadata() or {}).get("checksum")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning(f"{self.path} cannot be read ({error}). Reference log-probabilities are recomputed.")
            return None
        if checksum != _checksum(logps):
            logger.warning(f"{self.path} is damaged. Reference log-probabilities are recomputed.")
            return None
        return logps

    def write(self, pieces: Iterable[Tensor]) -> None:
        """Replaces the contents of the file with the given rows."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        logps = torch.cat(list(pieces)).contiguous()
        metadata = self._metadata | {"checksum": _checksum(logps)}
        with whole_file(self.path) as unfinished:
            save_file({"ref_logps": logps}, unfinished, metadata=metadata)


def _checksum(logps: Tensor) -> str:
    digest = xxhash.xxh3_128(f"{logps.dtype} {tuple(logps.shape)}".encode())
    digest.update(logps.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
