"""Options that several commands share: rows and outputs, sampling, and the model."""

import argparse
from typing import Any

from trl_dpo_ext.cli.words import count, number


__all__ = [
    "MODEL_OPTIONS",
    "add_model_options",
    "add_row_options",
    "add_sampling_options",
    "given",
    "sampling_options",
]

MODEL_OPTIONS = ("dtype", "mixed_precision", "device", "revision", "max_tokens_per_batch")
ROWS_HELP = ".jsonl, .json, .parquet, .csv or .arrow file, folder, or name of a hub dataset"
_SAMPLING_OPTIONS = ("num_samples", "temperature", "top_k", "top_p", "max_new_tokens", "seed")


def add_row_options(parser: Any) -> None:
    """Adds the options of a dataset with splits and configurations."""
    parser.add_argument("--split", default="train", help="split of the dataset (default: %(default)s)")
    parser.add_argument("--dataset_config", help="configuration of a dataset with several")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of sampling. Their defaults are those of `SamplingOptions`."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--num_samples", type=count(), metavar="N", help="samples of each prompt (default: 1)")
    group.add_argument(
        "--temperature",
        type=number(above_0=False),
        help="divisor of the logits; 0 takes the likeliest token (default: 1)",
    )
    group.add_argument("--top_k", type=count(0), metavar="N", help="most likely tokens to keep (default: 0, all)")
    group.add_argument(
        "--top_p",
        type=number(above_0=True),
        help="probability of the most likely tokens to keep (default: 1, all)",
    )
    group.add_argument("--max_new_tokens", type=count(), metavar="N", help="tokens of a sample (default: 256)")
    group.add_argument("--seed", type=count(0), help="seed (default: 0)")


def add_model_options(group: Any, *, autocast: str = "autocast (default: as in training)") -> None:
    """Adds the options of loading and running a model."""
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="dtype of the weights")
    group.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], help=autocast)
    group.add_argument("--device", help="device to compute on, for example cpu or cuda:1")
    group.add_argument("--revision", help="revision of the policy on the hub")
    group.add_argument("--max_tokens_per_batch", type=count(), metavar="N", help="maximum tokens computed at once")


def given(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the options that have a value."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of sampling that were given."""
    return given(options, _SAMPLING_OPTIONS)
