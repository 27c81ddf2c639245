"""Reading of a YAML recipe."""

from pathlib import Path
from typing import Any

import yaml

from trl_dpo_ext.spelling import did_you_mean_path


__all__ = ["read_recipe"]


def read_recipe(path: Path) -> dict[str, Any]:
    """
    Reads a recipe.

    Args:
        path (`Path`):
            UTF-8 file with a YAML mapping without duplicate keys.

    Returns:
        `dict[str, Any]`: Values by option name.

    Raises:
        ValueError: If the file does not exist or is not a recipe. The message names the line if possible.
        OSError: If it cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder. `--config` needs the path of a recipe.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        recipe = yaml.load(text, _UniqueKeys)  # noqa: S506 - a safe loader
    except FileNotFoundError:
        raise ValueError(f"there is no recipe {path}.{did_you_mean_path(path)}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8 text. Save it in UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1},"
        raise ValueError(f"{path}{line} is not YAML: {getattr(error, 'problem', None) or error}.") from None
    except (ValueError, RecursionError) as error:  # an impossible date or number, or too deep nesting
        raise ValueError(f"{path} is not YAML: {error}.") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is not a YAML mapping of options to values.")
    return recipe


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"`{key.value}` occurs twice, first in line {seen[key.value]}", key.start_mark
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep)
