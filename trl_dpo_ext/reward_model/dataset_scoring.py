"""Scoring of datasets: rewards as columns, relabeled pairs, agreement with preferences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from trl_dpo_ext.data.checks import check_columns
from trl_dpo_ext.data.columns import holds_images, opened, plain, type_of_both, typed
from trl_dpo_ext.data.prompts import answers_repeat_prompts
from trl_dpo_ext.data.rankings.checks import check_ranking_columns
from trl_dpo_ext.reward_model.results import PreferenceAccuracy, PreferenceReport
from trl_dpo_ext.reward_model.reward_columns import as_columns, completions_of, reward_columns


__all__ = ["WithDatasets"]

_CHOSEN, _REJECTED, _SWAPPED = "score_chosen", "score_rejected", "swapped"


class WithDatasets:
    """Methods of a reward model that score datasets."""

    def score_rows(self, rows: Iterable[Mapping[str, Any]], name: str = "scored") -> list[list[float]]:
        """Returns the rewards of the completions of each row."""
        raise NotImplementedError

    def score_dataset(self, dataset: Dataset) -> Dataset:
        """
        Adds rewards to the rows of a dataset.

        Args:
            dataset (`Dataset`):
                Rows with `completions` get `scores`, as accepted by [`RankingDPOTrainer`] and
                [`~trl_dpo_ext.data.conversion.to_pairs.all_pairs`]. Rows with `chosen` and `rejected` get
                `score_chosen` and `score_rejected`. Rows with `completion` get `score`. `prompt` may be missing if the
                completions contain it. `tools` and `chat_template_kwargs` are used.

        Returns:
            `Dataset`

        Raises:
            ValueError: If a column is missing or exists already, or a row is invalid.
        """
        _check_dataset(dataset)
        if "completion" not in dataset.column_names:
            check_ranking_columns(dataset.column_names, "scored")
            if not any(kind <= set(dataset.column_names) for kind in ({"completions"}, {"chosen", "rejected"})):
                raise ValueError("The dataset has token ids but no text. Rewards are computed from the text.")
        names = reward_columns(dataset.column_names)
        _check_no_columns(dataset.column_names, names)
        rewards = [as_columns(row, names) for row in self._score(dataset)]
        for name in names:
            dataset = dataset.add_column(name, [row[name] for row in rewards])
        return dataset

    def relabel(self, dataset: Dataset) -> Dataset:
        """
        Relabels preference pairs: the completion with the larger reward becomes the chosen one.

        This is the self-labeling that section 7 of the paper suggests. Other columns that both completions have are
        swapped too.

        Args:
            dataset (`Dataset`):
                Preference pairs. Pairs with equal rewards are not changed.

        Returns:
            `Dataset`: The rows, with `score_chosen`, `score_rejected` and `swapped` (bool).

        Raises:
            ValueError: If a column is missing or exists already, or a row is invalid.
        """
        _check_dataset(dataset)
        dataset = plain(dataset, "scored")
        _check_no_columns(dataset.column_names, [_CHOSEN, _REJECTED, _SWAPPED])
        chosen, rejected = self._score_pairs(dataset)
        swapped = [a < b for a, b in zip(chosen, rejected, strict=True)]
        scored = dataset.add_column(_CHOSEN, chosen).add_column(_REJECTED, rejected).add_column(_SWAPPED, swapped)
        sides = {
            name: other
            for name in scored.column_names
            if "chosen" in name and (other := name.replace("chosen", "rejected")) in scored.column_names
        }
        types = scored.features
        both = {one: type_of_both(types[one], types[other]) for one, other in sides.items()}
        both |= {other: both[one] for one, other in sides.items()}
        return scored.map(_swap, fn_kwargs={"sides": sides}, desc="Relabeling pairs", **typed(scored, both))

    def evaluate_preferences(self, dataset: Dataset, *, subset_column: str = "subset") -> PreferenceReport:
        """
        Measures how often the chosen completion has the larger reward, as in RewardBench.

        Args:
            dataset (`Dataset`):
                Preference pairs.
            subset_column (`str`, *optional*, defaults to `"subset"`):
                Column with the subset of each pair, if there is one.

        Returns:
            [`~trl_dpo_ext.reward_model.results.PreferenceReport`]: Accuracy (share of pairs with a strictly larger
            chosen reward), ties, margins and counts, overall and by subset, and the mean over subsets.

        Raises:
            ValueError: If a column is missing, or a row is invalid.
        """
        _check_dataset(dataset)
        chosen, rejected = self._score_pairs(dataset)
        members: dict[str, list[int]] = {}
        if subset_column in dataset.column_names:
            for index, subset in enumerate(dataset[subset_column]):
                members.setdefault(str(subset), []).append(index)
        return PreferenceReport(
            overall=PreferenceAccuracy.of(chosen, rejected),
            subsets={
                name: PreferenceAccuracy.of([chosen[i] for i in rows], [rejected[i] for i in rows])
                for name, rows in members.items()
            },
        )

    def _score_pairs(self, dataset: Dataset) -> tuple[list[float], list[float]]:
        check_columns(dataset.column_names, "scored")
        for name in ("chosen", "rejected"):
            if name not in dataset.column_names:
                raise ValueError(f"The dataset has token ids but no column `{name}`. Rewards are computed from text.")
        others = [name for name in ("completion", "completions") if name in dataset.column_names]
        rewards = self._score(dataset.remove_columns(others))
        return [pair[0] for pair in rewards], [pair[1] for pair in rewards]

    def _score(self, dataset: Dataset) -> list[list[float]]:
        dataset = opened(dataset, "scored")
        repeats = answers_repeat_prompts(dataset, dataset.column_names)
        return self.score_rows(completions_of(row, "scored", repeats=repeats) for row in dataset)


def _swap(row: Mapping[str, Any], sides: Mapping[str, str]) -> dict[str, Any]:
    there = {**sides, **{other: one for one, other in sides.items()}}
    return {name: row[there[name] if row[_SWAPPED] else name] for name in there}


def _check_dataset(dataset: Any) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Expected a `datasets.Dataset`, got a `{type(dataset).__name__}`. Load a streaming dataset into memory "
            "with `Dataset.from_list(list(stream))`; pass one split of a `DatasetDict`."
        )
    if not len(dataset):
        raise ValueError("The dataset has no rows.")
    if images := holds_images(dataset):
        raise ValueError(f"The dataset has the column `{images[0]}`. Rewards are computed for text and chat only.")


def _check_no_columns(columns: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if name in columns:
            raise ValueError(
                f"The dataset already has a column `{name}`. Rename it with `dataset.rename_column` or remove it."
            )
