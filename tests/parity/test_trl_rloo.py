"""Where none of TRL's defects can show, updates of RLOO are TRL's."""

import pytest
import torch
import trl
from closeness import same
from datasets import Dataset
from reinforced import letters, logged, options
from tiny import save_tiny, tiny_gpt2, tiny_tokenizer

from trl_dpo_ext import RLOOPaperConfig, RLOOPaperTrainer


pytestmark = pytest.mark.usefixtures("float64")

OURS_ALONE = ("kl_sequence", "objective", "beta", "completions/finished", "step_time")


def test_updates_are_those_of_trl(tmp_path):
    # Prompts of one length, no dropout, and a policy as it was saved
    folder = save_tiny(tiny_gpt2(), tiny_tokenizer(), tmp_path / "sft")
    rows = Dataset.from_dict({"prompt": ["A", "B", "C", "D"]})
    defaults = RLOOPaperConfig(**options(tmp_path))
    names = ("beta", "optim", "lr_scheduler_type", "max_grad_norm", "bf16", "gradient_checkpointing")
    changed = {"max_steps": 3, "num_iterations": 2, "num_generations": 4, "disable_dropout": True}
    args = options(tmp_path, **changed) | {name: getattr(defaults, name) for name in names}

    def weighed(prompts, completions, **kwargs):
        return letters(prompts, completions)

    trainers = []
    for trainer_class, config_class in ((RLOOPaperTrainer, RLOOPaperConfig), (trl.RLOOTrainer, trl.RLOOConfig)):
        model = type(tiny_gpt2()).from_pretrained(folder, dtype=torch.float64)
        trainer = trainer_class(
            model, weighed, config_class(**args), train_dataset=rows, processing_class=tiny_tokenizer()
        )
        trainer.train()
        trainers.append(trainer)
    ours, theirs = trainers
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert logged(ours)[2]["kl"] != 0
    for one, other in zip(logged(ours), logged(theirs), strict=True):
        other.pop("step_time")
        assert {name: value for name, value in one.items() if name not in OURS_ALONE} == same(other)
