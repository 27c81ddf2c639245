"""
The quickstart's policy as a reward model: how good is the implicit reward that DPO has learned?

    python examples/reward_model.py [--run_dir outputs/quickstart] [--num_completions 8]

Needs the output folder of `trl-dpo-ext quickstart`. On held-out beginnings of reviews:

    1. Accuracy: how often the implicit reward and the true reward prefer the same completion, with its calibration.
    2. Best of N: the model before DPO answers N times, and the implicit reward picks an answer. The true reward of
       this answer lies between that of a random answer and that of the best one.
    3. Self-labeling (Sec. 7 of the paper): relabeled pairs, and the number of labels that change.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset

from trl_dpo_ext import ImplicitRewardModel
from trl_dpo_ext.evaluation import Sampler, preference_calibration, reward_margin
from trl_dpo_ext.quickstart.sentiment_reward import SentimentReward
from trl_dpo_ext.quickstart.sentiment_task import MAX_NEW_TOKENS, load_reviews


def main() -> None:
    parser = argparse.ArgumentParser(description="Use the quickstart's policy as a reward model.")
    parser.add_argument("--run_dir", type=Path, default=Path("outputs", "quickstart"))
    parser.add_argument("--num_completions", type=int, default=8)
    options = parser.parse_args()
    policy = options.run_dir / "policy"
    if not policy.is_dir():
        raise SystemExit(f"`{policy}` does not exist. Run `trl-dpo-ext quickstart` first.")
    reward_model = ImplicitRewardModel.from_pretrained(policy)  # with the reference that the policy was trained with
    test_file = str(options.run_dir / "preferences_test.jsonl")
    pairs = load_dataset("json", data_files=test_file, split="train")

    print(f"1. {len(pairs)} held-out pairs")
    scored = reward_model.score_dataset(pairs)
    rewards = list(zip(scored["score_chosen"], scored["score_rejected"], strict=True))
    margin = reward_margin(rewards)
    print(reward_model.evaluate_preferences(pairs))
    print(f"margin {margin['reward_margin']:.3f}, 95 % interval {margin['low']:.3f} to {margin['high']:.3f}")
    print(f"expected calibration error {preference_calibration(rewards)['calibration_error']:.3f}")

    prompts = list(dict.fromkeys(pairs["prompt"]))
    print(f"\n2. Best of {options.num_completions} answers of the model before DPO to {len(prompts)} prompts")
    sampler = Sampler.from_pretrained(
        options.run_dir / "sft", num_samples=options.num_completions, max_new_tokens=MAX_NEW_TOKENS, seed=1
    )
    groups = [[sample.completion for sample in samples] for samples in sampler.sample(prompts)]
    true_reward = SentimentReward(load_reviews())
    true = np.array([true_reward([prompt] * len(group), group) for prompt, group in zip(prompts, groups, strict=True)])
    picked = [best.index for best in reward_model.best_of_n(prompts, groups)]
    for name, values in {
        "a random one": true.mean(axis=1),
        "picked by the implicit reward": true[np.arange(len(true)), picked],
        "best by the true reward": true.max(axis=1),
    }.items():
        print(f"{name:<30} true reward {values.mean():.3f} +- {values.std(ddof=1) / len(values) ** 0.5:.3f}")

    print("\n3. Self-labeling")
    swapped = reward_model.relabel(pairs)["swapped"]
    print(f"{sum(swapped)} of {len(swapped)} pairs are relabeled")


if __name__ == "__main__":
    main()
