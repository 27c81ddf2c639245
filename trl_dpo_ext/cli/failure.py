"""Error message of a command."""

import sys


__all__ = ["fail"]


def fail(command: str, message: object, status: int = 2) -> int:
    """
    Writes a message to standard error.

    Args:
        command (`str`):
            Name of the command.
        message (`str` or `Exception`):
            What is wrong and how to fix it.
        status (`int`, *optional*, defaults to 2):
            Exit status.

    Returns:
        `int`: `status`.
    """
    # One write, because the processes of a launch share a stream
    sys.stderr.write(f"trl-dpo-ext {command}: {message}\n")
    return status
