"""The questions of the check, and the speeds that shared prompts should reach."""

from collections.abc import Callable, Mapping
from operator import truediv
from typing import Any

from benchmarks.gpu_check.sections import Found
from benchmarks.gpu_check.verdicts import Question, Read, at, at_least, at_most, holds


__all__ = ["QUESTIONS", "TARGETS"]

_VARLEN, _COMPILED = "ours cached varlen", "ours cached compiled"
_LAYERS = 16


def _worst_error(*words: str) -> Read:
    # Largest error of the cases that have one of the words in their name, over that of the dense mask
    def read(sections: Mapping[str, Found]) -> float | None:
        cases = at("kernels", "cases")(sections) or {}
        ratios = [
            error["ours"] / max(error["mask"], 1e-6)
            for name, errors in cases.items()
            if any(word in name for word in words)
            for error in errors.values()
        ]
        return max(ratios, default=None)

    return read


def _combined(combine: Callable[..., Any], *reads: Read) -> Read:
    # `None` if one of the numbers is not there
    def read(sections: Mapping[str, Found]) -> Any:
        numbers = [one(sections) for one in reads]
        return None if None in numbers else combine(*numbers)

    return read


def _attention_ratio(above: str, below: str, least: bool = True) -> Read:
    # Over all shapes
    def read(sections: Mapping[str, Found]) -> float | None:
        shapes = [found for found in sections.get("attention", {}).values() if isinstance(found, dict)]
        ratios = [found[above] / found[below] for found in shapes if above in found and below in found]
        return (min if least else max)(ratios, default=None)

    return read


def _row(shape: str, column: str, *contenders: str) -> Read:
    # Of the fastest of the contenders
    def read(sections: Mapping[str, Found]) -> Any:
        rows = [
            row
            for row in sections.get("steps", {}).get("rows", [])
            if row["shape"] == shape and row["contender"] in contenders
        ]
        return min(rows, key=lambda row: row["seconds"])[column] if rows else None

    return read


def _test(name: str) -> Read:
    # Whether all tests of a file have passed; unknown if none has run
    def read(sections: Mapping[str, Found]) -> bool | None:
        outcomes = at("device tests", "outcomes")(sections) or {}
        ran = [outcome for test, outcome in outcomes.items() if name in test and not outcome.startswith("skipped")]
        return all(outcome == "passed" for outcome in ran) if ran else None

    return read


def _good_path(path: str) -> Read:
    # Whether none of its errors is beyond that of separate rows
    def read(sections: Mapping[str, Found]) -> bool | None:
        found = sections.get("small model", {})
        if path not in found:
            return None
        return not any(bad.startswith(f"{path}:") for bad in found["bad"])

    return read


_AUTOCAST = "float32 weights, autocast"
_OVER_TRL, _OVER_PACKED = "speedup_over_trl", "speedup_over_packed_rows"

# Errors are in units of those that the dense mask has in bf16. Limits are times, shares or what the question names
QUESTIONS = [
    at_most("FlashAttention aligns the last query with the last key", _worst_error("window None"), 4, False),
    at_most("Its windows are exact", _worst_error("window 5", "window 40", "window 10000"), 4, False),
    at_most("Heads may share keys", _worst_error("heads 8/2", "heads 4/1"), 4, False),
    at_most("Two calls merged by their log-sum-exp are exact", _worst_error("cascade"), 4, False),
    holds("It takes states as layers hand them over", at("kernels", "strided")),
    holds("Gradients of gathered keys are the same bits in every run", at("kernels", "repeats"), is_timed=True),
    *(
        holds(f"A model in bf16 errs no more on the path `{path}` than on separate rows", _good_path(path))
        for path in ("varlen", "dense", "flash", "flex")
    ),
    holds("Linear layers of a reference may be kept in bf16, bit by bit", at("small model", "bf16 reference")),
    Question("`sdpa` gives a mask to cuDNN", at("masks", "cudnn on", "kernel"), lambda kernel: kernel == "cudnn"),
    at_least(
        "A new shape takes cuDNN twice as long as a known one, so that TRL is to be shown without it, too",
        _combined(truediv, *(at("masks", "cudnn on", name) for name in ("first_ms", "second_ms"))),
        2,
    ),
    at_most(
        "To sum gathered gradients in float32 takes attention at most 1.1 times as long",
        _attention_ratio("gathered keys", "gathered keys, gradients summed in bf16", least=False),
        1.1,
    ),
    at_least(
        "Attention of shared prompts is faster than that of separate rows on every shape",
        _attention_ratio("separate rows", "gathered keys"),
        1,
    ),
    at_least(
        "Two merged calls would save 3 % of a step at K = 8",
        _combined(
            lambda gathered, cascade, seconds: _LAYERS * (gathered - cascade) / (1e3 * seconds),
            *(at("attention", "long-eight", name) for name in ("gathered keys", "cascade")),
            _row("long-eight", "seconds", _VARLEN),
        ),
        0.03,
    ),
    at_least("Flex attention is faster on some shape", _attention_ratio("gathered keys", "flex", least=False), 1),
    at_most(
        "Attention takes at most 5 % of a layer on short rows",
        _combined(truediv, at("attention", "hh", "gathered keys"), at("layer", _AUTOCAST, "eager")),
        0.05,
    ),
    at_most(
        "Attention takes at most 20 % of a step at 4096/512",
        _combined(
            lambda attention, seconds: _LAYERS * attention / (1e3 * seconds),
            at("attention", "very-long", "gathered keys"),
            _row("very-long", "seconds", _VARLEN),
        ),
        0.2,
    ),
    at_most("A block mask of short rows takes at most 1 ms", at("attention", "hh", "block mask"), 1),
    at_least(
        "Matrix products of ten thousand tokens reach 650 TFLOP/s", at("layer", _AUTOCAST, "products_tflops"), 650
    ),
    at_most(
        "A compiled layer keeps at most 0.35 of what an eager one takes besides matrix products",
        _combined(
            lambda compiled, eager, products: (compiled - products) / (eager - products),
            *(at("layer", _AUTOCAST, name) for name in ("compiled", "eager", "products")),
        ),
        0.35,
    ),
    at_most("A compiled layer takes ragged layouts by one graph", at("layer", "graphs"), 1, is_timed=False),
    at_least(
        "Tokens rounded up to a multiple of 128 are faster",
        _combined(truediv, *(at("layer", "rounded", name) for name in ("odd_ms", "multiple_ms"))),
        1,
    ),
    at_most("Ours waits for the GPU at most once a micro-batch", _row("hh", "synchronizations", _VARLEN), 1),
    at_least("TRL waits twenty times a micro-batch or more", _row("hh", "synchronizations", "trl cached"), 20),
    at_most("The GPU waits at most a tenth of a step", at("profile", _VARLEN, "waiting_share"), 0.1),
    at_most("A micro-batch takes at most 3,000 launches", at("profile", _VARLEN, "launches"), 3000),
    at_most(
        "RMSprop takes at most twice as long as fused AdamW",
        _combined(truediv, *(at("fixed costs", name) for name in ("RMSprop", "fused AdamW"))),
        2,
    ),
    holds("Training starts at its reference on every path", _test("test_first_steps"), is_timed=True),
    holds("Every trainer trains as on separate rows", _test("test_trainers"), is_timed=True),
    holds("A step does not wait for the GPU", _test("test_waiting"), is_timed=True),
    holds("QLoRA trains", _test("test_qlora"), is_timed=True),
    holds("`--dry_run` estimates the memory of the recipes", _test("test_memory"), is_timed=True),
]

# Neither side of a comparison with packed rows is compiled
TARGETS = [
    at_least("hh: 3 times as fast as TRL", _row("hh", _OVER_TRL, _VARLEN, _COMPILED), 3),
    at_least("hh: 1.35 times as fast as packed rows", _row("hh", _OVER_PACKED, _VARLEN), 1.35),
    at_least("K = 4: 1.4 times as fast as packed rows", _row("ultrafeedback", _OVER_PACKED, _VARLEN), 1.4),
    at_least("K = 4: 6 times as fast as TRL on six pairs", _row("ultrafeedback", _OVER_TRL, _VARLEN, _COMPILED), 6),
    at_least("1024/128, K = 8: 3.5 times as fast as packed rows", _row("long-eight", _OVER_PACKED, _VARLEN), 3.5),
    at_least("4096/512: 1.6 times as fast as packed rows", _row("very-long", _OVER_PACKED, _VARLEN), 1.6),
    at_least("hh: MFU of 40 % with compiled layers", _row("hh", "mfu_percent", _COMPILED), 40),
    at_least("hh: MFU of 33 % without", _row("hh", "mfu_percent", _VARLEN), 33),
]
