"""A security key in software, behind python-fido2's own interface for keys: CTAP 2.1 with PIN/UV protocol two.

Its passkeys are a `SoftwareKey`; the PIN, the tokens, the touch and what can go wrong at a key are here.
"""

import hashlib
import hmac
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from fido2.ctap import STATUS, CtapDevice
from fido2.ctap import CtapError as Fido2Error
from fido2.ctap2.pin import ClientPin, PinProtocolV2
from fido2.hid import CAPABILITY, CTAPHID

from companion_push.companion.software_extensions import refuse
from companion_push.companion.software_key import Assertion, Credential, SoftwareKey, _sign
from headless_passkey.errors import CtapError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    MakeCredentialRequest,
    Status,
)
from headless_passkey.hybrid.keys import parse_uncompressed, uncompressed

TRIES = 8
_ED, _UP = 0x80, 0x01


@dataclass
class VirtualKey(CtapDevice):
    """A key that one person touches, or that has its faults."""

    pin: str | None = None
    uv: bool = False  # whether it has a sensor of its own
    recognises: int = 0  # how many attempts at the sensor fail before one does not
    tries: int = TRIES
    untouched: bool = False  # nobody touches it: it waits until it is cancelled
    deaf: threading.Event | None = None  # it stops for no cancellation, but when this is set
    gone: Exception | None = None  # it was pulled out, and its calls raise this
    list_size: int = 8
    message_size: int = 1200
    options: dict[str, bool] = field(default_factory=dict)
    reply: Callable[[int], bytes | None] = lambda _command: None  # by command, in place of its own
    credentials: SoftwareKey = field(default_factory=SoftwareKey)
    calls: list[int] = field(default_factory=list)  # the commands it was sent
    cancelled: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Event = field(default_factory=threading.Event)  # for a touch
    closed: int = 0

    def __post_init__(self) -> None:
        self._protocol: Any = PinProtocolV2()
        self._agreement = ec.generate_private_key(ec.SECP256R1())
        self._token = bytes(range(32))
        self._in_a_row = 0
        self._next: list[GetAssertionResponse] = []
        self._clock = 1

    @property
    def capabilities(self) -> int:
        return CAPABILITY.CBOR

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: threading.Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        if self.gone is not None:
            raise self.gone
        if cmd != CTAPHID.CBOR:
            raise Fido2Error(Fido2Error.ERR.INVALID_COMMAND)
        command, members = data[0], cbor.decode_map(data[1:]) if data[1:] else {}
        self.calls.append(command)
        given = self.reply(command)
        if given is not None:
            return given
        if len(data) > self.message_size:
            return bytes([Status.REQUEST_TOO_LARGE])
        touch = _Touch(self, event or threading.Event(), on_keepalive)
        try:
            match command:
                case 0x01:
                    return b"\0" + self._make(members, touch)
                case 0x02:
                    return b"\0" + self._get(members, touch)
                case 0x04:
                    return b"\0" + cbor.encode(self._info())
                case 0x06:
                    return b"\0" + cbor.encode(self._client_pin(members, touch))
                case 0x08 if self._next:
                    return b"\0" + self._next.pop(0).encode()
            refuse(Status.INVALID_COMMAND)
        except CtapError as error:
            return bytes([error.status])

    def _info(self) -> dict[int, Any]:
        options = {"rk": True, "up": True, "clientPin": self.pin is not None, "pinUvAuthToken": True}
        return {
            1: ["FIDO_2_0", "FIDO_2_1"],
            2: ["credProtect", "hmac-secret"],
            3: bytes(range(16)),
            4: options | ({"uv": True} if self.uv else {}) | self.options,
            5: self.message_size,
            6: [2, 1],
            7: self.list_size,
            8: 64,
            9: ["usb"],
            10: [{"alg": -7, "type": "public-key"}],
            13: 4,
        }

    # PIN and tokens

    def _shared(self, peer: Mapping[int, Any]) -> bytes:
        public = parse_uncompressed(b"\4" + peer[-2] + peer[-3])
        shared: bytes = self._protocol.kdf(self._agreement.exchange(ec.ECDH(), public))
        return shared

    def _client_pin(self, members: dict[int, Any], touch: "_Touch") -> dict[int, Any]:
        match members[2]:
            case ClientPin.CMD.GET_PIN_RETRIES:
                return {3: self.tries}
            case ClientPin.CMD.GET_KEY_AGREEMENT:
                point = uncompressed(self._agreement.public_key())
                return {1: {1: 2, 3: -25, -1: 1, -2: point[1:33], -3: point[33:]}}
            case ClientPin.CMD.GET_TOKEN_USING_PIN:
                shared = self._shared(members[3])
                self._check_pin(self._protocol.decrypt(shared, members[6]))
                return {2: self._protocol.encrypt(shared, self._token)}
            case ClientPin.CMD.GET_TOKEN_USING_UV:
                touch.wait()
                if self.recognises:
                    self.recognises -= 1
                    refuse(Status.UV_INVALID if self.recognises else Status.UV_BLOCKED)
                return {2: self._protocol.encrypt(self._shared(members[3]), self._token)}
        raise CtapError(Status.INVALID_SUBCOMMAND, "")

    def _check_pin(self, pin_hash: bytes) -> None:
        if self._in_a_row == 3:
            refuse(Status.PIN_AUTH_BLOCKED)
        if self.tries == 0:
            refuse(Status.PIN_BLOCKED)
        assert self.pin is not None
        if pin_hash != hashlib.sha256(self.pin.encode()).digest()[:16]:
            self.tries, self._in_a_row = self.tries - 1, self._in_a_row + 1
            refuse(
                Status.PIN_BLOCKED
                if self.tries == 0
                else Status.PIN_AUTH_BLOCKED
                if self._in_a_row == 3
                else Status.PIN_INVALID
            )
        self.tries, self._in_a_row = TRIES, 0

    def _verified(
        self, members: Mapping[int, Any], at: int, options: Mapping[str, bool], client_data_hash: bytes
    ) -> bool:
        param = members.get(at)
        if param is None:
            return options.get("uv", False)
        if not hmac.compare_digest(param, self._protocol.authenticate(self._token, client_data_hash)):
            refuse(Status.PIN_AUTH_INVALID)
        return True

    # Passkeys

    def _make(self, members: dict[int, Any], touch: "_Touch") -> bytes:
        request = MakeCredentialRequest.parse(cbor.encode(members))
        verified = self._verified(members, 8, members.get(7, {}), request.client_data_hash)
        if self.pin is not None and not verified:
            refuse(Status.PUAT_REQUIRED)
        if len(request.exclude_list) > self.list_size:
            refuse(Status.LIMIT_EXCEEDED)
        key = replace(self.credentials, verifies=verified)
        asked = key.make_credential(replace(request, user_verification=False))
        touch.wait()
        self._clock += 1
        made = asked.approve(now=self._clock)
        self.credentials = self.credentials.adding(made)
        response = made.response
        if request.extensions.get("hmac-secret") is True:
            response = replace(response, auth_data=_extended(response.auth_data, {"hmac-secret": True}))
        return response.encode()

    def _get(self, members: dict[int, Any], touch: "_Touch") -> bytes:
        request = GetAssertionRequest.parse(cbor.encode(members))
        verified = self._verified(members, 6, members.get(5, {}), request.client_data_hash)
        if len(request.allow_list) > self.list_size:
            refuse(Status.LIMIT_EXCEEDED)
        key = replace(self.credentials, verifies=verified)
        asked = key.get_assertion(replace(request, user_verification=False, user_presence=True))
        if request.user_presence:
            touch.wait()
        several = 1 if request.allow_list else len(asked.candidates)
        replies = [self._signed(asked, number, request, verified=verified) for number in range(several)]
        if several > 1:
            replies[0] = replace(replies[0], number_of_credentials=several)
        self._next = replies[1:]
        return replies[0].encode()

    def _signed(
        self, asked: Assertion, number: int, request: GetAssertionRequest, *, verified: bool
    ) -> GetAssertionResponse:
        credential = asked.candidates[number]
        reply = asked.approve(account=number)
        auth_data = reply.auth_data
        if not request.user_presence:
            auth_data = auth_data[:32] + bytes([auth_data[32] & ~_UP]) + auth_data[33:]
        secret = request.extensions.get("hmac-secret")
        if secret is not None:
            output = self._hmac_secret(credential, secret, verified=verified)
            auth_data = _extended(auth_data, {"hmac-secret": output})
        return replace(
            reply,
            auth_data=auth_data,
            signature=_sign(credential, auth_data + request.client_data_hash),
            user_selected=False,
            unsigned_extension_outputs={},
        )

    def _hmac_secret(self, credential: Credential, values: Mapping[int, Any], *, verified: bool) -> bytes:
        shared = self._shared(values[1])
        if not hmac.compare_digest(values[3], self._protocol.authenticate(shared, values[2])):
            refuse(Status.PIN_AUTH_INVALID)
        salts = self._protocol.decrypt(shared, values[2])
        secret = hmac.digest(credential.private_key, bytes([verified]), "sha256")
        outputs = [hmac.digest(secret, salts[at : at + 32], "sha256") for at in range(0, len(salts), 32)]
        encrypted: bytes = self._protocol.encrypt(shared, b"".join(outputs))
        return encrypted


class _Touch:
    """The person's finger."""

    def __init__(
        self, key: VirtualKey, event: threading.Event, on_keepalive: Callable[[STATUS], None] | None
    ) -> None:
        self._key, self._event, self._on_keepalive = key, event, on_keepalive

    def wait(self) -> None:
        if self._on_keepalive is not None:
            self._on_keepalive(STATUS.UPNEEDED)
        self._key.waiting.set()
        if self._key.untouched:
            self._event.wait()
            self._key.cancelled.set()
            if self._key.deaf is not None:
                self._key.deaf.wait()
            refuse(Status.KEEPALIVE_CANCEL)


def _extended(auth_data: bytes, outputs: dict[str, Any]) -> bytes:
    """Authenticator data with more extension outputs."""
    if auth_data[32] & _ED:
        raise NotImplementedError
    return auth_data[:32] + bytes([auth_data[32] | _ED]) + auth_data[33:] + cbor.encode(outputs)
