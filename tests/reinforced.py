"""Tiny runs of the trainers of Eq. 3."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from closeness import drawn_in_float32
from datasets import Dataset
from tiny import tiny_gpt2, tiny_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trl_dpo_ext import PPOPaperConfig, PPOPaperTrainer, RLOOPaperConfig, RLOOPaperTrainer


TRAINERS = {"rloo": (RLOOPaperTrainer, RLOOPaperConfig), "ppo": (PPOPaperTrainer, PPOPaperConfig)}
# Of different lengths, so that TRL pads them on the left
PROMPTS = ["The film was", "What is the weather like in Paris today?", "A", "How do I cook rice"]
EOS_IDS = list(range(2, 62))  # so many that some completions end early


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward: the number of different characters of a completion."""
    return [float(len(set(text))) for text in completions]


def llama_with_dropout() -> LlamaForCausalLM:
    """A Llama with dropout in attention, which is a number and no module."""
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.25,
        attention_dropout=0.1,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = drawn_in_float32(lambda: LlamaForCausalLM(config))
    model.generation_config.eos_token_id = EOS_IDS
    return model


def changed_gpt2() -> torch.nn.Module:
    """A GPT-2 with dropout 0.1 whose weights are not those of any file."""
    model = tiny_gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.generation_config.eos_token_id = EOS_IDS
    return model


def options(folder: Any, **changed: Any) -> dict[str, Any]:
    """Options of a run of two updates on eight completions each."""
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    } | changed


def trainer_of(
    kind: str,
    model: Any,
    folder: Any,
    reward: Any = letters,
    peft_config: Any = None,
    prepare: Callable[[], None] = lambda: None,
    **changed: Any,
):
    """A trainer that has not been started. `prepare` is called between its options and itself."""
    trainer_class, config_class = TRAINERS[kind]
    args = config_class(**options(folder, **changed))
    prepare()
    return trainer_class(
        model,
        reward,
        args,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def logged(trainer: Any) -> list[dict[str, float]]:
    """Logs of the updates."""
    return [log for log in trainer.state.log_history if "loss" in log]


class Scored(NamedTuple):
    """Log-probabilities that a trainer asked a model for: rows `(B, P + T)`, `(B, T)` in nats."""

    model: Any
    ids: Tensor
    mask: Tensor
    logps: Tensor


def recorded(trainer: Any) -> list[Scored]:
    """Fills up with what the trainer computes."""
    calls: list[Scored] = []
    compute = trainer._get_per_token_logps_and_entropies

    def recording(model, input_ids, attention_mask, *args, **kwargs):
        result = compute(model, input_ids, attention_mask, *args, **kwargs)
        calls.append(Scored(model, input_ids, attention_mask, result[0].detach()))
        return result

    trainer._get_per_token_logps_and_entropies = recording
    return calls


def unpadded_logps(model: torch.nn.Module, scored: Scored) -> list[Tensor]:
    """Log-probabilities of the completion tokens of each row, by a forward of that row alone."""
    found = []
    width = scored.logps.shape[1]
    for ids, mask in zip(scored.ids, scored.mask.bool(), strict=True):
        tokens, length = ids[mask], int(mask[-width:].sum())
        with torch.no_grad():
            logps = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        found.append(logps.gather(1, tokens[1:, None])[-length:, 0])
    return found


def in_memory(model: torch.nn.Module) -> torch.nn.Module:
    """A copy without dropout, as the policy is now."""
    return copy.deepcopy(model).eval()
