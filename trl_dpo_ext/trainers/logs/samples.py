"""Samples of an evaluation: answers of policy and reference to its first prompts, with their rewards."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, is_peft_model
from torch import Tensor, nn

from trl_dpo_ext.models.comparison import in_evaluation_mode
from trl_dpo_ext.models.reference_adapter import use_reference_adapter
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.sampling.batches import batches_of, tokens_per_batch
from trl_dpo_ext.sampling.decoding import Continuation, decode, eos_ids_of
from trl_dpo_ext.sampling.options import SamplingOptions
from trl_dpo_ext.sampling.policy_forward import PolicyForward
from trl_dpo_ext.trainers.forward.precision import autocast_of


__all__ = ["SampleLog"]

_NEW_TOKENS = 256  # if there is no `max_length`
_SEED = 0  # the same at every evaluation, so that samples differ by the weights alone


class SampleLog:
    """
    Samples answers of policy and reference to the first prompts of every evaluation (`log_samples`).

    All processes sample all answers, so that a sample does not depend on their number.

    Args:
        trainer ([`~trl_dpo_ext.trainers.base_trainer.BaseDPOTrainer`]): Trainer whose models are sampled.

    Raises:
        ValueError: If `log_samples` cannot work with the data or the reference.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.args = trainer.args
        # Prefix and rows of the last evaluation, until its metrics are logged. `predict` does not log them
        self._evaluated_set: tuple[str, Any] | None = None
        self._eos_ids: frozenset[int] = frozenset()
        if not self.args.log_samples:
            return
        asked = f"`log_samples={self.args.log_samples}`"
        if trainer._is_vision_dataset:
            raise ValueError(f"{asked} works with text, and the dataset has images. Leave it out.")
        has_reference = trainer.reference.kind != reference_policy.NONE
        if has_reference and trainer.ref_model is None and not is_peft_model(trainer.model):
            raise ValueError(
                f"{asked} needs the reference model to generate, and it is not in memory (reference: "
                f"{trainer.reference.description}). Set `precompute_ref_log_probs=False` or pass `ref_model`."
            )
        self._eos_ids = eos_ids_of(trainer.model, trainer._tokenizer)

    def evaluated(self, prefix: str, dataset: Any) -> None:
        """Notes which set has been evaluated."""
        self._evaluated_set = (prefix, dataset)

    def for_logs(self, logs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The samples of an evaluation, once, when its metrics are logged. Every process must call it."""
        prefix, dataset = self._evaluated_set or ("", None)
        if not self.args.log_samples or dataset is None or f"{prefix}_runtime" not in logs:
            return []
        self._evaluated_set = None
        rows = dataset.take(self.args.log_samples)  # also works for a stream
        prompts = [row["prompt_ids"] for row in rows]
        if self.args.max_length is not None:
            prompts = [ids[-(self.args.max_length - self.max_new_tokens) :] for ids in prompts]
        # Compiled layers would be compiled again, for the cache of each layer
        with in_evaluation_mode(self.trainer.model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            answers = self._answers(prompts)
            rewards = self._rewards(prompts, answers)
        samples = []
        for i, prompt in enumerate(prompts):
            sample: dict[str, Any] = {"name": prefix, "prompt": self._text(prompt)}
            for index, (who, completions) in enumerate(answers.items()):
                sample |= {who: self._text(completions[i]), f"{who}_reward": rewards[i][index]}
            samples.append(sample)
        return samples

    def _answers(self, prompts: Sequence[list[int]]) -> dict[str, list[list[int]]]:
        answers = {"policy": self._decode(self.trainer.model_wrapped, prompts)}
        if self.trainer.ref_model is not None:
            answers["reference"] = self._decode(self.trainer.ref_model, prompts)
        elif self.trainer.reference.kind != reference_policy.NONE and is_peft_model(self.trainer.model):
            answers["reference"] = self._decode(self.trainer.model_wrapped, prompts, reference=True)
        return answers

    def _decode(self, model: nn.Module, prompts: Sequence[list[int]], reference: bool = False) -> list[list[int]]:
        accelerator = self.trainer.accelerator
        model = accelerator.unwrap_model(model)
        adapter = use_reference_adapter(model) if reference else None
        options = SamplingOptions(max_new_tokens=self.max_new_tokens, seed=_SEED)
        # Random numbers belong to the index of a prompt: policy and reference have the same
        samples = [Continuation(i, ids, 0) for i, ids in enumerate(prompts)]
        with adapter or nullcontext():
            forward = _JointForward(model, accelerator)
            for batch in batches_of(samples, options.max_new_tokens, tokens_per_batch(accelerator.device)):
                decode(forward, batch, options, self._eos_ids)
        return [sample.token_ids for sample in samples]

    def _rewards(self, prompts: Sequence[list[int]], answers: Mapping[str, list[list[int]]]) -> list[list[float]]:
        # Answers of a prompt are in one row, and rows in batches, so that rewards are computed like the logged ones.
        # Without a reference, both answers are the same
        examples = [
            {"prompt_ids": prompt, "chosen_ids": both[0], "rejected_ids": both[-1]}
            for prompt, *both in zip(prompts, *answers.values(), strict=True)
        ]
        rewards: list[list[float]] = []
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(examples), size):
            inputs = self.trainer.data_collator(examples[start : start + size])
            batch = self.trainer.read_batch(self.trainer._prepare_inputs(inputs))
            with self.trainer.compute_loss_context_manager():
                ref_logps, _ = self.trainer.reference_logps(batch)
                policy = self.trainer.runner.run_policy(self.trainer.model_wrapped, batch)
            rewards += self.trainer.rewards(policy.logps, ref_logps).tolist()
        return rewards

    def _text(self, ids: list[int]) -> str:
        return self.trainer._tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of tokens of an answer."""
        longest = self.args.max_length
        if longest is None:
            return _NEW_TOKENS
        return longest - (self.args.max_prompt_length or longest // 2)


class _JointForward(PolicyForward):
    """
    Forward passes of all processes together, with the logits of the main process.

    So all draw the same tokens and run equally many forward passes, which sharded weights need.
    """

    def __init__(self, model: Any, accelerator: Accelerator):
        super().__init__(model, autocast_of(accelerator))
        self.device = accelerator.device  # of a sharded model, weights may be on another

    def __call__(self, input_ids: Tensor, num_last: int, **inputs: Any) -> tuple[Tensor, Any]:
        logits, cache = super().__call__(input_ids, num_last, **inputs)
        return broadcast(logits.contiguous()), cache
