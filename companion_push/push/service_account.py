"""A Google service account: its file, and its OAuth access token, which it gets for a signed JWT (RFC 7523).

There is one token for each account. It is fetched by one task at a time, whoever waits for it (single flight), and
renewed after 5/6 of its life, 50 of 60 minutes, while the old one is still in use. A failed fetch is not repeated
before a pause, which grows, so that pushes do not become calls of the token's server.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc import jwt
from joserfc.jwk import RSAKey

from companion_push.push.channel import Delivery, PushOutcome
from companion_push.serving.retry_after import retry_after
from headless_passkey.errors import (
    HeadlessPasskeyError,
    SetupError,
    SetupReason,
    UsageError,
)
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proxy import read_bounded, sending
from headless_passkey.process.private_file import read_private
from headless_passkey.process.tasks import end_quietly
from headless_passkey.text.members import answer_members, file_members
from program_parts.json_text import decode_json

SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"  # RFC 7523 §2.1
LIFE: Final = 3600  # seconds: of the JWT, and the most that the token's server gives
MAX_FILE: Final = 16 * 1024  # bytes; such a file has 2400
MAX_ANSWER: Final = 64 * 1024  # bytes
FETCH_SECONDS: Final = 10.0
MARGIN: Final = 60.0  # seconds before its end in which a token is not used any more
YOUNG: Final = 60.0  # seconds: a token that is refused so soon is not the reason for it
FIRST_PAUSE: Final = 1.0  # seconds after a failed fetch; doubled with each one
MAX_PAUSE: Final = 300.0
_MIN_BITS: Final = 2048
_PROJECT: Final = re.compile(r"[a-z0-9][a-z0-9.:-]{0,99}", re.ASCII)
_TOKEN: Final = re.compile(r"[\x21-\x7E]{1,8192}", re.ASCII)
_WORD: Final = re.compile(r"[A-Za-z_]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccount:
    """A service account, as its file describes it."""

    project: str
    email: str
    key_id: str
    token_uri: str
    key: RSAKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the JSON file that the console gives for a new key. `SetupError` for one that others may read, or that is none."""
        content = read_private(path, limit=MAX_FILE)
        if content is None:
            raise SetupError(f"there is no file {path}", reason=SetupReason.STATE_UNREADABLE)
        try:
            members = file_members(decode_json(content), "a service account")
            if members.text("type") != "service_account":
                raise ValueError("type: expected service_account")  # noqa: TRY301  as `file_members` does
            return cls(
                project=_like(_PROJECT, members.text("project_id"), "project_id"),
                email=members.text("client_email"),
                key_id=members.text("private_key_id"),
                token_uri=_https(members.text("token_uri")),
                key=_private_key(members.text("private_key", MAX_FILE)),
            )
        except ValueError as error:  # none of them repeats what the file holds
            raise SetupError(
                f"{path} is no key of a service account: {error}", reason=SetupReason.STATE_DAMAGED
            ) from None

    def assertion(self, now: float) -> str:
        """Make the JWT for which the token's server gives an access token (RFC 7523 §3). now: Unix seconds."""
        header = {"alg": "RS256", "typ": "JWT", "kid": self.key_id}
        claims = {
            "iss": self.email,
            "scope": SCOPE,
            "aud": self.token_uri,
            "iat": int(now),
            "exp": int(now) + LIFE,
        }
        return jwt.encode(header, claims, self.key, algorithms=["RS256"])


def _like(pattern: re.Pattern[str], text: str, name: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{name}: not one")
    return text


def _https(text: str) -> str:
    try:
        return str(BaseUrl.parse(text, schemes=("https",)))
    except UsageError as error:
        raise ValueError(f"token_uri: {error}") from error


def _private_key(pem: str) -> RSAKey:
    try:
        private = load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # their messages may hold anything
        raise ValueError("private_key: expected a key in PEM form") from None
    if not isinstance(private, RSAPrivateKey) or private.key_size < _MIN_BITS:
        raise ValueError(f"private_key: expected an RSA key of at least {_MIN_BITS} bits")
    return RSAKey.import_key(private)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """An access token, and when it is what; seconds of the clock that does not jump."""

    text: str = field(repr=False)
    made_at: float
    renew_at: float
    ends_at: float


class AccessTokens:
    """The access token of one service account."""

    def __init__(
        self,
        account: ServiceAccount,
        session: Callable[[], aiohttp.ClientSession],
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        seconds: float = FETCH_SECONDS,
    ) -> None:
        """session: gives the client session, with the `tracing` of `headless_passkey.net.proxy`.

        clock: Unix seconds, which date the JWT. ticks: seconds that no one sets back, which end the token.
        seconds: for one request of a token.
        """
        self._account, self._session, self._clock, self._ticks = account, session, clock, ticks
        self._seconds = seconds
        self._token: _Token | None = None
        self._fetch: asyncio.Task[None] | None = None
        self._failure: Delivery | None = None
        self._failures = 0
        self._again_at = 0.0  # of ticks: no fetch begins before

    async def token(self) -> str | Delivery:
        """The access token; waits for it where there is none. When it cannot be had: what became of the push."""
        kept = self._usable()
        if kept is not None:
            if self._ticks() >= kept.renew_at:
                self._begin()
            return kept.text
        fetch = self._begin()
        if fetch is not None:
            await asyncio.wait({fetch})  # who is cancelled here leaves it to the others
        kept = self._usable()
        return self._why_not() if kept is None else kept.text

    def refused(self, text: str) -> bool:
        """Forget a token that the service refused; returns whether it is worth to ask for another one.

        It is not when this one is new: a service that refuses each token would have one fetched for each push.
        """
        if self._token is None or self._token.text != text:
            return True  # somebody else has done so
        if self._ticks() < self._token.made_at + YOUNG:
            return False
        self._token = None
        return True

    async def close(self) -> None:
        if self._fetch is not None:
            await end_quietly(self._fetch)

    def _usable(self) -> _Token | None:
        return self._token if self._token is not None and self._ticks() < self._token.ends_at else None

    def _begin(self) -> asyncio.Task[None] | None:
        """The fetch that is under way, or a new one; None in the pause after a failure."""
        if self._fetch is not None and not self._fetch.done():
            return self._fetch
        if self._ticks() < self._again_at:
            return None
        self._fetch = asyncio.get_running_loop().create_task(self._fetched())
        return self._fetch

    def _why_not(self) -> Delivery:
        failure = self._failure or Delivery(outcome=PushOutcome.FAILED, detail="no access token")
        if failure.outcome is not PushOutcome.BUSY:
            return failure
        left = max(0.0, self._again_at - self._ticks())
        return Delivery(outcome=PushOutcome.BUSY, retry_after=left, detail=failure.detail)

    async def _fetched(self) -> None:
        began = self._ticks()
        try:
            self._token = await self._asked(began)
        except _Failed as failed:
            self._failed(failed.outcome, failed.detail, failed.pause)
        except HeadlessPasskeyError as error:  # no answer, or one that is malformed
            self._failed(PushOutcome.BUSY, f"no access token: {error}", None)
        else:
            self._failure, self._failures, self._again_at = None, 0, 0.0

    def _failed(self, outcome: PushOutcome, detail: str, pause: float | None) -> None:
        own = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._again_at = self._ticks() + max(own, min(pause or 0.0, MAX_PAUSE))
        self._failure = Delivery(outcome=outcome, detail=detail)

    async def _asked(self, began: float) -> _Token:
        """One exchange with the token's server."""
        form = {"grant_type": GRANT, "assertion": self._account.assertion(self._clock())}
        async with sending(
            self._session(),
            "POST",
            self._account.token_uri,
            data=form,
            timeout=aiohttp.ClientTimeout(total=self._seconds),
        ) as response:
            content = await read_bounded(response, MAX_ANSWER)
        members = _json_object(content)
        if response.status != 200:
            raise _Failed.by(
                response.status, members, retry_after(response.headers.get("Retry-After"), self._clock())
            )
        answer = answer_members(members, "the access token's answer")
        text, life = answer.text("access_token", 8192), answer.integer("expires_in", 24 * LIFE)
        if not _TOKEN.fullmatch(text) or answer.text("token_type").lower() != "bearer" or life <= MARGIN:
            raise _Failed(PushOutcome.BUSY, "no access token: the answer of its server means nothing", None)
        return _Token(text=text, made_at=began, renew_at=began + life * 5 / 6, ends_at=began + life - MARGIN)


class _Failed(Exception):  # noqa: N818  it never leaves this module
    """The token's server has answered, and there is no token in it."""

    def __init__(self, outcome: PushOutcome, detail: str, pause: float | None) -> None:
        super().__init__(detail)
        self.outcome, self.detail, self.pause = outcome, detail, pause

    @classmethod
    def by(cls, status: int, members: dict[str, Any], pause: float | None) -> Self:
        """Make it of an error answer (RFC 6749 §5.2)."""
        word = members.get("error")
        word = word if isinstance(word, str) and _WORD.fullmatch(word) else ""
        final = 400 <= status < 500 and status not in (408, 425, 429)
        return cls(
            PushOutcome.REFUSED if final else PushOutcome.BUSY,
            f"no access token: its server answers {status} {word}".rstrip(),
            pause,
        )


def _json_object(content: bytes) -> dict[str, Any]:
    """The JSON object of an answer; an empty one for what is none, or too long."""
    if len(content) > MAX_ANSWER:
        return {}
    try:
        value = decode_json(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
