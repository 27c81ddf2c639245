"""Scoring of a file in parts on any number of processes, written as one file."""

from contextlib import nullcontext
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from transformers.utils import logging

from trl_dpo_ext.data.prompts import ANSWERS, answers_repeat_prompts
from trl_dpo_ext.data.tokenization import Truncation
from trl_dpo_ext.processes import together
from trl_dpo_ext.reward_model.batching import TokenizedRow, tokenize_row
from trl_dpo_ext.reward_model.files.join_parts import ScoredFile, check_parquet, join_parts, to_json
from trl_dpo_ext.reward_model.files.parts import ScoredParts, ScoredRow
from trl_dpo_ext.reward_model.files.row_sources import Record, Rows, RowSource
from trl_dpo_ext.reward_model.files.run_identity import identity_of_run
from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel
from trl_dpo_ext.reward_model.reward_columns import completions_of, reward_columns


__all__ = ["check_output", "score_file"]


def score_file(
    reward_model: ImplicitRewardModel,
    source: RowSource,
    output: Path,
    *,
    overwrite: bool = False,
    overwrite_columns: bool = False,
) -> ScoredFile | None:
    """
    Scores the rows of a source and writes them, in order and with all columns, to a file.

    Process i scores the parts i, i + n, ... of n processes, and the main process joins them. Finished parts are stored
    in `<output>.parts` until the file is written, so an interrupted run can be resumed. Batches never span parts.
    Interruptions and the number of processes therefore do not change the output, if the device is deterministic. Rows
    that cannot be scored are written to `<output>.errors.jsonl`.

    Args:
        reward_model ([`ImplicitRewardModel`]):
            Reward model.
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows of any kind accepted by [`ImplicitRewardModel.score_dataset`].
        output (`Path`):
            `.jsonl` or `.parquet` file.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace an existing file, and the parts of a run with other settings.
        overwrite_columns (`bool`, *optional*, defaults to `False`):
            Whether to replace existing rewards.

    Returns:
        [`~trl_dpo_ext.reward_model.files.join_parts.ScoredFile`] on the main process, `None` on the others.

    Raises:
        ValueError: If the file or a column exists already, the parts are from another run, or the rows cannot be
            written in the format of the file.
    """
    state = PartialState()
    parts = ScoredParts(output)
    with parts.locked() if state.is_main_process else nullcontext():
        with together():
            check_output(source, output, overwrite)
            if state.is_main_process:
                parts.begin(identity_of_run(reward_model, source), discard=overwrite)
        _score_parts(reward_model, source, parts, overwrite_columns)
        if not state.is_main_process:
            return None
        written = join_parts(source, parts, output)
        parts.remove()
    return written


def check_output(source: RowSource, output: Path, overwrite: bool = False) -> None:
    """
    Creates the output folder, and checks for errors that would otherwise appear only at the end.

    Args:
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows.
        output (`Path`):
            File to write.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether the file may exist already.

    Raises:
        ValueError: If the file cannot be written, or cannot hold the rows.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{output} must end in .jsonl or .parquet.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder.")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} already exists. Pass `overwrite` to replace it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".jsonl" and isinstance(source, Rows):
        to_json(next(source.read(0)).row)
    if output.suffix == ".parquet" and isinstance(source, Rows) and isinstance(source.rows, Dataset):
        check_parquet(source.rows)


def _score_parts(
    reward_model: ImplicitRewardModel, source: RowSource, parts: ScoredParts, overwrite_columns: bool
) -> None:
    state = PartialState()

    def rows_done() -> int:
        return sum(source.size_of(part) for part in range(source.num_parts) if parts.has(part))

    shown = rows_done()
    bar = logging.tqdm(
        total=source.num_rows, initial=shown, unit="row", desc="Scoring", disable=not state.is_main_process
    )
    with bar as progress:
        with together():
            repeats = answers_repeat_prompts((record.row for record in source.read(0)), ("prompt", *ANSWERS))
            for part in range(state.process_index, source.num_parts, state.num_processes):
                if parts.read(part, source.numbers_of(part)) is None:
                    parts.write(part, _score_part(reward_model, source, part, overwrite_columns, repeats))
                    done = rows_done()  # includes other processes
                    progress.update(done - shown)
                    shown = done
        progress.update(source.num_rows - shown)


def _score_part(
    reward_model: ImplicitRewardModel, source: RowSource, part: int, overwrite_columns: bool, repeats: bool
) -> list[ScoredRow]:
    truncation = Truncation.of(reward_model.processing_class, **vars(reward_model.row_options))
    scored: list[ScoredRow] = []
    tokenized: list[TokenizedRow] = []
    for record in source.read(part):
        row = ScoredRow(record.number, problem=record.problem)
        scored.append(row)
        if row.problem is not None:
            continue
        try:
            of_row = tokenize_row(
                completions_of(record.row, source.name, repeats=repeats),
                record.number,
                reward_model.processing_class,
                truncation,
                source.name,
            )
        except Exception as error:  # chat templates and tokenizers raise errors of any class
            kind = "" if isinstance(error, ValueError) else f"it cannot be tokenized: {type(error).__name__}: "
            row.problem = f"{kind}{error}"
            continue
        row.cut = of_row.cut
        _check_no_rewards(record, source, overwrite_columns)
        tokenized.append(of_row)
    rewards = iter(reward_model.score_tokenized(tokenized))
    for row in scored:
        if row.problem is None:
            row.rewards = next(rewards)
    return scored


def _check_no_rewards(record: Record, source: RowSource, overwrite_columns: bool) -> None:
    there = [name for name in reward_columns(list(record.row)) if name in record.row]
    if there and not overwrite_columns:
        raise ValueError(
            f"{record.where.capitalize()} of {source.name} already has a column `{there[0]}`. Rename it, or pass "
            "`overwrite_columns` to replace it."
        )
