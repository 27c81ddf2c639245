"""`trl-dpo-ext quickstart`: DPO from start to end on film reviews."""

import argparse
import os
from pathlib import Path

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.words import WordParser


__all__ = ["run"]

_DESCRIPTION = """\
Train and evaluate a small DPO policy on film reviews, in about three minutes on two CPU cores and without a download.

A small GPT-2 is fine-tuned on reviews of both sentiments and completes beginnings of reviews four times each.
DPOPaperTrainer then trains on pairs of completions, ranked by a ground-truth reward. The result is measured on
held-out beginnings. The output folder then has:

  sft/                    the fine-tuned model: initial policy and reference
  preferences.jsonl       training pairs, and preferences_test.jsonl, pairs of held-out beginnings
  prompts_test.jsonl      the held-out beginnings
  dpo/                    the last checkpoint and the logs: trl-dpo-ext report outputs/quickstart/dpo
  policy/                 the trained model, which is also a reward model
  results.json            true reward and KL, before and after
  training_curves.png     the course of training, if matplotlib is installed

An interrupted run continues where it stopped.
"""


def run(argv: list[str]) -> int:
    """Runs the command. Returns 0, or 2 if the output folder has other files."""
    parser = WordParser("quickstart", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, metavar="FOLDER", help="default: outputs/quickstart, or outputs/quickstart_quick"
    )
    parser.add_argument("--quick", action="store_true", help="a smaller version, in half a minute")
    options = parser.parse_args(argv)

    # Busy waiting of threads makes a small model several times slower if another program uses the cores. The thread
    # library reads this variable when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from trl_dpo_ext.quickstart.quickstart import FULL, QUICK, run_quickstart

    name = "quickstart_quick" if options.quick else "quickstart"
    try:
        run_quickstart(options.output_dir or Path("outputs", name), QUICK if options.quick else FULL)
    except (ValueError, OSError) as error:
        return fail("quickstart", error)
    return 0
