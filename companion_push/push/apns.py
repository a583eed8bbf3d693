"""Pushes to apps on Apple's devices: the Apple Push Notification service, token-based, over HTTP/2.

One request a push, ``POST /3/device/{token}``, on one connection for each key and environment. The alert is a fixed
key, which the app's own texts give words to; the app's Notification Service Extension may fetch and unseal what waits
before it is shown (``mutable-content``). A push about a request has the request's id as its collapse id: so its
dismissal is an alert too, without sound, that takes the first one's place. A background push would not do: iOS delivers
few of them, and none to an app that its user has closed (docs/adr/DISMISS).
"""

import asyncio
import json
import os
import re
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from companion_push.push.channel import Address, Apns, Delivery, Kind, Purpose, Push, PushOutcome
from companion_push.push.provider_token import ProviderKey, ProviderTokens
from companion_push.serving.retry_after import retry_after
from headless_passkey.errors import (
    LocalProtocolError,
    SetupReason,
    TransportError,
    TransportReason,
    UsageError,
)
from headless_passkey.mends import setup_error
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proxy import proxy_for
from name_lookups.resolver import NoAnswer
from program_parts.json_text import decode_json

if TYPE_CHECKING:
    from companion_push.push.http2 import Answer, Http2Connection

PRODUCTION: Final = "https://api.push.apple.com"
SANDBOX: Final = "https://api.sandbox.push.apple.com"
MAX_PAYLOAD: Final = 4096  # bytes
MAX_ANSWER: Final = 4096  # bytes; an answer of APNs has less than 200
SEND_SECONDS: Final = 10.0  # for a push, a connection included
IDLE_SECONDS: Final = 60.0  # after which a connection is asked first whether it is alive
PING_SECONDS: Final = 2.0
NOBODY: Final = "0" * 64  # a device token that no device has
TOPIC: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", re.ASCII)
_TOKEN: Final = re.compile(r"(?:[0-9A-Fa-f]{2}){8,100}", re.ASCII)
_WORD: Final = re.compile(r"[A-Za-z]{1,64}", re.ASCII)
_IDS: Final = uuid.UUID("5ab0cd13-8c2b-4f8e-9a2c-6c9f2a6a5d3e")  # of pushes, as names (RFC 9562 §6.5)
_URGENT: Final = frozenset({Purpose.REQUEST, Purpose.WORD, Purpose.REMOVED, Purpose.RESET})
# the device token is of no use, whoever asks: 400
_DEAD: Final = frozenset({"BadDeviceToken", "DeviceTokenNotForTopic"})
# the provider token may have become too old on the way: 403
_TOKEN_REFUSED: Final = frozenset({"ExpiredProviderToken", "InvalidProviderToken"})


class ApnsChannel:
    """The `Channel` of APNs: the apps of an operator, each with the key of its team."""

    kind: Final = Kind.APNS

    def __init__(
        self,
        topics: Mapping[str, ProviderKey],
        *,
        production: str = PRODUCTION,
        sandbox: str = SANDBOX,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        seconds: float = SEND_SECONDS,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        """topics: the apps' bundle ids. tls: whom to trust, None for the system's roots; it gets ALPN for HTTP/2.

        clock: Unix seconds. ticks: seconds of a clock that nobody sets. seconds: for a push, a connection included.
        ping_seconds: after which a silent connection is taken for dead. `UsageError` for a topic that cannot be,
        `SetupError` (missing-package) without the extra ``apns``.
        """
        for topic in topics:
            if not TOPIC.fullmatch(topic):
                raise UsageError("a topic is an app's bundle id: letters, digits, dots, - and _")
        try:
            from companion_push.push import http2  # noqa: PLC0415  of an extra of its own
        except ModuleNotFoundError as error:
            raise setup_error("APNs needs h2", SetupReason.MISSING_PACKAGE, extra="apns") from error
        self._http2 = http2
        self._topics = dict(topics)
        self._clock, self._seconds, self._ping_seconds = clock, seconds, ping_seconds
        tls = ssl.create_default_context() if tls is None else tls
        tls.set_alpn_protocols(["h2"])
        # a connection carries the tokens of one team only
        tokens = {key: ProviderTokens(key, clock=clock, ticks=ticks) for key in self._topics.values()}
        self._lines = {
            (key, is_sandbox): _Line(url, tls, tokens[key], ping_seconds)
            for key in tokens
            for is_sandbox, url in ((False, production), (True, sandbox))
        }

    @property
    def offer(self) -> Mapping[str, object]:
        """The topics, as the apps' bundle ids."""
        return {"topics": sorted(self._topics)}

    def refusal(self, address: Address) -> str | None:
        address = _apns(address)
        if address.topic not in self._topics:
            return "this relay pushes to no app with this topic"
        if not _TOKEN.fullmatch(address.token):
            return "a device token has 8 to 100 bytes in hexadecimal"
        return None

    async def send(self, address: Address, push: Push) -> Delivery:
        address = _apns(address)
        left = push.expires_at - self._clock()
        if left < 1:
            return Delivery(outcome=PushOutcome.LATE)
        if (why := self.refusal(address)) is not None:
            return Delivery(outcome=PushOutcome.REFUSED, detail=why)
        return await self._deliver(address, push, min(left, self._seconds))

    async def check(self) -> str:
        said = []
        for topic in self._topics:
            answers = [await self._checked(topic, sandbox=sandbox) for sandbox in (False, True)]
            if not any(taken for taken, _ in answers):
                what = "; ".join(text for _, text in answers)
                raise setup_error(f"APNs, topic {topic}: {what}", SetupReason.CREDENTIALS_REFUSED)
            said += [f"APNs, topic {topic}, {text}" for _, text in answers]
        return "\n".join(said)

    async def close(self) -> None:
        for line in self._lines.values():
            await line.close()

    async def _checked(self, topic: str, *, sandbox: bool) -> tuple[bool, str]:
        """Push to nobody: a complaint about the device token says that key, ids and topic are right."""
        push = Push(purpose=Purpose.TEST, handle="", account=b"", expires_at=self._clock() + self._seconds)
        address = Apns(topic=topic, token=NOBODY, sandbox=sandbox)
        delivery = await self._deliver(address, push, self._seconds)
        where = "sandbox" if sandbox else "production"
        if delivery.outcome in (PushOutcome.GONE, PushOutcome.SENT):
            return True, f"{where}: takes these credentials"
        if delivery.outcome in (PushOutcome.FAILED, PushOutcome.BUSY):
            what = f"APNs, topic {topic}, {where}: {delivery.detail}"
            raise TransportError(what, reason=TransportReason.SERVER_FAILED)
        return False, f"{where}: {delivery.detail}"

    async def _deliver(self, address: Apns, push: Push, seconds: float) -> Delivery:
        """Send once; once more on another connection where the first has not begun it, and with another provider token."""
        line = self._lines[self._topics[address.topic], address.sandbox]
        body = payload(push)
        refreshed = False
        unprocessed = 0
        connection: Http2Connection | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    connection = await line.connection()
                    token = line.tokens.token()
                    headers = [*line.target(address.token), *self._headers(address.topic, push, token, body)]
                    try:
                        answer = await connection.request(headers, body, limit=MAX_ANSWER)
                    except self._http2.Unprocessed as error:
                        unprocessed += 1
                        if unprocessed == 2:
                            return Delivery(outcome=PushOutcome.FAILED, detail=f"twice: {error}")
                        continue
                    delivery, again = self._read(answer, line.tokens, token)
                    if again and not refreshed:
                        refreshed = True
                        continue
                    return delivery
        except asyncio.CancelledError:  # whoever sends may have a time limit too
            self._doubt(connection)
            raise
        except TimeoutError:
            self._doubt(connection)
            return Delivery(outcome=PushOutcome.FAILED, detail="no answer in time")
        except (self._http2.Broken, TransportError) as error:  # the second is of a proxy
            return Delivery(outcome=PushOutcome.FAILED, detail=str(error))
        except OSError as error:
            return Delivery(outcome=PushOutcome.FAILED, detail=_why(error))

    def _doubt(self, connection: "Http2Connection | None") -> None:
        """Make no more requests on a connection that was silent for long: it may be dead, and look as if it was there."""
        if connection is not None and connection.idle_for >= self._ping_seconds:
            connection.retire()

    def _headers(self, topic: str, push: Push, token: str, body: bytes) -> list[tuple[str, str]]:
        return [
            ("authorization", f"bearer {token}"),
            ("apns-id", push_id(push)),
            ("apns-topic", topic),
            ("apns-push-type", "alert"),
            ("apns-priority", "10"),
            ("apns-expiration", str(int(push.expires_at))),
            ("apns-collapse-id", push.request_id or f"{push.purpose}-{push.handle}"),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
        ]

    def _read(self, answer: "Answer", tokens: ProviderTokens, token: str) -> tuple[Delivery, bool]:
        """Read an answer: what became of the push, and whether it is to be sent again with another provider token."""
        pause = retry_after(answer.headers.get("retry-after"), self._clock())
        reason, timestamp = _reason(answer.body)
        delivery = outcome(answer.status, reason, timestamp, pause)
        again = False
        if answer.status == 403 and reason in _TOKEN_REFUSED:
            again = tokens.refused(token)
        elif reason == "TooManyProviderTokenUpdates":
            again = tokens.replaced_too_soon(token)
            if not again and pause is None:
                wait = tokens.replaceable_in
                delivery = Delivery(outcome=PushOutcome.BUSY, retry_after=wait, detail=delivery.detail)
        return delivery, again


class _Line:
    """The connection for one key to one environment: opened when it is needed, and again when it has ended."""

    def __init__(self, url: str, tls: ssl.SSLContext, tokens: ProviderTokens, ping_seconds: float) -> None:
        """url: of the service, https. tokens: what the key's pushes carry."""
        self._url, self._tls = BaseUrl.parse(url, schemes=("https",)), tls
        self.tokens, self._ping_seconds = tokens, ping_seconds
        self._open: Http2Connection | None = None
        self._retired: list[Http2Connection] = []
        self._opening = asyncio.Lock()

    def target(self, device_token: str) -> list[tuple[str, str]]:
        """The pseudo-headers of a push."""
        return [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", self._url.authority),
            (":path", f"/3/device/{device_token.lower()}"),
        ]

    async def connection(self) -> "Http2Connection":
        """A connection that takes requests; one that was idle for long is asked first. Who comes meanwhile waits for the same."""
        from companion_push.push.http2 import Broken, Http2Connection  # noqa: PLC0415

        async with self._opening:
            kept = self._open
            if kept is not None and kept.usable and kept.idle_for > IDLE_SECONDS:
                try:
                    async with asyncio.timeout(self._ping_seconds):
                        await kept.ping()
                except (TimeoutError, Broken):
                    kept.retire()
            if kept is None or not kept.usable:
                if kept is not None:
                    self._retired = [one for one in (*self._retired, kept) if not one.closed]
                    self._open = None
                proxy = proxy_for(str(self._url))
                kept = await Http2Connection.open(self._url.host, self._url.port or 443, self._tls, proxy)
                self._open = kept
            return kept

    async def close(self) -> None:
        for one in (*self._retired, self._open):
            if one is not None:
                await one.close()
        self._retired, self._open = [], None


def _apns(address: Address) -> Apns:
    if not isinstance(address, Apns):
        raise LocalProtocolError("an address of another push service")
    return address


def payload(push: Push) -> bytes:
    """The body of a push: what iOS shows and does, and beside it what the app is told."""
    urgent = push.purpose in _URGENT
    dismissal = push.purpose is Purpose.DISMISS
    aps: dict[str, Any] = {
        "alert": {"loc-key": f"headless-passkey.{push.purpose}"},
        "mutable-content": 1,
        "interruption-level": "time-sensitive" if urgent else "passive" if dismissal else "active",
    }
    if not dismissal:
        aps["sound"] = "default"
    body = json.dumps({"aps": aps, **push.content}, separators=(",", ":")).encode()
    if len(body) > MAX_PAYLOAD:
        raise LocalProtocolError(f"a push to APNs has at most {MAX_PAYLOAD} bytes")
    return body


def push_id(push: Push) -> str:
    """The ``apns-id``: the same for a push that is sent again, and for no other."""
    name = f"{push.handle} {push.purpose} {push.request_id} {push.expires_at!r}"
    return str(uuid.uuid5(_IDS, name))


def outcome(status: int, reason: str, timestamp: float | None, pause: float | None) -> Delivery:
    """What APNs' answer means. timestamp: Unix seconds, of a device token that ended. pause: of ``Retry-After``."""
    detail = f"{status} {reason}".rstrip()
    since = None
    match status, reason:
        case 200, _:
            return Delivery(outcome=PushOutcome.SENT)
        case 410, _ if timestamp is not None:
            kind, since = PushOutcome.GONE, timestamp
        case 410, _:
            kind = PushOutcome.STALE  # since when is not said: it may have been registered anew
        case 400, _ if reason in _DEAD:
            kind = PushOutcome.GONE
        case 400, "IdleTimeout":
            kind = PushOutcome.FAILED
        case ((429 | 503), _):
            kind = PushOutcome.BUSY
        case ((400 | 403 | 404 | 405 | 413), _):
            kind = PushOutcome.REFUSED
        case _:
            kind = PushOutcome.FAILED
    return Delivery(
        outcome=kind, retry_after=pause if kind is PushOutcome.BUSY else None, since=since, detail=detail
    )


def _reason(body: bytes) -> tuple[str, float | None]:
    """The reason of an answer, a word or nothing; and its timestamp, in Unix seconds."""
    try:
        answer = decode_json(body)
    except ValueError:
        return "", None
    if not isinstance(answer, dict):
        return "", None
    reason, timestamp = answer.get("reason"), answer.get("timestamp")
    word = reason if isinstance(reason, str) and _WORD.fullmatch(reason) else ""
    return word, timestamp / 1000 if type(timestamp) is int and 0 < timestamp < 1 << 53 else None


def _why(error: OSError) -> str:
    """A few words for what kept a connection from being opened."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message})"
        case ssl.SSLError():
            return "it does not speak TLS as it should"
        case NoAnswer(strerror=str(why)):
            return why
        case socket.gaierror():
            return "its name cannot be resolved"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number).lower()
        case OSError() if type(error) is OSError:  # its addresses failed in different ways
            return "none of its addresses can be reached"
        case _:
            return "it hung up before it answered"
