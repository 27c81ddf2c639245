"""Checks of the chat template: text that it drops, adds or moves, and the end of answers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.doctor.findings import NOTE, WARNING, ChatCheck, Finding
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow, text_of
from trl_dpo_ext.data.messages import template_arguments


__all__ = ["EndOfAnswer", "RenderedMessages", "without_nulls"]

_RENDERED = 8  # rows of one form that are rendered before the result is used for the others of this form
_SHOWN = 40  # characters of an example
_WORDS_OF_SYSTEM = 4  # minimum number of words before the first message that are not names of roles
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of the same field in transformers

_FINDINGS = {
    "template-drops-system": (
        WARNING,
        "The chat template drops the system message.",
        "Put its text before the first turn of the user, or use a template that supports system messages.",
    ),
    "template-drops-reasoning": (
        WARNING,
        "The chat template drops the reasoning of an answer (`<think>` or `reasoning_content`).",
        "Use a template that keeps the reasoning of the last turn, or remove it from the data.",
    ),
    "template-drops-text": (
        WARNING,
        "The chat template drops the text of a message.",
        "Use another template, give `content` in the form that the template expects (text or parts), or drop such "
        "rows.",
    ),
    "template-drops-tools": (
        WARNING,
        "The chat template drops tools or a tool call.",
        "Use a template that supports tools, or write them into the messages.",
    ),
    "tool-arguments-encoded-twice": (
        WARNING,
        "The arguments of a tool call are JSON text, which the chat template encodes a second time.",
        "Give `arguments` as a dictionary: `json.loads(call['function']['arguments'])`.",
    ),
    "nulls-in-tools": (
        WARNING,
        "The chat template writes `null`, or other text, for missing keys. Arrow adds them if keys differ by row.",
        "Give `tools` (and `arguments`) as JSON text, remove the nulls, or load JSON Lines with "
        "`load_dataset('json', ...)`, which does not add them.",
    ),
    "template-adds-to-answer": (
        WARNING,
        "The chat template adds text to an answer that is not in its message, and the policy learns to write it.",
        "If it belongs to the prompt (an empty `<think>`), pass the argument that moves it there (a column "
        "`chat_template_kwargs` with `enable_thinking: false`), or use another template.",
    ),
    "template-adds-system": (
        NOTE,
        "The chat template adds text before the first message.",
        "None needed if the model is used with the same template. Otherwise add a system message.",
    ),
    "template-moves-text": (
        NOTE,
        "The chat template moves a message to another place.",
        "None needed if the model is used with the same template.",
    ),
    "template-strips-text": (
        NOTE,
        "The chat template removes or changes white space at the ends of messages.",
        "None needed, unless white space matters in these texts.",
    ),
}


def without_nulls(value: Any) -> Any:
    """
    Returns a value without the entries of its dictionaries that are `None`.

    Example:
    ```python
    >>> from trl_dpo_ext.data.doctor.template_checks import without_nulls

    >>> without_nulls({"city": {"type": "string"}, "time": None})
    {'city': {'type': 'string'}}

    ```
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


class EndOfAnswer(ChatCheck):
    """Checks the last token of answers, apart from white space."""

    name = "no-end-of-answer"
    severity = WARNING
    meaning = "The chat template writes no EOS token or other end of turn after an answer. The policy never stops."
    fix = "Use a template that ends every turn of the assistant with the EOS token, including the last one."

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.ends = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        self.blank: dict[int, bool] = {}
        self.other = Finding(
            "other-end-of-answer",
            NOTE,
            "The chat template ends answers with another token than the tokenizer's EOS.",
            "None needed if `eos_token_id` in the model's generation config contains it. Otherwise sampling does not "
            "stop.",
        )

    def found(self, row: PreparedRow) -> str | None:
        last = [self._last(ids) for ids in row.completion_ids]
        if any(token not in self.ends for token in last):
            where = next(k for k, token in enumerate(last) if token not in self.ends)
            return repr(self.tokenizer.decode(row.completion_ids[where][-8:]))
        if any(token != self.tokenizer.eos_token_id for token in last):
            token = next(token for token in last if token != self.tokenizer.eos_token_id)
            eos = self.tokenizer.eos_token
            self.other.add(row.index, f"{self.tokenizer.convert_ids_to_tokens(token)!r}, the EOS is {eos!r}")
        return None

    def findings(self) -> list[Finding]:
        return [finding for finding in (self.finding, self.other) if finding.count]

    def _last(self, ids: Sequence[int]) -> int:
        for token in reversed(ids):
            if token not in self.blank:
                self.blank[token] = token not in self.ends and not str(self.tokenizer.decode([token])).strip()
            if not self.blank[token]:
                return token
        return ids[-1]


@dataclass
class _Form:
    """Rows of the same form, and the findings in the rendered ones."""

    rendered: int = 0
    found: dict[str, str] | None = None  # in all rendered rows, by the names of findings
    uniform: bool = True

    @property
    def is_known(self) -> bool:
        return self.uniform and self.rendered >= _RENDERED

    def add(self, found: dict[str, str]) -> None:
        self.uniform = self.uniform and (self.found is None or set(self.found) == set(found))
        self.found = found
        self.rendered += 1


class RenderedMessages(ChatCheck):
    """
    Compares messages with the text that the chat template writes.

    Rows have the same form if their roles, kinds of contents, tools and nulls agree. Only the first rows of each form
    are rendered. If they all give the same findings, these also count for the other rows of this form. Otherwise all
    rows are rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.by_name = {name: Finding(name, *texts) for name, texts in _FINDINGS.items()}
        self.forms: dict[Any, _Form] = {}
        added = sorted(map(str, tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        control = "|".join(re.escape(token) for token in added if token not in ("<think>", "</think>")) or "(?!)"
        # With the name of a turn or a channel between two control tokens
        self.control = re.compile(rf"(?:{control})(?:\w{{1,20}}(?={control}))?")

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        for row in rows:
            if not row.is_chat:
                continue
            form = self.forms.setdefault(_form_of(row), _Form())
            if not form.is_known:
                found: dict[str, str] = {}
                for name, example in self._compare(row):
                    found.setdefault(name, example)
                form.add(found)
            for name, example in (form.found or {}).items():
                self.by_name[name].add(row.index, example)

    def findings(self) -> list[Finding]:
        return [finding for finding in self.by_name.values() if finding.count]

    def _compare(self, row: PreparedRow) -> Iterator[tuple[str, str]]:
        arguments = template_arguments(row.raw, f"row {row.index}")
        prompt = self._render(row.prompt, arguments, add_generation_prompt=True)
        for completion in row.completions:
            messages = [*row.prompt, *completion]
            whole = self._render(messages, arguments)
            yield from _compare_messages(messages, len(row.prompt), whole)
            yield from self._additions(row.prompt, completion, prompt, whole)
            if (nulls := without_nulls([messages, arguments])) != [messages, arguments]:
                yield from self._effect_of_nulls(whole, *nulls)
        for tool in arguments["tools"] or []:
            name = _tool_name(tool)
            if name and name not in prompt:
                yield "template-drops-tools", repr(name)
        before = prompt[: prompt.find(text_of([row.prompt[0]]).strip())] if row.prompt else ""
        added = re.sub(r"<[^<>]*>", " ", self.control.sub(" ", before))
        if not arguments["tools"] and len(re.findall(r"[^\W\d_]{2,}", added)) >= _WORDS_OF_SYSTEM:
            yield "template-adds-system", repr(" ".join(added.split())[:_SHOWN])

    def _render(self, messages: Sequence[Any], arguments: Mapping[str, Any], **more: Any) -> str:
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments, **more))

    def _additions(
        self, prompt: Sequence[Any], completion: Sequence[Any], rendered_prompt: str, whole: str
    ) -> Iterator[tuple[str, str]]:
        first, last = completion[0], completion[-1]
        start, end = text_of([first]).strip(), text_of([last]).strip()
        if not whole.startswith(rendered_prompt):
            return  # reported by `BorderOfJointTokens`
        answer = self.control.sub("", whole[len(rendered_prompt) :])
        thinks = any(first.get(name) for name in _REASONING) or "<think>" in start or "</think>" in start
        if start and not thinks and start in answer:
            if (added := answer[: answer.find(start)]).strip():
                yield "template-adds-to-answer", repr(added[:_SHOWN])
        if end and not last.get("tool_calls") and end in answer:
            if (added := answer[answer.rfind(end) + len(end) :]).strip():
                yield "template-adds-to-answer", repr(added[-_SHOWN:])

    def _effect_of_nulls(self, whole: str, messages: Any, arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
        try:
            clean = self._render(messages, {"tools": None} | arguments)
        except (TemplateError, TypeError):  # the template needs them
            return
        if clean != whole:
            place = next((i for i, (a, b) in enumerate(zip(whole, clean, strict=False)) if a != b), len(clean))
            yield "nulls-in-tools", repr(whole[max(0, place - _SHOWN // 4) : place + _SHOWN])


def _compare_messages(messages: Sequence[Any], num_prompt: int, whole: str) -> Iterator[tuple[str, str]]:
    place = 0
    for number, message in enumerate(messages):
        is_answer = number >= num_prompt
        content = text_of([message])
        reasoning = next((message[name] for name in _REASONING if message.get(name)), "")
        text = content.strip()
        if "</think>" in text:
            reasoning, _, text = text.rpartition("</think>")
            reasoning, text = reasoning.replace("<think>", "").strip(), text.strip()
            content = text  # the template decides on white space around the reasoning
        if is_answer and isinstance(reasoning, str) and not _holds(whole, reasoning.strip()):
            yield "template-drops-reasoning", repr(reasoning.strip()[:_SHOWN])
        found = whole.find(text, place)
        if found >= 0:
            place = found + len(text)
            if content not in whole:
                yield "template-strips-text", f"message {number}: {content[-_SHOWN:]!r}"
        elif text in whole:
            yield "template-moves-text", f"message {number} ({message['role']})"
        elif " ".join(text.split()) in " ".join(whole.split()):
            yield "template-strips-text", f"message {number}: {content[:_SHOWN]!r}"
        elif not _holds(whole, text):
            is_system = message["role"] in ("system", "developer")
            name = "template-drops-system" if is_system else "template-drops-text"
            yield name, f"message {number} ({message['role']}): {text[:_SHOWN]!r}"
        for call in message.get("tool_calls") or []:
            yield from _compare_call(call, whole)


def _compare_call(call: Mapping[str, Any], whole: str) -> Iterator[tuple[str, str]]:
    function = call.get("function") or call
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(name, str) and name not in whole:
        yield "template-drops-tools", f"call of {name!r}"
    elif isinstance(arguments, str) and '"' in arguments and _encoded(arguments) in whole:
        yield "tool-arguments-encoded-twice", _encoded(arguments)[:_SHOWN]


def _holds(whole: str, text: str) -> bool:
    # As text, or encoded in JSON
    return text in whole or _encoded(text)[1:-1] in whole


def _encoded(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _tool_name(tool: Any) -> str:
    if isinstance(tool, Mapping):
        tool = tool.get("function") if isinstance(tool.get("function"), Mapping) else tool
        return str(tool.get("name") or "")
    return ""


def _form_of(row: PreparedRow) -> Any:
    def messages(value: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
        return tuple(map(_form_of_message, value))

    return (
        messages(row.prompt),
        tuple(map(messages, row.completions)),
        _keys_of(row.raw.get("tools")),
        repr(row.raw.get("chat_template_kwargs")),
    )


def _form_of_message(message: Mapping[str, Any]) -> tuple[Any, ...]:
    content = message.get("content")
    text = content if isinstance(content, str) else text_of([message])
    more = tuple((key, _keys_of(value)) for key, value in message.items() if key not in ("role", "content"))
    return (
        message["role"],
        type(content).__name__,
        bool(text),
        text[:1].isspace(),
        text[-1:].isspace(),
        "<think>" in text,
        "</think>" in text,
        "<tool_response>" in text,
        more,
    )


def _keys_of(value: Any) -> Any:
    # Everything that a template can distinguish: keys, nulls and types, but not values
    if isinstance(value, Mapping):
        return tuple((key, _keys_of(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return tuple(map(_keys_of, value))
    return type(value).__name__ if value or value is None else (type(value).__name__, "empty")
