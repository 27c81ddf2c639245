"""Samples of an evaluation: answers of policy and reference to its first prompts, with their rewards."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from torch import nn

from trl_dpo_ext.compat import unwrap_model_for_generation, use_adapter
from trl_dpo_ext.processes import is_sharded
from trl_dpo_ext.reference import policy as reference_policy


__all__ = ["SampleLog"]

_NEW_TOKENS = 256  # if there is no `max_length`
_SEED = 0  # the same at every evaluation, so that samples differ by the weights alone


class SampleLog:
    """
    Generates answers of policy and reference to the first prompts of every evaluation (`log_samples`).

    Args:
        trainer ([`~trl_dpo_ext.trainers.base_trainer.BaseDPOTrainer`]): Trainer whose models generate.

    Raises:
        ValueError: If `log_samples` cannot work with the data or the reference.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.args = trainer.args
        # Prefix and rows of the last evaluation, until its metrics are logged. `predict` does not log them
        self._evaluated_set: tuple[str, Any] | None = None
        asked = f"`log_samples={self.args.log_samples}`"
        if self.args.log_samples and trainer._is_vision_dataset:
            raise ValueError(f"{asked} works with text, and the dataset has images. Leave it out.")
        has_reference = trainer.reference.kind != reference_policy.NONE
        if self.args.log_samples and has_reference and trainer.ref_model is None and not is_peft_model(trainer.model):
            raise ValueError(
                f"{asked} needs the reference model to generate, and it is not in memory (reference: "
                f"{trainer.reference.description}). Set `precompute_ref_log_probs=False` or pass `ref_model`."
            )

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
        return [{"name": prefix} | sample for sample in self._answer([row["prompt_ids"] for row in rows])]

    def _answer(self, prompts: Sequence[list[int]]) -> list[dict[str, Any]]:
        # Every process generates the same number, because sharded weights need all processes
        processes = self.trainer.accelerator.num_processes
        padded = [*prompts, *prompts[:1] * (-len(prompts) % processes)]
        own = padded[self.trainer.accelerator.process_index :: processes]
        was_training = self.trainer.model.training
        self.trainer.model.eval()
        device = self.trainer.accelerator.device
        # Does not change the random numbers of the training
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            rows = self._answers_of_both(own)
        self.trainer.model.train(was_training)
        gathered = gather_object([rows])  # by process
        return [gathered[i % processes][i // processes] for i in range(len(prompts))]

    def _answers_of_both(self, prompts: list[list[int]]) -> list[dict[str, Any]]:
        limit = self.max_new_tokens
        if self.args.max_length is not None:
            prompts = [ids[-(self.args.max_length - limit) :] for ids in prompts]
        answers = {"policy": self._generate(self.trainer.model_wrapped, prompts)}
        if self.trainer.ref_model is not None:
            answers["reference"] = self._generate(self.trainer.ref_model, prompts)
        elif self.trainer.reference.kind != reference_policy.NONE and is_peft_model(self.trainer.model):
            answers["reference"] = self._generate(self.trainer.model_wrapped, prompts, reference=True)
        # In one batch, so that rewards are computed like the logged ones. Without a reference, both are the same
        examples = [
            {"prompt_ids": prompt, "chosen_ids": both[0], "rejected_ids": both[-1]}
            for prompt, *both in zip(prompts, *answers.values(), strict=True)
        ]
        batch = self.trainer.read_batch(self.trainer._prepare_inputs(self.trainer.data_collator(examples)))
        with self.trainer.compute_loss_context_manager():
            ref_logps, _ = self.trainer.reference_logps(batch)
            policy = self.trainer.runner.run_policy(self.trainer.model_wrapped, batch)
        rewards = self.trainer.rewards(policy.logps, ref_logps).tolist()
        rows = []
        for i, prompt in enumerate(prompts):
            rows.append({"prompt": self._text(prompt)})
            for index, (who, completions) in enumerate(answers.items()):
                rows[-1] |= {who: self._text(completions[i]), f"{who}_reward": rewards[i][index]}
        return rows

    def _generate(self, model: nn.Module, prompts: list[list[int]], reference: bool = False) -> list[list[int]]:
        tokenizer, device = self.trainer._tokenizer, self.trainer.accelerator.device
        width = max(map(len, prompts))
        pad = tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        accelerator = self.trainer.accelerator
        torch.manual_seed(_SEED + accelerator.process_index)
        in_compute_dtype = self.trainer.compute_loss_context_manager()
        with unwrap_model_for_generation(model, accelerator) as unwrapped, in_compute_dtype:
            adapter = use_adapter(unwrapped, "ref" if "ref" in unwrapped.peft_config else None) if reference else None
            with adapter or nullcontext():
                whole = unwrapped.generate(
                    input_ids=input_ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=self.max_new_tokens,
                    pad_token_id=pad,
                    eos_token_id=tokenizer.eos_token_id,
                    synced_gpus=is_sharded(accelerator) and accelerator.num_processes > 1,
                )
        return [self._until_eos(ids) for ids in whole[:, width:].tolist()]

    def _until_eos(self, ids: list[int]) -> list[int]:
        eos = self.trainer._tokenizer.eos_token_id
        return ids[: ids.index(eos) + 1] if eos in ids else ids

    def _text(self, ids: list[int]) -> str:
        return self.trainer._tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of tokens of an answer."""
        longest = self.args.max_length
        if longest is None:
            return _NEW_TOKENS
        return longest - (self.args.max_prompt_length or longest // 2)
