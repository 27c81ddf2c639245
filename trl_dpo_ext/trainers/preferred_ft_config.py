"""Options of `PreferredFTTrainer`."""

from dataclasses import dataclass, field
from typing import ClassVar

from trl_dpo_ext.trainers.reference_free_config import ReferenceFreeConfig


__all__ = ["PreferredFTConfig"]


@dataclass(repr=False)
class PreferredFTConfig(ReferenceFreeConfig):
    r"""
    Configuration of [`PreferredFTTrainer`]. Options of [`trl.DPOConfig`] that only affect DPO's loss raise an error.

    Parameters:
        loss_reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"`: sum over the tokens of an answer, mean over the examples of an update, as in the paper and the
            authors' code. `"token_mean"`: mean over all answer tokens of the update, over micro-batches and processes,
            as in [`trl.SFTTrainer`].
        unique_prompts (`bool`, *optional*, defaults to `False`):
            Whether to train on one example for each distinct prompt, with the answer of its last row, as the authors.
        score_tie_gap (`float`, *optional*, defaults to `0.0`):
            With scored completions: scores this close to the best tie with it, and the first of them is used.

    `reference_free` and `beta` are documented in
    [`~trl_dpo_ext.trainers.reference_free_config.ReferenceFreeConfig`], options shared by all trainers in
    [`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`].
    """

    # Only the best completion of a row is learned, see `prepare_dataset`
    alone: ClassVar[bool] = True

    loss_reduction: str = field(
        default="sum",
        metadata={
            "help": "'sum' over tokens, mean over examples (paper), or 'token_mean' over an update's tokens (SFT).",
            "choices": ["sum", "token_mean"],
        },
    )
    unique_prompts: bool = field(
        default=False, metadata={"help": "Use one example for each distinct prompt: the answer of its last row."}
    )
    score_tie_gap: float = field(
        default=0.0, metadata={"help": "Scores this close to the best tie with it. The first of them is used."}
    )

    def check(self) -> None:
        super().check()
        if self.loss_reduction not in ("sum", "token_mean"):
            raise ValueError(
                f"`loss_reduction={self.loss_reduction!r}` does not exist. Choose one of 'sum', 'token_mean'."
            )
        if self.completions_per_forward is not None:
            raise ValueError(
                f"`completions_per_forward={self.completions_per_forward}` has no effect here, because only the "
                "preferred answer is run. Leave it out."
            )
