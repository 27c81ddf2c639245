"""Loading of converted weights from a checkpoint, and comparison of loaded weights with the checkpoint."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from trl_dpo_ext.trainers.checkpoints.checkpoint_files import weight_files


__all__ = ["check_restored", "is_converted", "load_converted"]


def is_converted(model: PreTrainedModel) -> bool:
    """
    Whether `save_pretrained` writes the weights of a model in another form than in memory.

    A mixture of experts, for example, has one tensor with all experts and saves a tensor for each expert.
    `load_state_dict`, which transformers uses for checkpoints, does not convert them.
    """
    held = model.state_dict()
    written = revert_weight_conversion(model, held)
    return any(name not in held or not torch.equal(tensor, held[name]) for name, tensor in written.items())


def load_converted(model: PreTrainedModel, folder: str | Path) -> None:
    """Loads the weights saved by `save_pretrained` in `folder`, as `from_pretrained` does."""
    # The widest dtype, because each parameter is rounded to its own dtype when it is copied
    dtype = max((parameter.dtype for parameter in model.parameters()), key=lambda dtype: dtype.itemsize)
    attention = model.config._attn_implementation
    saved = type(model).from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    model.load_state_dict(saved.state_dict())


def check_restored(model: PreTrainedModel | PeftModel, folder: str | Path) -> None:
    """
    Compares the weights of a model with those in a checkpoint, bit by bit.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model after loading, with all weights on this process.
        folder (`str` or `Path`):
            Folder of the checkpoint.

    Raises:
        ValueError: If weights differ. The message has their number and the name of the first.
    """
    wrong, count = [], 0
    for held, written in _by_folder(model, Path(folder)):
        unseen = dict(held)
        for name, tensor in _tensors(written):
            count += 1
            here = unseen.pop(name, None)
            if here is None or not _same(here, tensor):
                wrong.append(name)
        pointers = {held[name].data_ptr() for name in held.keys() - unseen.keys()}
        # A tied weight is saved once, under one of its names
        wrong += [name for name, tensor in unseen.items() if tensor.data_ptr() not in pointers]
        count += len(unseen)
    if wrong:
        raise ValueError(
            f"The weights of {folder} were not restored: {len(wrong)} of {count:,} differ between memory and the "
            f"checkpoint (first: {wrong[0]}). To start a new run from its weights, use it as the model "
            f"(`model_name_or_path: {folder}`) and leave out `resume_from_checkpoint`."
        )


def _by_folder(model: PreTrainedModel | PeftModel, folder: Path) -> Iterator[tuple[dict[str, Tensor], Path]]:
    # Weights by their saved names, and the folder that they are saved in
    if not is_peft_model(model):
        ignored = re.compile("|".join(model._keys_to_ignore_on_save or ()) or r"(?!)")
        written = revert_weight_conversion(model, model.state_dict())
        yield {name: tensor for name, tensor in written.items() if not ignored.search(name)}, folder
        return
    for adapter in model.peft_config:
        place = folder if adapter == "default" else folder / adapter  # as saved by PEFT
        if place != folder or weight_files(folder)[0].parent == folder:
            held = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
            saves_embeddings = any(name not in held for name, _ in _tensors(place))
            if saves_embeddings:
                held = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=True)
            yield held, place


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(folder):
        if path.parent != folder:  # weights of another adapter
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


def _same(here: Tensor, written: Tensor) -> bool:
    if here.shape != written.shape:
        return False
    here, written = (tensor.detach().cpu().contiguous().flatten() for tensor in (here, written.to(here.dtype)))
    return torch.equal(here.view(torch.uint8), written.view(torch.uint8))  # also for NaN
