"""The best completion of every row, which supervised fine-tuning learns from."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from trl_dpo_ext.data.checks import check_split_prompt
from trl_dpo_ext.data.messages import is_empty
from trl_dpo_ext.data.rankings.order import best_first, select_completions, split_shared_prompt


__all__ = ["best_alone", "unique_prompts"]


def best_alone(
    ranking: Mapping[str, Any], column: str, where: str, dataset_name: str, score_tie_gap: float = 0.0
) -> dict[str, Any]:
    """
    A ranking of only its best completion, of several that tie the first; one without a completion as it is.

    Args:
        ranking (`Mapping`):
            Checked ranking, raw or tokenized.
        column (`str`):
            Its completions: `completions` or `completion_ids`.
        where (`str`):
            The row's name, for messages.
        dataset_name (`str`):
            That of the data set.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            See [`~trl_dpo_ext.data.rankings.order.ranks_from_scores`].

    Raises:
        ValueError: If the completions share no prompt, or another column seems to hold it.
    """
    completions = ranking[column]
    if not completions:
        return dict(ranking)
    (best, *_), _ = best_first(ranking, len(completions), score_tie_gap)
    if column == "completion_ids" or "prompt" in ranking:
        return select_completions(ranking, [best])
    prompt, rest = split_shared_prompt(completions)
    if sum(not is_empty(value) for value in completions) > 1:
        check_split_prompt(ranking, prompt, where, dataset_name)
    return select_completions({**ranking, "prompt": prompt, column: rest}, [best])


def unique_prompts(dataset: Dataset | IterableDataset, dataset_name: str) -> Dataset:
    """
    Keeps one row for each distinct prompt: at the place of its first, with the completion of its last.

    That is the authors' rule for supervised fine-tuning on dialogue, where rows that share a prompt overwrite its
    target.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Tokenized rows.
        dataset_name (`str`):
            Name used in messages.

    Raises:
        ValueError: If the data set is a stream, of which only a part is known.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`unique_prompts=True` looks at all rows, and the {dataset_name} dataset is a stream. Load it whole."
        )
    last = {tuple(ids): number for number, ids in enumerate(dataset["prompt_ids"])}  # in the order of the first
    return dataset if len(last) == len(dataset) else dataset.select(list(last.values()))
