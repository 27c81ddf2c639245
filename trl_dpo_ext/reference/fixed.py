"""Checks that training does not change the reference: by its weights before, and on one batch afterwards."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trl_dpo_ext.reference.policy import ADAPTER_COPY, ADAPTER_OFF
from trl_dpo_ext.reference.weights_hash import adapter_pattern


__all__ = ["check_reference_is_fixed", "movement"]

# Relative and absolute difference, in nats, between two runs of a computation on the same machine
_RELATIVE, _RELATIVE_HALF, _ABSOLUTE = 1e-5, 1e-3, 1e-4


def check_reference_is_fixed(policy: nn.Module, reference: nn.Module | None, kind: str) -> None:
    """
    Checks that no weight of the reference is trained.

    Args:
        policy ([`~torch.nn.Module`]):
            Policy.
        reference ([`~torch.nn.Module`], *optional*):
            Reference model, if it is a separate model.
        kind (`str`):
            Kind of reference, one of [`~trl_dpo_ext.reference.policy`].

    Raises:
        ValueError: If a weight is trained. The message names it.
    """
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if kind in (ADAPTER_OFF, ADAPTER_COPY):
        of_adapter = adapter_pattern(policy)
        moving = [name for name in trained if not of_adapter.search(name)]
        if moving:
            raise ValueError(
                f"The reference is the policy without its adapter, but {len(moving)} weights outside the adapter are "
                f"trained, which would change the reference ({_first(moving)}). Train only the adapter "
                "(`bias='none'`; whole modules with `modules_to_save`; `requires_grad_(False)`), or pass the model "
                "that training starts from as `ref_model=`."
            )
    elif reference is not None:
        storages = {_storage(parameter) for parameter in trained.values()} - {0}
        shared = [name for name, parameter in reference.named_parameters() if _storage(parameter) in storages]
        if shared:
            raise ValueError(
                f"`ref_model` and the policy share {len(shared)} trained weights, so training would change the "
                f"reference ({_first(shared)}). Load `ref_model` separately, or leave it out to use a copy of the "
                "initial policy."
            )


def movement(before: Tensor, after: Tensor, is_float32: bool) -> tuple[Tensor, Tensor]:
    """
    Measures how much a reference has changed during training.

    Args:
        before (`torch.Tensor` of shape `(B, K)`):
            Log-probabilities of a batch under the reference at the start of training, in nats.
        after (`torch.Tensor` of shape `(B, K)`):
            Same at the end of training.
        is_float32 (`bool`):
            Whether the forward pass is in float32.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Largest difference, and largest difference that rounding explains.
    """
    relative = _RELATIVE if is_float32 else _RELATIVE_HALF
    return (after - before).abs().max(), _ABSOLUTE + relative * before.abs().max()


def _storage(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, DTensor) else parameter.untyped_storage().data_ptr()


def _first(names: list[str]) -> str:
    return ", ".join(name.removeprefix("base_model.model.") for name in names[:3]) + (", ..." if names[3:] else "")
