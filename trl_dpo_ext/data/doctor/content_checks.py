"""Checks of the contents of texts and messages: other formats, placeholders, escapes, broken characters."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.doctor.findings import NOTE, WARNING, Check, Finding, TextCheck
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow


__all__ = [
    "BrokenCharacters",
    "EscapesAsText",
    "ForeignMarkers",
    "GenerationPromptMissing",
    "MarkupEscapes",
    "MessagesAsText",
    "Placeholders",
    "QuotedTexts",
    "RolePrefix",
    "UnclosedThinking",
    "UnknownTokens",
]

_AROUND = 12  # characters that an example shows on each side


class MessagesAsText(Check):
    name = "messages-as-text"
    severity = WARNING
    meaning = "A text is a list of messages (or of texts) in JSON or Python notation. Training reads it as plain text."
    fix = "Parse each such column: `dataset.map(lambda row: {'chosen': json.loads(row['chosen'])})`."

    def found(self, row: PreparedRow) -> str | None:
        prompt = [text for place, text in row.texts if place == "prompt"]
        answers = [text for place, text in row.texts if place != "prompt"]
        for texts in (prompt, answers):
            if texts and all(text.lstrip()[:1] in ("[", "{") and _is_written_list(text) for text in texts):
                return repr(texts[0][:40])
        return None


class BrokenCharacters(Check):
    name = "broken-characters"
    severity = WARNING
    meaning = "A text contains replacement or control characters, or characters read with the wrong encoding."
    fix = "Read the source file with its own encoding (usually UTF-8), or drop such rows."

    # UTF-8 read as Latin-1 or Windows-1252, in European, Cyrillic and East Asian scripts
    pattern = re.compile(
        "[\x00-\x08\ufffd\ufeff\x80-\x84\x86-\x9f]|â€|[ÃÂ][\xa0-\xaa\xac-\xba\xbc-\xbf€‚ƒ„†‡ˆ‰Š‹ŒŽ˜™š›œžŸ]"
        "|(?:[ÐÑ][\xa0-\xbf]){2}"
    )

    def found(self, row: PreparedRow) -> str | None:
        if row.whole_text.isascii() and "\0" not in row.whole_text:
            return None
        return _first_match(self.pattern, row)


class EscapesAsText(Check):
    name = "escapes-as-text"
    severity = WARNING
    meaning = r"A text contains `\n` or `\u....` as literal characters and no line breaks, so it is still encoded."
    fix = "Decode it before training, for example with `json.loads`."

    # Not LaTeX (`\nu`), a path (`C:\New`) or a quoted line of code
    pattern = re.compile(r"(?<![A-Za-z]:)(?:\\n(?=\\n|\\t|[A-Z0-9*#\-\s]|$)|\\u[0-9a-fA-F]{4})")
    quoted = re.compile(r"\"[^\"]*\"|'[^']*'|`[^`]*`")

    def found(self, row: PreparedRow) -> str | None:
        if "\\" not in row.whole_text:
            return None
        for _, text in row.texts:
            if "\\" in text and "\n" not in text:
                bare = self.quoted.sub("", text) if not _is_quoted(text) else text
                if match := self.pattern.search(bare):
                    return repr(_around(bare, match.start(), match.end()))
        return None


class Placeholders(Check):
    name = "placeholder-text"
    severity = WARNING
    meaning = "A prompt, its first line or an answer is a placeholder for a missing value, or only white space."
    fix = "Drop such rows with `dataset.filter`, or insert the missing values."

    words = frozenset(
        "none nan null nil n/a undefined [removed] [deleted] [redacted] [empty] <na> #n/a todo tbd lorem ipsum".split()
    )
    starts = ("None\n", "nan\n", "NaN\n", "null\n", "NULL\n")
    filled_in = re.compile(r"(?m)^[A-Z][\w ]{0,30}: (?:None|nan|NaN)$")  # a format string with a missing value

    def found(self, row: PreparedRow) -> str | None:
        for place, text in row.texts:
            if len(text) < 24 and text and (not text.strip() or text.strip().rstrip(".").casefold() in self.words):
                return f"{place}: {text!r}"
        for place, text in row.texts:
            if place == "prompt":
                if text.startswith(self.starts):
                    return f"{place}: {text[:24]!r}"
                if (": None\n" in text or ": nan\n" in text or ": NaN\n" in text) and (
                    match := self.filled_in.search(text)
                ):
                    return f"{place}: {match[0]!r}"
        return None


class RolePrefix(Check):
    name = "answer-begins-with-role"
    severity = WARNING
    meaning = "An answer starts with the name of its role, which the prompt or the chat template already contains."
    fix = "Remove the prefix from all answers."

    pattern = re.compile(
        r"\s*(?:#+ *(?:assistant|response)\b:?|\**(?:ai assistant|assistant|ai|bot|chatbot|chatgpt|gpt)\**\s*:"
        r"|<\|(?:im_start\|>)?assistant(?:\|>)?)",
        re.IGNORECASE,
    )
    speaker = re.compile(r"(?:human|user|question|instruction)\s*:|### ", re.IGNORECASE)
    ends_open = re.compile(r"(?:assistant|ai|bot|chatbot|gpt|response)\**\s*:?\s*(?:\|>)?\s*$", re.IGNORECASE)

    def found(self, row: PreparedRow) -> str | None:
        for place, text in row.texts:
            if place != "prompt" and (match := self.pattern.match(text)):
                # A transcript whose answers start with the speaker is consistent
                written_out = row.is_text and self.speaker.search(row.prompt) and not self.ends_open.search(row.prompt)
                return None if written_out else repr(text[: match.end() + _AROUND])
        return None


class QuotedTexts(Check):
    name = "quoted-text"
    severity = WARNING
    meaning = "A whole prompt or answer is in quotes."
    fix = "Remove the quotes if they come from a CSV or JSON file."

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def found(self, row: PreparedRow) -> str | None:
        self.rows += 1
        return next((repr(text[:40]) for _, text in row.texts if _is_quoted(text)), None)

    def findings(self) -> list[Finding]:
        if 2 * self.finding.count < self.rows:  # a few texts may be quotations
            self.finding.severity = NOTE
        return super().findings()


class ForeignMarkers(Check):
    name = "foreign-template-marker"
    severity = WARNING
    meaning = "A text contains a chat template marker that is not a token of this tokenizer, so it is plain text."
    fix = "Remove it and use messages for conversations, or use the tokenizer that the text was written for."

    pattern = re.compile(
        r"<\|[\w-]{2,30}\|>|<｜[^｜\s]{2,30}｜>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|(?:</s>|<eos>)(?=\s*(?:<s>|$))"
    )

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        # Some templates (Zephyr's) write their markers as plain text
        self.own = {*tokenizer.get_added_vocab(), *self.pattern.findall(str(tokenizer.chat_template or ""))}

    def found(self, row: PreparedRow) -> str | None:
        if "<" not in row.whole_text and "INST]" not in row.whole_text:
            return None
        for _, text in row.texts:
            if "<" in text or "INST]" in text:
                for match in self.pattern.finditer(text):
                    if match[0] not in self.own:
                        return repr(_around(text, match.start(), match.end()))
        return None


class GenerationPromptMissing(TextCheck):
    name = "generation-prompt-missing"
    severity = WARNING
    meaning = "A prompt was rendered with a chat template, but does not end with the start of the assistant's turn."
    fix = "Render prompts with `add_generation_prompt=True`, or use messages for conversations."

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.turn = _start_of_turn(tokenizer)
        special = set(map(str, tokenizer.all_special_tokens)) | set(tokenizer.get_added_vocab())
        self.marker = next((token for token in sorted(special, key=len)[::-1] if self.turn.startswith(token)), "")

    def found(self, row: PreparedRow) -> str | None:
        if not self.marker or self.marker not in row.prompt:
            return None
        last_turn = row.prompt[row.prompt.rfind(self.marker) :]
        return None if last_turn.startswith(self.turn) else repr(row.prompt[-2 * _AROUND :])


class UnclosedThinking(Check):
    name = "unclosed-think"
    severity = WARNING
    meaning = "An answer opens `<think>` without closing it, so its reasoning was truncated."
    fix = "Drop or complete such rows."

    def found(self, row: PreparedRow) -> str | None:
        if "<think>" not in row.whole_text:
            return None
        for place, text in row.texts:
            if place != "prompt" and text.rfind("<think>") > text.rfind("</think>"):
                return repr(text[-2 * _AROUND :])
        return None


class MarkupEscapes(Check):
    name = "markup-escapes"
    severity = NOTE
    meaning = "A text contains escapes of HTML or Markdown (`&amp;`, `\\_`), which the policy learns to write."
    fix = "If it comes from a web page, decode it with `html.unescape`."

    pattern = re.compile(r"&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,5}|#x[0-9a-fA-F]{2,4});|(?<=[a-z])\\_(?=[a-z])")

    def found(self, row: PreparedRow) -> str | None:
        if "&" not in row.whole_text and "\\_" not in row.whole_text:
            return None
        return _first_match(self.pattern, row)


class UnknownTokens(Check):
    name = "unknown-tokens"
    severity = WARNING
    meaning = "A part of the text has no tokens in this tokenizer and becomes its unknown token."
    fix = "Use a tokenizer that covers these characters, or drop such rows."

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        others = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}  # GPT-2's is its EOS
        self.unknown = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id

    def found(self, row: PreparedRow) -> str | None:
        if self.unknown is None or row.prompt is None:
            return None
        ids = [row.prompt_ids, *row.completion_ids]
        count = sum(tokens.count(self.unknown) for tokens in ids if self.unknown in tokens)
        return f"{count} of {sum(map(len, ids))} tokens" if count else None


def _is_written_list(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return False
    except RecursionError:
        return False
    values = value if isinstance(value, list) else [value]
    return bool(values) and (all(map(_is_message, values)) or (isinstance(value, list) and _are_texts(values)))


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ({"role", "content"} <= set(value) or {"from", "value"} <= set(value))


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_quoted(text: str) -> bool:
    text = text.strip()
    if len(text) < 3 or text[0] not in "\"'“" or text[-1] not in "\"'”":
        return False
    inner = text[1:-1].replace('\\"', "")
    return text[0] not in inner and text[-1] not in inner and (text[0] == "“") == (text[-1] == "”")


def _start_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    # Text that a generation prompt adds, stripped
    if not tokenizer.chat_template:
        return ""
    turn = [{"role": "user", "content": "a"}]
    try:
        without, whole = (
            str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=add))
            for add in (False, True)
        )
    except (TemplateError, TypeError, ValueError):  # a template for another kind of messages
        return ""
    return whole[len(without) :].strip() if whole.startswith(without) else ""


def _first_match(pattern: re.Pattern[str], row: PreparedRow) -> str | None:
    for _, text in row.texts:
        if match := pattern.search(text):
            return repr(_around(text, match.start(), match.end()))
    return None


def _around(text: str, start: int, end: int) -> str:
    return text[max(0, start - _AROUND) : end + _AROUND]
