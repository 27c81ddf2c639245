"""A sequence classifier, or a reward model trained by Eq. 2, as a reward."""

from pathlib import Path
from typing import Any, Self

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import AutoTokenizer

from trl_dpo_ext.data.remote_code import remote_code_explained
from trl_dpo_ext.models.limits import Limits
from trl_dpo_ext.models.loading import load_classifier
from trl_dpo_ext.reward_model.policy_folder import to_folder
from trl_dpo_ext.spelling import did_you_mean


__all__ = ["ClassifierReward"]


class ClassifierReward:
    r"""
    Reward by a sequence classifier.

    A model with one output is a reward model, and the output is the reward: \\( r_\phi(x, y) \\) of Eq. 2 of
    [Rafailov et al. (2023)](https://huggingface.co/papers/2305.18290) if `trl.RewardTrainer` trained it. Texts are
    tokenized as in its training: prompt and completion as one text that ends with the EOS token, or as messages by the
    chat template. The output is read at the last token that is not padding. That is the token before the EOS token if
    the padding token is the EOS token, in training as here.

    A model with several outputs is a classifier, and the reward is the probability of `label`. Texts are tokenized as
    the tokenizer does, without another EOS token.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model for sequence classification.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        label (`str`, *optional*):
            Label whose probability is the reward, by its name or index. Needed for a model with several.
        name (`str`, *optional*, defaults to `"classifier"`):
            Name in messages and results.
        max_tokens_per_batch (`int`, *optional*, defaults to `16384`):
            Maximum number of tokens of a forward pass.

    Raises:
        ValueError: If the label is missing or unknown, or a model with one output is given a label.

    Example:

    ```python
    from trl_dpo_ext.evaluation import ClassifierReward

    reward = ClassifierReward.from_pretrained("siebert/sentiment-roberta-large-english", label="POSITIVE")
    reward(["The film was"], [" superb."])  # [0.998]
    ```
    """

    def __init__(
        self,
        model: Any,
        processing_class: Any,
        label: str | None = None,
        *,
        name: str = "classifier",
        max_tokens_per_batch: int = 16384,
    ):
        self.model = model
        self.processing_class = processing_class
        self.max_tokens_per_batch = max_tokens_per_batch
        self.__name__ = name
        config = model.config.get_text_config()
        self.label = _index_of(label, model.config, name)
        if config.pad_token_id is None:  # without one, the model takes one text at a time
            config.pad_token_id = processing_class.pad_token_id or processing_class.eos_token_id
        self._pad_token_id = config.pad_token_id
        self._limits = Limits(model.get_base_model() if is_peft_model(model) else model)
        model.eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        label: str | None = None,
        *,
        processing_class: Any = None,
        dtype: str | torch.dtype = "auto",
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> Self:
        """
        Loads a classifier.

        Args:
            name (`str` or `Path`):
                Folder or hub name of a model, or of an adapter that `trl.RewardTrainer` saved.
            label (`str`, *optional*):
                Same as in [`ClassifierReward`].
            processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Tokenizer. Default: the tokenizer in the folder.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Dtype of the weights. Default: as saved.
            device (`torch.device` or `str`, *optional*):
                Device. Default: accelerate's device.
            revision (`str`, *optional*):
                Revision of the hub repository.
            token (`str`, *optional*):
                Token for the hub. Default: the stored login.
            options:
                Other arguments of [`ClassifierReward`].

        Raises:
            ValueError: If weights are missing, such as those of the head, or the label is missing or unknown.
        """
        folder = to_folder(name, revision, token)
        device = torch.device(PartialState().device if device is None else device)
        with remote_code_explained(folder, "Load model and tokenizer yourself, and pass them to this class."):
            model = load_classifier(folder, dtype=dtype, trust_remote_code=False).to(device)
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return cls(model, processing_class, label, **{"name": Path(name).name, **options})

    def __call__(self, prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
        """
        Returns the rewards of completions.

        Args:
            prompts (`list`):
                Texts or lists of messages.
            completions (`list`):
                A completion of each prompt, of the same type.
            kwargs:
                Other arguments that TRL passes to reward functions. They have no effect.

        Raises:
            ValueError: If a text is longer than the model supports.
        """
        rows = [self.tokenize(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        for row, completion in zip(rows, completions, strict=True):
            self._check_length(len(row), completion)
        rewards: list[float] = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        while order:
            size = max(1, self.max_tokens_per_batch // len(rows[order[0]]))
            batch, order = order[:size], order[size:]
            for i, reward in zip(batch, self._rewards([rows[i] for i in batch]), strict=True):
                rewards[i] = reward
        return rewards

    def tokenize(self, prompt: Any, completion: Any) -> list[int]:
        """Returns the token ids of a prompt with its completion, those of `trl.RewardTrainer` for a reward model."""
        tokenizer = self.processing_class
        if not isinstance(prompt, str):
            ids: list[int] = tokenizer.apply_chat_template([*prompt, *completion], tokenize=True, return_dict=True)[
                "input_ids"
            ]
            return ids
        text = prompt + completion
        if self.label is None and not text.endswith(tokenizer.eos_token):
            text += tokenizer.eos_token
        return list(tokenizer(text)["input_ids"])

    def _rewards(self, rows: list[list[int]]) -> list[float]:
        width = max(map(len, rows))
        ids = torch.tensor([row + [self._pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = self.model.device
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.double()
        if self.label is None:
            values = logits[:, 0]
        elif self.model.config.problem_type == "multi_label_classification":
            values = logits[:, self.label].sigmoid()
        else:
            values = logits.softmax(dim=1)[:, self.label]
        rewards: list[float] = values.tolist()
        return rewards

    def _check_length(self, length: int, completion: Any) -> None:
        if self._limits.positions is not None and length > self._limits.positions:
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            raise ValueError(
                f"with its prompt, {text[:40]!r}... has {length} tokens, and the model supports "
                f"{self._limits.positions}. Lower `max_new_tokens`, or shorten the prompts."
            )


def _index_of(label: str | None, config: Any, name: str) -> int | None:
    """Index of a label, or `None` for a reward model."""
    names = [config.id2label[i] for i in range(config.num_labels)]
    if config.num_labels == 1:
        if label is not None:
            raise ValueError(
                f"{name} has one output, which is the reward. `label={label!r}` has no effect. Leave it out."
            )
        return None
    if label is None:
        raise ValueError(
            f"{name} is a classifier of {', '.join(map(repr, names))}. Pass the label whose probability is the "
            "reward, as `label`."
        )
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise ValueError(
        f"{name} has no label {label!r}, only {', '.join(map(repr, names))}.{did_you_mean(label, names, repr)}"
    )
