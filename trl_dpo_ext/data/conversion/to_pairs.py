"""Conversion of scores to rankings, and of rankings to pairs for comparison with DPO."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset, Value
from transformers.utils import logging

from trl_dpo_ext.batches import RANKING_REF_LOGPS_COLUMN, REF_LOGPS_COLUMNS
from trl_dpo_ext.data.columns import columns_of, typed
from trl_dpo_ext.data.rankings.checks import check_ranking, check_ranking_columns
from trl_dpo_ext.data.rankings.order import (
    PER_COMPLETION_COLUMNS,
    best_first,
    empty_completions,
    ranks_from_scores,
    repeated_completions,
    select_completions,
)


__all__ = ["all_pairs", "best_random_pairs", "best_worst_pairs", "scores_to_ranking"]

logger = logging.get_logger(__name__)

_ROW = "__row"
_NOT_CARRIED = (*PER_COMPLETION_COLUMNS, "prompt_ids")


def scores_to_ranking(row: Mapping[str, Any], index: int | None = None, score_tie_gap: float = 0.0) -> dict[str, Any]:
    """
    Converts a scored row to a ranking, best first. Scores that tie give equal ranks.

    Args:
        row (`Mapping`):
            Row with `completions` and `scores` (higher is better).
        index (`int`, *optional*):
            Index of the row, for messages: `dataset.map(scores_to_ranking, with_indices=True)`.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            Difference up to which scores tie. See [`~trl_dpo_ext.data.rankings.order.ranks_from_scores`].

    Returns:
        `dict`: The row with sorted `completions` and `scores`, and `ranks` without gaps.

    Raises:
        ValueError: If a value is missing or has the wrong type.

    Example:
    ```python
    >>> from trl_dpo_ext.data import scores_to_ranking

    >>> row = {"prompt": "2 + 2 =", "completions": [" 5", " 4", " four"], "scores": [0.1, 0.9, 0.8]}
    >>> scores_to_ranking(row, score_tie_gap=0.2)
    {'prompt': '2 + 2 =', 'completions': [' 4', ' four', ' 5'], 'scores': [0.9, 0.8, 0.1], 'ranks': [0, 0, 1]}

    ```
    """
    where = "a row" if index is None else f"row {index}"
    if row.get("scores") is None:
        raise ValueError(f"`scores` in {where} is missing. Give a score for every completion.")
    check_ranking(row, where)
    ranking = dict(row) | {"ranks": ranks_from_scores(row["scores"], score_tie_gap)}
    order, _ = best_first(ranking, len(row["completions"]))
    return select_completions(ranking, order)


def all_pairs(
    dataset: Dataset | IterableDataset, *, score_tie_gap: float = 0.0, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """
    Converts each ranking to all pairs of a better and a worse completion. Ties give no pairs.

    Empty completions and copies (here: of the text) give no pairs either, as in
    [`~trl_dpo_ext.data.dataset_preparation.prepare_dataset`]. Columns with one value per row are kept.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rankings or scored completions.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            Difference up to which scores tie.
        num_proc (`int`, *optional*):
            Number of processes.

    Returns:
        `Dataset` or `IterableDataset`: Rows with `chosen`, `rejected` and, if present, `prompt`. A ranking of K
        completions without ties gives K (K - 1) / 2 rows.

    Raises:
        ValueError: If a column or a value is missing or has the wrong type, or no ranking gives a pair.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from trl_dpo_ext.data import all_pairs

    >>> rankings = Dataset.from_list([{"prompt": "2 + 2 =", "completions": [" 4", " 5", " 6"], "ranks": [0, 1, 1]}])
    >>> all_pairs(rankings).to_list()
    [{'prompt': '2 + 2 =', 'chosen': ' 4', 'rejected': ' 5'}, {'prompt': '2 + 2 =', 'chosen': ' 4', 'rejected': ' 6'}]

    ```
    """
    return _to_pairs(dataset, _every_pair, score_tie_gap, 0, num_proc)


def best_worst_pairs(
    dataset: Dataset | IterableDataset, *, score_tie_gap: float = 0.0, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """
    Converts each ranking to a pair of its best and its worst completion.

    Of best completions that tie, the first is used; of worst completions that tie, the last. Arguments, columns and
    errors are the same as in [`all_pairs`].

    Returns:
        `Dataset` or `IterableDataset`: One row for each ranking.
    """
    return _to_pairs(dataset, _best_and_worst, score_tie_gap, 0, num_proc)


def best_random_pairs(
    dataset: Dataset | IterableDataset, *, seed: int = 0, score_tie_gap: float = 0.0, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """
    Converts each ranking to a pair of its best completion and a random one of the others.

    Of best completions that tie, the first is used. The random choice depends only on `seed` and on the index of the
    row, not on `num_proc`. The other arguments, columns and errors are the same as in [`all_pairs`].

    Returns:
        `Dataset` or `IterableDataset`: One row for each ranking.
    """
    return _to_pairs(dataset, _best_and_random, score_tie_gap, seed, num_proc)


# Functions of sorted ranks and a random generator, which return the positions of better and worse completions
_Choice = Callable[[Sequence[int], random.Random], list[tuple[int, int]]]


def _every_pair(ranks: Sequence[int], chance: random.Random) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]


def _best_and_worst(ranks: Sequence[int], chance: random.Random) -> list[tuple[int, int]]:
    return [(0, len(ranks) - 1)] if ranks and ranks[0] < ranks[-1] else []


def _best_and_random(ranks: Sequence[int], chance: random.Random) -> list[tuple[int, int]]:
    below = [place for place, rank in enumerate(ranks) if rank > ranks[0]]
    return [(0, chance.choice(below))] if below else []


def _to_pairs(
    dataset: Dataset | IterableDataset, choice: _Choice, score_tie_gap: float, seed: int, num_proc: int | None
) -> Dataset | IterableDataset:
    columns = columns_of(dataset)
    check_ranking_columns(columns, "ranking")
    if "completions" not in columns:
        raise ValueError(f"The dataset has no column `completions`; found {', '.join(columns)}. Expected rankings.")
    streaming = isinstance(dataset, IterableDataset)
    pairs = dataset.map(
        _pairs_of_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={"choice": choice, "score_tie_gap": score_tie_gap, "seed": seed},
        **_types(dataset),
        **({} if streaming else {"num_proc": num_proc, "desc": "Making pairs"}),
    )
    if not isinstance(pairs, Dataset):
        return pairs.remove_columns(_ROW)
    silent = len(dataset) - len(set(pairs[_ROW] if len(pairs) else []))
    if silent == len(dataset):
        raise ValueError("No ranking gives a pair: none has a better and a worse completion.")
    if silent:
        logger.warning(f"{silent} of {len(dataset)} rankings give no pair: they have no better and worse completion.")
    return pairs.remove_columns(_ROW)


def _types(dataset: Dataset | IterableDataset) -> dict[str, Any]:
    given = (dataset.features or {}).get("completions")
    made = dict.fromkeys(("chosen", "rejected"), getattr(given, "feature", given)) | {_ROW: Value("int64")}
    if RANKING_REF_LOGPS_COLUMN in columns_of(dataset):
        made |= dict.fromkeys(REF_LOGPS_COLUMNS, Value("float64"))
    return typed(dataset, made, _NOT_CARRIED)


def _pairs_of_batch(
    batch: dict[str, list[Any]], indices: list[int], choice: _Choice, score_tie_gap: float, seed: int
) -> dict[str, list[Any]]:
    carried = [name for name in batch if name not in _NOT_CARRIED]
    pairs: dict[str, list[Any]] = {name: [] for name in (*carried, "chosen", "rejected", _ROW)}
    with_ref_logps = RANKING_REF_LOGPS_COLUMN in batch
    if with_ref_logps:
        pairs |= {name: [] for name in REF_LOGPS_COLUMNS}
    for place, index in enumerate(indices):
        row = {name: values[place] for name, values in batch.items() if name not in ("prompt_ids", "completion_ids")}
        check_ranking(row, f"row {index}")
        order, ranks = best_first(row, len(row["completions"]), score_tie_gap)
        left_out = empty_completions(dict(enumerate(row["completions"])))
        left = {i: repr(row["completions"][i]) for i in order if i not in left_out}
        left_out = repeated_completions(left, ranks)
        places = [i for i in left if i not in left_out]
        for better, worse in choice([ranks[i] for i in places], random.Random(f"{seed} {index}")):
            pair = (places[better], places[worse])
            for name in carried:
                pairs[name].append(row[name])
            pairs[_ROW].append(index)
            for name, i in zip(("chosen", "rejected"), pair, strict=True):
                pairs[name].append(row["completions"][i])
            if with_ref_logps:
                for name, i in zip(REF_LOGPS_COLUMNS, pair, strict=True):
                    pairs[name].append(row[RANKING_REF_LOGPS_COLUMN][i])
    return pairs
