"""A stand-in for the Apple Push Notification service: HTTP/2 over TLS, frame by frame, so that it can fail in each way.

It checks every header, the body, the provider token (its signature by `cryptography` alone, its date, how often it is
replaced, and that a connection carries one team's), and does what the test says instead of answering.
"""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
from certificates import Certificate
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from tests.push.google import Clock

TEAM, KEY = "A1B2C3D4E5", "2X9R4HXF34"
TOPIC = "com.example.companion"
DEVICE = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"
EXPECTED = {
    ":method", ":scheme", ":authority", ":path", "authorization", "apns-id", "apns-topic", "apns-push-type",
    "apns-priority", "apns-expiration", "apns-collapse-id", "content-type", "content-length",
}  # fmt: skip
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class Received:
    """A push that came in whole."""

    connection: "Connection"
    stream: int
    headers: dict[str, str]
    body: dict[str, Any]

    def answer(
        self, status: int, reason: str | None = None, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        """Answer as APNs does."""
        body = b"" if reason is None else json.dumps({"reason": reason, **more}).encode()
        self.connection.answer(
            self.stream, status, body, {"apns-id": self.headers["apns-id"], **(headers or {})}
        )


Behaviour = Callable[[Received], None]


class Connection(asyncio.Protocol):
    """One connection of a provider."""

    def __init__(self, apple: "Apple") -> None:
        self.apple = apple
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.transport: asyncio.Transport
        self.requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self.resets: list[int] = []  # streams that the provider has reset
        self.team: str | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self.apple.connections.append(self)
        self.h2.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = self.apple.most_streams
        self.h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = self.apple.window
        self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        if self.apple.silent:
            self.apple.arrived.put_nowait("connection")
        else:
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    names = [str(name) for name, _ in event.headers]
                    if len(set(names)) != len(names):
                        self.apple.faults.append("DuplicateHeaders")
                    headers = {str(name): str(value) for name, value in event.headers}
                    self.requests[event.stream_id] = headers, bytearray()
                case h2.events.DataReceived():
                    self.requests[event.stream_id][1].extend(event.data)
                    if self.apple.takes_data:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    headers, body = self.requests.pop(event.stream_id)
                    self.apple.came(self, event.stream_id, headers, bytes(body))
                case h2.events.StreamReset():
                    self.resets.append(event.stream_id)
                    self.requests.pop(event.stream_id, None)
                    self.apple.arrived.put_nowait("reset")
                case _:
                    pass
        if not self.apple.silent:
            self.flush()

    def answer(self, stream: int, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.h2.send_headers(stream, [(":status", str(status)), *headers.items()], end_stream=not body)
        for start in range(0, len(body), 16_000):
            part = body[start : start + 16_000]
            if self.h2.local_flow_control_window(stream) < len(part):
                return  # what the provider does not take, it does not get
            self.h2.send_data(stream, part, end_stream=start + 16_000 >= len(body))
        self.flush()

    def go_away(self, last: int, *, error: int = 0) -> None:
        """Send GOAWAY and go on answering the streams up to `last`, as RFC 9113 §6.8 has it; h2 itself would end at once."""
        self.flush()
        frame = GoAwayFrame(
            0, last_stream_id=last, error_code=error, additional_data=b'{"reason":"Shutdown"}'
        )
        self.transport.write(frame.serialize())


@dataclass
class Apple:
    """The service, and what came."""

    clock: Clock
    keys: dict[tuple[str, str], ec.EllipticCurvePublicKey]
    topics: dict[str, set[str]]  # of each team
    url: str = ""
    devices: set[tuple[str, str]] = field(default_factory=set)  # (topic, device token) that are alive
    ended: dict[str, int] = field(
        default_factory=dict
    )  # device tokens that ended, and when: Unix milliseconds
    connections: list[Connection] = field(default_factory=list)
    pushes: list[Received] = field(default_factory=list)
    script: list[Behaviour] = field(default_factory=list)  # what is done with the next pushes instead
    faults: list[str] = field(default_factory=list)  # what no provider may do
    arrived: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    tokens: dict[tuple[str, str], tuple[str, float]] = field(
        default_factory=dict
    )  # of a key: the newest, since when
    most_streams: int = 1000
    window: int = 65_535
    takes_data: bool = True
    silent: bool = False  # it sends no settings

    @property
    def bearers(self) -> list[str]:
        """The provider tokens that came, in their order."""
        return [push.headers["authorization"].removeprefix("bearer ") for push in self.pushes]

    async def coming(self, number: int) -> Received:
        """The push with this number, counted from 1."""
        while len(self.pushes) < number:
            await self.arrived.get()
        return self.pushes[number - 1]

    def came(self, connection: Connection, stream: int, headers: dict[str, str], data: bytes) -> None:
        try:
            body = json.loads(data)
        except ValueError:
            body = {}
        push = Received(connection=connection, stream=stream, headers=headers, body=body)
        self.pushes.append(push)
        if self.script:
            self.script.pop(0)(push)
        else:
            self.judge(push, len(data))
        self.arrived.put_nowait("push")

    def judge(self, push: Received, size: int = 0) -> None:
        """Answer as the service would."""
        fault = self._fault(push.headers, push.body, size)
        if fault is not None:
            self.faults.append(fault)
            push.answer(400, fault)
            return
        refusal = self._token_refusal(push)
        if refusal is not None:
            push.answer(*refusal)
            return
        topic, device = push.headers["apns-topic"], push.headers[":path"].rpartition("/")[2]
        if topic not in self.topics[push.connection.team or ""]:
            push.answer(400, "TopicDisallowed")
        elif device in self.ended:
            push.answer(410, "Unregistered", timestamp=self.ended[device])
        elif (topic, device) in self.devices:
            push.answer(200)
        elif any(device == other for _, other in self.devices):
            push.answer(400, "DeviceTokenNotForTopic")
        else:
            push.answer(400, "BadDeviceToken")

    def _fault(self, headers: dict[str, str], body: dict[str, Any], size: int) -> str | None:
        """What of a request is not as the service's manual says."""
        expiration = headers.get("apns-expiration", "")
        checks = {
            "other headers": set(headers) == EXPECTED,
            "MethodNotAllowed": headers[":method"] == "POST" and headers[":scheme"] == "https",
            "BadPath": re.fullmatch(r"/3/device/[0-9a-f]{16,200}", headers[":path"]) is not None,
            "BadMessageId": UUID.fullmatch(headers["apns-id"]) is not None,
            "InvalidPushType": headers["apns-push-type"] == "alert",
            "BadPriority": headers["apns-priority"] == "10",
            "BadExpirationDate": expiration.isdigit() and int(expiration) >= int(self.clock.unix()),
            "BadCollapseId": 0 < len(headers["apns-collapse-id"].encode()) <= 64,
            "PayloadEmpty": bool(body),
            "PayloadTooLarge": size <= 4096,
            "content-length": headers["content-length"] == str(size),
            "no alert": set(body.get("aps", {}).get("alert", {})) == {"loc-key"},
            "not mutable": body.get("aps", {}).get("mutable-content") == 1,
            "more than our fields": set(body) <= {"aps", "v", "purpose", "handle", "request"},
        }
        return next((name for name, fine in checks.items() if not fine), None)

    def _token_refusal(self, push: Received) -> tuple[int, str] | None:
        scheme, _, token = push.headers["authorization"].partition(" ")
        if scheme != "bearer":
            return 403, "MissingProviderToken"
        try:
            header, claims, signature = (_bytes(part) for part in token.split("."))
            said, claimed = json.loads(header), json.loads(claims)
            team, key_id, issued = claimed["iss"], said["kid"], claimed["iat"]
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            signed = token.rpartition(".")[0].encode()
            self.keys[team, key_id].verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        except (ValueError, KeyError, InvalidSignature):
            return 403, "InvalidProviderToken"
        if said["alg"] != "ES256" or len(signature) != 64 or issued > self.clock.unix():
            return 403, "InvalidProviderToken"
        if push.connection.team not in (None, team):
            self.faults.append("two teams on one connection")
            return 403, "InvalidProviderToken"
        if issued <= self.clock.unix() - 3600:
            return 403, "ExpiredProviderToken"
        newest, since = self.tokens.get((team, key_id), (token, self.clock.steady()))
        if token != newest and self.clock.steady() - since < 1200:
            return 429, "TooManyProviderTokenUpdates"
        self.tokens[team, key_id] = token, since if token == newest else self.clock.steady()
        push.connection.team = team
        return None


def replies(status: int, reason: str | None = None, **more: Any) -> Behaviour:
    return lambda push: push.answer(status, reason, **more)


def hold(_push: Received) -> None:
    """Answer nothing."""


def says(status: int, body: bytes) -> Behaviour:
    """Answer with these bytes."""
    return lambda push: push.connection.answer(push.stream, status, body, {})


def resets(code: int) -> Behaviour:
    def reset(push: Received) -> None:
        push.connection.h2.reset_stream(push.stream, code)

    return reset


def breaks_off(push: Received) -> None:
    push.connection.transport.abort()


def garbles(push: Received) -> None:
    push.connection.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def goes_away(last: int) -> Behaviour:
    """GOAWAY: no stream above `last` was, or will be, looked at."""
    return lambda push: push.connection.go_away(last)


def write_p8(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return path


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@contextlib.asynccontextmanager
async def serving_apple(
    certificate: Certificate,
    clock: Clock,
    *,
    keys: dict[tuple[str, str], ec.EllipticCurvePublicKey],
    topics: dict[str, set[str]],
    protocols: tuple[str, ...] = ("h2",),
) -> AsyncIterator[Apple]:
    apple = Apple(clock=clock, keys=keys, topics=topics)
    tls = certificate.server_context()
    tls.set_alpn_protocols(list(protocols))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(apple), "127.0.0.1", 0, ssl=tls)
    apple.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield apple
    finally:
        server.close()
        for connection in apple.connections:
            connection.transport.abort()
            await connection.lost.wait()
        await server.wait_closed()
