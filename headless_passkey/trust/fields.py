"""The encoding of everything that is signed, MACed or handed over: canonical CBOR ``[label, …]``.

The label separates the formats (domain separation), so that no byte string of one format is valid in another. `Fields`
takes the items in order and checks type and size of each.
"""

import secrets
from collections.abc import Callable
from typing import Any, Final, TypeVar

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.text.base64url import from_base64url, new_id
from headless_passkey.trust.signing import NAME_SIZE
from program_parts.base64url import base64url
from program_parts.names import why_not_plain

PROJECT: Final = "headless-passkey"
MAX_TIME: Final = 1 << 48  # seconds; later than any clock, and exact in every language's integers

ACCOUNT_SIZE: Final = 22  # characters: base64url of 16 bytes
REQUEST_ID_SIZE: Final = 16  # bytes

T = TypeVar("T")


def new_account() -> str:
    """Make the id of a new account: base64url of 16 random bytes, 22 characters."""
    return base64url(new_id(lambda: secrets.token_bytes(16)))


def is_account(text: str) -> bool:
    """Whether `text` is an account's id."""
    try:
        return len(text) == ACCOUNT_SIZE and len(from_base64url(text)) == 16
    except RemoteProtocolError:
        return False


class Fields:
    """The items of one CBOR array, taken in order."""

    def __init__(self, items: Any, what: str, count: int) -> None:
        """what: for messages. count: how many items there must be."""
        if not isinstance(items, list):
            raise RemoteProtocolError(
                f"{what}: expected a CBOR array, got {type(items).__name__}",
                reason=ProtocolReason.MALFORMED_DOCUMENT,
            )
        if len(items) != count:
            raise RemoteProtocolError(
                f"{what}: expected {count} items, got {len(items)}", reason=ProtocolReason.MALFORMED_DOCUMENT
            )
        self._items = iter(items)
        self._what = what

    @classmethod
    def of(cls, data: bytes, label: str, count: int, *, limit: int) -> "Fields":
        """Parse `data`, at most `limit` bytes: an array of `label` and `count` more items."""
        if len(data) > limit:
            raise RemoteProtocolError(
                f"{label}: {len(data)} bytes, more than {limit}", reason=ProtocolReason.TOO_LONG
            )
        fields = cls(cbor.decode(data), label, count + 1)
        if fields.take() != label:
            raise RemoteProtocolError(
                f"expected the label {label!r}, got another", reason=ProtocolReason.MALFORMED_DOCUMENT
            )
        return fields

    def take(self) -> Any:
        """Take the next item, of any type."""
        return next(self._items)

    def integer(self, lowest: int, highest: int) -> int:
        value = self.take()
        if type(value) is not int or not lowest <= value <= highest:
            raise RemoteProtocolError(
                f"{self._what}: expected an integer from {lowest} to {highest}",
                reason=ProtocolReason.MALFORMED_DOCUMENT,
            )
        return value

    def time(self) -> int:
        """Take a time in Unix seconds."""
        return self.integer(0, MAX_TIME)

    def octets(self, shortest: int, longest: int | None = None) -> bytes:
        """Take a byte string of exactly `shortest` bytes, or of `shortest` to `longest`."""
        longest = shortest if longest is None else longest
        value = self.take()
        if not isinstance(value, bytes) or not shortest <= len(value) <= longest:
            size = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
            raise RemoteProtocolError(
                f"{self._what}: expected a byte string of {size} bytes",
                reason=ProtocolReason.MALFORMED_DOCUMENT,
            )
        return value

    def text(self, longest: int) -> str:
        """Take text that people may be shown: a valid name of at most `longest` characters."""
        value = self.take()
        if not isinstance(value, str):
            raise RemoteProtocolError(
                f"{self._what}: expected text, got {type(value).__name__}",
                reason=ProtocolReason.MALFORMED_DOCUMENT,
            )
        if wrong := why_not_plain(value, longest):
            raise RemoteProtocolError(
                f"{self._what}: a text {wrong}", reason=ProtocolReason.MALFORMED_DOCUMENT
            )
        return value

    def name(self) -> str:
        """Take a member's name: base64url of 32 bytes."""
        value = self.take()
        if not isinstance(value, str) or len(value) != NAME_SIZE:
            raise RemoteProtocolError(
                f"{self._what}: expected a member's name of {NAME_SIZE} characters",
                reason=ProtocolReason.MALFORMED_DOCUMENT,
            )
        from_base64url(value)
        return value

    def account(self) -> str:
        """Take an account's id: base64url of 16 bytes."""
        value = self.take()
        if not isinstance(value, str) or not is_account(value):
            raise RemoteProtocolError(
                f"{self._what}: expected an account's id of {ACCOUNT_SIZE} characters",
                reason=ProtocolReason.MALFORMED_DOCUMENT,
            )
        return value

    def truth(self) -> bool:
        value = self.take()
        if not isinstance(value, bool):
            raise RemoteProtocolError(
                f"{self._what}: expected true or false", reason=ProtocolReason.MALFORMED_DOCUMENT
            )
        return value

    def optional(self, take: Callable[[], T]) -> T | None:
        """Take null as None, or the next item with `take`."""
        item = self.take()
        if item is None:
            return None
        rest = self._items
        self._items = _prepend(item, rest)
        return take()


def _prepend(item: Any, rest: Any) -> Any:
    yield item
    yield from rest
