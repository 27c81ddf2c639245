"""What the doctor says of lengths, and that what it says of preparation is what the trainers' own does."""

import re
from typing import Any

import pytest
from datasets import Dataset
from integration.conftest import TINY
from tiny import EOS_TOKEN, preference_rows, tiny_llama
from unit.conftest import GOOD
from unit.doctor_rows import MALFORMED_PAIRS, OVERLONG, RANKED, TOKENIZER, found, look, names

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.data.dataset_preparation import prepare_dataset
from trl_dpo_ext.data.doctor.length_checks import Quantiles, fitting_length
from trl_dpo_ext.data.preparation_report import DataReport


class TestCuts:
    def test_separate(self):
        report = look(OVERLONG, max_length=100, max_prompt_length=50)
        # With the EOS token: 80 + 31 and 120 + 6 fit when the prompt is truncated, 60 + 61 and 10 + 101 do not
        assert found(report, "prompts-truncated").rows == [1, 2, 3]
        assert found(report, "answers-truncated").rows == [2, 4]
        assert found(report, "preferred-answer-loses-eos").rows == [4]
        assert found(report, "answers-truncated").example == "60 + 61 tokens"
        assert found(report, "prompt-fills-max-length").rows == [3]
        assert report.preparation == DataReport(rows=5, prompts_truncated=3, answers_truncated=2)

    def test_joint(self):
        report = look(OVERLONG, max_length=100, tokenization="joint")
        assert found(report, "row-left-out").rows == [3]
        assert found(report, "row-left-out").fix.startswith("Raise `max_length`")
        assert found(report, "answers-truncated").rows == [1, 2, 4]
        assert found(report, "preferred-answer-loses-eos").rows == [4]
        assert report.lengths["prompt"].max == 120
        end = look(OVERLONG, max_length=100, tokenization="joint", truncation_mode="keep_end")
        assert found(end, "answers-truncated").rows == [1, 2, 3, 4]
        assert found(end, "prompt-fills-max-length").rows == [3]
        assert "preferred-answer-loses-eos" not in names(end)

    def test_lengths(self):
        report = look(OVERLONG, max_length=100)
        assert report.lengths == {
            "prompt": Quantiles(60, 120, 120),
            "preferred answer": Quantiles(11, 101, 101),
            "dispreferred answer": Quantiles(6, 61, 61),
            "prompt with longest answer": Quantiles(111, 126, 126),
        }
        assert report.recommended_max_length == 128
        assert "the longest has 126 tokens and does not fit into the current 100" in str(report)

    def test_the_length_that_fits(self):
        assert [fitting_length([64] * 98 + [65, 300], share) for share in (0.98, 0.99, 1.0)] == [64, 128, 320]
        assert fitting_length([], 0.99) is None


def mixed_pairs() -> list[dict[str, Any]]:
    """Rows of all lengths, some of them without a preference."""
    rows = preference_rows(12).to_list()
    rows[2]["chosen"] = f"{rows[2]['rejected']}{EOS_TOKEN}"
    rows[4]["rejected"] = rows[4]["chosen"]
    rows[7]["chosen"] = ""
    rows[9]["prompt"] = "z" * 70
    rows[10]["rejected"] = "y" * 70
    return rows


class TestAgreesWithTheTrainers:
    @pytest.mark.parametrize("kind", ["plain", "chat", "implicit", "implicit_chat", "mixed"])
    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_pairs(self, tmp_path, kind, tokenization):
        rows = Dataset.from_list(mixed_pairs()) if kind == "mixed" else preference_rows(8, kind)
        trainer = DPOPaperTrainer(
            tiny_llama(),
            args=DPOPaperConfig(str(tmp_path), **TINY | {"tokenization": tokenization, "max_length": 60}),
            train_dataset=rows,
            processing_class=TOKENIZER,
        )
        report = look(rows, tokenization=tokenization, max_length=60)
        assert report.preparation == trainer.data_reports["train"]
        if kind == "mixed":
            assert report.preparation.dropped == (4 if tokenization == "joint" else 3)
            assert report.preparation.answers_truncated

    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_rankings(self, tokenization):
        rows = [
            RANKED,
            RANKED | {"completions": [" a", " a", " b"]},
            RANKED | {"completions": [" a", "", ""]},
            RANKED | {"completions": [" a", " b", "z" * 60], "ranks": [0, None, 3]},
            RANKED | {"prompt": "z" * 60},
            RANKED | {"ranks": [2, 2, 2]},
            RANKED | {"ranks": [0, 0, 1]},
        ]
        options = {"tokenization": tokenization, "max_length": 50}
        _, expected = prepare_dataset(Dataset.from_list(rows), TOKENIZER, **options)
        assert look(rows, **options).preparation == expected
        assert (expected.completions_dropped, expected.tied) == (1, 1)

    @pytest.mark.parametrize("row", MALFORMED_PAIRS[1:])
    def test_what_the_doctor_calls_an_error_stops_training(self, tmp_path, row):
        rows = Dataset.from_list([GOOD, row])
        (finding,) = look(rows).findings
        with pytest.raises(ValueError, match=re.escape(finding.meaning.removeprefix("Training stops: "))):
            DPOPaperTrainer(
                tiny_llama(),
                args=DPOPaperConfig(str(tmp_path), **TINY),
                train_dataset=rows,
                processing_class=TOKENIZER,
            )
