"""Evaluation of policies in files: samples, records and results, resumable and on any number of processes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from trl_dpo_ext.evaluation.json_results import as_json, write_json
from trl_dpo_ext.evaluation.policies.estimates import paired_difference, t_distribution
from trl_dpo_ext.evaluation.policies.measured_samples import MeasuredSample, measure
from trl_dpo_ext.evaluation.policies.policy_evaluation import PolicyEvaluation
from trl_dpo_ext.evaluation.policies.sequence_kl import SequenceKL
from trl_dpo_ext.evaluation.resumable_file import ResumableFile, settings_file
from trl_dpo_ext.evaluation.rewards.reward import Reward
from trl_dpo_ext.evaluation.rewards.reward_identity import identity_of_reward
from trl_dpo_ext.evaluation.samples.prompts import TokenizedPrompt
from trl_dpo_ext.evaluation.samples.sample_file import prompt_of, sample_file
from trl_dpo_ext.evaluation.samples.sampler import Sample, Sampler
from trl_dpo_ext.evaluation.samples.samples_reader import SamplesReader
from trl_dpo_ext.processes import together
from trl_dpo_ext.reward_model.files.row_sources import RowSource
from trl_dpo_ext.reward_model.files.run_identity import hash_model, hash_tokenizer, versions


__all__ = ["BEST_OF", "EvaluationFiles", "PolicySource", "distinct_names", "evaluate_files"]

BEST_OF = (1, 4, 16, 64, 128)


@dataclass(frozen=True)
class EvaluationFiles:
    """
    Where an evaluation is written.

    Args:
        results (`Path`):
            JSON file with the results.
    """

    results: Path

    @classmethod
    def of(cls, output: str | Path) -> "EvaluationFiles":
        """Returns the files of an output: a `.json` file, or a folder for `evaluation.json`."""
        path = Path(output)
        return cls(path if path.suffix == ".json" else path / "evaluation.json")

    def samples(self, name: str) -> Path:
        """Samples of a policy."""
        return self.results.with_suffix(".samples") / f"{name}.jsonl"

    def records(self, name: str) -> Path:
        """Samples of a policy with their rewards and KL."""
        return self.results.with_suffix(".records") / f"{name}.jsonl"


def distinct_names(paths: Sequence[str]) -> list[str]:
    """
    Returns a name for each path: its last parts, as many as make it different from the others.

    Raises:
        ValueError: If a path is given twice.

    Example:

    ```python
    >>> from trl_dpo_ext.evaluation.policies.policy_files import distinct_names

    >>> distinct_names(["runs/a/policy", "runs/b/policy", "sft/"])
    ['a-policy', 'b-policy', 'sft']

    ```
    """
    all_parts = [[part for part in Path(path).parts if part not in ("/", "..")] or ["model"] for path in paths]
    for path, parts in zip(paths, all_parts, strict=True):
        if all_parts.count(parts) > 1:
            raise ValueError(f"{path} is given twice.")
    names = []
    for parts in all_parts:
        num = next(n for n in range(1, len(parts) + 1) if [other[-n:] for other in all_parts].count(parts[-n:]) == 1)
        names.append("-".join(parts[-num:]))
    return names


@dataclass
class PolicySource:
    """
    A policy to evaluate.

    Args:
        name (`str`):
            Name in the results.
        path (`str`):
            Folder or hub name.
        open (`Callable`):
            Loads it, and its reference, as [`Sampler`]s. The second may be that of another policy.
        samples (`Path`, *optional*):
            File of samples that exist already.
    """

    name: str
    path: str
    open: Callable[[], tuple[Sampler, Sampler]] = field(repr=False)
    samples: Path | None = None


def evaluate_files(
    policies: Sequence[PolicySource],
    reference: PolicySource,
    prompts: RowSource,
    rewards: Mapping[str, Reward],
    files: EvaluationFiles,
    *,
    best_of: Sequence[int] = BEST_OF,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """
    Evaluates policies and their reference on the same prompts.

    Policies are loaded one after another. Samples and records are files that an interrupted run finds again
    ([`~trl_dpo_ext.evaluation.resumable_file.ResumableFile`]). Results are computed from the records.

    Args:
        policies (`Sequence[PolicySource]`):
            Policies.
        reference (`PolicySource`):
            Reference.
        prompts (`RowSource`):
            Result of [`~trl_dpo_ext.evaluation.open_prompts`].
        rewards (`Mapping[str, Reward]`):
            Rewards, by name.
        files (`EvaluationFiles`):
            Where to write.
        best_of (`Sequence[int]`, *optional*):
            Numbers of samples for best of N.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace files with other settings.

    Returns:
        `dict` on the main process, `None` on the others: contents of the JSON file.

    Raises:
        ValueError: If files of other settings exist, or a prompt, sample or reward is invalid.
        ImportError: Without scipy.
    """
    t_distribution()  # raises an error now, and not after the last sample
    identities = {f"reward {name}": identity_of_reward(reward) for name, reward in rewards.items()}
    options: dict[str, Any] = {}
    for source in [reference, *policies]:
        sampler, ref_sampler = source.open()
        file = _RecordFile(source, sampler, ref_sampler, prompts, files)
        file.write(rewards, identities, overwrite)
        options = asdict(sampler.options)
        del sampler, ref_sampler, file  # before the next is loaded
    if not PartialState().is_main_process:
        return None
    of_reference = _read(files.records(reference.name), None)
    found = {source.name: _read(files.records(source.name), of_reference) for source in policies}
    result = {
        "policies": {
            source.name: _entry(source, files) | found[source.name].summary(best_of=best_of) for source in policies
        },
        "reference": {"name": reference.name, **_entry(reference, files), **of_reference.summary(best_of=best_of)},
        "differences": _differences({**found, reference.name: of_reference}),
        "num_prompts": prompts.num_rows,
        **options,
        "prompts": prompts.name,
        "rewards": list(rewards),
        "versions": versions(),
    }
    result = as_json(result)
    write_json(files.results, result)
    return result


class _RecordFile:
    """Records of one policy: its samples with rewards and KL."""

    def __init__(
        self, source: PolicySource, sampler: Sampler, reference: Sampler, prompts: RowSource, files: EvaluationFiles
    ):
        self.source = source
        self.sampler = sampler
        self.reference = reference
        self.prompts = prompts
        self.files = files

    def write(self, rewards: Mapping[str, Reward], identities: Mapping[str, str], overwrite: bool) -> None:
        """Samples, unless there are samples, and measures them."""
        name = self.source.name
        samples = self.source.samples or self.files.samples(name)
        if self.source.samples is None:
            sample_file(self.sampler, self.prompts, samples, overwrite=overwrite, title=f"Sampling {name}")
        with together():
            reader = SamplesReader(samples)
            reader.check_prompts(self.prompts.num_rows)
            if self.source.samples is not None:
                self._check_policy(samples)
        sequence_kl = SequenceKL(self.sampler.forward, self.reference.forward, self.sampler.options)

        def rows_of(part: int) -> Iterator[dict[str, Any]]:
            prompts, own = self._part(part, reader)
            measured = measure(sequence_kl, rewards, prompts, own, check_logps=self.source.samples is not None)
            return (asdict(sample) for of_prompt in measured for sample in of_prompt)

        sizes = [reader.num_samples * self.prompts.size_of(part) for part in range(self.prompts.num_parts)]
        file = ResumableFile(self.files.records(name), sizes, unit="sample", title=f"Measuring {name}")
        file.write(lambda: self._identity(reader) | dict(identities), rows_of, overwrite=overwrite)

    def _check_policy(self, samples: Path) -> None:
        settings = settings_file(samples)
        if not settings.is_file():  # made by another program
            return
        found = json.loads(settings.read_text(encoding="utf-8")).get("model")
        if found is not None and found != hash_model(self.sampler.model):
            raise ValueError(
                f"{samples} has samples of another model than {self.source.path}, by the hash in {settings}. Pass the "
                "policy that was sampled."
            )

    def _part(self, part: int, reader: SamplesReader) -> tuple[list[TokenizedPrompt], list[list[Sample]]]:
        prompts = [prompt_of(self.sampler.tokenize, record, self.prompts) for record in self.prompts.read(part)]
        return prompts, reader.of_prompts(prompts)

    def _identity(self, reader: SamplesReader) -> dict[str, Any]:
        options = self.sampler.options
        return {
            "samples": reader.identity,
            "prompts": self.prompts.identity,
            "policy": hash_model(self.sampler.model),
            "reference": hash_model(self.reference.model),
            "reference_adapter": self.reference.forward.reference_adapter,
            "tokenizer": hash_tokenizer(self.sampler.processing_class),
            **{name: getattr(options, name) for name in ("temperature", "top_k", "top_p")},
            "mixed_precision": self.sampler.mixed_precision,
            "device": self.sampler.model.device.type,
            **versions(),
        }


def _read(records: Path, of_reference: PolicyEvaluation | None) -> PolicyEvaluation:
    """Reads the records of a policy, prompt by prompt, without their texts."""

    def by_prompt() -> Iterator[list[MeasuredSample]]:
        with records.open(encoding="utf-8") as file:
            rows = (MeasuredSample(**json.loads(line)) for line in file)
            for _, own in groupby(rows, key=lambda row: row.prompt_id):
                yield list(own)

    return PolicyEvaluation.of(by_prompt(), of_reference, texts=False)


def _entry(source: PolicySource, files: EvaluationFiles) -> dict[str, str]:
    records = files.records(source.name).relative_to(files.results.parent)
    return {"path": source.path, "records": str(records)}


def _differences(evaluations: Mapping[str, PolicyEvaluation]) -> list[dict[str, Any]]:
    """Paired differences of all pairs of policies."""
    rows = []
    for (name, first), (other, second) in combinations(evaluations.items(), 2):
        row: dict[str, Any] = {"policy": name, "other": other}
        of_second = _compared(second)
        for quantity, values in _compared(first).items():
            mean, se, low, high = paired_difference(values, of_second[quantity])
            row |= {quantity: mean, f"{quantity}_se": se, f"{quantity}_low": low, f"{quantity}_high": high}
        rows.append(row)
    return rows


def _compared(evaluation: PolicyEvaluation) -> dict[str, np.ndarray]:
    rewards = {"reward": evaluation.reward} if evaluation.rewards else {}
    others = {"kl": evaluation.kl, "finished_share": evaluation.finished, "mean_length": evaluation.length}
    return {**rewards, **others}
