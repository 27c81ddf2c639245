"""Checks of conversations: who speaks, and in which order."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl_dpo_ext.data.doctor.findings import WARNING, ChatCheck
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow


__all__ = ["AnswerEndsWithOther", "PromptEndsWithAssistant", "RolesDoNotAlternate"]


class RolesDoNotAlternate(ChatCheck):
    name = "roles-do-not-alternate"
    severity = WARNING
    meaning = "Two turns of one speaker follow each other, or a system message comes after the first turn."
    fix = "Join such turns, or restore what is missing between them. Some chat templates refuse them."

    def found(self, row: PreparedRow) -> str | None:
        for completion in row.completions:
            roles = _roles([*row.prompt, *completion])
            if not _alternate(roles):
                return ", ".join(roles)
        return None


class AnswerEndsWithOther(ChatCheck):
    name = "answer-not-by-assistant"
    severity = WARNING
    meaning = "The last message of an answer is not the assistant's, and the policy learns to write it."
    fix = "Give answers as messages of the role `assistant`."

    def found(self, row: PreparedRow) -> str | None:
        last = (_roles(completion)[-1] for completion in row.completions)
        return next((role for role in last if role != "assistant"), None)


class PromptEndsWithAssistant(ChatCheck):
    name = "prompt-ends-with-assistant"
    severity = WARNING
    meaning = "A prompt ends with a turn of the assistant, after which the chat template begins another one."
    fix = "Move that turn into the answers, or end prompts with a turn of the user."

    def found(self, row: PreparedRow) -> str | None:
        if row.prompt and row.prompt[-1]["role"] == "assistant":
            return ", ".join(_roles(row.prompt))
        return None


def _roles(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(message["role"]) for message in messages]


def _alternate(roles: Sequence[str]) -> bool:
    previous = ""
    for place, role in enumerate(roles):
        if role in ("system", "developer"):
            if place:
                return False
        elif role in ("user", "assistant") and role == previous:
            return False
        previous = role
    return True
