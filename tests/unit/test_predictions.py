"""Every row has its prediction, also one that training leaves out."""

import pytest
from closeness import same
from datasets import Dataset
from integration.conftest import TINY
from tiny import tiny_llama, tiny_tokenizer
from unit.conftest import GOOD, SAME

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer


@pytest.mark.usefixtures("float64")
def test_every_row_has_its_prediction(tmp_path):
    # A row without a preference carries no loss, but its neighbours must stay in their places
    trainer = DPOPaperTrainer(
        tiny_llama(),
        args=DPOPaperConfig(str(tmp_path), **TINY | {"reference_free": True}),
        train_dataset=Dataset.from_list([GOOD]),
        processing_class=tiny_tokenizer(),
    )
    other = GOOD | {"chosen": " Sure."}
    predictions = trainer.predict(Dataset.from_list([GOOD, SAME, other])).predictions
    assert len(predictions) == 3
    for place, row in ((0, GOOD), (2, other)):
        alone = trainer.predict(Dataset.from_list([row])).predictions[0]
        assert predictions[place].tolist() == same(alone.tolist())
