"""Typed access to the members of JSON objects: answers of servers, and files of a state directory.

A wrong member raises what fits the source: a protocol violation by the peer, or a damaged file.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.text.base64url import from_base64url

_WORD: Final = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_HALF: Final = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can write it, and no encoding has it


def answer_members(value: Any, what: str) -> "Members":
    """Read a peer's answer; a wrong member raises `RemoteProtocolError`."""
    return Members(
        value, what, error=lambda why: RemoteProtocolError(why, reason=ProtocolReason.MALFORMED_ANSWER)
    )


def file_members(value: Any, what: str) -> "Members":
    """Read a file's content; a wrong member raises `ValueError`, which the caller translates to a damaged file."""
    return Members(value, what, error=ValueError)


class Members:
    """The members of a JSON object, read by name and type; unknown ones are ignored."""

    def __init__(self, value: Any, what: str, *, error: Callable[[str], Exception]) -> None:
        """what: names the object, for people. error: makes what is raised for a value that is not as expected."""
        self._what, self._error = what, error
        if not isinstance(value, dict):
            raise error(f"{what}: expected a JSON object")
        self._value = value

    def has(self, name: str) -> bool:
        """Whether the member is there, and not null."""
        return self._value.get(name) is not None

    def text(self, name: str, longest: int = 256) -> str:
        value = self._value.get(name)
        if not isinstance(value, str) or len(value) > longest or _HALF.search(value):
            raise self._wrong(name, f"text of at most {longest} characters")
        return value

    def optional_text(self, name: str, longest: int = 256) -> str | None:
        return None if self._value.get(name) is None else self.text(name, longest)

    def word(self, name: str) -> str:
        """Read a word of a protocol: at most 64 of [a-z0-9-], safe to show on a terminal."""
        value = self._value.get(name)
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            raise self._wrong(name, "a word of at most 64 of [a-z0-9-]")
        return value

    def optional_word(self, name: str) -> str | None:
        return None if self._value.get(name) is None else self.word(name)

    def integer(self, name: str, highest: int = 1 << 48) -> int:
        value = self._value.get(name)
        if type(value) is not int or not 0 <= value <= highest:
            raise self._wrong(name, f"a whole number of at most {highest}")
        return value

    def octets(self, name: str, shortest: int, longest: int | None = None) -> bytes:
        """Read bytes in base64url: exactly `shortest`, or `shortest` to `longest`."""
        longest = shortest if longest is None else longest
        sizes = f"{shortest}" if longest == shortest else f"{shortest} to {longest}"
        expected = f"{sizes} bytes in base64url"
        try:
            data = from_base64url(self.text(name, longest * 2))
        except RemoteProtocolError as error:
            raise self._wrong(name, expected) from error
        if not shortest <= len(data) <= longest:
            raise self._wrong(name, expected)
        return data

    def optional_octets(self, name: str, shortest: int, longest: int | None = None) -> bytes | None:
        return None if self._value.get(name) is None else self.octets(name, shortest, longest)

    def boolean(self, name: str) -> bool:
        """Read a boolean; False where absent."""
        value = self._value.get(name, False)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Read a nested object, whose members are not checked here."""
        value = self._value.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def object(self, name: str) -> "Members":
        return self._inner(name, self._value.get(name))

    def optional_object(self, name: str) -> "Members | None":
        return None if self._value.get(name) is None else self.object(name)

    def items(self, name: str, most: int = 1024) -> list[Any]:
        value = self._value.get(name)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, f"a list of at most {most}")
        return value

    def optional_items(self, name: str, most: int = 1024) -> list[Any]:
        return [] if self._value.get(name) is None else self.items(name, most)

    def objects(self, name: str, most: int = 1024) -> list["Members"]:
        return [self._inner(name, item) for item in self.items(name, most)]

    def _inner(self, name: str, value: Any) -> "Members":
        return Members(value, f"{self._what}: {name}", error=self._error)

    def _wrong(self, name: str, expected: str) -> Exception:
        return self._error(f"{self._what}: {name}: expected {expected}")
