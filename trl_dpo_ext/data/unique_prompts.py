"""One row for each distinct prompt, for supervised fine-tuning."""

from datasets import Dataset, IterableDataset


__all__ = ["unique_prompts"]


def unique_prompts(dataset: Dataset | IterableDataset, dataset_name: str) -> Dataset:
    """
    Keeps one row for each distinct prompt: in the position of its first row, with the completion of its last.

    That is the authors' rule for supervised fine-tuning on dialogue, where rows that share a prompt overwrite its
    target.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Tokenized rows.
        dataset_name (`str`):
            Name used in messages.

    Raises:
        ValueError: If the dataset is a stream, of which only a part is known.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`unique_prompts=True` looks at all rows, and the {dataset_name} dataset is a stream. Load it whole."
        )
    last = {tuple(ids): number for number, ids in enumerate(dataset["prompt_ids"])}  # in the order of the first
    return dataset if len(last) == len(dataset) else dataset.select(list(last.values()))
