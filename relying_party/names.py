"""Names in requests, of users, passkeys and devices. Their rule is in `program_parts.names`."""

from program_parts import names
from relying_party.errors import InvalidRequest


def name_of(text: str) -> str:
    """Normalise a name to form C; `InvalidRequest`, which does not repeat the text, when it is invalid."""
    try:
        return names.name_of(text)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
