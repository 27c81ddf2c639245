"""Checks of the roles in conversations and their order."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.doctor.findings import WARNING, ChatCheck, Check
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow


__all__ = [
    "AnswerEndsWithOther",
    "AnswerHoldsOtherTurns",
    "PromptEndsWithAssistant",
    "RolesDoNotAlternate",
    "UnknownRole",
]

# Start of a user's turn in dialogues written as plain text
_USER_TURNS = (
    "\n\nHuman:",
    "\nHuman:",
    "\nUser:",
    "\nUSER:",
    " USER:",
    "\n### Human:",
    "\n### User:",
    "\n### Instruction:",
    "<|user|>",
    "<|im_start|>user",
    "<start_of_turn>user",
    "[INST]",
)
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython"}


class RolesDoNotAlternate(ChatCheck):
    name = "roles-do-not-alternate"
    severity = WARNING
    meaning = "Two consecutive turns have the same role, or a system message follows the first turn."
    fix = "Merge such turns, or restore the missing turn between them. Some chat templates reject them."

    def found(self, row: PreparedRow) -> str | None:
        for completion in row.completions:
            roles = _roles([*row.prompt, *completion])
            if not _alternate(roles):
                return ", ".join(roles)
        return None


class AnswerEndsWithOther(ChatCheck):
    name = "answer-not-by-assistant"
    severity = WARNING
    meaning = "The last message of an answer does not have the role `assistant`, and the policy learns to write it."
    fix = "Use the role `assistant` for the messages of answers."

    def found(self, row: PreparedRow) -> str | None:
        last = (_roles(completion)[-1] for completion in row.completions)
        return next((role for role in last if role != "assistant"), None)


class AnswerHoldsOtherTurns(Check):
    name = "answer-holds-other-turns"
    severity = WARNING
    meaning = "An answer contains turns with other roles than `assistant`, and the policy learns to write them."
    fix = "Move all turns except the last one into the prompt, or drop such rows."

    def found(self, row: PreparedRow) -> str | None:
        if row.is_chat:
            turns = (_roles(completion) for completion in row.completions)
            return next((", ".join(roles) for roles in turns if set(roles) - {"assistant"}), None)
        if row.is_text:
            for marker in _USER_TURNS:
                # Only if the prompt is dialogue in the same format
                if marker.strip() in row.prompt:
                    for text in row.completions:
                        if (place := text.find(marker)) >= 0:
                            return repr(text[max(0, place - 12) : place + 24])
        return None


class UnknownRole(ChatCheck):
    name = "unknown-role"
    severity = WARNING
    meaning = "A message has a role that the chat template does not define, so the template writes it as a name."
    fix = "Rename roles to `system`, `user`, `assistant` and `tool`."

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.template = str(tokenizer.chat_template or "")

    def found(self, row: PreparedRow) -> str | None:
        for messages in (row.prompt, *row.completions):
            for role in _roles(messages):
                if role not in _ROLES and f"'{role}'" not in self.template and f'"{role}"' not in self.template:
                    return repr(role)
        return None


class PromptEndsWithAssistant(ChatCheck):
    name = "prompt-ends-with-assistant"
    severity = WARNING
    meaning = "A prompt ends with a turn of the assistant, and the chat template starts another one after it."
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
