"""Options of `PPOPaperTrainer`."""

from dataclasses import dataclass, field, fields

from trl import GRPOConfig

from trl_dpo_ext.rl.options import RLOptions


__all__ = ["PPOPaperConfig"]

# Options of `trl.GRPOConfig` that change GRPO's advantages or its KL term
_OF_GRPO = (
    "importance_sampling_level",
    "loss_type",
    "multi_objective_aggregation",
    "scale_rewards",
    "use_bias_correction_kl",
)


@dataclass
class PPOPaperConfig(RLOptions, GRPOConfig):  # type: ignore[misc]
    r"""
    Configuration of [`PPOPaperTrainer`]: that of [`trl.GRPOConfig`], with the defaults of
    [`~trl_dpo_ext.rl.options.RLOptions`]. Options that only affect GRPO's advantages or its KL term raise an error.

    Parameters:
        num_iterations (`int`, *optional*, defaults to `4`):
            Number of passes over the completions of a generation.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per token.
        lam (`float`, *optional*, defaults to `0.95`):
            Weight of later temporal differences in generalized advantage estimation.
        value_learning_rate (`float`, *optional*):
            Peak learning rate of the value model, with the schedule of the policy. Default: `learning_rate`.
        value_clip_range (`float`, *optional*, defaults to `0.2`):
            Distance from the values at generation beyond which the value loss does not decrease.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Whether to shift and scale the advantages of a generation to mean 0 and variance 1. Scaled advantages do
            not vanish as the policy approaches the optimum of Eq. 3, so a constant learning rate keeps it moving.

    Raises:
        ValueError: If an option is out of range or has no effect.
    """

    num_iterations: int = field(default=4, metadata={"help": "Passes over the completions of a generation."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token, between 0 and 1."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation, between 0 and 1."})
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the value model. Default: `learning_rate`."}
    )
    value_clip_range: float = field(default=0.2, metadata={"help": "Clip range of the value loss, > 0."})
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Shift and scale the advantages of a generation to mean 0 and variance 1."}
    )
    loss_type: str = field(
        default="bnpo", metadata={"help": "Mean of the policy loss over the tokens of a micro-batch."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_learning_rate is None:
            self.value_learning_rate = self.learning_rate
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}={getattr(self, name)}` must be between 0 and 1.")
        if not self.value_clip_range > 0:
            raise ValueError(f"`value_clip_range={self.value_clip_range}` must be above 0.")
        for option in fields(self):
            if option.name in _OF_GRPO and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"`{option.name}={getattr(self, option.name)!r}` changes GRPO's advantages or loss, and PPO has "
                    "others. Leave it out."
                )
