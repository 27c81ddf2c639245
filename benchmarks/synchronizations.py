"""How often a step makes the host wait for the GPU."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


__all__ = ["SynchronizingCalls", "count_synchronizations"]

# The host needs their result, or the shape of it
_VALUES = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2", "unique_dim"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


def count_synchronizations(step: Callable[[], Any], tensors: Iterable[Tensor]) -> int:
    """
    Runs a step and counts its synchronizations.

    Args:
        step (`Callable`): Step.
        tensors (`Iterable[torch.Tensor]`): Weights and batch. On a GPU the debug mode of CUDA reports waiting. On a
            CPU those calls count that would wait if these tensors, and all that is computed from them, were on a GPU.
    """
    tensors = list(tensors)
    if not tensors[0].is_cuda:
        with SynchronizingCalls(tensors) as calls:
            step()
        return calls.found.total()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


class SynchronizingCalls(TorchDispatchMode):
    """
    Counts, by the name of the operator, the calls whose result, or the shape of it, the host has to wait for.

    Args:
        tensors (`Iterable[torch.Tensor]`):
            Tensors that stand for those of a GPU, as does all that is computed from them. Others are the host's.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self.found: Counter[str] = Counter()
        self._on_gpu = WeakIdKeyDictionary()
        self._mark(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        on_gpu = any(isinstance(value, Tensor) and value in self._on_gpu for value in tree_leaves((args, kwargs)))
        waits = name in _VALUES or (name in _INDEXING and _by_mask(args[1])) or _repeats_by_tensor(name, args, kwargs)
        if on_gpu and waits:
            self.found[name] += 1
        result = func(*args, **(kwargs or {}))
        if on_gpu:
            self._mark(value for value in tree_leaves(result) if isinstance(value, Tensor))
        return result

    def _mark(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._on_gpu[tensor] = None


def _by_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices or ())


def _repeats_by_tensor(name: str, args: Any, kwargs: Any) -> bool:
    # Without `output_size` the length of the result is a sum on the device
    return name == "repeat_interleave" and len(args) == 1 and not (kwargs or {}).get("output_size")
