"""`trl-dpo-ext sample`: samples completions of the prompts of a file from a policy."""

import argparse
import sys
import time
import traceback
from pathlib import Path

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.launch import connect, hub_name_explained
from trl_dpo_ext.cli.words import WordParser, count, number


__all__ = ["run"]

_DESCRIPTION = """\
Sample completions of prompts from a policy.

PROMPTS has a column `prompt` (text or messages), and optionally `tools` and `chat_template_kwargs`. OUTPUT has a row
for each sample: prompt_id (index of the row in PROMPTS), sample, prompt, completion, token_ids, finished (whether it
ended by itself) and logp (log-probability of its tokens in the distribution that was sampled, in nats).
Everything that the samples depend on is in OUTPUT.settings.json.

The defaults sample the policy itself: temperature 1, and all tokens. The 50 most likely tokens, which transformers
samples from by default, are --top_k 50.

Every sample has random numbers of its own, by seed, prompt and sample. --max_tokens_per_batch, the number of processes
and interruptions do not change a byte of OUTPUT, if the device is deterministic.

Finished parts are stored in OUTPUT.parts until all parts are finished. To resume an interrupted run, repeat the same
command.
"""
_EPILOG = """\
exit status: 0, OUTPUT has all samples; 2, nothing was written (see the message).

Several processes: accelerate launch -m trl_dpo_ext.cli sample MODEL PROMPTS --output OUTPUT
"""
_SAMPLING_OPTIONS = ("num_samples", "temperature", "top_k", "top_p", "max_new_tokens", "seed")
_MODEL_OPTIONS = ("dtype", "mixed_precision", "device", "revision", "max_tokens_per_batch")


def run(argv: list[str]) -> int:
    """Runs the command. Returns 0, or 2 if nothing was written."""
    options = _parser().parse_args(argv)
    try:
        return _sample(options)
    except (ValueError, OSError) as error:
        return fail("sample", error)
    except Exception:  # Python would exit with status 1
        traceback.print_exc()
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = WordParser(
        "sample",
        usage="trl-dpo-ext sample MODEL PROMPTS --output OUTPUT [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of the policy (a model or an adapter)")
    parser.add_argument(
        "prompts",
        metavar="PROMPTS",
        help=".jsonl, .json, .parquet, .csv or .arrow file, folder, or name of a hub dataset",
    )
    parser.add_argument("--output", type=Path, metavar="OUTPUT", required=True, help=".jsonl file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an OUTPUT of other settings")
    parser.add_argument("--split", default="train", help="split of the dataset (default: %(default)s)")
    parser.add_argument("--dataset_config", help="configuration of a dataset with several")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--num_samples", type=count(), default=1, metavar="N", help="samples of each prompt (default: %(default)s)"
    )
    sampling.add_argument(
        "--temperature", type=number(above_0=True), default=1.0, help="divisor of the logits (default: %(default)s)"
    )
    sampling.add_argument(
        "--top_k", type=count(0), default=0, metavar="N", help="most likely tokens that are kept (default: 0, all)"
    )
    sampling.add_argument(
        "--top_p",
        type=number(above_0=True),
        default=1.0,
        help="probability of the most likely tokens that are kept (default: 1, all)",
    )
    sampling.add_argument(
        "--max_new_tokens", type=count(), default=256, metavar="N", help="tokens of a sample (default: %(default)s)"
    )
    sampling.add_argument("--seed", type=count(0), default=0, help="seed (default: %(default)s)")
    model = parser.add_argument_group("the model")
    model.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="dtype of the weights")
    model.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], help="autocast (default: as in training)")
    model.add_argument("--device", help="device to sample on, for example cpu or cuda:1")
    model.add_argument("--revision", help="revision of the policy on the hub")
    model.add_argument("--max_tokens_per_batch", type=count(), metavar="N", help="maximum tokens computed at once")
    return parser


def _sample(options: argparse.Namespace) -> int:
    from trl_dpo_ext.evaluation.resumable_file import check_output
    from trl_dpo_ext.evaluation.samples.sample_file import open_prompts, sample_file
    from trl_dpo_ext.evaluation.samples.sampler import Sampler
    from trl_dpo_ext.processes import together
    from trl_dpo_ext.sampling.options import SamplingOptions

    sampling = {name: getattr(options, name) for name in _SAMPLING_OPTIONS}
    of_model = {name: getattr(options, name) for name in _MODEL_OPTIONS}
    state = connect(options.device)
    with together():  # before the model is loaded, which may take minutes
        check_output(options.output)
        source = open_prompts(
            options.prompts, SamplingOptions(**sampling), split=options.split, dataset_config=options.dataset_config
        )
    given = {name: value for name, value in of_model.items() if value is not None}
    with hub_name_explained(options.model):
        sampler = Sampler.from_pretrained(options.model, **given, **sampling)
    start = time.perf_counter()
    result = sample_file(sampler, source, options.output, overwrite=options.overwrite)
    seconds = time.perf_counter() - start
    state.destroy_process_group()
    if result is None:
        return 0
    if result.num_new:
        speed = f"{result.num_new / seconds:.3g} samples per second"
        print(f"Wrote {result.output}: {result.num_samples} samples ({speed}).", file=sys.stderr)
    else:
        print(f"{result.output} already has these {result.num_samples} samples.", file=sys.stderr)
    return 0
