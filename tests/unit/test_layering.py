"""Who may import whom (`docs/architecture.md`), how long a module may be, and what an import costs."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import trl_dpo_ext


PACKAGE = Path(trl_dpo_ext.__file__).parent
MODULES = {
    ".".join(("trl_dpo_ext", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Each layer, and the layers of the package that it may import; a layer may always import itself.
PURE = {"objectives", "rewards", "theory", "metrics"}
MAY_IMPORT = {
    **dict.fromkeys(PURE, PURE),
    "compat": set(),
    "processes": set(),
    "whole_file": set(),
    "lazy_names": set(),
    "run_files": set(),
    "run_log": {"run_files", "whole_file"},
    "spelling": set(),
    "models": {"compat", "processes"},
    "shared_prompt": PURE | {"models", "compat", "processes"},
    "sampling": {"models"},
    "batches": {"shared_prompt"},
    "logps": PURE | {"batches"},
    "data": PURE | {"batches", "compat", "spelling", "lazy_names", "version"},
    "reference": PURE | {"shared_prompt", "batches", "logps", "data", "processes", "compat", "whole_file"},
}
MAY_IMPORT["trainers"] = {*MAY_IMPORT, "version"}
MAY_IMPORT["reward_model"] = {*MAY_IMPORT, "version"}
MAY_IMPORT["report"] = {"run_files", "whole_file", "trainers"}
MAY_IMPORT["evaluation"] = {*MAY_IMPORT, "version"}
MAY_IMPORT["rl"] = {"compat", "processes", "whole_file", "run_files", "run_log", "reference", "evaluation"}
MAY_IMPORT["quickstart"] = {"whole_file", "evaluation", "trainers", "public names"}
MAY_IMPORT["frontier"] = {*MAY_IMPORT, "version"} - {"report"}
MAY_IMPORT["cli"] = {*MAY_IMPORT, "version", "public names"}


def layer_of(module: str) -> str:
    """`trl_dpo_ext.data.checks` is of the layer `data`."""
    return (module.split(".") + ["package"])[1]


def imported_names(source: str, package: str) -> list[str]:
    """Full names of what a module of `package` imports, in functions too, `TYPE_CHECKING` blocks left out."""
    tree = ast.parse(source)
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def imports(module: str) -> list[str]:
    path = MODULES[module]
    return imported_names(path.read_text(), module if path.name == "__init__.py" else module.rpartition(".")[0])


def layers_imported(module: str) -> set[str]:
    """Layers of the package that a module imports, its own left out."""
    layers = set()
    for name in imports(module):
        if name.split(".")[0] != "trl_dpo_ext":
            continue
        if name in ("trl_dpo_ext", "trl_dpo_ext.__version__"):
            layers.add("version")  # `trl_dpo_ext` itself, which imports nothing
        elif name.split(".")[1] in trl_dpo_ext.__all__:
            layers.add("public names")
        else:
            layers.add(layer_of(name))
    return layers - {layer_of(module)}


def test_arrows_point_one_way():
    within = {module: layers_imported(module) for module in MODULES if module != "trl_dpo_ext"}
    assert {name: to for name, to in within.items() if not to <= MAY_IMPORT[layer_of(name)]} == {}
    assert imports("trl_dpo_ext") == ["typing.TYPE_CHECKING", "trl_dpo_ext.lazy_names.lazy_names"]


def test_the_reader_of_imports():
    source = """
import os.path
from typing import TYPE_CHECKING
from ..data.checks import check_columns, preference_problem
from . import other
if TYPE_CHECKING:
    from left.out import Name
def late():
    from trl_dpo_ext.cli import main
"""
    assert imported_names(source, "trl_dpo_ext.trainers") == [
        "os.path",
        "typing.TYPE_CHECKING",
        "trl_dpo_ext.data.checks.check_columns",
        "trl_dpo_ext.data.checks.preference_problem",
        "trl_dpo_ext.trainers.other",
        "trl_dpo_ext.cli.main",
    ]


def test_pure_layers_need_nothing_but_torch():
    pure = [module for module in MODULES if layer_of(module) in PURE]
    outside = {name.split(".")[0] for module in pure for name in imports(module)} - sys.stdlib_module_names
    assert outside == {"torch", "trl_dpo_ext"}


def _is_exported_by_trl(name: str) -> bool:
    """`trl.DPOConfig` is, `trl.trainer.utils.pad` is not; private names of any package are not."""
    import trl

    parts = name.split(".")
    if any(part.startswith("_") and not part.startswith("__") for part in parts):
        return False
    return parts[0] != "trl" or len(parts) == 2 and hasattr(trl, parts[1])


def test_only_compat_imports_what_trl_does_not_export():
    imported = [(module, name) for module in MODULES if module != "trl_dpo_ext.compat" for name in imports(module)]
    from_outside = [(module, name) for module, name in imported if name.split(".")[0] != "trl_dpo_ext"]
    assert [pair for pair in from_outside if not _is_exported_by_trl(pair[1])] == []


def test_nothing_imports_the_command_line():
    assert [name for name in MODULES if layer_of(name) != "cli" and "cli" in layers_imported(name)] == []


def test_modules_are_short():
    lines = {module: path.read_text().count("\n") for module, path in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > 400} == {}


def test_every_public_name_exists():
    for module in (name for name in MODULES if not name.endswith("__main__")):
        for name in getattr(import_module(module), "__all__", []):
            assert getattr(import_module(module), name) is not None, f"{module}.{name}"


def test_modules_with_public_functions_say_so():
    for module, path in MODULES.items():
        if path.name.startswith("_"):
            continue
        public = {
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        }
        assert public <= set(getattr(import_module(module), "__all__", [])), module


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after a statement in a fresh interpreter."""
    script = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


def test_importing_the_pure_layers_loads_neither_trl_nor_transformers():
    loaded = loaded_by("import trl_dpo_ext, trl_dpo_ext.objectives, trl_dpo_ext.rewards, trl_dpo_ext.theory")
    assert "torch" in loaded
    assert loaded & {"trl", "transformers", "accelerate", "datasets", "peft"} == set()


def test_importing_the_package_and_its_command_line_loads_not_even_torch():
    assert "torch" not in loaded_by("import trl_dpo_ext; import trl_dpo_ext.cli; dir(trl_dpo_ext)")


def test_public_names_resolve_lazily():
    for name in trl_dpo_ext.__all__:
        assert getattr(trl_dpo_ext, name).__name__ == name
        assert name in dir(trl_dpo_ext)
    with pytest.raises(AttributeError, match="module 'trl_dpo_ext' has no attribute 'DPOPapertrainer'"):
        trl_dpo_ext.DPOPapertrainer  # noqa: B018
