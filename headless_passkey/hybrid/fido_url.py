"""The FIDO URL: what a QR code of the hybrid transport holds (CTAP 2.2 §11.5.1).

``FIDO:/`` and decimal digits: a CBOR map cut into 7-byte chunks, each chunk a little-endian number in 17
digits, the last one in fewer. Whoever holds the URL can take part in the transaction, so the URL is a secret until it
expires, and no repr shows it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.data_channel import DataChannel
from headless_passkey.hybrid.keys import KeyPurpose, derive, parse_compressed
from headless_passkey.hybrid.tunnel_url import TUNNEL_ID_SIZE

PREFIX: Final = "FIDO:/"
SECRET_SIZE: Final = 16
MAX_LENGTH: Final = 4096  # characters; a URL with every key has about 170

_CHUNK: Final = 7
_DIGITS: Final = {7: 17, 6: 15, 5: 13, 4: 10, 3: 8, 2: 5, 1: 3}  # bytes → digits
_BYTES: Final = {digits: size for size, digits in _DIGITS.items()}

_PUBLIC_KEY, _SECRET, _ASSIGNED_DOMAINS, _TIME, _LINKING, _HINT, _CHANNELS = range(7)


class RequestKind(StrEnum):
    """What a device asks the phone for, in the strings of key 5 (§11.5.1).

    In a FIDO URL it is a hint: the CTAP2 command that follows decides. An envelope signs it, and the companion checks
    that URL and envelope ask for the same.
    """

    GET_ASSERTION = "ga"
    MAKE_CREDENTIAL = "mc"
    DIGITAL_PRESENTATION = "dcp"
    DIGITAL_ISSUANCE = "dci"


@dataclass(frozen=True, slots=True, kw_only=True)
class FidoUrl:
    """The map inside the URL."""

    public_key: bytes  # key 0: 33 bytes, compressed P-256, fresh for every URL
    secret: bytes = field(repr=False)  # key 1: the QR secret, 16 bytes, fresh for every URL
    assigned_domains: int = 0  # key 2: how many assigned tunnel domains the client platform knows
    time: int | None = None  # key 3: Unix seconds
    linking: bool | None = None  # key 4: keeps links; None when absent, which some phones take for revision 0
    hint_raw: str | None = None  # key 5 as received
    channels: tuple[int, ...] | None = (
        None  # key 6, CTAP 2.3: numbers of `DataChannel` and others; None when absent
    )
    unknown_keys: tuple[Any, ...] = ()  # unknown keys, which are ignored

    @property
    def hint(self) -> RequestKind:
        """The kind that the hint means; an absent or unknown hint means ``ga``."""
        try:
            return RequestKind(self.hint_raw or "")
        except ValueError:
            return RequestKind.GET_ASSERTION

    def offers(self, channel: DataChannel) -> bool:
        """Whether the client platform can use a channel; without key 6 it has the tunnel only."""
        return channel in ((DataChannel.WEBSOCKET,) if self.channels is None else self.channels)

    @property
    def tunnel_id(self) -> bytes:
        """The tunnel ID, 16 bytes: derived from the QR secret alone, so it tells a tunnel service nothing about the advert."""
        return derive(self.secret, b"", KeyPurpose.TUNNEL_ID, TUNNEL_ID_SIZE)

    @classmethod
    def parse(cls, text: str) -> "FidoUrl":
        """Parse a FIDO URL; `RemoteProtocolError` for anything else."""
        if len(text) > MAX_LENGTH:
            raise RemoteProtocolError(
                f"a FIDO URL of {len(text)} characters is too long", reason=ProtocolReason.TOO_LONG
            )
        if not text.isascii() or text[: len(PREFIX)].upper() != PREFIX:
            raise RemoteProtocolError(
                "a FIDO URL is ASCII and starts with FIDO:/", reason=ProtocolReason.MALFORMED_FIDO_URL
            )
        values = cbor.decode_map(decode_digits(text[len(PREFIX) :]))
        public_key, secret = values.get(_PUBLIC_KEY), values.get(_SECRET)
        if not isinstance(public_key, bytes):
            raise RemoteProtocolError(
                "the FIDO URL has no public key", reason=ProtocolReason.MALFORMED_FIDO_URL
            )
        parse_compressed(public_key)
        if not isinstance(secret, bytes) or len(secret) != SECRET_SIZE:
            raise RemoteProtocolError(
                "the FIDO URL has no QR secret of 16 bytes", reason=ProtocolReason.MALFORMED_FIDO_URL
            )
        return cls(
            public_key=public_key,
            secret=secret,
            assigned_domains=_unsigned(values, _ASSIGNED_DOMAINS) or 0,
            time=_unsigned(values, _TIME),
            linking=_optional(values, _LINKING, bool),
            hint_raw=_optional(values, _HINT, str),
            channels=_channels(values.get(_CHANNELS, False)),
            unknown_keys=tuple(key for key in values if key not in range(7)),
        )

    def encode(self) -> str:
        """Encode the URL in upper case and digits, so that a QR code can use its alphanumeric and numeric modes."""
        values: dict[int, Any] = {
            _PUBLIC_KEY: self.public_key,
            _SECRET: self.secret,
            _ASSIGNED_DOMAINS: self.assigned_domains,
            _TIME: self.time,
            _LINKING: self.linking,
            _HINT: self.hint_raw,
            _CHANNELS: None if self.channels is None else list(self.channels),
        }
        present = {key: value for key, value in values.items() if value is not None}
        return PREFIX + encode_digits(cbor.encode(present))


def encode_digits(data: bytes) -> str:
    """Encode `data` as decimal digits, 17 for every 7 bytes."""
    chunks = (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
    return "".join(f"{int.from_bytes(chunk, 'little'):0{_DIGITS[len(chunk)]}d}" for chunk in chunks)


def decode_digits(digits: str) -> bytes:
    """Decode decimal digits; refuses other characters, impossible lengths, and values out of range."""
    if not digits.isascii() or (digits and not digits.isdigit()):
        raise RemoteProtocolError(
            "a FIDO URL holds ASCII digits only", reason=ProtocolReason.MALFORMED_FIDO_URL
        )
    step, data = _DIGITS[_CHUNK], bytearray()
    for start in range(0, len(digits), step):
        chunk = digits[start : start + step]
        size = _BYTES.get(len(chunk))
        if size is None:
            raise RemoteProtocolError(
                f"{len(chunk)} digits at the end encode no whole number of bytes",
                reason=ProtocolReason.MALFORMED_FIDO_URL,
            )
        try:
            data += int(chunk).to_bytes(size, "little")
        except OverflowError as error:
            raise RemoteProtocolError(
                f"{len(chunk)} digits exceed {size} bytes", reason=ProtocolReason.MALFORMED_FIDO_URL
            ) from error
    return bytes(data)


def _optional(values: dict[Any, Any], key: int, kind: type) -> Any:
    value = values.get(key)
    if key in values and type(value) is not kind:
        raise RemoteProtocolError(
            f"key {key} of the FIDO URL has the wrong type", reason=ProtocolReason.MALFORMED_FIDO_URL
        )
    return value


def _unsigned(values: dict[Any, Any], key: int) -> int | None:
    value: int | None = _optional(values, key, int)
    if value is not None and value < 0:
        raise RemoteProtocolError(
            f"key {key} of the FIDO URL is negative", reason=ProtocolReason.MALFORMED_FIDO_URL
        )
    return value


def _channels(value: Any) -> tuple[int, ...] | None:
    """Parse key 6. Older drafts had a boolean there: a client that sends one means the websocket only."""
    if isinstance(value, bool):
        return None
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise RemoteProtocolError(
            "key 6 of the FIDO URL is not a list of channels", reason=ProtocolReason.MALFORMED_FIDO_URL
        )
    return tuple(value)
