"""What the program writes: stdout is data for whoever started it, and messages repeat no secret that came as an argument."""

import os
import re
import sys
from typing import Final

from relying_party.errors import SetupError

_HIDDEN: Final = "\N{HORIZONTAL ELLIPSIS}"
# account codes and invitations, FIDO URLs; JWTs, each looked for from the start of its word, so that a word is read once; and the
# password of a URL
_KNOWN: Final = r"""(?i)(hpk-[a-z]+:|FIDO:/)[^\s'"]*[^\s'":;,.)]|(?<![\w-])((?>[\w-]*?eyJ))[\w-]++\.[\w-]++\.[\w-]*|(://[^\s/:@'"]*:)[^\s/@'"]+(?=@)"""
_LONG: Final = r"(?a)(?<![A-Za-z0-9_+/.~-])[A-Za-z0-9_+-][A-Za-z0-9_+/-]{19,}={0,2}"  # no path


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


def without_secrets(text: str) -> str:
    """Replace the secrets in `text` that have a form of ours, and passwords in URLs, by an ellipsis."""
    return re.sub(_KNOWN, lambda found: f"{found[1] or found[2] or found[3]}{_HIDDEN}", text)


def without_keys(text: str) -> str:
    """Replace what looks like a key or a code too: 20 characters or more of base64 or digits that are no words."""
    return re.sub(_LONG, lambda found: _HIDDEN if _is_random(found[0]) else found[0], without_secrets(text))


def _is_random(run: str) -> bool:
    kinds = ("[0-9]", "[a-z]", "[A-Z]")
    return run.isdigit() or all(re.search(kind, run) for kind in kinds)
