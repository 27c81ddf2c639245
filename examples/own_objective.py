"""
A custom objective: a subclass of the base trainer with one method.

Run it from the repository: `python examples/own_objective.py`. It trains a tiny random model for a few updates.

The method gets summed log-probabilities, chosen first, and returns one loss for each row. The base trainer provides
data, reference, exact metrics, LoRA, caching and several processes.
"""

import tempfile

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from trl_dpo_ext import BaseDPOTrainer, DPOPaperConfig
from trl_dpo_ext.quickstart.sentiment_task import small_gpt2, train_tokenizer


class MarginDPOTrainer(BaseDPOTrainer):
    """DPO with a margin of 0.5 between the rewards of chosen and rejected answers."""

    config_class = DPOPaperConfig

    def losses(self, policy_logps: Tensor, ref_logps: Tensor | None) -> Tensor:
        rewards = self.beta * (policy_logps - ref_logps)  # (B, 2)
        return -F.logsigmoid(rewards[:, 0] - rewards[:, 1] - 0.5)  # (B,)


def main() -> None:
    torch.manual_seed(0)
    rows = [
        {"prompt": f"Film {i} was", "chosen": " a quiet delight.", "rejected": " a long evening."} for i in range(64)
    ]
    tokenizer = train_tokenizer([row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")])
    args = DPOPaperConfig(
        tempfile.mkdtemp(),
        learning_rate=1e-3,
        warmup_steps=2,
        global_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    trainer = MarginDPOTrainer(
        model=small_gpt2(tokenizer), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    print(f"margin {logs[0]['rewards/margins']:.3f} -> {logs[-1]['rewards/margins']:.3f}")


if __name__ == "__main__":
    main()
