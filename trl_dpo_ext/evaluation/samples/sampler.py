"""`Sampler`: samples of a policy that do not depend on how they are computed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import PartialState
from transformers import AutoTokenizer
from transformers.utils import logging

from trl_dpo_ext.data.remote_code import remote_code_explained
from trl_dpo_ext.evaluation.samples.prompts import PromptTokenizer, TokenizedPrompt
from trl_dpo_ext.models.precision import PRECISIONS
from trl_dpo_ext.reward_model.policy_folder import load_policy, to_folder
from trl_dpo_ext.sampling.batches import batches_of, run_batches, tokens_per_batch
from trl_dpo_ext.sampling.decoding import Continuation, decode, eos_ids_of
from trl_dpo_ext.sampling.options import SamplingOptions
from trl_dpo_ext.sampling.policy_forward import PolicyForward


__all__ = ["Sample", "Sampler"]


@dataclass
class Sample:
    """
    A sample, and a row of a file of samples.

    Args:
        prompt_id (`int`):
            Index of its prompt, from 0.
        sample (`int`):
            Index of the sample among those of the prompt, from 0.
        prompt (`str` or `list[dict]`):
            Prompt as given.
        completion (`str`):
            Text of the sample, without special tokens.
        token_ids (`list[int]`):
            Tokens as sampled, with the one that ended it.
        finished (`bool`):
            Whether it ended before `max_new_tokens` were over.
        logp (`float`):
            Log-probability of its tokens in the distribution that was sampled, in nats: of the policy itself with the
            default options.
    """

    prompt_id: int
    sample: int
    prompt: Any
    completion: str
    token_ids: list[int]
    finished: bool
    logp: float


class Sampler:
    r"""
    Samples completions of a policy, each with its own random numbers.

    Samples are computed in batches of up to 8,192 tokens (32,768 on an accelerator), which are composed by the prompts
    and options alone: of parts of 512 samples, in the order of the prompts. So a sample depends on the policy, the
    options and the prompts of its part. It does not depend on `max_tokens_per_batch`, the number of threads or
    processes, or what has run before, to the last bit of its log-probability. This holds on a CPU, where every batch
    is computed by one thread, and on an accelerator as far as its kernels are deterministic. Another processor or
    version of torch may change the last bits of a log-probability, and rarely a token.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        max_tokens_per_batch (`int`, *optional*, defaults to `65536`):
            Maximum number of tokens that are computed at once: how many batches a CPU with several threads computes
            beside each other, at least one. Does not change samples.
        mixed_precision (`str`, *optional*, defaults to `"no"`):
            Autocast: `"no"`, `"bf16"` or `"fp16"`.
        reference_adapter (`bool`, *optional*, defaults to `False`):
            Whether to sample the reference inside a PEFT model: the adapter `"ref"` if there is one, else the model
            without its adapter.
        progress (`bool`, *optional*, defaults to `True`):
            Whether [`sample`] shows a progress bar if there is more than one part.
        options:
            Options of [`~trl_dpo_ext.sampling.options.SamplingOptions`]: `num_samples`, `temperature`,
            `top_k`, `top_p`, `max_new_tokens` and `seed`. The defaults sample the policy itself.

    Raises:
        ValueError: If an option is out of range, or nothing could end a sample.

    Example:

    ```python
    from trl_dpo_ext.evaluation import Sampler

    sampler = Sampler.from_pretrained("dpo-model", num_samples=4, max_new_tokens=40)
    sampler.sample(["The film was"])[0][0].completion  # ' superb.'
    ```
    """

    def __init__(
        self,
        model: Any,
        processing_class: Any,
        *,
        max_tokens_per_batch: int = 65536,
        mixed_precision: str = "no",
        reference_adapter: bool = False,
        progress: bool = True,
        **options: Any,
    ):
        if max_tokens_per_batch < 1:
            raise ValueError(f"`max_tokens_per_batch={max_tokens_per_batch}` must be at least 1.")
        if mixed_precision not in PRECISIONS:
            raise ValueError(f"`mixed_precision={mixed_precision!r}` must be one of {', '.join(PRECISIONS)}.")
        self.model = model
        self.processing_class = processing_class
        self.mixed_precision = mixed_precision
        self.options = SamplingOptions(**options)
        self.progress = progress
        self.eos_ids = eos_ids_of(model, processing_class)
        self.tokenize = PromptTokenizer(processing_class, model, self.options.max_new_tokens)
        self.max_tokens_per_batch = max_tokens_per_batch
        self.forward = PolicyForward(model, mixed_precision, reference_adapter=reference_adapter)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        processing_class: Any = None,
        dtype: str | torch.dtype | None = None,
        mixed_precision: str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        quantization_config: Any = None,
        **options: Any,
    ) -> Self:
        """
        Loads a policy with the dtype and precision of its training.

        Args:
            name (`str` or `Path`):
                Folder or hub name of a model or an adapter.
            processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Tokenizer. Default: the tokenizer in the folder.
            dtype (`str` or `torch.dtype`, *optional*):
                Dtype of the weights. Default: as in training, or as saved.
            mixed_precision (`str`, *optional*):
                Autocast. Default: as in training, or none.
            device (`torch.device` or `str`, *optional*):
                Device. Default: accelerate's device.
            revision (`str`, *optional*):
                Revision of the hub repository.
            token (`str`, *optional*):
                Token for the hub. Default: the stored login.
            quantization_config ([`~transformers.utils.quantization_config.QuantizationConfigMixin`], *optional*):
                Quantization of an adapter's base model. Default: as in training.
            options:
                Other arguments of [`Sampler`].

        Returns:
            [`Sampler`]
        """
        sampler, _ = cls._load(
            name,
            reference_free=True,
            processing_class=processing_class,
            dtype=dtype,
            mixed_precision=mixed_precision,
            device=device,
            revision=revision,
            token=token,
            quantization_config=quantization_config,
            **options,
        )
        return sampler

    @classmethod
    def with_reference(cls, name: str | Path, **options: Any) -> tuple[Self, Self]:
        """
        Loads a policy and the reference that it was trained with.

        Args:
            name (`str` or `Path`):
                Folder or hub name of a model or an adapter.
            options:
                Other arguments of [`from_pretrained`].

        Returns:
            `tuple[Sampler, Sampler]`: Policy and reference. They share the model if it is an adapter.

        Raises:
            ValueError: If the reference is unknown, or is not the one used in training.
        """
        policy, reference = cls._load(name, reference_free=None, **options)
        if reference is None:
            raise ValueError(f"{name} was trained without a reference. Pass `reference=`.")
        return policy, reference

    @classmethod
    def _load(
        cls,
        name: str | Path,
        *,
        reference_free: bool | None,
        processing_class: Any = None,
        dtype: str | torch.dtype | None = None,
        mixed_precision: str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        quantization_config: Any = None,
        **options: Any,
    ) -> tuple[Self, Self | None]:
        folder = to_folder(name, revision, token)
        with remote_code_explained(folder, "Load model and tokenizer yourself, and pass them to this class."):
            loaded = load_policy(
                folder,
                reference_free=reference_free,
                dtype=dtype,
                device=torch.device(PartialState().device if device is None else device),
                quantization_config=quantization_config,
            )
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        options["mixed_precision"] = mixed_precision or loaded.state.get("mixed_precision", "no")
        policy = cls(loaded.policy, processing_class, **options)
        if loaded.reference_free:
            return policy, None
        if loaded.reference is None:
            return policy, cls(loaded.policy, processing_class, reference_adapter=True, **options)
        return policy, cls(loaded.reference, processing_class, **options)

    def sample(self, prompts: Iterable[Any]) -> list[list[Sample]]:
        """
        Samples completions.

        Args:
            prompts (`Iterable`):
                Texts, or lists of messages.

        Returns:
            `list[list[Sample]]`: `num_samples` samples of each prompt. A file of the same prompts gives the same ones.

        Raises:
            ValueError: If a prompt is invalid or too long, or logits are not finite.
        """
        return self.sample_tokenized(self.tokenize_prompts(prompts))

    def tokenize_prompts(self, prompts: Iterable[Any]) -> list[TokenizedPrompt]:
        """
        Tokenizes prompts.

        Args:
            prompts (`Iterable`):
                Texts, or lists of messages.

        Raises:
            ValueError: If a prompt is invalid or too long.
        """
        if isinstance(prompts, str):
            raise ValueError("`prompts` is a text. Expected a list of prompts.")
        return [self.tokenize({"prompt": prompt}, i, f"prompt {i}") for i, prompt in enumerate(prompts)]

    def sample_tokenized(self, prompts: Sequence[TokenizedPrompt]) -> list[list[Sample]]:
        """
        Samples completions of tokenized prompts, as [`sample`] does.

        Args:
            prompts (`Sequence[TokenizedPrompt]`):
                Results of [`tokenize_prompts`].

        Returns:
            `list[list[Sample]]`
        """
        size = self.options.prompts_per_part
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        bar = logging.tqdm(
            total=len(prompts) * self.options.num_samples,
            unit="sample",
            desc="Sampling",
            disable=not self.progress or len(parts) < 2,
        )
        found: list[list[Sample]] = []
        with bar as progress:
            for part in parts:
                of_part = self.sample_part(part)
                found += of_part
                progress.update(sum(map(len, of_part)))
        return found

    def sample_part(self, prompts: Sequence[TokenizedPrompt]) -> list[list[Sample]]:
        """
        Samples completions of the prompts of one part.

        Args:
            prompts (`Sequence[TokenizedPrompt]`):
                Results of `tokenize`, as many as `options.prompts_per_part`, except in the last part.

        Returns:
            `list[list[Sample]]`
        """
        numbers = range(self.options.num_samples)
        by_prompt = [[Continuation(prompt.prompt_id, prompt.token_ids, i) for i in numbers] for prompt in prompts]
        samples = [sample for of_prompt in by_prompt for sample in of_prompt]
        device = self.forward.device
        limit = tokens_per_batch(device)
        batches = list(batches_of(samples, self.options.max_new_tokens, limit))

        def compute(batch: list[Continuation]) -> None:
            decode(self.forward, batch, self.options, self.eos_ids)

        with self.forward.ready():
            run_batches(compute, batches, device, num_at_once=self.max_tokens_per_batch // limit)
        return [
            [self._finished(prompt, sample) for sample in of_prompt]
            for prompt, of_prompt in zip(prompts, by_prompt, strict=True)
        ]

    def _finished(self, prompt: TokenizedPrompt, sample: Continuation) -> Sample:
        return Sample(
            prompt_id=prompt.prompt_id,
            sample=sample.sample,
            prompt=prompt.prompt,
            completion=self.processing_class.decode(sample.token_ids, skip_special_tokens=True),
            token_ids=sample.token_ids,
            finished=sample.has_ended,
            logp=sample.logp,
        )
