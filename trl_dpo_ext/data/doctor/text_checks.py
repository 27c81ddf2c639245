"""Checks of plain text and message contents: special tokens, white space at the border, implicit prompts."""

import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.doctor.findings import NOTE, WARNING, Check, Finding, TextCheck
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow, text_of
from trl_dpo_ext.data.prompts import split_prompt


__all__ = [
    "BosTwice",
    "EosInText",
    "FirstWhitespaceDiffers",
    "FirstWhitespaceMixed",
    "ImplicitPrompt",
    "PromptInSomeAnswers",
    "PromptSplitInWord",
    "SpecialTokenInPrompt",
    "SpecialTokenInText",
    "TurnSplitInAnswers",
    "WordsRunTogether",
]

_BY_CHANCE = 8  # an answer may start with this many characters of its prompt without repeating it
_AROUND = 12  # characters that an example shows on each side


class PromptInSomeAnswers(TextCheck):
    name = "prompt-in-some-answers"
    severity = WARNING
    meaning = "All answers of the row start with its prompt, unlike in other rows, so it is trained on twice."
    fix = "Remove the prompt from these answers with `dataset.map`. Training removes it only if all rows repeat it."

    def found(self, row: PreparedRow) -> str | None:
        prompt = row.prompt
        if len(prompt) < _BY_CHANCE or "prompt" not in row.raw:
            return None
        return repr(prompt[:_AROUND]) if all(text.startswith(prompt) for text in row.completions) else None


class EosInText(Check):
    name = "eos-in-text"
    severity = WARNING
    meaning = "The text of an answer contains an EOS token before its end. The policy learns to continue after it."
    fix = "Remove it from the text. Training appends the EOS to answers that do not end with it."

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.eos = tokenizer.eos_token

    def found(self, row: PreparedRow) -> str | None:
        if self.eos is None or row.prompt is None:
            return None
        for completion in row.completions:
            text = text_of(completion)
            place = text.find(self.eos)
            # The template writes the EOS of a message, so another one at the end of the text is too many
            if place >= 0 and not (row.is_text and place + len(self.eos) == len(text)):
                return repr(_around(text, place))
        return None


class SpecialTokenInText(Check):
    name = "special-token-in-text"
    severity = WARNING
    meaning = "The text of an answer or a message contains a special token, which becomes a control token."
    fix = "Remove it, or use messages for conversations and let the chat template write control tokens."

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.special, self.but_eos = _pattern(tokenizer), _pattern(tokenizer, without_eos=True)

    def found(self, row: PreparedRow) -> str | None:
        # The EOS of answers is checked by `EosInText`
        found = _first_match(self.but_eos, row.completions)
        return _first_match(self.special, [row.prompt]) if found is None and row.is_chat else found


class SpecialTokenInPrompt(TextCheck):
    name = "special-token-in-prompt"
    severity = NOTE
    meaning = "A plain-text prompt contains special tokens. This is right if a chat template was applied by hand."
    fix = "If the tokenizer has a chat template, use messages for conversations. The template also ends the answers."

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.special = _pattern(tokenizer)

    def found(self, row: PreparedRow) -> str | None:
        return _first_match(self.special, [row.prompt])


class BosTwice(TextCheck):
    name = "bos-twice"
    severity = WARNING
    meaning = "A prompt starts with the BOS token, which the tokenizer adds a second time."
    fix = "Remove it from the text of the prompt."

    def __init__(self, leading_ids: list[int]) -> None:
        super().__init__()
        self.leading_ids = leading_ids

    def found(self, row: PreparedRow) -> str | None:
        size = len(self.leading_ids)
        twice = size and row.prompt_ids[: 2 * size] == self.leading_ids * 2
        return repr(row.prompt[: 2 * _AROUND]) if twice else None


class WordsRunTogether(TextCheck):
    name = "no-space-before-answer"
    severity = WARNING
    meaning = "A prompt ends with a word or punctuation, and an answer starts with a word without a space before it."
    fix = "Start answers with a space (or a line break), as the model will write them after the prompt."

    def found(self, row: PreparedRow) -> str | None:
        if "prompt" not in row.raw:
            return None
        return next((_border(row, text) for text in row.completions if _run_together(row.prompt, text)), None)


class FirstWhitespaceDiffers(TextCheck):
    name = "first-space-tells-answers-apart"
    severity = WARNING
    meaning = "Some answers of a prompt start with white space and some do not, which reveals the order."
    fix = "Start all answers of a prompt in the same way."

    def found(self, row: PreparedRow) -> str | None:
        if len({text[:1].isspace() for text in row.completions}) > 1:
            return " | ".join(repr(text[:_AROUND]) for text in row.completions[:4])
        return None


class FirstWhitespaceMixed(TextCheck):
    name = "first-space-mixed"
    severity = NOTE
    meaning = "In these rows (the minority), the preferred answer begins with white space where others do not."
    fix = "Start all answers in the same way."

    def __init__(self) -> None:
        super().__init__()
        self.without = self.new_finding()
        self.without.meaning = self.meaning.replace("begins with", "begins without").replace("do not", "do")

    def found(self, row: PreparedRow) -> str | None:
        if row.completions[0][:1].isspace():
            return _border(row, row.completions[0])
        self.without.add(row.index, _border(row, row.completions[0]))
        return None

    def findings(self) -> list[Finding]:
        fewer = min(self.finding, self.without, key=lambda finding: finding.count)
        return [fewer] if fewer.count else []


class ImplicitPrompt(TextCheck):
    name = "implicit-prompt"
    severity = NOTE
    meaning = (
        "There is no column `prompt`. The common start of the answers is used instead. In the format of "
        "`Anthropic/hh-rlhf`, it ends at the last turn of the assistant."
    )
    fix = "Add a column `prompt` if the prompt in this example does not end where you expect."

    def found(self, row: PreparedRow) -> str | None:
        return repr(row.prompt[-2 * _AROUND :]) if "prompt" not in row.raw else None


class PromptSplitInWord(TextCheck):
    name = "prompt-split-in-word"
    severity = WARNING
    meaning = "There is no column `prompt`, and the common start of the answers ends inside a word."
    fix = "Add a column `prompt` and remove the prompt from the answers."

    def found(self, row: PreparedRow) -> str | None:
        if "prompt" in row.raw or not row.prompt[-1:].isalnum():
            return None
        return next((_border(row, text) for text in row.completions if text[:1].isalnum()), None)


class TurnSplitInAnswers(TextCheck):
    name = "hh-prompt-split-in-answers"
    severity = WARNING
    meaning = (
        "Text in the format of `Anthropic/hh-rlhf` has no column `prompt`. `tokenization='joint'` splits it like TRL, "
        "so answers lose the words at their start that they have in common."
    )
    fix = "Use `tokenization='separate'`, or split off the prompts before (`trl_dpo_ext.data.prompts`)."

    def found(self, row: PreparedRow) -> str | None:
        if "prompt" in row.raw or "chosen" not in row.raw:
            return None
        lost = row.prompt[len(split_prompt(dict(row.raw))["prompt"]) :]
        return repr(lost) if lost else None


def _pattern(tokenizer: PreTrainedTokenizerBase, without_eos: bool = False) -> re.Pattern[str] | None:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = added.union(map(str, tokenizer.all_special_tokens)) - ({tokenizer.eos_token} if without_eos else set())
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def _first_match(pattern: re.Pattern[str] | None, values: list[Any]) -> str | None:
    if pattern is None:
        return None
    search: Callable[[str], re.Match[str] | None] = pattern.search
    for value in values:
        text = text_of(value)
        if match := search(text):
            return repr(_around(text, match.start(), match.end()))
    return None


def _around(text: str, start: int, end: int | None = None) -> str:
    return text[max(0, start - _AROUND) : (start if end is None else end) + _AROUND]


def _border(row: PreparedRow, completion: str) -> str:
    return f"{row.prompt[-_AROUND:]!r} + {completion[:_AROUND]!r}"


def _run_together(prompt: str, completion: str) -> bool:
    # Only for scripts that separate words by spaces
    before, after = prompt[-1:], completion[:1]
    return before.isascii() and (before.isalnum() or before in ".,;:!?)") and after.isascii() and after.isalnum()
