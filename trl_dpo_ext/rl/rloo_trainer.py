"""REINFORCE leave-one-out on Eq. 3."""

from typing import Any

from trl import RLOOTrainer

from trl_dpo_ext.compat import RLOO_SEAMS, check_seams
from trl_dpo_ext.rl.rl_trainer import RLTrainer
from trl_dpo_ext.rl.rloo_config import RLOOPaperConfig


__all__ = ["RLOOPaperTrainer"]

check_seams(RLOOTrainer, RLOO_SEAMS)


class RLOOPaperTrainer(RLTrainer, RLOOTrainer):  # type: ignore[misc]
    r"""
    Trainer for Eq. 3 of [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290) by REINFORCE leave-one-out.

    $$ \max_\pi \; E_{x \sim D, \, y \sim \pi}[r(x, y)] - \beta \, KL[\pi(y|x) \| \pi_{ref}(y|x)] $$

    The gradient is that of [Ahmadian et al. (2024)](https://huggingface.co/papers/2402.14740). The reward of a
    completion is \\( r(x, y) - \beta \log \pi(y|x) / \pi_{ref}(y|x) \\), less the mean reward of the other completions
    of its prompt:

    $$ \frac{1}{k} \sum_{i=1}^{k} \Big[ R(x, y_i) - \frac{1}{k - 1} \sum_{j \ne i} R(x, y_j) \Big]
       \nabla \log \pi(y_i|x) $$

    This is not the PPO of the paper's baselines ([`PPOPaperTrainer`]), but it has the same objective.

    Differs from [`trl.RLOOTrainer`]:

    - Positions are counted without left padding, so log-probabilities do not depend on the other rows of a batch.
    - Dropout is off by default, in all layers.
    - The reference is a copy of the policy as it is in memory, not as it was saved. With PEFT it is the model without
      the new adapter, or a frozen copy of the adapter passed.
    - Rewards are functions of prompts and completions, see [`~trl_dpo_ext.evaluation.rewards.reward.Reward`].
      Completions are text without the EOS token, as in evaluation. [`ClassifierReward`] appends it for a reward
      model, as in the model's training. A reward that fails stops the run with one error.
    - It logs `kl_sequence`, the mean of \\( \log \pi(y|x) - \log \pi_{ref}(y|x) \\) in nats. TRL's `kl` is its mean
      per token. `reward` is the mean reward without the KL term, `objective` is `reward - beta * kl_sequence`, `beta`
      is the weight of the KL term, and `completions/finished` is the share of completions that end with an EOS token.

    Relations: with `trl.RLOOTrainer` and the same options, updates are equal if no prompt is padded, no dropout is on,
    and the policy is as it was saved.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy at the start, which is also the reference.
        reward_funcs ([`~trl_dpo_ext.evaluation.rewards.reward.Reward`] or `list`):
            Reward, or rewards to be added with the weights `reward_weights`.
        args ([`RLOOPaperConfig`]):
            Options.
        train_dataset ([`~datasets.Dataset`]):
            Dataset with the column `"prompt"`. Other columns have no effect.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            Dataset of the same form.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Default: the tokenizer in the folder of the model.
        callbacks, optimizers, quantization_config, peft_config (*optional*):
            Same as in [`trl.RLOOTrainer`].

    Raises:
        TypeError: If a reward is a model or the name of a model, or `args` is not a [`RLOOPaperConfig`].
        ValueError: If a reward raises an error, or does not return a finite number for each completion.

    Example:

    ```python
    from trl_dpo_ext import RLOOPaperConfig, RLOOPaperTrainer

    def reward(prompts, completions):
        return [float(text.count("good")) for text in completions]

    args = RLOOPaperConfig("rloo", beta=0.1, num_generations=4, max_completion_length=48)
    RLOOPaperTrainer("sft", reward, args, train_dataset=prompts).train()
    ```
    """

    config_class = RLOOPaperConfig
    trl_class = RLOOTrainer
    _tag_names = ["trl", "rloo", "trl-dpo-ext"]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        lengths = self.accelerator.gather(output["completion_mask"].sum(1)).float()  # (all completions,)
        self._record(self._metrics[mode]["kl"][-1] * lengths.mean().item(), len(lengths))
        return output
