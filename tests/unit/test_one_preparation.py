"""
A row is prepared in one place, which the trainers, the doctor and the reward model all ask.

Every name that stands for the function is replaced by one that adds a token to the prompt. Whoever has a preparation
of its own does not see the token.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from integration.conftest import TINY
from tiny import preference_rows, ranking_rows, tiny_llama, tiny_tokenizer

from trl_dpo_ext import (
    DPOPaperTrainer,
    ImplicitRewardModel,
    PreferredFTTrainer,
    RankingDPOTrainer,
    UnlikelihoodTrainer,
)
from trl_dpo_ext.data.doctor.examination import examine
from trl_dpo_ext.data.row_preparation import prepare_row
from trl_dpo_ext.reward_model.batching import tokenize_rows
from trl_dpo_ext.reward_model.files.row_sources import open_rows
from trl_dpo_ext.reward_model.files.score_file import score_file
from trl_dpo_ext.trainers.base_trainer import BaseDPOTrainer


TOKENIZER = tiny_tokenizer()
MARK = TOKENIZER.convert_tokens_to_ids("z")


def with_mark(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose prompts are one token longer."""

    def marked(*args: Any, **kwargs: Any) -> Any:
        row = prepare(*args, **kwargs)
        row.prompt_ids = [*row.prompt_ids, MARK]
        row.truncated_ids[0] = [*row.truncated_ids[0], MARK]
        return row

    return marked


def replace_everywhere(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], other: Any) -> None:
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "trl_dpo_ext"]
    for module in modules:
        for name in [name for name, value in vars(module).items() if value is function]:
            monkeypatch.setattr(module, name, other)


def prompts_of(trainer_class: type[BaseDPOTrainer], rows: Dataset, folder: Path) -> list[list[int]]:
    """The prompts of a trainer's prepared rows."""
    args = trainer_class.config_class(str(folder / "run"), **TINY)
    trainer = trainer_class(tiny_llama(), args=args, train_dataset=rows, processing_class=TOKENIZER)
    return [list(ids) for ids in trainer.train_dataset["prompt_ids"]]


def longest_prompt(rows: Dataset) -> int:
    """As the doctor counts it."""
    return examine(rows, TOKENIZER, progress=False).lengths["prompt"].max


def reward_model() -> ImplicitRewardModel:
    return ImplicitRewardModel(tiny_llama(1), tiny_llama(), TOKENIZER, beta=0.1)


def scores(rows: Dataset, folder: Path) -> list[list[float]]:
    return reward_model().score_rows(rows)


def scores_of_file(rows: Dataset, folder: Path) -> list[list[float]]:
    rows.to_json(folder / "rows.jsonl")
    source = open_rows(str(folder / "rows.jsonl"), rows_per_part=100)
    score_file(reward_model(), source, folder / "scored.jsonl", overwrite=True)
    scored = [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]
    return [row["scores"] if "scores" in row else [row["score_chosen"], row["score_rejected"]] for row in scored]


def scores_with_mark(rows: Dataset) -> list[list[float]]:
    tokenized = tokenize_rows(rows, TOKENIZER, reward_model().row_options, "scored")
    return reward_model().score_tokenized([row._replace(prompt_ids=[*row.prompt_ids, MARK]) for row in tokenized])


ROWS = {
    "text pairs": lambda: preference_rows(4),
    "chat pairs": lambda: preference_rows(4, "chat"),
    "rankings": lambda: ranking_rows(4, [3]),
}


@pytest.mark.parametrize("kind", ["text pairs", "chat pairs"])
@pytest.mark.parametrize("trainer_class", [DPOPaperTrainer, UnlikelihoodTrainer])
def test_trainers_on_pairs(monkeypatch, tmp_path, trainer_class, kind):
    plain = prompts_of(trainer_class, ROWS[kind](), tmp_path)
    replace_everywhere(monkeypatch, prepare_row, with_mark(prepare_row))
    assert prompts_of(trainer_class, ROWS[kind](), tmp_path) == [[*ids, MARK] for ids in plain]


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("trainer_class", [RankingDPOTrainer, PreferredFTTrainer])
def test_trainers_on_rankings(monkeypatch, tmp_path, trainer_class, kind):
    """Which take pairs, too, as rankings of two."""
    plain = prompts_of(trainer_class, ROWS[kind](), tmp_path)
    replace_everywhere(monkeypatch, prepare_row, with_mark(prepare_row))
    assert prompts_of(trainer_class, ROWS[kind](), tmp_path) == [[*ids, MARK] for ids in plain]


@pytest.mark.parametrize("kind", ROWS)
def test_doctor(monkeypatch, kind):
    plain = longest_prompt(ROWS[kind]())
    replace_everywhere(monkeypatch, prepare_row, with_mark(prepare_row))
    assert longest_prompt(ROWS[kind]()) == plain + 1


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("door", [scores, scores_of_file])
def test_reward_model(monkeypatch, tmp_path, door, kind):
    """Pairs too are scored as two completions of one prompt."""
    plain, expected = door(ROWS[kind](), tmp_path), scores_with_mark(ROWS[kind]())
    replace_everywhere(monkeypatch, prepare_row, with_mark(prepare_row))
    assert door(ROWS[kind](), tmp_path) == expected != plain
