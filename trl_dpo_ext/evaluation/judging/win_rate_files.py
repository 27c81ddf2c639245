"""Win rates of files of completions over those of a baseline: names, temperatures and the summary."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from trl_dpo_ext.evaluation.json_results import as_json, write_json
from trl_dpo_ext.evaluation.judging.comparisons import Comparison, compare, read_completions
from trl_dpo_ext.evaluation.judging.verdicts import RaterIdentity, VerdictFile
from trl_dpo_ext.evaluation.judging.win_rates import JudgedComparisons, paired_win_rates
from trl_dpo_ext.evaluation.policies.policy_files import distinct_names
from trl_dpo_ext.evaluation.resumable_file import settings_file
from trl_dpo_ext.reward_model.files.row_sources import RowSource, open_rows


__all__ = ["PolicyFile", "PolicyFiles", "open_completions", "summary_file", "write_summary"]

_ROWS_PER_PART = 10_000


def summary_file(output: Path) -> Path:
    """Returns the path of the summary of a file of verdicts."""
    return output.with_suffix(".summary.json")


def open_completions(name: str, option: str, *, split: str = "train", dataset_config: str | None = None) -> RowSource:
    """
    Opens a file of completions.

    Args:
        name (`str`):
            File, folder or name of a dataset on the hub.
        option (`str`):
            Option that names it, for messages.
        split (`str`, *optional*, defaults to `"train"`):
            Split.
        dataset_config (`str`, *optional*):
            Configuration of a dataset with several.

    Raises:
        ValueError: If it does not exist, cannot be read or has no rows.
    """
    return open_rows(name, rows_per_part=_ROWS_PER_PART, split=split, dataset_config=dataset_config, option=option)


@dataclass(frozen=True)
class PolicyFile:
    """
    Completions of a policy, compared with those of the baseline.

    Args:
        name (`str`):
            Name of the policy. Files of the same policy at several temperatures share it.
        path (`str`):
            File.
        temperature (`float`, *optional*):
            Temperature of the samples, where their settings say it.
        comparisons (`Sequence[Comparison]`):
            Comparisons.
        only_policy (`int`):
            Number of prompts that the baseline does not have.
        only_baseline (`int`):
            Number of prompts that the policy does not have.
    """

    name: str
    path: str
    temperature: float | None
    comparisons: Sequence[Comparison]
    only_policy: int
    only_baseline: int


@dataclass(frozen=True)
class PolicyFiles:
    """
    Files of completions of one or more policies, and the baseline.

    Args:
        files (`Sequence[PolicyFile]`):
            Files.
        baseline (`str`):
            File of the baseline.
    """

    files: Sequence[PolicyFile]
    baseline: str

    @classmethod
    def read(
        cls, policies: Sequence[str], baseline: str, *, split: str = "train", dataset_config: str | None = None
    ) -> "PolicyFiles":
        """
        Reads files.

        Args:
            policies (`Sequence[str]`):
                Files, each as `path` or `name=path`. Files without a name are one policy if their settings say that
                they were sampled from the same model, and are called by their paths otherwise.
            baseline (`str`):
                File.
            split (`str`, *optional*, defaults to `"train"`):
                Split, for datasets.
            dataset_config (`str`, *optional*):
                Configuration, for datasets.

        Raises:
            ValueError: If a file cannot be read, or shares no prompt with the baseline.
        """
        opened = partial(open_completions, split=split, dataset_config=dataset_config)
        of_baseline = read_completions(opened(baseline, "--baseline"))
        named = [_name_and_path(policy) for policy in policies]
        settings = [_settings(path) for _, path in named]
        names = _names(named, settings)
        files = []
        for name, (_, path), found in zip(names, named, settings, strict=True):
            own = read_completions(opened(path, "--policy"))
            files.append(PolicyFile(name, path, found.get("temperature"), *compare(own, of_baseline)))
        return cls(files, baseline)

    @property
    def comparisons(self) -> list[Comparison]:
        """Comparisons of all files."""
        return [comparison for file in self.files for comparison in file.comparisons]

    def summary(self, verdicts: VerdictFile, raters: Sequence[RaterIdentity]) -> dict[str, Any]:
        """
        Returns the win rate of each policy, by the verdicts of raters.

        Args:
            verdicts ([`VerdictFile`]):
                Verdicts.
            raters (`Sequence[RaterIdentity]`):
                Judge, or people.

        Returns:
            `dict`: For one file, its [`JudgedComparisons.summary`]. For several, `policies` with that of each, and
            `differences` with the paired differences of two policies at the same temperature. NaN is `None`.
        """
        names = [rater.rater for rater in raters]
        judged = [JudgedComparisons(file.comparisons, verdicts.of(file.comparisons, names)) for file in self.files]
        entries = [
            {
                "policy": file.name,
                "file": file.path,
                "temperature": file.temperature,
                **one.summary(),
                "prompts_only_in_policy": file.only_policy,
                "prompts_only_in_baseline": file.only_baseline,
            }
            for file, one in zip(self.files, judged, strict=True)
        ]
        first = raters[0]
        result: dict[str, Any] = {
            "baseline": self.baseline,
            "raters": names,
            "kind": first.kind,
            "judge_prompt": first.judge_prompt,
            "judge_prompt_hash": first.judge_prompt_hash,
            "model": first.model,
            "parameters": dict(first.parameters),
            "verdicts": verdicts.path.name,
        }
        if len(entries) == 1:
            result = {**entries[0], **result}
        else:
            result = {"policies": entries, "differences": self._differences(judged), **result}
        found: dict[str, Any] = as_json(result)
        return found

    def _differences(self, judged: Sequence[JudgedComparisons]) -> list[dict[str, Any]]:
        rows = []
        for (file, first), (other, second) in combinations(zip(self.files, judged, strict=True), 2):
            if file.name != other.name and file.temperature == other.temperature:
                mean, se, low, high = paired_win_rates(first, second)
                rows.append(
                    {
                        "policy": file.name,
                        "other": other.name,
                        "temperature": file.temperature,
                        "win_rate": mean,
                        "win_rate_se": se,
                        "win_rate_low": low,
                        "win_rate_high": high,
                    }
                )
        return rows


def write_summary(summary: dict[str, Any], output: Path) -> Path:
    """Writes a summary beside the file of verdicts."""
    path = summary_file(output)
    write_json(path, summary)
    return path


def _name_and_path(policy: str) -> tuple[str | None, str]:
    name, equals, path = policy.partition("=")
    return (name, path) if equals and name and not Path(policy).exists() else (None, policy)


def _settings(path: str) -> dict[str, Any]:
    """Settings of a file of samples of `trl-dpo-ext sample`. Of another program's, nothing is known."""
    try:
        found = json.loads(settings_file(Path(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _names(named: Sequence[tuple[str | None, str]], settings: Sequence[dict[str, Any]]) -> list[str]:
    models = {found.get("model") for found in settings}
    if len(named) > 1 and len(models) == 1 and None not in models:
        of_paths = ["policy"] * len(named)
    else:
        of_paths = distinct_names([path for _, path in named])
        of_paths = [name.removesuffix(".jsonl") for name in of_paths]
    return [name or of_path for (name, _), of_path in zip(named, of_paths, strict=True)]
