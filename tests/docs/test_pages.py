"""README and docs: size, paths, commands, tables and the API reference are those of the code."""

import re
import sys
from pathlib import Path

import forked
import pytest
from docs.commands import options_of, words_of
from docs.pages import PACKAGE, PAGES, ROOT

from trl_dpo_ext.shared_prompt.support import TESTED
from trl_dpo_ext.trainers.presets import PRESETS, preset_values


sys.path.insert(0, str(ROOT / "docs" / "site"))

from docstrings import to_markdown  # noqa: E402
from public_names import PUBLIC_MODULES, all_public_names  # noqa: E402


_PATH = re.compile(r"`((?:trl_dpo_ext|tests|examples|recipes|benchmarks|docs)/[\w./-]*)(?::\w+)?`")


def test_size_of_the_readme():
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str):
    for path in _PATH.findall(PAGES[page]):
        folder = PACKAGE.parent if path.startswith("trl_dpo_ext/") else ROOT
        assert (folder / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_read(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: m\ndataset_name: d.jsonl\noutput_dir: o\n")
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```bash\n(.*?)```", PAGES[page], flags=re.DOTALL):
        for words in words_of(block, tmp_path):
            assert options_of(words, monkeypatch) is not None, words


def test_links_of_the_readme():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES["README.md"])
    assert len(links) > 20
    assert all((ROOT / link).exists() for link in links if link != "docs/command_line.md")


def test_preset_table():
    page = PAGES["trainers.md"]
    section = page[page.index("## Presets") :]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section[: section.index("\n## ", 5)], flags=re.MULTILINE))
    for position, preset in enumerate(PRESETS):
        for name, value in preset_values(preset).items():
            if name == "tf32" and preset != "trl":
                value = True  # where the hardware has it
            assert rows[name].split("|")[position].strip() == str(getattr(value, "value", value)), (preset, name)
    assert set(rows) == set(preset_values("paper"))


def test_every_folder_has_its_line_in_the_tree():
    tree = re.search(r"^trl_dpo_ext/\n(.*?)^```", PAGES["architecture.md"], flags=re.MULTILINE | re.DOTALL)[1]
    folders = re.findall(r"^  (  )?(\w+)/ ", tree, flags=re.MULTILINE)
    listed, parent = [], ""
    for nested, name in folders:
        parent = parent if nested else name
        listed.append(f"{parent}/{name}" if nested else name)
    found = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("__init__.py")}
    assert {name for name in found if not name.startswith("evaluation/modules/")} - {"."} == set(listed)
    files = {name for line in tree.splitlines() for name in re.findall(r"^  (?=\w)(.*?)  ", line)}
    single = {word for names in files for word in names.split() if word.endswith(".py")}
    assert single == {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}


def test_model_types_whose_prompts_are_shared():
    section = PAGES["performance.md"].partition("support.TESTED`:")[2].split("\n\n")[1]
    assert set(re.findall(r"\w+", section.removeprefix("```text"))) == TESTED


def test_every_public_name_is_in_the_reference():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for module in PUBLIC_MODULES:
        assert f"api/{module.rpartition('.')[2]}.md" in navigation
    names = all_public_names()
    assert len(names) > 60 and all(full.startswith("trl_dpo_ext") for full in names.values())


def test_docstring_as_markdown():
    docstring = """
Weight of a [`~torch.nn.Module`], see [`losses`] and [`DPOPaperTrainer`].

Args:
    beta (`float`, *optional*, defaults to `0.1`):
        Strength, \\\\( > 0 \\\\).
        Per nat.

Returns:
    `torch.Tensor` of shape `(B,)`: losses.
"""
    expected = """
Weight of a `Module`, see `losses` and [`DPOPaperTrainer`][trl_dpo_ext.DPOPaperTrainer].


**Args**


**`beta`** (`float`, *optional*, defaults to `0.1`)

:   Strength, $> 0$.
    Per nat.


**Returns**


`torch.Tensor` of shape `(B,)`

:   losses."""
    assert to_markdown(docstring, {"DPOPaperTrainer": "trl_dpo_ext.DPOPaperTrainer"}) == expected


@pytest.mark.slow
def test_importing_says_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import forked_imports; print(repr(forked_imports.PRINTED))")
    program = forked.start([str(script)], tmp_path / "log")
    assert program.wait(60) == 0, program.output
    assert program.output == "''\n"
