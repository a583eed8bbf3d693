"""The relay's OpenAPI description: current, complete, and what the relay really does."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode as Mode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from yarl import URL

from companion_push.relay.openapi import ENDPOINTS, Endpoint, describe
from companion_push.relay.problems import Slug
from headless_passkey.net.proof import make_proof
from tests.relay.household import Caller, Household, Relay, fresh_id, running_relay
from tests.trust.people import companion

ROOT = Path(__file__).parent.parent.parent
DESCRIPTION = describe()
EXAMPLES = 6  # of each endpoint, and as many that it must refuse
NAMES = [f"{endpoint.method} {endpoint.path}" for endpoint in ENDPOINTS]


def test_the_committed_description_is_current() -> None:
    kept = (ROOT / "docs" / "reference" / "relay-openapi.json").read_text(encoding="utf-8")
    assert json.loads(kept) == DESCRIPTION


async def test_the_relay_serves_it_with_its_own_url(relay: Relay) -> None:
    async with relay.session.get(relay.url + "/openapi.json") as response:
        assert response.content_type == "application/json"
        assert await response.json() == describe(relay.url)


async def test_every_route_is_in_it_and_no_other(relay: Relay) -> None:
    routes = set()
    for route in relay.app.router.routes():
        assert route.resource is not None
        routes.add(f"{route.method} {route.resource.canonical}")
    assert routes == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_it_is_an_openapi_description() -> None:
    schemathesis.openapi.from_dict(DESCRIPTION).validate()
    names = [one["operationId"] for path in DESCRIPTION["paths"].values() for one in path.values()]
    assert len(names) == len(set(names))


def test_every_problem_is_an_answer_of_some_endpoint() -> None:
    told = {
        slug
        for path in DESCRIPTION["paths"].values()
        for operation in path.values()
        for response in operation["responses"].values()
        for slug in response["description"].split(", ")
    }
    assert {*map(str, Slug)} <= told


# What real members are answered


class Checked:
    """Calls of a household, of which each answer is held against the description."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._validators: dict[str, Any] = {}

    async def call(self, caller: Caller, endpoint: str, body: object = None, **path: str) -> Any:
        """Call ``METHOD template?query`` and check its answer. path: values of the template's names."""
        method, _, template = endpoint.partition(" ")
        template, _, query = template.partition("?")
        target = template.format(**path)
        reply = await caller.call(method, f"{target}?{query}" if query else target, body)
        described = DESCRIPTION["paths"][template][method.lower()]["responses"]
        assert str(reply.status) in described, (endpoint, reply)
        ((media, content),) = described[str(reply.status)]["content"].items()
        assert reply.headers["Content-Type"].partition(";")[0] == media, endpoint
        schema = {**content["schema"], "components": DESCRIPTION["components"]}
        jsonschema_rs.validator_for(schema).validate(reply.body)
        self.seen.add((f"{method} {template}", reply.status))
        return reply.body


async def test_what_members_are_answered_is_as_described(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    checked = Checked()
    call = checked.call
    name = fresh_id()
    await call(anna, "GET /v1/ring?after=0")
    await call(frame, "POST /v1/words/call", {})
    await call(anna, "PUT /v1/word", {"word": await anna.claim(frame, name)})  # 400: a word with a claim
    envelopes = [{"to": each.name, "sealed": "AAAA"} for each in home.companions]
    submission = {"expires_in": 300, "envelopes": envelopes}
    for _ in range(2):
        await call(frame, "PUT /v1/requests/{id}", submission, id=name)
    await call(frame, "PUT /v1/requests/{id}", submission | {"expires_in": 9}, id=name)
    inbox = await call(anna, "GET /v1/inbox")
    await call(anna, "GET /v1/inbox?cursor=" + inbox["cursor"])
    word = await anna.claim(frame, name, sealed=bytes(3))
    events = "POST /v1/inbox/{device}/{id}/events"
    where = {"device": frame.name, "id": name}
    await call(anna, events, {"event": "claimed", "word": word}, **where)
    await call(frame, "GET /v1/requests/{id}", id=name)
    await call(bert, events, {"event": "declined"}, **where)
    await call(bert, events, {"event": "failed", "reason": "no-phone"}, **where)
    await call(anna, events, {"event": "opened", "stays": True}, **where)
    await call(frame, "POST /v1/requests/{id}/events", {"event": "completed"}, id=name)
    await call(frame, "POST /v1/requests/{id}/events", {"event": "cancelled"}, id=name)
    invitation = "A" * 43
    announcement = {"kind": "device", "expires_at": int(anna.clock()) + 500}
    for _ in range(2):
        await call(anna, "PUT /v1/invitations/{id}", announcement, id=invitation)
    await call(anna, "GET /v1/invitations/{id}", id=invitation)
    await call(anna, "DELETE /v1/invitations/{id}", id=invitation)
    await call(anna, "GET /v1/invitations/{id}", id=invitation)
    other = await call(frame, "PUT /v1/requests/{id}", submission, id=fresh_id())
    where = {"device": frame.name, "id": other["id"]}
    await call(anna, events, {"event": "declined", "reason": "not-me"}, **where)
    await call(frame, "PUT /v1/requests/{id}", submission, id=fresh_id())
    await call(anna, "GET /v1/inbox")
    await call(anna, "GET /v1/mutes")
    await call(anna, "DELETE /v1/mutes/{device}", device=frame.name)
    for _ in range(2):
        await call(anna, "PUT /v1/mutes/{device}", device=frame.name)
    await call(anna, "GET /v1/channels")
    await call(anna, "PUT /v1/channels/{id}", {"kind": "fcm", "app": "a", "token": "t"}, id="A" * 22)
    await call(anna, "DELETE /v1/channels/{id}", id="A" * 22)
    await call(anna, "GET /v1/accounts/sign-in")
    assert {
        ("PUT /v1/requests/{id}", 201),
        ("PUT /v1/requests/{id}", 200),
        ("PUT /v1/requests/{id}", 409),
        ("PUT /v1/requests/{id}", 403),
        (events, 200),
        (events, 409),
        ("DELETE /v1/invitations/{id}", 200),
        ("GET /v1/invitations/{id}", 410),
        ("GET /v1/inbox", 200),
        ("GET /v1/mutes", 200),
        ("DELETE /v1/mutes/{device}", 200),
        ("PUT /v1/mutes/{device}", 201),
        ("PUT /v1/mutes/{device}", 200),
        ("GET /v1/channels", 200),
    } <= checked.seen


# What anybody is answered who sends what the description allows, or nearly


class Running:
    """A relay in a thread of its own: schemathesis calls it as any client does, and waits."""

    def __init__(self, relay: Relay, home: Household) -> None:
        self.url = relay.url
        self._endpoints = relay._relay
        self._callers = [home.companions[0], home.devices[0], relay.caller(companion("stranger"))]
        self._calls = 0

    def proof(self, method: str, url: str) -> dict[str, str]:
        """The header with a proof of one member after the other, and of a stranger."""
        caller = self._callers[self._calls % len(self._callers)]
        self._calls += 1
        proof = make_proof(
            caller.person.key, method=method, url=url, now=caller.clock(), nonce=self._endpoints.nonce()
        )
        return {"DPoP": proof}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The relay runs in a thread until the tests of this module are done."""
    store = tmp_path_factory.mktemp("relay") / "relay.sqlite3"
    ready, found = threading.Event(), list[Running]()
    ended: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with running_relay(store) as relay:
            found.append(Running(relay, await relay.household()))
            ended.append((asyncio.get_running_loop(), asyncio.Event()))
            ready.set()
            await ended[0][1].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield found[0]
    finally:
        if ended:
            ended[0][0].call_soon_threadsafe(ended[0][1].set)
        thread.join(60)
        assert not thread.is_alive()


def without_proofs() -> dict[str, Any]:
    """The description, for a tool that would send proofs of its own making: each call gets one that holds."""
    description = describe()
    for path in description["paths"].values():
        for operation in path.values():
            operation["security"] = []
    return description


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("endpoint", "mode"),
    [
        pytest.param(one, mode, id=f"{mode.value} {one.method} {one.path}")
        for mode in (Mode.POSITIVE, Mode.NEGATIVE)
        for one in ENDPOINTS
        if "text/event-stream" not in one.answers.values()  # which has no end
        if mode is Mode.POSITIVE or one.body is not None or one.query
    ],
)
def test_anything_is_answered_as_described(endpoint: Endpoint, mode: Mode, running: Running) -> None:
    schema = schemathesis.openapi.from_dict(without_proofs())
    operation = schema[endpoint.path][endpoint.method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def answered(case: Any) -> None:
        if case.query:
            case.query = {name: value for name, value in case.query.items() if name != "wait"}
        url = URL(running.url + case.formatted_path, encoded=True)
        case.headers.clear()
        response = case.call(running.url, headers=running.proof(endpoint.method, str(url)))
        case.validate_response(response, checks=CHECKS)

    answered()
