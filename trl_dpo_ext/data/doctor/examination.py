"""Examination of a dataset: prepares every row as in training, and runs every check."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from trl_dpo_ext.data.columns import IMAGE_COLUMNS, columns_of, opened
from trl_dpo_ext.data.doctor.border_checks import BorderOfJointTokens, BorderOfSeparateTokens
from trl_dpo_ext.data.doctor.chat_checks import AnswerEndsWithOther, PromptEndsWithAssistant, RolesDoNotAlternate
from trl_dpo_ext.data.doctor.column_checks import columns_read
from trl_dpo_ext.data.doctor.comparison_checks import (
    BothDirections,
    DuplicatePrompts,
    DuplicateRows,
    HeldOutPrompts,
    ScoresAgainstOrder,
    StockOpening,
    Ties,
)
from trl_dpo_ext.data.doctor.findings import ERROR, SEVERITIES, WARNING, Check, Finding, Refusals
from trl_dpo_ext.data.doctor.length_checks import (
    AnswersTruncated,
    EndsTruncated,
    FullPrompts,
    LengthBias,
    Lengths,
    PromptsTruncated,
    fitting_length,
)
from trl_dpo_ext.data.doctor.meaning_checks import meaning_checks
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow, RowPreparation
from trl_dpo_ext.data.doctor.report import DoctorReport
from trl_dpo_ext.data.doctor.text_checks import (
    BosTwice,
    EosInText,
    FirstWhitespaceDiffers,
    FirstWhitespaceMixed,
    ImplicitPrompt,
    PromptSplitInWord,
    SpecialTokenInPrompt,
    SpecialTokenInText,
    TurnSplitInAnswers,
    WordsRunTogether,
)
from trl_dpo_ext.data.extent import Extent
from trl_dpo_ext.data.kinds import other_kind
from trl_dpo_ext.data.preparation_report import PreparationCount
from trl_dpo_ext.data.prompts import answers_repeat_prompts
from trl_dpo_ext.data.rankings.checks import check_ranking_columns
from trl_dpo_ext.spelling import misspelt_column


__all__ = ["examine", "worst_of_first"]

# A dataset that can be trained on has one of these columns
_ANSWERS = {"chosen", "rejected", "chosen_ids", "rejected_ids", "completions", "completion_ids"}

_FIRST_LOOK, _FIRST_OF_STREAM = 64, 16  # rows that training examines
_CHUNK = 256  # rows whose borders are tokenized in one call


def examine(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dataset_name: str = "train",
    held_out: Dataset | IterableDataset | None = None,
    progress: bool = True,
    **options: Any,
) -> DoctorReport:
    """
    Examines a dataset before training. Finds invalid rows, rows that training would drop or truncate, and patterns
    that are probably not intended.

    Rows are prepared by the same functions as in training, so `report.preparation` equals `trainer.data_reports` for
    all valid rows. The dataset is not changed.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Preference pairs, rankings or scored completions, as text, messages or token ids. A streaming dataset is
            read once, to its end.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model to train.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset in messages.
        held_out (`Dataset` or `IterableDataset`, *optional*):
            Evaluation dataset, to find prompts that are in both.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        options:
            `tokenization`, `max_length`, `max_prompt_length`, `prompt_truncation_mode`, `truncation_mode`,
            `score_tie_gap`, `max_completions` and `alone`, as in the trainers. See
            [`~trl_dpo_ext.data.doctor.prepared_row.RowPreparation`]. By default, nothing is truncated.

    Returns:
        [`~trl_dpo_ext.data.doctor.report.DoctorReport`]

    Raises:
        ValueError: If an option has an unknown value, or rows have images.
        TypeError: If an option does not exist.
    """
    dataset = opened(dataset, dataset_name)
    columns = columns_of(dataset)
    if images := sorted(set(IMAGE_COLUMNS).intersection(columns)):
        raise ValueError(f"The {dataset_name} dataset has the column `{images[0]}`. Only text and chat are examined.")
    repeats = answers_repeat_prompts(dataset, columns)
    preparation = RowPreparation(tokenizer, columns, dataset_name, repeats=repeats, **options)
    problems = [problem for problem in (_column_problem(columns, dataset_name),) if problem]
    held_out_prompts: set[int] = set()
    if held_out is not None:
        held_out = opened(held_out, "held-out")
        held_out_columns = columns_of(held_out)
        problem = _column_problem(held_out_columns, "held-out")
        if problem:
            problems.append(problem)
        else:
            repeats = answers_repeat_prompts(held_out, held_out_columns)
            held_out_preparation = RowPreparation(tokenizer, held_out_columns, "held-out", repeats=repeats, **options)
            held_out_prompts = set(_prompt_keys(held_out, held_out_preparation))

    examination = _Examination(preparation, columns, held_out_prompts)
    if not problems:
        rows = len(dataset) if isinstance(dataset, Dataset) else None
        examination.run(
            logging.tqdm(dataset, total=rows, desc=f"Examining {dataset_name} dataset", disable=not progress)
        )
    return examination.report(problems)


def worst_of_first(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, dataset_name: str = "train", **options: Any
) -> Finding | None:
    """
    Returns the worst finding in the first rows that is probably not intended.

    Looks at 64 rows (16 of a streaming dataset) with the checks of [`~trl_dpo_ext.data.doctor.meaning_checks`]. The
    other checks are not needed in training, which stops at invalid rows and counts truncated ones itself.

    Args:
        dataset (`Dataset` or `IterableDataset`): Raw rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer.
        dataset_name (`str`, *optional*, defaults to `"train"`): Name of the dataset in messages.
        options: Same as in [`examine`].

    Returns:
        [`~trl_dpo_ext.data.doctor.findings.Finding`] or `None`: The most severe warning that applies to most of these
        rows.
    """
    dataset = opened(dataset, dataset_name)
    columns = columns_of(dataset)
    first = list(islice(dataset, _FIRST_LOOK if isinstance(dataset, Dataset) else _FIRST_OF_STREAM))
    repeats = answers_repeat_prompts(first, columns)
    preparation = RowPreparation(tokenizer, columns, dataset_name, repeats=repeats, **options)
    examination = _Examination(preparation, columns, set())
    examination.checks = meaning_checks(tokenizer, columns)
    examination.run(first)
    found = [finding for check in examination.checks for finding in check.findings() if finding.severity == WARNING]
    return max(found, key=lambda finding: 2 * finding.count >= examination.examined, default=None)


class _Examination:
    def __init__(self, preparation: RowPreparation, columns: list[str], held_out_prompts: set[int]) -> None:
        self.preparation, self.columns = preparation, columns
        self.refused = Refusals("malformed-row", ERROR, "Training stops: ")
        self.left_out = Refusals("row-left-out", ERROR, "Training drops the row: ", "Fix or drop these rows.")
        self.completions_left_out = Refusals(
            "answer-left-out",
            WARNING,
            "Training drops an answer of the row: ",
            "Remove the answer with its rank or score.",
        )
        self.examined, self.has_chat = 0, False
        self.count = PreparationCount(of_rankings=preparation.is_ranking)
        self.extent = Extent(0, 0, 0)
        self.lengths = Lengths()
        self.length_bias = LengthBias()
        tokenizer = preparation.tokenizer
        self.checks: list[Check] = [
            PromptsTruncated(),
            AnswersTruncated(),
            EndsTruncated(),
            FullPrompts(preparation.truncation.max_length),
            EosInText(tokenizer),
            SpecialTokenInText(tokenizer),
            SpecialTokenInPrompt(tokenizer),
            BosTwice(list(preparation.truncation.leading_ids)),
            WordsRunTogether(),
            FirstWhitespaceDiffers(),
            FirstWhitespaceMixed(),
            ImplicitPrompt(),
            PromptSplitInWord(),
            TurnSplitInAnswers(),
            BorderOfSeparateTokens(tokenizer, preparation.truncation.joint),
            BorderOfJointTokens(tokenizer, preparation.truncation.joint),
            RolesDoNotAlternate(),
            AnswerEndsWithOther(),
            PromptEndsWithAssistant(),
            DuplicateRows(),
            DuplicatePrompts(),
            BothDirections(),
            HeldOutPrompts(held_out_prompts),
            StockOpening(),
            Ties(),
            ScoresAgainstOrder(columns),
            self.length_bias,
            *meaning_checks(tokenizer, columns),
        ]

    def run(self, rows: Iterable[dict[str, Any]]) -> None:
        usable = self._usable(rows)
        while chunk := list(islice(usable, _CHUNK)):
            for check in self.checks:
                check.look_at(chunk)

    def report(self, problems: list[Finding]) -> DoctorReport:
        if not problems and not self.examined:
            problems = [Finding("no-rows", ERROR, "The dataset has no rows.", "Check its file and the split.")]
        groups = [self.refused, self.left_out, self.completions_left_out]
        found = problems + [finding for group in groups for finding in group.findings()]
        found += [finding for check in self.checks for finding in check.findings()]
        return DoctorReport(
            dataset_name=self.preparation.dataset_name,
            kind=self._kind(),
            examined=self.examined,
            refused=self.refused.count,
            preparation=self.count.report(),
            extent=self.extent,
            lengths=self.lengths.quantiles(),
            max_length=self.preparation.truncation.max_length,
            recommended_max_length=fitting_length(self.lengths.whole, share=0.99),
            longer_preferred=self.length_bias.longer_preferred,
            length_correlation=self.length_bias.correlation,
            unread_columns=self._unread_columns(),
            findings=sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)),
        )

    def _kind(self) -> str:
        if self.preparation.alone:
            return "preferred answers"
        return "rankings" if self.preparation.is_ranking else "preference pairs"

    def _unread_columns(self) -> list[str]:
        read = columns_read(self.columns, self.has_chat)
        return [name for name in self.columns if name not in read]

    def _usable(self, rows: Iterable[dict[str, Any]]) -> Iterator[PreparedRow]:
        for index, row in enumerate(rows):
            self.examined += 1
            try:
                prepared = self.preparation(row, index)
            except Exception as error:  # training would stop at any error
                self._refuse(error, index)
                continue
            self.count.add(index, prepared.counted | {"ranks": prepared.ranks})
            if prepared.completion_ids:
                self.lengths.add(prepared)
            if prepared.problem:
                fix = "Raise `max_length` (see the lengths)." if prepared.full_prompt else ""
                self.left_out.add(prepared.problem, index, fix)
                continue
            self.has_chat = self.has_chat or prepared.is_chat
            self.extent = self.extent.with_row(*prepared.truncated_ids)
            if prepared.left_out:
                self.completions_left_out.add(next(iter(prepared.left_out.values())), index)
            yield prepared

    def _refuse(self, error: Exception, index: int) -> None:
        where = f"row {index} of the {self.preparation.dataset_name} dataset"
        if isinstance(error, ValueError) and where in str(error):
            self.refused.add(str(error), index)
        elif self.preparation.tokenizer.chat_template is None and "chat_template" in str(error):
            self.refused.add(
                "the rows are conversations but the tokenizer has no chat template",
                index,
                "Use the tokenizer of a model trained on conversations, or set `tokenizer.chat_template`.",
            )
        else:
            self.refused.add(
                f"{where} cannot be tokenized: {error or type(error).__name__}",
                index,
                "Fix or drop such rows, or use another tokenizer or chat template.",
            )


def _column_problem(columns: list[str], dataset_name: str) -> Finding | None:
    if not columns:
        return None  # a streaming dataset without rows
    if not _ANSWERS.intersection(columns) and not misspelt_column("completions", columns):
        return Finding(
            "columns",
            ERROR,
            f"Training stops: The {dataset_name} dataset has neither pairs nor rankings; found {', '.join(columns)}.",
            other_kind(columns)
            or "Pairs need `chosen`, `rejected` and, unless both start with it, `prompt`. Rankings need "
            "`completions`, best first or with `ranks` or `scores`, and `prompt` likewise. Rename your columns with "
            "`dataset.rename_column`.",
        )
    try:
        check_ranking_columns(columns, dataset_name)
    except ValueError as error:
        what, _, fix = str(error).partition(". ")
        return Finding("columns", ERROR, f"Training stops: {what}.", fix)
    return None


def _prompt_keys(held_out: Dataset | IterableDataset, preparation: RowPreparation) -> Iterator[int]:
    for index, row in enumerate(held_out):
        with suppress(Exception):  # an invalid row is reported when its split is examined
            prepared = preparation(row, index)
            if not prepared.problem:
                yield prepared.prompt_key
