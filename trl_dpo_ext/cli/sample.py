"""`trl-dpo-ext sample`: samples completions of the prompts of a file from a policy."""

import argparse
import sys
import time
import traceback
from pathlib import Path

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.launch import connect, hub_name_explained
from trl_dpo_ext.cli.model_options import (
    MODEL_OPTIONS,
    ROWS_HELP,
    add_model_options,
    add_row_options,
    add_sampling_options,
    given,
    sampling_options,
)
from trl_dpo_ext.cli.words import WordParser


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
    parser.add_argument("prompts", metavar="PROMPTS", help=ROWS_HELP)
    parser.add_argument("--output", type=Path, metavar="OUTPUT", required=True, help=".jsonl file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an OUTPUT of other settings")
    add_row_options(parser)
    add_sampling_options(parser)
    add_model_options(parser.add_argument_group("the model"))
    return parser


def _sample(options: argparse.Namespace) -> int:
    from trl_dpo_ext.evaluation.resumable_file import check_output
    from trl_dpo_ext.evaluation.samples.sample_file import open_prompts, sample_file
    from trl_dpo_ext.evaluation.samples.sampler import Sampler
    from trl_dpo_ext.processes import together
    from trl_dpo_ext.sampling.options import SamplingOptions

    sampling = sampling_options(options)
    state = connect(options.device)
    with together():  # before the model is loaded, which may take minutes
        check_output(options.output)
        source = open_prompts(
            options.prompts, SamplingOptions(**sampling), split=options.split, dataset_config=options.dataset_config
        )
    with hub_name_explained(options.model):
        sampler = Sampler.from_pretrained(options.model, **given(options, MODEL_OPTIONS), **sampling)
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
