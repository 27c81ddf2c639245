"""The seams: right on the installed TRL, named when one moves, and complete."""

import inspect
import re

import pytest
import transformers
import trl
from trl import DPOTrainer, GRPOTrainer, RLOOTrainer

from trl_dpo_ext import (
    BaseDPOTrainer,
    DPOPaperTrainer,
    PPOPaperTrainer,
    PreferredFTTrainer,
    RankingDPOTrainer,
    RLOOPaperTrainer,
    UnlikelihoodTrainer,
)
from trl_dpo_ext.compat import PPO_SEAMS, RLOO_SEAMS, SEAMS, check_seams


TRAINERS = (DPOPaperTrainer, PreferredFTTrainer, RankingDPOTrainer, UnlikelihoodTrainer)
OURS = {cls for trainer in TRAINERS for cls in trainer.__mro__ if cls.__module__.startswith("trl_dpo_ext.")}


def test_the_installed_trl_has_every_seam():
    assert check_seams() is None
    assert check_seams(DPOPaperTrainer) is None  # so overriding changes no signature either


def _with_another_parameter(self, dataset, processing_class, args, dataset_name, split): ...


def _without_a_parameter(self, dataset, name): ...


def _with_a_renamed_parameter(self, model, inputs, return_outputs=False, num_items=None): ...


@pytest.mark.parametrize(
    ("name", "method", "now"),
    [
        ("evaluation_loop", None, "is missing"),
        ("_prepare_dataset", _with_another_parameter, "is now (dataset, processing_class, args, dataset_name, split)"),
        ("_precompute_ref_logps", _without_a_parameter, "is now (dataset, name)"),
        ("compute_loss", _with_a_renamed_parameter, "is now (model, inputs, return_outputs, num_items)"),
    ],
)
def test_a_seam_that_moved_is_named(name, method, now):
    moved = type("MovedTrainer", (DPOTrainer,), {name: method})
    expected = f"`MovedTrainer.{name}({', '.join(SEAMS[name])})` {now} in trl {trl.__version__}"
    with pytest.raises(ImportError, match=re.escape(expected)) as error:
        check_seams(moved)
    assert f"transformers {transformers.__version__}" in str(error.value)
    assert "constraints.txt" in str(error.value) and "upgrade trl_dpo_ext" in str(error.value)


def overridden(cls: type, of: type = DPOTrainer) -> set[str]:
    """Methods and properties of TRL's class that a class of ours replaces."""
    return {
        name
        for name, value in vars(cls).items()
        if (inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod)))
        and hasattr(of, name)
    }


def test_every_override_is_a_seam():
    assert DPOPaperTrainer in OURS and len(OURS) >= 2
    found = set().union(*map(overridden, OURS))
    assert {"compute_loss", "_prepare_dataset", "log"} <= found  # the search finds something
    assert found - set(SEAMS) == set()


def test_every_override_stands_in_one_file():
    assert {cls for cls in OURS if overridden(cls)} == {BaseDPOTrainer}


def test_what_changes_too_often_is_not_overridden():
    # `_compute_loss` had ten bodies in fifteen releases
    assert "_compute_loss" not in set().union(*map(overridden, OURS))


@pytest.mark.parametrize(
    ("trainer", "of", "seams"),
    [(RLOOPaperTrainer, RLOOTrainer, RLOO_SEAMS), (PPOPaperTrainer, GRPOTrainer, PPO_SEAMS)],
)
def test_seams_of_reinforcement_learning(trainer, of, seams):
    check_seams(of, seams)
    ours = [cls for cls in trainer.__mro__ if cls.__module__.startswith("trl_dpo_ext.")]
    found = set().union(*(overridden(cls, of) for cls in ours))
    assert {"_calculate_rewards", "_generate_and_score_completions"} <= found
    assert found - set(seams) == set()
    without = {name: parameters for name, parameters in seams.items() if name != "__init__"}
    check_seams(trainer, without)  # so overriding changes no signature either
    moved = type("MovedTrainer", (of,), {"_calculate_rewards": _without_a_parameter})
    with pytest.raises(ImportError, match=re.escape("`MovedTrainer._calculate_rewards(inputs, prompts, ")):
        check_seams(moved, seams)


def test_constructor_arguments_are_trl_s_in_the_same_order():
    ours, theirs = (inspect.signature(cls.__init__).parameters.values() for cls in (DPOPaperTrainer, DPOTrainer))
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
