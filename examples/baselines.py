"""
The paper's supervised baselines and DPO: Preferred-FT and unlikelihood, on film reviews.

    python examples/baselines.py [--output_dir FOLDER] [--quick]

From the quickstart's model and pairs of its completions, four trainers learn with the same learning rate and number of
updates: `DPOPaperTrainer`, `PreferredFTTrainer`, and `UnlikelihoodTrainer` with alpha 0.1 and 1. True reward and KL
from the initial model are measured during training on held-out beginnings of reviews.

Measured on two CPU cores (reward 0.493 +- 0.009 at the start): Preferred-FT ends at 0.578 +- 0.008 and KL 0.36. DPO
ends at 0.666 +- 0.008 and KL 0.81, and at Preferred-FT's KL it is 0.031 +- 0.005 above. Unlikelihood with alpha 0.1 is
like Preferred-FT. With alpha 1 it reaches DPO's reward at KL 3 to 8, and ends at 0.741 +- 0.006 and KL 44, with
invented words.

The output folder (`outputs/baselines`) then contains `pairs.jsonl`, `results.json`, `baselines.png`, and `sft/` unless
the quickstart has created it. `--quick` is a smaller version, whose numbers have no meaning.
"""

import os
import time
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: threads wait without a core

import matplotlib.pyplot as plt
import numpy as np
from comparison import (
    Beginning,
    Curves,
    HeldOutEvaluation,
    Point,
    Settings,
    folder_and_quick,
    mean_and_stderr,
    over_seeds,
    reward_at_kl,
    train,
    write_results,
)
from datasets import load_dataset

from trl_dpo_ext import (
    DPOPaperConfig,
    DPOPaperTrainer,
    PreferredFTConfig,
    PreferredFTTrainer,
    UnlikelihoodConfig,
    UnlikelihoodTrainer,
)
from trl_dpo_ext.quickstart import quickstart
from trl_dpo_ext.quickstart.sentiment_task import preference_pairs
from trl_dpo_ext.quickstart.training_curves import BLUE, GREY, ORANGE


DPO, PREFERRED_FT, WEAK, FULL_WEIGHT = "DPO", "Preferred-FT", "unlikelihood 0.1", "unlikelihood 1"
RED = "#b03030"
COLORS = {DPO: BLUE, PREFERRED_FT: GREY, WEAK: ORANGE, FULL_WEIGHT: RED}

FULL = Settings(beta=1.0, num_updates=320, updates_between_evaluations=40)
QUICK = FULL.quick(num_updates=2, updates_between_evaluations=2)


def trainer_of(method: str, settings: Settings) -> tuple[type, type, dict[str, Any]]:
    """Returns the trainer, its config, and the options that only this trainer has."""
    if method == DPO:
        return DPOPaperTrainer, DPOPaperConfig, {"beta": settings.beta}
    if method == PREFERRED_FT:
        return PreferredFTTrainer, PreferredFTConfig, {}
    # It diverges, which this example shows
    alpha = float(method.split()[1])
    return UnlikelihoodTrainer, UnlikelihoodConfig, {"alpha": alpha, "divergence_guard": None}


def main() -> None:
    output_dir, quick = folder_and_quick("baselines", "Compare DPO with the paper's supervised baselines.")
    settings = QUICK if quick else FULL
    start = time.perf_counter()

    print("\n1. Load or train the initial model")
    begin = Beginning.of_quickstart(output_dir, quick)
    sft_dir, tokenizer, reference, reward = begin.sft_dir, begin.tokenizer, begin.reference, begin.reward

    print("\n2. Sample 4 completions of every prefix and pair them by the ground-truth reward")
    prefixes, test_prefixes = begin.prefixes(settings.num_prefixes, settings.num_test_prefixes)
    pairs, _ = preference_pairs(reference, tokenizer, reward, prefixes, seed=begin.seed)
    pairs_file = output_dir / "pairs.jsonl"
    quickstart.write_rows(pairs_file, pairs)
    dataset = load_dataset("json", data_files=str(pairs_file), split="train")
    print(f"{pairs_file}: {len(dataset):,} pairs of {len(prefixes):,} prefixes")

    print(f"\n3. Train, {settings.num_updates} updates of {settings.sequences_per_update} pairs")
    held_out_evaluation = HeldOutEvaluation(reference, tokenizer, reward, test_prefixes, settings)
    curves: Curves = {method: [] for method in COLORS}
    for seed in settings.seeds:
        for method, runs in curves.items():
            trainer_class, config_class, own = trainer_of(method, settings)
            points = train(
                trainer_class,
                config_class,
                dataset,
                sft_dir,
                output_dir / "trainer",
                held_out_evaluation,
                seed=seed,
                rows_per_update=settings.sequences_per_update,
                **own,
            )
            runs.append(points)
            end = points[-1].evaluation.summary()
            print(f"{method}, seed {seed}: reward {end['reward']:.3f} at KL {end['kl']:.2f}")

    print(f"\n4. Results on {len(test_prefixes)} prefixes that do not occur in training")
    table = {method: summary(runs) for method, runs in curves.items()}
    print_table(table)
    gain = dpo_at_the_kl_of_preferred_ft(curves)
    if gain is not None:
        print(f"DPO minus Preferred-FT at the final KL of Preferred-FT: {gain[0]:+.3f} +- {gain[1]:.3f} in reward")
    print_samples(test_prefixes, curves)
    picture = output_dir / "baselines.png"
    draw(picture, curves)
    seconds = time.perf_counter() - start
    write_results(output_dir, curves, settings, seconds, {"table": table, "dpo_minus_preferred_ft_at_equal_kl": gain})
    print(f"\nTotal time: {seconds:.0f} s. The curves are in {picture}")


def summary(runs: list[list[Point]]) -> dict[str, tuple[float, float]]:
    """Returns means over prefixes and seeds with standard errors over prefixes: start, best point and end."""
    rewards, kls = zip(*(over_seeds(runs, i) for i in range(len(runs[0]))), strict=True)
    best = int(np.argmax([values.mean() for values in rewards]))
    last = len(rewards) - 1
    return {
        "reward at start": mean_and_stderr(rewards[0]),
        "best reward": mean_and_stderr(rewards[best]),
        "KL there": mean_and_stderr(kls[best]),
        "reward at end": mean_and_stderr(rewards[last]),
        "KL at end": mean_and_stderr(kls[last]),
        "lost since best": mean_and_stderr(rewards[best] - rewards[last]),
    }


def dpo_at_the_kl_of_preferred_ft(curves: Curves) -> tuple[float, float] | None:
    """Difference in reward at the final KL of Preferred-FT, by prefix. `None` if DPO does not reach this KL."""
    rewards, kls = over_seeds(curves[PREFERRED_FT], -1)
    kl = kls.mean()
    if any(max(point.kls.mean() for point in run) < kl for run in curves[DPO]):
        return None
    dpo = np.mean([reward_at_kl(run, kl) for run in curves[DPO]], axis=0)
    return mean_and_stderr(dpo - rewards)


def print_table(table: dict[str, dict[str, tuple[float, float]]]) -> None:
    names = next(iter(table.values()))
    print(f"{'':18}" + "".join(f"{name:>18}" for name in names))
    for method, row in table.items():
        print(f"{method:18}" + "".join(f"{mean:>9.3f} +- {stderr:.3f}" for mean, stderr in row.values()))


def print_samples(prefixes: list[str], curves: Curves, num_samples: int = 4) -> None:
    """Prints completions of the same prefixes at the end of each method's first run, with their true rewards."""
    for i in range(num_samples):
        print(f"\n{prefixes[i]} ...")
        for method, runs in curves.items():
            evaluation = runs[0][-1].evaluation
            print(f"  {method:18}{evaluation.reward[i, 0]:.2f} {evaluation.completions[i][0][:150]}")


def draw(path: Path, curves: Curves) -> None:
    """Draws reward against KL. The points of a run are joined in the order of training."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method, runs in curves.items():
        for number, run in enumerate(runs):
            summaries = [point.evaluation.summary() for point in run]
            axes.errorbar(
                [point["kl"] for point in summaries],
                [point["reward"] for point in summaries],
                yerr=[point["reward_se"] for point in summaries],
                color=COLORS[method],
                marker="o",
                markersize=3,
                linewidth=1.2,
                elinewidth=0.6,
                label=method if number == 0 else None,
            )
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlabel("KL from the start, nats")
    axes.set_ylabel("true reward")
    axes.set_title("Reward against KL, with standard errors over prefixes")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
