"""Options shared by the trainers of Eq. 3, and the options of TRL that Eq. 3 rules out."""

from dataclasses import dataclass, field


__all__ = ["RLOptions"]

# With other values, completions are not samples of the policy whose log-probabilities and KL are computed
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}


@dataclass
class RLOptions:
    r"""
    Defaults that differ from TRL's, and checks. Precedes [`trl.RLOOConfig`] or [`trl.GRPOConfig`] in a config.

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`):
            Weight of the KL term of Eq. 3, > 0.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in policy and reference. With dropout, the KL is not 0 at the start, and
            importance ratios differ from 1 before the first update.
        optim (`str`, *optional*, defaults to `"rmsprop"`):
            Optimizer, as in App. B.
        lr_scheduler_type (`str`, *optional*, defaults to `"constant_with_warmup"`):
            Schedule, as in App. B.
        warmup_steps (`float`, *optional*, defaults to `150`):
            Number of warm-up updates, as in App. B.
        max_grad_norm (`float`, *optional*, defaults to `10.0`):
            Gradient clipping, as in the authors' code.
        bf16 (`bool`, *optional*, defaults to `False`):
            Whether to use bfloat16 autocast.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether to recompute activations in the backward pass.

    Raises:
        ValueError: If `beta` is not above 0, completions are not sampled from the policy itself, or the reference is
            not fixed.
    """

    beta: float = field(default=0.1, metadata={"help": "Weight of the KL term of Eq. 3, > 0."})
    disable_dropout: bool = field(default=True, metadata={"help": "Disable dropout in policy and reference."})
    optim: str = field(default="rmsprop", metadata={"help": "Optimizer. Paper: 'rmsprop'."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "Schedule. Paper: 'constant_with_warmup'."}
    )
    warmup_steps: float = field(default=150, metadata={"help": "Warm-up updates. Paper: 150."})
    max_grad_norm: float = field(default=10.0, metadata={"help": "Gradient clipping. Authors' code: 10."})
    bf16: bool | None = field(default=False, metadata={"help": "Use bfloat16 autocast."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations in the backward."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        if not self.beta > 0:
            raise ValueError(
                f"`beta={self.beta}` does not constrain the KL, but Eq. 3 needs `beta` above 0. To disable the "
                "constraint, use `trl.RLOOTrainer`."
            )
        if self.sync_ref_model:  # type: ignore[attr-defined]
            raise ValueError("`sync_ref_model=True` changes the reference, but that of Eq. 3 is fixed. Leave it out.")
        if self.neftune_noise_alpha is not None:  # type: ignore[attr-defined]
            raise ValueError(
                "`neftune_noise_alpha` adds noise to the policy and not to the reference, so the KL of Eq. 3 would be "
                "wrong. Leave it out."
            )
        sampling = {name: getattr(self, name) for name in _SAMPLING}
        for name, given in (sampling | (self.generation_kwargs or {})).items():  # type: ignore[attr-defined]
            if name in _SAMPLING and given != _SAMPLING[name]:
                raise ValueError(
                    f"`{name}={given}` samples from another distribution than the policy, so the gradient and the KL "
                    f"of Eq. 3 would be wrong. Leave it out, or set it to {_SAMPLING[name]}."
                )
