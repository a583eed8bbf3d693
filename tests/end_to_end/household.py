"""Accounts for end-to-end tests: the joining is done in this process, with the programs' own code and quickly.

`test_accounts` joins with the programs themselves; what other tests are about begins after that.
"""

import asyncio
import itertools
import json
import os
import shutil
import sqlite3
import ssl
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from programs import Program, event
from world import World

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.keys import CompanionState, Identity
from companion_push.companion.membership import Membership
from companion_push.companion.relay_client import CompanionRelay
from companion_push.companion.software_key import ES256, SoftwareKey
from companion_push.relay.accounts import add_account
from companion_push.relay.store_place import store_place
from companion_push.relay.stores import open_store
from headless_passkey.account import enrolment
from headless_passkey.account.enrolment import Enrolment
from headless_passkey.account.relay import RelayClient, RequestStatus
from headless_passkey.hybrid.ctap2 import MakeCredentialRequest, User
from headless_passkey.net.proven_http import ProvenHttp, open_session
from headless_passkey.net.tls import tls_context
from headless_passkey.rp.key_store import KeyStore
from headless_passkey.rp.session_store import KeptSession, SessionStore
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.admission import Candidate, InvitationRecord
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import Member, Role

_numbers: Final = itertools.count(1)


@dataclass(frozen=True)
class Home:
    """An account with its members, each with a state directory; the first companion let the others in."""

    world: World
    account: str
    companions: tuple[str, ...]
    devices: tuple[str, ...]

    @property
    def phone(self) -> str:
        return self.companions[0]

    @property
    def hub(self) -> str:
        return self.devices[0]

    @classmethod
    async def make(cls, world: World, *, companions: int = 1, devices: int = 1) -> "Home":
        number = next(_numbers)
        home = cls(
            world,
            f"home {number}",
            tuple(f"phone {number} {each}" for each in range(companions)),
            tuple(f"hub {number} {each}" for each in range(devices)),
        )
        await home.found()
        return home

    async def registers_ada(self) -> dict[str, Any]:
        """Have the hub register a user called ada: the passkey is on every phone then. Returns the session."""
        companion = await self.world.companion(self.phone, "--once")
        status, session = await self.world.ceremony(self.hub, "register", "--user", "ada")
        assert (status, await companion.wait()) == (0, 0)
        assert session is not None
        return session

    async def found(self) -> None:
        """Found the account at the relay, and let everybody in."""
        async with open_store(store_place(str(self.world.relay_place))) as database:
            now = time.time()
            added = await database.transact(
                lambda db: add_account(db, name=self.account, now=now, expires_at=int(now) + 600)
            )
        assert added is not None
        code = AccountCode(
            relay_url=self.world.relay, account=added[0], account_name=self.account, code=added[1]
        )
        await self.membership(self.phone).join(code.encode(), label=self.phone)
        for name in self.companions[1:]:
            await self.let_in(Role.COMPANION, name)
        for name in self.devices:
            await self.let_in(Role.DEVICE, name)

    async def let_in(self, kind: Role, who: str, *, rp_ids: tuple[str, ...] | None = None) -> Member:
        invitation: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        number: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def typed(candidate: Candidate) -> InvitationRecord:
            return candidate.agree(await number)

        async def join() -> None:
            line = await invitation
            if kind is Role.COMPANION:
                await self.membership(who).join(line, label=who, on_check_number=number.set_result)
            else:
                await enrolment.join(
                    self.world.state(who),
                    Invitation.parse(line),
                    label=who,
                    tls=trusted(self.world),
                    on_check_number=number.set_result,
                )

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(join())
            inviting = tasks.create_task(
                self.membership(self.phone).invite(
                    kind, rp_ids=rp_ids, seconds=30, show=invitation.set_result, consent=typed
                )
            )
        return inviting.result()

    async def remove(self, who: str) -> None:
        """The first companion takes `who`, a companion, out of the ring."""
        me, name = self.identity(self.phone), self.identity(who).keys.name
        state = CompanionState(self.world.state(self.phone))
        async with CompanionRelay.connect(
            self.world.relay, me.keys.signing, tls=trusted(self.world)
        ) as relay:
            head = (await relay.bring_up_to_date(state.chain())).head
            members = [member for member in head.members if member.name != name]
            assert await relay.append_ring(head.next(me.keys.signing, members=members, now=time.time()))

    def membership(self, companion: str) -> Membership:
        return Membership(state=CompanionState(self.world.state(companion)), tls=trusted(self.world))

    def identity(self, companion: str) -> Identity:
        return CompanionState(self.world.state(companion)).identity()

    def enrolment(self, device: str) -> Enrolment:
        return enrolment.load(self.world.state(device))

    async def inbox(self, companion: str) -> list[tuple[str, bytes, str]]:
        """Device, id and state of what waits for a companion, by the relay."""
        me = self.identity(companion)
        async with CompanionRelay.connect(
            self.world.relay, me.keys.signing, tls=trusted(self.world)
        ) as relay:
            page = await relay.inbox(cursor=None, wait=0)
        return [(item.device, item.request_id, str(item.state)) for item in page.items]

    async def request(self, device: str, companion: str) -> bytes:
        """The id of the one live request of `device` that waits for `companion`."""
        name = self.enrolment(device).name
        (request_id,) = [each[1] for each in await self.inbox(companion) if each[0] == name]
        return request_id

    async def request_status(self, device: str, request_id: bytes) -> RequestStatus:
        """What became of a request, by the relay."""
        joined = self.enrolment(device)
        async with open_session(trusted(self.world)) as session:
            return await RelayClient(ProvenHttp(session, self.world.relay, joined.key)).status(request_id)

    async def final_state(self, device: str, request_id: bytes) -> str:
        """The state a request ends in."""
        joined = self.enrolment(device)
        async with open_session(trusted(self.world)) as session:
            relay = RelayClient(ProvenHttp(session, self.world.relay, joined.key))
            async for status in relay.watch(request_id):
                last = status
        return str(last.state)


@dataclass
class Session:
    """A device's session at the relying party, as the device keeps it."""

    world: World
    state: Path

    @classmethod
    def of(cls, home: Home, device: str) -> "Session":
        return cls(home.world, home.world.state(device))

    @property
    def kept(self) -> KeptSession:
        kept = SessionStore(self.state).read(self.world.relying_party)
        assert kept is not None
        return kept

    async def get(self) -> Any:
        """What the relying party says of it, asked with a proof of the device's key."""
        async with open_session(trusted(self.world)) as http:
            key = await KeyStore(self.state).key(self.world.relying_party)
            answer = await ProvenHttp(http, self.world.relying_party, key).call(
                "GET", "/session", access_token=self.kept.opened.token
            )
        return answer._value


def trusted(world: World) -> ssl.SSLContext:
    """TLS that believes the household's own authority."""
    return tls_context(world.certificates.ca)


async def page(world: World) -> str:
    """The relying party's page, as a browser without a session gets it."""
    async with (
        open_session(trusted(world)) as http,
        http.get(world.relying_party, headers={"Accept": "text/html"}) as response,
    ):
        return await response.text()


async def ends(program: Program, *, timeout: float = 120.0) -> int:  # noqa: ASYNC109
    """Its exit status, in bounded time."""
    return await program.wait(timeout=timeout)


def refusals(device: Program) -> list[tuple[str, str]]:
    """What a device told of companions that could not take its request: label and reason."""
    said = [each for each in map(event, device.said) if each is not None and each.get("stage") == "refused"]
    return [(each["label"], each["reason"]) for each in said]


async def session_of(program: Program) -> dict[str, Any]:
    """The one line of JSON that a ceremony prints."""
    (line,) = (await program.output()).splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def copied(store: Path) -> Path:
    """Copy a store whose program runs, as an operator does."""
    copy = store.with_suffix(".copy")
    with closing(sqlite3.connect(store)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def put_back(store: Path, copy: Path | None) -> None:
    """Restore a store from its copy, as an operator does; without one there is none."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{store}{suffix}").unlink(missing_ok=True)
    if copy is not None:
        shutil.move(copy, store)  # which may be on another file system
        store.chmod(0o600)


async def make_passkey(file: Path, rp_id: str) -> None:
    """A file with one passkey, which no relying party knows of."""
    request = MakeCredentialRequest(
        client_data_hash=bytes(32),
        rp_id=rp_id,
        rp_name="nobody",
        user=User(id=b"stranger", name="stranger", display_name=None),
        algorithms=(ES256,),
        resident_key=True,
        user_verification=True,
    )
    asked = SoftwareKey().make_credential(request)
    await CredentialFile(path=file).register(asked, now=int(time.time()))


def handle_of(session: dict[str, Any]) -> bytes:
    return from_base64url(session["user"]["handle"])


def processes(marker: str) -> list[int]:
    """The processes whose environment holds `marker`: started by us, or by what we started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def command_lines(marker: str) -> Sequence[str]:
    """The arguments of those processes, as everybody on the machine can read them."""
    lines = []
    for number in processes(marker):
        try:
            lines.append(Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return lines
