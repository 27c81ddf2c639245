"""`trl-dpo-ext score`: adds the implicit rewards of a trained policy to the rows of a file."""

import argparse
import sys
import traceback
from pathlib import Path

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.launch import connect, hub_name_explained
from trl_dpo_ext.cli.model_options import MODEL_OPTIONS, ROWS_HELP, add_model_options, add_row_options, given
from trl_dpo_ext.cli.words import WordParser, count, number


__all__ = ["run"]

_DESCRIPTION = """\
Add the implicit rewards of a trained policy, beta log(pi(y|x) / pi_ref(y|x)), to the rows of a file.

  rows with                get the columns
  chosen, rejected         score_chosen, score_rejected
  completions (a list)     scores (a list)
  completion               score

`prompt` may be missing if all completions of a row start with it. `tools` and `chat_template_kwargs` are used.
Text and chat are supported. Rows keep their order and all their columns.

Rows that cannot be scored (invalid JSON, a missing column, ...) are written to OUTPUT.errors.jsonl instead of OUTPUT.
It contains the index of the row (from 0, as in training), the line in a JSON Lines file (from 1), the problem and the
row itself.

Finished parts are stored in OUTPUT.parts until all parts are finished. To resume an interrupted run, repeat the same
command. OUTPUT has the same bytes as without the interruption.
"""
_EPILOG = """\
exit status: 0, all rows are scored; 1, some rows are not scored; 2, nothing was written (see the message).

Several processes: accelerate launch -m trl_dpo_ext.cli score MODEL ROWS --output OUTPUT
"""
# Options of `ImplicitRewardModel.from_pretrained` that have the same name here
_REWARD_OPTIONS = ("reference", "beta", "reference_free", "tokenization", "max_length", "max_prompt_length")
# Arguments that the messages of `ImplicitRewardModel.from_pretrained` name, and their options here
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
    except Exception:  # Python would exit with status 1
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
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of the policy (a model or an adapter)")
    parser.add_argument("rows", metavar="ROWS", help=ROWS_HELP)
    parser.add_argument(
        "--output", type=_output, metavar="OUTPUT", required=True, help=".jsonl or .parquet file to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT, and parts of a different run")
    parser.add_argument("--overwrite_columns", action="store_true", help="replace existing rewards")
    add_row_options(parser)
    parser.add_argument(
        "--rows_per_part", type=count(), default=512, metavar="N", help="rows of a part (default: %(default)s)"
    )
    model = parser.add_argument_group(
        "the model", "Models saved by this package need no options. Other models need --reference and --beta."
    )
    model.add_argument("--reference", help="folder or hub name of the reference")
    model.add_argument("--beta", type=number(above_0=True), help="strength of the KL constraint")
    model.add_argument("--reference_free", action="store_true", default=None, help="rewards are beta log pi(y|x)")
    add_model_options(model)
    model.add_argument("--tokenization", choices=["separate", "joint"], help="as in training")
    model.add_argument("--max_length", type=count(), metavar="N", help="maximum tokens of a prompt with a completion")
    model.add_argument(
        "--max_prompt_length", type=count(), metavar="N", help="maximum tokens of the prompt in a truncated row"
    )
    model.add_argument(
        "--no_check_reference", action="store_true", help="accept a reference that differs from the recorded one"
    )
    return parser


def _score(options: argparse.Namespace, output: Path) -> int:
    if output.exists() and not options.overwrite:
        raise ValueError(f"{output} already exists. Pass --overwrite to replace it.")

    from trl_dpo_ext.processes import together
    from trl_dpo_ext.reward_model.files.parts import ScoredParts
    from trl_dpo_ext.reward_model.files.row_sources import open_rows
    from trl_dpo_ext.reward_model.files.score_file import check_output, score_file
    from trl_dpo_ext.reward_model.implicit_reward_model import ImplicitRewardModel

    state = connect(options.device)
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
    with hub_name_explained(options.model):
        reward_model = ImplicitRewardModel.from_pretrained(
            options.model,
            check_reference=not options.no_check_reference,
            progress=False,
            **given(options, (*_REWARD_OPTIONS, *MODEL_OPTIONS)),
        )
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
    wrote = f"Wrote {result.output}: {result.scored} rows." if result.output else f"Did not write {output}: no rows."
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
