"""
Runs the tests with the oldest and the newest versions of other libraries, on other versions of Python.

    python tests/upstream.py [oldest pinned newest] [--keep] [-- PYTEST_OPTION ...]

Each environment is made in `outputs/upstream`, and removed after its tests unless `--keep` is passed. Builds of torch
for CUDA take several GB each. The table of `docs/versions.md` is rewritten with the results. An environment whose
interpreter is not on the `PATH` is left out.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from packaging.requirements import Requirement


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "outputs" / "upstream"
PAGE = ROOT / "docs" / "versions.md"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
START, END = "<!-- upstream:start -->\n", "<!-- upstream:end -->"
TESTS = [
    "-m",
    "not slow and not distributed",
    "--numprocesses",
    "2",
    "--dist",
    "loadfile",
    "-q",
    "-p",
    "no:cacheprovider",
]


@dataclass(frozen=True)
class Environment:
    """A version of Python, and words for pip that choose the versions of packages."""

    name: str
    python: str
    words: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def interpreter(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def has_interpreter(self) -> bool:
        program = shutil.which(f"python{self.python}")  # with pyenv it may be there and fail
        return program is not None and subprocess.run([program, "--version"], capture_output=True).returncode == 0

    def make(self) -> None:
        """Installs the package with its tests' packages, unless this was done since they have changed."""
        done = self.folder / ".installed"
        if done.exists() and done.stat().st_mtime > (ROOT / "pyproject.toml").stat().st_mtime:
            return
        subprocess.run([f"python{self.python}", "-m", "venv", self.folder], check=True)
        pip = [self.interpreter, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        subprocess.run([*pip, *self.words, "--editable", f"{ROOT}[test]"], check=True)
        done.touch()

    def versions(self) -> dict[str, str]:
        """Versions of the packages that are installed."""
        code = (
            f"from importlib.metadata import version; import json; print(json.dumps([version(p) for p in {PACKAGES}]))"
        )
        found = subprocess.run([self.interpreter, "-c", code], check=True, capture_output=True, text=True).stdout
        return dict(zip(PACKAGES, json.loads(found), strict=True))

    def test(self, options: list[str]) -> str:
        """Runs the tests, and returns their last line."""
        command = [self.interpreter, "-m", "pytest", *TESTS, *options]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
            line = ""
            for line in running.stdout or ():
                print(line, end="", flush=True)
        return line.strip(" =\n")


def environments() -> list[Environment]:
    """Oldest versions that `pyproject.toml` allows, those of `constraints.txt`, and the newest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = tuple(floor(line) for line in project["dependencies"] if Requirement(line).name in PACKAGES)
    return [
        Environment("oldest", "3.11", floors),
        Environment("pinned", "3.12", ("--constraint", str(ROOT / "constraints.txt"))),
        Environment("newest", "3.13", ("--upgrade", "--upgrade-strategy", "eager")),
    ]


def floor(line: str) -> str:
    """`trl>=1.16.0,<2` is `trl==1.16.0`."""
    requirement = Requirement(line)
    [least] = [one.version for one in requirement.specifier if one.operator == ">="]
    return f"{requirement.name}=={least}"


def write_row(environment: Environment, result: str) -> None:
    """Puts a row into the table of the page, in place of the environment's earlier one."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    table, after = rest.split(END)
    cells = [environment.name, environment.python, *environment.versions().values(), result, str(date.today())]
    row = f"| {' | '.join(cells)} |\n"
    others = [line for line in table.splitlines(keepends=True) if not line.startswith(f"| {environment.name} |")]
    PAGE.write_text(f"{before}{START}{''.join([*others, row])}{END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {environment.name: environment for environment in environments()}
    parser.add_argument("names", nargs="*", choices=[*known, []], default=[], help="default: all")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--install_only", action="store_true", help="make the environments without running tests")
    options, pytest_options = parser.parse_known_args()
    failed = False
    for name in options.names or known:
        environment = known[name]
        if not environment.has_interpreter:
            print(f"There is no python{environment.python}: `{name}` is left out.", file=sys.stderr)
            continue
        environment.make()
        if options.install_only:
            continue
        result = environment.test([word for word in pytest_options if word != "--"])
        write_row(environment, re.sub(r", \d+ warnings?| in .*", "", result))
        failed |= "failed" in result or "error" in result
        if not options.keep:
            shutil.rmtree(environment.folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
