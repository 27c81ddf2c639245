"""Proximal policy optimization with a value model on Eq. 3."""

import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import GRPOTrainer

from trl_dpo_ext.compat import PPO_SEAMS, check_seams
from trl_dpo_ext.processes import is_sharded
from trl_dpo_ext.reference.policy import is_peft_model
from trl_dpo_ext.rl.advantages import generalized_advantages, token_rewards, whitened
from trl_dpo_ext.rl.ppo_config import PPOPaperConfig
from trl_dpo_ext.rl.rl_trainer import RLTrainer
from trl_dpo_ext.rl.value_model import completion_values, load_value_model, value_model_of


__all__ = ["PPOPaperTrainer"]

check_seams(GRPOTrainer, PPO_SEAMS)

_VALUE_FOLDER = "value_model"


class PPOPaperTrainer(RLTrainer, GRPOTrainer):  # type: ignore[misc]
    r"""
    Trainer for Eq. 3 of [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290) by proximal policy
    optimization, as for the paper's PPO baselines.

    $$ \max_\pi \; E_{x \sim D, \, y \sim \pi}[r(x, y)] - \beta \, KL[\pi(y|x) \| \pi_{ref}(y|x)] $$

    A token's reward is \\( -\beta \log \pi(y_t|\cdot) / \pi_{ref}(y_t|\cdot) \\), plus \\( r(x, y) \\) for the last
    token ([`~trl_dpo_ext.rl.advantages.token_rewards`]). Advantages \\( A_t \\) and returns \\( G_t \\) are estimated
    with a value model V ([`~trl_dpo_ext.rl.advantages.generalized_advantages`]). With \\( \rho_t \\) the ratio of the
    probabilities of a token now and when it was sampled, the loss is that of
    [Schulman et al. (2017)](https://huggingface.co/papers/1707.06347), Eq. 7, and a clipped value loss:

    $$ -\min(\rho_t A_t, \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon) A_t), \qquad
       \tfrac{1}{2} \max\big((V_t - G_t)^2, (\mathrm{clip}(V_t, V^{old}_t - c, V^{old}_t + c) - G_t)^2\big) $$

    as means over the tokens of a micro-batch. The value model has its own weights, which start as a copy of the policy
    in memory with a head that is 0, and its own learning rate, gradient clipping and part of the optimizer.

    Sampling, reference log-probabilities and the policy loss are those of [`trl.GRPOTrainer`], which supports
    advantages of tokens. The completions of a prompt are not compared with each other. The table of
    `log_completions=True` has GRPO's advantages, which are not used here.

    Positions, dropout, reference, rewards and metrics are as in [`RLOOPaperTrainer`]. `value_loss` is logged in
    addition. The value model is saved with checkpoints, in the folder `value_model`, and is not part of the trained
    model. Not supported: PEFT, FSDP and DeepSpeed.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Policy at the start, which is also the reference.
        args ([`PPOPaperConfig`]):
            Options.
        reward_funcs, train_dataset, eval_dataset, processing_class, callbacks, optimizers, quantization_config:
            Same as in [`RLOOPaperTrainer`].

    Raises:
        TypeError, ValueError: Same as in [`RLOOPaperTrainer`], and for models that are not supported.

    Example:

    ```python
    from trl_dpo_ext import KLTargetCallback, PPOPaperConfig, PPOPaperTrainer

    args = PPOPaperConfig("ppo", num_generations=4, max_completion_length=48)
    trainer = PPOPaperTrainer("sft", reward, args, train_dataset=prompts)
    trainer.add_callback(KLTargetCallback(trainer, target=3.0))
    trainer.train()
    ```
    """

    config_class = PPOPaperConfig
    trl_class = GRPOTrainer
    _tag_names = ["trl", "ppo", "trl-dpo-ext"]
    _name = "PPO"
    _paper = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": textwrap.dedent("""\
            @article{schulman2017proximal,
                title        = {{Proximal Policy Optimization Algorithms}},
                author       = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},
                year         = 2017,
                eprint       = {arXiv:1707.06347},
            }"""),
    }

    def _check_model(self, model: Any, peft_config: Any) -> None:
        if is_peft_model(model) or peft_config is not None:
            raise ValueError(
                "`PPOPaperTrainer` trains all weights of a value model, so PEFT is not supported. Merge the adapter "
                "into the model, or use `RLOOPaperTrainer`."
            )

    def _prepare_models(self) -> None:
        super()._prepare_models()
        if is_sharded(self.accelerator):
            raise ValueError("`PPOPaperTrainer` does not support FSDP and DeepSpeed. Use `RLOOPaperTrainer`, or DDP.")
        value_model = value_model_of(self.model)
        self._guard(value_model)
        self.value_model = self.accelerator.prepare_model(value_model)
        self.add_callback(_ValueGradients(self.value_model))

    # TRL's methods

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        parameters = list(self.value_model.parameters())
        if not any(parameter is parameters[0] for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.add_param_group(
                {"params": parameters, "lr": self.args.value_learning_rate, "weight_decay": self.args.weight_decay}
            )
        return optimizer

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"]  # (B, T)
        with torch.no_grad():
            policy_logps = output.get("old_per_token_logps")
            if policy_logps is None:  # GRPO does not need them if a generation is used for one update
                policy_logps = self._policy_logps(output)
            values = self._values(output)
        log_ratios = (policy_logps - output["ref_per_token_logps"]) * mask
        scores = (self._rewards * self.reward_weights.to(self._rewards)).sum(1)  # (B,)
        rewards = token_rewards(log_ratios, scores, mask, beta=self.beta)
        advantages, returns = generalized_advantages(rewards, values, mask, gamma=self.args.gamma, lam=self.args.lam)
        if self.args.whiten_advantages:
            advantages = whitened(advantages, mask, self.accelerator.reduce)
        kls = self.accelerator.gather(log_ratios.sum(1))  # (all completions,)
        lengths = self.accelerator.gather(mask.sum(1))
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["kl"].append((kls.sum() / lengths.sum()).item())
        self._record(kls.mean().item(), len(kls))
        return output | {
            "old_per_token_logps": policy_logps,
            "advantages": advantages,
            "old_values": values,
            "returns": returns,
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        beta, self.beta = self.beta, 0.0  # the KL term is part of the token rewards
        try:
            policy_loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.beta = beta
        mask, old, clip = inputs["completion_mask"], inputs["old_values"], self.args.value_clip_range
        values = self._values(inputs)
        clipped = old + (values - old).clamp(-clip, clip)
        errors = torch.maximum((values - inputs["returns"]) ** 2, (clipped - inputs["returns"]) ** 2)  # (B, T)
        value_loss = 0.5 * (errors * mask).sum() / mask.sum().clamp(min=1)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["value_loss"].append(self.accelerator.gather(value_loss.detach()).mean().item())
        return policy_loss + value_loss / (self.current_gradient_accumulation_steps if mode == "train" else 1)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if _internal_call and self.args.should_save:
            folder = Path(output_dir or self.args.output_dir, _VALUE_FOLDER)
            self.accelerator.unwrap_model(self.value_model).save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_value_model(self.accelerator.unwrap_model(self.value_model), Path(resume_from_checkpoint, _VALUE_FOLDER))

    def _rows(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Token ids and mask of prompts with completions, `(B, P + T)`."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        return ids, torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)

    def _policy_logps(self, batch: dict[str, Any]) -> Tensor:
        logps, _, _ = self._get_per_token_logps_and_entropies(
            self.model, *self._rows(batch), batch["completion_ids"].shape[1], self._forward_size()
        )
        return logps

    def _values(self, batch: dict[str, Any]) -> Tensor:
        with self.accelerator.autocast():
            return completion_values(
                self.value_model, *self._rows(batch), batch["completion_ids"].shape[1], self._forward_size()
            )

    def _forward_size(self) -> int:
        args = self.args
        return args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size


class _ValueGradients(TrainerCallback):
    """Clips and resets the gradient of the value model, which transformers only does for the policy."""

    def __init__(self, value_model: nn.Module):
        self.value_model = value_model

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(self.value_model.parameters(), args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.value_model.zero_grad()
