"""The model card names method, equation, reference and beta."""

from pathlib import Path

import pytest
from integration.conftest import TINY
from tiny import preference_rows, tiny_llama, tiny_tokenizer

import trl_dpo_ext


@pytest.mark.parametrize(
    ("method", "equation", "reference"),
    [
        ("DPOPaper", r"\log \sigma", "second load of the path"),
        ("RankingDPO", r"\prod_{k=1}^{K}", "second load of the path"),
        ("Unlikelihood", r"\alpha \log", "none"),
        ("PreferredFT", r"L = -\log \pi_\theta(y_w|x) $$", "none"),
    ],
)
def test_card(method, equation, reference, llama_folder, tmp_path):
    trainer_class, config_class = (getattr(trl_dpo_ext, method + kind) for kind in ("Trainer", "Config"))
    args = config_class(str(tmp_path), **TINY | {"beta": 0.25})
    trainer = trainer_class(llama_folder, args=args, train_dataset=preference_rows(4))
    trainer.create_model_card(model_name="mine")
    card = Path(tmp_path, "README.md").read_text()
    assert f"`{method}Trainer`" in card
    assert equation in card
    assert "- beta: 0.25" in card
    assert f"- reference: {reference}" in card
    assert (trainer.reference.hash_of(trainer.model) is None) == (reference == "none")
    assert str(trainer.reference.hash_of(trainer.model)) in card or reference == "none"
    assert f"This model is a fine-tuned version of `{Path(llama_folder).name}`.\n" in card
    assert f'pipeline("text-generation", model="{tmp_path.name}", ' in card
    assert "None" not in card
    assert llama_folder not in card  # a path of this machine says nothing to others
    assert ("ImplicitRewardModel" in card) == (reference != "none")
    assert ("- alpha: 1.0" in card) == (method == "Unlikelihood")
    assert card.index("### Method") < card.index("### Framework versions")


def test_another_loss_is_named_and_has_no_equation(llama_folder, tmp_path):
    args = trl_dpo_ext.DPOPaperConfig(str(tmp_path), **TINY | {"loss_type": ["hinge"]})
    trl_dpo_ext.DPOPaperTrainer(llama_folder, args=args, train_dataset=preference_rows(4)).create_model_card()
    card = Path(tmp_path, "README.md").read_text()
    assert "- loss_type: ['hinge']" in card
    assert "$$" not in card


def test_a_model_that_was_built_in_memory(config):
    trainer = trl_dpo_ext.DPOPaperTrainer(
        tiny_llama(), args=config("mine"), train_dataset=preference_rows(4), processing_class=tiny_tokenizer()
    )
    trainer.create_model_card()
    card = Path(trainer.args.output_dir, "README.md").read_text()
    assert "This model is a fine-tuned version of a model built in memory.\n" in card
    assert 'pipeline("text-generation", model="mine", ' in card
