"""Sampling of a file of prompts in parts on any number of processes, written as one file."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from trl_dpo_ext.evaluation.resumable_file import ResumableFile, settings_file
from trl_dpo_ext.evaluation.samples.prompts import PromptTokenizer, TokenizedPrompt
from trl_dpo_ext.evaluation.samples.sampler import Sampler
from trl_dpo_ext.reward_model.files.row_sources import Record, RowSource, open_rows
from trl_dpo_ext.reward_model.files.run_identity import hash_model, hash_tokenizer, versions
from trl_dpo_ext.sampling.options import SamplingOptions


__all__ = ["SampledFile", "open_prompts", "prompt_of", "sample_file"]


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


def sample_file(
    sampler: Sampler, source: RowSource, output: Path, *, overwrite: bool = False, title: str = "Sampling"
) -> SampledFile | None:
    """
    Samples completions of the prompts of a source and writes them, in order, to a file.

    The file is computed in parts and can be resumed, see
    [`~trl_dpo_ext.evaluation.resumable_file.ResumableFile`]. If it exists with the same settings, nothing is sampled.

    Args:
        sampler ([`~trl_dpo_ext.evaluation.Sampler`]):
            Sampler.
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Result of [`open_prompts`].
        output (`Path`):
            `.jsonl` file.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace a file, and the parts of a run, with other settings.
        title (`str`, *optional*, defaults to `"Sampling"`):
            What the progress bar says.

    Returns:
        [`SampledFile`] on the main process, `None` on the others.

    Raises:
        ValueError: If the output is of other settings, a prompt is invalid or too long, or logits are not finite.
    """
    if source.rows_per_part != sampler.options.prompts_per_part:
        raise ValueError("The prompts are in parts of another size. Use `open_prompts(..., sampler.options)`.")
    state, per_prompt = PartialState(), sampler.options.num_samples

    def prompts_of(part: int) -> list[TokenizedPrompt]:
        return [prompt_of(sampler.tokenize, record, source) for record in source.read(part)]

    def rows_of(part: int) -> Iterator[dict[str, Any]]:
        return (asdict(sample) for of_prompt in sampler.sample_part(prompts_of(part)) for sample in of_prompt)

    def check_part(part: int) -> None:
        prompts_of(part)

    sizes = [per_prompt * source.size_of(part) for part in range(source.num_parts)]
    file = ResumableFile(output, sizes, unit="sample", title=title)
    num_new = file.write(
        lambda: _identity(sampler, source),
        rows_of,
        check_part=check_part,
        overwrite=overwrite,
    )
    result = SampledFile(output, settings_file(output), source.num_rows * per_prompt, num_new)
    return result if state.is_main_process else None


def prompt_of(tokenize: PromptTokenizer, record: Record, source: RowSource) -> TokenizedPrompt:
    """
    Tokenizes the prompt of a row.

    Raises:
        ValueError: If the row cannot be read, or its prompt is invalid or too long.
    """
    where = f"{record.where} of {source.name}"
    if record.problem is not None:
        raise ValueError(f"The prompt in {where} cannot be read: {record.problem}.")
    return tokenize(record.row, record.number, where)


def _identity(sampler: Sampler, source: RowSource) -> dict[str, Any]:
    """Everything that samples depend on, by name."""
    return {
        **asdict(sampler.options),
        "model": hash_model(sampler.model),
        "reference_adapter": sampler.forward.reference_adapter,
        "tokenizer": hash_tokenizer(sampler.processing_class),
        "eos_token_ids": sorted(sampler.eos_ids),
        "prompts": source.identity,
        "num_prompts": source.num_rows,
        "mixed_precision": sampler.mixed_precision,
        "device": sampler.model.device.type,
        **versions(),
    }
