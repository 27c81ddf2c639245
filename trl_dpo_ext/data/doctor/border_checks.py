"""Checks of the border between prompt and answer: whether separate and joint tokenization give the same tokens."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.doctor.findings import NOTE, WARNING, Check, Finding
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow
from trl_dpo_ext.data.messages import template_arguments


__all__ = ["BorderOfJointTokens", "BorderOfSeparateTokens"]

_WINDOW = 48  # characters on each side of the border; the border does not depend on tokens further away


class BorderOfSeparateTokens(Check):
    """Compares the tokens of prompt and preferred answer, tokenized separately, with those of their joint text."""

    name = "border-tokens-differ"
    severity = NOTE
    meaning = "Tokenized jointly, prompt and preferred answer have other tokens at the border than in training."
    fix = "None needed if the model will get the prompt on its own. Otherwise end prompts on a token border."

    def __init__(self, tokenizer: PreTrainedTokenizerBase, joint: bool) -> None:
        super().__init__()
        self.tokenizer, self.joint = tokenizer, joint
        self.other_text = Finding(
            "border-text-differs",
            WARNING,
            "Tokenized separately, prompt and answer decode to another text: the tokenizer adds or removes a space at "
            "the border.",
            "Use `tokenization='joint'`, or move the white space at the border to the other side.",
        )

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        rows = [row for row in rows if row.is_text and not self.joint]
        if not rows:
            return
        before = [row.prompt[-_WINDOW:] for row in rows]
        after = [row.completions[0][:_WINDOW] for row in rows]
        texts = before + after + [a + b for a, b in zip(before, after, strict=True)]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        n = len(rows)
        for row, a, b, whole in zip(rows, ids[:n], ids[n : 2 * n], ids[2 * n :], strict=True):
            if a + b != whole:
                self._add(row, a + b, whole)

    def findings(self) -> list[Finding]:
        return [finding for finding in (self.other_text, self.finding) if finding.count]

    def _add(self, row: PreparedRow, apart: list[int], whole: list[int]) -> None:
        differing = (place for place, (a, b) in enumerate(zip(apart, whole, strict=False)) if a != b)
        first = next(differing, min(len(apart), len(whole)))
        shown = [" ".join(self.tokenizer.convert_ids_to_tokens(ids[first : first + 3])) for ids in (apart, whole)]
        example = f"{shown[0]!r}, jointly {shown[1]!r}"
        same_text = self.tokenizer.decode(apart) == self.tokenizer.decode(whole)
        (self.finding if same_text else self.other_text).add(row.index, example)


class BorderOfJointTokens(Check):
    """Compares the tokens of a prompt with the start of the joint tokens of prompt and answer."""

    name = "prompt-loses-its-end"
    severity = WARNING
    meaning = (
        "A prompt has other tokens when it is tokenized with an answer. Training truncates it to the tokens in "
        "common, and the rest becomes part of the answers."
    )
    fix = (
        "Text: end prompts on a token border, or use `tokenization='separate'`. Messages: use a chat template that "
        "renders a prompt alone in the same way as before an answer."
    )

    def __init__(self, tokenizer: PreTrainedTokenizerBase, joint: bool) -> None:
        super().__init__()
        self.tokenizer, self.joint = tokenizer, joint

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        texts = [row for row in rows if row.is_text and self.joint]  # messages are always rendered jointly
        alone = self.tokenizer([row.prompt for row in texts])["input_ids"] if texts else []
        chats = [row for row in rows if row.is_chat]
        for row, ids in zip(texts + chats, [*alone, *map(self._rendered, chats)], strict=True):
            if len(ids) > len(row.prompt_ids):
                self.finding.add(row.index, repr(self.tokenizer.decode(ids[len(row.prompt_ids) :])))

    def _rendered(self, row: PreparedRow) -> list[int]:
        rendered: Any = self.tokenizer.apply_chat_template(
            row.prompt,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **template_arguments(row.raw, f"row {row.index}"),
        )
        return rendered["input_ids"]
