"""
DPO from start to end on film reviews, in a few minutes on two CPU cores and without a download.

A small GPT-2 is fine-tuned on reviews of both sentiments and completes beginnings of reviews four times each.
`DPOPaperTrainer` then trains on pairs of completions, ranked by a ground-truth reward. The result is measured on
held-out beginnings: true reward, and KL from the initial model.
"""

import hashlib
import itertools
import json
import random
import shutil
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, ProgressCallback, set_seed

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.evaluation import PolicyEvaluation, PolicyEvaluator
from trl_dpo_ext.quickstart.sentiment_reward import SentimentReward
from trl_dpo_ext.quickstart.sentiment_task import (
    MAX_NEW_TOKENS,
    REVIEWS,
    cut_prefixes,
    fine_tune,
    language_modeling_loss,
    load_reviews,
    preference_pairs,
    small_gpt2,
    train_tokenizer,
)
from trl_dpo_ext.trainers.checkpoints.checkpoint_files import newest_whole_here
from trl_dpo_ext.whole_file import write_text


__all__ = [
    "FULL",
    "QUICK",
    "ProgressBarWithMetrics",
    "Settings",
    "make_sft_model",
    "run_quickstart",
    "train_dpo",
    "write_rows",
]


@dataclass(frozen=True)
class Settings:
    """Sizes of a run."""

    seed: int = 0
    num_held_out_reviews: int = 500
    sft_steps: int = 700
    num_prefixes: int = 1_200
    num_test_prefixes: int = 512  # for the true reward and the KL
    num_test_pair_prefixes: int = 64  # the first of them give pairs, for the metrics during training
    beta: float = 0.3
    learning_rate: float = 1.5e-4  # the paper's 1e-6 is for models with billions of parameters
    warmup_steps: int = 20
    logging_steps: int = 2
    eval_steps: int = 20


FULL = Settings()
QUICK = Settings(
    sft_steps=60,
    num_prefixes=64,
    num_test_prefixes=96,
    num_test_pair_prefixes=16,
    warmup_steps=3,
    logging_steps=1,
    eval_steps=4,
)


class ProgressBarWithMetrics(ProgressCallback):
    """The trainer's progress bar with the latest metrics, instead of a line for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "rewards/accuracies" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{logs['rewards/accuracies']:.2f}")


def run_quickstart(output_dir: Path, settings: Settings) -> None:
    """
    Trains and evaluates, and prints what it does.

    Args:
        output_dir (`Path`):
            Output folder. An interrupted run continues where it stopped.
        settings ([`Settings`]):
            Sizes of the run.
    """
    start = time.perf_counter()
    sys.stdout.reconfigure(line_buffering=True)  # keeps headings and progress bars in order in a log file
    _start_or_continue(output_dir, settings)
    reviews = load_reviews()
    reward = SentimentReward(reviews)
    texts = [review["text"] for review in reviews]
    random.Random(settings.seed).shuffle(texts)
    held_out, texts = texts[: settings.num_held_out_reviews], texts[settings.num_held_out_reviews :]

    print(f"\n1. Fine-tune a small GPT-2 on {len(texts):,} film reviews")
    sft_dir = output_dir / "sft"
    if not sft_dir.is_dir():
        make_sft_model(sft_dir, texts, settings)
    tokenizer = AutoTokenizer.from_pretrained(sft_dir)
    reference = AutoModelForCausalLM.from_pretrained(sft_dir)
    with torch.no_grad():
        seen, unseen = (language_modeling_loss(reference, tokenizer, some) for some in (texts[:500], held_out))
    print(f"{sft_dir}: {reference.num_parameters():,} parameters, {seen:.2f} nats per token, held out {unseen:.2f}")

    print("\n2. Sample 4 completions of every prefix and rank them by the ground-truth reward")
    set_seed(settings.seed)
    prefixes = cut_prefixes(texts, tokenizer, num_prefixes=settings.num_prefixes)
    test_prefixes = cut_prefixes(
        held_out, tokenizer, num_prefixes=settings.num_test_prefixes, exclude=frozenset(prefixes)
    )
    train_file, test_file = output_dir / "preferences.jsonl", output_dir / "preferences_test.jsonl"
    write_rows(output_dir / "prompts_test.jsonl", [{"prompt": prefix} for prefix in test_prefixes])
    for path, some in ((train_file, prefixes), (test_file, test_prefixes[: settings.num_test_pair_prefixes])):
        if not path.is_file():
            pairs, num_left_out = preference_pairs(reference, tokenizer, reward, some, seed=settings.seed)
            write_rows(path, pairs)
            print(f"{path}: {len(pairs):,} pairs of {len(some):,} prefixes, {num_left_out} ties or empty dropped")

    print("\n3. Train with DPO on the preference file")
    trainer = train_dpo(output_dir / "dpo", sft_dir, train_file, test_file, settings)
    trainer.save_model(str(output_dir / "policy"))

    print(f"\n4. Evaluate on {len(test_prefixes)} prefixes that do not occur in training")
    reference.to(trainer.model.device)
    evaluator = PolicyEvaluator(
        reference, tokenizer, reward, num_samples=1, max_new_tokens=MAX_NEW_TOKENS, seed=settings.seed
    )
    before, after = (evaluator.evaluate(model, test_prefixes) for model in (reference, trainer.model))
    _print_results(before, after)
    _print_samples(test_prefixes, before, after)
    if find_spec("matplotlib"):
        from trl_dpo_ext.quickstart.training_curves import draw_training_curves

        picture = output_dir / "training_curves.png"
        draw_training_curves(picture, trainer.state.log_history, before.reward[:, 0], after.reward[:, 0])
        print(f"\nTraining curves: {picture}")
    else:
        print('\nThe training curves are drawn by matplotlib: pip install "trl-dpo-ext[report]"')
    seconds = time.perf_counter() - start
    results = {"before": before.summary(), "after": after.summary(), "seconds": seconds, "settings": asdict(settings)}
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"Total time: {seconds:.0f} s")
    print("Next:")
    print(f"  trl-dpo-ext report {output_dir / 'dpo'}")
    print(
        f"  trl-dpo-ext evaluate {output_dir / 'policy'} {output_dir / 'prompts_test.jsonl'} --output "
        f"{output_dir / 'evaluation'} --reward_function trl_dpo_ext.quickstart.sentiment_task:true_reward "
        f"--num_samples 8 --max_new_tokens {MAX_NEW_TOKENS}"
    )


def _start_or_continue(output_dir: Path, settings: Settings) -> None:
    """
    Keeps the results of an earlier run with the same settings in `output_dir`, and deletes those with other settings.

    Raises:
        ValueError: If the folder has other contents.
    """
    record = output_dir / "settings.json"
    reviews_hash = hashlib.sha256(REVIEWS.read_bytes()).hexdigest()
    wanted = json.dumps(asdict(settings) | {"reviews_sha256": reviews_hash}, indent=2) + "\n"
    if not record.is_file() and output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(f"`{output_dir}` has files that are not the quickstart's. Choose another `--output_dir`.")
    if record.is_file() and record.read_text() != wanted:
        for folder in ("sft", "dpo", "policy"):
            shutil.rmtree(output_dir / folder, ignore_errors=True)
        for file in (
            "preferences.jsonl",
            "preferences_test.jsonl",
            "prompts_test.jsonl",
            "results.json",
            "training_curves.png",
        ):
            (output_dir / file).unlink(missing_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    record.write_text(wanted)


def make_sft_model(sft_dir: Path, texts: list[str], settings: Settings) -> None:
    """Trains a tokenizer and a model on `texts` and saves both to `sft_dir`, which is created when complete."""
    set_seed(settings.seed)
    tokenizer = train_tokenizer(texts)
    model = small_gpt2(tokenizer)
    fine_tune(model, tokenizer, texts, num_steps=settings.sft_steps)
    unfinished = sft_dir.with_suffix(".unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(sft_dir)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes one row per line to `path`, which is created when complete."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def train_dpo(
    checkpoint_dir: Path, model_dir: Path, train_file: Path, test_file: Path, settings: Settings
) -> DPOPaperTrainer:
    """
    Trains on a preference file, from the newest checkpoint if there is one. Users only need this part.

    RMSprop, batches of 64 pairs, one epoch and a linear warm-up to a constant rate are the paper's settings and the
    defaults of `DPOPaperConfig`.
    """
    dataset = load_dataset("json", data_files={"train": str(train_file), "test": str(test_file)})
    config = DPOPaperConfig(
        output_dir=str(checkpoint_dir),
        beta=settings.beta,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        per_device_train_batch_size=16,  # small micro-batches are faster here, because they move less memory
        per_device_eval_batch_size=16,
        gradient_checkpointing=False,
        logging_steps=settings.logging_steps,
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        save_steps=settings.eval_steps,
        save_total_limit=1,
        report_to="none",
        seed=settings.seed,
    )
    trainer = DPOPaperTrainer(
        model=str(model_dir),
        args=config,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ProgressBarWithMetrics)
    trainer.train(resume_from_checkpoint=newest_whole_here(checkpoint_dir))
    return trainer


def _print_results(before: PolicyEvaluation, after: PolicyEvaluation) -> None:
    """Prints a table of true reward, KL and unfinished completions, with standard errors."""
    print(f"{'':8}{'true reward':>18}{'KL, nats':>18}{'unfinished':>13}")
    for name, summary in (("before", before.summary()), ("after", after.summary())):
        print(
            f"{name:8}{summary['reward']:>9.3f} +- {summary['reward_se']:.3f}"
            f"{summary['kl']:>9.3f} +- {summary['kl_se']:.3f}{1 - summary['finished_share']:>13.1%}"
        )
    gains = after.reward[:, 0] - before.reward[:, 0]  # by prefix
    print(f"{'gain':8}{gains.mean():>9.3f} +- {gains.std(ddof=1) / len(gains) ** 0.5:.3f}")


def _print_samples(
    prefixes: list[str], before: PolicyEvaluation, after: PolicyEvaluation, num_samples: int = 8, width: int = 50
) -> None:
    """Prints completions of the same prefixes before and after training, with their true rewards."""
    print(f"\n{'reward  before':{width + 8}} | reward  after")
    for i in range(num_samples):
        print(f"{prefixes[i]} ...")
        columns = []
        for evaluation in (before, after):
            lines = textwrap.wrap(evaluation.completions[i][0], width) or [""]
            columns.append(
                [f"  {evaluation.reward[i, 0]:.2f}  {lines[0]}", *(f"        {line}" for line in lines[1:])]
            )
        for left, right in itertools.zip_longest(*columns, fillvalue=""):
            print(f"{left:{width + 8}} | {right}")
