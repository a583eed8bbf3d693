"""The parser of Server-Sent Events (WHATWG HTML §9.2.6), bounded. It is pure: bytes come in, events go out.

Two things are stricter than the standard: a stream is UTF-8 or refused, and an event has a largest size, comments and unknown
fields included.
"""

from dataclasses import dataclass
from typing import Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError

_MARK: Final = "\ufeff".encode()  # a byte order mark, which may begin a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event."""

    name: str  # its type
    data: str


class EventParser:
    """Parses one stream. After an error it is not to be used any more."""

    def __init__(self, *, longest: int) -> None:
        """longest: bytes of one event, as it is sent."""
        self._longest = longest
        self._line = bytearray()  # without its end
        self._size = 0  # of the event up to now
        self._name, self._data = "", list[str]()
        self._begun = False  # whether the first line has been
        self._after_return = False  # whether a line feed belongs to the end of the line before

    def feed(self, chunk: bytes) -> list[Event]:
        """Parse the next bytes; returns the events that end in them. `RemoteProtocolError` for too long an event, or no UTF-8."""
        events = []
        if chunk:
            chunk = chunk.removeprefix(b"\n") if self._after_return else chunk
            self._after_return = chunk.endswith(b"\r")
        for line in chunk.splitlines(keepends=True):  # of bytes: at CR, LF and CRLF, and nowhere else
            self._size += len(line)
            if self._size > self._longest:
                raise RemoteProtocolError(
                    f"an event of more than {self._longest} bytes", reason=ProtocolReason.TOO_LONG
                )
            content = line.rstrip(b"\r\n")
            self._line += content
            if len(content) == len(line):  # the end is still to come
                break
            event = self._end_line()
            if event is not None:
                events.append(event)
        return events

    def _end_line(self) -> Event | None:
        line, self._line = bytes(self._line), bytearray()
        if not self._begun:
            self._begun, line = True, line.removeprefix(_MARK)
        if not line:
            return self._dispatch()
        if line.startswith(b":"):
            self._forget_what_is_over()
            return None
        field, _, value = line.partition(b":")
        try:
            text = value.removeprefix(b" ").decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(
                "an event is not UTF-8", reason=ProtocolReason.MALFORMED_ANSWER
            ) from error
        if field == b"event":
            self._name = text
        elif field == b"data":
            self._data.append(text)
        return None

    def _dispatch(self) -> Event | None:
        """End the event. One without data is none."""
        name, data = self._name or "message", self._data
        self._name, self._data, self._size = "", [], 0
        return Event(name=name, data="\n".join(data)) if data else None

    def _forget_what_is_over(self) -> None:
        """A comment outside of an event counts for none: a stream may consist of comments alone."""
        if not self._name and not self._data:
            self._size = 0
