"""stdout of the program: data for whoever started it."""

from program_parts.command_line import forget_stdout
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
