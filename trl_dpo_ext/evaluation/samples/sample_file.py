"""Sampling of a file of prompts in parts on any number of processes, written as one file."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from trl_dpo_ext.evaluation.samples.prompts import TokenizedPrompt
from trl_dpo_ext.evaluation.samples.sampler import Sample, Sampler
from trl_dpo_ext.processes import together
from trl_dpo_ext.reward_model.files.join_parts import to_json
from trl_dpo_ext.reward_model.files.parts import Parts, differences
from trl_dpo_ext.reward_model.files.row_sources import Record, RowSource, open_rows
from trl_dpo_ext.reward_model.files.run_identity import hash_model, hash_tokenizer, versions
from trl_dpo_ext.sampling.options import SamplingOptions
from trl_dpo_ext.whole_file import whole_file, write_text


__all__ = ["SampledFile", "check_output", "open_prompts", "sample_file", "settings_file"]


@dataclass
class SampledFile:
    """
    A file written by [`sample_file`].

    Args:
        output (`Path`):
            File with a row for each sample.
        settings (`Path`):
            File with everything that the samples depend on.
        num_samples (`int`):
            Number of samples.
        num_new (`int`):
            Number of samples that this run made.
    """

    output: Path
    settings: Path
    num_samples: int
    num_new: int


class _SampledParts(Parts):
    """Parts of samples. Their lines are those of the output."""

    def is_whole(self, part: int, num_lines: int) -> bool:
        """Whether a part is finished."""
        if not self.has(part):
            return False
        lines = self.path(part).read_bytes().splitlines(keepends=True)
        return len(lines) == num_lines and all(line.endswith(b"}\n") for line in lines)

    def write(self, part: int, samples: Sequence[Sample]) -> None:
        """Writes a finished part."""
        write_text(self.path(part), "".join(to_json(asdict(sample)) for sample in samples))


def settings_file(output: Path) -> Path:
    """
    Returns the path of the file with the settings of a file of samples.

    They are in a file of their own, because they are the same for all samples and are what a resumed run is compared
    with.
    """
    return Path(f"{output}.settings.json")


def open_prompts(
    name: str, options: SamplingOptions, *, split: str = "train", dataset_config: str | None = None
) -> RowSource:
    """
    Opens prompts by the name that a user passes.

    Args:
        name (`str`):
            A `.jsonl`, `.json`, `.parquet`, `.csv` or `.arrow` file, a folder, or the name of a dataset on the hub,
            whose rows have `prompt` (text or messages) and optionally `tools` and `chat_template_kwargs`.
        options ([`~trl_dpo_ext.sampling.options.SamplingOptions`]):
            Options of the sampler, `sampler.options`.
        split (`str`, *optional*, defaults to `"train"`):
            Split.
        dataset_config (`str`, *optional*):
            Configuration of a dataset with several.

    Raises:
        ValueError: If the source does not exist, cannot be read or has no rows.
    """
    per_part = options.prompts_per_part
    return open_rows(name, rows_per_part=per_part, split=split, dataset_config=dataset_config, option="PROMPTS")


def sample_file(sampler: Sampler, source: RowSource, output: Path, *, overwrite: bool = False) -> SampledFile | None:
    """
    Samples completions of the prompts of a source and writes them, in order, to a file.

    Process i samples the parts i, i + n, ... of n processes, and the main process joins them. Finished parts are
    stored in `<output>.parts` until the file is written, so an interrupted run can be resumed. No more than a part is
    in memory. Everything that the samples depend on is written to `<output>.settings.json`. If the output exists with
    the same settings, nothing is sampled.

    Args:
        sampler ([`~trl_dpo_ext.evaluation.Sampler`]):
            Sampler.
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Result of [`open_prompts`].
        output (`Path`):
            `.jsonl` file.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace an existing file, and the parts of a run with other settings.

    Returns:
        [`SampledFile`] on the main process, `None` on the others.

    Raises:
        ValueError: If the output is of other settings, a prompt is invalid or too long, or logits are not finite.
    """
    if source.rows_per_part != sampler.options.prompts_per_part:
        raise ValueError("The prompts are in parts of another size. Use `open_prompts(..., sampler.options)`.")
    state, parts = PartialState(), _SampledParts(output)
    result = SampledFile(output, settings_file(output), source.num_rows * sampler.options.num_samples, 0)
    with together():
        check_output(output)
        identity = _identity(sampler, source) if state.is_main_process else {}
        is_complete = output.exists() and not overwrite
        if not is_complete:
            _check_prompts(sampler, source)
        elif state.is_main_process:
            _check_same_settings(output, identity)
            if parts.folder.exists():  # the run was killed at its very end
                with parts.locked():
                    parts.remove()
    if not is_complete:
        with parts.locked() if state.is_main_process else nullcontext():
            with together():
                if state.is_main_process:
                    parts.begin(identity, discard=overwrite)
            result.num_new = _sample_parts(sampler, source, parts)
            if state.is_main_process:
                output.unlink(missing_ok=True)  # there is never a file with the settings of another
                write_text(result.settings, json.dumps(identity, indent=2) + "\n")
                _join(source, sampler, parts, output)
                parts.remove()
    return result if state.is_main_process else None


def check_output(output: Path) -> None:
    """
    Creates the output folder, and checks for errors that would otherwise appear only at the end.

    Raises:
        ValueError: If the file cannot be written.
    """
    if output.suffix != ".jsonl":
        raise ValueError(f"{output} must end in .jsonl.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder.")
    output.parent.mkdir(parents=True, exist_ok=True)


def _identity(sampler: Sampler, source: RowSource) -> dict[str, Any]:
    """Everything that samples depend on, by name."""
    return {
        **asdict(sampler.options),
        "model": hash_model(sampler.model),
        "tokenizer": hash_tokenizer(sampler.processing_class),
        "eos_token_ids": sorted(sampler.eos_ids),
        "prompts": source.identity,
        "num_prompts": source.num_rows,
        "mixed_precision": sampler.mixed_precision,
        "device": sampler.model.device.type,
        **versions(),
    }


def _check_same_settings(output: Path, identity: dict[str, Any]) -> None:
    try:
        found = json.loads(settings_file(output).read_text(encoding="utf-8"))
        different = differences(found, identity)
    except (OSError, ValueError, AttributeError):
        raise ValueError(
            f"{output} already exists, and {settings_file(output)} does not say how it was made. Choose another "
            "output, or pass `overwrite` to replace it."
        ) from None
    if different:
        raise ValueError(
            f"{output} already exists and was made with other settings: {'; '.join(different)}. Choose another "
            "output, or pass `overwrite` to replace it."
        )


def _prompt_of(sampler: Sampler, record: Record, source: RowSource) -> TokenizedPrompt:
    where = f"{record.where} of {source.name}"
    if record.problem is not None:
        raise ValueError(f"The prompt in {where} cannot be read: {record.problem}.")
    return sampler.tokenize(record.row, record.number, where)


def _own_parts(source: RowSource) -> range:
    state = PartialState()
    return range(state.process_index, source.num_parts, state.num_processes)


def _check_prompts(sampler: Sampler, source: RowSource) -> None:
    # Before the first sample, which may be hours before the last prompt is reached
    for part in _own_parts(source):
        for record in source.read(part):
            _prompt_of(sampler, record, source)


def _sample_parts(sampler: Sampler, source: RowSource, parts: _SampledParts) -> int:
    """Samples the missing parts. Returns the number of samples that all processes made."""
    state = PartialState()
    per_prompt = sampler.options.num_samples

    def num_done() -> int:
        return per_prompt * sum(source.size_of(part) for part in range(source.num_parts) if parts.has(part))

    there = shown = num_done()
    total = per_prompt * source.num_rows
    bar = logging.tqdm(total=total, initial=there, unit="sample", desc="Sampling", disable=not state.is_main_process)
    with bar as progress:
        with together():
            for part in _own_parts(source):
                if not parts.is_whole(part, per_prompt * source.size_of(part)):
                    prompts = [_prompt_of(sampler, record, source) for record in source.read(part)]
                    samples = sampler.sample_part(prompts)
                    parts.write(part, [sample for of_prompt in samples for sample in of_prompt])
                    done = num_done()  # includes other processes
                    progress.update(done - shown)
                    shown = done
        progress.update(total - shown)
    return total - there


def _join(source: RowSource, sampler: Sampler, parts: _SampledParts, output: Path) -> None:
    with whole_file(output, parts.folder) as unfinished, unfinished.open("wb") as file:
        for part in range(source.num_parts):
            if not parts.is_whole(part, sampler.options.num_samples * source.size_of(part)):
                raise ValueError(
                    f"Part {part} is not in {parts.folder}, although its process has finished. The output folder must "
                    "be accessible to all processes."
                )
            file.write(parts.path(part).read_bytes())
