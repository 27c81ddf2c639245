"""`ImplicitRewardModel`: the reward defined by a trained policy and its reference."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.utils import logging

from trl_dpo_ext.data.options import RowOptions
from trl_dpo_ext.data.rankings.collator import DataCollatorForRanking
from trl_dpo_ext.reward_model.batching import TokenizedRow, batches_of, parts_of, rows_from, tokenize_rows
from trl_dpo_ext.reward_model.dataset_scoring import WithDatasets
from trl_dpo_ext.reward_model.log_ratios import ONE_THREAD, LogRatios, PolicyAndReference
from trl_dpo_ext.reward_model.results import BestCompletion, TokenRewards
from trl_dpo_ext.reward_model.saving import WithFolders
from trl_dpo_ext.rewards import implicit_rewards


__all__ = ["ImplicitRewardModel"]


class ImplicitRewardModel(WithFolders, WithDatasets):
    r"""
    A policy trained by DPO as a reward model.

    $$ \hat r(x, y) = \beta \log \frac{\pi(y|x)}{\pi_{ref}(y|x)} $$

    Section 4 of [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290). Scores equal the rewards that the
    trainers of this package log and predict, because tokenization, truncation, log-probabilities and precision use the
    same code. Compare scores only within a prompt: the reward is known up to a term that depends on the prompt.

    Completions passed together for a prompt are truncated together, like a row in training: the longest one decides
    whether the prompt is truncated. The EOS token is appended to text without it. Equal prompts are computed once,
    even in different rows. With several processes, each process scores its own input.

    Models are in evaluation mode while they score, and are restored afterwards. Threads score one after another. A
    copy made with `pickle` or `copy.deepcopy` has its own models.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Trained policy.
        reference ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
            Reference. With a PEFT policy, `None` means the reference of the trainers: the frozen adapter `"ref"` if
            the policy has one, else the policy without its adapter.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        beta (`float`):
            Strength of the KL constraint that the policy was trained with, > 0.
        reference_free (`bool`, *optional*, defaults to `False`):
            Whether rewards are beta log pi(y|x), as in training with `reference_free=True`.
        tokenization (`str`, *optional*, defaults to `"separate"`):
            Same as in [`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`].
        max_length (`int`, *optional*, defaults to `512`):
            Maximum number of tokens of a prompt with a completion. `None` disables truncation.
        max_prompt_length (`int`, *optional*):
            Number of tokens to which the prompt of a row that is too long is truncated. Default: half of `max_length`.
        prompt_truncation_mode (`str`, *optional*):
            With `tokenization="separate"`: which end of a truncated prompt is kept. Default: `"keep_end"`.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            With `tokenization="joint"`: which end of the sequence is kept.
        max_tokens_per_batch (`int`, *optional*, defaults to `16384`):
            Maximum number of tokens of a forward pass. Changes scores only by rounding.
        mixed_precision (`str`, *optional*, defaults to `"no"`):
            Autocast: `"no"`, `"bf16"` or `"fp16"`.
        device (`torch.device` or `str`, *optional*):
            Device to score on. By default, models stay where they are, or move from the CPU to accelerate's device.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar if there is more than one batch.

    Raises:
        ValueError: If an option is unknown or has no effect, or policy and reference are the same model.

    Example:

    ```python
    from trl_dpo_ext import ImplicitRewardModel

    reward_model = ImplicitRewardModel.from_pretrained("dpo-model")  # a folder that a trainer saved
    reward_model.score(["The film was"], [[" superb.", " dull."]])  # [[0.41, -0.23]]
    reward_model.best_of_n(["The film was"], [[" superb.", " dull."]])[0].completion  # ' superb.'
    ```
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        processing_class: Any,
        *,
        beta: float,
        reference_free: bool = False,
        tokenization: str = "separate",
        max_length: int | None = 512,
        max_prompt_length: int | None = None,
        prompt_truncation_mode: str | None = None,
        truncation_mode: str = "keep_start",
        max_tokens_per_batch: int = 16384,
        mixed_precision: str = "no",
        device: torch.device | str | None = None,
        progress: bool = True,
    ):
        if isinstance(processing_class, ProcessorMixin):
            raise ValueError(
                "`processing_class` is a processor, but rewards are computed for text and chat only. If no row has an "
                "image, pass its `.tokenizer`."
            )
        if max_tokens_per_batch < 1:
            raise ValueError(f"`max_tokens_per_batch={max_tokens_per_batch}` must be at least 1.")
        implicit_rewards(torch.zeros(1, 1), None, beta=beta)  # checks `beta`
        self.policy = policy
        self.reference = reference
        self.processing_class = processing_class
        self.beta = beta
        self.reference_free = reference_free
        self.row_options = RowOptions(
            tokenization, max_length, max_prompt_length, prompt_truncation_mode, truncation_mode
        )
        self.max_tokens_per_batch = max_tokens_per_batch
        self.mixed_precision = mixed_precision
        self.progress = progress
        # `trl.GRPOTrainer` and others log the rewards under this name
        self.__name__ = "implicit_reward"

        self._models = PolicyAndReference(
            policy,
            reference,
            reference_free=reference_free,
            mixed_precision=mixed_precision,
            device=device,
            longest=max_length,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilds the scoring forwards, which belong to the models of this object
        options = {
            "beta": self.beta,
            "reference_free": self.reference_free,
            "max_tokens_per_batch": self.max_tokens_per_batch,
            "mixed_precision": self.mixed_precision,
            "device": self.policy.device,
            "progress": self.progress,
            **asdict(self.row_options),
        }
        return partial(type(self), **options), (self.policy, self.reference, self.processing_class)

    def score(self, prompts: Iterable[Any], completions: Iterable[Any]) -> list[Any]:
        """
        Returns the rewards of completions.

        Args:
            prompts (`Iterable`):
                Texts, or lists of messages.
            completions (`Iterable`):
                For each prompt a completion, or a list of completions (truncated together, like a row in training),
                each a text or a list of messages.

        Returns:
            `list[float]`, or `list[list[float]]` if completions were passed as lists.

        Raises:
            ValueError: If prompts and completions do not match, or a row is invalid.
        """
        rows, nested = rows_from(prompts, completions)
        rewards = self.score_rows(rows)
        return rewards if nested else [row[0] for row in rewards]

    def __call__(self, prompts: Iterable[Any], completions: Iterable[Any], **kwargs: Any) -> list[Any]:
        """
        Returns rewards in the form of [`trl.GRPOTrainer`] and [`trl.RLOOTrainer`]: `reward_funcs=reward_model`.

        Args:
            prompts (`Iterable`):
                Same as in [`score`].
            completions (`Iterable`):
                Same as in [`score`].
            kwargs:
                Other arguments that TRL passes to reward functions. They have no effect.

        Returns:
            `list[float]`
        """
        return self.score(prompts, completions)

    def score_tokens(self, prompts: Iterable[Any], completions: Iterable[Any]) -> list[Any]:
        """
        Returns the rewards of the tokens of completions.

        Args:
            prompts (`Iterable`):
                Same as in [`score`].
            completions (`Iterable`):
                Same as in [`score`].

        Returns:
            `list[TokenRewards]`, or a list of such lists if completions were passed as lists.
        """
        rows, nested = rows_from(prompts, completions)
        by_row = self._run(self._tokenize(rows, "scored"), self._token_rewards)
        return by_row if nested else [row[0] for row in by_row]

    def rank(self, prompts: Iterable[Any], completions: Iterable[Sequence[Any]]) -> list[list[int]]:
        """
        Returns the indices of each prompt's completions, best first. Completions with equal rewards keep their order.

        Args:
            prompts (`Iterable`):
                Same as in [`score`].
            completions (`Iterable[Sequence]`):
                For each prompt a list of completions.

        Returns:
            `list[list[int]]`
        """
        _, rewards = self._of_lists(prompts, completions)
        return [sorted(range(len(row)), key=lambda place, row=row: -row[place]) for row in rewards]  # type: ignore[misc]

    def best_of_n(self, prompts: Iterable[Any], completions: Iterable[Sequence[Any]]) -> list[BestCompletion]:
        """
        Returns the completion with the largest reward for each prompt. Of equal rewards, the first counts.

        Args:
            prompts (`Iterable`):
                Same as in [`score`].
            completions (`Iterable[Sequence]`):
                For each prompt a list of completions.

        Returns:
            `list[BestCompletion]`
        """
        rows, rewards = self._of_lists(prompts, completions)
        best = [max(range(len(row)), key=row.__getitem__) for row in rewards]
        return [
            BestCompletion(index=place, completion=row["completions"][place], reward=of_row[place])
            for row, of_row, place in zip(rows, rewards, best, strict=True)
        ]

    def score_rows(self, rows: Iterable[Mapping[str, Any]], name: str = "scored") -> list[list[float]]:
        """
        Returns the rewards of the completions of each row, in the given order.

        Args:
            rows (`Iterable[Mapping]`):
                Rows with `completions`, or with `chosen` and `rejected`; with `prompt`, and optionally `tools` and
                `chat_template_kwargs`.
            name (`str`, *optional*, defaults to `"scored"`):
                Name of the dataset in messages.

        Returns:
            `list[list[float]]`
        """
        return self._run(self._tokenize(rows, name), self._rewards)

    def score_tokenized(self, rows: Sequence[TokenizedRow]) -> list[list[float]]:
        """
        Returns the rewards of rows prepared by [`~trl_dpo_ext.reward_model.batching.tokenize_row`].

        Args:
            rows (`Sequence[TokenizedRow]`):
                Rows.

        Returns:
            `list[list[float]]`
        """
        return self._run(rows, self._rewards)

    def _of_lists(
        self, prompts: Iterable[Any], completions: Iterable[Any]
    ) -> tuple[list[dict[str, Any]], list[list[float]]]:
        rows, nested = rows_from(prompts, completions)
        if rows and not nested:
            raise ValueError("`completions[0]` is one completion. Expected a list of completions for each prompt.")
        return rows, self.score_rows(rows)

    def _rewards(self, ratios: LogRatios) -> list[float]:
        reference = None if ratios.reference is None else ratios.reference.sum(dim=1)[None]
        rewards: list[float] = implicit_rewards(ratios.policy.sum(dim=1)[None], reference, beta=self.beta)[0].tolist()
        return rewards

    def _token_rewards(self, ratios: LogRatios) -> list[TokenRewards]:
        by_token = implicit_rewards(ratios.policy, ratios.reference, beta=self.beta)
        ids = [row[mask].tolist() for row, mask in zip(ratios.token_ids, ratios.mask, strict=True)]
        rewards = [row[mask].tolist() for row, mask in zip(by_token, ratios.mask, strict=True)]
        tokens = map(self.processing_class.convert_ids_to_tokens, ids)
        return [TokenRewards(*of_one) for of_one in zip(ids, tokens, rewards, strict=True)]

    def _tokenize(self, rows: Iterable[Mapping[str, Any]], name: str) -> list[TokenizedRow]:
        # Padding and truncation change the tokenizer
        with ONE_THREAD:
            return tokenize_rows(rows, self.processing_class, self.row_options, name)

    def _run(self, tokenized: Sequence[TokenizedRow], values_of: Callable[[LogRatios], list[Any]]) -> list[list[Any]]:
        """Returns one value for each completion of each row."""
        options = self.row_options
        shared = self._models.share_prompts
        parts = parts_of(tokenized, self.max_tokens_per_batch, shared)
        batches = batches_of(parts, self.max_tokens_per_batch, shared)
        collate = DataCollatorForRanking(
            pad_token_id=self.processing_class.pad_token_id or 0,  # the value of padding has no effect
            max_length=options.max_length if options.joint else None,
            truncation_mode=options.truncation_mode,
        )
        found: dict[int, Any] = {}
        with self._models.ready():
            for batch in logging.tqdm(batches, desc="Scoring", disable=not self.progress or len(batches) < 2):
                examples = [{"prompt_ids": part.prompt_ids, "completion_ids": part.completion_ids} for part in batch]
                ratios = self._models.log_ratios(collate(examples), [n for part in batch for n in part.numbers])
                found |= zip(ratios.numbers, values_of(ratios), strict=True)
        values = iter([found[number] for number in range(len(found))])
        return [[next(values) for _ in row.completion_ids] for row in tokenized]
