"""Companions with state directories of their own, a device that seals, and a relay between them."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from companion_push.companion.inbox import CheckedRequest, Inbox, Notice, NoticeKind
from companion_push.companion.keys import CompanionState, Identity, KeyPair
from companion_push.companion.openers import Opening
from companion_push.companion.relay_client import CompanionRelay
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.envelope import Announcement, new_request_id, seal
from headless_passkey.trust.ring import Member
from program_parts.base64url import base64url
from tests.relay.household import Caller, Household, Reply
from tests.trust.people import Person


@dataclass
class Frame:
    """A device that asks."""

    caller: Caller
    home: Household

    def say(self, to: Person, request_id: bytes, **changes: Any) -> Announcement:
        now = int(changes.pop("now", time.time()))
        kind = RequestKind(changes.pop("kind", RequestKind.GET_ASSERTION))
        values: dict[str, Any] = {
            "ring": self.home.ring,
            "device": self.caller.name,
            "request_id": request_id,
            "confirmed": now,
            "now": now,
            "lifetime": 300,
            "kind": kind,
            "url": QrTransaction.create(hint=kind, time=now).url.encode(),
            "rp_id": "example.com",
        }
        return Announcement.address(self.entry(to), **(values | changes))

    def entry(self, to: Person) -> Member:
        """What the newest ring says of `to`, whose HPKE key may have been replaced."""
        return self.home.ring.member(to.name) or to.member

    def seal(self, to: Person, request_id: bytes, **changes: Any) -> bytes:
        hpke_key = self.entry(to).hpke_key
        assert hpke_key is not None
        return seal(self.say(to, request_id, **changes), self.caller.person.key, hpke_key)

    async def ask(self, *to: Caller, expires_in: int = 300, **changes: Any) -> str:
        """Submit one request; its id as the relay has it."""
        request_id = new_request_id()
        sealed = {each.name: self.seal(each.person, request_id, **changes) for each in to}
        return await self.submit(request_id, sealed, expires_in=expires_in)

    async def submit(self, request_id: bytes, sealed: dict[str, bytes], *, expires_in: int = 300) -> str:
        name = base64url(request_id)
        envelopes = [{"to": to, "sealed": base64url(data)} for to, data in sealed.items()]
        reply: Reply = await self.caller.put(
            f"/v1/requests/{name}", {"expires_in": expires_in, "envelopes": envelopes}
        )
        assert reply.status == 201, reply
        return name

    async def state_of(self, name: str) -> str:
        return str((await self.caller.status(name))["state"])


@dataclass
class Companion:
    """A companion's inbox, and what it told."""

    caller: Caller
    state: CompanionState
    inbox: Inbox
    notices: list[Notice] = field(default_factory=list)

    @property
    def kinds(self) -> list[NoticeKind]:
        return [notice.kind for notice in self.notices]

    async def claim(self, request: CheckedRequest) -> None:
        """Claim a request that is pending here, and nothing more."""
        await self.inbox._relay.claim(*request.key, self.inbox._word(request))

    @property
    def refusals(self) -> list[str | None]:
        return [notice.reason for notice in self.notices if notice.kind is NoticeKind.REFUSED]


def enrolled(folder: Path, caller: Caller, home: Household, *, url: str | None = None) -> CompanionState:
    """The state directory of a companion that joined `home`."""
    state = CompanionState(folder / caller.name)
    state.create()
    keys = KeyPair(signing=caller.person.key, hpke=caller.person.hpke_private)
    identity = Identity(relay_url=url or caller.url, account=home.account, keys=keys)
    state.finish_joining(identity, RingChain.start(home.ring))
    return state


@contextlib.asynccontextmanager
async def awake(
    folder: Path, caller: Caller, home: Household, *, url: str | None = None
) -> AsyncIterator[Companion]:
    """A companion that can be asked to look into its inbox."""
    state = enrolled(folder, caller, home, url=url)
    async with awake_again(state, caller) as companion:
        yield companion


@contextlib.asynccontextmanager
async def awake_again(state: CompanionState, caller: Caller) -> AsyncIterator[Companion]:
    """The same companion after a restart."""
    me = state.identity()
    notices: list[Notice] = []
    async with CompanionRelay.connect(me.relay_url, me.keys.signing, tls=None, clock=caller.clock) as relay:
        inbox = Inbox(state, relay, on_notice=notices.append, clock=caller.clock)
        yield Companion(caller=caller, state=state, inbox=inbox, notices=notices)


class Hands:
    """An opener that takes note of what it was handed."""

    handed_over = "handed to these hands"
    phone_checks = True

    def __init__(self, error: BaseException | None = None, *, stays: bool = False) -> None:
        self.opened: list[Opening] = []
        self.error, self.stays = error, stays

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        self.opened.append(opening)
        yield
        if self.error is not None:
            raise self.error
