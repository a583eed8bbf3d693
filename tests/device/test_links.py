"""The file of a device's links, its commands, and which links a ceremony may use after changes of the account."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from companion_push.relay.app import close_account, suspend_account
from headless_passkey.account import enrolment
from headless_passkey.account.enrolment import Enrolment
from headless_passkey.account.links import MAX_LINKS, AccountLinks, KeptLink, LinkStore
from headless_passkey.ceremony import ForgottenLink
from headless_passkey.command.cli import main
from headless_passkey.delivery import Ask
from headless_passkey.errors import SetupError, SetupReason, TransportError, UsageError
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.keys import CURVE, uncompressed
from headless_passkey.hybrid.linking import LinkedPhone
from headless_passkey.net.proven_http import open_session
from headless_passkey.process.private_file import lock
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.freshness import DAY
from headless_passkey.trust.ring import Role
from tests.loop_clock import LoopClock
from tests.ports import reserved_port
from tests.relay.household import Household, Relay, running_relay
from tests.trust.people import Person

ASK = Ask(kind=RequestKind.GET_ASSERTION, origin="https://login.example", rp_id="login.example")


def a_phone(number: int = 1, name: str = "Ada's phone") -> LinkedPhone:
    """A link to the phone of this number."""
    return LinkedPhone(
        contact_id=bytes([number]) * 32,
        link_id=bytes([number]) * 8,
        link_secret=bytes([0xA5, number]) * 16,
        public_key=uncompressed(ec.derive_private_key(number, CURVE).public_key()),
        name=name,
        tunnel_domain=300,
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def kept(
    state: Path, phone: LinkedPhone, *, account: str | None = None, companion: str | None = None, now: int = 1
) -> KeptLink:
    made = await LinkStore(state).add(phone, account=account, companion=companion, now=now)
    assert made is not None
    return made


# The file


@pytest.mark.threat("T11")
async def test_a_link_is_kept_for_its_owner_alone_and_shown_without_its_secrets(state: Path) -> None:
    phone = a_phone()
    made = await kept(state, phone, account="home", companion="phone")
    store = LinkStore(state)
    assert store.read() == (made,)
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert made.phone == phone
    assert made.to_json() == {
        "link": "01" * 8,
        "label": "Ada's phone",
        "companion": "phone",
        "tunnel_domain": 300,
        "linked_at": 1,
        "used_at": None,
    }
    shown = repr(made) + repr(made.phone) + json.dumps(made.to_json())
    for secret in (phone.link_secret, phone.contact_id):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


async def test_a_phone_has_one_link_and_keeps_its_label(state: Path) -> None:
    store = LinkStore(state)
    await store.rename(await kept(state, a_phone()), "The blue one")
    newer = replace(a_phone(), link_id=bytes(8), contact_id=b"new", name="Renamed by itself")
    await kept(state, newer, now=2)
    (link,) = store.read()
    assert (link.phone.contact_id, link.label, link.linked_at) == (b"new", "The blue one", 2)


@pytest.mark.threat("T10")
async def test_a_phone_that_takes_anothers_name_is_told_apart(state: Path) -> None:
    first, liar = await kept(state, a_phone(1)), await kept(state, a_phone(2))
    nameless = await kept(state, a_phone(3, name=""))
    as_its_link = await kept(state, a_phone(4, name="01" * 8))
    longest = [await kept(state, a_phone(number, name=64 * "x")) for number in (5, 6)]
    assert (first.label, liar.label, nameless.label) == ("Ada's phone", "Ada's phone (2)", "a phone")
    assert as_its_link.label == f"{'01' * 8} (2)"
    assert [len(link.label) for link in longest] == [64, 64]
    assert longest[0].label != longest[1].label
    assert LinkStore(state).named("Ada's phone") == first
    assert LinkStore(state).named("02" * 8) == liar


@pytest.mark.threat("T10")
async def test_a_phone_cannot_take_the_place_of_another_one(state: Path) -> None:
    await kept(state, a_phone(1))
    thief = replace(a_phone(2), link_id=a_phone(1).link_id)
    assert await LinkStore(state).add(thief, account=None, companion=None, now=2) is None
    assert [link.phone for link in LinkStore(state).read()] == [a_phone(1)]


async def test_there_are_so_many_links_and_no_more(state: Path) -> None:
    for number in range(1, MAX_LINKS + 1):
        await kept(state, a_phone(number))
    store = LinkStore(state)
    assert await store.add(a_phone(99), account=None, companion=None, now=1) is None
    await kept(state, a_phone(3), now=2)  # one that is there is replaced
    assert len(store.read()) == MAX_LINKS


async def test_a_link_that_was_replaced_meanwhile_is_neither_forgotten_nor_noted(state: Path) -> None:
    store, old = LinkStore(state), a_phone()
    await kept(state, old)
    await kept(state, replace(old, link_id=bytes(8)))
    await store.forget(old)
    await store.used(old, now=9)
    (link,) = store.read()
    assert link.used_at is None
    await store.forget(link.phone)
    assert not store.path.exists()
    await store.forget(old)


async def test_several_processes_lose_no_link(state: Path, loop_clock: LoopClock) -> None:
    await asyncio.gather(*(kept(state, a_phone(number)) for number in range(1, 9)))
    assert len(LinkStore(state).read()) == 8
    with lock(LinkStore(state).path):
        adding = asyncio.create_task(kept(state, a_phone(9)))
        await asyncio.sleep(0)
        loop_clock.passes(60)
        with pytest.raises(TransportError):
            await adding
    assert len(LinkStore(state).read()) == 8


DAMAGE: dict[str, Any] = {
    "not JSON": b"{",
    "no object": b"[]",
    "no links": b'{"format": 1}',
    "no list": b'{"format": 1, "links": 5}',
    "text": b"\xff\xfe",
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_not_in_order_is_no_missing_one(state: Path, content: bytes) -> None:
    state.mkdir(mode=0o700)
    store = LinkStore(state)
    store.path.write_bytes(content)
    store.path.chmod(0o600)
    with pytest.raises(SetupError) as refused:
        store.read()
    assert refused.value.reason is SetupReason.STATE_DAMAGED
    assert "--link" in (refused.value.advice or "")


CHANGES: dict[str, dict[str, Any]] = {
    "no point on the curve": {"public_key": "A" * 87},
    "a short secret": {"link_secret": "AAAA"},
    "no contact ID": {"contact_id": ""},
    "a long contact ID": {"contact_id": "A" * 6000},
    "a large domain": {"tunnel_domain": 65536},
    "a label that hides": {"label": "a\u202eb"},
    "a time that is text": {"linked_at": "now"},
}


@pytest.mark.parametrize("change", [*CHANGES.values(), None], ids=[*CHANGES, "twice the same"])
async def test_each_member_is_checked(state: Path, change: dict[str, Any] | None) -> None:
    await kept(state, a_phone())
    store = LinkStore(state)
    values = json.loads(store.path.read_bytes())
    if change is None:
        values["links"] *= 2
    else:
        values["links"][0] |= change
    store.path.write_text(json.dumps(values))
    with pytest.raises(SetupError) as refused:
        store.read()
    assert refused.value.reason is SetupReason.STATE_DAMAGED


async def test_a_file_of_another_version_or_open_to_others_is_refused(state: Path) -> None:
    await kept(state, a_phone())
    store = LinkStore(state)
    store.path.chmod(0o640)
    with pytest.raises(SetupError) as exposed:
        store.read()
    assert exposed.value.reason is SetupReason.STATE_EXPOSED
    assert "phones forget --all" in (exposed.value.advice or "")
    store.path.write_text('{"format": 2}')
    store.path.chmod(0o600)
    with pytest.raises(SetupError) as newer:
        store.read()
    assert newer.value.reason is SetupReason.STATE_INCOMPATIBLE


# The commands


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_phones_are_listed_renamed_and_forgotten(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        asyncio.run(kept(state, a_phone(number)))
    at = ("--state", str(state))
    assert main(["phones", "list", *at]) == 0
    listed = lines(capsys.readouterr().out)
    assert [each["label"] for each in listed] == ["Ada's phone", "Ada's phone (2)"]
    assert set(listed[0]) == {
        "link", "label", "companion", "companion_label", "tunnel_domain", "linked_at", "used_at",
    }  # fmt: skip
    assert main(["phones", "rename", "Ada's phone (2)", "Bert's phone", *at]) == 0
    assert main(["phones", "rename", "Ada's phone", "Bert's phone", *at]) == 2
    assert main(["phones", "rename", "Ada's phone", "02" * 8, *at]) == 2
    assert main(["phones", "rename", "Eve's phone", "x", *at]) == 2
    assert main(["phones", "forget", *at]) == 2
    assert main(["phones", "forget", "Bert's phone", "--all", *at]) == 2
    assert main(["phones", "forget", "Bert's phone", *at]) == 0
    assert "until it forgets it too" in capsys.readouterr().err
    assert [link.label for link in LinkStore(state).read()] == ["Ada's phone"]
    assert main(["phones", "forget", "--all", "--json", *at]) == 0
    assert lines(capsys.readouterr().err)[-1]["forgotten"]["label"] == "Ada's phone"
    assert main(["phones", "forget", "--all", *at]) == 0
    assert main(["phones", "list", *at]) == 0
    assert capsys.readouterr().out == ""


# Which links may be tried


class Home:
    """A device in an account on a real relay, and its links."""

    def __init__(self, state: Path, household: Household) -> None:
        self.state, self.household = state, household
        self.forgotten: list[tuple[str, ForgottenLink]] = []

    @property
    def companion(self) -> str:
        return self.household.companions[0].name

    def join(self, *, relay_url: str, key: Any = None) -> None:
        joined = Enrolment(
            key=key or self.household.devices[0].person.key,
            relay_url=relay_url,
            chain=RingChain.start(self.household.ring),
        )
        enrolment._write(self.state, joined)

    async def usable(self, ask: Ask = ASK, **options: Any) -> list[str]:
        """The labels of the links that may be tried."""
        async with open_session(None) as http:
            links = AccountLinks(self.state, http=http, through_account=True, **options)
            usable = await links.usable(ask, lambda *told: self.forgotten.append(told))
            return [phone.name for phone in usable]


@asynccontextmanager
async def at_home(tmp_path: Path) -> AsyncIterator[tuple[Home, Relay]]:
    async with running_relay(tmp_path / "relay.db") as relay:
        home = Home(tmp_path / "state", await relay.household(companions=2))
        home.state.mkdir(mode=0o700)
        home.join(relay_url=relay.url)
        account = home.household.account
        await kept(home.state, a_phone(1, "first"), account=account, companion=home.companion, now=1)
        second = home.household.companions[1].name
        await kept(home.state, a_phone(2, "second"), account=account, companion=second, now=2)
        yield home, relay


async def test_the_link_that_was_used_last_is_tried_first(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, _):
        assert await home.usable() == ["second", "first"]
        await LinkStore(home.state).used(a_phone(1), now=3)
        assert await home.usable() == ["first", "second"]
    assert home.forgotten == []


@pytest.mark.threat("T5")
async def test_a_link_does_not_outlive_the_removal_of_its_companion(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, _):
        phone, tablet = home.household.companions
        await home.household.append(phone.person, home.household.devices[0].person)
        assert tablet.name not in {member.name for member in home.household.ring.members}
        assert await home.usable() == ["first"]
        assert home.forgotten == [("second", ForgottenLink.COMPANION_GONE)]
        assert [link.label for link in LinkStore(home.state).read()] == ["first"]


@pytest.mark.threat("T5")
async def test_a_link_does_not_outlive_the_removal_of_the_device(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, _):
        phone, tablet = home.household.companions
        await home.household.append(phone.person, tablet.person)
        assert await home.usable() == []
        assert {why for _, why in home.forgotten} == {ForgottenLink.ACCOUNT_LEFT}
    assert LinkStore(home.state).read() == ()


@pytest.mark.threat("T5")
@pytest.mark.parametrize("how", ["left", "another account"])
async def test_a_link_does_not_outlive_its_account(tmp_path: Path, how: str) -> None:
    async with at_home(tmp_path) as (home, relay):
        await kept(home.state, a_phone(3, "by hand"))  # no companion answers for it
        if how == "left":
            enrolment.leave(home.state)
        else:
            home.household = await relay.household("bob")
            home.join(relay_url=relay.url)
        assert await home.usable() == ["by hand"]
    assert {why for _, why in home.forgotten} == {ForgottenLink.ACCOUNT_LEFT}
    assert [link.label for link in LinkStore(home.state).read()] == ["by hand"]


@pytest.mark.threat("T5")
async def test_a_link_does_not_outlive_an_account_that_is_closed(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, relay):
        await close_account(relay.app, "alice")
        assert await home.usable() == []
    assert {why for _, why in home.forgotten} == {ForgottenLink.ACCOUNT_LEFT}
    assert LinkStore(home.state).read() == ()


async def test_a_relay_that_is_away_is_not_waited_for(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, _):
        home.join(relay_url=f"http://127.0.0.1:{reserved_port()}")
        assert await home.usable() == ["second", "first"]
    assert home.forgotten == []


@pytest.mark.threat("T8")
async def test_a_relay_that_says_nothing_is_not_waited_for_long(
    tmp_path: Path, loop_clock: LoopClock
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        loop_clock.passes(60)
        await reader.read()
        writer.close()

    async with at_home(tmp_path) as (home, _):
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server:
            home.join(relay_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            assert await home.usable() == ["second", "first"]


@pytest.mark.threat("T4")
async def test_no_link_is_tried_for_what_the_request_would_be_refused_for(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, relay):
        assert await home.usable(replace(ASK, digits="42")) == []
        pinned = replace(enrolment.load(home.state), rp_id="other.example")
        enrolment._write(home.state, pinned)
        assert await home.usable() == []
        home.join(relay_url=relay.url)
        assert await home.usable(require_witness=7, clock=relay.clock) == ["second", "first"]
        relay.clock.ahead = 30 * DAY
        assert await home.usable(clock=relay.clock) == ["second", "first"]
        assert await home.usable(require_witness=7, clock=relay.clock) == []
    assert home.forgotten == []
    assert len(LinkStore(home.state).read()) == 2


@pytest.mark.threat("T4")
async def test_no_link_is_tried_by_a_device_that_must_show_digits(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, relay):
        phones = [each.person for each in home.household.companions]
        demanding = Person(Role.DEVICE, "demanding", needs_digits=True, account=home.household.account)
        await home.household.append(*phones, demanding)
        home.join(relay_url=relay.url, key=demanding.key)
        assert await home.usable() == []
    assert home.forgotten == []


async def test_no_link_is_tried_while_the_account_is_suspended(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, relay):
        await suspend_account(relay.app, "alice")
        assert await home.usable() == []
    assert home.forgotten == []
    assert len(LinkStore(home.state).read()) == 2


async def test_a_damaged_file_is_told_before_anybody_is_asked(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (home, _):
        LinkStore(home.state).path.write_text("{")
        with pytest.raises(SetupError):
            await home.usable()


@pytest.mark.threat("T11")
async def test_a_new_link_is_the_companions_and_logs_hold_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with at_home(tmp_path) as (home, _):
        async with open_session(None) as http:
            links = AccountLinks(home.state, http=http, through_account=True, clock=lambda: 7.5)
            assert await links.keep(a_phone(5, "new"), home.companion) == "new"
            await links.used(a_phone(5))
            by_hand = AccountLinks(home.state, http=http, through_account=False)
            assert await by_hand.keep(a_phone(6, "by hand"), "stdout") == "by hand"
            await by_hand.forget(a_phone(2))
        first, new, paper = LinkStore(home.state).read()
    assert first.label == "first"
    assert (new.account, new.companion, new.used_at) == (home.household.account, home.companion, 7)
    assert (paper.account, paper.companion) == (None, None)
    for secret in (a_phone(5).link_secret, a_phone(5).contact_id):
        assert secret.hex() not in caplog.text


def test_no_such_phone_is_said(state: Path) -> None:
    with pytest.raises(UsageError):
        LinkStore(state).named("nobody")
