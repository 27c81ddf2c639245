"""The initial policy: a base model, fine-tuned on texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from trl_dpo_ext.evaluation.rewards.reward_function import load_function
from trl_dpo_ext.frontier.config import FrontierConfig


__all__ = ["make_initial_policy"]


def make_initial_policy(config: FrontierConfig, texts: Sequence[str], folder: Path) -> None:
    """
    Fine-tunes the base model with [`trl.SFTTrainer`], and saves it with its tokenizer.

    Args:
        config ([`FrontierConfig`]):
            Config.
        texts (`Sequence[str]`):
            Texts. Each gets an EOS token.
        folder (`Path`):
            Folder to save to.
    """
    set_seed(config.seed)
    model, tokenizer = _base_model(config.model)
    if config.sft is not None:
        model = _fine_tuned(config, model, tokenizer, texts, folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _base_model(name: str) -> tuple[Any, Any]:
    if ":" in name:
        return load_function(name)()
    return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def _fine_tuned(config: FrontierConfig, model: Any, tokenizer: Any, texts: Sequence[str], folder: Path) -> Any:
    from trl import SFTConfig, SFTTrainer

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    defaults = {"save_strategy": "no", "report_to": "none", "seed": config.seed, "bf16": False, "logging_steps": 100}
    args = SFTConfig(str(folder / "trainer"), **{**defaults, **dict(config.sft or {})})
    dataset = Dataset.from_dict({"text": list(texts)})
    trainer = SFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model)
