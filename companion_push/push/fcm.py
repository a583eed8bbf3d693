"""Pushes to Android apps: Firebase Cloud Messaging, HTTP v1.

One exchange a push: ``POST /v1/projects/{project}/messages:send`` with a data message, which the app itself turns into a
notification, so that no text passes the service. It is of high priority, lives as long as what it is about (without a
``ttl`` FCM would keep it for four weeks), and has one of two constant collapse keys: FCM keeps the messages of at most four
keys for a phone that is off, so a key for each request would lose requests. A newer message takes the older one's place, and
the app reads its inbox all the same; but what concerns the account takes the place of no request, nor the other way round.
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp

from companion_push.push.channel import Address, Delivery, Fcm, Kind, Purpose, Push, PushOutcome
from companion_push.push.service_account import AccessTokens, ServiceAccount
from companion_push.serving.retry_after import retry_after
from headless_passkey.errors import (
    LocalProtocolError,
    SetupReason,
    TransportError,
    TransportReason,
    UsageError,
)
from headless_passkey.mends import setup_error
from headless_passkey.net.connector import Connector
from headless_passkey.net.proxy import read_bounded, sending, tracing
from program_parts.json_text import decode_json

URL: Final = "https://fcm.googleapis.com"
REQUESTS: Final = "headless-passkey"  # collapse keys
ACCOUNT: Final = "headless-passkey-account"
SEND_SECONDS: Final = 10.0  # for everything, the access token too
MAX_ANSWER: Final = 16 * 1024  # bytes
LONGEST_TTL: Final = 28 * 86_400  # seconds
QUOTA_PAUSE: Final = 60.0  # seconds after 429 without Retry-After, as the service's manual says
CHECK_TOPIC: Final = "headless-passkey-check"
_OF_REQUESTS: Final = (Purpose.REQUEST, Purpose.DISMISS)
APP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_TOKEN: Final = re.compile(r"[\x21-\x7E]{1,4096}", re.ASCII)
_WORD: Final = re.compile(r"[A-Z_]{1,64}", re.ASCII)
_FCM_ERROR: Final = "type.googleapis.com/google.firebase.fcm.v1.FcmError"


class FcmChannel:
    """The `Channel` of FCM: the apps of an operator, each in the Firebase project of its service account."""

    kind: Final = Kind.FCM

    def __init__(
        self,
        apps: Mapping[str, ServiceAccount],
        *,
        url: str = URL,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        seconds: float = SEND_SECONDS,
    ) -> None:
        """apps: by the names that companions register with. tls: whom to trust, None for the system's roots.

        clock: Unix seconds. ticks: seconds of a clock that nobody sets. seconds: for a push, its access token included.
        `UsageError` for a name that cannot be.
        """
        for app in apps:
            if not APP.fullmatch(app):
                raise UsageError("an app's name has at most 128 letters, digits, dots, - and _")
        self._apps = dict(apps)
        self._url, self._tls, self._clock, self._seconds = url, tls, clock, seconds
        self._opened: aiohttp.ClientSession | None = None
        accounts = dict.fromkeys(self._apps.values())
        self._tokens = {
            account: AccessTokens(account, self._session, clock=clock, ticks=ticks, seconds=seconds)
            for account in accounts
        }

    @property
    def offer(self) -> Mapping[str, object]:
        """The apps, by the names to register with."""
        return {"apps": sorted(self._apps)}

    def refusal(self, address: Address) -> str | None:
        address = _fcm(address)
        if address.app not in self._apps:
            return "this relay pushes to no such app"
        if not _TOKEN.fullmatch(address.token):
            return "a registration token has at most 4096 printable characters"
        return None

    async def send(self, address: Address, push: Push) -> Delivery:
        address = _fcm(address)
        left = push.expires_at - self._clock()
        if left < 1:
            return Delivery(outcome=PushOutcome.LATE)
        if (why := self.refusal(address)) is not None:
            return Delivery(outcome=PushOutcome.REFUSED, detail=why)
        message = {
            "token": address.token,
            "data": push.content,
            "android": {
                "priority": "HIGH",
                "ttl": f"{min(int(left), LONGEST_TTL)}s",
                "collapse_key": REQUESTS if push.purpose in _OF_REQUESTS else ACCOUNT,
            },
        }
        return await self._deliver(self._apps[address.app], {"message": message}, min(left, self._seconds))

    async def check(self) -> str:
        said = []
        for app, account in self._apps.items():
            # to nobody: a dry run to a topic, which checks the token, the project and what the account may do
            message = {"topic": CHECK_TOPIC, "data": {"purpose": "test"}}
            body = {"validate_only": True, "message": message}
            delivery = await self._deliver(account, body, self._seconds)
            what = f"FCM, app {app}, project {account.project}"
            if delivery.outcome is PushOutcome.SENT:
                said.append(f"{what}: takes these credentials")
            elif delivery.outcome in (PushOutcome.BUSY, PushOutcome.FAILED):
                raise TransportError(f"{what}: {delivery.detail}", reason=TransportReason.SERVER_FAILED)
            else:
                raise setup_error(f"{what}: {delivery.detail}", SetupReason.CREDENTIALS_REFUSED)
        return "\n".join(said)

    async def close(self) -> None:
        for tokens in self._tokens.values():
            await tokens.close()
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=Connector(ssl=True if self._tls is None else self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,  # no decompression bombs
                trace_configs=[tracing()],
            )
        return self._opened

    async def _deliver(self, account: ServiceAccount, body: dict[str, Any], seconds: float) -> Delivery:
        """Send once, and once more with another access token where the first is refused. seconds: for all of it."""
        data = json.dumps(body, separators=(",", ":")).encode()
        tokens = self._tokens[account]
        try:
            async with asyncio.timeout(seconds):
                for _ in range(2):
                    token = await tokens.token()
                    if isinstance(token, Delivery):
                        return token
                    delivery = await self._exchange(account, token, data)
                    if delivery is not None:
                        return delivery
                    if not tokens.refused(token):
                        break
        except TimeoutError:
            return Delivery(outcome=PushOutcome.FAILED, detail="no answer in time")
        except TransportError as error:  # it names the host, and no path
            return Delivery(outcome=PushOutcome.FAILED, detail=str(error))
        return Delivery(outcome=PushOutcome.REFUSED, detail="401: the access token is refused")

    async def _exchange(self, account: ServiceAccount, token: str, data: bytes) -> Delivery | None:
        """One exchange; None when the service refuses the access token."""
        async with sending(
            self._session(),
            "POST",
            f"{self._url}/v1/projects/{account.project}/messages:send",
            data=data,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json; charset=utf-8"},
            timeout=aiohttp.ClientTimeout(total=self._seconds),
        ) as response:
            content = await read_bounded(response, MAX_ANSWER)
        return outcome(
            response.status, content, retry_after(response.headers.get("Retry-After"), self._clock())
        )


def _fcm(address: Address) -> Fcm:
    if not isinstance(address, Fcm):
        raise LocalProtocolError("an address of another push service")
    return address


def outcome(status: int, content: bytes, pause: float | None) -> Delivery | None:
    """Read what FCM answers; None when it refuses the access token. pause: of ``Retry-After``."""
    answer = _object(content)
    if status == 200:
        if isinstance(answer.get("name"), str):
            return Delivery(outcome=PushOutcome.SENT)
        return Delivery(outcome=PushOutcome.FAILED, detail="200, and the answer means nothing")
    code = _code(answer)
    detail = f"{status} {code or _word(_mapping(answer.get('error')).get('status'))}".rstrip()
    match status, code:
        case 404, "UNREGISTERED":
            kind = PushOutcome.STALE  # it has said so of apps that were there
        case _, "QUOTA_EXCEEDED":
            kind, pause = PushOutcome.BUSY, QUOTA_PAUSE if pause is None else pause
        case 429, _:
            kind, pause = PushOutcome.BUSY, QUOTA_PAUSE if pause is None else pause
        case 503, _:
            kind = PushOutcome.BUSY
        case 401, "":
            return None
        case ((400 | 401 | 403 | 404), _):
            kind = PushOutcome.REFUSED
        case _:
            kind = PushOutcome.FAILED
    return Delivery(outcome=kind, retry_after=pause if kind is PushOutcome.BUSY else None, detail=detail)


def _code(answer: dict[str, Any]) -> str:
    """The code of an FCM error, which stands in its details; empty without one."""
    details = _mapping(answer.get("error")).get("details")
    for detail in details if isinstance(details, list) else []:
        if _mapping(detail).get("@type") == _FCM_ERROR:
            return _word(_mapping(detail).get("errorCode"))
    return ""


def _word(value: Any) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _object(content: bytes) -> dict[str, Any]:
    """The JSON object of an answer; an empty one for what is none, or too long."""
    if len(content) > MAX_ANSWER:
        return {}
    try:
        return _mapping(decode_json(content))
    except ValueError:
        return {}
