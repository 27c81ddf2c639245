"""
Shared parts of the comparisons of trainers on the sentiment task: initial model, training and measurements.

`ranking_vs_pairs.py` and `baselines.py` explain what they compare.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: threads wait without a core

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)

from trl_dpo_ext.evaluation import PolicyEvaluation, PolicyEvaluator
from trl_dpo_ext.quickstart import quickstart
from trl_dpo_ext.quickstart.sentiment_reward import SentimentReward
from trl_dpo_ext.quickstart.sentiment_task import MAX_NEW_TOKENS, REVIEWS, cut_prefixes, load_reviews


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a comparison."""

    seeds: tuple[int, ...] = (0, 1)  # of the order of the data; initial model and data are the same
    num_prefixes: int = 2_000
    num_test_prefixes: int = 512
    beta: float
    learning_rate: float = 1e-4
    warmup_steps: int = 20
    num_updates: int
    sequences_per_update: int = 64  # in `baselines.py`: pairs
    updates_between_evaluations: int

    def quick(self, num_updates: int, updates_between_evaluations: int) -> "Settings":
        """Returns a smaller version of the same comparison."""
        return replace(
            self,
            seeds=(0,),
            num_prefixes=64,
            num_test_prefixes=64,
            warmup_steps=3,
            num_updates=num_updates,
            updates_between_evaluations=updates_between_evaluations,
        )


def folder_and_quick(name: str, description: str) -> tuple[Path, bool]:
    """Returns the output folder, which is created, and whether `--quick` is given on the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output_dir", type=Path, help=f"defaults to outputs/{name}")
    parser.add_argument("--quick", action="store_true", help="run a smaller version as a test")
    options = parser.parse_args()
    suffix = "_quick" if options.quick else ""
    output_dir = options.output_dir or Path("outputs", f"{name}{suffix}")
    output_dir.mkdir(parents=True, exist_ok=True)
    return output_dir, options.quick


# Initial model


@dataclass
class Beginning:
    """Start of the quickstart's training: reviews, reward, and the fine-tuned model, which is also the reference."""

    sft_dir: Path
    tokenizer: PreTrainedTokenizerFast
    reference: PreTrainedModel
    reward: SentimentReward
    texts: list[str]
    held_out: list[str]
    seed: int

    @classmethod
    def of_quickstart(cls, output_dir: Path, quick: bool) -> "Beginning":
        """Loads the quickstart's model if it exists, or trains it in `output_dir`."""
        settings, suffix = (quickstart.QUICK, "_quick") if quick else (quickstart.FULL, "")
        reviews = load_reviews()
        texts = [review["text"] for review in reviews]
        random.Random(settings.seed).shuffle(texts)
        held_out, texts = texts[: settings.num_held_out_reviews], texts[settings.num_held_out_reviews :]
        sft_dir = find_or_make_sft_model(output_dir, Path("outputs", f"quickstart{suffix}"), texts, settings)
        return cls(
            sft_dir=sft_dir,
            tokenizer=AutoTokenizer.from_pretrained(sft_dir),
            reference=AutoModelForCausalLM.from_pretrained(sft_dir),
            reward=SentimentReward(reviews),
            texts=texts,
            held_out=held_out,
            seed=settings.seed,
        )

    def prefixes(self, num: int, num_test: int) -> tuple[list[str], list[str]]:
        """Returns beginnings of reviews for training, and others of held-out reviews."""
        set_seed(self.seed)
        train = cut_prefixes(self.texts, self.tokenizer, num_prefixes=num)
        return train, cut_prefixes(self.held_out, self.tokenizer, num_prefixes=num_test, exclude=frozenset(train))


def find_or_make_sft_model(
    output_dir: Path, quickstart_dir: Path, texts: list[str], settings: quickstart.Settings
) -> Path:
    """Returns the folder of the fine-tuned model: an existing one with these settings, or a new one."""
    reviews_hash = hashlib.sha256(REVIEWS.read_bytes()).hexdigest()
    wanted = asdict(settings) | {"reviews_sha256": reviews_hash}
    for folder in (quickstart_dir, output_dir):
        record = folder / "settings.json"
        if (folder / "sft").is_dir() and record.is_file() and json.loads(record.read_text()) == wanted:
            return folder / "sft"
    shutil.rmtree(output_dir / "sft", ignore_errors=True)
    (output_dir / "settings.json").write_text(json.dumps(wanted, indent=2) + "\n")
    quickstart.make_sft_model(output_dir / "sft", texts, settings)
    return output_dir / "sft"


# Training and its measurements


@dataclass
class Point:
    """Results of a policy on the held-out prefixes at one point of training."""

    num_sequences: int
    evaluation: PolicyEvaluation

    @property
    def rewards(self) -> np.ndarray:
        """True reward of each prefix."""
        return self.evaluation.reward[:, 0]

    @property
    def kls(self) -> np.ndarray:
        """KL of each prefix, in nats."""
        return self.evaluation.kl[:, 0]

    def summary(self) -> dict[str, float]:
        return {"num_sequences": self.num_sequences} | self.evaluation.summary()


Curves = dict[str, list[list[Point]]]  # by method, seed and time


class HeldOutEvaluation(TrainerCallback):
    """Measures true reward and KL during training, always on the same prefixes with the same random numbers."""

    def __init__(
        self,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        reward: SentimentReward,
        prefixes: list[str],
        settings: Settings,
    ):
        self.reference = reference
        self.evaluator = PolicyEvaluator(
            reference, tokenizer, reward, num_samples=1, max_new_tokens=MAX_NEW_TOKENS, progress=False
        )
        self.prefixes = prefixes
        self.settings = settings
        self.points: list[Point] = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.reference.to(model.device)
        self.points = [self.point(0, model)]

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step % self.settings.updates_between_evaluations == 0:
            self.points.append(self.point(state.global_step, model))

    def point(self, num_updates: int, model: PreTrainedModel) -> Point:
        evaluation = self.evaluator.evaluate(model, self.prefixes)
        return Point(num_updates * self.settings.sequences_per_update, evaluation)


def train(
    trainer_class: type,
    config_class: type,
    dataset: Dataset,
    model_dir: Path,
    output_dir: Path,
    held_out_evaluation: HeldOutEvaluation,
    *,
    seed: int,
    rows_per_update: int,
    **own: Any,
) -> list[Point]:
    """Trains with one method. Only the rows per update and the options of the method differ."""
    settings = held_out_evaluation.settings
    config = config_class(
        output_dir=str(output_dir),
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        max_steps=settings.num_updates,
        global_batch_size=rows_per_update,
        per_device_train_batch_size=rows_per_update,
        gradient_checkpointing=False,
        logging_steps=settings.updates_between_evaluations,
        save_strategy="no",
        report_to="none",
        seed=seed,
        **own,
    )
    trainer = trainer_class(
        model=str(model_dir),
        args=config,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(quickstart.ProgressBarWithMetrics)
    trainer.add_callback(held_out_evaluation)
    trainer.train()
    return held_out_evaluation.points


# Results


def mean_and_stderr(values: np.ndarray) -> tuple[float, float]:
    """Mean of one value per prefix, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def over_seeds(runs: list[list[Point]], i: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and KLs of every prefix at the `i`-th evaluation, averaged over seeds."""
    points = [run[i] for run in runs]
    return np.mean([point.rewards for point in points], axis=0), np.mean([point.kls for point in points], axis=0)


def reward_at_kl(run: list[Point], kl: float) -> np.ndarray:
    r"""
    Reward of every prefix where a run crosses `kl`, interpolated linearly between two evaluations.

    The mean is the value of this line at `kl`. The standard error is that of the delta method: noise in the KLs moves
    the point along the line, hence `rewards - slope * (KLs - kl)`.
    """
    crossing = next(i for i in range(1, len(run)) if run[i].kls.mean() >= kl)
    before, after = run[crossing - 1], run[crossing]
    rise, width = after.rewards.mean() - before.rewards.mean(), after.kls.mean() - before.kls.mean()
    weight = (kl - before.kls.mean()) / width
    rewards = (1 - weight) * before.rewards + weight * after.rewards
    kls = (1 - weight) * before.kls + weight * after.kls
    return rewards - rise / width * (kls - kl)


def write_results(
    output_dir: Path, curves: Curves, settings: Settings, seconds: float, summary: dict[str, Any]
) -> None:
    """Writes the measurements during training and their summary to `results.json`."""
    results = {
        "curves": {method: [[point.summary() for point in run] for run in runs] for method, runs in curves.items()},
        **summary,
        "seconds": seconds,
        "settings": asdict(settings),
    }
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
