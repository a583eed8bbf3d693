"""Accounts that belong to somebody whom the embedder knows: founded with a token, closed, suspended, and changed under a veto."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from companion_push.companion.relay_client import CompanionRelay
from companion_push.identity.authority import (
    AccountAuthority,
    AuthorityUnavailable,
    RingChange,
    SignIn,
    SignInWay,
    Subject,
    TokenRefused,
)
from companion_push.relay.app import close_account, lift_suspension, suspend_account
from companion_push.relay.messages import Founding, TokenBody
from headless_passkey.errors import EnrolmentReason, NotEnrolled, TrustError, TrustReason, UsageError
from headless_passkey.net.proof import PROOF_HEADER
from headless_passkey.trust.fields import new_account
from headless_passkey.trust.ring import Ring
from program_parts.base64url import base64url
from tests.relay.household import Caller, Household, Relay, Reply, fresh_id, running_relay
from tests.trust.people import ACCOUNT_NAME, Person, companion, device, found, grow

ANNA = Subject(issuer="users", id="17")
ISSUED = 1_600_000_000


@dataclass
class Users(AccountAuthority):
    """A service with a users table: each token is a session of it."""

    sessions: dict[str, SignIn] = field(default_factory=dict)
    vetoes: bool = True
    shown: list[RingChange] = field(default_factory=list)
    forbidden: str | None = None
    answers: bool = True
    hangs: bool = False
    is_open: bool = False

    async def sign_in(self, token: str, *, key: str) -> SignIn:
        assert self.is_open
        assert len(key) == 43
        if self.hangs:
            await asyncio.Event().wait()
        if not self.answers:
            raise AuthorityUnavailable("the table is locked", retry_after=7)
        if token not in self.sessions:
            raise TokenRefused("the session is over")
        return self.sessions[token]

    async def veto(self, change: RingChange) -> str | None:
        self.shown.append(change)
        if self.hangs:
            await asyncio.Event().wait()
        if not self.answers:
            raise AuthorityUnavailable("the table is locked", retry_after=7)
        return self.forbidden

    def way(self) -> SignInWay | None:
        return SignInWay(issuer="https://users.example", client="companion", audience="relay")

    def opened(self) -> AbstractAsyncContextManager[None]:
        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[None]:
            self.is_open = True
            yield
            self.is_open = False

        return opened()

    def signed_in(self, token: str, subject: Subject = ANNA, **values: Any) -> None:
        known: dict[str, Any] = {"account_name": ACCOUNT_NAME, "issued_at": ISSUED}
        self.sessions[token] = SignIn(subject=subject, **(known | values))


@contextlib.asynccontextmanager
async def relay_of(users: Users, tmp_path: Path) -> AsyncIterator[Relay]:
    async with running_relay(tmp_path / "relay.sqlite3", authority=users) as relay:
        yield relay


def founding(relay: Relay, *, account: str | None = None, name: str = ACCOUNT_NAME) -> tuple[Caller, Ring]:
    """A companion, and the ring with which it founds an account that it has named by itself."""
    caller = relay.caller(companion())
    return caller, found(
        caller.person, account=account or new_account(), account_name=name, now=relay.clock()
    )


async def founds(caller: Caller, ring: Ring, token: str, **more: object) -> Reply:
    return await caller.post("/v1/accounts", {"token": token, "ring": base64url(ring.document), **more})


async def household(relay: Relay, token: str = "hers") -> Household:
    """A founded account with one companion and one device."""
    caller, ring = founding(relay)
    assert (await founds(caller, ring, token)).status == 201
    frame = relay.caller(Person(device().role, "frame", account=ring.account))
    home = Household(account=ring.account, ring=ring, companions=[caller], devices=[frame])
    await home.append(caller.person, frame.person)
    return home


async def holding(relay: Relay, caller: Caller, path: str) -> asyncio.Task[Reply]:
    """A call that the relay holds by now."""
    task = asyncio.ensure_future(caller.get(path))
    while not relay.is_held(caller.name):
        assert not task.done(), task.result()
        assert (await relay.session.get(relay.url + "/livez")).status == 200
    return task


async def test_a_token_founds_the_account_of_its_subject(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        caller, ring = founding(relay)
        way = await caller.get("/v1/accounts/sign-in")
        assert way.body == {"issuer": "https://users.example", "client": "companion", "audience": "relay"}
        mine = await caller.post("/v1/accounts/mine", {"token": "hers"})
        assert (mine.status, mine.body) == (200, {"account": None, "account_name": "alice"})
        reply = await founds(caller, ring, "hers")
        assert (reply.status, reply.body) == (201, {"account": ring.account})
        assert (await founds(caller, ring, "hers")).status == 200, "the same again"
        assert (await caller.get("/v1/ring")).body["version"] == 1
        mine = await caller.post("/v1/accounts/mine", {"token": "hers"})
        assert mine.body["account"] == ring.account
    assert not users.is_open


@pytest.mark.threat("T16")
async def test_a_token_lets_nobody_into_an_account_that_exists(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    users.signed_in("hers on another machine")
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        thief, ring = founding(relay)
        reply = await founds(thief, ring, "hers on another machine")
        assert (reply.status, reply.problem) == (409, "account-exists")
        assert reply.body["account"] == home.account
        assert (await thief.get("/v1/ring")).problem == "not-found"
        assert (await home.devices[0].get("/v1/ring")).body["version"] == 2


@pytest.mark.threat("T16")
async def test_who_founds_can_name_no_account_of_others(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    users.signed_in("his", Subject(issuer="users", id="18"))
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        built_in, _ = await relay.account_code("bob")
        for account in (home.account, built_in):
            caller, ring = founding(relay, account=account)
            assert (await founds(caller, ring, "his")).problem == "request-conflict"
        caller, ring = founding(relay, name="somebody else")
        assert (await founds(caller, ring, "his")).problem == "invalid-request"
        await close_account(relay.app, ANNA)
        caller, ring = founding(relay, account=home.account)
        assert (await founds(caller, ring, "his")).problem == "account-closed"


async def test_the_same_identifier_of_two_issuers_is_two_people(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    users.signed_in("other", Subject(issuer="users of another service", id=ANNA.id))
    async with relay_of(users, tmp_path) as relay:
        for token in ("hers", "other"):
            caller, ring = founding(relay)
            assert (await founds(caller, ring, token)).status == 201


async def test_what_the_authority_refuses_is_refused(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers", may_found=False)
    async with relay_of(users, tmp_path) as relay:
        caller, ring = founding(relay)
        reply = await founds(caller, ring, "nobody's")
        assert (reply.status, reply.problem, reply.body["detail"]) == (
            401,
            "token-refused",
            "the session is over",
        )
        assert 'error="invalid_token"' in reply.headers["WWW-Authenticate"]
        reply = await founds(caller, ring, "hers")
        assert (reply.status, reply.problem) == (403, "not-allowed")
        users.answers = False
        reply = await founds(caller, ring, "hers")
        assert (reply.status, reply.problem) == (503, "authority-unavailable")
        assert reply.headers["Retry-After"] == "7"


@pytest.mark.parametrize(
    "body",
    [{}, {"code": base64url(bytes(32)), "token": "hers"}, {"code": base64url(bytes(32)), "reset": True}, {"token": ""}],
    ids=["neither", "both", "reset-with-a-code", "empty"],
)  # fmt: skip
async def test_an_account_is_founded_with_a_code_or_with_a_token(
    tmp_path: Path, body: dict[str, object]
) -> None:
    async with relay_of(Users(), tmp_path) as relay:
        caller, ring = founding(relay)
        reply = await caller.post("/v1/accounts", {"ring": base64url(ring.document), **body})
        assert reply.problem == "invalid-request"


async def test_a_relay_with_built_in_accounts_takes_no_token(relay: Relay) -> None:
    caller, ring = founding(relay)
    assert (await founds(caller, ring, "hers")).problem == "token-refused"
    assert (await caller.get("/v1/accounts/sign-in")).problem == "not-found"


@pytest.mark.threat("T11")
def test_what_founds_an_account_is_not_shown() -> None:
    for body in (Founding(ring="r", code="secret"), Founding(ring="r", token="secret"), TokenBody("secret")):
        assert "secret" not in repr(body)


# Reset


@pytest.mark.threat("T17")
async def test_a_fresh_sign_in_closes_the_account_and_founds_it_anew(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        (phone,), (frame,) = home.companions, home.devices
        cursor = (await phone.get("/v1/inbox")).body["cursor"]
        held = await holding(relay, phone, f"/v1/inbox?cursor={cursor}&wait=20")
        users.signed_in("again", signed_in_at=int(relay.clock()) - 290)
        caller, ring = founding(relay)
        reply = await founds(caller, ring, "again", reset=True)
        assert (reply.status, reply.body) == (201, {"account": ring.account})
        assert (await held).problem == "account-closed", "told at once"
        assert (await frame.get("/v1/ring")).problem == "account-closed"
        assert (await founds(caller, ring, "again", reset=True)).status == 200, "the same again"
        assert (await caller.get("/v1/ring")).body["version"] == 1


@pytest.mark.threat("T17")
@pytest.mark.parametrize("age", [None, 301, -120], ids=["unknown", "too-old", "in-the-future"])
async def test_a_sign_in_of_earlier_resets_nothing(tmp_path: Path, age: int | None) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        users.signed_in("again", signed_in_at=None if age is None else int(relay.clock()) - age)
        caller, ring = founding(relay)
        reply = await founds(caller, ring, "again", reset=True)
        assert (reply.status, reply.problem, reply.body["max_age"]) == (401, "sign-in-too-old", 300)
        assert 'error="insufficient_user_authentication"' in reply.headers["WWW-Authenticate"]
        assert (await home.devices[0].get("/v1/ring")).status == 200


@pytest.mark.threat("T17")
async def test_a_subject_resets_a_few_times_a_day(tmp_path: Path) -> None:
    users = Users()
    async with relay_of(users, tmp_path) as relay:
        users.signed_in("hers", signed_in_at=int(relay.clock()))
        replies = []
        for _ in range(6):
            caller, ring = founding(relay)
            replies.append((await founds(caller, ring, "hers", reset=True)).problem)
        assert replies == [None] * 5 + ["rate-limited"]


# Closing and suspending


@pytest.mark.threat("T16")
async def test_a_token_from_before_its_account_was_closed_founds_nothing(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        assert await close_account(relay.app, ANNA) is None
        assert (await home.devices[0].get("/v1/ring")).problem == "account-closed"
        caller, ring = founding(relay)
        assert (await founds(caller, ring, "hers")).problem == "token-refused"
        users.signed_in("later", issued_at=int(relay.clock()) + 1)
        assert (await founds(caller, ring, "later")).status == 201
        await close_account(relay.app, ANNA, again=True)
        caller, ring = founding(relay)
        assert (await founds(caller, ring, "hers")).status == 201


async def test_who_never_had_an_account_can_be_closed_out_too(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        await close_account(relay.app, ANNA)
        caller, ring = founding(relay)
        assert (await founds(caller, ring, "hers")).problem == "token-refused"
        with pytest.raises(UsageError):
            await close_account(relay.app, ANNA, again=True)


@pytest.mark.threat("T17")
async def test_a_suspended_account_does_nothing_until_that_is_lifted(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        (phone,), (frame,) = home.companions, home.devices
        name = fresh_id()
        assert (await frame.submit(phone, name=name)).status == 201
        version = (await frame.status(name))["version"]
        held = await holding(relay, frame, f"/v1/requests/{name}?version={version}&wait=20")
        await suspend_account(relay.app, ANNA)
        assert (await held).problem == "account-suspended", "told at once"
        for reply in (
            await phone.get("/v1/inbox"),
            await phone.get("/v1/ring"),
            await frame.get("/v1/ring"),
            await frame.submit(phone),
            await frame.get(f"/v1/requests/{name}"),
            await frame.post("/v1/words/call", {}),
            await phone.post("/v1/ring", {"ring": base64url(home.ring.document)}),
            await phone.post("/v1/ring/links", {"rings": [base64url(home.ring.document)]}),
        ):
            assert (reply.status, reply.problem) == (403, "account-suspended")
        async with CompanionRelay.connect(relay.url, phone.person.key, tls=None) as client:
            with pytest.raises(NotEnrolled) as caught:
                await client.inbox(cursor=None, wait=0)
        assert (caught.value.reason, caught.value.exit_status) == (EnrolmentReason.ACCOUNT_SUSPENDED, 9)
        users.signed_in("again", signed_in_at=int(relay.clock()))
        caller, ring = founding(relay)
        assert (await founds(caller, ring, "again", reset=True)).problem == "account-suspended"
        mine = await caller.post("/v1/accounts/mine", {"token": "again"})
        assert mine.problem == "account-suspended"
        await suspend_account(relay.app, ANNA)
        await lift_suspension(relay.app, ANNA)
        assert (await frame.status(name))["state"] == "cancelled"
        assert (await frame.status(name))["reason"] == "suspended"
        assert (await phone.get("/v1/ring")).body["version"] == 2
        assert (await frame.submit(phone)).status == 201


async def test_a_subject_is_suspended_before_it_has_an_account(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        await suspend_account(relay.app, ANNA)
        caller, ring = founding(relay)
        assert (await founds(caller, ring, "hers")).problem == "account-suspended"
        await lift_suspension(relay.app, ANNA)
        assert (await founds(caller, ring, "hers")).status == 201


async def test_a_built_in_account_is_suspended_by_its_name(relay: Relay, home: Household) -> None:
    await suspend_account(relay.app, "alice")
    assert (await home.companions[1].get("/v1/inbox")).problem == "account-suspended"
    await lift_suspension(relay.app, "alice")
    assert (await home.companions[1].get("/v1/inbox")).status == 200
    for act in (suspend_account, lift_suspension, close_account):
        with pytest.raises(UsageError, match="no such account"):
            await act(relay.app, "nobody")


async def test_a_suspension_ends_the_stream_of_a_companion(relay: Relay, home: Household) -> None:
    phone = home.companions[0]
    headers = {PROOF_HEADER: phone.proof("GET", "/v1/inbox/stream")}
    async with relay.session.get(relay.url + "/v1/inbox/stream", headers=headers) as response:
        assert b"event: inbox" in await response.content.readuntil(b"\n\n") + await response.content.readany()
        await suspend_account(relay.app, "alice")
        assert b"account-suspended" in await response.content.read()


async def test_a_newcomer_is_told_that_the_account_is_suspended(relay: Relay, home: Household) -> None:
    await suspend_account(relay.app, "alice")
    newcomer = relay.caller(device("new"))
    body = {
        "account": home.account,
        "ticket": base64url(bytes(32)),
        "body": base64url(b"body"),
        "signature": base64url(bytes(64)),
        "mac": base64url(bytes(32)),
    }
    assert (await newcomer.post("/v1/introductions", body)).problem == "not-found", "no ticket, no word"


# The veto


@pytest.mark.threat("T16")
async def test_the_authority_vetoes_what_lets_somebody_in_and_never_what_takes_somebody_out(
    tmp_path: Path,
) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        (phone,), (frame,) = home.companions, home.devices
        users.shown.clear()
        users.forbidden = "two devices at most"
        hub = Person(device().role, "hub", account=home.account)
        grown = grow(home.ring, phone.person, phone.person, frame.person, hub, now=relay.clock())
        for path, body in (
            ("/v1/ring", {"ring": base64url(grown.document)}),
            ("/v1/ring/links", {"rings": [base64url(grown.document)]}),
        ):
            reply = await phone.post(path, body)
            assert (reply.status, reply.problem, reply.body["detail"]) == (
                403,
                "not-allowed",
                "two devices at most",
            )
        change = RingChange(
            account=home.account,
            subject=ANNA,
            version=3,
            signer=phone.name,
            added=(("device", "hub"),),
            removed=(),
        )
        assert users.shown == [change, change]
        async with CompanionRelay.connect(relay.url, phone.person.key, tls=None) as client:
            with pytest.raises(TrustError, match="two devices at most") as caught:
                await client.append_ring(grown)
        assert (caught.value.reason, caught.value.exit_status) == (TrustReason.CHANGE_NOT_ALLOWED, 8)
        assert (await phone.get("/v1/ring")).body["version"] == 2
        users.shown.clear()
        await home.append(phone.person)
        assert users.shown == [], "whoever is taken out is out"
        assert (await frame.get("/v1/ring")).body["version"] == 3


async def test_a_change_that_the_authority_lets_be_is_made(tmp_path: Path) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        assert [change.added for change in users.shown] == [(("device", "frame"),)]
        stranger = relay.caller(companion())
        grown = grow(home.ring, home.companions[0].person, home.companions[0].person, now=relay.clock())
        reply = await stranger.post("/v1/ring", {"ring": base64url(grown.document)})
        assert reply.problem == "not-found", "a preview tells a stranger nothing either"


@pytest.mark.threat("T17")
@pytest.mark.parametrize("hangs", [False, True], ids=["away", "hangs"])
async def test_an_authority_that_cannot_be_asked_keeps_nobody_waiting_and_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    users = Users()
    users.signed_in("hers")
    async with relay_of(users, tmp_path) as relay:
        home = await household(relay)
        (phone,), (frame,) = home.companions, home.devices
        hub = Person(device().role, "hub", account=home.account)
        grown = grow(home.ring, phone.person, phone.person, frame.person, hub, now=relay.clock())
        newcomer, ring = founding(relay)
        users.answers, users.hangs = False, hangs
        if hangs:
            monkeypatch.setattr("companion_push.relay.app._AUTHORITY_SECONDS", 0.01)
        replies = [
            await phone.post("/v1/ring", {"ring": base64url(grown.document)}),
            await phone.post("/v1/ring/links", {"rings": [base64url(grown.document)]}),
            await newcomer.post("/v1/accounts/mine", {"token": "hers"}),
            await founds(newcomer, ring, "hers"),
        ]
        assert [(reply.status, reply.problem) for reply in replies] == [(503, "authority-unavailable")] * 4
        assert {reply.headers["Retry-After"] for reply in replies} == {"5" if hangs else "7"}
        assert (await phone.get("/v1/ring")).body["version"] == 2
        await home.append(phone.person)
        assert (await phone.get("/v1/ring")).body["version"] == 3, "whoever is taken out is out meanwhile"
