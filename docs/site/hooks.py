"""Pages that are made when the site is built: those of the repository, the command line, and the API reference."""

import importlib
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File


sys.path.insert(0, str(Path(__file__).parent))

from command_line import command_line_page  # noqa: E402
from public_names import PUBLIC_MODULES, all_public_names, public_names  # noqa: E402


ROOT = Path(__file__).parents[2]

# Files of the repository and their names on the site
FROM_REPOSITORY = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "recipes/README.md": "recipes.md",
    "benchmarks/README.md": "benchmarks.md",
    "recipes/frontier/results/synthetic.png": "images/frontier.png",
}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def on_files(files, config):
    """Adds the pages."""
    for source, page in FROM_REPOSITORY.items():
        content = (ROOT / source).read_bytes()
        if page.endswith(".md"):
            content = _LINK.sub(_link_on_site, content.decode())
        files.append(File.generated(config, page, content=content))
    pages = {
        "command_line.md": command_line_page(),
        **{f"api/{module.rpartition('.')[2]}.md": _api_page(module) for module in PUBLIC_MODULES},
    }
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, **_):
    """Leaves out the names of snippets, which are for tests."""
    return re.sub(r"^<!-- snippet: .* -->\n", "", markdown, flags=re.MULTILINE)


def _link_on_site(link: re.Match[str]) -> str:
    target = link[1]
    return f"]({FROM_REPOSITORY.get(target, target.removeprefix('docs/'))}"


def _api_page(module: str) -> str:
    entries = "\n".join(_entry(name) for name in public_names(module))
    return (
        f"# {module}\n\n::: {module}\n    options:\n      members: false\n      show_root_heading: false\n\n{entries}"
    )


def _entry(name: str) -> str:
    """Entry of a public name. A class shows what it inherits from bases that have no entry of their own."""
    module, _, short = name.rpartition(".")
    bases = getattr(getattr(importlib.import_module(module), short), "__mro__", ())[1:]
    inherited = not any(base.__name__ in all_public_names() for base in bases)
    return f"::: {name}\n    options:\n      inherited_members: {str(inherited).lower()}\n"
