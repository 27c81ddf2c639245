"""What a frontier is made of, read from a YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, get_args, get_origin

from trl_dpo_ext.frontier.methods import METHODS, Method
from trl_dpo_ext.spelling import did_you_mean


__all__ = ["KL_TARGET_OPTIONS", "FrontierConfig", "Run"]

# Options of a run with a KL target that are not those of a config: of its callback, and the beta that it starts with
KL_TARGET_OPTIONS = ("kl_horizon", "initial_beta")


@dataclass(frozen=True)
class Run:
    """
    A training run.

    Args:
        method (`str`):
            Key of [`METHODS`].
        knob (`str`, *optional*):
            Option that trades reward for KL.
        value (`float`, *optional*):
            Its value.
        seed (`int`):
            Seed of the order of the data, and of samples during training.
        options (`dict`):
            Options of the trainer's config.
    """

    method: str
    knob: str | None
    value: float | None
    seed: int
    options: dict[str, Any] = field(hash=False)

    @property
    def of(self) -> Method:
        """The method."""
        return METHODS[self.method]

    @property
    def setting(self) -> str:
        """Knob and value, as results name them."""
        return "" if self.knob is None else f"{self.knob}={self.value:g}"

    @property
    def name(self) -> str:
        """Name of the run: method, knob and seed."""
        return "_".join(part for part in (self.method, self.setting, f"seed={self.seed}") if part)


@dataclass(frozen=True, kw_only=True)
class FrontierConfig:
    """
    Everything about a frontier.

    Args:
        model (`str`):
            Base model: a folder, a name on the hub, or `file.py:function`, a function of no arguments that returns a
            model and its tokenizer.
        reward (`str`):
            True reward: `module:function` or `file.py:function` (of prompts and completions), or the folder or hub
            name of a sequence classifier.
        reward_label (`str`, *optional*):
            Label of the classifier whose probability is the reward.
        texts (`str`, *optional*):
            Rows with a column `text`. The base model is fine-tuned on them, and prompts are their beginnings.
        num_held_out_texts (`int`, *optional*, defaults to 500):
            Number of texts that only give prompts of the evaluation.
        sft (`dict`, *optional*):
            Options of [`trl.SFTConfig`]. Without them the base model is the initial policy.
        prefix_tokens (`list[int]`, *optional*, defaults to `[2, 8]`):
            Smallest and largest number of tokens of a prompt that is the beginning of a text.
        prompts, test_prompts (`str`, *optional*):
            Rows with a column `prompt`, in place of beginnings of the texts.
        num_prompts (`int`, *optional*, defaults to 2000):
            Number of prompts for training.
        num_test_prompts (`int`, *optional*, defaults to 512):
            Number of prompts of the evaluation. None of them is a prompt for training.
        samples_per_prompt (`int`, *optional*, defaults to 4):
            Number of samples of the initial policy for each prompt, which the reward ranks.
        reference_samples (`int`, *optional*, defaults to 64):
            Number of samples of the initial policy for each prompt of the evaluation, for best of N and the optimum.
        max_new_tokens (`int`, *optional*, defaults to 40):
            Largest number of tokens of a completion.
        evaluate_every (`int`, *optional*, defaults to 50):
            Number of updates between evaluations.
        training (`dict`, *optional*):
            Options of the configs of all trainers on pairs and rankings.
        rl (`dict`, *optional*):
            Options of the configs of all trainers that sample.
        reward_model (`dict`, *optional*):
            Options of [`trl.RewardConfig`], for the reward model of Eq. 2.
        save_policies (`bool`, *optional*, defaults to `False`):
            Whether to save the policy of each run in its folder, for runs that are trained from now on.
        runs (`list[dict]`):
            Runs. `method`, optionally a knob (`beta`, `alpha` or `kl_target`: a number or a list) and `seed` (a number
            or a list), and other options of the trainer's config. With `kl_target`, `kl_horizon` is the horizon of
            [`~trl_dpo_ext.rl.kl_target.KLTargetCallback`], and `initial_beta` the weight of the KL term at the start.
        seed (`int`, *optional*, defaults to 0):
            Seed of everything that the runs share.

    Raises:
        ValueError: If an option is missing, unknown or of another type. The message names it.
    """

    model: str
    reward: str
    runs: Sequence[Run]
    reward_label: str | None = None
    texts: str | None = None
    num_held_out_texts: int = 500
    sft: Mapping[str, Any] | None = None
    prefix_tokens: Sequence[int] = (2, 8)
    prompts: str | None = None
    test_prompts: str | None = None
    num_prompts: int = 2000
    num_test_prompts: int = 512
    samples_per_prompt: int = 4
    reference_samples: int = 64
    max_new_tokens: int = 40
    evaluate_every: int = 50
    training: Mapping[str, Any] = field(default_factory=dict)
    rl: Mapping[str, Any] = field(default_factory=dict)
    reward_model: Mapping[str, Any] = field(default_factory=dict)
    save_policies: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.texts is None and (self.prompts is None or self.test_prompts is None):
            raise ValueError("`texts`, or `prompts` and `test_prompts`, are needed.")
        if self.sft is not None and self.texts is None:
            raise ValueError("`sft` needs `texts` to fine-tune on.")
        for name in ("num_prompts", "num_test_prompts", "max_new_tokens", "evaluate_every", "reference_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}={getattr(self, name)}` must be at least 1.")
        if self.samples_per_prompt < 2:
            raise ValueError(f"`samples_per_prompt={self.samples_per_prompt}` must be at least 2.")
        low, high = self.prefix_tokens if len(self.prefix_tokens) == 2 else (0, 0)
        if not 1 <= low <= high:
            raise ValueError(
                f"`prefix_tokens={list(self.prefix_tokens)}` must be two numbers, of which the first is the smaller."
            )
        names = [run.name for run in self.runs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`runs` has {name} {names.count(name)} times.")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "FrontierConfig":
        """Returns the config of the mapping of a YAML file."""
        known = {one.name: one for one in fields(cls)}
        for name in options:
            if name not in known:
                raise ValueError(f"There is no option `{name}`.{did_you_mean(str(name), known)}")
        for name in ("model", "reward", "runs"):
            if not options.get(name):
                raise ValueError(f"`{name}` is missing.")
        for name, value in options.items():
            _check_type(name, value, known[name].type)
        training, rl = (options.get(name) or {} for name in ("training", "rl"))
        runs = [run for entry in options["runs"] for run in _runs(entry, training, rl)]
        return cls(**{**options, "runs": runs})


_WORDS = {bool: "true or false", str: "a text", int: "a whole number", dict: "a mapping of options", list: "a list"}


def _check_type(name: str, value: Any, annotation: Any) -> None:
    expected = [_kind(one) for one in get_args(annotation) if get_origin(annotation) is UnionType] or [
        _kind(annotation)
    ]
    if not isinstance(value, tuple(expected)) or (isinstance(value, bool) and bool not in expected):
        raise ValueError(f"`{name}` is {value!r}. Expected {_WORDS[expected[0]]}.")


def _kind(annotation: Any) -> Any:
    """The type of a value in YAML."""
    return {Mapping: dict, Sequence: list}.get(get_origin(annotation), annotation)


def _runs(entry: Any, training: Mapping[str, Any], rl: Mapping[str, Any]) -> list[Run]:
    """Runs of an entry: one for each value of the knob and each seed."""
    if not isinstance(entry, dict) or "method" not in entry:
        raise ValueError(f"A run in `runs` is {entry!r}. Expected a mapping with `method`.")
    options = dict(entry)
    name = options.pop("method")
    if name not in METHODS:
        raise ValueError(
            f"There is no method `{name}` in `runs`, only {', '.join(METHODS)}.{did_you_mean(str(name), METHODS)}"
        )
    method = METHODS[name]
    seeds = _numbers(options.pop("seed", 0), "seed", int)
    knobs = [knob for knob in method.knobs if knob in options]
    if len(knobs) > 1 or (method.knobs and not knobs):
        raise ValueError(f"A run of `{name}` needs one of {' and '.join(f'`{knob}`' for knob in method.knobs)}.")
    values = _numbers(options.pop(knobs[0]), knobs[0], float) if knobs else [None]
    for option in KL_TARGET_OPTIONS:
        if option in options and knobs != ["kl_target"]:
            raise ValueError(f"`{option}` of a run of `{name}` has no effect without `kl_target`.")
    shared = rl if method.is_rl else training
    knob = knobs[0] if knobs else None
    return [Run(name, knob, value, seed, {**shared, **options}) for value in values for seed in seeds]


def _numbers(value: Any, name: str, kind: type) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (int, float) if kind is float else int) or one < 0:
            raise ValueError(f"`{name}` in `runs` is {one!r}. Expected a number of at least 0, or a list of them.")
    return [kind(one) for one in values]
