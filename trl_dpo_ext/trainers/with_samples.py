"""What policy and reference answer to the first prompts of an evaluation, beside each other, with their rewards."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from torch import nn
from transformers.trainer_utils import EvalLoopOutput

from trl_dpo_ext.compat import unwrap_model_for_generation, use_adapter
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.trainers.run_log import SAMPLES
from trl_dpo_ext.trainers.trackers import send_table
from trl_dpo_ext.trainers.with_checkpoints import WithCheckpoints


__all__ = ["WithSamples"]

_NEW_TOKENS = 256  # where `max_length` sets no limit
_SEED = 0  # the same at every evaluation, so that samples differ by the weights alone


class WithSamples(WithCheckpoints):
    """A trainer that with `log_samples=n` has policy and reference answer the first n prompts of every evaluation."""

    # Prefix and rows of the last evaluation, until its figures are logged, which `predict` does not do
    _evaluated_set: tuple[str, Any] | None = None

    def check_samples(self) -> None:
        """Raises a `ValueError` if `log_samples` asks for what cannot be shown."""
        asked = f"`log_samples={self.args.log_samples}`"
        if self.args.log_samples and self._is_vision_dataset:
            raise ValueError(f"{asked} takes text, and the data set has images. Leave it out.")
        has_reference = self.reference_kind != reference_policy.NONE
        if self.args.log_samples and has_reference and self.ref_model is None and not is_peft_model(self.model):
            raise ValueError(
                f"{asked} shows what the reference answers, and no reference model is in memory (reference: "
                f"{self.reference_description}). Set `precompute_ref_log_probs=False` or pass `ref_model`."
            )

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        self._evaluated_set = (metric_key_prefix, dataloader.dataset)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        prefix, dataset = self._evaluated_set or ("", None)
        if not self.args.log_samples or dataset is None or f"{prefix}_runtime" not in logs:
            return
        self._evaluated_set = None
        rows = dataset.take(self.args.log_samples)  # of a stream, too
        samples = [{"name": prefix} | sample for sample in self._answer([row["prompt_ids"] for row in rows])]
        if self.is_world_process_zero():
            step = self.state.global_step
            self.run_log.append(SAMPLES, [{"step": step} | sample for sample in samples])
            send_table(self.callback_handler.callbacks, f"{prefix}/samples", samples, step)

    def _answer(self, prompts: Sequence[list[int]]) -> list[dict[str, Any]]:
        # Every process answers as many, since sharded weights generate together
        processes = self.accelerator.num_processes
        padded = [*prompts, *prompts[:1] * (-len(prompts) % processes)]
        own = padded[self.accelerator.process_index :: processes]
        was_training = self.model.training
        self.model.eval()
        device = self.accelerator.device
        # The training's random numbers stay as they are
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            rows = self._answers_of_both(own)
        self.model.train(was_training)
        gathered = gather_object([rows])  # by process
        return [gathered[i % processes][i // processes] for i in range(len(prompts))]

    def _answers_of_both(self, prompts: list[list[int]]) -> list[dict[str, Any]]:
        limit = self._max_new_tokens
        if self.args.max_length is not None:
            prompts = [ids[-(self.args.max_length - limit) :] for ids in prompts]
        answers = {"policy": self._generate(self.model_wrapped, prompts)}
        if self.ref_model is not None:
            answers["reference"] = self._generate(self.ref_model, prompts)
        elif self.reference_kind != reference_policy.NONE and is_peft_model(self.model):
            answers["reference"] = self._generate(self.model_wrapped, prompts, reference=True)
        # In one batch, so that rewards come from where the logged ones do. Without a reference there is one answer
        examples = [
            {"prompt_ids": prompt, "chosen_ids": both[0], "rejected_ids": both[-1]}
            for prompt, *both in zip(prompts, *answers.values(), strict=True)
        ]
        inputs = self.with_groups(self._prepare_inputs(self.data_collator(examples)))
        with self.compute_loss_context_manager():
            ref_logps, _ = self.reference_logps(inputs)
            _, policy_logps = self.run_policy(self.model_wrapped, inputs)
        rewards = self.rewards(policy_logps, ref_logps).tolist()
        rows = []
        for i, prompt in enumerate(prompts):
            rows.append({"prompt": self._text(prompt)})
            for place, (who, completions) in enumerate(answers.items()):
                rows[-1] |= {who: self._text(completions[i]), f"{who}_reward": rewards[i][place]}
        return rows

    def _generate(self, model: nn.Module, prompts: list[list[int]], reference: bool = False) -> list[list[int]]:
        tokenizer, device = self._tokenizer, self.accelerator.device
        width = max(map(len, prompts))
        pad = tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        sharded = self.accelerator.num_processes > 1 and (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        torch.manual_seed(_SEED + self.accelerator.process_index)
        with unwrap_model_for_generation(model, self.accelerator) as unwrapped, self.compute_loss_context_manager():
            adapter = use_adapter(unwrapped, "ref" if "ref" in unwrapped.peft_config else None) if reference else None
            with adapter or nullcontext():
                whole = unwrapped.generate(
                    input_ids=input_ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=self._max_new_tokens,
                    pad_token_id=pad,
                    eos_token_id=tokenizer.eos_token_id,
                    synced_gpus=sharded,
                )
        return [self._until_eos(ids) for ids in whole[:, width:].tolist()]

    def _until_eos(self, ids: list[int]) -> list[int]:
        eos = self._tokenizer.eos_token_id
        return ids[: ids.index(eos) + 1] if eos in ids else ids

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def _max_new_tokens(self) -> int:
        longest = self.args.max_length
        if longest is None:
            return _NEW_TOKENS
        return longest - (self.args.max_prompt_length or longest // 2)
