"""Command line `trl-dpo-ext COMMAND`. Each command is a module, which is imported only when it is called."""

import sys
import warnings
from importlib import import_module

from trl_dpo_ext import __version__
from trl_dpo_ext.spelling import did_you_mean


__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "quickstart": "train and evaluate a small DPO policy on film reviews, without a download",
    "dpo": "train DPOPaperTrainer on preference pairs, from a YAML recipe and options",
    "rank": "train RankingDPOTrainer on ranked or scored completions",
    "preferred-ft": "train PreferredFTTrainer on preferred completions: the stage before DPO",
    "unlikelihood": "train UnlikelihoodTrainer, a baseline",
    "prompts": "write prompts of the paper's tasks, with their human answers",
    "sample": "sample completions of the prompts of a file",
    "evaluate": "measure policies on prompts: reward, KL from the reference, win rate over it, best of N",
    "win-rate": "win rate of policies over a baseline: by a judge, a reward or people",
    "frontier": "the reward-KL frontier: many runs from one model, measured during training",
    "agreement": "how far people agree with each other, and judges with people",
    "score": "add implicit rewards to the rows of a file",
    "doctor": "examine a dataset before training: invalid rows, truncation, and suspicious patterns",
    "report": "draw the metrics of a run on one page",
    "env": "print the versions and hardware that a bug report needs",
}


def _usage() -> str:
    commands = "\n".join(f"  {name:<13} {what}" for name, what in COMMANDS.items())
    return (
        "usage: trl-dpo-ext [-h] [--version] COMMAND ...\n\n"
        "Direct Preference Optimization as the paper describes it.\n\n"
        f"commands:\n{commands}\n\n"
        "Several processes: accelerate launch -m trl_dpo_ext.cli COMMAND ..."
    )


def main(argv: list[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (`list[str]`, *optional*):
            Words after the program's name. Default: `sys.argv[1:]`.

    Returns:
        `int`: Exit status of the command, or 2 for a command that does not exist.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        # Commands are short, so a small distance is needed: `rank` is close to `trainn`
        hint = did_you_mean(command, COMMANDS, cutoff=0.75)
        sys.stderr.write(f"trl-dpo-ext: there is no command `{command}`.{hint}\n\n{_usage()}\n")
        return 2
    with warnings.catch_warnings():
        # These announce changes of libraries, which are not a concern of users; this package raises none itself
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true")  # on a CPU
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # of GPT-2, and PEFT then sets it
        return import_module(f"trl_dpo_ext.cli.{command.replace('-', '_')}").run(argv[1:])
