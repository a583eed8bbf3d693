"""The device's client of a relying party's ceremonies (docs/protocol/relying-party.md).

It fetches the challenge once the channel to the phone is open, so that it is fresh, and sends it over this channel
only. Begin and complete carry proofs of possession of the device's key for this origin: nobody else can complete the ceremony, and the
relying party binds the session to this key.
"""

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from headless_passkey.account import enrolment
from headless_passkey.errors import (
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import ProblemAnswer, ProvenHttp, open_session
from headless_passkey.rp.finding import find_relying_party, refusal
from headless_passkey.rp.key_store import KeyStore, OriginKeys
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import Members
from headless_passkey.webauthn.options import Credential
from headless_passkey.webauthn.origins import check_origin
from program_parts.base64url import base64url
from program_parts.names import plain

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # token68, RFC 9110 §11.2
_PATIENCE: Final = 10.0  # seconds in which transient failures are retried


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSession:
    """The relying party's answer with a new or refreshed session: its tokens and their lifetimes.

    The tokens are bound to the device's key. Times are Unix seconds by the relying party's clock.
    """

    token: str = field(repr=False)  # the access token
    expires_at: int  # of the access token
    refresh_token: str | None = field(repr=False)  # single use
    ends_at: int  # of the session
    user_name: str
    display_name: str
    user_handle: str  # base64url
    credential_id: str  # base64url
    audience: tuple[str, ...] = ()  # origins of services that take the token, beside the relying party

    @classmethod
    def parse(cls, members: Members) -> Self:
        user = members.object("user")
        token, refresh_token = members.text("token", 4096), members.optional_text("refresh_token", 4096)
        if not _TOKEN.fullmatch(token):
            raise RemoteProtocolError(
                "the relying party's token cannot stand in a header", reason=ProtocolReason.MALFORMED_ANSWER
            )
        return cls(
            token=token,
            expires_at=members.integer("expires_at"),
            refresh_token=refresh_token,
            ends_at=members.integer("ends_at"),
            user_name=user.text("name"),
            display_name=user.text("display_name"),
            user_handle=base64url(user.octets("handle", 1, 64)),
            credential_id=members.text("credential_id", 2048),
            audience=tuple(
                origin
                for origin in map(_service, members.optional_items("audience", 64))
                if origin is not None
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Encode as JSON, tokens included."""
        return {
            "token": self.token,
            "token_type": "DPoP",
            "expires_at": self.expires_at,
            "refresh_token": self.refresh_token,
            "ends_at": self.ends_at,
            "user": {"name": self.user_name, "display_name": self.display_name, "handle": self.user_handle},
            "credential_id": self.credential_id,
            "audience": list(self.audience),
        }


def service_origin(text: str) -> str:
    """Parse the origin of a service that may get a token: https, or http on loopback; else `UsageError`."""
    base = BaseUrl.parse(text)
    if base.path:
        raise UsageError("an origin has no path")
    if base.scheme != "https" and not base.is_loopback:
        raise UsageError("a token is sent over https only")
    return base.origin


def _service(item: Any) -> str | None:
    """Parse a service that the relying party names; None for one that must not get a token."""
    if not isinstance(item, str):
        return None
    try:
        return service_origin(item)
    except UsageError:
        return None


class _Call(Protocol):
    async def __call__(
        self, step: str, body: dict[str, Any], *, patience: float = ..., any_clock: bool = ...
    ) -> Members: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunCeremony:
    """A ceremony that the relying party has begun."""

    options: Mapping[str, Any]  # the WebAuthn options as JSON, with the challenge
    name: str = field(repr=False)  # the relying party's, opaque
    call: _Call = field(repr=False)
    user_handle: bytes | None = field(
        default=None, repr=False
    )  # whose session must come; None: as the phone says

    async def complete(self, credential: Credential) -> OpenedSession:
        """Complete the ceremony with the response, once; returns the new session.

        `TrustError` (unexpected-user) when it is the session of another user than expected, or than the phone named.
        """
        body = {"ceremony": self.name, "response": credential.for_relying_party()}
        opened = OpenedSession.parse(await self.call("result", body, patience=0, any_clock=True))
        for who, handle in ("expected", self.user_handle), ("named by the phone", credential.user_handle):
            if handle not in (None, from_base64url(opened.user_handle)):
                raise TrustError(
                    TrustReason.UNEXPECTED_USER,
                    f"the relying party opened the session of another user than {who}",
                )
        return opened


class Conduit:
    """A client for one kind of ceremony at one relying party; each `begin` begins a new ceremony."""

    def __init__(
        self,
        http: ProvenHttp,
        *,
        origin: str,
        kind: RequestKind,
        user_name: str | None = None,
        user_handle: bytes | None = None,
        display_name: str | None = None,
        label: str | None = None,
    ) -> None:
        """origin: of the relying party, which `http` talks to. user_name: whom to register, or to sign in.

        user_handle: whose session must come; None: of the user whom the phone names.
        label: the device's name in the user's list of sessions, made valid as a name.
        """
        self._http, self.origin, self._user_handle = http, check_origin(origin), user_handle
        name = None if label is None else plain(label)
        client = None if name is None else {"label": name}
        asked = {"user_name": user_name, "display_name": display_name, "client": client}
        self._asked = {name: value for name, value in asked.items() if value is not None}
        self._path = "/webauthn/" + (
            "authentication" if kind is RequestKind.GET_ASSERTION else "registration"
        )

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        state: Path,
        relying_party: str,
        *,
        kind: RequestKind,
        user_name: str | None = None,
        display_name: str | None = None,
        tls: ssl.SSLContext | None = None,
        keys: OriginKeys | None = None,
    ) -> AsyncIterator[Self]:
        """The relying party at an address, over a connection of its own, for the device of a state directory.

        state: of a device that has joined; else `NotEnrolled`. Its key for the relying party's origin proves the requests
        and binds the session. relying_party: its address, with the path it is mounted at. kind: GET_ASSERTION or
        MAKE_CREDENTIAL. tls: whom to believe, None for the system's roots. keys: None for those in the state directory. `RemoteProtocolError` (wrong-server) when there is none.
        """
        joined = enrolment.load(state)
        named = BaseUrl.parse(relying_party)
        check_origin(named.origin)
        key = await (keys or KeyStore(state)).key(named.origin)
        async with open_session(tls) as http:
            base = await find_relying_party(http, named, key)
            yield cls(
                ProvenHttp(http, str(base), key),
                origin=base.origin,
                kind=kind,
                user_name=user_name,
                display_name=display_name,
                label=joined.label,
            )

    @property
    def host(self) -> str:
        """The host of the relying party, its default RP ID."""
        return urlsplit(self.origin).hostname or ""

    async def begin(self) -> BegunCeremony:
        """Begin a ceremony, with a fresh challenge; `headless_passkey.ceremony.run_ceremony` takes this as its options."""
        answer = await self._call("options", self._asked)
        return BegunCeremony(
            options=answer.mapping("publicKey"),
            name=answer.text("ceremony", 1024),
            call=self._call,
            user_handle=self._user_handle,
        )

    async def _call(
        self, step: str, body: dict[str, Any], *, patience: float = _PATIENCE, any_clock: bool = False
    ) -> Members:
        try:
            return await self._http.post(f"{self._path}/{step}", body, patience=patience, any_clock=any_clock)
        except ProblemAnswer as problem:
            raise refusal(problem) from problem
