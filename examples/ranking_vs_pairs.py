"""
Whole rankings against the pairs cut out of them, at equal compute: `RankingDPOTrainer` and `DPOPaperTrainer`.

    python examples/ranking_vs_pairs.py [--output_dir FOLDER] [--quick]

The quickstart's model completes beginnings of reviews four times each, and the ground-truth reward scores the
completions: one row with `prompt`, `completions` and `scores` for every beginning. From the same rows and the same
start, with the same beta, learning rate and warm-up, one trainer learns from rankings of four (Eq. 20, Plackett-Luce)
and the other from all six pairs of each (Eq. 7, `all_pairs`). Equal compute means that every update runs equally many
sequences through the policy: B rankings are 4 B sequences, 2 B pairs as well. So one pass over the rankings costs as
much as a third of a pass over the pairs. True reward and KL on held-out beginnings are measured on the way.

Measured in six minutes on two busy CPU cores: rankings end 0.013 +- 0.005 higher in reward (0.612 against 0.598) at a
KL that is no smaller; half way there is no clear difference, and none at equal KL (0.002 +- 0.005).

The output folder (`outputs/ranking_vs_pairs`) then holds `rankings.jsonl`, `results.json`, `ranking_vs_pairs.png`, and
`sft/` unless the quickstart has left its own in `outputs/quickstart`. `--quick` does the same with less of everything,
in `outputs/ranking_vs_pairs_quick`; its numbers say nothing.
"""

import argparse
import hashlib
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import quickstart  # before torch: it makes the thread library wait without using a core
import torch
from datasets import Dataset, load_dataset
from sentiment_task import (
    REVIEWS,
    SAMPLING_BATCH,
    Evaluation,
    SentimentReward,
    cut_prefixes,
    evaluate,
    load_reviews,
    sample_completions,
)
from tqdm.auto import tqdm
from training_curves import BLUE, GREY, ORANGE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.data.rankings.converters import all_pairs


NUM_COMPLETIONS = 4
RANKINGS, PAIRS = "whole rankings", "all pairs"
COLORS = {RANKINGS: BLUE, PAIRS: ORANGE}


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison."""

    seeds: tuple[int, ...] = (0, 1)  # of the order of the data; start and data are the same
    num_prefixes: int = 2_000
    num_test_prefixes: int = 512
    beta: float = 0.3
    learning_rate: float = 1e-4
    warmup_steps: int = 20
    num_updates: int = 120
    sequences_per_update: int = 64
    updates_between_evaluations: int = 20


FULL = Settings()
QUICK = Settings(
    seeds=(0,), num_prefixes=100, num_test_prefixes=96, warmup_steps=3, num_updates=10, updates_between_evaluations=5
)


@dataclass
class Point:
    """What a policy does on the held-out prefixes after some training."""

    num_sequences: int
    evaluation: Evaluation

    def summary(self) -> dict[str, float]:
        return {"num_sequences": self.num_sequences} | self.evaluation.summary()


Curves = dict[str, list[list[Point]]]  # by method, seed and time


class HeldOutEvaluation(TrainerCallback):
    """Measures true reward and KL during the training, on the same prefixes with the same random numbers each time."""

    def __init__(
        self,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        reward: SentimentReward,
        prefixes: list[str],
        settings: Settings,
    ):
        self.reference = reference
        self.measure = partial(evaluate, ref=reference, tokenizer=tokenizer, reward=reward, prefixes=prefixes, seed=0)
        self.settings = settings
        self.points: list[Point] = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.reference.to(model.device)
        self.points = [self.point(0, model)]

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step % self.settings.updates_between_evaluations == 0:
            self.points.append(self.point(state.global_step, model))

    def point(self, num_updates: int, model: PreTrainedModel) -> Point:
        was_training = model.training
        with torch.random.fork_rng():  # the order of the training data stays as it is
            evaluation = self.measure(model.eval())
        model.train(was_training)
        return Point(num_updates * self.settings.sequences_per_update, evaluation)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare training on whole rankings with training on their pairs.")
    parser.add_argument("--output_dir", type=Path, help="defaults to outputs/ranking_vs_pairs")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it runs")
    options = parser.parse_args()
    settings = QUICK if options.quick else FULL
    suffix = "_quick" if options.quick else ""
    output_dir = options.output_dir or Path("outputs", f"ranking_vs_pairs{suffix}")
    output_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    print("\n1. The model to start from")
    begin = Beginning.of_quickstart(output_dir, options.quick)
    sft_dir, tokenizer, reference, reward = begin.sft_dir, begin.tokenizer, begin.reference, begin.reward
    print(f"{sft_dir}: {reference.num_parameters():,} parameters")

    print(f"\n2. Sample {NUM_COMPLETIONS} completions of every prefix and score them with the ground-truth reward")
    prefixes, test_prefixes = begin.prefixes(settings.num_prefixes, settings.num_test_prefixes)
    rows = scored_rows(reference, tokenizer, reward, prefixes)
    rankings_file = output_dir / "rankings.jsonl"
    rankings_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rankings = load_dataset("json", data_files=str(rankings_file), split="train")
    pairs = all_pairs(rankings)
    print(
        f"{rankings_file}: {len(rankings):,} rankings, which give {len(pairs):,} pairs; "
        f"{len(prefixes) - len(rows)} prefixes with empty or equally good completions left out"
    )

    print(f"\n3. Train, {settings.num_updates} updates of {settings.sequences_per_update} sequences")
    held_out_evaluation = HeldOutEvaluation(reference, tokenizer, reward, test_prefixes, settings)
    curves: Curves = {RANKINGS: [], PAIRS: []}
    train_seconds: dict[str, list[float]] = {RANKINGS: [], PAIRS: []}
    for seed in settings.seeds:
        for method, dataset in ((RANKINGS, rankings), (PAIRS, pairs)):
            began = time.perf_counter()
            points = train(method, dataset, sft_dir, output_dir / "trainer", held_out_evaluation, seed, settings)
            train_seconds[method].append(time.perf_counter() - began)
            curves[method].append(points)
            end = points[-1].evaluation.summary()
            print(
                f"{method}, seed {seed}: reward {end['reward']:.3f} at KL {end['kl']:.2f}, "
                f"{train_seconds[method][-1]:.0f} s with evaluations"
            )

    print(f"\n4. Results on {len(test_prefixes)} prefixes that do not occur in training")
    print_table(curves)
    comparison = compare(curves)
    print_conclusion(comparison)
    picture = output_dir / "ranking_vs_pairs.png"
    draw(picture, curves)
    seconds = time.perf_counter() - start
    results = {
        "curves": {method: [[point.summary() for point in run] for run in runs] for method, runs in curves.items()},
        "comparison": comparison,
        "train_seconds": train_seconds,
        "seconds": seconds,
        "settings": asdict(settings),
    }
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nAll of it took {seconds:.0f} s. The curves are in {picture}")


@dataclass
class Beginning:
    """Where the quickstart's training begins: reviews, reward, and the fine-tuned model, also the reference."""

    sft_dir: Path
    tokenizer: PreTrainedTokenizerFast
    reference: PreTrainedModel
    reward: SentimentReward
    texts: list[str]
    held_out: list[str]
    seed: int

    @classmethod
    def of_quickstart(cls, output_dir: Path, quick: bool) -> "Beginning":
        """Takes the quickstart's model if it is there, and makes it in `output_dir` if not."""
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
        """Beginnings of reviews to train on, and others of held-out reviews."""
        set_seed(self.seed)
        train = cut_prefixes(self.texts, self.tokenizer, num_prefixes=num)
        return train, cut_prefixes(self.held_out, self.tokenizer, num_prefixes=num_test, exclude=frozenset(train))


def find_or_make_sft_model(
    output_dir: Path, quickstart_dir: Path, texts: list[str], settings: quickstart.Settings
) -> Path:
    """Folder of the fine-tuned model: the quickstart's or an earlier run's if it had these settings, or a new one."""
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


def scored_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, reward: SentimentReward, prefixes: list[str]
) -> list[dict[str, str | list]]:
    """
    Completions of every prefix with their rewards, as rows with `prompt`, `completions` and `scores`.

    A prefix with an empty completion or with equal rewards gives no row, so that every row is four sequences and six
    pairs and the compute is equal exactly.
    """
    prompts = [prefix for prefix in prefixes for _ in range(NUM_COMPLETIONS)]
    completions: list[str] = []
    for start in tqdm(range(0, len(prompts), SAMPLING_BATCH), desc="sampling", unit="batch"):
        completions += sample_completions(model, tokenizer, prompts[start : start + SAMPLING_BATCH]).completions
    rewards = reward(prompts, completions).tolist()
    rows = []
    for i, prefix in enumerate(prefixes):
        own = slice(i * NUM_COMPLETIONS, (i + 1) * NUM_COMPLETIONS)
        if all(completions[own]) and len(set(rewards[own])) == NUM_COMPLETIONS:
            rows.append({"prompt": prefix, "completions": completions[own], "scores": rewards[own]})
    return rows


def train(
    method: str,
    dataset: Dataset,
    model_dir: Path,
    output_dir: Path,
    held_out_evaluation: HeldOutEvaluation,
    seed: int,
    settings: Settings,
) -> list[Point]:
    """Trains on rankings or on pairs. All options are the same except for how many rows are one update."""
    trainer_class, config_class, sequences_per_row = {
        RANKINGS: (RankingDPOTrainer, RankingDPOConfig, NUM_COMPLETIONS),
        PAIRS: (DPOPaperTrainer, DPOPaperConfig, 2),
    }[method]
    rows_per_update = settings.sequences_per_update // sequences_per_row
    config = config_class(
        output_dir=str(output_dir),
        beta=settings.beta,
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
    )
    trainer = trainer_class(
        model=str(model_dir),
        args=config,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(quickstart.ProgressBarWithFigures)
    trainer.add_callback(held_out_evaluation)
    trainer.train()
    return held_out_evaluation.points


def mean_and_stderr(values: np.ndarray) -> tuple[float, float]:
    """Mean of one value a prefix, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def over_seeds(runs: list[list[Point]], i: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and KLs of every prefix at the `i`-th evaluation, averaged over seeds."""
    evaluations = [run[i].evaluation for run in runs]
    return np.mean([e.rewards for e in evaluations], axis=0), np.mean([e.kls for e in evaluations], axis=0)


def reward_at_kl(run: list[Point], kl: float) -> np.ndarray:
    r"""
    Reward of every prefix where a run crosses `kl`, on the straight line between the evaluations around it.

    The mean is the point of the line at `kl`, and the standard error that of the delta method: chance in the KLs moves
    the point along the line, hence `rewards - slope * (KLs - kl)`.
    """
    crossing = next(i for i in range(1, len(run)) if run[i].evaluation.kls.mean() >= kl)
    before, after = run[crossing - 1].evaluation, run[crossing].evaluation
    rise, width = after.rewards.mean() - before.rewards.mean(), after.kls.mean() - before.kls.mean()
    weight = (kl - before.kls.mean()) / width
    rewards = (1 - weight) * before.rewards + weight * after.rewards
    kls = (1 - weight) * before.kls + weight * after.kls
    return rewards - rise / width * (kls - kl)


def compare(curves: Curves) -> list[dict]:
    """
    Differences, rankings minus pairs, prefix by prefix: at equal compute in the middle and at the end, and at equal
    KL, namely at half of the largest that all runs reach and at all of it.
    """
    runs = list(zip(curves[RANKINGS], curves[PAIRS], strict=True))
    last = len(runs[0][0]) - 1
    comparison = []
    for i in ((last + 1) // 2, last):
        where = f"after {runs[0][0][i].num_sequences:,} sequences"
        for name, field in (("reward", "rewards"), ("KL", "kls")):
            differences = [getattr(a[i].evaluation, field) - getattr(b[i].evaluation, field) for a, b in runs]
            comparison.append(difference_row(f"{name} {where}", differences))
    common = min(max(point.evaluation.kls.mean() for point in run) for both in runs for run in both)
    for kl in (common / 2, common):
        differences = [reward_at_kl(a, kl) - reward_at_kl(b, kl) for a, b in runs]
        comparison.append(difference_row(f"reward at KL {kl:.2f}", differences))
    return comparison


def difference_row(quantity: str, differences: list[np.ndarray]) -> dict:
    """Mean over seeds and prefixes, its standard error over prefixes, the mean of each seed, and what follows."""
    mean, stderr = mean_and_stderr(np.mean(differences, axis=0))
    by_seed = [float(values.mean()) for values in differences]
    clear = abs(mean) > 2 * stderr and all(value * mean > 0 for value in by_seed)
    verdict = "no clear difference" if not clear else "rankings higher" if mean > 0 else "rankings lower"
    return {"quantity": quantity, "difference": mean, "stderr": stderr, "by_seed": by_seed, "verdict": verdict}


def print_table(curves: Curves) -> None:
    """True reward and KL along the training, averaged over seeds, with standard errors over prefixes."""
    print(f"{'':11}{RANKINGS:^34}   {PAIRS:^34}")
    print(f"{'sequences':>11}" + f"{'true reward':>17}{'KL, nats':>17}   " * 2)
    for i, point in enumerate(curves[RANKINGS][0]):
        line = f"{point.num_sequences:>11,}"
        for runs in curves.values():
            (reward, reward_stderr), (kl, kl_stderr) = map(mean_and_stderr, over_seeds(runs, i))
            line += f"{reward:>8.3f} +- {reward_stderr:.3f}{kl:>8.3f} +- {kl_stderr:.3f}   "
        print(line)


def print_conclusion(comparison: list[dict]) -> None:
    """The differences, and which of them are larger than chance explains."""
    print("\nRankings - pairs, on the same prefixes:")
    for row in comparison:
        by_seed = ", ".join(f"{value:+.3f}" for value in row["by_seed"])
        print(
            f"  {row['quantity']:30}{row['difference']:>+8.3f} +- {row['stderr']:.3f}  {row['verdict']} "
            f"(by seed {by_seed})"
        )
    print(
        "A difference is called clear from two standard errors on, if all seeds agree on its sign. Standard errors\n"
        "are over held-out prefixes, seeds change the order of the data; model, data, beta and learning rate are one."
    )


def draw(path: Path, curves: Curves) -> None:
    """Reward against compute and against KL: means over seeds with standard errors over prefixes, each seed thin."""
    figure, (progress, frontier) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", sharey=True)
    for method, runs in curves.items():
        color = COLORS[method]
        sequences = np.array([point.num_sequences for point in runs[0]]) / 1000
        summaries = [[mean_and_stderr(values) for values in over_seeds(runs, i)] for i in range(len(sequences))]
        (reward, reward_stderr), (kl, kl_stderr) = np.array(summaries).transpose(1, 2, 0)  # each of the evaluations
        style = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.5, "elinewidth": 1, "capsize": 2}
        aside = sequences[-1] / 250 * (1 if method == RANKINGS else -1)  # bars beside each other
        progress.errorbar(sequences + aside, reward, reward_stderr, label=method, **style)
        frontier.errorbar(kl, reward, reward_stderr, kl_stderr, label=method, **style)
        for run in runs if len(runs) > 1 else []:
            rewards = [point.evaluation.rewards.mean() for point in run]
            kls = [point.evaluation.kls.mean() for point in run]
            for axis, places in ((progress, sequences), (frontier, kls)):
                axis.plot(places, rewards, color=color, linewidth=0.8, alpha=0.4)
    progress.set(title="Progress at equal compute", xlabel="sequences trained on, thousands", ylabel="true reward")
    frontier.set(title="Frontier", xlabel="KL from the reference, nats")
    start = curves[RANKINGS][0][0].evaluation.rewards.mean()
    for axis in (progress, frontier):
        axis.axhline(start, color=GREY, linewidth=1, linestyle=":", label="reference")
        axis.legend(frameon=False, loc="upper left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
