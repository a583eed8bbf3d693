"""What the program writes to stdout, which is data for whoever started it."""

import os
import sys

from relying_party.errors import SetupError


def out(text: str) -> None:
    """Write `text` to stdout at once; `SetupError` when it cannot be written, as on a full disk.

    `BrokenPipeError`: whoever read it has gone.
    """
    try:
        print(text, end="", flush=True)  # noqa: T201
    except BrokenPipeError:
        raise
    except OSError as error:
        forget_stdout()
        raise SetupError(f"cannot write to stdout: {error.strerror}") from error


def forget_stdout() -> None:
    """Give up what is still in the buffer of stdout: it must not fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
