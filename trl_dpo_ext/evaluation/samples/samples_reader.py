"""Reading of a file of samples by prompt, without holding it in memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from trl_dpo_ext.data.json_files import parse_object
from trl_dpo_ext.evaluation.samples.prompts import TokenizedPrompt
from trl_dpo_ext.evaluation.samples.sampler import Sample


__all__ = ["SamplesReader", "read_sample"]

# Columns of a sample, and the types of their values
_COLUMNS: dict[str, tuple[type, ...]] = {
    "prompt_id": (int,),
    "prompt": (str, list),
    "completion": (str,),
    "token_ids": (list,),
    "finished": (bool,),
    "logp": (float, int),
}


class SamplesReader:
    """
    Samples of a JSON Lines file, by prompt.

    Only the offset of each line is held in memory.

    Args:
        path (`Path`):
            File with `prompt_id`, `prompt`, `completion`, `token_ids`, `finished` and `logp`, the same number of rows
            for each prompt.

    Raises:
        ValueError: If a row cannot be read, a column is missing or has another type, or the prompts do not have the
            same number of samples.
    """

    def __init__(self, path: Path):
        self.path = path
        self._offsets: dict[int, list[int]] = {}
        digest, place = xxhash.xxh3_128(), 0
        if not path.is_file():
            raise ValueError(f"The file of samples {path} does not exist.")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip():
                    sample = read_sample(line, f"line {number} of {path.name}")
                    self._offsets.setdefault(sample.prompt_id, []).append(place)
                place += len(line)
        self.identity = digest.hexdigest()
        if not self._offsets:
            raise ValueError(f"{path} has no samples.")
        counts = {prompt_id: len(offsets) for prompt_id, offsets in self._offsets.items()}
        first, self.num_samples = next(iter(counts.items()))
        for prompt_id, num in counts.items():
            if num != self.num_samples:
                raise ValueError(
                    f"{path} has {self.num_samples} samples of prompt {first} and {num} of prompt {prompt_id}. Every "
                    "prompt needs the same number."
                )

    def check_prompts(self, num_prompts: int) -> None:
        """
        Checks that there are samples of all prompts, and of no others.

        Raises:
            ValueError: If a prompt has no sample, or a sample no prompt.
        """
        missing = next((i for i in range(num_prompts) if i not in self._offsets), None)
        other = next((i for i in self._offsets if not 0 <= i < num_prompts), None)
        if missing is not None or other is not None:
            what = f"no sample of prompt {missing}" if missing is not None else f"samples of prompt {other}"
            raise ValueError(
                f"{self.path} has {what}, and PROMPTS has the prompts 0 to {num_prompts - 1}. Pass the prompts that "
                "were sampled."
            )

    def of_prompts(self, prompts: Sequence[TokenizedPrompt]) -> list[list[Sample]]:
        """
        Returns the samples of prompts.

        Args:
            prompts (`Sequence[TokenizedPrompt]`):
                Prompts.

        Raises:
            ValueError: If a sample has another prompt.
        """
        with self.path.open("rb") as file:
            found = []
            for prompt in prompts:
                places = self._offsets[prompt.prompt_id]
                own = [self._at(file, place, number) for number, place in enumerate(places)]
                for sample in own:
                    if sample.prompt != prompt.prompt:
                        raise ValueError(
                            f"The prompt {prompt.prompt_id} in {self.path} is not the one in PROMPTS. Pass the "
                            "prompts that were sampled."
                        )
                found.append(own)
        return found

    def _at(self, file: Any, place: int, number: int) -> Sample:
        file.seek(place)
        return read_sample(file.readline(), self.path.name, number)


def read_sample(line: bytes, where: str, number: int = 0) -> Sample:
    """
    Reads a row of a file of samples, the sample `number` of its prompt if the row does not say which one it is.

    Raises:
        ValueError: If it cannot be read, or a column is missing or has another type.
    """
    try:
        row = parse_object(line.rstrip())
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {error}.") from error
    for name, types in _COLUMNS.items():
        if name not in row:
            raise ValueError(f"{where} has no `{name}`. A row of samples needs {', '.join(_COLUMNS)}.")
        value = row[name]
        if not isinstance(value, types) or isinstance(value, bool) and bool not in types:
            expected = " or ".join(kind.__name__ for kind in types)
            raise ValueError(f"`{name}` in {where} is {json.dumps(value)[:40]}. Expected {expected}.")
    if not row["token_ids"] or not all(type(token) is int and token >= 0 for token in row["token_ids"]):
        raise ValueError(f"`token_ids` in {where} has a value that is no token id, or is empty.")
    return Sample(sample=row.get("sample", number), **{name: row[name] for name in _COLUMNS})
