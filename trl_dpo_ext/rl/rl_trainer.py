"""What the trainers of Eq. 3 share: the reference, rewards, logged numbers and checkpoints."""

from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate.utils import gather, is_peft_model
from torch import Tensor, nn
from transformers import ProcessorMixin

from trl_dpo_ext.compat import loading_models_by
from trl_dpo_ext.evaluation.rewards.reward import Reward, rewards_of
from trl_dpo_ext.processes import get_logger, together
from trl_dpo_ext.reference import policy as reference_policy
from trl_dpo_ext.reference.weights_hash import hash_weights
from trl_dpo_ext.rl.checkpoint_state import RLState, check_resumes, read_state, warn_of_save_steps, write_state
from trl_dpo_ext.rl.guards import checked_rewards, count_positions, turn_dropout_off
from trl_dpo_ext.run_log import RunLog


__all__ = ["Generation", "RLTrainer"]

logger = get_logger(__name__)

_NO_KL = 1e-3  # nats of a completion; without noise, policy and reference compute the same bits


class Generation(NamedTuple):
    """
    A batch of sampled completions.

    Attributes:
        kl (`float`):
            Mean over completions of log pi(y|x) - log pi_ref(y|x), in nats.
        num_samples (`int`):
            Number of completions, on all processes.
    """

    kl: float
    num_samples: int


class RLTrainer:
    """
    Overrides of TRL's methods that all trainers of Eq. 3 need. Precedes a trainer of TRL in a class.

    Arguments are the same as in [`trl.RLOOTrainer`], without `reward_processing_classes`.
    """

    config_class: ClassVar[type]
    trl_class: ClassVar[type]

    accelerator: Any
    add_callback: Any
    args: Any
    beta: float
    model: Any
    ref_model: Any
    reward_funcs: list[Reward]
    state: Any
    _metrics: dict[str, Any]
    last_generation: Generation | None = None  # of training

    def __init__(
        self,
        model: Any,
        reward_funcs: Reward | list[Reward],
        args: Any,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ):
        if not isinstance(args, self.config_class):
            raise TypeError(
                f"`args` is a `{type(args).__name__}`, whose defaults are not those of Eq. 3. Pass a "
                f"`{self.config_class.__name__}`."
            )
        if isinstance(processing_class, ProcessorMixin):
            raise ValueError("`processing_class` is a processor, but prompts are text or chat. Pass its `.tokenizer`.")
        warn_of_save_steps(args)
        rewards = checked_rewards(reward_funcs)
        self._check_model(model, peft_config)
        reference_policy.forget_ref_adapter(model)
        with _reference_from_memory(model, self.trl_class):
            super().__init__(  # type: ignore[call-arg]
                model=model,
                reward_funcs=rewards,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        self._prepare_models()
        self.run_log = RunLog(self.args.output_dir)
        self.add_callback(self.run_log)

    def _check_model(self, model: Any, peft_config: Any) -> None:
        reference_policy.check_adapter_start(model, peft_config)
        if reference_policy.is_peft_model(model):
            reference_policy.check_adapter_names(model)
        adapters = model.peft_config.values() if reference_policy.is_peft_model(model) else [peft_config]
        if any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters):
            raise ValueError(
                "The adapter learns virtual tokens, with which PEFT ignores the positions of left-padded prompts. Use "
                "another adapter, such as LoRA."
            )

    def _prepare_models(self) -> None:
        if is_peft_model(self.model):
            reference_policy.copy_to_ref_adapter(self.model)
            reference_policy.mark_ref_adapter(self.model)
        for model in (self.model, self.ref_model):
            if model is not None:
                self._guard(model)
        self._reference_hash = hash_weights(self.model)  # now, because training changes the weights

    def _guard(self, model: nn.Module) -> None:
        count_positions(model)
        if self.args.disable_dropout:
            turn_dropout_off(model)

    # TRL's methods

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        update = self.state.global_step + 1
        where = [f"completion {i + 1} of update {update}" for i in range(len(texts))]
        with together():
            columns = [rewards_of(reward, prompts, texts, where) for reward in self.reward_funcs]
        self._rewards = torch.tensor(columns, dtype=torch.float32, device=self.accelerator.device).T  # (B, F)
        return gather(self._rewards.contiguous())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if _internal_call and self.args.should_save:
            write_state(output_dir or self.args.output_dir, self._state())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = read_state(resume_from_checkpoint)
        check_resumes(resume_from_checkpoint, state, self._state(), self.args)
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        self.beta = state.beta
        self.run_log.go_on_from(resume_from_checkpoint, {})

    # For subclasses

    def _state(self) -> RLState:
        return RLState(type(self).__name__, self.args.beta, self.beta, self._reference_hash)

    def _record(self, kl: float, num_samples: int) -> None:
        """Logs the terms of Eq. 3 for a batch of completions, which TRL has just logged the rewards of."""
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        metrics["kl_sequence"].append(kl)
        metrics["objective"].append(metrics["reward"][-1] - self.beta * kl)  # Eq. 3
        metrics["beta"].append(self.beta)
        metrics["completions/finished"].append(1 - metrics["completions/clipped_ratio"][-1])
        if mode == "eval":
            return
        if self.last_generation is None and self.state.global_step == 0 and abs(kl) > _NO_KL:
            logger.warning(
                f"The KL is {kl:.3g} nats before the first update, when policy and reference are the same. Disable "
                "what makes the policy random (`disable_dropout=True`, router noise of the model's config)."
            )
        self.last_generation = Generation(kl, num_samples)


def _reference_from_memory(model: Any, trl_class: type) -> Any:
    """TRL would load the reference from the path that a model came from. Its weights may have changed since."""
    if isinstance(model, str):
        return nullcontext()  # the policy is loaded from this path, too
    return loading_models_by(lambda *args, **kwargs: reference_policy.copy_in_memory(model), trl_class)
