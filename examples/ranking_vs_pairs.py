"""
Training on rankings and on their pairs, at equal compute: `RankingDPOTrainer` and `DPOPaperTrainer`.

    python examples/ranking_vs_pairs.py [--output_dir FOLDER] [--quick]

The quickstart's model completes beginnings of reviews four times each, and the ground-truth reward scores the
completions. This gives one row with `prompt`, `completions` and `scores` for every beginning. One trainer learns from
the rankings of four (Eq. 20, Plackett-Luce), the other from all six pairs of each ranking (Eq. 7, `all_pairs`). The
rows, initial model, beta, learning rate and warm-up are the same. Equal compute means that every update runs the same
number of sequences: B rankings have 4 B sequences, and so do 2 B pairs. One pass over the rankings therefore costs a
third of a pass over the pairs. True reward and KL on held-out beginnings are measured during training.

Measured on two CPU cores: no clear difference at the end, in reward (0.625 with rankings, 0.618 with pairs, difference
0.006 +- 0.004) or at equal KL (0.003 +- 0.004). At half of this KL, rankings have 0.009 +- 0.004 more reward.

The output folder (`outputs/ranking_vs_pairs`) then contains `rankings.jsonl`, `results.json`, `ranking_vs_pairs.png`,
and `sft/` unless the quickstart has created it in `outputs/quickstart`. `--quick` is a smaller version in
`outputs/ranking_vs_pairs_quick`, whose numbers have no meaning.
"""

import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from comparison import (  # before torch: the thread library then waits without using a core
    Beginning,
    Curves,
    HeldOutEvaluation,
    Settings,
    folder_and_quick,
    mean_and_stderr,
    over_seeds,
    reward_at_kl,
    train,
    write_results,
)
from datasets import load_dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.data import all_pairs
from trl_dpo_ext.evaluation import Sampler
from trl_dpo_ext.quickstart.sentiment_reward import SentimentReward
from trl_dpo_ext.quickstart.sentiment_task import MAX_NEW_TOKENS
from trl_dpo_ext.quickstart.training_curves import BLUE, GREY, ORANGE


NUM_COMPLETIONS = 4
RANKINGS, PAIRS = "whole rankings", "all pairs"
COLORS = {RANKINGS: BLUE, PAIRS: ORANGE}

FULL = Settings(beta=0.3, num_updates=120, updates_between_evaluations=20)
QUICK = FULL.quick(num_updates=4, updates_between_evaluations=4)


def main() -> None:
    output_dir, quick = folder_and_quick(
        "ranking_vs_pairs", "Compare training on whole rankings with training on their pairs."
    )
    settings = QUICK if quick else FULL
    start = time.perf_counter()

    print("\n1. Load or train the initial model")
    begin = Beginning.of_quickstart(output_dir, quick)
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
        f"{len(prefixes) - len(rows)} prefixes with empty or equally good completions dropped"
    )

    print(f"\n3. Train, {settings.num_updates} updates of {settings.sequences_per_update} sequences")
    held_out_evaluation = HeldOutEvaluation(reference, tokenizer, reward, test_prefixes, settings)
    curves: Curves = {RANKINGS: [], PAIRS: []}
    train_seconds: dict[str, list[float]] = {RANKINGS: [], PAIRS: []}
    for seed in settings.seeds:
        for method, dataset, trainer_class, config_class, sequences_per_row in (
            (RANKINGS, rankings, RankingDPOTrainer, RankingDPOConfig, NUM_COMPLETIONS),
            (PAIRS, pairs, DPOPaperTrainer, DPOPaperConfig, 2),
        ):
            began = time.perf_counter()
            points = train(
                trainer_class,
                config_class,
                dataset,
                sft_dir,
                output_dir / "trainer",
                held_out_evaluation,
                seed=seed,
                rows_per_update=settings.sequences_per_update // sequences_per_row,
                beta=settings.beta,
            )
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
    write_results(output_dir, curves, settings, seconds, {"comparison": comparison, "train_seconds": train_seconds})
    print(f"\nTotal time: {seconds:.0f} s. The curves are in {picture}")


def scored_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, reward: SentimentReward, prefixes: list[str]
) -> list[dict[str, str | list]]:
    """
    Returns completions of every prefix with their rewards, as rows with `prompt`, `completions` and `scores`.

    A prefix with an empty completion or with equal rewards is dropped, so every row has exactly four sequences and six
    pairs, and the compute is equal.
    """
    sampler = Sampler(model, tokenizer, num_samples=NUM_COMPLETIONS, max_new_tokens=MAX_NEW_TOKENS)
    rows = []
    for prefix, samples in zip(prefixes, sampler.sample(prefixes), strict=True):
        completions = [sample.completion for sample in samples]
        rewards = reward([prefix] * NUM_COMPLETIONS, completions).tolist()
        if all(completions) and len(set(rewards)) == NUM_COMPLETIONS:
            rows.append({"prompt": prefix, "completions": completions, "scores": rewards})
    return rows


def compare(curves: Curves) -> list[dict]:
    """
    Returns differences, rankings minus pairs, by prefix: at equal compute in the middle and at the end, and at equal
    KL (at the largest KL that all runs reach, and at half of it).
    """
    runs = list(zip(curves[RANKINGS], curves[PAIRS], strict=True))
    last = len(runs[0][0]) - 1
    comparison = []
    for i in ((last + 1) // 2, last):
        where = f"after {runs[0][0][i].num_sequences:,} sequences"
        for name, field in (("reward", "rewards"), ("KL", "kls")):
            differences = [getattr(a[i], field) - getattr(b[i], field) for a, b in runs]
            comparison.append(difference_row(f"{name} {where}", differences))
    common = min(max(point.kls.mean() for point in run) for both in runs for run in both)
    for kl in (common / 2, common):
        differences = [reward_at_kl(a, kl) - reward_at_kl(b, kl) for a, b in runs]
        comparison.append(difference_row(f"reward at KL {kl:.2f}", differences))
    return comparison


def difference_row(quantity: str, differences: list[np.ndarray]) -> dict:
    """Mean over seeds and prefixes, its standard error over prefixes, the mean of each seed, and the verdict."""
    mean, stderr = mean_and_stderr(np.mean(differences, axis=0))
    by_seed = [float(values.mean()) for values in differences]
    clear = abs(mean) > 2 * stderr and all(value * mean > 0 for value in by_seed)
    verdict = "no clear difference" if not clear else "rankings higher" if mean > 0 else "rankings lower"
    return {"quantity": quantity, "difference": mean, "stderr": stderr, "by_seed": by_seed, "verdict": verdict}


def print_table(curves: Curves) -> None:
    """Prints true reward and KL during training, averaged over seeds, with standard errors over prefixes."""
    print(f"{'':11}{RANKINGS:^34}   {PAIRS:^34}")
    print(f"{'sequences':>11}" + f"{'true reward':>17}{'KL, nats':>17}   " * 2)
    for i, point in enumerate(curves[RANKINGS][0]):
        line = f"{point.num_sequences:>11,}"
        for runs in curves.values():
            (reward, reward_stderr), (kl, kl_stderr) = map(mean_and_stderr, over_seeds(runs, i))
            line += f"{reward:>8.3f} +- {reward_stderr:.3f}{kl:>8.3f} +- {kl_stderr:.3f}   "
        print(line)


def print_conclusion(comparison: list[dict]) -> None:
    """Prints the differences, and which of them are larger than chance explains."""
    print("\nRankings - pairs, on the same prefixes:")
    for row in comparison:
        by_seed = ", ".join(f"{value:+.3f}" for value in row["by_seed"])
        print(
            f"  {row['quantity']:30}{row['difference']:>+8.3f} +- {row['stderr']:.3f}  {row['verdict']} "
            f"(by seed {by_seed})"
        )
    print(
        "A difference is clear from two standard errors on, if all seeds agree on its sign. Standard errors are over\n"
        "held-out prefixes. Seeds change the order of the data; everything else is the same."
    )


def draw(path: Path, curves: Curves) -> None:
    """Draws reward against compute and KL: means over seeds with standard errors over prefixes, single seeds thin."""
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
            rewards = [point.rewards.mean() for point in run]
            kls = [point.kls.mean() for point in run]
            for axis, places in ((progress, sequences), (frontier, kls)):
                axis.plot(places, rewards, color=color, linewidth=0.8, alpha=0.4)
    progress.set(title="Progress at equal compute", xlabel="sequences trained on, thousands", ylabel="true reward")
    frontier.set(title="Frontier", xlabel="KL from the reference, nats")
    start = curves[RANKINGS][0][0].rewards.mean()
    for axis in (progress, frontier):
        axis.axhline(start, color=GREY, linewidth=1, linestyle=":", label="reference")
        axis.legend(frameon=False, loc="upper left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
