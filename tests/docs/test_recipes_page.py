"""Every command of `recipes/README.md` is one of the real command lines, and reads what an earlier one writes."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from trl_dpo_ext import DPOPaperConfig, PreferredFTConfig
from trl_dpo_ext.cli import main
from trl_dpo_ext.cli.recipe import parse
from trl_dpo_ext.cli.words import WordParser


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
CONFIGS = {"dpo": DPOPaperConfig, "preferred-ft": PreferredFTConfig}
TEMPERATURES = ["0", "0.25", "0.5", "0.75", "1.0"]

# The programs print their words as the shell has expanded them
PRINTED = """
say() { for word in "$@"; do printf '%q ' "$word"; done; echo; }
trl-dpo-ext() { say trl-dpo-ext "$@"; }
accelerate() { say accelerate "$@"; }
set -eu
"""


def run_page(folder: Path) -> list[list[str]]:
    """Runs the page in a folder, with programs that only print, and returns their words."""
    script = PRINTED + "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL))
    shell = ["bash", "--norc", "-c", script]
    printed = subprocess.run(shell, check=True, capture_output=True, text=True, cwd=folder).stdout
    return [shlex.split(line) for line in printed.splitlines()]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the page as words after `trl-dpo-ext`, in a folder with the recipes and what `mkdir` makes."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    found = []
    for program, *words in run_page(tmp_path):
        if program == "accelerate":
            assert words.pop(0) == "launch"
            launch = launch_command_parser().parse_args(words)
            assert Path(launch.config_file).is_file() and launch.module and launch.training_script == "trl_dpo_ext.cli"
            words = launch.training_script_args
        found.append(words)
    return found


class Parsed(Exception):
    """Options that a command has read. It goes no further."""


def options_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Options as the command reads them."""
    command, *options = words
    if command in CONFIGS:
        return parse(command, CONFIGS[command], [*options, "--use_cpu", "--bf16", "false"])

    def stop(self, args=None, namespace=None):
        raise Parsed(parse_args(self, args, namespace))

    parse_args = WordParser.parse_args
    with monkeypatch.context() as patched, pytest.raises(Parsed) as found:
        patched.setattr(WordParser, "parse_args", stop)
        main(words)
    return found.value.args[0]


COUNTS = {"preferred-ft": 2, "dpo": 2, "prompts": 3, "sample": 10 + 15 + 4, "win-rate": 3 + 4, "agreement": 1}


def test_all_commands_are_checked(commands):
    names = [words[0] for words in commands]
    assert {name: names.count(name) for name in names} == COUNTS


@pytest.mark.parametrize("command", COUNTS)
def test_command_is_read(command, commands, monkeypatch):
    for words in commands:
        if words[0] == command:
            assert options_of(words, monkeypatch) is not None


def test_wrong_commands_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^2$"):
        options_of(["prompts", "hh", "--output", "outputs/prompts.jsonl"], monkeypatch)
    with pytest.raises(SystemExit, match="^2$"):
        options_of(["sample", "model", "prompts.jsonl", "--output", "o.jsonl", "--temprature", "0"], monkeypatch)


def value_of(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def values_of(words: list[str], option: str) -> list[str]:
    rest = words[words.index(option) + 1 :]
    return rest[: next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest))]


def test_files_are_those_of_earlier_commands(commands):
    written, sft = set(), "CarperAI/openai_summarize_tldr_sft"
    for command, *words in commands:
        if command in CONFIGS:
            recipe = yaml.safe_load(Path(value_of(words, "--config")).read_text())
            assert recipe["model_name_or_path"] in {"EleutherAI/pythia-2.8b", sft} | written
            written.add(recipe["output_dir"])
            continue
        read = {"sample": words[:2], "win-rate": [], "prompts": [], "agreement": words[:1]}[command]
        if command == "win-rate":
            policies = [word.rpartition("=")[2] for word in values_of(words, "--policy")]
            read = [*policies, value_of(words, "--baseline")]
            if "--human" in words:
                assert "outputs/tldr/sheet.csv" in written  # of which people return copies
        assert set(read) <= {sft} | written
        output = value_of(words, "--output")
        assert output not in written or command == "win-rate"  # which appends
        written |= {output, *(value_of(words, option) for option in ("--write_sheet",) if option in words)}


def test_temperatures_are_those_of_the_paper(commands):
    found: dict[str, list[str]] = {}
    for command, *words in commands:
        if command == "sample":
            name, _, temperature = Path(value_of(words, "--output")).stem.partition("_t")
            assert temperature == value_of(words, "--temperature")
            found.setdefault(f"{Path(words[1]).parent.name} {name}", []).append(temperature)
    news = {f"cnn_dailymail {policy}": ["0", "0.25"] for policy in ("dpo", "preferred-ft")}
    hh = {f"hh {policy}": TEMPERATURES for policy in ("dpo", "preferred-ft")}
    assert found == news | hh | {f"tldr {policy}": TEMPERATURES for policy in ("dpo", "preferred-ft", "sft")}


def test_every_folder_is_described():
    folders = {path.name for path in (ROOT / "recipes").iterdir() if path.is_dir()}
    assert set(re.findall(r"^\| `(\w+)/` \|", PAGE, flags=re.MULTILINE)) == folders
