"""Names that a caller gives, and the SDK's way to show text of others. The rule is in `program_parts.names`."""

from headless_passkey.errors import UsageError
from program_parts import names
from program_parts.names import MAX_SHOWN


def name_of(text: str) -> str:
    """Normalise a name to form C; `UsageError`, which does not repeat the text, when it is invalid."""
    try:
        return names.name_of(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Escape `text` for a terminal: one line, without control sequences and hidden characters.

    Controls, line ends, direction overrides and invisible characters are spelled out as ``<U+001B>``. So are
    joiners that join nothing, and marks that would pile up or be drawn on what is not part of `text`; otherwise
    a valid name is shown as it is. limit: code points of `text`; an ellipsis stands for what is beyond.
    """
    return names.printable(text, limit)
