"""The reward model of Eq. 2, fitted to pairs."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForSequenceClassification, set_seed

from trl_dpo_ext.data import all_pairs
from trl_dpo_ext.evaluation.rewards.classifier_reward import ClassifierReward
from trl_dpo_ext.whole_file import write_text


if TYPE_CHECKING:
    from trl_dpo_ext.frontier.stages import SharedParts


__all__ = ["REWARD_FIT", "fit_reward_model"]

REWARD_FIT = "validation.json"
_VALIDATION_SHARE = 0.1


def fit_reward_model(parts: "SharedParts", folder: Path) -> None:
    r"""
    Fits a reward model with [`trl.RewardTrainer`] (Eq. 2), and keeps the checkpoint with the best accuracy.

    $$ L(\phi) = -E \log \sigma(r_\phi(x, y_w) - r_\phi(x, y_l)) $$

    The last tenth of the prompts is for validation. Accuracy and calibration on it are in `validation.json`.

    Args:
        parts ([`SharedParts`]):
            Initial policy and preferences.
        folder (`Path`):
            Folder to save to.
    """
    from trl import RewardConfig, RewardTrainer

    from trl_dpo_ext.evaluation.preference_metrics import preference_accuracy, preference_calibration

    rows, config = parts.preferences, parts.config
    num_train = len(rows) - max(1, round(len(rows) * _VALIDATION_SHARE))
    train, validation = all_pairs(rows.select(range(num_train))), all_pairs(rows.select(range(num_train, len(rows))))
    set_seed(config.seed)
    model = AutoModelForSequenceClassification.from_pretrained(parts.sft, num_labels=1)
    tokenizer = parts.tokenizer
    model.config.pad_token_id = tokenizer.pad_token_id
    checkpoints = folder / "trainer"
    defaults: dict[str, Any] = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "disable_dropout": True,
        "report_to": "none",
        "seed": config.seed,
        "bf16": False,
    }
    args = RewardConfig(str(checkpoints), **{**defaults, **dict(config.reward_model)})
    trainer = RewardTrainer(model, args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer)
    trainer.train()
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(checkpoints)
    reward = ClassifierReward.from_pretrained(str(folder))
    prompts = validation["prompt"]
    chosen, rejected = (np.array(reward(list(prompts), list(validation[name]))) for name in ("chosen", "rejected"))
    rewards = np.stack([chosen, rejected], axis=1)
    found = {
        "num_train_pairs": len(train),
        "num_validation_pairs": len(validation),
        **preference_accuracy(rewards),
        "calibration_error": preference_calibration(rewards)["calibration_error"],
    }
    write_text(folder / REWARD_FIT, json.dumps(found, indent=2) + "\n")
