"""Adaptive weight of the KL term, so that a run ends at a chosen KL."""

from typing import Any

from transformers import TrainerCallback

from trl_dpo_ext.rl.rl_trainer import Generation, RLTrainer


__all__ = ["KLTargetCallback"]

_LARGEST_ERROR = 0.2


class KLTargetCallback(TrainerCallback):
    r"""
    Changes `beta` after each generation, so that the sequence KL approaches a target.

    $$ \beta \leftarrow \beta \left(1 + \mathrm{clip}\left(\tfrac{KL}{target} - 1, -0.2, 0.2\right)
       \tfrac{samples}{horizon}\right) $$

    Section 2.2 of [Ziegler et al. (2019)](https://huggingface.co/papers/1909.08593), with the factor samples / horizon
    of its code. Sec. 6.1 of the DPO paper has PPO at KL targets of 3, 6, 9 and 12 nats. A run at a KL target does not
    solve Eq. 3 for one `beta`. Use a fixed `beta` for that.

    Args:
        trainer ([`RLOOPaperTrainer`] or [`PPOPaperTrainer`]):
            Trainer that the callback is added to.
        target (`float`):
            Mean KL of a completion, > 0, in nats.
        horizon (`int`, *optional*, defaults to `10000`):
            Number of completions in which a KL 20 % or more above the target raises `beta` by about 20 %.

    Raises:
        ValueError: If `target` is not above 0, `horizon` is less than a generation, or the trainer has no sequence KL.

    Example:

    ```python
    trainer = RLOOPaperTrainer(model, reward, args, train_dataset=prompts, processing_class=tokenizer)
    trainer.add_callback(KLTargetCallback(trainer, target=3.0))
    ```
    """

    def __init__(self, trainer: Any, target: float, horizon: int = 10_000):
        if not isinstance(trainer, RLTrainer):
            raise ValueError(f"`{type(trainer).__name__}` does not log a sequence KL. Use `RLOOPaperTrainer`.")
        if not target > 0:
            raise ValueError(f"`target={target}` must be above 0.")
        if not horizon >= trainer.args.generation_batch_size:
            raise ValueError(
                f"`horizon={horizon}` is less than the {trainer.args.generation_batch_size} completions of a "
                "generation, so `beta` would jump. Use a larger horizon."
            )
        self.trainer = trainer
        self.target = target
        self.horizon = horizon
        self._seen: Generation | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Changes `beta` if the update was the first of a generation."""
        generation = self.trainer.last_generation
        if generation is None or generation is self._seen:
            return
        self._seen = generation
        error = min(max(generation.kl / self.target - 1, -_LARGEST_ERROR), _LARGEST_ERROR)
        self.trainer.beta *= 1 + error * generation.num_samples / self.horizon
