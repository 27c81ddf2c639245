"""Every command of `recipes/README.md` is one of the real command lines, and reads what an earlier one writes."""

import re
from pathlib import Path

import pytest
import yaml
from docs.commands import CONFIGS, options_of, words_of


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
TEMPERATURES = ["0", "0.25", "0.5", "0.75", "1.0"]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the page as words after `trl-dpo-ext`, in a folder with the recipes and what `mkdir` makes."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return words_of("\n".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)), tmp_path)


COUNTS = {
    "preferred-ft": 2,
    "dpo": 2,
    "prompts": 3,
    "sample": 10 + 15 + 4,
    "win-rate": 3 + 4,
    "agreement": 1,
    "frontier": 3,
}


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
        read = {"sample": words[:2], "win-rate": [], "prompts": [], "agreement": words[:1], "frontier": []}[command]
        if command == "win-rate":
            policies = [word.rpartition("=")[2] for word in values_of(words, "--policy")]
            read = [*policies, value_of(words, "--baseline")]
            if "--human" in words:
                assert "outputs/tldr/sheet.csv" in written  # of which people return copies
        assert set(read) <= {sft} | written
        output = value_of(words, "--output_dir" if command == "frontier" else "--output")
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
