"""Check of the first training rows, with the doctor's checks for text that is probably not intended."""

from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.doctor.examination import worst_of_first
from trl_dpo_ext.processes import get_logger


__all__ = ["warn_of_text"]

logger = get_logger(__name__)


def warn_of_text(dataset: Any, tokenizer: PreTrainedTokenizerBase, tokenization: str) -> None:
    """
    Warns of the doctor's worst finding in the first rows, in one line, on the main process.

    Args:
        dataset (`Dataset` or `IterableDataset`): Raw training rows that can be prepared.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer.
        tokenization (`str`): `"separate"` or `"joint"`.
    """
    if not PartialState().is_main_process:
        return
    finding = worst_of_first(dataset, tokenizer, tokenization=tokenization)
    if finding is not None:
        example = f" First: {finding.example}." if finding.example else ""
        logger.warning(
            f"The doctor found `{finding.name}` in the first rows of the train dataset (row {finding.rows[0]}): "
            f"{finding.meaning}{example} {finding.fix} `trl-dpo-ext doctor` examines all rows."
        )
