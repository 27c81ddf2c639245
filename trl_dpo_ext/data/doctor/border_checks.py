"""Checks of the border between prompt and answer: would other tokens stand there if the two were one text?"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.doctor.findings import NOTE, WARNING, Check, Finding
from trl_dpo_ext.data.doctor.prepared_row import PreparedRow
from trl_dpo_ext.data.messages import template_arguments


__all__ = ["BorderOfJointTokens", "BorderOfSeparateTokens"]

_WINDOW = 48  # characters on each side of the border: tokens further away do not depend on it


class BorderOfSeparateTokens(Check):
    """Compares prompt and preferred answer, tokenized apart, with the tokens of both as one text."""

    name = "border-tokens-differ"
    severity = NOTE
    meaning = "As one text prompt and preferred answer have other tokens at the border than apart, as trained on."
    fix = "Nothing, if a prompt is given to the model by itself. Else end prompts on a token border."

    def __init__(self, tokenizer: PreTrainedTokenizerBase, joint: bool) -> None:
        super().__init__()
        self.tokenizer, self.joint = tokenizer, joint
        self.other_text = Finding(
            "border-text-differs",
            WARNING,
            "Tokenized apart, prompt and answer read differently: the tokenizer puts a space before an answer, or "
            "loses one.",
            "Use `tokenization='joint'`, or give the white space at the border to the side where it survives.",
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
        example = f"{shown[0]!r}, as one text {shown[1]!r}"
        same_text = self.tokenizer.decode(apart) == self.tokenizer.decode(whole)
        (self.finding if same_text else self.other_text).add(row.index, example)


class BorderOfJointTokens(Check):
    """Compares a prompt's own tokens with what the tokens of prompt and answer leave of them."""

    name = "prompt-loses-its-end"
    severity = WARNING
    meaning = (
        "Rendered with an answer, a prompt does not begin as it does alone: in training it loses its end, which the "
        "answers begin with instead."
    )
    fix = (
        "End prompts on a token border or use `tokenization='separate'` (text); use a chat template that renders a "
        "prompt alone as it does before an answer (messages)."
    )

    def __init__(self, tokenizer: PreTrainedTokenizerBase, joint: bool) -> None:
        super().__init__()
        self.tokenizer, self.joint = tokenizer, joint

    def look_at(self, rows: Sequence[PreparedRow]) -> None:
        texts = [row for row in rows if row.is_text and self.joint]  # messages always are rendered jointly
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
