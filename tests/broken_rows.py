"""Broken rows of every kind, drawn at random, and what preparation, doctor and scorer make of them."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, IterableDataset
from tiny import EOS_TOKEN, tiny_tokenizer

from trl_dpo_ext.data.checks import check_columns
from trl_dpo_ext.data.dataset_preparation import prepare_dataset
from trl_dpo_ext.data.doctor.examination import examine
from trl_dpo_ext.data.doctor.prepared_row import RowPreparation
from trl_dpo_ext.data.rankings.order import as_ranking
from trl_dpo_ext.data.row_preparation import prepare_row
from trl_dpo_ext.data.tokenization import Truncation
from trl_dpo_ext.reward_model.batching import tokenize_row
from trl_dpo_ext.reward_model.reward_columns import completions_of


USER = {"role": "user", "content": "Is it good?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes, it is.", "No, not at all."))
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

KINDS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Is it good?", "chosen": " Yes.", "rejected": " No."},
    "implicit": {"chosen": "Is it good? Yes.", "rejected": "Is it good? No."},
    "chat": {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    "implicit chat": {"chosen": [USER, YES], "rejected": [USER, NO]},
    "whole conversations": {"prompt": "Is it good?", "chosen": [USER, YES], "rejected": [USER, NO]},
    "tools": {"prompt": [USER], "chosen": [YES | {"tool_calls": [CALL]}], "rejected": [NO], "tools": [TOOL]},
    "template": {"prompt": [USER], "chosen": [YES], "rejected": [NO], "chat_template_kwargs": {"mood": "dull"}},
    "parts": {
        "prompt": [USER | {"content": [{"type": "text", "text": "Is it good?"}]}],
        "chosen": [YES],
        "rejected": [NO],
    },
    "ids": {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9]},
    "reference": {
        "prompt": "So?",
        "chosen": " a",
        "rejected": " b",
        "ref_chosen_logps": -1.0,
        "ref_rejected_logps": -2.0,
    },
    "ranking": {"prompt": "Is it good?", "completions": [" Yes.", " Well.", " No."], "ranks": [0, 1, 1]},
    "scored": {"prompt": "Is it good?", "completions": [" Yes.", " Well.", " No."], "scores": [3.0, 2.0, 1.0]},
    "implicit ranking": {"completions": ["Is it? Yes", "Is it? Well", "Is it? No"]},
    "chat ranking": {"prompt": [USER], "completions": [[YES], [NO]], "ranks": [0, 1]},
    "ranking ids": {"prompt_ids": [5, 6], "completion_ids": [[7], [8, 9]], "ranks": [0, 1]},
}

VALUES: list[Any] = [
    *(None, "", " ", "x", "null", "[]", "{bad", '["weather"]', EOS_TOKEN, "\ud800", 0, 7, -1, -100, 1.5, True),
    *(
        float("nan"),
        float("inf"),
        2**70,
        10**400,
        b"x",
        [],
        [None],
        [[]],
        [1, -2],
        [1.0],
        ["a"],
        ["a", None],
        {},
        {"a": 1},
    ),
    *([{}], [{"role": "user"}], [{"role": None, "content": "a"}], [{"role": "user", "content": 5}], [USER], [YES]),
    *([USER, YES], [NO, None], {"from": "human", "value": "a"}, [{"from": "human", "value": "a"}], USER),
    *([{"role": "user", "content": {"a": 1}}], [{"role": "user", "content": [None]}], [{"type": "text"}]),
    *([{"role": "assistant", "content": "", "tool_calls": calls} for calls in ("x", 5, [5], [{}], [CALL])],),
    *(
        {"tokenize": False},
        {"add_generation_prompt": True},
        {"messages": []},
        {"tools": 5},
        {"continue_final_message": 1},
    ),
]
NAMES = (
    "prompt",
    "system",
    "question",
    "image",
    "images",
    "tools",
    "chat_template_kwargs",
    "ranks",
    "scores",
    "__row",
)
NAMES += (
    "completions",
    "completion",
    "label",
    "labels",
    "messages",
    "prompt_ids",
    "completion_ids",
    "ref_chosen_logps",
    "ref_logps",
    "chosen_ids",
    "rejected_ids",
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from _places(entry, (*path, key))


def broken(kind: str, draw: random.Random) -> list[dict[str, Any]]:
    """Three rows of a kind, of which the second, or a column of all, is broken in one or two places."""
    rows = [copy.deepcopy(KINDS[kind]) for _ in range(3)]
    for _ in range(draw.choice([1, 1, 2])):
        value, how = copy.deepcopy(draw.choice(VALUES)), draw.random()
        if how < 0.15:  # a column more
            name = draw.choice(NAMES)
            for row in rows:
                row[name] = copy.deepcopy(value)
        elif how < 0.2:  # a column less
            name = draw.choice(list(KINDS[kind]))
            for row in rows:
                row.pop(name, None)
        elif how < 0.25:  # a row of another kind
            rows[1] = copy.deepcopy(KINDS[draw.choice(list(KINDS))])
        else:
            path = draw.choice(list(_places(rows[1])) or [("prompt",)])
            inner: Any = rows[1]
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
    return rows


def _pairs(rows: Any, tokenizer: Any, cut: dict[str, Any]) -> Any:
    return prepare_dataset(rows, tokenizer, as_pairs=True, **cut)


def _rankings(rows: Any, tokenizer: Any, cut: dict[str, Any]) -> Any:
    return prepare_dataset(rows, tokenizer, **cut)


def _best(rows: Any, tokenizer: Any, cut: dict[str, Any]) -> Any:
    return prepare_dataset(rows, tokenizer, alone=True, **cut)


def _outcome(run: Callable[[], Any]) -> tuple[str, Any]:
    try:
        prepared, report = run()
        for _ in prepared:
            pass
    except Exception as error:
        return _judged(error)
    return "taken", report


def _judged(error: Exception) -> tuple[str, Any]:
    message = str(error)
    if not isinstance(error, ValueError):
        return "raw", f"{type(error).__name__}: {message}"
    if "is usable" in message:
        return "nothing left", message
    named = "row " in message and "`" in message or "The train dataset" in message or "no EOS token" in message
    return ("refused" if named else "without a row"), message


def verdicts(kind: str, draw: random.Random) -> list[tuple[str, Any]]:
    """Rows that pairs, rankings and the doctor do not judge alike: refused, left out, or the same token ids."""
    rows, tokenizer, index = broken(kind, draw), tiny_tokenizer(bos=draw.random() < 0.5), 1
    cut = {
        "tokenization": draw.choice(["separate", "joint"]),
        "max_length": draw.choice([None, 3, 12, 40]),
        "max_prompt_length": None,
        "prompt_truncation_mode": None,
        "truncation_mode": draw.choice(["keep_start", "keep_end"]),
    }
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if {"completions", "completion_ids"}.intersection(columns):
        return []
    try:
        check_columns(columns, "train")
    except ValueError:
        return []
    options: dict[str, Any] = {
        "dataset_name": "train",
        "processing_class": tokenizer,
        "truncation": Truncation.of(tokenizer, **cut),
        "repeats": draw.random() < 0.3,
    }
    doctor = RowPreparation(tokenizer, columns, "train", repeats=options["repeats"], **cut)
    ways: dict[str, Callable[[Any], Any]] = {
        "pairs": lambda row: prepare_row(row, index, **options),
        "rankings": lambda row: prepare_row(as_ranking(row), index, **options),
        "doctor": lambda row: doctor(row, index),
    }
    found: dict[str, Any] = {}
    for name, prepare in ways.items():
        try:
            prepared = prepare(copy.deepcopy(rows[index]))
            found[name] = "left out" if prepared.problem else [prepared.prompt_ids, prepared.completion_ids]
        except ValueError as error:
            found[name] = "refused" if f"row {index} of the train dataset" in str(error) else str(error)
        except Exception as error:
            found[name] = repr(error)
    return [] if len({repr(verdict) for verdict in found.values()}) == 1 else [(repr(rows[index]), found)]


def faults(kind: str, draw: random.Random) -> list[tuple[str, Any]]:
    """What is wrong with how a broken data set is met: raw errors, errors without a row, disagreements."""
    rows = broken(kind, draw)
    tokenizer = tiny_tokenizer(bos=draw.random() < 0.5)
    cut = {
        "tokenization": draw.choice(["separate", "joint"]),
        "max_length": draw.choice([None, 3, 12, 40]),
        "max_prompt_length": None,
        "prompt_truncation_mode": None,
        "truncation_mode": draw.choice(["keep_start", "keep_end"]),
    }
    found: list[tuple[str, Any]] = []
    is_ranking = "completions" in rows[0] or "completion_ids" in rows[0]
    forms: list[Callable[[], Any]] = [lambda: IterableDataset.from_generator(lambda: iter(copy.deepcopy(rows)))]
    try:
        stored = Dataset.from_list(rows)
        forms.append(lambda: stored)
    except Exception:  # Arrow takes no rows of several types
        pass
    for form in forms:
        streams = len(form) == 0 if isinstance(form, list) else isinstance(form(), IterableDataset)
        outcomes = {}
        for name, prepare in (("pairs", _pairs), ("rankings", _rankings), ("best", _best)):
            if name == "pairs" and is_ranking:
                continue
            outcomes[name] = _outcome(lambda prepare=prepare, form=form: prepare(form(), tokenizer, cut))
            if outcomes[name][0] in ("raw", "without a row"):
                found.append((f"{name} {outcomes[name][0]}", outcomes[name][1]))
        try:
            report = examine(form(), tokenizer, progress=False, **cut)
        except ValueError as error:
            if "has the column `image" not in str(error):
                found.append(("doctor", repr(error)))
            continue
        except Exception as error:
            found.append(("doctor", repr(error)))
            continue
        trainer, result = outcomes["rankings" if is_ranking else "pairs"]
        stops = any(finding.name in ("malformed-row", "columns", "no-rows") for finding in report.findings)
        if stops != (trainer == "refused"):
            found.append(("disagree", (trainer, result, [finding.meaning for finding in report.findings])))
        elif trainer == "taken" and not streams and report.preparation != result:
            found.append(("disagree on counts", (str(result), str(report.preparation))))
    for index, row in enumerate(rows):
        try:
            tokenize_row(completions_of(row, "scored"), index, tokenizer, Truncation.of(tokenizer, **cut), "scored")
        except ValueError as error:
            if "`" not in str(error) and "token ids" not in str(error):
                found.append(("scorer without a column", str(error)))
        except Exception as error:
            found.append(("scorer raw", repr(error)))
    return found
