"""Broken rows of every kind: one error with the row and the column, and the doctor says what training does."""

import random

import pytest
from broken_rows import KINDS, faults, verdicts


@pytest.mark.parametrize("kind", KINDS)
def test_no_raw_error_and_no_disagreement(kind):
    draw = random.Random(kind)
    assert [fault for _ in range(2) for fault in faults(kind, draw)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_rankings_and_doctor_judge_alike(kind):
    draw = random.Random(f"{kind}, judged")
    assert [fault for _ in range(25) for fault in verdicts(kind, draw)] == []
