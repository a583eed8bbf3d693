"""Requests that fail cost their address, and nobody else."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from companion_push.relay import app as relay_app
from companion_push.relay import strangers as module
from companion_push.relay.messages import MAX_BODY
from companion_push.relay.problems import Problem, Slug
from companion_push.relay.proofs import check_proof
from companion_push.relay.strangers import TRIES, Budget, Strangers
from program_parts.base64url import base64url
from tests.relay.household import Caller, Relay, fresh_id, running_relay
from tests.relay.test_membership import founding
from tests.trust.people import companion

NOW = 1_800_000_000.0
HERE, THERE = "192.0.2.1", "192.0.2.2"
SECRET = bytes(32)


def refused(strangers: Strangers, address: str, now: float = NOW, **more: Any) -> int | None:
    """The seconds to wait; None when the request is admitted."""
    try:
        strangers.admit(address, more.get("caller"), more.get("secret"), now)
    except Problem as problem:
        return problem.retry_after if problem.slug is Slug.RATE_LIMITED else -1
    return None


def spent(strangers: Strangers, address: str = HERE) -> Strangers:
    while not strangers.is_spent(address, NOW):
        strangers.failed(address, None, NOW)
    return strangers


@pytest.mark.threat("T17")
def test_an_address_has_so_many_failures_a_minute_and_its_neighbours_theirs() -> None:
    strangers = Strangers(per_minute=6)
    for _ in range(6):
        assert refused(strangers, HERE) is None
        strangers.failed(HERE, "stranger", NOW)
    assert refused(strangers, HERE) == 10
    assert refused(strangers, THERE) is None
    assert refused(strangers, HERE, NOW + 10) is None


@pytest.mark.threat("T17")
def test_an_ipv6_network_of_64_bits_is_one_address() -> None:
    strangers = spent(Strangers(per_minute=3), "2001:db8::1")
    assert refused(strangers, "2001:db8::ffff:2") is not None
    assert refused(strangers, "2001:db8:0:1::1") is None


@pytest.mark.threat("T17")
def test_a_key_whose_last_call_succeeded_is_served_at_a_spent_address() -> None:
    strangers = spent(Strangers(per_minute=3))
    strangers.succeeded("anna")
    assert refused(strangers, HERE, caller="anna") is None
    assert refused(strangers, HERE, caller="bert") is not None
    strangers.failed(HERE, "anna", NOW)
    assert refused(strangers, HERE, caller="anna") is not None


@pytest.mark.threat("T17")
def test_a_ticket_or_code_has_ten_tries_of_its_own() -> None:
    strangers = Strangers(per_minute=3)
    for _ in range(50):  # costs none of them, as long as the address has failures left
        assert refused(strangers, HERE, secret=SECRET) is None
    spent(strangers)
    assert [refused(strangers, HERE, secret=SECRET) for _ in range(TRIES)] == [None] * TRIES
    assert refused(strangers, HERE, secret=SECRET) is not None
    assert refused(strangers, HERE, secret=b"another") is None


def test_without_a_limit_nobody_is_refused() -> None:
    strangers = Strangers(per_minute=0)
    for _ in range(1000):
        strangers.failed(HERE, None, NOW)
    assert refused(strangers, HERE) is None


@pytest.mark.threat("T12")
def test_the_longest_unused_entry_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    strangers = Strangers(per_minute=1)
    for number in range(10):
        strangers.succeeded(f"key {number}")
        strangers.failed(f"192.0.2.{number}", None, NOW)
    assert len(strangers._known) == len(strangers._failures) == 3
    assert refused(strangers, "192.0.2.9") is not None
    assert refused(strangers, "192.0.2.0") is None
    assert refused(strangers, "192.0.2.9", caller="key 9") is None


# At a relay


async def flood(relay: Relay, count: int) -> list[int]:
    """Requests of a stranger, each signed and with the newest nonce; returns their statuses."""
    stranger = relay.caller(companion("stranger"))
    return [(await stranger.get("/v1/ring")).status for _ in range(count)]


async def introduce(newcomer: Caller, account: str, ticket: bytes) -> int:
    body = {
        "account": account,
        "ticket": base64url(ticket),
        "body": base64url(b"an introduction"),
        "signature": base64url(bytes(64)),
        "mac": base64url(bytes(32)),
    }
    return (await newcomer.post("/v1/introductions", body)).status


@pytest.mark.threat("T17")
async def test_strangers_keep_neither_members_nor_newcomers_nor_founders_of_their_address_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_relay(tmp_path / "s", failures_per_address=20) as relay:
        home = await relay.household()
        anna = home.companions[0]
        ticket = bytes(range(32))
        path = f"/v1/invitations/{base64url(hashlib.sha256(ticket).digest())}"
        invitation = {"kind": "device", "expires_at": int(anna.clock()) + 600}
        assert (await anna.put(path, invitation)).status == 201
        bob, code = await relay.account_code("bob")
        verified = 0

        def counted(*headers: Any, **more: Any) -> Any:
            nonlocal verified
            verified += 1
            return check_proof(*headers, **more)

        monkeypatch.setattr(relay_app, "check_proof", counted)
        statuses = await flood(relay, 400)
        # whoever is refused costs no signature; one more failure is free every 3 s
        assert statuses[:20] == [404] * 20
        assert verified == statuses.count(404) < 100
        assert set(statuses[20:]) <= {404, 429}
        while 429 not in await flood(relay, 5):
            pass
        assert (await anna.get("/v1/ring")).status == 200
        newcomer = relay.caller(companion("newcomer"))
        assert await introduce(newcomer, home.account, ticket) == 201
        assert (await newcomer.get(path.replace("invitations", "introductions"))).status == 200
        founder = relay.caller(companion("founder"))
        body = {"code": base64url(code), "ring": founding(founder, bob, "bob")}
        assert (await founder.post("/v1/accounts", body)).status == 201
        assert (await founder.get("/v1/ring")).status == 200
        while 429 not in await flood(relay, 5):
            pass
        stranger = relay.caller(companion("with no ticket"))
        assert {await introduce(stranger, home.account, bytes(32)) for _ in range(5)} == {429}


@pytest.mark.threat("T17")
async def test_a_proof_without_a_nonce_costs_no_signature_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_relay(tmp_path / "s", failures_per_address=3) as relay:
        stranger = relay.caller(companion("stranger"))
        bare = Caller(stranger.person, relay.session, relay.url, relay.clock).proof("GET", "/v1/ring")
        monkeypatch.delattr(relay_app, "check_proof")
        for _ in range(20):
            assert (await stranger.call("GET", "/v1/ring", proofs=[bare])).problem == "use-dpop-nonce"


@pytest.mark.threat("T17")
async def test_a_member_that_was_taken_out_is_a_stranger(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", failures_per_address=10) as relay:
        home = await relay.household()
        anna, bert = home.companions
        await home.append(anna.person, home.devices[0].person)
        replies = [await bert.get(f"/v1/requests/{fresh_id()}") for _ in range(50)]
        assert {reply.status for reply in replies[:10]} == {404}
        assert 429 in {reply.status for reply in replies}
        assert (await anna.get("/v1/ring")).status == 200


@pytest.mark.threat("T17")
@pytest.mark.parametrize("body", ["compressed", "too large"])
async def test_a_body_that_is_not_read_is_a_failure_too(tmp_path: Path, body: str) -> None:
    async with running_relay(tmp_path / "s", failures_per_address=5) as relay:
        stranger = relay.caller(companion("stranger"))
        statuses = []
        for _ in range(20):
            headers = {"DPoP": stranger.proof("POST", "/v1/ring")}
            if body == "compressed":
                headers["Content-Encoding"] = "gzip"
            data = b"" if body == "compressed" else bytes(MAX_BODY + 1)
            async with relay.session.post(relay.url + "/v1/ring", data=data, headers=headers) as response:
                statuses.append(response.status)
        assert statuses[:5] == [415 if body == "compressed" else 413] * 5
        assert 429 in statuses


@pytest.mark.threat("T17")
async def test_whoever_shows_a_members_key_without_holding_it_keeps_nobody_out(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", failures_per_address=10) as relay:
        home = await relay.household()
        anna = home.companions[0]
        assert (await anna.get("/v1/ring")).status == 200
        while 429 not in await flood(relay, 5):
            pass
        for _ in range(50):
            forged = f"{anna.proof('GET', '/v1/ring').rpartition('.')[0]}.{base64url(bytes(64))}"
            assert (await anna.call("GET", "/v1/ring", proofs=[forged])).status in (401, 429)
        assert (await anna.get("/v1/ring")).status == 200


@pytest.mark.threat("T17")
def test_a_member_reads_so_many_bytes_a_minute_and_others_theirs() -> None:
    rings = Budget(name="calls", per_minute=6000)
    for _ in range(6):
        rings.admit("anna", NOW)
        rings.count("anna", 1000, NOW)
    with pytest.raises(Problem) as problem:
        rings.admit("anna", NOW)
    assert problem.value.slug is Slug.RATE_LIMITED
    rings.admit("bert", NOW)
    rings.admit("anna", NOW + 1)


@pytest.mark.threat("T17")
async def test_who_has_had_its_share_costs_no_signature_and_whoever_shows_another_key_spends_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_app, "REFUSAL_SECONDS", 0)
    async with running_relay(tmp_path / "s") as relay:
        home = await relay.household()
        anna, bert = home.companions
        relay.app[relay_app.RELAY]._calls = Budget(name="calls", per_minute=5)
        for _ in range(20):
            forged = f"{anna.proof('GET', '/v1/ring').rpartition('.')[0]}.{base64url(bytes(64))}"
            assert (await bert.call("GET", "/v1/ring", proofs=[forged])).problem == "proof-invalid"
        assert [(await anna.get("/v1/ring")).status for _ in range(6)] == [200] * 5 + [429]
        monkeypatch.setattr(relay_app, "check_proof", None)
        assert (await anna.get("/v1/inbox")).problem == "rate-limited"


@pytest.mark.threat("T17")
async def test_a_clock_that_is_set_back_refuses_nobody(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", failures_per_address=600) as relay:
        home = await relay.household()
        stranger = relay.caller(companion("stranger"))
        assert (await home.companions[0].get("/v1/ring")).status == 200
        assert (await stranger.get("/v1/ring")).status == 404
        relay.clock.ahead = -10_000
        assert (await home.companions[0].get("/v1/ring")).status == 200
        assert (await stranger.get("/v1/ring")).status == 404


@pytest.mark.threat("T17")
def test_one_large_answer_is_given_and_paid_for_afterwards() -> None:
    rings = Budget(name="calls", per_minute=6000)
    rings.admit("anna", NOW)
    rings.count("anna", 9000, NOW)
    with pytest.raises(Problem) as problem:
        rings.admit("anna", NOW + 29)
    assert problem.value.retry_after == 2
    rings.admit("anna", NOW + 31)


@pytest.mark.threat("T17")
async def test_who_reads_rings_all_the_time_is_told_to_wait_and_an_empty_answer_is_free(
    tmp_path: Path,
) -> None:
    async with running_relay(tmp_path / "s") as relay:
        home = await relay.household()
        anna, bert = home.companions
        relay.app[relay_app.RELAY]._ring_bytes = Budget(name="calls", per_minute=20_000)
        replies = [await anna.get("/v1/ring")]
        while replies[-1].status == 200 and len(replies) < 50:
            replies.append(await anna.get("/v1/ring"))
        assert [reply.status for reply in replies[:3]] == [200] * 3
        refused = replies[-1]
        assert (refused.problem, int(refused.headers["Retry-After"]) > 0) == ("rate-limited", True)
        for _ in range(100):
            assert (await bert.get(f"/v1/ring?after={home.ring.version}")).status == 200
