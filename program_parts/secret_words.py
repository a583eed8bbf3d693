"""Secrets that somebody gave as an argument by mistake: messages name them and do not repeat them.

An argument is visible to all users of a machine, and messages go to logs.
"""

import re
from typing import Final

_HIDDEN: Final = "\N{HORIZONTAL ELLIPSIS}"
# account codes and invitations, FIDO URLs; JWTs, each looked for from the start of its word, so that a word is read once; and the
# password of a URL
# they are compiled when they are first used: a start needs neither
_KNOWN: Final = r"""(?i)(hpk-[a-z]+:|FIDO:/)[^\s'"]*[^\s'":;,.)]|(?<![\w-])((?>[\w-]*?eyJ))[\w-]++\.[\w-]++\.[\w-]*|(://[^\s/:@'"]*:)[^\s/@'"]+(?=@)"""
_LONG: Final = r"(?a)(?<![A-Za-z0-9_+/.~-])[A-Za-z0-9_+-][A-Za-z0-9_+/-]{19,}={0,2}"  # no path


def without_secrets(text: str) -> str:
    """Replace the secrets in `text` that have a form of ours, and passwords in URLs, by an ellipsis."""
    return re.sub(_KNOWN, lambda found: f"{found[1] or found[2] or found[3]}{_HIDDEN}", text)


def without_keys(text: str) -> str:
    """Replace what looks like a key or a code too: 20 characters or more of base64 or digits that are no words."""
    return re.sub(_LONG, lambda found: _HIDDEN if _is_random(found[0]) else found[0], without_secrets(text))


def looks_secret(text: str) -> bool:
    """Whether `text` has the form of a secret of ours, so that it is none of the files in which those belong."""
    return without_secrets(text) != text


def _is_random(run: str) -> bool:
    kinds = ("[0-9]", "[a-z]", "[A-Z]")
    return run.isdigit() or all(re.search(kind, run) for kind in kinds)
