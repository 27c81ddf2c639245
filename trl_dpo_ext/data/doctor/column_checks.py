"""Checks of columns that training does not read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trl_dpo_ext.batches import RANKING_REF_LOGPS_COLUMN, REF_LOGPS_COLUMNS
from trl_dpo_ext.data.checks import PREFERENCE_COLUMNS, TOKENIZED_COLUMNS
from trl_dpo_ext.data.doctor.findings import NOTE, WARNING, Check, Finding
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow


__all__ = ["UnreadColumns", "columns_read"]

_CHAT_COLUMNS = ("tools", "chat_template_kwargs")

# A column with one of these words in its name probably belongs to the prompt ...
_OF_PROMPTS = set(
    "system sys instruction instructions input inputs context contexts history question query conversation "
    "conversations dialogue dialog document documents passage passages persona knowledge background turns "
    "problem task scenario preamble".split()
)
# ... unless the name also has one of these words
_ABOUT_PROMPTS = set(
    "id ids idx index hash model models score scores rating ratings rank source type types kind name category "
    "categories length len num count tokens lang language url date time label labels topic topics domain split "
    "difficulty license origin output outputs response responses".split()
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_SHOWN = 40  # characters of an example
_COMPARED = 200  # characters of a text that are searched in the prompt
_NO_TEXT = {"role", "from", "name", "id", "type", "tool_call_id"}  # keys of messages without text

# Columns that other trainers or services read
_OF_OTHERS = {
    "functions": "Rename it `tools` (a list of schemas, or its JSON text).",
    "margin": "DPO has no margin. Remove the column, or drop rows with a small margin.",
    "weight": "All rows have the same weight. Remove the column, or drop or repeat rows.",
    "weights": "All rows have the same weight. Remove the column, or drop or repeat rows.",
}


def columns_read(columns: Sequence[str], is_chat: bool) -> list[str]:
    """
    Returns the columns of a dataset that training reads, in order.

    Args:
        columns (`Sequence[str]`): Columns of the dataset.
        is_chat (`bool`): Whether the rows are messages. Only chat templates use tools and arguments.

    Example:
    ```python
    >>> from trl_dpo_ext.data.doctor.column_checks import columns_read

    >>> columns_read(["id", "prompt", "chosen", "rejected", "tools"], is_chat=False)
    ['prompt', 'chosen', 'rejected']

    ```
    """
    rankings = {"completions", "completion_ids"}.intersection(columns)
    order = {"ranks", "scores", RANKING_REF_LOGPS_COLUMN} if rankings else set(REF_LOGPS_COLUMNS)
    if {"prompt_ids", "completion_ids"} <= set(columns) or set(TOKENIZED_COLUMNS) <= set(columns):
        read = {"prompt_ids", "completion_ids"} if rankings else set(TOKENIZED_COLUMNS)
    else:
        read = {"prompt", "completions"} if rankings else set(PREFERENCE_COLUMNS)
        read |= set(_CHAT_COLUMNS) if is_chat else set()
    return [name for name in columns if name in read | order]


class UnreadColumns(Check):
    """Searches for text that training does not read. Each column gives a finding."""

    name = "unread-column"
    severity = WARNING
    meaning = "Training does not read the column `{}`, and the prompts do not contain its text."
    fix = (
        "Add the text to `prompt` with `dataset.map` (a system message becomes the first message of the prompt), or "
        "remove the column."
    )

    def __init__(self, columns: Sequence[str]) -> None:
        super().__init__()
        unread = set(columns) - set(columns_read(columns, is_chat=True))
        self.prompts = {name: self._of(name) for name in columns if name in unread and _belongs_to_prompt(name)}
        self.chat_only = {
            name: self._of(
                name,
                "Training reads the column `{}` only for conversations, but these rows are plain text.",
                "Convert the rows to messages, add the text to the prompt, or remove the column.",
            )
            for name in _CHAT_COLUMNS
            if name in columns
        }
        self.others = {
            name: self._of(name, "Training does not read the column `{}`.", _OF_OTHERS[name])
            for name in columns
            if name in unread and name in _OF_OTHERS
        }
        for name in ("margin", "weight", "weights"):
            if name in self.others:
                self.others[name].severity = NOTE

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        for row in rows:
            if row.is_text:
                self._add(self.chat_only, row)
            self._add(self.others, row)
            if self.prompts and row.prompt is not None:
                self._look_for_text(row)

    def findings(self) -> list[Finding]:
        found = [*self.prompts.values(), *self.chat_only.values(), *self.others.values()]
        return sorted((finding for finding in found if finding.count), key=lambda finding: -finding.count)

    def _of(self, column: str, meaning: str = "", fix: str = "") -> Finding:
        return Finding(self.name, self.severity, (meaning or self.meaning).format(column), fix or self.fix)

    def _add(self, findings: Mapping[str, Finding], row: PreparedRow) -> None:
        for name, finding in findings.items():
            value = row.raw.get(name)
            if value is not None and not (isinstance(value, (str, list, dict)) and not value):
                finding.add(row.index, repr(value)[:_SHOWN])

    def _look_for_text(self, row: PreparedRow) -> None:
        seen: str | None = None
        for name, finding in self.prompts.items():
            for text in _texts_in(row.raw.get(name)):
                seen = _normal(row.whole_text) if seen is None else seen
                if text and text[:_COMPARED] not in seen:
                    finding.add(row.index, repr(text[:_SHOWN]))
                    break


def _belongs_to_prompt(column: str) -> bool:
    words = {word.lower() for word in _WORD.findall(column)}
    return bool(words & _OF_PROMPTS) and not words & _ABOUT_PROMPTS


def _texts_in(value: Any) -> Iterator[str]:
    # Texts in a text, a list of texts, messages or turns
    if isinstance(value, str):
        yield _normal(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _NO_TEXT:
                yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)


def _normal(text: str) -> str:
    return " ".join(text.split())
