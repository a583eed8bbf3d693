"""How a phone registers with a tunnel service to be woken, and how it is woken: paths and messages, for both ends. Pure.

CTAP 2.2 §11.5.2 leaves this to the vendor of the phone. Here a phone holds a websocket at `PATH` and registers
*registration secrets*, one for each device that it is linked with. A contact ID is the hash of such a secret: the device,
which gets the contact ID, can ask for the phone and cannot register in its place, and the service needs no accounts.

=====================================  =============  ================================================================
message (JSON, as text)                from           meaning
=====================================  =============  ================================================================
``register``: secrets, 1 to 64         the phone      it can be woken under their contact IDs, until it disconnects
``forget``: secrets, 1 to 64           the phone      their contact IDs answer 410 from now on
``registered``, ``forgotten``          the service    the answer, once it is on the disk
``wake``: routing ID, tunnel ID,       the service    a device asks for the phone, which joins this tunnel at
client payload                                        ``/cable/connect/<routing ID>/<tunnel ID>``
=====================================  =============  ================================================================

Byte strings are base64 with padding. A service that cannot do what was asked closes the websocket.
"""

import hashlib
from typing import Annotated, Final, TypeVar

import msgspec

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid.tunnel_url import MAX_CLIENT_PAYLOAD_SIZE, ROUTING_ID_SIZE, TUNNEL_ID_SIZE

PATH: Final = "/cable/phone"
SUBPROTOCOL: Final = "companion-push.phone"
SECRET_SIZE: Final = 32
CONTACT_ID_SIZE: Final = 32
MAX_CONTACTS: Final = 64  # of one phone at a time, and in one message
MAX_WAKING_SIZE: Final = 1 << 13  # characters of a message

_T = TypeVar("_T")

_Secret = Annotated[bytes, msgspec.Meta(min_length=SECRET_SIZE, max_length=SECRET_SIZE)]
_Secrets = Annotated[tuple[_Secret, ...], msgspec.Meta(min_length=1, max_length=MAX_CONTACTS)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    def __repr__(self) -> str:  # secrets and IDs are in no log
        return f"<{type(self).__name__.lower()}>"


class Register(_Message, frozen=True):
    """The phone can be woken under the contact IDs of these secrets."""

    secrets: _Secrets  # 32 random bytes each


class Forget(_Message, frozen=True):
    """The contact IDs of these secrets are given up for ever."""

    secrets: _Secrets


class Registered(_Message, frozen=True):
    """The answer to `Register`."""


class Forgotten(_Message, frozen=True):
    """The answer to `Forget`."""


class Wake(_Message, frozen=True):
    """A device asks for the phone."""

    routing_id: Annotated[bytes, msgspec.Meta(min_length=ROUTING_ID_SIZE, max_length=ROUTING_ID_SIZE)]
    tunnel_id: Annotated[bytes, msgspec.Meta(min_length=TUNNEL_ID_SIZE, max_length=TUNNEL_ID_SIZE)]
    client_payload: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CLIENT_PAYLOAD_SIZE)]


FromPhone = Register | Forget
FromService = Registered | Forgotten | Wake

_from_phone: "Final[msgspec.json.Decoder[FromPhone]]" = msgspec.json.Decoder(FromPhone)
_from_service: "Final[msgspec.json.Decoder[FromService]]" = msgspec.json.Decoder(FromService)


def contact_id(secret: bytes) -> bytes:
    """The contact ID of a registration secret: SHA-256, 32 bytes, of a label and the secret."""
    return hashlib.sha256(b"companion-push contact ID\0" + secret).digest()


def encode_waking(message: FromPhone | FromService) -> str:
    return msgspec.json.encode(message).decode()


def parse_from_phone(text: str) -> FromPhone:
    """Parse a message of a phone; `RemoteProtocolError` for anything else. Unknown members are ignored."""
    return _parse(_from_phone, text)


def parse_from_service(text: str) -> FromService:
    """Parse a message of a tunnel service; `RemoteProtocolError` for anything else. Unknown members are ignored."""
    return _parse(_from_service, text)


def _parse(decoder: "msgspec.json.Decoder[_T]", text: str) -> _T:
    try:
        if len(text) <= MAX_WAKING_SIZE:
            return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # the decoder's words may quote a secret
        pass
    raise RemoteProtocolError(
        "a message about waking a phone is malformed", reason=ProtocolReason.MALFORMED_JSON
    )
