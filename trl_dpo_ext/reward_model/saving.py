"""Loading a reward model from a folder, the hub or a trainer, and saving it."""

import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from huggingface_hub import HfApi
from transformers import AutoTokenizer
from transformers.utils import logging

import trl_dpo_ext
from trl_dpo_ext.data.options import RowOptions
from trl_dpo_ext.data.remote_code import remote_code_explained
from trl_dpo_ext.reference.policy import ADAPTER_COPY, ADAPTER_OFF, EXPLICIT, NONE
from trl_dpo_ext.reward_model.policy_folder import load_policy, save_policy, to_folder
from trl_dpo_ext.trainers.forward.precision import autocast_of


__all__ = ["WithFolders"]

logger = logging.get_logger(__name__)

_ROW_OPTIONS = [field.name for field in fields(RowOptions)]


class WithFolders:
    """Methods of a reward model that save and load it with everything that its scores depend on."""

    policy: Any
    reference: Any
    reference_free: bool
    processing_class: Any
    beta: float
    mixed_precision: str
    row_options: RowOptions

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        reference: Any = None,
        processing_class: Any = None,
        beta: float | None = None,
        reference_free: bool | None = None,
        dtype: str | torch.dtype | None = None,
        mixed_precision: str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        quantization_config: Any = None,
        check_reference: bool = True,
        **options: Any,
    ) -> Self:
        """
        Loads a policy with its reference and the options of its training.

        Args:
            name (`str` or `Path`):
                Folder or hub name of a model or an adapter. Models saved by this package need no other argument.
                Models from elsewhere need `beta` and, unless they are adapters, `reference`.
            reference (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
                Reference. Default: as in training.
            processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Tokenizer. Default: the tokenizer in the folder.
            beta (`float`, *optional*):
                Strength of the KL constraint. Default: as in training.
            reference_free (`bool`, *optional*):
                Whether rewards are beta log pi(y|x). Default: as in training.
            dtype (`str` or `torch.dtype`, *optional*):
                Dtype of the weights, applied after the reference has been checked. Default: as in training.
            mixed_precision (`str`, *optional*):
                Autocast. Default: as in training.
            device (`torch.device` or `str`, *optional*):
                Device to score on. Default: accelerate's device.
            revision (`str`, *optional*):
                Revision of the hub repository.
            token (`str`, *optional*):
                Token for the hub. Default: the stored login.
            quantization_config ([`~transformers.utils.quantization_config.QuantizationConfigMixin`], *optional*):
                Quantization of the base model. Default: as in training.
            check_reference (`bool`, *optional*, defaults to `True`):
                Whether to reject a reference whose hash differs from the one recorded in training.
            options:
                Options of [`ImplicitRewardModel`] that replace those of training. If only `max_length` changes,
                `max_prompt_length` becomes half of it.

        Returns:
            [`ImplicitRewardModel`]

        Raises:
            ValueError: If beta or the reference is unknown, or the reference is not the one used in training.
        """
        folder = to_folder(name, revision, token)
        device = torch.device(PartialState().device if device is None else device)
        with remote_code_explained(folder, "Load model and tokenizer yourself, and pass them to this class."):
            loaded = load_policy(
                folder,
                reference=reference,
                reference_free=reference_free,
                dtype=dtype,
                device=device,
                quantization_config=quantization_config,
                check_reference=check_reference,
            )
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        state = loaded.state
        beta = state.get("beta") if beta is None else beta
        if beta is None:
            raise ValueError(f"{name} does not record its beta. Pass `beta=`.")
        if "ld_alpha" in state:
            logger.warning(
                f"{name} was trained with `ld_alpha={state['ld_alpha']}`, which weights tokens by the lengths of a "
                "pair. Scores are of whole completions, so they differ from the logged rewards."
            )
        of_training = {field: state[field] for field in _ROW_OPTIONS if field in state}
        if "max_length" in options:
            of_training.pop("max_prompt_length", None)
        if "tokenization" in options:  # the other options of truncation depend on it
            of_training = {field: value for field, value in of_training.items() if field == "max_length"}
        build: Any = cls
        return build(
            loaded.policy,
            loaded.reference,
            processing_class,
            beta=beta,
            reference_free=loaded.reference_free,
            mixed_precision=mixed_precision or state.get("mixed_precision", "no"),
            device=device,
            **(of_training | options),
        )

    @classmethod
    def from_trainer(cls, trainer: Any, **options: Any) -> Self:
        """
        Builds the reward model from the models and options of a trainer of this package.

        Args:
            trainer ([`~trl_dpo_ext.trainers.base_trainer.BaseDPOTrainer`]):
                Trainer, before, during or after training.
            options:
                Options of [`ImplicitRewardModel`] that replace those of the trainer, and `reference`.

        Raises:
            ValueError: If the trainer has only cached log-probabilities of its reference.
        """
        reference_free = trainer.reference.kind == NONE
        reference = options.pop("reference", trainer.ref_model)
        if reference is None and not reference_free and not is_peft_model(trainer.model):
            raise ValueError(
                f"The trainer has no reference model in memory (reference: {trainer.reference.description}). Pass "
                "`reference=`, the policy that training started from."
            )
        of_trainer = vars(RowOptions.of(trainer.args))
        of_trainer |= {"beta": trainer.beta, "mixed_precision": autocast_of(trainer.accelerator)}
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        build: Any = cls
        return build(trainer.model, reference, tokenizer, reference_free=reference_free, **(of_trainer | options))

    def save_pretrained(self, folder: str | Path, *, save_reference: bool | None = None) -> None:
        """
        Saves everything that [`from_pretrained`] needs to reproduce the scores.

        Args:
            folder (`str` or `Path`):
                Folder for the policy (or its adapter), the tokenizer, `trl_dpo_ext.json` and the reference (in
                `reference/`), unless the reference is the policy without its adapter.
            save_reference (`bool`, *optional*):
                `False` records only the folder or hub name that the reference was loaded from.

        Raises:
            ValueError: If a model that is not saved has no such name.
        """
        kind = EXPLICIT
        if self.reference_free:
            kind = NONE
        elif self.reference is None:
            kind = ADAPTER_COPY if "ref" in self.policy.peft_config else ADAPTER_OFF
        state = {
            "trl_dpo_ext": trl_dpo_ext.__version__,
            "reference": {"kind": kind},
            "beta": self.beta,
            "mixed_precision": self.mixed_precision,
        }
        save_policy(folder, self.policy, self.reference, state | asdict(self.row_options), save_reference)
        self.processing_class.save_pretrained(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        save_reference: bool | None = None,
        private: bool | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> str:
        """
        Uploads the files of [`save_pretrained`].

        Args:
            repo_id (`str`):
                Name of the repository. It is created if it does not exist.
            save_reference (`bool`, *optional*):
                Same as in [`save_pretrained`].
            private (`bool`, *optional*):
                Whether a new repository is private.
            token (`str`, *optional*):
                Token for the hub. Default: the stored login.
            kwargs:
                Other arguments of `huggingface_hub.HfApi.upload_folder` (`revision`, `commit_message`, ...).

        Returns:
            `str`: URL of the commit.
        """
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, save_reference=save_reference)
            created = api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=created.repo_id, folder_path=folder, **kwargs))
