"""Identity of a scoring run: everything that the scores depend on. Only a run with the same identity is resumed."""

import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash

from trl_dpo_ext.reward_model.files.row_sources import RowSource
from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel


__all__ = ["identity_of_run"]

_NAMES_ONLY = ("_name_or_path", "base_model_name_or_path", "transformers_version", "peft_version")


def identity_of_run(reward_model: ImplicitRewardModel, source: RowSource) -> dict[str, Any]:
    """
    Returns everything that the output depends on, by name: hashes of contents, and options.

    Args:
        reward_model ([`ImplicitRewardModel`]):
            Reward model.
        source ([`~trl_dpo_ext.reward_model.files.row_sources.RowSource`]):
            Rows.
    """
    policy, reference = reward_model.policy, reward_model.reference
    return {
        "rows": source.identity,
        "policy": _hash_model(policy),
        "reference": None if reference is None else _hash_model(reference),
        "tokenizer": _hash_tokenizer(reward_model.processing_class),
        "beta": reward_model.beta,
        "reference_free": reward_model.reference_free,
        **asdict(reward_model.row_options),
        "mixed_precision": reward_model.mixed_precision,
        "max_tokens_per_batch": reward_model.max_tokens_per_batch,
        "rows_per_part": source.rows_per_part,
        "device": policy.device.type,
        **{package: version(package) for package in ("trl-dpo-ext", "trl", "transformers", "torch")},
    }


def _hash_model(model: Any) -> str:
    # Weights of all adapters, unlike the hash of a reference, and everything else that the forward depends on
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Viewed as bytes: numpy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    configs = [model.config.to_dict()] + [config.to_dict() for config in getattr(model, "peft_config", {}).values()]
    for config in configs:
        options = {name: value for name, value in config.items() if name not in _NAMES_ONLY}
        digest.update(json.dumps(options, sort_keys=True, default=_in_order).encode())
    return digest.hexdigest()


def _hash_tokenizer(tokenizer: Any) -> str:
    digest = xxhash.xxh3_128()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _in_order(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
