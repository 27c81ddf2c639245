"""What the runs of a frontier share: initial policy, prompts, preferences, reward model. Each is made once."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_dpo_ext.data import all_pairs
from trl_dpo_ext.evaluation.json_results import as_json
from trl_dpo_ext.evaluation.policies.policy_evaluation import PolicyEvaluation
from trl_dpo_ext.evaluation.policies.policy_evaluator import PolicyEvaluator
from trl_dpo_ext.evaluation.rewards.classifier_reward import ClassifierReward
from trl_dpo_ext.evaluation.rewards.reward import Reward, rewards_of
from trl_dpo_ext.evaluation.rewards.reward_function import load_function
from trl_dpo_ext.evaluation.rewards.reward_identity import identity_of_reward
from trl_dpo_ext.evaluation.samples.sample_file import open_prompts, sample_file
from trl_dpo_ext.evaluation.samples.sampler import Sampler
from trl_dpo_ext.frontier.config import FrontierConfig
from trl_dpo_ext.frontier.initial_policy import make_initial_policy
from trl_dpo_ext.frontier.points import words_of
from trl_dpo_ext.frontier.prefixes import beginnings
from trl_dpo_ext.frontier.reference_points import reference_points
from trl_dpo_ext.frontier.reward_fit import fit_reward_model
from trl_dpo_ext.frontier.table import Point
from trl_dpo_ext.reward_model.files.join_parts import to_json
from trl_dpo_ext.reward_model.files.row_sources import open_rows
from trl_dpo_ext.reward_model.files.run_identity import versions
from trl_dpo_ext.whole_file import write_text


__all__ = ["SharedParts", "hash_folder"]

_ROWS_PER_PART = 10_000
_SCORED_AT_ONCE = 512


def hash_folder(folder: Path) -> str:
    """Hash of the names and contents of the files of a folder."""
    digest = xxhash.xxh3_128()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass
class SharedParts:
    """
    What the runs share, in a folder. A part is made when it is needed, and kept while what it depends on is the same.

    Args:
        config ([`FrontierConfig`]):
            Config.
        folder (`Path`):
            Folder.
    """

    config: FrontierConfig
    folder: Path

    @cached_property
    def reward(self) -> Reward:
        """The true reward."""
        config = self.config
        if ":" in config.reward:
            if config.reward_label is not None:
                raise ValueError("`reward_label` has no effect on a reward that is a function.")
            return load_function(config.reward)
        return ClassifierReward.from_pretrained(config.reward, config.reward_label)

    @cached_property
    def texts(self) -> tuple[list[str], list[str]]:
        """Texts to fine-tune on, and those that are held out."""
        config = self.config
        if config.texts is None:
            return [], []
        texts = [str(value) for value in _column(config.texts, "text", "`texts`")]
        if len(texts) <= config.num_held_out_texts:
            raise ValueError(
                f"{config.texts} has {len(texts)} texts, of which {config.num_held_out_texts} are held out."
            )
        random.Random(config.seed).shuffle(texts)
        return texts[config.num_held_out_texts :], texts[: config.num_held_out_texts]

    @cached_property
    def sft(self) -> Path:
        """Folder of the initial policy, which is also the reference."""
        config = self.config
        identity = {
            "model": config.model,
            "sft": dict(config.sft or {}),
            "texts": _hash(self.texts),
            "seed": config.seed,
        }
        return self._folder("sft", identity, lambda folder: make_initial_policy(config, self.texts[0], folder))

    @cached_property
    def sft_hash(self) -> str:
        """Hash of its files."""
        return hash_folder(self.sft)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return AutoTokenizer.from_pretrained(self.sft)

    @cached_property
    def prompts(self) -> tuple[list[Any], list[Any]]:
        """Prompts for training and for the evaluation."""
        config = self.config
        if config.prompts is not None:
            train = _column(config.prompts, "prompt", "`prompts`")
            test = _column(str(config.test_prompts), "prompt", "`test_prompts`")
        else:
            length = (config.prefix_tokens[0], config.prefix_tokens[1])
            train, test = (beginnings(texts, self.tokenizer, length, config.seed) for texts in self.texts)
        train = train[: config.num_prompts]
        seen = {json.dumps(prompt) for prompt in train}
        test = [prompt for prompt in test if json.dumps(prompt) not in seen][: config.num_test_prompts]
        for name, found in (("num_prompts", train), ("num_test_prompts", test)):
            if len(found) < getattr(config, name):
                raise ValueError(f"There are {len(found)} prompts, fewer than `{name}={getattr(config, name)}`.")
        return train, test

    @cached_property
    def preferences(self) -> Dataset:
        """Prompts for training with samples of the initial policy (`completions`) and true rewards (`scores`)."""
        config = self.config
        path = self.folder / "preferences.jsonl"
        identity = {
            "sft": self.sft_hash,
            "prompts": _hash(self.prompts[0]),
            "reward": identity_of_reward(self.reward),
            "samples_per_prompt": config.samples_per_prompt,
            "max_new_tokens": config.max_new_tokens,
            "seed": config.seed,
            **versions(),
        }
        self._file(path, identity, self._score_samples)
        return Dataset.from_list([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])

    @cached_property
    def pairs(self) -> Dataset:
        """All pairs of a better and a worse completion."""
        return all_pairs(self.preferences)

    @cached_property
    def preferences_hash(self) -> str:
        """Hash of the preferences."""
        return _hash(self.preferences[:])

    @property
    def cost(self) -> dict[str, int]:
        """Samples and true rewards that the preferences need."""
        num = self.config.num_prompts * self.config.samples_per_prompt
        return {"samples_drawn": num, "reward_calls": num}

    @cached_property
    def reward_model(self) -> Path:
        """Folder of the reward model of Eq. 2, fitted to the pairs."""
        identity = {
            "sft": self.sft_hash,
            "preferences": self.preferences_hash,
            "options": dict(self.config.reward_model),
            "seed": self.config.seed,
            **versions(),
        }
        return self._folder("reward_model", identity, lambda folder: fit_reward_model(self, folder))

    @cached_property
    def learned_reward(self) -> Reward:
        """The reward model."""
        return ClassifierReward.from_pretrained(str(self.reward_model))

    @cached_property
    def evaluator(self) -> PolicyEvaluator:
        """Evaluator of policies by the true reward, with a sample of each prompt."""
        reference = AutoModelForCausalLM.from_pretrained(self.sft)
        return PolicyEvaluator(
            reference,
            self.tokenizer,
            self.reward,
            progress=False,
            num_samples=1,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.config.seed + 1,
        )

    @cached_property
    def of_reference(self) -> PolicyEvaluation:
        """The initial policy on the prompts of the evaluation, with many samples of each."""
        config, evaluator = self.config, self.evaluator
        many = PolicyEvaluator(
            evaluator.reference,
            self.tokenizer,
            self.reward,
            num_samples=config.reference_samples,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed + 2,
        )
        return many.evaluate(many.reference, self.prompts[1])

    @cached_property
    def reference_points(self) -> list[Point]:
        """The points of the initial policy, of best of N and of the optimum, which it is evaluated for once."""
        path = self.folder / "reference.jsonl"
        identity = {
            "sft": self.sft_hash,
            "test_prompts": _hash(self.prompts[1]),
            "preferences": self.preferences_hash,  # whose words are known
            "reward": identity_of_reward(self.reward),
            "reference_samples": self.config.reference_samples,
            "max_new_tokens": self.config.max_new_tokens,
            "seed": self.config.seed,
            **versions(),
        }

        def make(path: Path) -> None:
            points = reference_points(self.of_reference, self.known_words)
            write_text(path, "".join(to_json(as_json(asdict(point))) for point in points))

        self._file(path, identity, make)
        return [Point.of(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]

    @cached_property
    def known_words(self) -> frozenset[str]:
        """Words of the texts, and of the samples of the initial policy."""
        samples = [text for row in self.preferences["completions"] for text in row]
        prompts = [prompt for prompt in self.prompts[0] if isinstance(prompt, str)]
        return words_of([*self.texts[0], *self.texts[1], *prompts, *samples])

    def _score_samples(self, path: Path) -> None:
        config, train = self.config, self.prompts[0]
        prompts, samples = self.folder / "prompts.jsonl", self.folder / "samples.jsonl"
        write_text(prompts, "".join(to_json({"prompt": prompt}) for prompt in train))
        sampler = Sampler.from_pretrained(
            str(self.sft),
            num_samples=config.samples_per_prompt,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
        )
        sample_file(sampler, open_prompts(str(prompts), sampler.options), samples, overwrite=True)
        with samples.open(encoding="utf-8") as file:
            texts = [json.loads(line)["completion"] for line in file]
        num = config.samples_per_prompt
        repeated = [prompt for prompt in train for _ in range(num)]
        scores: list[float] = []
        for start in range(0, len(texts), _SCORED_AT_ONCE):
            part = slice(start, start + _SCORED_AT_ONCE)
            where = [f"sample {i}" for i in range(len(texts))[part]]
            scores += rewards_of(self.reward, repeated[part], texts[part], where)
        rows = []
        for i, prompt in enumerate(train):
            own = slice(i * num, (i + 1) * num)
            rows.append({"prompt": prompt, "completions": _as_prompt(prompt, texts[own]), "scores": scores[own]})
        write_text(path, "".join(map(to_json, rows)))

    def _folder(self, name: str, identity: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """A folder that is complete or not there."""
        folder = self.folder / name
        if not self._is_made(folder, identity):
            shutil.rmtree(folder, ignore_errors=True)
            unfinished = folder.with_name(f".{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            make(unfinished)
            unfinished.rename(folder)
            self._note(folder, identity)
        return folder

    def _file(self, path: Path, identity: dict[str, Any], make: Callable[[Path], None]) -> None:
        if not self._is_made(path, identity):
            path.unlink(missing_ok=True)
            make(path)
            self._note(path, identity)

    def _is_made(self, path: Path, identity: dict[str, Any]) -> bool:
        noted = _identity_file(path)
        return path.exists() and noted.exists() and json.loads(noted.read_text()) == json.loads(json.dumps(identity))

    def _note(self, path: Path, identity: dict[str, Any]) -> None:
        write_text(_identity_file(path), json.dumps(identity, indent=2) + "\n")


def _identity_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.identity.json")


def _column(name: str, column: str, option: str) -> list[Any]:
    """A column of a file or dataset."""
    source = open_rows(name, rows_per_part=_ROWS_PER_PART, split="train", dataset_config=None, option=option)
    return list(_values(source, column))


def _values(source: Any, column: str) -> Iterator[Any]:
    for part in range(source.num_parts):
        for record in source.read(part):
            if record.problem is not None or not record.row.get(column):
                problem = record.problem or f"there is no `{column}`"
                raise ValueError(f"{record.where} of {source.name} cannot be used: {problem}.")
            yield record.row[column]


def _as_prompt(prompt: Any, texts: Sequence[str]) -> list[Any]:
    """Completions of text, or messages where the prompt is messages."""
    if isinstance(prompt, str):
        return list(texts)
    return [[{"role": "assistant", "content": text}] for text in texts]


def _hash(value: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value).encode())
