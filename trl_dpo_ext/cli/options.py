"""Options of a training command, read from the command line and a recipe, with one-line errors."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any, get_args, get_origin, get_type_hints

from trl import TrlParser

from trl_dpo_ext.spelling import did_you_mean
from trl_dpo_ext.trainers.options.option_checks import VALUES
from trl_dpo_ext.trainers.options.secrets import shown


__all__ = ["OptionParser"]

# What an option accepts, by the name of the function that reads it
_KINDS = {"float": "a number", "int": "a whole number", "string_to_bool": "true or false"}

# Names of options in other libraries or versions
_ALIASES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "global_batch_size",
    "model": "model_name_or_path",
    "dataset": "dataset_name",
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps",
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy",
    "no_cuda": "use_cpu",
    "lora_rank": "lora_r",
}


class OptionParser(TrlParser):
    """
    [`trl.TrlParser`] that raises a `ValueError` with one line where argparse prints its usage and exits.

    Args:
        command (`str`):
            Name of the command.
        dataclasses (`Iterable[type]`):
            Dataclasses whose fields are the options.
    """

    def __init__(self, command: str, dataclasses: Iterable[type]) -> None:
        # `TrlParser` removes it before parsing; it is added here for `--help`
        config = argparse.ArgumentParser(add_help=False)
        config.add_argument(
            "--config",
            metavar="RECIPE",
            default=argparse.SUPPRESS,
            help="YAML file with options. Options on the command line replace those in the file.",
        )
        classes = tuple(dataclasses)
        super().__init__(
            classes,
            prog=f"trl-dpo-ext {command}",
            usage=f"trl-dpo-ext {command} [--config RECIPE] [--OPTION VALUE ...]",
            parents=[config],
            allow_abbrev=False,
            exit_on_error=False,
        )
        self.names = {action.dest for action in self._actions} | {"env"}
        self.flags = {flag for action in self._actions for flag in action.option_strings}
        self._readers: dict[str, Callable[[str], Any]] = {}
        for action in self._actions:
            if action.type is not None:
                of_text = VALUES.get(action.dest) if action.type is str else None
                choices = of_text or action.choices
                self._readers[action.dest] = action.type = _reader(action.type, choices)
        self._listed = {action.dest for action in self._actions if action.nargs == "+"}
        self._hints = {name: hint for each in classes for name, hint in get_type_hints(each).items()}

    def check_name(self, name: str, where: str = "", as_flag: bool = False) -> None:
        """
        Checks that an option exists. With `as_flag`, its forms on the command line are valid too (`no_...`, hyphens).

        Raises:
            ValueError: If it does not exist. The message suggests the nearest name.
        """
        if not (f"--{name}" in self.flags if as_flag else name in self.names):
            alias = _ALIASES.get(name.replace("-", "_"))
            hint = f" Did you mean `{alias}`?" if alias in self.names else did_you_mean(name, self.names)
            raise ValueError(f"there is no option `{name}`{where}.{hint}")

    def check_value(self, name: str, value: Any, where: str) -> None:
        """
        Checks a value in a recipe. Argparse does not check values that are not text.

        Args:
            name (`str`):
                Option.
            value:
                Value as read from YAML.
            where (`str`):
                Place of the value, for the message.

        Raises:
            ValueError: If the option does not accept the value.
        """
        if value is None or name not in self._readers:
            return
        takes_list = _holds(self._hints.get(name), list)
        for kind, found in ((list, "a list"), (dict, "a mapping")):
            if isinstance(value, kind) and not _holds(self._hints.get(name), kind):
                takes = "a list" if takes_list else "one value"
                raise ValueError(f"`{name}`{where}: {shown(value, name)} is {found}, but it accepts {takes}.")
        values = value if isinstance(value, list) and name in self._listed else [value]
        for single in values:
            if isinstance(single, (list, dict)):
                continue
            try:
                self._readers[name](str(single))
            except argparse.ArgumentTypeError as error:
                quote = single is False and "'no'" in str(error)
                advice = " YAML reads no without quotes as false. Write 'no' with quotes." if quote else ""
                if isinstance(single, str) and single.rstrip().endswith(","):
                    advice = " YAML reads the comma as part of the value. Remove the comma."
                raise ValueError(f"`{name}`{where}: {error}{advice}") from None

    def parse_known_args(self, args=None, namespace=None):
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            name = (error.argument_name or "").split("/")[0].lstrip("-")
            message = error.message if error.message.endswith((".", "?")) else f"{error.message}."
            raise ValueError(f"`{name}`: {message}") from None


def _reader(read: Callable[[str], Any], choices: Iterable[Any] | None) -> Callable[[str], Any]:
    # Reads a value like argparse, with errors in the style of this package
    def value_of(text: str) -> Any:
        try:
            value = read(text)
        except (TypeError, ValueError, argparse.ArgumentTypeError):
            kind = _KINDS.get(read.__name__, f"one of the values of `{read.__name__}`")
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {kind}.") from None
        if choices is not None and value not in choices:
            near = did_you_mean(text, map(str, choices), repr, cutoff=0.8)
            every = f" Choose one of {', '.join(map(repr, choices))}."
            raise argparse.ArgumentTypeError(f"{shown(text)} does not exist.{near or every}")
        return value

    return value_of


def _holds(hint: Any, kind: type) -> bool:
    # Whether the annotation of a field is or contains `kind`, for example a list
    return any(part is kind or get_origin(part) is kind for part in (hint, *get_args(hint)))
