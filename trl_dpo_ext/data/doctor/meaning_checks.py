"""Checks that find data which are probably not as intended: columns, contents and the chat template."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from trl_dpo_ext.data.doctor.chat_checks import AnswerHoldsOtherTurns, UnknownRole
from trl_dpo_ext.data.doctor.column_checks import UnreadColumns
from trl_dpo_ext.data.doctor.comparison_checks import ConstantAnswers
from trl_dpo_ext.data.doctor.content_checks import (
    BrokenCharacters,
    EscapesAsText,
    ForeignMarkers,
    GenerationPromptMissing,
    MarkupEscapes,
    MessagesAsText,
    Placeholders,
    QuotedTexts,
    RolePrefix,
    UnclosedThinking,
    UnknownTokens,
)
from trl_dpo_ext.data.doctor.findings import Check
from trl_dpo_ext.data.doctor.template_checks import EndOfAnswer, RenderedMessages
from trl_dpo_ext.data.doctor.text_checks import PromptInSomeAnswers


__all__ = ["meaning_checks"]


def meaning_checks(tokenizer: PreTrainedTokenizerBase, columns: Sequence[str]) -> list[Check]:
    """Returns the checks, the most severe first."""
    return [
        MessagesAsText(),
        UnreadColumns(columns),
        EndOfAnswer(tokenizer),
        RenderedMessages(tokenizer),
        GenerationPromptMissing(tokenizer),
        ForeignMarkers(tokenizer),
        AnswerHoldsOtherTurns(),
        UnknownRole(tokenizer),
        RolePrefix(),
        ConstantAnswers(),
        PromptInSomeAnswers(),
        UnclosedThinking(),
        UnknownTokens(tokenizer),
        EscapesAsText(),
        BrokenCharacters(),
        Placeholders(),
        QuotedTexts(),
        MarkupEscapes(),
    ]
