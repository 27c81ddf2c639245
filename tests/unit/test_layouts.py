"""Groups and layouts against hand-written ones, and what each token sees against an enumeration of its own past."""

import pytest
import torch
from torch import Tensor

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.shared_prompt.groups import PromptGroups
from trl_dpo_ext.shared_prompt.layout import Layout, lay_out, pack
from trl_dpo_ext.shared_prompt.masks import block_mask, dense_mask


CPU = torch.device("cpu")


def batch_of(*groups: tuple[list[int], list[list[int]]], width: int | None = None) -> dict[str, Tensor]:
    """Ranked groups `(B, K, T)` of (prompt, completions)."""
    completions = max(len(ys) for _, ys in groups)
    width = width or max(len(x) + len(y) for x, ys in groups for y in ys)
    names = ("input_ids", "attention_mask", "completion_mask")
    batch = {name: torch.zeros(len(groups), completions, width, dtype=torch.long) for name in names}
    for b, (x, ys) in enumerate(groups):
        for k, y in enumerate(ys):
            batch["input_ids"][b, k, : len(x + y)] = torch.tensor(x + y)
            batch["attention_mask"][b, k, : len(x + y)] = 1
            batch["completion_mask"][b, k, len(x) : len(x + y)] = 1
    exists = batch["attention_mask"].any(dim=-1)  # (B, K)
    return batch | {"rank_mask": exists, "ranks": torch.where(exists, torch.arange(exists.size(1)), -1)}


def random_batch(seed: int) -> dict[str, Tensor]:
    """Ragged groups of one to four completions, with prompts from one token on."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def ids(length: int) -> list[int]:
        return torch.randint(1, 50, (length,), generator=generator).tolist()

    return batch_of(*((ids(number(1, 9)), [ids(number(1, 7)) for _ in range(number(1, 5))]) for _ in range(5)))


class TestGroups:
    def test_ranked(self):
        groups = Batch.of(batch_of(([1, 2], [[3, 4], [5]]), ([6], [[7, 8, 9], [7], [8, 8]]))).groups
        assert groups.members == [[0, 1], [2, 3, 4]]
        assert groups.shared == [2, 1]
        assert groups.starts == [2, 2, 1, 1, 1]
        assert groups.lengths == [4, 3, 4, 2, 3]
        assert groups.places == [0, 1, 3, 4, 5]  # the third of the first group does not exist
        assert groups.padded_right
        assert groups.sizes == [2 + 1 + 0, 1 + 2 + 0 + 1]

    def test_stacked_pairs(self):
        pairs = {
            "input_ids": torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7], [1, 2, 8, 9], [4, 5, 6, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]),
            "completion_mask": torch.tensor([[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 0]]),
        }
        groups = Batch.of(pairs).groups
        assert groups.members == [[0, 2], [1, 3]]
        assert groups.shared == [2, 1]
        assert groups.lengths == [3, 4, 4, 3]
        assert groups.places is None

    def test_only_the_prompt_is_shared_though_completions_start_alike(self):
        assert Batch.of(batch_of(([1], [[2, 3], [2, 4]]))).groups.shared == [1]

    def test_prompts_that_were_cut_differently_share_what_they_have_in_common(self):
        batch = batch_of(([1, 2, 3], [[4], [5]]))
        batch["input_ids"][0, 1, 1] = 9
        assert Batch.of(batch).groups.shared == [1]

    def test_rows_padded_on_the_left_are_seen(self):
        batch = batch_of(([1, 2], [[3, 4], [5]]))
        batch["attention_mask"][0, 1] = torch.tensor([0, 1, 1, 1])
        assert not Batch.of(batch).groups.padded_right

    def test_parts(self):
        groups = Batch.of(batch_of(([1], [[2], [3], [4]]), ([5], [[6], [7]]))).groups
        assert [part.members for part in groups.parts(2)] == [[[0, 1], [3, 4]], [[2]]]
        assert groups.parts(3) == [groups]
        assert groups.parts(None) == [groups]

    def test_apart(self):
        apart = Batch.of(batch_of(([1, 2], [[3], [4, 5]]))).groups.apart()
        assert (apart.members, apart.shared) == ([[0], [1]], [2, 2])

    def test_there_and_back(self):
        batch = batch_of(([1], [[2], [3]]), ([5], [[6]]))
        read = Batch.of(batch)
        assert read.rows["input_ids"].tolist() == [[1, 2], [1, 3], [5, 6]]
        assert read.to_groups(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1.0, 2.0], [3.0, 0.0]]


class TestPack:
    def test_largest_first_each_where_it_fits(self):
        assert pack([5, 3, 4, 2, 1], budget=6) == [[0, 4], [2, 3], [1]]

    def test_a_larger_group_has_its_own_row(self):
        assert pack([9, 2], budget=4) == [[0], [1]]

    def test_none_is_one_row_and_zero_a_row_each(self):
        assert pack([1, 2, 3], None) == [[0, 1, 2]]
        assert sorted(pack([1, 2, 3], 0)) == [[0], [1], [2]]

    @pytest.mark.parametrize("budget", [10, 17, 40])
    def test_every_group_is_in_one_row_within_the_budget(self, budget):
        sizes = torch.randint(1, 20, (50,), generator=torch.Generator().manual_seed(budget)).tolist()
        rows = pack(sizes, budget)
        assert sorted(group for row in rows for group in row) == list(range(50))
        assert all(len(row) == 1 or sum(sizes[group] for group in row) <= budget for row in rows)


class TestLayout:
    def test_by_hand(self):
        batch = batch_of(([11, 12, 13], [[21, 22, 23], [31]]), ([14], [[41, 42]]))
        groups = Batch.of(batch).groups
        layout = lay_out(groups, None, CPU)
        ids = Batch.of(batch).rows["input_ids"].flatten()
        assert ids[layout.tokens].tolist() == [[11, 12, 13, 21, 22, 14, 41]]
        assert layout.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
        assert layout.groups.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
        assert layout.branches.tolist() == [[0, 0, 0, 1, 1, 0, 1]]
        assert layout.segments == ((3, (2, 0)), (1, (1,)))
        predicted = sorted(zip(layout.scored.tolist(), ids[layout.labels].tolist(), strict=True))
        assert predicted == [(2, 21), (2, 31), (3, 22), (4, 23), (5, 41), (6, 42)]
        # Row 0 predicts positions 3, 4, 5 of its sequence, which are 2, 3, 4 of the shifted ones
        assert sorted(layout.targets.tolist()) == [2, 3, 4, 5 + 2, 10 + 0, 10 + 1]

    def test_rows_are_filled_up(self):
        layout = lay_out(Batch.of(batch_of(([1, 2], [[3, 4]]), ([5], [[6]]))).groups, 0, CPU)
        assert layout.groups.tolist() == [[0, 0, 0], [1, -1, -1]]
        assert layout.segments == ((2, (1,)), (1, (0,)), (2, ()))

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("budget", [None, 0, 25])
    @pytest.mark.parametrize("shares", [True, False])
    @pytest.mark.parametrize("window", [None, 3])
    def test_each_token_sees_its_own_past(self, seed, budget, shares, window):
        batch = random_batch(seed)
        read = Batch.of(batch)
        groups, rows = read.groups, read.rows
        part = groups if shares else groups.apart()
        layout = lay_out(part, budget, CPU)
        mask = dense_mask(layout, window)[:, 0]
        places, ids = layout.tokens.flatten(), rows["input_ids"].flatten()
        width = groups.width
        scored_once = set()
        for token, target, label in zip(
            layout.scored.tolist(), layout.targets.tolist(), layout.labels.tolist(), strict=True
        ):
            row, step = divmod(target, width - 1)
            assert label == row * width + step + 1
            packed, place = divmod(token, layout.tokens.size(1))
            seen = mask[packed, place].nonzero().flatten()
            past = rows["input_ids"][row, : step + 1].tolist()
            if window is not None:
                past = past[-window:]
            in_row = places.view(layout.tokens.shape)[packed, seen]
            order = layout.positions[packed, seen].argsort()
            assert ids[in_row[order]].tolist() == past
            scored_once.add((row, step))
        expected = rows["completion_mask"][:, 1:].nonzero().tolist()
        assert scored_once == set(map(tuple, expected))
        assert len(layout.scored) == len(expected)

    @pytest.mark.parametrize("window", [None, 3])
    def test_blocks_see_what_the_dense_mask_sees(self, window):
        layout = lay_out(Batch.of(random_batch(0)).groups, 30, CPU)
        blocks = block_mask(layout, window)
        rows, width = layout.tokens.shape
        row, query, key = torch.meshgrid(*map(torch.arange, (rows, width, width)), indexing="ij")
        assert torch.equal(blocks.mask_mod(row, 0, query, key), dense_mask(layout, window)[:, 0])

    def test_masks_are_made_once(self):
        layout = lay_out(Batch.of(random_batch(0)).groups, None, CPU)
        assert dense_mask(layout) is dense_mask(layout)
        assert dense_mask(layout) is not dense_mask(layout, 3)

    def test_additive_mask(self):
        layout = lay_out(Batch.of(random_batch(0)).groups, None, CPU)
        added = dense_mask(layout, additive=torch.float32)
        assert torch.equal(added == 0, dense_mask(layout))
        assert added.unique().tolist() == [torch.finfo(torch.float32).min, 0.0]


def test_groups_are_made_with_one_look_at_the_values(monkeypatch):
    looks: list[int] = []
    given = Tensor.tolist
    batch = random_batch(1)
    parts = [batch[name] for name in ("input_ids", "attention_mask", "completion_mask")]
    monkeypatch.setattr(Tensor, "tolist", lambda self: looks.append(1) or given(self))
    groups = PromptGroups.find(*parts, stacked=False)
    layout = lay_out(groups, None, CPU)
    assert isinstance(layout, Layout)
    assert len(looks) == 1
