"""A ceremony at a relying party, from the party's address to a session: what `headless_passkey.device` does.

`headless_passkey.device` loads this module, and with it everything that a sign-in needs, when a device is opened.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp

from headless_passkey.account import enrolment
from headless_passkey.account.delivery import RelayDelivery
from headless_passkey.account.enrolment import Enrolment
from headless_passkey.account.links import AccountLinks
from headless_passkey.account.relay import RelayClient
from headless_passkey.ceremony import CeremonyResult, run_ceremony
from headless_passkey.delivery import Ask, Delivery
from headless_passkey.errors import (
    LocalProtocolError,
    NotEnrolled,
    UsageError,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import ProvenHttp
from headless_passkey.net.related_origins import fetch_related_origins
from headless_passkey.net.unreachable import by
from headless_passkey.radio.source import AdvertSource
from headless_passkey.request import CEREMONY_TIMEOUT
from headless_passkey.rp.conduit import (
    Conduit,
    OpenedSession,
    service_origin,
)
from headless_passkey.rp.finding import find_relying_party
from headless_passkey.rp.key_store import KeyStore, OriginKeys
from headless_passkey.rp.session import Session
from headless_passkey.rp.session_store import KeptSession, SessionStore
from headless_passkey.rp.users import PinnedUsers
from headless_passkey.stages import StageEvent
from headless_passkey.trust.signing import thumbprint
from headless_passkey.webauthn.options import Credential
from headless_passkey.webauthn.origins import RelatedOrigins, check_origin, is_within

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a ceremony at a relying party asks for."""

    kind: RequestKind  # GET_ASSERTION or MAKE_CREDENTIAL
    user_name: str | None = None  # of the user to register or sign in; None: any user
    display_name: str | None = None
    user_handle: bytes | None = field(default=None, repr=False)  # of the expected account (T3)
    rp_id: str | None = None  # None: the relying party's host
    note: str | None = None  # shown on the companion
    digits: str | None = field(
        default=None, repr=False
    )  # match digits, which the user types on the companion
    audience: tuple[str, ...] = ()  # more origins of services that may get the session's token
    add_user: bool = False  # pin the user who answers, beside those who are pinned
    any_user: bool = False  # whoever answers; nobody is pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The result of a ceremony at a relying party."""

    ceremony: CeremonyResult
    relying_party: str  # its base URL
    opened: OpenedSession
    session: Session | None  # None: not kept
    user_pinned: bool = False  # this ceremony has pinned its user


class RelyingPartyCeremonies:
    """The ceremonies of one device: its state directory, radio and connections."""

    def __init__(
        self,
        state: Path,
        *,
        http: aiohttp.ClientSession,
        radio: AdvertSource,
        tunnels: Mapping[int, str] | None = None,
        tls: ssl.SSLContext | None = None,
        require_witness: int | None = None,
        direct: bool = False,
        clock: Callable[[], float] = time.time,
        keys: OriginKeys | None = None,
    ) -> None:
        self._keys = keys or KeyStore(state)
        self.state, self._http, self._radio = state, http, radio
        self._tunnels, self._tls, self._clock = tunnels, tls, clock
        self._require_witness, self._direct = require_witness, direct

    def session(self, relying_party: str | None = None, *, url: str | None = None) -> Session:
        """Load a stored session, as `Session.load` does."""
        return Session.load(
            self.state, relying_party, url=url, http=self._http, clock=self._clock, keys=self._keys
        )

    async def ask(
        self,
        relying_party: str | BaseUrl,
        asked: Asked,
        *,
        on_stage: Callable[[StageEvent], None] = lambda _event: None,
        timeout: float = CEREMONY_TIMEOUT,  # noqa: ASYNC109  one deadline over all steps is the interface
        delivery: Delivery | None = None,
        keep: bool = True,
        link: bool = False,
        min_rssi: int | None = None,
        join_within: float | None = None,
        found: Awaitable[BaseUrl] | None = None,
    ) -> Opened:
        """Run a ceremony, as `headless_passkey.device.Device.ask` says.

        found: the end of a search for the relying party that has begun already, by `find_relying_party` with the key for
        its origin.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + timeout
        named = relying_party if isinstance(relying_party, BaseUrl) else BaseUrl.parse(relying_party)
        check_origin(named.origin)
        told = tuple(map(service_origin, asked.audience))
        if asked.add_user and asked.any_user:
            raise UsageError("add_user pins one more user, any_user pins nobody: they exclude each other")
        rp_id = asked.rp_id or named.host
        joined = self._joined(needed=delivery is None)
        if joined is not None:
            joined.check_rp(rp_id=rp_id, origin=named.origin)
        users = (
            None if asked.any_user else PinnedUsers(self.state, rp_id, add=asked.add_user, clock=self._clock)
        )
        expected = self._expected(users, asked)
        store = SessionStore(self.state)
        store.prepare()
        key = await self._keys.key(named.origin)
        what = f"{named} did not answer within {timeout:g} seconds"
        base = await by(deadline, found or find_relying_party(self._http, named, key), what)
        conduit = Conduit(
            ProvenHttp(self._http, str(base), key, clock=self._clock),
            origin=base.origin,
            kind=asked.kind,
            user_name=asked.user_name,
            user_handle=expected,
            display_name=asked.display_name,
            label=None if joined is None else joined.label,
        )

        def keep_as(opened: OpenedSession) -> KeptSession:
            return KeptSession(
                relying_party=str(base),
                opened=opened,
                key_name=thumbprint(key.public_key),
                told=told,
                received_at=int(self._clock()),
            )

        related: RelatedOrigins | None = None
        if not is_within(conduit.host, rp_id):
            what = f"{rp_id} did not say within {timeout:g} seconds which origins it is related to"
            related = await by(deadline, fetch_related_origins(self._http, rp_id), what)
        ask = Ask(
            kind=asked.kind,
            origin=conduit.origin,
            rp_id=rp_id,
            note=asked.note,
            digits=asked.digits,
            user_handle=expected,
            related=related,
        )
        keeper = _Keeper(users=users, store=store, relying_party=str(base), keep_as=keep_as if keep else None)
        completed = await run_ceremony(
            ask,
            conduit.begin,
            delivery=delivery or self._relay_delivery(joined),
            radio=self._radio,
            tunnels=self._tunnels,
            tls=self._tls,
            timeout=max(0.1, round(deadline - now(), 1)),
            on_stage=on_stage,
            users=keeper,
            links=AccountLinks(
                self.state,
                http=self._http,
                through_account=delivery is None,
                require_witness=self._require_witness,
                clock=self._clock,
            ),
            link=link,
            min_rssi=min_rssi,
            join_within=join_within,
            direct=self._direct,
        )
        kept = keeper.kept
        return Opened(
            ceremony=completed,
            relying_party=str(base),
            opened=completed.result,
            session=None
            if kept is None
            else Session(store, kept, http=self._http, clock=self._clock, keys=self._keys),
            user_pinned=users is not None and users.newly_pinned,
        )

    @staticmethod
    def _expected(users: PinnedUsers | None, asked: Asked) -> bytes | None:
        """The user handle that must come, None for several or any; refuses here what needs no answer to be refused.

        A name that is pinned stands for its pinned user, because a relying party may give a name to somebody else.
        """
        if users is None:
            return asked.user_handle
        users.read()  # one that is damaged is told before anybody is asked
        if asked.kind is RequestKind.MAKE_CREDENTIAL:
            users.check_new()
        if asked.user_handle is None and asked.user_name is not None:
            return users.named(asked.user_name)
        return asked.user_handle

    def _joined(self, *, needed: bool) -> Enrolment | None:
        """Load the enrolment; None for a device without account that needs none."""
        try:
            return enrolment.load(self.state)
        except NotEnrolled:
            if needed:
                raise
            return None

    def _relay_delivery(self, joined: Enrolment | None) -> Delivery:
        if joined is None:
            raise LocalProtocolError("a delivery through the relay needs an account")
        relay = RelayClient(ProvenHttp(self._http, joined.relay_url, joined.key, clock=self._clock))
        return RelayDelivery(relay, self.state, require_witness=self._require_witness, clock=self._clock)


@dataclass(slots=True, kw_only=True)
class _Keeper:
    """Hands in a response, then pins the user and stores the session, under the locks of both."""

    users: PinnedUsers | None  # None: whoever answers
    store: SessionStore
    relying_party: str  # its base URL
    keep_as: Callable[[OpenedSession], KeptSession] | None  # None: the session is not stored
    kept: KeptSession | None = None

    def check(self, handle: bytes | None) -> bool:
        return self.users is not None and self.users.check(handle)

    async def settle(
        self, credential: Credential, settle: Callable[[Credential], Awaitable[_T]], *, expected: bool
    ) -> _T:
        async with AsyncExitStack() as locks:
            if self.keep_as is not None:  # another process may refresh the earlier session
                await locks.enter_async_context(self.store.locked(self.relying_party))
            result = await (
                settle(credential)
                if self.users is None
                else self.users.settle(credential, settle, expected=expected)
            )
            if self.keep_as is not None and isinstance(result, OpenedSession):
                self.kept = self.keep_as(result)
                self.store.write(self.kept)
        return result
