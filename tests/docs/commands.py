"""The commands of pages as words, and as the real command line reads them."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from trl_dpo_ext import DPOPaperConfig, PreferredFTConfig, RankingDPOConfig, UnlikelihoodConfig
from trl_dpo_ext.cli import main
from trl_dpo_ext.cli.recipe import parse
from trl_dpo_ext.cli.words import WordParser


CONFIGS = {
    "dpo": DPOPaperConfig,
    "preferred-ft": PreferredFTConfig,
    "rank": RankingDPOConfig,
    "unlikelihood": UnlikelihoodConfig,
}

# The programs print their words as the shell has expanded them. Others do nothing
_PRINTED = """
say() { for word in "$@"; do printf '%q ' "$word"; done; echo; }
trl-dpo-ext() { say trl-dpo-ext "$@"; }
accelerate() { say accelerate "$@"; }
pip() { :; }; make() { :; }; python() { :; }; cd() { :; }; git() { :; }; nvidia-smi() { :; }
set -eu
"""


def words_of(script: str, folder: Path) -> list[list[str]]:
    """Runs a script of a page in a folder, and returns the words of each command after `trl-dpo-ext`."""
    script = re.sub(r"^\.venv/bin/.*$", "", script, flags=re.MULTILINE)
    shell = ["bash", "--norc", "-c", _PRINTED + script]
    printed = subprocess.run(shell, check=True, capture_output=True, text=True, cwd=folder).stdout
    found = []
    for line in printed.splitlines():
        program, *words = shlex.split(line)
        if program == "accelerate":
            if words.pop(0) != "launch":
                continue  # `accelerate config`
            launch = launch_command_parser().parse_args(words)
            assert launch.config_file is None or Path(folder, launch.config_file).is_file()
            assert launch.module and launch.training_script == "trl_dpo_ext.cli"
            words = launch.training_script_args
        found.append(words)
    return found


class _Parsed(Exception):
    """Options that a command has read. It goes no further."""


def options_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Options as the command reads them."""
    command, *options = words
    if command in CONFIGS and "--help" not in options:
        return parse(command, CONFIGS[command], [*options, "--use_cpu", "--bf16", "false"])

    def stop(self, args=None, namespace=None):
        raise _Parsed(parse_args(self, args, namespace))

    parse_args = WordParser.parse_args
    with monkeypatch.context() as patched, pytest.raises(_Parsed) as found:
        patched.setattr(WordParser, "parse_args", stop)
        main(words)
    return found.value.args[0]
