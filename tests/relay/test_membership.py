"""Accounts, rings, invitations and introductions over real HTTP."""

import asyncio
import hashlib
import secrets
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from companion_push.errors import StoreUnavailable
from companion_push.relay import accounts, operations
from companion_push.relay.accounts import MAX_INVITATIONS, sweep_accounts
from companion_push.relay.app import RELAY, close_account
from companion_push.relay.limits import Rate
from companion_push.relay.operations import MAX_RINGS, Answer
from companion_push.relay.stores import open_store
from companion_push.relay.transaction import Transaction
from headless_passkey.errors import UsageError
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.fields import new_account
from headless_passkey.trust.ring import Ring
from program_parts.base64url import base64url
from tests.relay.household import Caller, Household, Relay, Reply, fresh_id
from tests.relay.states import recipients_of_envelopes
from tests.relay.stores import of_files, place_of
from tests.trust.people import ACCOUNT, Person, companion, device, encoded, forge, found, grow, twin

SOON = 20.0  # seconds: less than the 25 of a hold


def founding(founder: Caller, account: str, name: str = "alice") -> str:
    ring = found(founder.person, account=account, account_name=name, now=founder.clock())
    return base64url(ring.document)


def ring_body(ring: Ring) -> dict[str, str]:
    return {"ring": base64url(ring.document)}


# Founding


async def test_the_first_companion_founds_the_account_with_its_code(relay: Relay) -> None:
    account, code = await relay.account_code("alice")
    anna = relay.caller(companion())
    body = {"code": base64url(code), "ring": founding(anna, account)}
    reply = await anna.post("/v1/accounts", body)
    assert (reply.status, reply.body) == (201, {"account": account})
    again = await anna.post("/v1/accounts", body)
    assert (again.status, again.body) == (200, {"account": account})
    ring = (await anna.get("/v1/ring")).body
    assert ring["version"] == 1
    assert ring["rings"] == [body["ring"]]


async def test_a_code_founds_once(relay: Relay) -> None:
    account, code = await relay.account_code("alice")
    anna, thief = relay.caller(companion()), relay.caller(companion())
    assert (
        await thief.post("/v1/accounts", {"code": base64url(code), "ring": founding(thief, account)})
    ).status == 201
    reply = await anna.post("/v1/accounts", {"code": base64url(code), "ring": founding(anna, account)})
    assert (reply.status, reply.problem) == (409, "invitation-used")


@pytest.mark.threat("T13")
async def test_a_wrong_code_and_an_absent_account_look_alike(relay: Relay) -> None:
    account, _ = await relay.account_code("alice")
    await relay.household("bob")
    anna = relay.caller(companion())
    wrong = base64url(secrets.token_bytes(32))
    there = await anna.post("/v1/accounts", {"code": wrong, "ring": founding(anna, account)})
    not_there = await anna.post("/v1/accounts", {"code": wrong, "ring": founding(anna, new_account())})
    assert (there.status, there.problem) == (404, "not-found")
    assert there.body == not_there.body


async def test_a_code_expires(relay: Relay) -> None:
    account, code = await relay.account_code("alice")
    relay.clock.ahead += 3601
    anna = relay.caller(companion())
    reply = await anna.post("/v1/accounts", {"code": base64url(code), "ring": founding(anna, account)})
    assert (reply.status, reply.problem) == (410, "expired")


async def test_a_new_code_makes_the_one_before_void(relay: Relay) -> None:
    account, old = await relay.account_code("alice")
    again, new = await relay.account_code("alice")
    assert again == account
    anna = relay.caller(companion())
    ring = founding(anna, account)
    assert (await anna.post("/v1/accounts", {"code": base64url(old), "ring": ring})).problem == "not-found"
    assert (await anna.post("/v1/accounts", {"code": base64url(new), "ring": ring})).status == 201


@pytest.mark.threat("T2")
async def test_an_account_is_founded_only_by_the_ring_that_its_caller_signed(
    relay: Relay, home: Household
) -> None:
    account, code = await relay.account_code("carol")
    anna, other = relay.caller(companion()), relay.caller(companion())
    tampered = bytearray(from_base64url(founding(anna, account)))
    tampered[-1] ^= 1
    second = grow(
        Ring.parse_founding(from_base64url(founding(anna, account))), anna.person, anna.person, other.person
    )
    member_elsewhere = home.companions[1]
    for caller, ring, problem in [
        (other, founding(anna, account, "carol"), "invalid-request"),
        (anna, founding(anna, account, "Carol"), "invalid-request"),
        (anna, base64url(bytes(tampered)), "bad-ring"),
        (anna, base64url(second.document), "bad-ring"),
        (anna, base64url(b"no ring"), "invalid-request"),
        (member_elsewhere, founding(member_elsewhere, account, "carol"), "invalid-request"),
    ]:
        reply = await caller.post("/v1/accounts", {"code": base64url(code), "ring": ring})
        assert (reply.status, reply.problem) == (400, problem)


# Rings


async def test_every_member_reads_the_rings_it_does_not_have(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    await home.append(anna.person, bert.person, frame.person, device("hub"))
    for caller in (anna, bert, frame):
        body = (await caller.get("/v1/ring")).body
        first, *rest = (from_base64url(ring) for ring in body["rings"])
        chain = RingChain.start(Ring.parse_founding(first)).extend(rest, now=caller.clock())
        assert chain.head.version == body["version"] == 3
        assert base64url(chain.head.hash) == body["hash"]
        assert (await caller.get("/v1/ring?after=2")).body["rings"] == body["rings"][2:]
        assert (await caller.get("/v1/ring?after=3")).body["rings"] == []
        assert (await caller.get("/v1/ring?after=99")).body["version"] == 3


@pytest.mark.threat("T2")
async def test_of_two_next_rings_one_is_appended_and_the_other_told_the_head(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    one = grow(home.ring, anna.person, anna.person, bert.person, frame.person, device("one"))
    two = grow(home.ring, bert.person, anna.person, bert.person, frame.person, device("two"))
    replies = await asyncio.gather(
        anna.post("/v1/ring", ring_body(one)), bert.post("/v1/ring", ring_body(two))
    )
    assert sorted(reply.status for reply in replies) == [201, 409]
    winner = one if replies[0].status == 201 else two
    loser = next(reply for reply in replies if reply.status == 409)
    assert loser.problem == "ring-conflict"
    assert (loser.body["version"], loser.body["hash"]) == (winner.version, base64url(winner.hash))
    rings = (await frame.get("/v1/ring")).body["rings"]
    assert rings[-1] == base64url(winner.document)
    assert len(rings) == 3


async def test_the_head_handed_in_again_is_no_conflict(home: Household) -> None:
    anna, bert = home.companions
    ring = await home.append(anna.person, bert.person)
    reply = await anna.post("/v1/ring", ring_body(ring))
    assert (reply.status, reply.body) == (201, {"version": 3, "hash": base64url(ring.hash)})
    assert len((await anna.get("/v1/ring")).body["rings"]) == 3


@pytest.mark.threat("T5")
async def test_the_head_handed_in_again_wakes_nobody(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    answers: list[Answer] = []
    relay.app[RELAY].follow(answers.append)
    await home.append(anna.person, bert.person)
    for path, body in (
        ("/v1/ring", ring_body(home.ring)),
        ("/v1/ring/links", {"rings": [base64url(home.ring.document)]}),
    ):
        assert (await anna.post(path, body)).status == 201
    woken = [operations.inbox_topic(caller.name) for caller in (anna, bert, *home.devices)]
    assert [answer.topics for answer in answers if "version" in answer.body] == [set(woken), set(), set()]


@pytest.mark.threat("T2")
async def test_what_does_not_extend_the_head_is_refused(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    stranger = companion("stranger")
    people = (anna.person, bert.person, frame.person)
    skipped = forge(home.ring, anna.person, *people, version=home.ring.version + 2)
    conflicts = [
        skipped,
        forge(home.ring, anna.person, *people, previous=bytes(32)),
        forge(home.ring, anna.person, *people, account=new_account()),
        forge(home.ring, stranger, *people, stranger),
    ]
    for document in conflicts:
        reply = await anna.post("/v1/ring", {"ring": base64url(document)})
        assert (reply.status, reply.problem, reply.body["version"]) == (409, "ring-conflict", 2)
    signed_by_another = forge(home.ring, stranger, *people, stranger, signer=anna.name)
    for document in [signed_by_another, b"no ring", home.ring.document + b"\0"]:
        reply = await anna.post("/v1/ring", {"ring": base64url(document)})
        assert reply.status == 400
        assert reply.problem == ("bad-ring" if document is signed_by_another else "invalid-request")
    assert (await anna.get("/v1/ring")).body["version"] == 2


@pytest.mark.threat("T16")
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda home, people: forge(home.ring, people[2], *people), "not-a-companion"),
        (
            lambda home, people: forge(home.ring, people[0], *people, issued=home.ring.issued - 1),
            "backdated-ring",
        ),
        (
            lambda home, people: forge(home.ring, people[0], *people, issued=home.ring.issued + 75),
            "clock-skew",
        ),
        (
            lambda home, people: forge(home.ring, people[0], *people, issued=home.ring.issued + 500),
            "clock-skew",
        ),
        (lambda home, people: forge(home.ring, people[0], people[2]), "last-companion"),
        (
            lambda home, people: forge(home.ring, people[0], *people, *map(companion, "abcdefghijklmno")),
            "ring-full",
        ),
    ],
    ids=["of-a-device", "backdated", "ahead", "far-ahead", "last-companion", "seventeen-companions"],
)
async def test_a_ring_that_breaks_a_rule_is_told_which(
    home: Household, wrong: Callable[[Household, list[Person]], bytes], reason: str
) -> None:
    people = [caller.person for caller in (*home.companions, *home.devices)]
    document = wrong(home, people)
    signer = home.devices[0] if reason == "not-a-companion" else home.companions[0]
    reply = await signer.post("/v1/ring", {"ring": base64url(document)})
    assert (reply.status, reply.problem, reply.body["reason"]) == (400, "bad-ring", reason)


@pytest.mark.threat("T16")
async def test_a_ring_is_handed_in_by_its_signer(home: Household) -> None:
    anna, bert = home.companions
    ring = grow(home.ring, anna.person, anna.person, bert.person)
    reply = await bert.post("/v1/ring", ring_body(ring))
    assert (reply.status, reply.problem) == (400, "invalid-request")


@pytest.mark.threat("T16")
async def test_a_device_takes_itself_out_and_nobody_else(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    ring = grow(home.ring, frame.person, anna.person, bert.person)
    assert (await frame.post("/v1/ring", ring_body(ring))).status == 201
    assert (await frame.get("/v1/inbox")).status == 404
    assert [member.name for member in ring.members] == [anna.name, bert.name]


@pytest.mark.threat("T13")
@pytest.mark.threat("T16")
async def test_whoever_lists_a_key_without_its_holder_learns_nothing_and_keeps_nobody_out(
    relay: Relay, home: Household
) -> None:
    neighbours = await relay.household("bob")
    first = neighbours.companions[0]
    anna, bert = home.companions
    (frame,) = home.devices
    told = []
    for victim in (frame.person, device("of no account")):
        stolen = encoded(neighbours.ring, victim, by=first.person, possession=bytes(64))
        present = [
            encoded(neighbours.ring, caller.person, by=first.person) for caller in neighbours.companions
        ]
        document = forge(neighbours.ring, first.person, members=[*present, stolen])
        reply = await first.post("/v1/ring", {"ring": base64url(document)})
        told.append((reply.status, reply.body))
    assert told[0] == told[1]
    assert (told[0][0], told[0][1]["reason"]) == (400, "bad-possession")
    # its holder can go there, once it has left
    await home.append(anna.person, bert.person)
    people = [caller.person for caller in neighbours.companions]
    ring = grow(neighbours.ring, first.person, *people, frame.person)
    assert (await first.post("/v1/ring", ring_body(ring))).status == 201


@pytest.mark.threat("T16")
async def test_a_former_member_reads_the_ring_that_took_it_out_for_ninety_days(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    proof = await home.append(anna.person, bert.person)
    await home.append(anna.person)
    for days in (0, 89):
        relay.clock.ahead = days * 86_400
        body = (await frame.get("/v1/ring?after=2")).body
        assert (body["version"], body["hash"]) == (3, base64url(proof.hash))
        assert body["rings"] == [base64url(proof.document)]
        assert (await bert.get("/v1/ring")).body["version"] == 4
        assert (await frame.submit(anna)).problem == "not-found"
    relay.clock.ahead = 91 * 86_400
    async with open_store(place_of(relay.store)) as database:
        await database.transact(lambda db: sweep_accounts(db, relay.clock()))
    assert (await frame.get("/v1/ring")).problem == "not-found"


@pytest.mark.threat("T12")
async def test_of_many_former_members_those_who_were_removed_last_are_remembered(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "MAX_FORMER", 3)
    anna = home.companions[0]
    lamps = [relay.caller(device(f"lamp {number}")) for number in range(5)]
    for lamp in lamps:
        await home.append(anna.person, lamp.person)
    await home.append(anna.person)
    assert [(await lamp.get("/v1/ring")).status for lamp in lamps] == [404, 404, 200, 200, 200]


@pytest.mark.threat("T16")
async def test_the_claim_of_a_removed_companion_ends_at_once_and_its_envelopes_are_erased(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    ((his,), (hers,)) = (await bert.inbox(), await anna.inbox())
    assert (await bert.claims(frame, his)).status == 200
    assert (await anna.claims(frame, hers)).problem == "already-claimed"
    version = (await frame.status(name))["version"]
    waiting = asyncio.ensure_future(frame.get(f"/v1/requests/{name}?version={version}&wait=20"))
    await home.append(anna.person, frame.person)
    status = (await waiting).body
    assert (status["state"], status["failures"]) == ("delivered", [{"by": bert.name, "reason": "removed"}])
    assert (await bert.get("/v1/inbox")).problem == "not-found"
    assert (await anna.claims(frame, hers)).status == 200
    assert recipients_of_envelopes(relay.store) == [anna.name]


@pytest.mark.threat("T16")
async def test_an_account_that_is_set_up_anew_is_closed_to_its_members_for_good(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    cursor = (await bert.get("/v1/inbox")).body["cursor"]
    held = [
        asyncio.ensure_future(bert.get(f"/v1/inbox?cursor={cursor}&wait=20")),
        asyncio.ensure_future(frame.get(f"/v1/requests/{name}?version=1&wait=20")),
    ]
    await asyncio.sleep(0)
    code = await close_account(relay.app, "alice", again=True)
    assert code is not None
    assert code.account != home.account
    for caller, path in ((anna, "/v1/inbox"), (frame, "/v1/ring"), (frame, f"/v1/requests/{name}")):
        reply = await caller.get(path)
        assert (reply.status, reply.problem) == (410, "account-closed")
    assert [(await reply).problem for reply in held] == ["account-closed", "account-closed"]
    grown = grow(home.ring, anna.person, anna.person)
    assert (await anna.post("/v1/ring", ring_body(grown))).problem == "account-closed"
    again = relay.caller(companion())
    body = {"code": base64url(code.code), "ring": founding(again, home.account)}
    assert (await again.post("/v1/accounts", body)).problem == "account-closed"
    body = {"code": base64url(code.code), "ring": founding(anna, code.account)}
    assert (await anna.post("/v1/accounts", body)).status == 201, (
        "the same key, with a new proof of possession"
    )
    assert (await anna.get("/v1/ring")).body["version"] == 1
    assert recipients_of_envelopes(relay.store) == []


@of_files
async def test_an_account_that_cannot_be_set_up_anew_stays_open(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(accounts, "add_account", full)
    with pytest.raises(StoreUnavailable):
        await close_account(relay.app, "alice", again=True)
    assert [(await caller.get("/v1/ring")).status for caller in (*home.companions, *home.devices)] == [
        200
    ] * 3


@pytest.mark.threat("T16")
async def test_a_deleted_account_has_no_code_and_its_name_is_free(relay: Relay, home: Household) -> None:
    assert await close_account(relay.app, "alice") is None
    assert (await home.devices[0].get("/v1/ring")).problem == "account-closed"
    with pytest.raises(UsageError):
        await close_account(relay.app, "alice")
    account, _ = await relay.account_code("alice")
    assert account != home.account


@pytest.mark.threat("T16")
async def test_a_member_hands_in_the_rings_that_a_relay_has_lost(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    lost = [
        await home.append(anna.person, bert.person, frame.person, device("hub")),
        await home.append(anna.person, frame.person),
    ]
    async with open_store(place_of(relay.store)) as database:  # as a backup of yesterday has it
        await database.transact(
            lambda db: _forget(db, home.account, [anna.person, bert.person, frame.person])
        )
    assert (await frame.get("/v1/ring")).body["version"] == 2
    stranger = relay.caller(companion("stranger"))
    links = {"rings": [base64url(ring.document) for ring in lost]}
    assert (await stranger.post("/v1/ring/links", links)).problem == "not-found"
    forged = forge(home.ring, bert.person, anna.person, bert.person, signer=anna.name)
    wrong = {"rings": [links["rings"][0], base64url(forged)]}
    assert (await frame.post("/v1/ring/links", wrong)).problem == "ring-conflict"
    assert (await frame.get("/v1/ring")).body["version"] == 2, "all or nothing"
    for _ in range(2):
        reply = await frame.post("/v1/ring/links", links)
        assert (reply.status, reply.body["version"]) == (201, 4)
    assert (await bert.get("/v1/inbox")).problem == "not-found"
    body = (await bert.get("/v1/ring?after=3")).body
    assert (body["version"], body["rings"]) == (4, [links["rings"][1]])


@pytest.mark.threat("T13")
@pytest.mark.parametrize("known", [False, True], ids=["a stranger", "who was taken out"])
async def test_whoever_is_no_member_learns_nothing_by_handing_rings_in(
    home: Household, *, known: bool
) -> None:
    anna, bert = home.companions
    outsider = (
        bert if known else Caller(companion("stranger"), bert.session, bert.url, bert.clock, bert.newest)
    )
    await home.append(anna.person)
    made_up = forge(home.ring, outsider.person, anna.person, outsider.person)
    for document in (made_up, forge(home.ring, outsider.person, outsider.person, account=new_account())):
        reply = await outsider.post("/v1/ring/links", {"rings": [base64url(document)]})
        assert (reply.status, reply.problem) == (404, "not-found")
        assert not {"version", "hash", "reason"} & reply.body.keys()


@pytest.mark.threat("T17")
async def test_nobody_hands_in_so_many_rings_that_others_are_led_past_a_gap(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert operations._LINK_RATE.count < accounts.KEPT_RINGS
    monkeypatch.setattr(operations, "_LINK_RATE", Rate(count=5, seconds=3600))
    anna, bert = home.companions
    rings = [home.ring]
    for _ in range(6):
        rings.append(grow(rings[-1], anna.person, anna.person, bert.person))
    links = [base64url(ring.document) for ring in rings[1:]]
    for caller in (anna, bert):
        assert (await caller.post("/v1/ring/links", {"rings": links})).problem == "rate-limited"
    assert (await anna.get("/v1/ring")).body["version"] == 2, "all or nothing"
    assert (await anna.post("/v1/ring/links", {"rings": links[:5]})).body["version"] == 7
    for _ in range(10):  # what the relay holds is free
        assert (await bert.post("/v1/ring/links", {"rings": links[:5]})).status == 201
    assert (await bert.post("/v1/ring/links", {"rings": links})).problem == "rate-limited"


def _forget(db: Transaction, account: str, people: list[Person]) -> None:
    """Let the store of a relay be what it was when `people` were the members by ring 2."""
    db.execute("DELETE FROM rings WHERE account = ? AND version > 2", (account,))
    db.execute("DELETE FROM members WHERE account = ?", (account,))
    db.execute("DELETE FROM former WHERE account = ?", (account,))
    rows = [(person.name, account, person.role) for person in people]
    db.executemany("INSERT INTO members VALUES (?, ?, ?)", rows)


async def test_a_key_belongs_to_one_account(relay: Relay, home: Household) -> None:
    neighbours = await relay.household("bob")
    first = neighbours.companions[0]
    ring = grow(neighbours.ring, first.person, first.person, home.devices[0].person)
    reply = await first.post("/v1/ring", ring_body(ring))
    assert (reply.status, reply.problem) == (400, "invalid-request")


@pytest.mark.threat("T17")
async def test_neither_the_head_again_nor_a_spent_rate_of_another_keeps_a_removal_waiting(
    home: Household,
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    for _ in range(200):  # the same hash again is free
        assert (await anna.post("/v1/ring", ring_body(home.ring))).status == 201
    answers = []
    for _ in range(31):
        ring = grow(home.ring, bert.person, anna.person, bert.person, frame.person)
        answers.append(await bert.post("/v1/ring", ring_body(ring)))
        home.ring = ring if answers[-1].status == 201 else home.ring
    assert [reply.status for reply in answers] == [201] * 30 + [429]
    assert answers[-1].problem == "rate-limited"
    ring = grow(home.ring, bert.person, anna.person, bert.person)  # who has spent its rate takes out, too
    assert (await bert.post("/v1/ring", ring_body(ring))).status == 201
    ring = grow(ring, anna.person, anna.person)
    assert (await anna.post("/v1/ring", ring_body(ring))).status == 201


async def test_many_rings_come_in_several_answers(home: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_RING_RATES", ())
    anna = home.companions[0]
    for _ in range(MAX_RINGS):
        await home.append(anna.person)
    body = (await anna.get("/v1/ring")).body
    assert (body["version"], len(body["rings"])) == (MAX_RINGS + 2, MAX_RINGS)
    assert len((await anna.get(f"/v1/ring?after={MAX_RINGS}")).body["rings"]) == 2


@pytest.mark.threat("T17")
async def test_large_rings_come_in_answers_that_every_member_takes(home: Household) -> None:
    anna = home.companions[0]
    long = tuple(".".join([f"{number}", *3 * ["a" * 63], "a" * 50]) for number in range(8))
    people = [anna.person, *(device(f"frame {number}", rp_ids=long) for number in range(20))]
    for _ in range(7):
        await home.append(*people)
    assert len(home.ring.document) > 40_000
    after, sizes = 2, []
    while after < home.ring.version:
        documents = (await anna.get(f"/v1/ring?after={after}")).body["rings"]
        sizes.append(sum(map(len, documents)))
        after += len(documents)
    assert after == home.ring.version
    assert max(sizes) <= 256 * 1024
    assert len(sizes) == 2


@pytest.mark.threat("T16")
async def test_the_head_comes_again_with_another_signature_and_a_new_ring_has_the_lower_s(
    home: Household,
) -> None:
    anna, *_ = home.companions
    ring = home.ring
    people = [caller.person for caller in (*home.companions, *home.devices)]
    again = forge(
        ring, anna.person, *people, version=ring.version, previous=ring.previous, issued=ring.issued
    )
    assert again != ring.document
    reply = await anna.post("/v1/ring", {"ring": base64url(again)})
    assert (reply.status, reply.body["hash"]) == (201, base64url(ring.hash))
    new = grow(ring, anna.person, *people)
    reply = await anna.post("/v1/ring", {"ring": base64url(twin(new.document))})
    assert (reply.status, reply.body["reason"]) == (400, "bad-signature")
    assert (await anna.post("/v1/ring", ring_body(new))).status == 201


# Invitations


class Inviting:
    """An invitation as the relay sees it."""

    def __init__(self, household: Household, inviter: Caller | None = None) -> None:
        self.household = household
        self.inviter = inviter or household.companions[0]
        self.ticket = secrets.token_bytes(32)
        self.id = base64url(hashlib.sha256(self.ticket).digest())
        self.expires_at = int(self.inviter.clock()) + 600

    async def announce(self, **changes: Any) -> Reply:
        body = {"kind": "device", "expires_at": self.expires_at} | changes
        return await self.inviter.put(f"/v1/invitations/{self.id}", body)

    def introduction(self, **changes: Any) -> dict[str, Any]:
        return {
            "account": self.household.account,
            "ticket": base64url(self.ticket),
            "body": base64url(b"body"),
            "signature": base64url(bytes(64)),
            "mac": base64url(bytes(32)),
        } | changes

    async def introduce(self, newcomer: Caller, **changes: Any) -> Reply:
        return await newcomer.post("/v1/introductions", self.introduction(**changes))

    async def seen(self, state: str | None = None) -> Reply:
        """What the inviter sees, at once or when the invitation has left `state`."""
        return await self.inviter.get(f"/v1/invitations/{self.id}{_held(state)}")

    async def heard(self, newcomer: Caller, state: str | None = None) -> Reply:
        """What the newcomer hears, as with `seen`."""
        return await newcomer.get(f"/v1/introductions/{self.id}{_held(state)}")

    async def send_nonce(self, nonce: str) -> Reply:
        return await self.inviter.post(f"/v1/invitations/{self.id}/nonce", {"nonce": nonce})

    async def reveal(self, newcomer: Caller, nonce: str) -> Reply:
        return await newcomer.post(f"/v1/introductions/{self.id}/nonce", {"nonce": nonce})

    async def revealed_by(self, newcomer: Caller) -> None:
        """The way to the state in which the inviter answers."""
        replies = [
            await self.announce(),
            await self.introduce(newcomer),
            await self.send_nonce(OURS),
            await self.reveal(newcomer, THEIRS),
        ]
        assert [reply.status for reply in replies] == [201, 201, 200, 200], replies

    async def withdraw(self) -> Reply:
        return await self.inviter.call("DELETE", f"/v1/invitations/{self.id}")

    async def answer(self, body: dict[str, Any]) -> Reply:
        return await self.inviter.post(f"/v1/invitations/{self.id}/answer", body)


@pytest.fixture
def inviting(home: Household) -> Inviting:
    return Inviting(home)


@pytest.fixture
def newcomer(relay: Relay) -> Caller:
    return relay.caller(device("hub"))


MAC = base64url(b"m" * 32)
OURS, THEIRS = base64url(b"i" * 32), base64url(b"n" * 32)  # nonces of inviter and newcomer


def _held(state: str | None) -> str:
    return "" if state is None else f"?state={state}&wait=25"


async def _until_held(relay: Relay, *callers: Caller) -> None:
    """Wait until the relay holds a call of each."""
    while not all(relay.is_held(caller.name) for caller in callers):  # noqa: ASYNC110  nothing tells of it
        await asyncio.sleep(0.01)


async def test_a_newcomer_is_introduced_and_admitted(
    home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    anna, bert = home.companions
    assert (await inviting.announce()).status == 201
    assert (await inviting.announce()).status == 200
    assert (await inviting.seen()).body == {"state": "open", "introduction": None, "nonce": None}
    introduced = await inviting.introduce(newcomer)
    assert (introduced.status, introduced.body) == (201, {"id": inviting.id})
    assert (await inviting.introduce(newcomer)).status == 200
    nothing = {"nonce": None, "ring": None, "mac": None}
    assert (await inviting.heard(newcomer)).body == {"state": "introduced"} | nothing
    given = inviting.introduction()
    came = {"introduction": {key: given[key] for key in ("body", "signature", "mac")}, "nonce": None}
    assert (await inviting.seen()).body == {"state": "introduced"} | came

    for _ in range(2):
        assert (await inviting.send_nonce(OURS)).status == 200
    assert (await inviting.heard(newcomer)).body == {"state": "answering"} | nothing | {"nonce": OURS}
    assert (await inviting.seen()).body == {"state": "answering"} | came
    for _ in range(2):
        assert (await inviting.reveal(newcomer, THEIRS)).status == 200
    assert (await inviting.seen()).body == {"state": "revealed"} | came | {"nonce": THEIRS}
    assert (await inviting.heard(newcomer)).body == {"state": "revealed"} | nothing | {"nonce": OURS}

    ring = await home.append(anna.person, bert.person, newcomer.person)
    said = {"ring": base64url(ring.document), "mac": MAC}
    assert (await inviting.answer(said)).status == 200
    assert (await inviting.answer(said)).status == 200
    admitted = await inviting.heard(newcomer)
    assert admitted.body == {"state": "answered", "nonce": OURS} | said
    assert (await inviting.seen()).body["state"] == "answered"
    # the ring grows, the answer stays
    await home.append(anna.person, newcomer.person)
    assert (await inviting.heard(newcomer)).body == admitted.body
    assert (await inviting.answer(said)).status == 200
    assert (await newcomer.get("/v1/ring?after=2")).status == 200


async def test_a_newcomer_whose_ring_is_no_longer_kept_is_too_late(
    home: Household, inviting: Inviting, newcomer: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, bert = home.companions
    monkeypatch.setattr(accounts, "KEPT_RINGS", 1)
    await inviting.announce()
    await inviting.introduce(newcomer)
    await inviting.send_nonce(OURS)
    await inviting.reveal(newcomer, THEIRS)
    ring = await home.append(anna.person, bert.person, newcomer.person)
    assert (await inviting.answer({"ring": base64url(ring.document), "mac": MAC})).status == 200
    await home.append(anna.person, newcomer.person)
    late = await inviting.heard(newcomer)
    assert (late.status, late.problem) == (410, "expired")


async def test_each_side_is_woken_by_each_step_of_the_other(
    home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    anna, bert = home.companions
    await inviting.announce()
    async with asyncio.timeout(SOON):
        seen, _ = await asyncio.gather(inviting.seen("open"), inviting.introduce(newcomer))
        assert seen.body["state"] == "introduced"
        heard, _ = await asyncio.gather(inviting.heard(newcomer, "introduced"), inviting.send_nonce(OURS))
        assert (heard.body["state"], heard.body["nonce"]) == ("answering", OURS)
        seen, _ = await asyncio.gather(inviting.seen("answering"), inviting.reveal(newcomer, THEIRS))
        assert (seen.body["state"], seen.body["nonce"]) == ("revealed", THEIRS)
        ring = await home.append(anna.person, bert.person, newcomer.person)
        heard, _ = await asyncio.gather(
            inviting.heard(newcomer, "revealed"),
            inviting.answer({"ring": base64url(ring.document), "mac": MAC}),
        )
        assert (heard.body["state"], heard.body["mac"]) == ("answered", MAC)
    elsewhere = await inviting.seen("open")
    assert elsewhere.body["state"] == "answered", "who waits for the end of another state is answered at once"


@pytest.mark.threat("T2")
async def test_each_nonce_comes_once_and_in_its_turn(inviting: Inviting, newcomer: Caller) -> None:
    await inviting.announce()
    early = await inviting.send_nonce(OURS)
    assert (early.status, early.problem, early.body["state"]) == (409, "state-conflict", "open")
    await inviting.introduce(newcomer)
    early = await inviting.reveal(newcomer, THEIRS)
    assert (early.status, early.problem, early.body["state"]) == (409, "state-conflict", "introduced")
    await inviting.send_nonce(OURS)
    other = await inviting.send_nonce(THEIRS)
    assert (other.problem, other.body["state"]) == ("state-conflict", "answering")
    early = await inviting.answer({"ring": base64url(inviting.household.ring.document), "mac": MAC})
    assert (early.problem, early.body["state"]) == ("state-conflict", "answering")
    await inviting.reveal(newcomer, THEIRS)
    for other in (await inviting.reveal(newcomer, OURS), await inviting.send_nonce(THEIRS)):
        assert (other.problem, other.body["state"]) == ("state-conflict", "revealed")
    assert (await inviting.heard(newcomer)).body["nonce"] == OURS
    assert (await inviting.seen()).body["nonce"] == THEIRS


@pytest.mark.threat("T12")
@pytest.mark.parametrize("nonce", ["", base64url(bytes(31)), base64url(bytes(33)), 7, None])
async def test_what_is_no_nonce_is_refused(inviting: Inviting, newcomer: Caller, nonce: Any) -> None:
    await inviting.announce()
    await inviting.introduce(newcomer)
    assert (await inviting.send_nonce(nonce)).problem == "invalid-request"
    assert (await inviting.reveal(newcomer, nonce)).problem == "invalid-request"


@pytest.mark.threat("T12")
async def test_what_is_no_state_is_refused(inviting: Inviting, newcomer: Caller) -> None:
    await inviting.announce()
    await inviting.introduce(newcomer)
    for reply in (await inviting.seen("waiting"), await inviting.heard(newcomer, "")):
        assert (reply.status, reply.problem) == (400, "invalid-request")


@pytest.mark.threat("T13")
async def test_a_nonce_is_sent_by_the_inviter_and_by_the_newcomer_alone(
    relay: Relay, home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    await inviting.announce()
    await inviting.introduce(newcomer)
    neighbours = await relay.household("bob")
    stranger = relay.caller(device("stranger"))
    for caller in (home.companions[1], *home.devices, *neighbours.companions, stranger, newcomer):
        reply = await caller.post(f"/v1/invitations/{inviting.id}/nonce", {"nonce": OURS})
        assert reply.problem == "not-found"
    for caller in (*home.companions, *home.devices, *neighbours.companions, stranger):
        reply = await caller.post(f"/v1/introductions/{inviting.id}/nonce", {"nonce": THEIRS})
        assert reply.problem == "not-found"
    assert (await inviting.seen()).body["state"] == "introduced"


async def test_a_withdrawn_invitation_lets_nobody_in_and_who_waits_hears_it_at_once(
    relay: Relay, inviting: Inviting, newcomer: Caller
) -> None:
    await inviting.announce()
    await inviting.introduce(newcomer)
    async with asyncio.timeout(SOON):
        waiting, withdrawn = await asyncio.gather(inviting.heard(newcomer, "introduced"), inviting.withdraw())
    assert (withdrawn.status, withdrawn.body) == (200, {})
    assert (waiting.status, waiting.problem) == (410, "withdrawn")
    assert (await inviting.withdraw()).status == 200
    for reply in (
        await inviting.announce(),
        await inviting.seen(),
        await inviting.introduce(newcomer),
        await inviting.introduce(relay.caller(device("another"))),
        await inviting.send_nonce(OURS),
        await inviting.reveal(newcomer, THEIRS),
        await inviting.answer({"ring": base64url(inviting.household.ring.document), "mac": MAC}),
        await inviting.heard(newcomer),
    ):
        assert (reply.status, reply.problem) == (410, "withdrawn")


async def test_a_waiting_inviter_hears_of_its_own_withdrawal(inviting: Inviting) -> None:
    await inviting.announce()
    async with asyncio.timeout(SOON):
        seen, _ = await asyncio.gather(inviting.seen("open"), inviting.withdraw())
    assert (seen.status, seen.problem) == (410, "withdrawn")


async def test_what_was_answered_is_not_withdrawn(
    home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    anna, bert = home.companions
    await inviting.revealed_by(newcomer)
    ring = await home.append(anna.person, bert.person, newcomer.person)
    assert (await inviting.answer({"ring": base64url(ring.document), "mac": MAC})).status == 200
    reply = await inviting.withdraw()
    assert (reply.status, reply.problem, reply.body["state"]) == (409, "state-conflict", "answered")
    assert (await inviting.heard(newcomer)).body["state"] == "answered"


async def test_a_newcomer_that_gives_up_withdraws_it_and_the_inviter_hears_it_at_once(
    inviting: Inviting, newcomer: Caller
) -> None:
    await inviting.announce()
    await inviting.introduce(newcomer)
    await inviting.send_nonce(OURS)
    async with asyncio.timeout(SOON):
        seen, withdrawn = await asyncio.gather(
            inviting.seen("answering"), newcomer.call("DELETE", f"/v1/invitations/{inviting.id}")
        )
    assert withdrawn.status == 200
    assert (seen.status, seen.problem) == (410, "withdrawn")


@pytest.mark.threat("T13")
async def test_only_its_inviter_and_its_newcomer_withdraw_an_invitation(
    relay: Relay, home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    await inviting.announce()
    await inviting.introduce(newcomer)
    neighbours = await relay.household("bob")
    absent = await inviting.inviter.call("DELETE", f"/v1/invitations/{base64url(bytes(32))}")
    stranger = relay.caller(device("stranger"))
    for caller in (home.companions[1], *home.devices, *neighbours.companions, stranger):
        reply = await caller.call("DELETE", f"/v1/invitations/{inviting.id}")
        assert (reply.status, reply.body) == (404, absent.body)
    assert (await inviting.seen()).body["state"] == "introduced"


async def test_a_withdrawn_invitation_makes_room_for_another(home: Household) -> None:
    many = [Inviting(home) for _ in range(17)]
    assert [(await each.announce()).status for each in many] == [201] * 16 + [429]
    assert (await many[0].withdraw()).status == 200
    assert (await many[16].announce()).status == 201


@pytest.mark.threat("T12")
async def test_whoever_withdraws_one_invitation_after_the_other_fills_no_table(home: Household) -> None:
    statuses = []
    for _ in range(61):
        one = Inviting(home)
        statuses.append((await one.announce()).status)
        statuses.append((await one.announce()).status)  # the same again is free
        if statuses[-1] == 200:
            assert (await one.withdraw()).status == 200
    assert statuses == [201, 200] * 60 + [429, 429]


@pytest.mark.threat("T16")
@pytest.mark.threat("T17")
async def test_the_open_invitations_of_a_removed_companion_keep_nobody_from_inviting(home: Household) -> None:
    anna, bert = home.companions
    for _ in range(MAX_INVITATIONS):
        assert (await Inviting(home, bert).announce()).status == 201
    assert (await Inviting(home).announce()).problem == "too-many-pending"
    await home.append(anna.person)
    assert (await Inviting(home).announce()).status == 201


@pytest.mark.threat("T16")
async def test_who_waits_for_an_invitation_of_a_removed_companion_hears_it_at_once(
    relay: Relay, home: Household, newcomer: Caller
) -> None:
    anna, bert = home.companions
    used, unused = Inviting(home, bert), Inviting(home, bert)
    await used.announce()
    await unused.announce()
    await used.introduce(newcomer)
    calls = (used.heard(newcomer, "introduced"), unused.seen("open"))
    waiting = [asyncio.ensure_future(call) for call in calls]
    await _until_held(relay, newcomer, bert)
    async with asyncio.timeout(SOON):
        await home.append(anna.person)
        heard, seen = await asyncio.gather(*waiting)
    assert (heard.status, heard.problem) == (410, "withdrawn")
    assert (seen.status, seen.problem) == (404, "not-found")
    late = await unused.introduce(relay.caller(device("late")))
    assert (late.status, late.problem) == (410, "withdrawn")


@pytest.mark.threat("T16")
async def test_what_a_companion_has_answered_or_another_announced_outlasts_its_removal(
    home: Household, newcomer: Caller
) -> None:
    anna, bert = home.companions
    answered, hers = Inviting(home, bert), Inviting(home, anna)
    await answered.revealed_by(newcomer)
    await hers.announce()
    ring = await home.append(anna.person, bert.person, newcomer.person)
    assert (await answered.answer({"ring": base64url(ring.document), "mac": MAC})).status == 200
    await home.append(anna.person, newcomer.person)
    assert (await answered.heard(newcomer)).body["state"] == "answered"
    assert (await hers.seen()).body["state"] == "open"


@pytest.mark.threat("T16")
async def test_a_newcomer_of_a_closed_account_hears_at_once_that_it_is_closed(
    relay: Relay, home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    await inviting.announce()
    await inviting.introduce(newcomer)
    waiting = asyncio.ensure_future(inviting.heard(newcomer, "introduced"))
    await _until_held(relay, newcomer)
    async with asyncio.timeout(SOON):
        await close_account(relay.app, "alice", again=True)
        replies = [await waiting]
    replies += [
        await inviting.heard(newcomer),
        await inviting.reveal(newcomer, THEIRS),
        await inviting.introduce(newcomer),
        await newcomer.call("DELETE", f"/v1/invitations/{inviting.id}"),
        await newcomer.get("/v1/ring"),
    ]
    assert [(reply.status, reply.problem) for reply in replies] == [(410, "account-closed")] * 6
    neighbours = await relay.household("bob")
    assert (await Inviting(neighbours).announce()).status == 201
    first = neighbours.companions[0]
    await neighbours.append(first.person, newcomer.person)
    assert (await newcomer.get("/v1/ring")).status == 200, "it may join elsewhere with the same key"


async def test_a_waiting_inviter_is_told_when_its_invitation_ends(
    home: Household, inviting: Inviting
) -> None:
    inviting.expires_at = int(inviting.inviter.clock()) + 2
    await inviting.announce()
    async with asyncio.timeout(SOON):
        reply = await inviting.seen("open")
    assert (reply.status, reply.problem) == (410, "expired")


@pytest.mark.threat("T1")
async def test_an_invitation_admits_one_newcomer(relay: Relay, inviting: Inviting, newcomer: Caller) -> None:
    await inviting.announce()
    thief = relay.caller(device("thief"))
    replies = await asyncio.gather(*(inviting.introduce(caller) for caller in (newcomer, thief)))
    assert sorted(reply.status for reply in replies) == [201, 409]
    winner, loser = (newcomer, thief) if replies[0].status == 201 else (thief, newcomer)
    assert (await inviting.introduce(loser)).problem == "invitation-used"
    assert (await inviting.introduce(winner, body=base64url(b"other"))).problem == "invitation-used"
    assert (await loser.get(f"/v1/introductions/{inviting.id}")).problem == "not-found"
    assert (await winner.get(f"/v1/introductions/{inviting.id}")).status == 200


@pytest.mark.threat("T13")
async def test_without_the_ticket_nobody_learns_of_an_invitation(
    relay: Relay, home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    await inviting.announce()
    neighbours = await relay.household("bob")
    wrong = await inviting.introduce(newcomer, ticket=base64url(bytes(32)))
    elsewhere = await inviting.introduce(newcomer, account=neighbours.account)
    nowhere = await inviting.introduce(newcomer, account=ACCOUNT)
    for reply in (wrong, elsewhere, nowhere):
        assert (reply.status, reply.body) == (404, wrong.body)
    for caller in (home.companions[1], *home.devices, *neighbours.companions, newcomer):
        assert (await caller.get(f"/v1/invitations/{inviting.id}")).problem == "not-found"
        reply = await caller.post(
            f"/v1/invitations/{inviting.id}/answer",
            {"ring": base64url(home.ring.document), "mac": MAC},
        )
        assert reply.problem == "not-found"
    assert (await newcomer.get(f"/v1/introductions/{inviting.id}")).problem == "not-found"
    # the same id in another account is another invitation
    other = Inviting(neighbours)
    other.ticket, other.id = inviting.ticket, inviting.id
    assert (await other.announce()).status == 201


@pytest.mark.threat("T5")
async def test_an_invitation_ends_for_newcomers_and_may_still_be_answered_for_ten_minutes(
    relay: Relay, home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    await inviting.announce()
    late = Inviting(home)
    await late.announce()
    await inviting.introduce(newcomer)
    relay.clock.ahead += 601
    reply = await late.introduce(newcomer)
    assert (reply.status, reply.problem) == (410, "expired")
    assert (await late.seen()).problem == "expired"
    assert (await inviting.introduce(newcomer)).status == 200
    assert (await inviting.send_nonce(OURS)).status == 200
    relay.clock.ahead += 600
    for reply in (
        await inviting.seen(),
        await inviting.introduce(newcomer),
        await inviting.reveal(newcomer, THEIRS),
        await inviting.heard(newcomer),
    ):
        assert (reply.status, reply.problem) == (410, "expired")


async def test_an_invitation_lasts_ten_minutes_at_most(inviting: Inviting) -> None:
    now = int(inviting.inviter.clock())
    for expires_at in (now - 1, now + 665, -1, "soon"):
        assert (await inviting.announce(expires_at=expires_at)).problem == "invalid-request"
    assert (await inviting.announce(kind="owner")).problem == "invalid-request"
    # an inviter's clock may be up to a minute ahead, as for proofs
    assert (await inviting.announce(expires_at=now + 655)).status == 201
    assert (await inviting.announce()).problem == "request-conflict"
    assert (await inviting.announce(kind="companion", expires_at=now + 655)).problem == "request-conflict"


async def test_an_account_has_so_many_open_invitations(home: Household) -> None:
    for _ in range(MAX_INVITATIONS):
        assert (await Inviting(home).announce()).status == 201
    refused = await Inviting(home).announce()
    assert (refused.status, refused.problem) == (429, "too-many-pending")
    assert refused.body["retry_after"] > 0


async def test_an_answer_needs_the_head_and_stands(
    home: Household, inviting: Inviting, newcomer: Caller
) -> None:
    anna, bert = home.companions
    await inviting.revealed_by(newcomer)
    old = home.ring
    ring = await home.append(anna.person, bert.person, newcomer.person)
    stale = await inviting.answer({"ring": base64url(old.document), "mac": MAC})
    assert (stale.status, stale.problem, stale.body["version"]) == (409, "ring-conflict", ring.version)
    assert (await inviting.answer({"ring": base64url(ring.document), "mac": MAC})).status == 200
    other = await inviting.answer({"ring": base64url(ring.document), "mac": base64url(bytes(32))})
    assert (other.problem, other.body["state"]) == ("state-conflict", "answered")


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"declined": True},
        {"ring": "AAAA"},
        {"mac": MAC},
        {"ring": "AAAA", "mac": MAC, "declined": True},
        {"ring": "AAAA", "mac": "AAAA"},
    ],
)
async def test_a_malformed_answer_is_refused(inviting: Inviting, body: dict[str, Any]) -> None:
    await inviting.announce()
    assert (await inviting.answer(body)).problem == "invalid-request"


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "change",
    [
        {"ticket": base64url(bytes(31))},
        {"ticket": base64url(bytes(33))},
        {"signature": base64url(bytes(63))},
        {"mac": base64url(bytes(16))},
        {"body": ""},
        {"body": base64url(bytes(4097))},
        {"account": ""},
        {"account": "x" * 21},
        {"account": "x" * 23},
        {"label": "hub"},
    ],
)
async def test_a_malformed_introduction_is_refused(
    inviting: Inviting, newcomer: Caller, change: dict[str, Any]
) -> None:
    await inviting.announce()
    assert (await inviting.introduce(newcomer, **change)).problem == "invalid-request"
