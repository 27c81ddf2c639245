"""`trl-dpo-ext score`: the rows of a file with the implicit rewards of a trained policy."""

import argparse
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.words import WordParser, count, number


__all__ = ["run"]

_DESCRIPTION = """\
Add the implicit rewards of a trained policy, beta log(pi(y|x) / pi_ref(y|x)), to the rows of a file.

  rows with                get the columns
  chosen, rejected         score_chosen, score_rejected
  completions (a list)     scores (a list)
  completion               score

`prompt` may be left out where all completions of a row start with it; `tools` and `chat_template_kwargs` are used.
Text and chat. Rows keep their order and all their columns.

Rows that cannot be scored (no JSON, a missing column, ...) are left out of OUTPUT and go to OUTPUT.errors.jsonl: the
row, counted from 0 as in training, of JSON lines also the line, counted from 1; what is wrong; and the row itself.

Parts that are finished are kept in OUTPUT.parts until all are. Start a run that was killed again with the same
command, and it goes on behind them; OUTPUT has the same bytes as without the interruption.
"""
_EPILOG = """\
exit status: 0, all rows are scored; 1, some are not; 2, nothing was written, and the message says why.

Several processes: accelerate launch -m trl_dpo_ext.cli score MODEL ROWS --output OUTPUT
"""
# Options of `ImplicitRewardModel.from_pretrained` that have the same name here
_MODEL_OPTIONS = (
    "reference",
    "beta",
    "reference_free",
    "dtype",
    "mixed_precision",
    "device",
    "revision",
    "tokenization",
    "max_length",
    "max_prompt_length",
    "max_tokens_per_batch",
)
# Advice of `ImplicitRewardModel.from_pretrained`, and the same on the command line
_FLAGS = {
    "`reference=`": "--reference",
    "`beta=`": "--beta",
    "`reference_free=True`": "--reference_free",
    "`check_reference=False`": "--no_check_reference",
}


def run(argv: list[str]) -> int:
    """Runs the command. Returns 0, 1 if some rows could not be scored, or 2 if nothing was written."""
    options = _parser().parse_args(argv)
    try:
        return _score(options, options.output)
    except (ValueError, OSError) as error:
        return fail("score", _with_flags(str(error)))
    except Exception:  # Python's own exit status would be 1
        traceback.print_exc()
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = WordParser(
        "score",
        usage="trl-dpo-ext score MODEL ROWS --output OUTPUT [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of the policy, a model or an adapter")
    parser.add_argument(
        "rows",
        metavar="ROWS",
        help=".jsonl, .json, .parquet, .csv or .arrow file, folder, or name of a hub data set",
    )
    parser.add_argument(
        "--output", type=_output, metavar="OUTPUT", required=True, help=".jsonl or .parquet file to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT, and parts of a run unlike this one")
    parser.add_argument("--overwrite_columns", action="store_true", help="replace rewards that rows already have")
    parser.add_argument("--split", default="train", help="split of a data set (default: %(default)s)")
    parser.add_argument("--dataset_config", help="configuration, of a data set that has several")
    parser.add_argument(
        "--rows_per_part", type=count(), default=512, metavar="N", help="rows of a part (default: %(default)s)"
    )
    model = parser.add_argument_group(
        "the model", "What a trainer of this package saved is known. Other models need a reference and beta."
    )
    model.add_argument("--reference", help="folder or hub name of the reference")
    model.add_argument("--beta", type=number(above_0=True), help="strength of the KL constraint")
    model.add_argument("--reference_free", action="store_true", default=None, help="rewards are beta log pi(y|x)")
    model.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="dtype of the weights")
    model.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], help="autocast")
    model.add_argument("--device", help="where to score, for example cpu or cuda:1")
    model.add_argument("--revision", help="revision of the policy on the hub")
    model.add_argument("--tokenization", choices=["separate", "joint"], help="as in training")
    model.add_argument("--max_length", type=count(), metavar="N", help="most tokens of a prompt with a completion")
    model.add_argument(
        "--max_prompt_length", type=count(), metavar="N", help="most tokens of the prompt in a truncated row"
    )
    model.add_argument("--max_tokens_per_batch", type=count(), metavar="N", help="most tokens of a forward")
    model.add_argument(
        "--no_check_reference", action="store_true", help="take a reference that is not the recorded one"
    )
    return parser


def _score(options: argparse.Namespace, output: Path) -> int:
    if output.exists() and not options.overwrite:
        raise ValueError(f"{output} already exists. Pass --overwrite to replace it.")

    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from trl_dpo_ext.processes import together
    from trl_dpo_ext.reward_model.files.parts import ScoredParts
    from trl_dpo_ext.reward_model.files.row_sources import open_rows
    from trl_dpo_ext.reward_model.files.score_file import check_output, score_file
    from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel

    # Without an accelerator only `cpu=True` has processes find each other. One that is done waits for the others.
    cpu = options.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    with together():  # before the model is loaded, which may take minutes
        source = open_rows(
            options.rows,
            rows_per_part=options.rows_per_part,
            split=options.split,
            dataset_config=options.dataset_config,
        )
        check_output(source, output, options.overwrite)
        if state.is_main_process:
            ScoredParts(output).check_free()
    if state.num_processes > 1 and options.device not in (None, "cpu"):
        raise ValueError(f"--device {options.device} would put all processes on one device. Leave it out.")
    given: dict[str, Any] = {name: getattr(options, name) for name in _MODEL_OPTIONS}
    try:
        reward_model = ImplicitRewardModel.from_pretrained(
            options.model,
            check_reference=not options.no_check_reference,
            progress=False,
            **{name: value for name, value in given.items() if value is not None},
        )
    except (ValueError, OSError) as error:
        if Path(options.model).is_dir():
            raise
        raise ValueError(f"{options.model} is no folder, and as a name on the hub: {error}") from error
    result = score_file(
        reward_model, source, output, overwrite=options.overwrite, overwrite_columns=options.overwrite_columns
    )
    state.destroy_process_group()
    if result is None:
        return 0
    if result.cut:
        length = reward_model.row_options.max_length
        print(f"{result.cut} rows exceed `max_length={length}` and are truncated as in training.", file=sys.stderr)
    if result.not_scored:
        more = [f"... and {result.not_scored - len(result.problems)} more"]
        lines = result.problems + more * (result.not_scored > len(result.problems))
        print(f"{result.not_scored} of {source.num_rows} rows could not be scored:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
        print(f"They are in {result.errors}.", file=sys.stderr)
    wrote = f"Wrote {result.output}: {result.scored} rows." if result.output else f"Did not write {output}: no row."
    print(wrote, file=sys.stderr)
    return 1 if result.not_scored else 0


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".jsonl", ".parquet"):
        raise argparse.ArgumentTypeError(f"{text} must end in .jsonl or .parquet")
    return path


def _with_flags(message: str) -> str:
    for keyword, flag in _FLAGS.items():
        message = message.replace(keyword, flag)
    return message
