"""`trl-dpo-ext frontier`: the reward-KL frontier of many methods from one model."""

import argparse
import sys
import traceback
from pathlib import Path

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.pictures import write_pictures
from trl_dpo_ext.cli.recipe_file import read_recipe
from trl_dpo_ext.cli.words import WordParser


__all__ = ["run"]

_DESCRIPTION = """\
The main experiment of the DPO paper (Sec. 6.1): reward against KL of many runs from the same initial policy.

CONFIG is a YAML file with the base model, texts or prompts, the true reward, and a list of runs: dpo, ranking-dpo,
unlikelihood, preferred-ft, rloo and ppo (with a reward model of Eq. 2), rloo-gt and ppo-gt (with the true reward).
recipes/frontier has examples. Every run is evaluated during training: true reward, and exact KL from the initial
policy over whole completions.

OUTPUT_DIR then has
  frontier.csv        a row for each evaluation, and for best of N and the optimum, estimated from the initial policy
  frontier.json       the states of the runs, and what the table shows, in sentences
  frontier.html, .png the same as a page with pictures
  sft/, preferences.jsonl, reward_model/, runs/   what was made on the way; the policies too with `save_policies: true`

To resume, repeat the same command. A run is trained again if something that it depends on has changed, and kept
otherwise. A run that fails is marked, and the others go on.
"""
_EPILOG = """\
exit status: 0, all runs are done; 1, some failed (--retry tries them again); 2, there are no results; 130, interrupted
"""


def run(argv: list[str]) -> int:
    """Runs the command. Returns 0, or another status if not all runs are done."""
    parser = WordParser(
        "frontier",
        usage="trl-dpo-ext frontier CONFIG --output_dir OUTPUT_DIR [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument("--output_dir", type=Path, metavar="OUTPUT_DIR", required=True, help="folder for all results")
    parser.add_argument("--dry_run", action="store_true", help="print the runs, and stop")
    parser.add_argument("--retry", action="store_true", help="try runs again that failed")
    options = parser.parse_args(argv)
    try:
        return _frontier(options)
    except KeyboardInterrupt:
        return fail("frontier", "interrupted. Repeat the command to go on.", 130)
    except (ValueError, OSError, ImportError) as error:
        return fail("frontier", error)
    except Exception:  # Python would exit with status 1
        traceback.print_exc()
        return 2


def _frontier(options: argparse.Namespace) -> int:
    from trl_dpo_ext.frontier.config import FrontierConfig
    from trl_dpo_ext.frontier.frontier import FrontierFiles, make_frontier

    try:
        config = FrontierConfig.from_dict(read_recipe(options.config))
    except ValueError as error:
        raise ValueError(f"{options.config}: {error}") from error
    if options.dry_run:
        for one in config.runs:
            print(f"{one.of.label:<22}{one.setting:<16}seed {one.seed}")
        print(f"{len(config.runs)} runs")
        return 0
    summary = make_frontier(config, options.output_dir, retry=options.retry)
    print("\n".join([*summary["statements"], "", *summary["costs"]]))
    files = FrontierFiles(options.output_dir)
    print(f"Wrote {files.table} and {files.summary}.", file=sys.stderr)
    write_pictures("frontier_page", "write_frontier_page", files.folder)
    failed = [state for state in summary["runs"] if state["state"] != "done"]
    for state in failed:
        print(f"{state['run']} {state['state']}. {state.get('error', '')}", file=sys.stderr)
    return 1 if failed else 0
