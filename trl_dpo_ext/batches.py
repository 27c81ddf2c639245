"""Shape of a batch: B prompts with up to K completions each, for any layout of its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trl_dpo_ext.shared_prompt.groups import PromptGroups
from trl_dpo_ext.shared_prompt.layout import to_device


__all__ = [
    "GROUPS",
    "HAS_TIES",
    "RANKING_REF_LOGPS_COLUMN",
    "REF_LOGPS_COLUMNS",
    "Batch",
    "first_examples",
    "first_pairs",
    "num_examples",
    "stacked_to_pairs",
    "with_groups",
]

# Columns of reference log-probabilities: of pairs, by TRL's names, and of rankings
REF_LOGPS_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
RANKING_REF_LOGPS_COLUMN = "ref_logps"

# Entries of a collated batch that are no tensors, where a collator has found out: its groups, and whether ranks tie
GROUPS = "prompt_groups"
HAS_TIES = "has_ties"

_TOKENS = ("input_ids", "attention_mask", "completion_mask")
_NOT_FOR_THE_MODEL = {*REF_LOGPS_COLUMNS, GROUPS, HAS_TIES}


@dataclass(frozen=True)
class Batch:
    """
    A batch of pairs or rankings: prompts with their completions.

    Collators return stacked rows `(2B, T)`, all chosen answers before all rejected ones (TRL), or groups `(B, K, T)`
    ([`~trl_dpo_ext.data.rankings.collator.DataCollatorForRanking`]). Models get rows `(N, T)` of the N completions
    that exist. Everything else has the shape `(B, K, ...)`.

    Args:
        rows (`dict`):
            Inputs of the models: `input_ids`, `attention_mask` and `completion_mask` `(N, T)`, and other entries of
            the collator.
        num_prompts, num_completions (`int`):
            B and K.
        is_stacked (`bool`):
            Whether rows are ordered `[all first completions; all second ones]`, instead of by prompt.
        groups ([`~trl_dpo_ext.shared_prompt.groups.PromptGroups`], *optional*):
            Rows that share a prompt. `None` for rows with images, which are run separately.
        places (`torch.Tensor` of shape `(N,)`, *optional*):
            For each row its place among the `B * K` completions. `None` if all exist.
        ranks (`torch.Tensor` of shape `(B, K)`, int):
            0 for the best, equal for ties.
        exists (`torch.Tensor` of shape `(B, K)`, bool):
            `True` where a completion exists.
        ref_logps (`torch.Tensor` of shape `(B, K)`, *optional*):
            Reference log-probabilities from the columns of the dataset, in nats.
        weights (`torch.Tensor` of shape `(B,)`):
            1 for examples of this process, 0 for examples that accelerate repeats to fill a batch.
        has_ties (`bool`, *optional*):
            Whether completions share a rank, if that is known without waiting for a device.
    """

    rows: dict[str, Any]
    num_prompts: int
    num_completions: int
    is_stacked: bool
    groups: PromptGroups | None
    places: Tensor | None
    ranks: Tensor
    exists: Tensor
    ref_logps: Tensor | None
    weights: Tensor
    has_ties: bool | None = None

    @classmethod
    def of(
        cls,
        collated: Mapping[str, Any],
        *,
        num_real: int | None = None,
        largest: int | None = None,
        has_images: bool = False,
    ) -> "Batch":
        """
        Reads a collated batch. Without its [`GROUPS`] this waits for a GPU once.

        Args:
            collated (`Mapping`):
                Batch from the collator.
            num_real (`int`, *optional*):
                Number of real examples, which come first. The others are dropped, or get weight 0 if rows have images.
                Default: all.
            largest (`int`, *optional*):
                Number of completions of the largest group in the batches of all processes. Default: K.
            has_images (`bool`, *optional*, defaults to `False`):
                Whether rows have images.

        Returns:
            [`Batch`]
        """
        real = num_examples(collated) if num_real is None else num_real
        if not has_images:
            collated = first_examples(collated, max(real, 1))
        is_stacked = not _is_ranked(collated)
        tokens = _tokens_of(collated)
        prompts, completions = tokens["input_ids"].shape[:2]
        device = tokens["input_ids"].device
        groups = None if has_images else _groups_of(collated, tokens, largest)
        places = None
        if groups is not None and groups.places is not None:
            places = to_device(torch.tensor(groups.places), device)
        if is_stacked:
            rows = {name: value for name, value in collated.items() if name not in _NOT_FOR_THE_MODEL}
            ranks = torch.arange(completions, device=device).expand(prompts, completions)
            exists = torch.ones_like(ranks, dtype=torch.bool)
            pair = [collated[name] for name in REF_LOGPS_COLUMNS if name in collated]
            ref_logps = torch.stack(pair, dim=1) if len(pair) == 2 else None
        else:
            rows = {name: tokens[name].flatten(0, 1) for name in _TOKENS}
            if places is not None:
                rows = {name: values[places] for name, values in rows.items()}
            ranks, exists = collated["ranks"], collated["rank_mask"]
            ref_logps = collated.get(RANKING_REF_LOGPS_COLUMN)
        return cls(
            rows=rows,
            num_prompts=prompts,
            num_completions=completions,
            is_stacked=is_stacked,
            groups=groups,
            places=places,
            ranks=ranks,
            exists=exists,
            ref_logps=ref_logps,
            weights=(torch.arange(prompts, device=device) < real).float(),
            has_ties=collated.get(HAS_TIES),
        )

    def to_groups(self, values: Tensor) -> Tensor:
        """Arranges values `(N, ...)` of the rows by prompt, `(B, K, ...)`, with 0 where no completion exists."""
        if self.is_stacked:
            return stacked_to_pairs(values)
        size = (self.num_prompts, self.num_completions)
        if self.places is not None:
            whole = values.new_zeros(size[0] * size[1], *values.shape[1:])
            values = whole.index_copy(0, self.places, values)
        return torch.unflatten(values, 0, size)

    @property
    def num_tokens(self) -> Tensor:
        """Number of tokens of the real examples, without padding, `()`."""
        of_rows = self.to_groups(self.rows["attention_mask"].sum(dim=1))  # (B, K)
        return (of_rows.sum(dim=1) * self.weights).sum()


def with_groups(collated: dict[str, Any], largest: int | None = None) -> dict[str, Any]:
    """Adds to what a collator made of rows of text, on the host, what would else wait for a device to be found out."""
    has_ties = False
    if _is_ranked(collated):
        in_order, exists = collated["ranks"].sort(dim=1).values, collated["rank_mask"].sort(dim=1).values
        has_ties = bool(((in_order[:, 1:] == in_order[:, :-1]) & exists[:, :-1]).any())
    return collated | {GROUPS: _groups_of(collated, _tokens_of(collated), largest), HAS_TIES: has_ties}


def num_examples(collated: Mapping[str, Any]) -> int:
    """Number of examples in a collated batch: rankings, or pairs, which TRL stacks."""
    rows = collated["input_ids"].size(0)
    return rows if _is_ranked(collated) else rows // 2


def first_examples(collated: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Returns a collated batch of text with only its first examples."""
    total = num_examples(collated)

    def keep(value: Tensor) -> Tensor:
        # One value per example, such as reference log-probabilities, or stacked rows
        return value[:number] if value.size(0) == total else first_pairs(value, number)

    if number >= total:
        return dict(collated)
    return {name: keep(value) if isinstance(value, Tensor) else value for name, value in collated.items()}


def stacked_to_pairs(stacked: Tensor) -> Tensor:
    """Converts TRL's stacked rows, `[all chosen; all rejected]` of shape `(2B, ...)`, to `(B, 2, ...)`."""
    pairs: Tensor = torch.unflatten(stacked, 0, (2, -1)).transpose(0, 1)
    return pairs


def first_pairs(stacked: Tensor, pairs: int) -> Tensor:
    """Returns the first pairs of stacked rows `(2B, ...)`."""
    return stacked.unflatten(0, (2, -1))[:, :pairs].flatten(0, 1)


def _tokens_of(collated: Mapping[str, Any]) -> dict[str, Tensor]:
    # By prompt, (B, K, T)
    if _is_ranked(collated):
        return {name: collated[name] for name in _TOKENS}
    return {name: stacked_to_pairs(collated[name]) for name in _TOKENS}


def _groups_of(collated: Mapping[str, Any], tokens: Mapping[str, Tensor], largest: int | None) -> PromptGroups:
    found: PromptGroups | None = collated.get(GROUPS)
    if found is None:
        return PromptGroups.find(**tokens, stacked=not _is_ranked(collated), most=largest)
    return found.first(tokens["input_ids"].size(0))


def _is_ranked(collated: Mapping[str, Any]) -> bool:
    return "rank_mask" in collated
