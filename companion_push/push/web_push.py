"""Web Push (RFC 8030, 8291, 8292), which browsers and UnifiedPush have in common.

    channel = WebPushChannel(VapidKey.read(path), contact="mailto:push@example.com")

What is sent has one size, whatever it says, and a Topic of this subscription alone: the push service cannot tell
purposes apart, nor which of its subscriptions belong to one account. A proxy of the environment is not used: it would
resolve the endpoint's name by itself, and connect to addresses that nobody has checked.

Names are looked up apart by who has chosen them: those that the operator lists, those below a name that the operator lists,
and any others. The last two are members' choice, whose name servers may never answer: an account has two threads for each kind,
as many accounts as are pushed to at a time have them, and no name of one kind waits for those of another.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import ssl
import time
from collections.abc import Callable, Hashable, Mapping
from contextvars import ContextVar
from typing import Final

import aiohttp
from yarl import URL

from companion_push.push.channel import Address, Delivery, Kind, Push, PushOutcome, WebPush
from companion_push.push.endpoints import EndpointRules, ForbiddenAddress
from companion_push.push.message_encryption import AUTH, encrypt, key_of
from companion_push.push.vapid import VapidKey, VapidTokens
from companion_push.serving.retry_after import retry_after
from headless_passkey.errors import LocalProtocolError, TransportError, TransportReason
from headless_passkey.net.connector import Connector
from headless_passkey.net.proxy import read_bounded
from headless_passkey.net.unreachable import what_went_wrong
from name_lookups.resolver import OURS, Lookups, Resolver
from program_parts.base64url import base64url
from program_parts.json_text import decode_json

SIZE: Final = 192  # bytes of what is encrypted, padding included; the longest content has about a hundred
SECONDS: Final = 10.0  # until a push without an answer has failed
BODY_SECONDS: Final = 2.0  # for the rest of an answer whose status is known
MAX_ANSWER: Final = 4096  # bytes that are read of an answer's body
_CONNECTIONS: Final = 256
_CONNECTIONS_PER_HOST: Final = 64
_IDLE_SECONDS: Final = 60.0
_LOOKUPS: Final = 64  # names of one kind that are looked up at a time
_LOOKUPS_OF_ACCOUNT: Final = 2
_REASON: Final = re.compile(r"[A-Za-z]{1,40}")  # as Apple's service says it
_TAKEN: Final = frozenset({200, 201, 202})

_account: Final = ContextVar[bytes | None]("account", default=None)  # that is pushed to


class WebPushChannel:
    """The `Channel` of Web Push."""

    kind: Final = Kind.WEB_PUSH

    def __init__(
        self,
        key: VapidKey,
        *,
        contact: str,
        rules: EndpointRules | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """contact: mailto or https, for the push services' operators. tls: the trusted roots, by default the system's."""
        self._key, self._tokens = key, VapidTokens(key, contact)
        self._rules = rules or EndpointRules()
        self._tls, self._clock = tls, clock
        self._below_listed, self._any = (
            Lookups(most=_LOOKUPS, most_of_share=_LOOKUPS_OF_ACCOUNT) for _ in range(2)
        )
        self._opened: aiohttp.ClientSession | None = None

    @property
    def offer(self) -> Mapping[str, object]:
        """The public key with which a browser subscribes (applicationServerKey)."""
        return {"vapid_key": self._key.public}

    def refusal(self, address: Address) -> str | None:
        address = _web_push(address)
        if key_of(address.p256dh) is None:
            return "p256dh is no public key of P-256"
        if len(address.auth) != AUTH:
            return f"auth has {len(address.auth)} bytes, and not {AUTH}"
        url = self._rules.endpoint(address.endpoint)
        if url is None:
            return "the endpoint is no URL of https"
        return None if self._rules.allows(url) else "the endpoint's host is not one that this relay sends to"

    async def send(self, address: Address, push: Push) -> Delivery:
        address = _web_push(address)
        now = self._clock()
        left = push.expires_at - now
        if left < 1:
            return Delivery(outcome=PushOutcome.LATE)
        url, key = self._rules.endpoint(address.endpoint), key_of(address.p256dh)
        if (why := self.refusal(address)) is not None or url is None or key is None:
            return Delivery(outcome=PushOutcome.REFUSED, detail=why or "")
        content = json.dumps(push.content, separators=(",", ":")).encode()
        if len(content) > SIZE:
            raise LocalProtocolError(f"a push has at most {SIZE} bytes, for all are to have one size")
        origin = str(url.origin())
        headers = {
            "TTL": str(int(left)),
            "Urgency": "high",
            "Topic": _topic(push.account, address.endpoint),
            "Authorization": self._tokens.header(origin, now),
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "Accept-Encoding": "identity",
        }
        body = encrypt(content, p256dh=key, auth=address.auth, size=SIZE)
        before = _account.set(push.account)
        try:
            async with asyncio.timeout(min(left, SECONDS)):
                response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            return _unsent(error)
        finally:
            _account.reset(before)
        async with response:
            said = b""
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with asyncio.timeout(BODY_SECONDS):
                    said = await read_bounded(response, MAX_ANSWER)
            _cut(response)
        if response.status in (401, 403):
            self._tokens.forget(origin)
        return _delivery(response.status, response.headers, said, self._clock())

    async def check(self) -> str:
        """Ask the push services that are listed by name for any answer. A VAPID key needs no registration there."""
        asked = [rule for rule in self._rules.hosts if not rule.below]
        failures = [failure for rule in asked if (failure := await self._visit(rule.name, rule.port))]
        if failures:
            raise TransportError(f"Web Push: {'; '.join(failures)}", reason=TransportReason.UNREACHABLE)
        names = ", ".join(rule.name for rule in asked)
        return f"Web Push: the key can be used, its public key is {self._key.public}; answered by {names}"

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def _visit(self, host: str, port: int) -> str | None:
        """Say why a push service does not answer; None when it does."""
        url = URL.build(scheme="https", host=host, port=port, path="/")
        try:
            async with asyncio.timeout(SECONDS), self._session.head(url, allow_redirects=False):
                return None
        except (aiohttp.ClientError, OSError) as error:
            return f"{host}: {_unsent(error).detail}"

    @property
    def _session(self) -> aiohttp.ClientSession:
        """The session of all pushes, made in the loop that sends."""
        if self._opened is None:
            connector = Connector(
                ssl=self._tls or ssl.create_default_context(),
                limit=_CONNECTIONS,
                limit_per_host=_CONNECTIONS_PER_HOST,
                keepalive_timeout=_IDLE_SECONDS,
                resolver=Resolver(self._lookups),
                use_dns_cache=False,  # whose lookup is its first asker's, also for who comes meanwhile
                socket_factory=self._rules.open_socket,
            )
            self._opened = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent",),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(),
                trust_env=False,
            )
        return self._opened

    def _lookups(self, host: str) -> tuple[Lookups, Hashable]:
        """Who looks a host's name up, and for which share."""
        if self._rules.lists(host):
            return OURS, None
        return self._below_listed if self._rules.lists_above(host) else self._any, _account.get()


def _web_push(address: Address) -> WebPush:
    if not isinstance(address, WebPush):
        raise LocalProtocolError("an address of another push service")
    return address


def _topic(account: bytes, endpoint: str) -> str:
    """The Topic (RFC 8030 §5.4), by which a newer push replaces one that waits: constant for a subscription of an account.

    Subscriptions of one account have different ones, so that the push service cannot tell that they belong together.
    """
    return base64url(hashlib.blake2s(endpoint.encode(), key=account, digest_size=24).digest())


def _cut(response: aiohttp.ClientResponse) -> None:
    """End a connection whose answer has not come to its end: TLS would wait for a service that goes on sending."""
    connection = response.connection  # none any more when the answer has ended
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


def _unsent(error: Exception) -> Delivery:
    """What became of a push without an answer. error: of aiohttp or the system; its message may hold the endpoint."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ForbiddenAddress):
        return Delivery(outcome=PushOutcome.REFUSED, detail=f"its host has {error.os_error}")
    return Delivery(outcome=PushOutcome.FAILED, detail=what_went_wrong(error)[1])


def _delivery(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Delivery:
    """What became of a push, by the answer's status (RFC 8030 §5, §7.3, §8.4; RFC 8292 §4.2)."""
    detail = f"status {status}{_reason(body)}"
    if status in _TAKEN:
        # UnifiedPush, and RFC 8030 §5.2: who is not connected now does not get it
        kept = "" if headers.get("TTL", "").strip() != "0" else ", not kept for later"
        return Delivery(outcome=PushOutcome.SENT, detail=f"status {status}{kept}")
    if status in (404, 410):
        return Delivery(outcome=PushOutcome.GONE, detail=detail)
    if status in (429, 503):
        wait = retry_after(headers.get("Retry-After"), now)
        return Delivery(outcome=PushOutcome.BUSY, retry_after=wait, detail=detail)
    if 300 <= status < 500:
        return Delivery(outcome=PushOutcome.REFUSED, detail=detail)
    return Delivery(outcome=PushOutcome.FAILED, detail=detail)


def _reason(body: bytes) -> str:
    """What a refusal says in words of a bounded vocabulary: Apple's ``reason``, Mozilla's ``errno``."""
    try:
        told = decode_json(body)
    except ValueError:
        return ""
    if not isinstance(told, dict):
        return ""
    reason, number = told.get("reason"), told.get("errno")
    if isinstance(reason, str) and _REASON.fullmatch(reason):
        return f", {reason}"
    return f", errno {number}" if type(number) is int and 0 <= number < 10_000 else ""
