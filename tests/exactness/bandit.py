"""A bandit: two prompts of different lengths, a GPT-2 of five tokens, and completions that can all be enumerated."""

import itertools
from typing import Any

import reinforced
import torch
from closeness import drawn_in_float32
from datasets import Dataset
from enumerated import WORDS, few_tokens
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from trl_dpo_ext.models.comparison import in_evaluation_mode


PROMPTS = ["a", "b c d"]
WORTH = {"a": 1.0, "b": 0.6, "c": 0.0, "d": 0.3}
_, TOKENIZER = few_tokens("gpt2")
TOKENIZER.pad_token = TOKENIZER.eos_token


def reward(prompts: list[str], completions: list[str]) -> list[float]:
    """The worth of the words, half from the second word on, and 0.7 for starting with the last word of the prompt."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        words = completion.split()
        starts = bool(words) and words[0] == prompt.split()[-1]
        found.append(sum(WORTH[word] / (2 if i else 1) for i, word in enumerate(words)) + 0.7 * starts)
    return found


class Bandit:
    """
    A policy, and all its completions of up to `length` tokens.

    Args:
        length (`int`): Largest number of tokens of a completion.
    """

    def __init__(self, length: int = 2):
        config = GPT2Config(
            vocab_size=len(WORDS),
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=16,
            n_inner=64,
            activation_function="relu",
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.policy = drawn_in_float32(lambda: GPT2LMHeadModel(config))
        self.length = length
        every = [ids for n in range(1, length + 1) for ids in itertools.product(range(len(WORDS)), repeat=n)]
        self.completions = [ids for ids in every if 0 not in ids[:-1] and (len(ids) == length or ids[-1] == 0)]
        texts = TOKENIZER.batch_decode(self.completions, skip_special_tokens=True)
        self.rewards = torch.tensor([reward([prompt] * len(texts), texts) for prompt in PROMPTS])  # (B, Y)

    def logps(self) -> Tensor:
        """Log-probabilities of the completions under the policy now, `(B, Y)`."""
        rows = []
        for prompt in PROMPTS:
            prompt_ids = TOKENIZER(prompt)["input_ids"]
            padded = [[*prompt_ids, *ids, *[0] * (self.length - len(ids))] for ids in self.completions]
            with torch.no_grad(), in_evaluation_mode(self.policy):
                logps = self.policy(torch.tensor(padded)).logits[:, len(prompt_ids) - 1 : -1].log_softmax(-1)
            of_tokens = ([logps[i, t, token] for t, token in enumerate(ids)] for i, ids in enumerate(self.completions))
            rows.append(torch.stack([torch.stack(tokens).sum() for tokens in of_tokens]))
        return torch.stack(rows)

    def trainer(self, kind: str, folder: Any, **options: Any) -> Any:
        """A trainer of the policy, with 256 completions an update."""
        trainer_class, config_class = reinforced.TRAINERS[kind]
        size = {"per_device_train_batch_size": 256, "num_generations": 128, "max_completion_length": self.length}
        optimization = {
            "learning_rate": 7e-3,
            "optim": "adamw_torch",
            "lr_scheduler_type": "linear",
            "warmup_steps": 5,
            "gradient_checkpointing": False,  # it would compute every forward again, to the same numbers
        }
        args = config_class(**reinforced.options(folder, **size | optimization | options))
        return trainer_class(
            self.policy,
            reward,
            args,
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=TOKENIZER,
        )
