"""The pages that users read: README and `docs/`, with their snippets by name."""

import re
from pathlib import Path

import trl_dpo_ext


ROOT = Path(__file__).parents[2]
PACKAGE = Path(trl_dpo_ext.__file__).parent  # not in the repository if a wheel is tested
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}

_PYTHON = re.compile(r"(?:^<!-- snippet: ([\w-]+) -->\n)?^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)

# (page, name or None, code)
BLOCKS = [(page, *found.groups()) for page, text in PAGES.items() for found in _PYTHON.finditer(text)]
SNIPPETS = {name: code for _, name, code in BLOCKS}
