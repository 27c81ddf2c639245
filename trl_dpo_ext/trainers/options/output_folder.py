"""Check that a run does not overwrite its own model, reference or rows."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_dpo_ext.run_files import RUN_LOG


__all__ = ["check_output_dir", "check_overwrites_nothing"]

# Subfolders that a run writes or deletes
_REWRITTEN = ("checkpoint-", "last-checkpoint", RUN_LOG)

# Subfolders of a model with its reference
_REFERENCES = ("reference", "ref")


def check_output_dir(output_dir: str | Path, sources: Mapping[str, str | Path | None]) -> None:
    """
    Checks that a run overwrites nothing that it reads.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run. It may not exist yet.
        sources (`Mapping`):
            Sources of the run, by their names in messages: a path, a hub name or `None`.

    Raises:
        ValueError: If a source is the folder itself (also under another name, such as a link), is in a subfolder that
            the run writes, or has its reference there.
    """
    folder = Path(output_dir).resolve()
    for what, source in sources.items():
        if source is None or not os.path.exists(source):
            continue
        path = Path(source).resolve()
        inside = path.relative_to(folder).parts[:1] if path.is_relative_to(folder) else None
        holds_reference = folder in [path / name for name in _REFERENCES]
        if (inside == () and path.is_dir()) or holds_reference or (inside and inside[0].startswith(_REWRITTEN)):
            raise ValueError(
                f"`output_dir={str(output_dir)!r}`: the run would overwrite {what} ({source}). Choose another "
                "`output_dir`."
            )


def check_overwrites_nothing(args: Any, model: Any, ref_model: Any, train_dataset: Any) -> None:
    """
    Same for the arguments of a trainer. Models in memory are checked by the folders that they were loaded from.

    Args:
        args ([`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`]):
            Options.
        model (`str` or [`~transformers.PreTrainedModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference.
        train_dataset (`Dataset` or `IterableDataset`):
            Training dataset.

    Raises:
        ValueError: Same as in [`check_output_dir`].
    """
    files = train_dataset.cache_files if isinstance(train_dataset, Dataset) else []
    check_output_dir(
        args.output_dir,
        {
            "the model": model if isinstance(model, str) else model.config._name_or_path,
            "the reference": None if ref_model is None else ref_model.config._name_or_path,
            "the training rows": Path(files[0]["filename"]).parent if files else None,
        },
    )
