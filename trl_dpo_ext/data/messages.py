"""Checks of text, messages and arguments of a chat template. Errors name the row and the column."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


__all__ = ["check_text", "is_empty", "template_arguments", "text_of"]

# Arguments of `apply_chat_template` that preparation sets, or that change what it returns, and the names under which
# a template gets the messages
_RESERVED = {
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    "messages",
    "conversations",
} - {"chat_template", "documents", "sanitize_control_tokens", "tools"}

_MESSAGES = "Expected text, or a list of messages with `role` and `content`."


def check_text(value: Any, name: str, where: str, hint: str = "") -> None:
    """
    Checks that a value is text, or a list of messages with `role` and `content` (or `tool_calls`).

    Args:
        value (`Any`):
            Prompt or answer.
        name (`str`):
            Its column, for the message.
        where (`str`):
            Its row, for the message.
        hint (`str`, *optional*):
            What the user may have intended with another kind of list.

    Raises:
        ValueError: If it is something else.
    """
    if value is None:
        raise ValueError(f"`{name}` in {where} is None. Fill it in, or drop such rows with `dataset.filter`.")
    if isinstance(value, str):
        _check_characters(value, name, where)
        return
    if isinstance(value, Mapping) and {"from", "value"} <= value.keys():
        raise ValueError(f"`{name}` in {where} is a message of the ShareGPT format. {_from_value(name)}")
    if not isinstance(value, list):
        raise ValueError(
            f"`{name}` in {where} is of type {type(value).__name__}. Expected text, or a list of messages."
        )
    for place, message in enumerate(value):
        if not (isinstance(message, Mapping) and "role" in message):
            if isinstance(message, Mapping) and {"from", "value"} <= message.keys():
                raise ValueError(f"`{name}` in {where} holds messages of the ShareGPT format. {_from_value(name)}")
            found = f"keys {sorted(map(str, message))}" if isinstance(message, Mapping) else type(message).__name__
            raise ValueError(f"`{name}` in {where} is a list with an entry of {found}. {_MESSAGES}{hint}")
        _check_message(message, name, place, where)


def is_empty(answer: str | Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer has no text and calls no tool."""
    if isinstance(answer, str):
        return not answer
    return not any(_says_something(message) for message in answer)


def text_of(value: str | Sequence[Mapping[str, Any]]) -> str:
    """Plain text, or the text of all messages."""
    return value if isinstance(value, str) else "\n".join(map(_content_text, value))


def template_arguments(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """
    Arguments of the chat template for a row: its `tools` and its `chat_template_kwargs`.

    Args:
        row (`Mapping`):
            Row of messages.
        where (`str`):
            Its name, for messages.

    Raises:
        ValueError: If `tools` is not a list of schemas (or its JSON text), or `chat_template_kwargs` is not a dict or
            contains an argument that preparation sets itself.
    """
    kwargs = row.get("chat_template_kwargs")
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise ValueError(
            f"`chat_template_kwargs` in {where} is of type {type(kwargs).__name__}. Expected a dict of the chat "
            "template's own variables, or None."
        )
    if taken := sorted(_RESERVED.intersection(kwargs)):
        raise ValueError(
            f"`chat_template_kwargs` in {where} sets `{taken[0]}`, which preparation sets itself. Leave it out."
        )
    return {"tools": _tools(row.get("tools"), where), **kwargs}


def _check_message(message: Mapping[str, Any], name: str, place: int, where: str) -> None:
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    at = f"{name}[{place}]"
    if not isinstance(role, str) or not role:
        raise ValueError(
            f"`{at}.role` in {where} is {role!r}. Expected `user`, `assistant` or another role of the chat template."
        )
    if content is None and not calls:
        raise ValueError(
            f"`{name}` in {where} has a message without `content` (keys {sorted(map(str, message))}). Give every "
            "message its text, or its `tool_calls`."
        )
    if isinstance(content, str):
        _check_characters(content, f"{at}.content", where)
    elif content is not None:
        _check_parts(content, f"{at}.content", where)
    if calls is not None:
        _check_entries(calls, f"{at}.tool_calls", where, "calls, each with a `function` that has a `name`")


def _check_parts(content: Any, at: str, where: str) -> None:
    if not isinstance(content, list):
        raise ValueError(
            f"`{at}` in {where} is of type {type(content).__name__}. Expected text, or a list of parts with `type`."
        )
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind == "text" and not isinstance(text, str):
            raise ValueError(
                f"`{at}[{number}]` in {where} is {_short(part)}. Expected a part with `type`, of type `text` with its "
                "`text`."
            )
        if isinstance(text, str):
            _check_characters(text, f"{at}[{number}].text", where)


def _check_entries(entries: Any, at: str, where: str, expected: str, *, callables: bool = False) -> None:
    """Checks a list of tool calls or of tools: each has a name, of its own or of its `function`."""
    if not isinstance(entries, list):
        raise ValueError(f"`{at}` in {where} is of type {type(entries).__name__}. Expected a list of {expected}.")
    for number, entry in enumerate(entries):
        if callables and callable(entry):
            continue
        function = entry.get("function") if isinstance(entry, Mapping) else None
        named = entry if function is None else function
        if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
            raise ValueError(f"`{at}[{number}]` in {where} is {_short(entry)}. Expected {expected}.")


def _tools(tools: Any, where: str) -> Any:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(
                f"`tools` in {where} is text and not JSON: {error}. Give a list of JSON schemas, or its JSON text."
            ) from error
    if tools is not None:
        _check_entries(tools, "tools", where, "JSON schemas, each with a `function` that has a `name`", callables=True)
    return tools


def _check_characters(text: str, name: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` in {where} has half of a surrogate pair at character {error.start}, which is no text. Remove "
            "it, or decode the file again."
        ) from error


def _says_something(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return bool(_content_text(message) or message.get("tool_calls") or any(part["type"] != "text" for part in parts))


def _content_text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _from_value(name: str) -> str:
    return (
        f"Make `{name}` a list of messages with `role` (`user` or `assistant`) in place of `from` and `content` in "
        "place of `value`, with `dataset.map`."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
