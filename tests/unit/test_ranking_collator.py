"""Batches of rankings: every key, shape and value, for rows of unequal K and for pairs."""

import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking


THREE = {"prompt_ids": [1, 2, 3], "completion_ids": [[4], [5, 6], [7]], "ranks": [0, 1, 1]}
TWO = {"prompt_ids": [8], "completion_ids": [[9, 9, 9, 9], [4]], "ranks": [0, 1]}
PAIRS = [
    {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6]},
    {"prompt_ids": [7, 8], "chosen_ids": [9], "rejected_ids": [10, 11, 12, 13]},
]
PAD = 99


def test_rows_of_unequal_k():
    batch = DataCollatorForRanking(pad_token_id=PAD)([THREE, TWO])
    expected = {
        "input_ids": [
            [[1, 2, 3, 4, PAD], [1, 2, 3, 5, 6], [1, 2, 3, 7, PAD]],
            [[8, 9, 9, 9, 9], [8, 4, PAD, PAD, PAD], [PAD] * 5],
        ],
        "attention_mask": [
            [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]],
            [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0] * 5],
        ],
        "completion_mask": [
            [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]],
            [[0, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0] * 5],
        ],
        "rank_mask": [[True, True, True], [True, True, False]],
        "ranks": [[0, 1, 1], [0, 1, -1]],
    }
    assert {name: value.tolist() for name, value in batch.items()} == expected
    dtypes = {name: value.dtype for name, value in batch.items()}
    assert dtypes == dict.fromkeys(expected, torch.int64) | {"rank_mask": torch.bool}


def test_ranks_left_out_are_best_first():
    row = {name: value for name, value in THREE.items() if name != "ranks"}
    assert DataCollatorForRanking(PAD)([row, TWO])["ranks"].tolist() == [[0, 1, 2], [0, 1, -1]]


def test_ref_logps():
    rows = [THREE | {"ref_logps": [-1.5, -2.5, -3.5]}, TWO | {"ref_logps": [-4.5, -5.5]}]
    ref_logps = DataCollatorForRanking(PAD)(rows)["ref_logps"]
    assert ref_logps.dtype == torch.float32
    assert ref_logps.tolist() == [[-1.5, -2.5, -3.5], [-4.5, -5.5, 0.0]]


def test_pad_to_multiple_of():
    batch = DataCollatorForRanking(PAD, pad_to_multiple_of=4)([THREE, TWO])
    assert batch["input_ids"].shape == (2, 3, 8)
    assert batch["input_ids"][0, 1].tolist() == [1, 2, 3, 5, 6, PAD, PAD, PAD]
    assert DataCollatorForRanking(PAD, pad_to_multiple_of=5)([THREE, TWO])["input_ids"].shape == (2, 3, 5)


@pytest.mark.parametrize("pad_to_multiple_of", [None, 8])
@pytest.mark.parametrize("max_length", [None, 4, 2])
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_pairs_are_what_trl_makes_of_them(max_length, mode, pad_to_multiple_of):
    rows = [pair | {"ref_chosen_logps": -1.0 - i, "ref_rejected_logps": -5.0 - i} for i, pair in enumerate(PAIRS)]
    options = {"max_length": max_length, "truncation_mode": mode, "pad_to_multiple_of": pad_to_multiple_of}
    theirs = DataCollatorForPreference(PAD, **options)(rows)
    ours = DataCollatorForRanking(PAD, **options)(rows)
    for name in ("input_ids", "attention_mask", "completion_mask"):
        torch.testing.assert_close(ours[name].transpose(0, 1).flatten(0, 1), theirs[name], rtol=0, atol=0)
    assert ours["ranks"].tolist() == [[0, 1], [0, 1]]
    assert ours["rank_mask"].all()
    stacked = torch.stack([theirs["ref_chosen_logps"], theirs["ref_rejected_logps"]], 1)
    torch.testing.assert_close(ours["ref_logps"], stacked, rtol=0, atol=0)


def test_pairs_and_rankings_in_one_batch():
    batch = DataCollatorForRanking(PAD)([THREE, PAIRS[1]])
    assert batch["ranks"].tolist() == [[0, 1, 1], [0, 1, -1]]
    assert batch["input_ids"][1].tolist() == [[7, 8, 9] + [PAD] * 3, [7, 8, 10, 11, 12, 13], [PAD] * 6]


def test_neighbours_change_only_the_padding():
    alone = DataCollatorForRanking(PAD)([TWO])
    beside = DataCollatorForRanking(PAD)([THREE, TWO])
    for name, value in alone.items():
        index = (slice(1, 2), *(slice(size) for size in value.shape[1:]))
        assert beside[name][index].tolist() == value.tolist()


def test_a_truncation_mode_that_does_not_exist():
    with pytest.raises(ValueError, match="`truncation_mode='keep'` does not exist"):
        DataCollatorForRanking(PAD, truncation_mode="keep")
