"""How a command says that it cannot go on."""

import sys


__all__ = ["fail"]


def fail(command: str, message: object, status: int = 2) -> int:
    """
    Writes one message to standard error.

    Args:
        command (`str`):
            Name of the command.
        message (`str` or `Exception`):
            What is wrong, and the way out.
        status (`int`, *optional*, defaults to 2):
            Exit status.

    Returns:
        `int`: `status`.
    """
    # In one piece: the processes of a launch write into one stream
    sys.stderr.write(f"trl-dpo-ext {command}: {message}\n")
    return status
