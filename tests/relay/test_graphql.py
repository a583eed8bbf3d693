"""`/graphql`: the same operations, rules and problems as the HTTP contract, and what is its own."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion_push.push.channel import Kind
from companion_push.relay import operations
from companion_push.relay.app import make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.graphql import schema
from headless_passkey.errors import SetupError
from program_parts.base64url import base64url
from tests.push.recording import RecordingChannel
from tests.relay.graphql_calls import (
    CHANNELS,
    CLAIM,
    DECLINE,
    FAIL,
    INBOX,
    OPEN,
    REGISTER,
    RELEASE,
    REPORT,
    RINGS,
    STATUS,
    SUBMIT,
    ask,
    error,
    send,
    slug,
    submit,
)
from tests.relay.household import SEALED, Caller, Household, Relay, Reply, fresh_id, rates, running_relay
from tests.relay.stores import ON_POSTGRES, of_files
from tests.relay.test_any_input import Running
from tests.relay.test_authority import Users
from tests.relay.test_graphql_subscriptions import begun
from tests.relay.test_no_weaker_way_in import WEAKER
from tests.trust.people import companion, device, grow

JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    async with running_relay(tmp_path / "relay.sqlite3", graphql=True) as running:
        yield running


def snake(value: Any) -> Any:
    """An answer with the names and states of the HTTP contract."""
    if isinstance(value, list):
        return [snake(one) for one in value]
    if not isinstance(value, dict):
        return value
    names = ("".join(f"_{c.lower()}" if c.isupper() else c for c in name) for name in value)
    found = dict(zip(names, map(snake, value.values()), strict=True))
    return found | ({"state": found["state"].lower()} if "state" in found else {})


async def test_a_request_goes_from_submission_to_its_end(home: Household) -> None:
    (frame,), (phone, other) = home.devices, home.companions
    name = await submit(frame, phone, other)
    may_wait = sorted([phone.name, other.name]) if ON_POSTGRES else []  # at the inbox of another process
    assert await ask(frame, STATUS, id=name) | {"now": 0, "expiresAt": 0} == {
        "id": name,
        "state": "PENDING",
        "version": 1,
        "expiresAt": 0,
        "now": 0,
        "claim": None,
        "ring": {"version": 2, "hash": base64url(home.ring.hash)},
        "reason": None,
        "failures": [],
        "notified": [{"to": each, "channel": "inbox", "outcome": "pending"} for each in may_wait],
    }
    (item,) = (await ask(phone, INBOX))["requests"]
    assert (item["device"], item["id"], item["state"], item["sealed"]) == (
        frame.name,
        name,
        "DELIVERED",
        SEALED,
    )
    word = await phone.claim(frame, name)
    claimed = await ask(phone, CLAIM, device=frame.name, id=name, word=word)
    assert claimed["state"] == "CLAIMED"
    assert (await ask(frame, STATUS, id=name))["claim"] == {"by": phone.name, "word": word}
    assert (await ask(phone, OPEN, device=frame.name, id=name, stays=True))["state"] == "OPENED"
    ended = await ask(frame, REPORT, id=name, event="COMPLETED", reason="done")
    assert (ended["state"], ended["reason"]) == ("COMPLETED", "done")
    assert (await ask(phone, INBOX))["requests"] == []


async def test_a_companion_may_give_a_claim_back_fail_and_decline(home: Household) -> None:
    (frame,), (phone, other) = home.devices, home.companions
    name = await submit(frame, phone, other)
    of = {"device": frame.name, "id": name}
    await ask(phone, CLAIM, word=await phone.claim(frame, name), **of)
    assert (await ask(phone, RELEASE, **of))["state"] == "DELIVERED"
    assert (await ask(phone, FAIL, reason="no-radio", **of))["state"] == "DELIVERED"
    assert (await ask(frame, STATUS, id=name))["failures"] == [{"by": phone.name, "reason": "no-radio"}]
    assert (await ask(other, DECLINE, **of))["state"] == "DECLINED"
    assert (await ask(frame, STATUS, id=name))["reason"] is None


async def test_both_shells_say_the_same_of_the_same_things(home: Household) -> None:
    """Every member of the HTTP contract's answers is in the schema, by the same name."""
    (frame,), (phone, other) = home.devices, home.companions
    name = await submit(frame, phone, other)
    for caller, path, document, variables in (
        (phone, "/v1/inbox", INBOX, {}),
        (frame, f"/v1/requests/{name}", STATUS, {"id": name}),
        (phone, "/v1/ring?after=1", RINGS, {"after": 1}),
    ):
        here, there = await ask(caller, document, **variables), (await caller.get(path)).body
        assert snake(here) | {"now": 0} == there | {"now": 0}


async def test_rings_words_and_calls_for_words_are_carried(relay: Relay, home: Household) -> None:
    (frame,), (phone, _) = home.devices, home.companions
    assert await ask(frame, "mutation { callForWords }") is True
    assert (await ask(phone, INBOX))["wordWanted"] is True
    document = "mutation($word: Base64Url!) { giveWord(word: $word) }"
    refused = await send(phone, document, word=SEALED)
    assert slug(refused) == "invalid-request"
    added = device("another frame")
    everybody = [each.person for each in (*home.companions, *home.devices)]
    ring = grow(home.ring, phone.person, *everybody, added, now=relay.clock())
    document = "mutation($ring: Base64Url!) { appendRing(ring: $ring) { version hash } }"
    head = {"version": 3, "hash": base64url(ring.hash)}
    assert await ask(phone, document, ring=base64url(ring.document)) == head
    document = "mutation($rings: [Base64Url!]!) { appendRings(rings: $rings) { version hash } }"
    assert await ask(phone, document, rings=[base64url(ring.document)]) == head
    assert (await ask(frame, RINGS, after=2))["rings"] == [base64url(ring.document)]


async def until_held(relay: Relay, caller: Caller) -> None:
    while not relay.is_held(caller.name):  # noqa: ASYNC110  nothing tells of it
        await asyncio.sleep(0.01)


async def test_a_held_query_is_answered_when_there_is_news(relay: Relay, home: Household) -> None:
    (frame,), (phone, _) = home.devices, home.companions
    cursor = (await ask(phone, INBOX))["cursor"]
    waiting = asyncio.ensure_future(ask(phone, INBOX, cursor=cursor, wait=25))
    await until_held(relay, phone)
    name = await submit(frame, phone)
    assert [item["id"] for item in (await waiting)["requests"]] == [name]
    version = (await ask(frame, STATUS, id=name))["version"]
    waiting = asyncio.ensure_future(ask(frame, STATUS, id=name, version=version, wait=25))
    await until_held(relay, frame)
    assert (await phone.act(frame, name, "declined")).status == 200
    assert (await waiting)["state"] == "DECLINED"


async def test_a_relay_that_ends_answers_held_queries_and_then_says_so(relay: Relay, home: Household) -> None:
    (phone, _) = home.companions
    cursor = (await ask(phone, INBOX))["cursor"]
    waiting = asyncio.ensure_future(ask(phone, INBOX, cursor=cursor, wait=25))
    await until_held(relay, phone)
    relay.held_requests.close()
    assert (await waiting)["cursor"] == cursor
    reply = await send(phone, INBOX)
    assert (reply.status, slug(reply), reply.headers["Retry-After"]) == (503, "draining", "1")


async def test_an_admitted_document_is_neither_parsed_nor_validated_again(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: object, **__: object) -> None:
        raise AssertionError("again")

    for name in ("parse", "validate", "validate_document"):
        monkeypatch.setattr(f"strawberry.schema.schema.{name}", again)
    (frame,), (phone, _) = home.devices, home.companions
    assert (await ask(phone, INBOX))["requests"] == []
    assert await ask(frame, "mutation { callForWords }") is True
    async with begun(phone) as socket:
        await socket.follow()
        assert (await socket.inbox())["requests"] == []


class _Calls:
    """A budget that writes down what is counted."""

    def __init__(self) -> None:
        self.counted: list[int] = []

    def admit(self, key: str, now: float) -> None:
        """Refuse nobody."""

    def count(self, key: str, size: int, now: float) -> None:
        self.counted.append(size)


@pytest.mark.threat("T17")
async def test_a_document_that_has_to_be_parsed_counts_as_ten_calls(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    (phone, _) = home.companions
    calls = _Calls()
    monkeypatch.setattr(relay._relay, "_calls", calls)
    for document in ("query A { inbox { cursor } }", "query B { inbox { cursor } }"):
        for counted in ([1, 9], [1]):
            calls.counted.clear()
            await ask(phone, document)
            assert calls.counted == counted
    for _ in range(2):  # one that is refused is parsed each time
        calls.counted.clear()
        assert slug(await send(phone, "{ inbox { nothing } }")) == "invalid-request"
        assert calls.counted == [1, 9]


# Problems


async def test_a_problem_of_an_operation_is_that_of_the_http_contract(home: Household) -> None:
    (frame,), (phone, other) = home.devices, home.companions
    name = await submit(frame, phone, other)
    word = await phone.claim(frame, name)
    await ask(phone, CLAIM, device=frame.name, id=name, word=word)
    late = await other.claim(frame, name)
    reply = await send(other, CLAIM, device=frame.name, id=name, word=late)
    there = await other.act(frame, name, "claimed", word=late)
    assert there.status == 409
    assert error(reply) == there.body
    assert reply.status == 200
    assert reply.body["data"] is None
    assert reply.body["errors"][0]["path"] == ["claimRequest"]


async def test_what_is_somebody_elses_is_not_there(relay: Relay, home: Household) -> None:
    (frame,), (phone, _) = home.devices, home.companions
    name = await submit(frame, phone)
    others = await relay.household("bob")
    stranger = relay.caller(companion("stranger"))
    for caller in (others.devices[0], phone, stranger):
        reply = await send(caller, STATUS, id=name)
        assert error(reply) == error(await send(frame, STATUS, id=fresh_id()))
        assert slug(reply) == "not-found"
    assert slug(await send(frame, INBOX)) == "not-found"


async def test_a_limit_of_requests_is_one_for_both_shells(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True, quota=rates(1, 60)) as relay:
        home = await relay.household()
        (frame,), (phone, _) = home.devices, home.companions
        assert (await frame.submit(phone)).status == 201
        envelopes = [{"to": phone.name, "sealed": SEALED}]
        reply = await send(frame, SUBMIT, id=fresh_id(), expiresIn=300, envelopes=envelopes)
        assert slug(reply) == "rate-limited"
        assert 0 < error(reply)["retry_after"] <= 60


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("document", "variables", "why"),
    [
        (SUBMIT, {"id": "A"}, "request id"),
        (SUBMIT, {"id": 7}, "request id"),
        (SUBMIT, {"expiresIn": 0}, "expires_in"),
        (SUBMIT, {"expiresIn": 301}, "expires_in"),
        (SUBMIT, {"envelopes": []}, "envelopes"),
        (SUBMIT, {"envelopes": [{"to": "A", "sealed": "AA"}]}, "to: expected a member's name"),
        (SUBMIT, {"envelopes": [{"to": "A" * 43, "sealed": "A"}]}, "sealed"),
        (SUBMIT, {"envelopes": [{"to": "A" * 43, "sealed": ""}]}, "sealed: expected 1 to 3072 bytes"),
        (SUBMIT, {"envelopes": [{"to": "A" * 43, "sealed": "A" * 4098}]}, "sealed: expected 1 to 3072 bytes"),
        (SUBMIT, {"envelopes": [{"to": "A" * 43, "sealed": "AA"}] * 2}, "two envelopes for one recipient"),
        (STATUS, {"wait": 26}, "wait"),
        (STATUS, {"wait": -1}, "wait"),
        (STATUS, {"version": -1}, "version"),
        (REPORT, {"event": "FAILED", "reason": "A reason"}, "reason"),
        (REPORT, {"event": "FAILED", "reason": ""}, "reason"),
        (INBOX, {"cursor": ""}, "cursor"),
        (INBOX, {"cursor": "A" * 65}, "cursor"),
        (CLAIM, {"device": "x", "word": "AA"}, "device"),
        (CLAIM, {"device": "A" * 43, "word": "="}, "word"),
        (RINGS, {"after": -1}, "after"),
    ],
    ids=[
        "short id", "number as id", "no time", "much time", "no envelopes", "recipient", "no base64url", "nothing sealed",
        "much sealed", "twice", "wait", "negative wait", "version", "reason", "empty reason", "empty cursor", "long cursor",
        "device", "word", "after",
    ],
)  # fmt: skip
async def test_each_malformed_argument_gets_the_problem_that_names_it(
    home: Household, document: str, variables: dict[str, object], why: str
) -> None:
    (frame,) = home.devices
    usual = {
        "id": fresh_id(),
        "expiresIn": 300,
        "envelopes": [{"to": home.companions[0].name, "sealed": SEALED}],
    }
    wanted = {name: value for name, value in usual.items() if f"${name}:" in document}
    reply = await send(frame, document, **(wanted | variables))
    assert reply.status == 200
    assert slug(reply) == "invalid-request"
    assert why in error(reply)["detail"]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 50_000, "got `array`|not JSON"),
        (b'[{"query": "{ __typename }"}]', "got `array`"),
        (b"7", "got `int`"),
        (b"{}", "expected a document"),
        (b'{"query": null}', "expected a document"),
        (b'{"query": 7}', "query"),
        (b'{"query": "{ __typename }", "variables": []}', "variables"),
        (b'{"query": "{ __typename }", "variables": "{}"}', "variables"),
        (b'{"query": "{ __typename }", "operationName": "X"}', "operationName"),
        (b'{"query": "{ __typename }", "more": 1}', "more"),
        (b'{"query": "{ __typename }", "extensions": 1}', "extensions"),
        (b'{"query": "{ inbox { nothing } }"}', "Cannot query field"),
        (b'{"query": "query($x: Int!) { inbox(wait: $x) { cursor } }"}', "'$x'"),
        (b'{"query": "query($x: Int) { inbox(wait: $x) { cursor } }", "variables": {"x": "1"}}', "Int cannot"),
        (b'{"query": "query($x: Int) { inbox(wait: $x) { cursor } }", "variables": {"x": 1e400}}', "out of range"),
        (b'{"query": "query($x: String) { inbox(cursor: $x) { cursor } }", "variables": {"x": ["a"]}}', "String cannot"),
        (b'{"query": "query($x: DeviceEvnt) { inbox(cursor: $x) { cursor } }"}', "Unknown type"),
        (b'{"query": "subscription { inbox { cursor } }"}', "subscription|query or a mutation"),
    ],
    ids=[
        "empty", "open", "no UTF-8", "deep", "batch", "number", "nothing", "null", "query", "list", "text", "name", "unknown",
        "extensions", "field", "missing", "type", "infinity", "list of text", "unknown type", "subscription",
    ],
)  # fmt: skip
async def test_a_request_that_is_none_is_refused_before_anything_runs(
    home: Household, body: bytes, why: str
) -> None:
    reply = await raw(home.companions[0], body)
    assert reply.status == 400, reply
    assert "data" not in reply.body
    for one in reply.body["errors"]:
        assert one["extensions"]["type"].endswith(":invalid-request")
        assert one["extensions"]["status"] == 400
    assert any(part in reply.body["errors"][0]["message"] for part in why.split("|"))


async def raw(caller: Caller, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """One request with exactly this body."""
    sent = {**JSON, "DPoP": caller.proof("POST", "/graphql"), **(headers or {})}
    async with caller.session.post(f"{caller.url}/graphql", data=body, headers=sent) as response:
        return Reply(response.status, await response.json(content_type=None), response.headers)


async def test_a_body_that_is_too_large_is_refused(home: Household) -> None:
    reply = await raw(home.companions[0], b'{"query": "' + b" " * 98_304)
    assert (reply.status, slug(reply), error(reply)["limit"]) == (413, "payload-too-large", 98_304)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/graphql"]
)  # fmt: skip
async def test_a_form_of_a_browser_is_no_request(home: Household, kind: str) -> None:
    reply = await raw(home.companions[0], b'{"query": "{ __typename }"}', {"Content-Type": kind})
    assert reply.status == 415


async def test_a_compressed_body_is_refused(home: Household) -> None:
    reply = await raw(home.companions[0], b'{"query": "{ __typename }"}', {"Content-Encoding": "gzip"})
    assert reply.status == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_a_query_is_posted(home: Household, method: str) -> None:
    caller = home.companions[0]
    url = f"{caller.url}/graphql?query=%7B__typename%7D"
    proof = {"DPoP": caller.proof(method, "/graphql")}
    async with caller.session.request(method, url, headers=proof) as response:
        assert response.status == 405


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", "application/json"),
        ("*/*", "application/graphql-response+json"),
        ("application/graphql-response+json, application/json;q=0.9", "application/graphql-response+json"),
    ],
)
async def test_an_answer_is_of_the_kind_that_is_accepted(home: Household, accept: str, kind: str) -> None:
    for body in (b'{"query": "{ __typename }"}', b"{}"):
        reply = await raw(home.companions[0], body, {"Accept": accept})
        assert reply.headers["Content-Type"] == kind
        assert reply.headers["Cache-Control"] == "no-store"


async def test_a_bug_tells_its_caller_nothing(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(cursor: str | None) -> operations.Operation:
        raise RuntimeError(f"secret {cursor}")

    monkeypatch.setattr(operations, "read_inbox", broken)
    reply = await send(home.companions[0], INBOX, cursor="cursor")
    assert error(reply) == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    assert "secret" not in caplog.text
    assert "unexpected RuntimeError at test_graphql.py:" in caplog.text
    assert "invalid-request" not in caplog.text


@of_files
async def test_a_store_that_is_gone_is_told_as_in_the_http_contract(relay: Relay, home: Household) -> None:
    relay.store.unlink()
    reply = await send(home.companions[0], INBOX)
    assert (reply.status, slug(reply), error(reply)["status"]) == (200, "store-unavailable", 503)


# Proofs


@pytest.mark.threat("T13")
async def test_a_request_needs_a_proof_for_this_address(relay: Relay, home: Household) -> None:
    caller = home.companions[0]
    body = {"query": "{ __typename }"}
    for proofs in (
        [],
        ["e30.e30.AA"],
        [caller.proof("POST", "/v1/inbox")],
        [caller.proof("GET", "/graphql")],
    ):
        reply = await caller.call("POST", "/graphql", body, proofs=proofs)
        assert reply.status == 401
        assert slug(reply) in ("proof-invalid", "use-dpop-nonce")
        assert reply.headers["WWW-Authenticate"].startswith("DPoP ")
    once = caller.proof("POST", "/graphql")
    assert (await caller.call("POST", "/graphql", body, proofs=[once])).status == 200
    again = await caller.call("POST", "/graphql", body, proofs=[once])
    assert (again.status, slug(again)) == (401, "proof-invalid")


@pytest.mark.threat("T15")
@pytest.mark.parametrize("headers", WEAKER.values(), ids=WEAKER)
async def test_there_is_no_weaker_way_in(relay: Relay, home: Household, headers: dict[str, str]) -> None:
    async with relay.session.post(f"{relay.url}/graphql", json={"query": INBOX}, headers=headers) as response:
        assert response.status == 401
        assert not response.cookies
        assert "data" not in await response.json(content_type=None)


async def test_a_proof_without_the_nonce_is_answered_with_it(relay: Relay, home: Household) -> None:
    known = home.companions[0]
    caller = Caller(known.person, known.session, known.url, known.clock)
    body = {"query": "{ __typename }"}
    reply = await caller.call("POST", "/graphql", body, proofs=[caller.proof("POST", "/graphql")])
    assert (reply.status, slug(reply)) == (401, "use-dpop-nonce")
    assert 'error="use_dpop_nonce"' in reply.headers["WWW-Authenticate"]
    assert reply.headers["DPoP-Nonce"] == caller.kept["nonce"]
    assert (await caller.call("POST", "/graphql", body)).status == 200


@pytest.mark.threat("T17")
async def test_failures_cost_the_address_as_in_the_http_contract(tmp_path: Path) -> None:
    """Also those that are answered with 200."""
    async with running_relay(tmp_path / "r", graphql=True, failures_per_address=3) as relay:
        home = await relay.household()
        stranger = relay.caller(companion("stranger"))
        for _ in range(3):
            assert slug(await send(stranger, INBOX)) == "not-found"
        reply = await send(stranger, INBOX)
        assert (reply.status, slug(reply)) == (429, "rate-limited")
        assert int(reply.headers["Retry-After"]) > 0
        assert (await send(home.companions[0], INBOX)).status == 200


# What other rooms have a say in


@pytest.mark.threat("T16")
async def test_the_authority_vetoes_a_ring_of_this_shell_too(tmp_path: Path) -> None:
    users = Users()
    async with running_relay(tmp_path / "r", graphql=True, authority=users) as relay:
        home = await relay.household()
        (phone, _) = home.companions
        users.forbidden = "two devices at most"
        everybody = [each.person for each in (*home.companions, *home.devices)]
        ring = grow(home.ring, phone.person, *everybody, device("one more"), now=relay.clock())
        for document, variables in (
            ("mutation($ring: Base64Url!) { appendRing(ring: $ring) { version } }", {"ring": base64url(ring.document)}),
            ("mutation($rings: [Base64Url!]!) { appendRings(rings: $rings) { version } }", {"rings": [base64url(ring.document)]}),
        ):  # fmt: skip
            reply = await send(phone, document, **variables)
            assert (slug(reply), error(reply)["detail"]) == ("not-allowed", "two devices at most")
        assert (await ask(phone, RINGS, after=0))["version"] == 2


@pytest.mark.threat("T6")
async def test_a_device_is_muted_by_not_me_and_a_companion_ends_that(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True) as relay:
        home = await relay.household()
        (frame,), (phone, other) = home.devices, home.companions
        name = await submit(frame, phone)
        await ask(phone, DECLINE, device=frame.name, id=name, reason="not-me")
        refused = await frame.submit(phone)
        assert refused.problem == "device-muted"
        mutes = "{ mutes { device by at } }"
        (mute,) = await ask(other, mutes)
        assert (mute["device"], mute["by"]) == (frame.name, phone.name)
        assert await ask(other, "{ inbox { muted } }") == {"muted": [frame.name]}
        assert slug(await send(frame, mutes)) == "not-found"
        end = "mutation($device: ID!) { endMute(device: $device) }"
        assert slug(await send(other, end, device="x")) == "invalid-request"
        assert await ask(other, end, device=frame.name) is True
        assert await ask(phone, mutes) == []
        assert (await frame.submit(phone)).status == 201
        begin = "mutation($device: ID!) { beginMute(device: $device) }"
        assert slug(await send(other, begin, device=phone.name)) == "not-found"
        assert await ask(other, begin, device=frame.name) is True
        assert (await frame.submit(phone)).problem == "device-muted"


async def test_a_companion_registers_lists_and_removes_its_channels(tmp_path: Path) -> None:
    service = RecordingChannel(Kind.FCM)
    async with running_relay(tmp_path / "r", graphql=True, channels=(service,)) as relay:
        home = await relay.household()
        (frame,), (phone, other) = home.devices, home.companions
        handle, token = fresh_id(), "fcm-token:" + "A" * 100
        address = {"kind": "FCM", "app": "app.example", "token": token}
        assert await ask(phone, REGISTER, handle=handle, address=address) is True
        channels = (await phone.get("/v1/channels")).body
        (channel,) = channels["channels"]
        assert await ask(phone, CHANNELS) == {
            "channels": [
                {"handle": handle, "kind": "FCM", "state": "GOOD", "registeredAt": channel["registered_at"]}
            ],
            "offers": {"webPush": None, "fcm": {"apps": ["app.example"]}, "apns": None},
        }
        name = await submit(frame, phone, other)
        notified = (await ask(frame, STATUS, id=name))["notified"]
        assert (phone.name, "fcm") in {(each["to"], each["channel"]) for each in notified}
        refused = await send(phone, REGISTER, handle=handle, address={"kind": "FCM", "app": "app.example"})
        assert slug(refused) == "invalid-request"
        assert token not in str(refused.body)
        assert slug(await send(frame, CHANNELS)) == "not-found"
        assert (
            await ask(phone, "mutation($handle: ID!) { removeChannel(handle: $handle) }", handle=handle)
            is True
        )
        assert (await ask(phone, CHANNELS))["channels"] == []


# What is told in the log, and settings


async def test_the_log_names_the_field_and_the_problem_and_nothing_of_the_request(
    home: Household, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (frame,), (phone, _) = home.devices, home.companions
    name = await submit(frame, phone)
    await send(frame, STATUS, id=fresh_id())
    await send(frame, "{ secretField }")
    said = [one for one in caplog.messages if "/graphql" in one]
    assert [one.partition(" in ")[0] for one in said] == [
        "POST /graphql submitRequest: 200 ok",
        "POST /graphql request: 200 not-found",
        "POST /graphql: 400 invalid-request",
    ]
    assert name not in caplog.text
    assert "secretField" not in caplog.text


async def test_there_is_no_graphql_unless_it_is_asked_for(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r") as relay:
        home = await relay.household()
        reply = await home.companions[0].post("/graphql", {"query": "{ __typename }"})
        assert (reply.status, reply.problem) == (404, "not-found")


async def test_the_schema_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True, graphql_introspection=True) as relay:
        home = await relay.household()
        (phone, _) = home.companions
        assert (await ask(phone, "{ __schema { queryType { name } } }"))["queryType"] == {"name": "Query"}
        reply = await send(phone, REPORT, id=fresh_id(), event="CANCELED")
        assert "Did you mean" not in reply.body["errors"][0]["message"]


async def test_a_variable_is_told_no_names_of_the_schema(home: Household) -> None:
    reply = await send(home.devices[0], REPORT, id=fresh_id(), event="CANCELED")
    assert reply.status == 400
    assert "Did you mean" not in str(reply.body)


def test_what_graphql_needs_and_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "strawberry", None)
    monkeypatch.delitem(__import__("sys").modules, "companion_push.relay.graphql.shell", raising=False)
    monkeypatch.delitem(__import__("sys").modules, schema.__name__, raising=False)
    config = RelayConfig(public_url="https://relay.example", store=tmp_path / "r", graphql=True)
    with pytest.raises(SetupError, match="strawberry-graphql") as refused:
        make_app(config)
    assert refused.value.reason == "missing-package"
    assert ".[graphql]" in (refused.value.advice or "")


# Whatever is sent


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with asyncio.Runner() as runner:
        context = running_relay(tmp_path_factory.mktemp("relay") / "relay.sqlite3", graphql=True)
        relay = runner.run(context.__aenter__())
        home = runner.run(relay.household())
        yield Running(runner.get_loop(), relay, home)
        runner.run(context.__aexit__(None, None, None))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.sampled_from([fresh_id, SEALED, "A" * 43, base64url(bytes(16)), "CLAIMED", "FAILED"]).map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["to", "sealed"]) | st.text(), inner, max_size=3),
)  # fmt: skip
NAMES = ["id", "expiresIn", "envelopes", "version", "wait", "event", "reason", "cursor", "device", "word", "stays", "after"]  # fmt: skip


@pytest.mark.threat("T12")
@given(
    caller=st.integers(0, 2),
    document=st.sampled_from([SUBMIT, STATUS, REPORT, INBOX, CLAIM, OPEN, RELEASE, DECLINE, FAIL, RINGS]),
    variables=st.dictionaries(st.sampled_from(NAMES), ANY, max_size=5),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_variables_are_answered_with_data_or_a_problem(
    running: Running, caller: int, document: str, variables: dict[str, object]
) -> None:
    variables.pop("wait", None)
    reply = running.loop.run_until_complete(send(running.callers[caller], document, **variables))
    assert reply.status in (200, 400)
    for one in reply.body.get("errors", ()):
        assert 400 <= one["extensions"]["status"] < 500, one
    assert ("data" in reply.body) == (reply.status == 200)
