"""Preparation of one preference pair: checks, prompt, tokenization, truncation, and why it is left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from trl_dpo_ext.data.checks import (
    COMPLETIONS_CUT,
    EMPTY_ANSWER,
    PROBLEM,
    PROMPT_CUT,
    PROMPT_REPEATED,
    TOKENIZED_COLUMNS,
    check_ref_logps,
    check_split_prompt,
    preference_problem,
    settle_prompt,
)
from trl_dpo_ext.data.messages import is_empty
from trl_dpo_ext.data.prompts import split_prompt, warn_of_repeated_prompts
from trl_dpo_ext.data.rankings.tokenization import PAIR, tokenize_ranking
from trl_dpo_ext.data.token_ids import check_ids
from trl_dpo_ext.data.tokenization import Cut


__all__ = ["PreparedPair", "pair_columns", "prepare_pair"]

logger = logging.get_logger(__name__)

_SAME_TOKENS = "both answers have the same tokens"


@dataclass
class PreparedPair:
    """
    A preference pair as it is trained on.

    Args:
        problem (`str`): Why training leaves the row out; what is below is then known up to there.
        full_prompt (`bool`): Whether that is because its prompt leaves no room for an answer.
        prompt (`str` or `list`, *optional*): Prompt; `None` in a row of token ids.
        completions (`list`): Chosen and rejected answer; empty in a row of token ids.
        prompt_repeated (`bool`): Whether the answers repeated the prompt, which is taken once.
        prompt_ids (`list[int]`): Tokens of the prompt, not truncated.
        completion_ids (`list[list[int]]`): Tokens of the answers, not truncated.
        cut_ids (`list[list[int]]`): Tokens of prompt, chosen and rejected answer after truncation.
        prompt_cut (`bool`): Whether the prompt is truncated.
        completions_cut (`bool`): Whether an answer is truncated (by the collator: or the prompt).
    """

    problem: str = ""
    full_prompt: bool = False
    prompt: Any = None
    completions: list[Any] = field(default_factory=list)
    prompt_repeated: bool = False
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    cut_ids: list[list[int]] = field(default_factory=list)
    prompt_cut: bool = False
    completions_cut: bool = False


def pair_columns(row: dict[str, Any], index: int, *, streaming: bool, version: str, **options: Any) -> dict[str, Any]:
    """
    The columns that preparation adds to a row: token ids, why the row is left out, what was truncated.

    Args:
        row (`dict`):
            Row.
        index (`int`):
            Its number, for messages.
        streaming (`bool`):
            Whether to say, once, that rows are left out.
        version (`str`):
            Version of this package, by which `datasets` tells what it has cached from what another one would make.
        options:
            Those of [`prepare_pair`].
    """
    pair = prepare_pair(row, index, **options)
    if pair.problem and streaming:
        logger.warning_once(
            f"Rows of the {options['dataset_name']} stream that carry no preference are left out: {pair.problem}."
        )
    if pair.prompt_repeated and streaming:
        warn_of_repeated_prompts(options["dataset_name"])
    ids = [[0], [0], [0]] if pair.problem else pair.cut_ids  # a row that is left out keeps the columns' types
    return dict(zip(TOKENIZED_COLUMNS, ids, strict=True)) | {
        PROBLEM: pair.problem,
        PROMPT_REPEATED: pair.prompt_repeated,
        PROMPT_CUT: pair.prompt_cut,
        COMPLETIONS_CUT: pair.completions_cut,
    }


def prepare_pair(
    row: Mapping[str, Any],
    index: int,
    *,
    dataset_name: str,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    cut: Cut,
    repeats: bool = False,
    keep_all: bool = False,
    ids_checked: bool = False,
) -> PreparedPair:
    """
    Prepares one row of text, messages or token ids.

    Args:
        row (`Mapping`):
            `chosen` and `rejected`, and `prompt` unless they start with it; or `prompt_ids`, `chosen_ids` and
            `rejected_ids`.
        index (`int`):
            Its number, for messages.
        dataset_name (`str`):
            Name of the data set, for messages.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor.
        cut ([`~trl_dpo_ext.data.tokenization.Cut`]):
            Rules of tokenization and truncation.
        repeats (`bool`, *optional*, defaults to `False`):
            Whether text answers begin with the prompt of their row, which is taken once.
        keep_all (`bool`, *optional*, defaults to `False`):
            Leave nothing out, for prediction.
        ids_checked (`bool`, *optional*, defaults to `False`):
            Whether token ids have been checked.

    Raises:
        ValueError: If the row is malformed.
    """
    where = f"row {index} of the {dataset_name} dataset"
    pair = PreparedPair()
    if set(TOKENIZED_COLUMNS) <= row.keys():
        for name in () if ids_checked else TOKENIZED_COLUMNS:
            check_ids(row[name], name, where)
        pair.prompt_ids, *pair.completion_ids = (row[name] for name in TOKENIZED_COLUMNS)
    else:
        pair.problem = _take_apart(pair, row, index, where, dataset_name, cut.joint, repeats, keep_all)
    check_ref_logps(row, where)
    if pair.problem:
        return pair
    if pair.completions:
        context = {name: row[name] for name in ("tools", "chat_template_kwargs") if name in row}
        pair.prompt_ids, pair.completion_ids = tokenize_ranking(
            {"prompt": pair.prompt, "completions": pair.completions, **context},
            processing_class,
            cut.leading_ids,
            where,
            joint=cut.joint,
            names=PAIR,
        )
    if not keep_all and pair.completion_ids[0] == pair.completion_ids[1]:
        pair.problem = _SAME_TOKENS
        return pair
    result = cut(pair.prompt_ids, pair.completion_ids)
    pair.cut_ids = [result.prompt_ids, *result.completion_ids]
    pair.prompt_cut, pair.completions_cut = result.prompt_cut, result.completions_cut
    if not keep_all:
        pair.problem, pair.full_prompt = result.problem, bool(result.problem)
        if not pair.problem and result.left[0] == result.left[1]:
            pair.problem = f"both answers are the same after truncation to `max_length={cut.max_length}`"
    return pair


def _take_apart(
    pair: PreparedPair,
    row: Mapping[str, Any],
    index: int,
    where: str,
    dataset_name: str,
    joint: bool,
    repeats: bool,
    keep_all: bool,
) -> str:
    """Fills in prompt and answers of a row of text or messages; returns why it is left out, or `""`."""
    problem = preference_problem(row, index, dataset_name)
    answers = {name: row[name] for name in PAIR}
    pair.prompt, pair.completions, pair.prompt_repeated = settle_prompt(row.get("prompt"), answers, where, repeats)
    if problem and not keep_all:
        return problem
    if "prompt" not in row:
        apart = split_prompt(answers, by_turn=not joint)
        check_split_prompt(row, apart["prompt"], where, dataset_name)
        pair.prompt, pair.completions = apart["prompt"], [apart[name] for name in PAIR]
    if not keep_all and any(map(is_empty, pair.completions)):
        return EMPTY_ANSWER
    return ""
