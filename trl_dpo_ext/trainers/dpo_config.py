"""Options of `DPOPaperTrainer`."""

from dataclasses import dataclass, field, fields
from typing import Self

from trl import DPOConfig

from trl_dpo_ext.trainers.base_config import BaseDPOConfig


__all__ = ["DPOPaperConfig"]

# Losses of TRL that use `label_smoothing`
_SMOOTHED_BY_TRL = {"aot", "aot_unpaired", "exo_pair", "robust"}

# Losses of TRL that support other f-divergences than the reverse KL
_WITH_DIVERGENCE = {"discopop", "exo_pair", "hinge", "ipo", "robust", "sft", "sigmoid", "sigmoid_norm"}


@dataclass(repr=False)
class DPOPaperConfig(BaseDPOConfig):
    r"""
    Configuration of [`DPOPaperTrainer`]: every option of [`trl.DPOConfig`], with the paper's values as defaults.

    Parameters:
        reference_free (`bool`, *optional*, defaults to `False`):
            Whether to train without a reference: its log-ratio is 0, rewards are \\( \beta \log \pi_\theta(y|x) \\),
            and no reference model is kept.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            With `loss_type="sigmoid"`: probability \\( \varepsilon \\) that a preference is flipped (conservative
            DPO, the authors' `label_smoothing`), in `[0, 0.5)`. With TRL's `robust`, `exo_pair`, `aot` and
            `aot_unpaired`: same as in TRL.

    Options shared by all trainers are documented in [`~trl_dpo_ext.trainers.base_config.BaseDPOConfig`].

    Example:
    ```python
    >>> from trl_dpo_ext import DPOPaperConfig

    >>> args = DPOPaperConfig("out", per_device_train_batch_size=8, use_cpu=True)
    >>> args.beta, args.learning_rate, args.global_batch_size, args.gradient_accumulation_steps
    (0.1, 1e-06, 64, 8)

    ```
    """

    reference_free: bool = field(
        default=False,
        metadata={"help": "Train without a reference: rewards are beta log pi, and no reference model is kept."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_losses()
        self._check_label_smoothing()
        self._check_reference_free()
        self._check_no_effect()

    @classmethod
    def from_trl(cls, args: DPOConfig) -> Self:
        config = super().from_trl(args)
        config._check_losses()
        if config.is_plain_dpo and config.label_smoothing:
            raise ValueError(
                f"TRL ignores `label_smoothing={config.label_smoothing}` with `loss_type='sigmoid'`. Pass a "
                "`DPOPaperConfig` to train with it (conservative DPO), or set it to 0.0 to train as in TRL."
            )
        return config

    @property
    def is_plain_dpo(self) -> bool:
        """Whether the objective is Eq. 7 (with label smoothing or reference-free). Otherwise the loss is TRL's own."""
        return (
            self.loss_type == ["sigmoid"]
            and self.loss_weights in (None, [1.0])
            and self.f_divergence_type == "reverse_kl"
            and self.ld_alpha is None
            and not self.use_weighting
        )

    def _check_losses(self) -> None:
        # Errors that TRL raises only after the model is loaded, or never
        losses = f"`loss_type={self.loss_type}`"
        if not self.loss_type or not any(self.loss_weights or [1.0]):
            raise ValueError(f"{losses} with `loss_weights={self.loss_weights}` trains on nothing. Choose a loss.")
        if self.f_divergence_type != "reverse_kl" and not set(self.loss_type) <= _WITH_DIVERGENCE:
            raise ValueError(
                f"`f_divergence_type={self.f_divergence_type!r}` is not defined for {losses}. Use 'reverse_kl', or "
                f"some of {', '.join(sorted(_WITH_DIVERGENCE))}."
            )
        if self.use_weighting and not {"aot", "aot_unpaired"}.isdisjoint(self.loss_type):
            raise ValueError(f"`use_weighting=True` is not defined for {losses}, which sorts rows. Leave one out.")
        if "exo_pair" in self.loss_type and self.label_smoothing == 0:
            raise ValueError(f"{losses} needs `label_smoothing` above 0. The EXO paper recommends 1e-3.")

    def _check_label_smoothing(self) -> None:
        epsilon = self.label_smoothing
        if epsilon == 0 or _SMOOTHED_BY_TRL & set(self.loss_type):
            return
        if self.is_plain_dpo:
            if not 0 < epsilon < 0.5:
                raise ValueError(
                    f"`label_smoothing={epsilon}` must lie in [0, 0.5), because from 0.5 on preferences are reversed."
                )
            return
        raise ValueError(
            f"`label_smoothing={epsilon}` has no effect with `loss_type={self.loss_type}`, "
            f"`f_divergence_type={self.f_divergence_type!r}`, `ld_alpha={self.ld_alpha}`, "
            f"`use_weighting={self.use_weighting}` and `loss_weights={self.loss_weights}`. It works with plain "
            f"`loss_type='sigmoid'` and in {', '.join(sorted(_SMOOTHED_BY_TRL))}. Leave it at 0.0 here."
        )

    def _check_reference_free(self) -> None:
        if not self.reference_free:
            return
        if not self.is_plain_dpo:
            raise ValueError(
                f"`reference_free=True` is only defined for plain `loss_type='sigmoid'`, got "
                f"`loss_type={self.loss_type}` or a variant that needs a reference. Leave one of them out."
            )
        self.check_no_reference_options()

    def _check_no_effect(self) -> None:
        # option -> (whether it is used, condition for the message)
        read_when = {
            "discopop_tau": ("discopop" in self.loss_type, "`loss_type='discopop'`"),
            "f_alpha_divergence_coef": (
                self.f_divergence_type == "alpha_divergence",
                "`f_divergence_type='alpha_divergence'`",
            ),
            "label_smoothing_factor": (False, "a trainer with token labels (you may mean `label_smoothing`)"),
            "precompute_ref_batch_size": (self.precompute_ref_log_probs, "`precompute_ref_log_probs=True`"),
            "ref_logps_cache_dir": (self.precompute_ref_log_probs, "`precompute_ref_log_probs=True`"),
            "ref_model_mixup_alpha": (self.sync_ref_model, "`sync_ref_model=True`"),
            "ref_model_sync_steps": (self.sync_ref_model, "`sync_ref_model=True`"),
        }
        defaults = {f.name: f.default for f in fields(self)}
        for name, (is_read, condition) in read_when.items():
            value = getattr(self, name)
            if value != defaults[name] and not is_read:
                raise ValueError(
                    f"`{name}={value!r}` has no effect, because it is only used with {condition}. Leave it out."
                )
