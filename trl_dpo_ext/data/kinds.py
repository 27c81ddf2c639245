"""Kinds of datasets that are neither pairs nor rankings, recognized by their columns."""

from collections.abc import Sequence

from trl_dpo_ext.spelling import likely_column


__all__ = ["other_kind"]

# Columns that tell a kind, what it is, and what to do; the first that fits counts
_KINDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("prompt", "completion", "label"),
        "unpaired answers with a label, as `trl.experimental.kto.KTOTrainer` takes them",
        "Put a good and a bad answer of one prompt into a row, as `chosen` and `rejected`, or use that trainer.",
    ),
    (
        ("completions", "labels"),
        "answers in steps with a label for each, as a process reward model is trained on",
        "They do not say which of two answers is better. Make pairs of answers, `chosen` and `rejected`.",
    ),
    (
        ("completions",),
        "rankings, as `RankingDPOTrainer` takes them (the command `rank`)",
        "Train with that, or make pairs of them with `trl_dpo_ext.data.conversion.to_pairs.all_pairs`.",
    ),
    (
        ("conversations", "chosen", "rejected"),
        "pairs of the ShareGPT format",
        "Rename `conversations` to `prompt`, and write every message with `role` and `content` in place of `from` and "
        "`value`, with `dataset.map`.",
    ),
    (
        ("conversations",),
        "conversations of the ShareGPT format without a comparison, for supervised fine-tuning",
        "Pairs need two answers of one prompt, `chosen` and `rejected`.",
    ),
    (
        ("messages",),
        "conversations without a comparison, for supervised fine-tuning (`trl.SFTTrainer`)",
        "Pairs need two answers of one prompt, `chosen` and `rejected`.",
    ),
    (
        ("prompt", "completion"),
        "one answer for each prompt, for supervised fine-tuning (`trl.SFTTrainer`)",
        "Pairs need two answers of one prompt, `chosen` and `rejected`.",
    ),
    (
        ("instruction", "output"),
        "one answer for each instruction (the Alpaca format), for supervised fine-tuning",
        "Pairs need two answers of one prompt, `chosen` and `rejected`.",
    ),
    (
        ("input_ids",),
        "single sequences of token ids",
        "Tokenized pairs have `prompt_ids`, `chosen_ids` and `rejected_ids`, tokenized rankings `prompt_ids` and "
        "`completion_ids`.",
    ),
    (
        ("prompt",),
        "prompts without answers, as `trl.GRPOTrainer` takes them",
        "Pairs need two answers of each prompt, `chosen` and `rejected`.",
    ),
    (
        ("text",),
        "text without a comparison, for language modelling",
        "Pairs need two answers of one prompt, `chosen` and `rejected`.",
    ),
)


def other_kind(columns: Sequence[str]) -> str:
    """
    What a dataset of another kind is, and what to do with it, in two sentences. Empty if its columns do not tell.

    Example:
    ```python
    >>> from trl_dpo_ext.data.kinds import other_kind

    >>> other_kind(["prompt"])[:44]
    'It holds prompts without answers, as `trl.GR'

    ```
    """
    misspelt = any(likely_column(name, columns) for name in ("chosen", "rejected", "completions"))
    for names, what, advice in _KINDS:
        if set(names) <= set(columns) and not (misspelt and names in (("prompt",), ("text",))):
            return f"It holds {what}. {advice}"
    return ""
