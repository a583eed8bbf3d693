"""Whatever is sent to whichever endpoint, by whomever: the answer is a 4xx problem or a success, never a 500."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from yarl import URL

from program_parts.base64url import base64url
from tests.relay.household import SEALED, Caller, Household, Relay, running_relay
from tests.trust.people import companion

ID: Final = base64url(bytes(16))
HASH: Final = base64url(bytes(32))

# words that get a body past the first checks
WORDS = st.sampled_from(
    [
        "device",
        "companion",
        "claimed",
        "declined",
        "failed",
        "cancelled",
        "completed",
        ID,
        HASH,
        SEALED,
        MAC := HASH,
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | WORDS
MEMBERS = st.sampled_from(
    [
        "code",
        "ring",
        "kind",
        "expires_at",
        "account",
        "ticket",
        "body",
        "signature",
        "mac",
        "declined",
        "expires_in",
        "envelopes",
        "to",
        "sealed",
        "event",
        "reason",
        "word",
    ]
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(MEMBERS | st.text(), inner, max_size=5),
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "code": WORDS,
        "ring": WORDS,
        "kind": WORDS,
        "expires_at": st.integers(),
        "account": st.text() | WORDS,
        "ticket": WORDS,
        "body": WORDS,
        "signature": WORDS,
        "mac": WORDS,
        "declined": st.booleans(),
        "expires_in": st.integers(),
        "envelopes": st.lists(st.fixed_dictionaries({"to": WORDS, "sealed": WORDS}), max_size=3),
        "event": WORDS,
        "word": WORDS,
        "reason": WORDS | st.none(),
    },
)
BODIES = (ANY_JSON | NEARLY).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100)


NO_JSON = (
    "/v1/inbox/stream",
    "/problems",
    "/problems/{slug}",
)  # a stream has no end, pages are HTML: they have own tests


def filled(route: web.AbstractRoute) -> list[tuple[str, str]]:
    """Give a route's method with paths that it matches."""
    assert route.resource is not None
    path = route.resource.canonical.replace("{device}", HASH)
    return [(route.method, path.replace("{id}", value)) for value in (ID, HASH) if path not in NO_JSON]


def reads_a_body(method: str, path: str) -> bool:
    return method not in ("GET", "DELETE") and path != "/v1/words/call"


class Running:
    """A relay that outlives one example: an event loop of its own, in this thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, relay: Relay, home: Household) -> None:
        self.loop = loop
        self.endpoints = sorted({one for route in relay.app.router.routes() for one in filled(route)})
        stranger = relay.caller(companion("stranger"))
        self.callers = [home.companions[0], home.devices[0], stranger]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store: Path = tmp_path_factory.mktemp("relay") / "relay.sqlite3"
    with asyncio.Runner() as runner:
        context = running_relay(store)
        relay = runner.run(context.__aenter__())
        home = runner.run(relay.household())
        yield Running(runner.get_loop(), relay, home)
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.threat("T12")
@given(caller=st.integers(0, 2), data=st.data(), body=BODIES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_to_any_endpoint_is_answered_properly(
    running: Running, caller: int, data: st.DataObject, body: bytes
) -> None:
    method, path = data.draw(st.sampled_from(running.endpoints))
    reply = running.loop.run_until_complete(running.callers[caller].call(method, path, body))
    assert_proper(reply.status, reply.problem)
    if reply.status < 300 and reads_a_body(method, path):
        assert isinstance(json.loads(body), dict)


SEGMENTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from([ID, HASH])


@pytest.mark.threat("T12")
@given(
    caller=st.integers(0, 2),
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "OPTIONS"]),
    resource=st.sampled_from(
        ["requests", "invitations", "introductions", "inbox", "ring", "accounts", "else"]
    ),
    segments=st.lists(SEGMENTS, max_size=4),
    query=st.dictionaries(
        st.sampled_from(["wait", "cursor", "version", "after"]) | st.text(), st.text(), max_size=3
    ),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_path_and_query_are_answered_properly(  # noqa: PLR0917  what varies
    running: Running, caller: int, method: str, resource: str, segments: list[str], query: dict[str, str]
) -> None:
    path = "/".join(["/v1", resource, *segments])
    assume(path not in NO_JSON)
    reply = running.loop.run_until_complete(_ask(running.callers[caller], method, path, query))
    assert_proper(*reply)


async def _ask(caller: Caller, method: str, path: str, query: dict[str, str]) -> tuple[int, str | None]:
    url = (
        URL(caller.url).with_path(path).with_query({k: v for k, v in query.items() if k != "wait" or v > "9"})
    )
    proof = caller.proof(method, url.raw_path)
    async with caller.session.request(method, url, headers={"DPoP": proof}) as response:
        body: Any = await response.json(content_type=None)
        return response.status, body.get("type") if response.status >= 400 else None


def assert_proper(status: int, problem: str | None) -> None:
    assert 200 <= status < 300 or 400 <= status < 500
    assert status < 300 or problem is not None or status == 405
