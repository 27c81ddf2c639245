"""Rows for the doctor, and what it finds in them."""

from typing import Any

from datasets import Dataset
from tiny import tiny_tokenizer
from unit.conftest import GOOD

from trl_dpo_ext.data.doctor.examination import examine
from trl_dpo_ext.data.doctor.findings import Finding
from trl_dpo_ext.data.doctor.report import DoctorReport


TOKENIZER = tiny_tokenizer()
RANKED = {"prompt": "Is it good?", "completions": [" Yes.", " So.", " No."], "ranks": [0, 1, 2]}


def pairs(n: int) -> list[dict[str, Any]]:
    """Rows with nothing to find: all differ, and the longer answer is preferred in every other one."""
    return [
        {"prompt": f"What about {i}?", "chosen": f" {i} it is" + "!" * (i % 2), "rejected": f" no, {i}" + "!" * 3}
        if i % 2
        else {"prompt": f"What about {i}?", "chosen": f" it is {i}, yes indeed", "rejected": f" no, {i}"}
        for i in range(n)
    ]


def messages(*turns: str) -> list[dict[str, str]]:
    return [{"role": turn.split(":")[0], "content": turn.split(":")[1]} for turn in turns]


def chat(prompt: tuple[str, ...], chosen: tuple[str, ...] = ("assistant:Yes.",)) -> dict[str, Any]:
    return {"prompt": messages(*prompt), "chosen": messages(*chosen), "rejected": messages("assistant:No.")}


def look(rows, tokenizer=TOKENIZER, **options) -> DoctorReport:
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return examine(dataset, tokenizer, progress=False, **options)


def found(report: DoctorReport, name: str) -> Finding:
    """The one finding of that name."""
    (finding,) = [finding for finding in report.findings if finding.name == name]
    return finding


def names(report: DoctorReport, *severities: str) -> set[str]:
    return {finding.name for finding in report.findings if finding.severity in (severities or {finding.severity})}


MALFORMED_PAIRS = [
    GOOD,
    GOOD | {"chosen": None},
    GOOD | {"rejected": None},
    GOOD | {"prompt": ""},
    GOOD | {"chosen": None},
    GOOD | {"prompt": None},
]
# Rows whose prompt, whose answers or both are too long for `max_length=100`
OVERLONG = [
    {"prompt": "z" * p, "chosen": "y" * c, "rejected": "x" * r}
    for p, c, r in [(10, 5, 5), (80, 19, 30), (60, 10, 60), (120, 4, 5), (10, 100, 3)]
]
