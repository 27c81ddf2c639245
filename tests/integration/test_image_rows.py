"""Rows with images whose cut leaves nothing of an answer: an error before training, or at the row."""

import pytest
from integration.conftest import TINY
from tiny import preference_rows, tiny_processor, tiny_vlm

from trl_dpo_ext.trainers.dpo_config import DPOPaperConfig
from trl_dpo_ext.trainers.dpo_trainer import DPOPaperTrainer


@pytest.fixture
def make(tmp_path):
    def trainer(max_length, kind="vision", **sets):
        args = DPOPaperConfig(str(tmp_path / "out"), **TINY | {"max_steps": 3, "max_length": max_length})
        sets = {"train_dataset": preference_rows(6, kind)} | sets
        return DPOPaperTrainer(tiny_vlm(), args=args, processing_class=tiny_processor(), **sets)

    return trainer


def test_the_first_row_is_cut_before_training(make):
    with pytest.raises(ValueError, match="`max_length=10` leaves row 0 of the train dataset no token of an answer"):
        make(10)
    with pytest.raises(ValueError, match="`max_length=40` leaves row 0 of the held dataset no token of an answer"):
        make(40, "mixed_vision", eval_dataset={"held": preference_rows(2, "vision")})


def test_a_later_row_is_named_by_its_prompt(make):
    trainer = make(40, "mixed_vision")  # 0, 1 and 2 images in turn
    with pytest.raises(
        ValueError, match="`max_length=40` leaves the row whose prompt begins with 'What is in the pict"
    ):
        trainer.train()
