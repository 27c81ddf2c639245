"""The best completion of every row, which supervised fine-tuning learns from."""

from typing import Any

from datasets import Dataset, IterableDataset

from trl_dpo_ext.data.checks import PROMPT_REPEATED, check_split_prompt
from trl_dpo_ext.data.columns import columns_of
from trl_dpo_ext.data.messages import is_empty
from trl_dpo_ext.data.prompts import answers_repeat_prompts
from trl_dpo_ext.data.rankings.checks import check_ranking_columns
from trl_dpo_ext.data.rankings.one_row import checked_ranking
from trl_dpo_ext.data.rankings.rows import (
    PAIR_COLUMNS,
    best_first,
    select_completions,
    split_shared_prompt,
)


__all__ = ["only_best", "unique_prompts"]


def only_best(
    dataset: Dataset | IterableDataset, dataset_name: str, score_tie_gap: float = 0.0, num_proc: int | None = None
) -> tuple[Dataset | IterableDataset, int | None]:
    """
    Keeps the best completion of every row, of several that tie the first.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Preference pairs, rankings or scored completions, raw or tokenised.
        dataset_name (`str`):
            Name used in messages.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            See [`~trl_dpo_ext.data.rankings.rows.ranks_from_scores`].
        num_proc (`int`, *optional*):
            Processes to use.

    Returns:
        `tuple`: Rankings of one completion, and how many repeated their prompt, which is taken once (`None` of a
        stream).

    Raises:
        ValueError: If a column is wrong, or a row is malformed.
    """
    columns = columns_of(dataset)
    check_ranking_columns(columns, dataset_name)
    streaming = isinstance(dataset, IterableDataset)
    best = dataset.map(
        _best_of_row,
        with_indices=True,
        fn_kwargs={
            "dataset_name": dataset_name,
            "score_tie_gap": score_tie_gap,
            "repeats": answers_repeat_prompts(dataset, columns),
        },
        remove_columns=[name for name in columns if name in PAIR_COLUMNS],
        # `IterableDataset.map` takes neither
        **({} if streaming else {"num_proc": num_proc, "desc": f"Taking the best answers of {dataset_name} dataset"}),
    )
    repeated = sum(best[PROMPT_REPEATED]) if isinstance(best, Dataset) else None
    return best.remove_columns(PROMPT_REPEATED), repeated


def _best_of_row(
    row: dict[str, Any], index: int, dataset_name: str, score_tie_gap: float, repeats: bool
) -> dict[str, Any]:
    where = f"row {index} of the {dataset_name} dataset"
    ranking, tokenized, repeated = checked_ranking(row, index, dataset_name, repeats=repeats)
    column = "completion_ids" if tokenized else "completions"
    if not ranking[column]:
        return ranking | {PROMPT_REPEATED: repeated}  # preparation leaves it out
    (best, *_), _ = best_first(ranking, len(ranking[column]), score_tie_gap)
    if not tokenized and "prompt" not in ranking:
        several = sum(not is_empty(value) for value in ranking[column]) > 1
        ranking["prompt"], ranking[column] = split_shared_prompt(ranking[column])
        if several:
            check_split_prompt(ranking, ranking["prompt"], where, dataset_name)
    return select_completions(ranking, [best]) | {PROMPT_REPEATED: repeated}


def unique_prompts(dataset: Dataset | IterableDataset, dataset_name: str) -> Dataset:
    """
    Keeps one row for each distinct prompt: at the place of its first, with the completion of its last.

    That is the authors' rule for supervised fine-tuning on dialogue, where rows that share a prompt overwrite its
    target.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Tokenised rows.
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
