"""The relay's metrics count what happened, and name nobody."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest

import http_serving.metrics
from companion_push.push.channel import Delivery, Kind, PushOutcome
from companion_push.relay import operations
from companion_push.relay.app import RELAY, make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.metrics import MILESTONES
from companion_push.relay.problems import Slug
from program_parts.base64url import base64url
from tests.programs import running
from tests.push.recording import RecordingChannel
from tests.relay.household import SEALED, Household, Relay, fresh_id, rates, running_relay
from tests.relay.test_mutes import muted_by
from tests.relay.test_notifying import House, registers, token
from tests.test_architecture import loaded_by

SOON = 60.0  # seconds: a safety net


@asynccontextmanager
async def measured(path: Path, **settings: object) -> AsyncIterator[tuple[Relay, CollectorRegistry]]:
    """A relay, and the registry with its metrics."""
    registry = CollectorRegistry()
    async with running_relay(path, registry=registry, **settings) as relay:  # type: ignore[arg-type]
        yield relay, registry


def counted(registry: CollectorRegistry) -> dict[str, float]:
    """The requests by milestone, without those that are 0."""
    values = {
        milestone: registry.get_sample_value(
            "companion_push_relay_requests_total", {"milestone": str(milestone)}
        )
        for milestone in MILESTONES
    }
    return {str(milestone): value for milestone, value in values.items() if value}


async def a_whole_life(home: Household) -> str:
    anna, _ = home.companions
    (frame,) = home.devices
    name = fresh_id()
    assert (await frame.submit(*home.companions, name=name)).status == 201
    await anna.inbox()
    for event in ("claimed", "opened"):
        assert (await anna.act(frame, name, event)).status == 200
    assert (await frame.tell(name, "completed")).status == 200
    return name


async def test_each_milestone_of_a_request_is_counted_once(tmp_path: Path) -> None:
    async with measured(tmp_path / "s") as (relay, registry):
        home = await relay.household()
        assert counted(registry) == {}
        name = await a_whole_life(home)
        once = {"received": 1, "stored": 1, "delivered": 1, "claimed": 1, "opened": 1, "completed": 1}
        assert counted(registry) == once
        anna, bert = home.companions
        (frame,) = home.devices
        # nothing of this changes a request
        await anna.inbox()
        assert (await frame.tell(name, "completed")).status == 200
        assert (await bert.act(frame, name, "declined")).status == 409
        assert counted(registry) == once


@pytest.mark.parametrize(
    ("end", "milestone"),
    [("cancelled", "cancelled"), ("failed", "failed"), ("declined", "declined"), ("another", "superseded")],
)
async def test_each_end_of_a_request_is_a_milestone(tmp_path: Path, end: str, milestone: str) -> None:
    async with measured(tmp_path / "s") as (relay, registry):
        home = await relay.household()
        anna, _ = home.companions
        (frame,) = home.devices
        name = fresh_id()
        await frame.submit(anna, name=name)
        if end == "declined":
            await anna.act(frame, name, end)
        elif end == "another":
            await frame.submit(anna)
        else:
            await frame.tell(name, end)
        stored = 2 if end == "another" else 1
        assert counted(registry) == {"received": stored, "stored": stored, milestone: 1}


async def test_what_time_alone_does_is_counted_when_it_is_swept(tmp_path: Path) -> None:
    async with measured(tmp_path / "s") as (relay, registry):
        home = await relay.household()
        anna, _ = home.companions
        (frame,) = home.devices
        name = fresh_id()
        await frame.submit(anna, name=name)
        await anna.act(frame, name, "claimed")
        relay.clock.ahead += 100  # longer than a lease
        await relay.app[RELAY].run("", operations.sweep(None))
        assert counted(registry) == {"received": 1, "stored": 1, "claimed": 1, "released": 1}
        relay.clock.ahead += 500
        await relay.app[RELAY].run("", operations.sweep(None))
        assert counted(registry) == {"received": 1, "stored": 1, "claimed": 1, "released": 1, "expired": 1}


@pytest.mark.parametrize("way", ["not me", "begin_mute"])
async def test_mutes_are_counted_when_they_begin_and_end_and_standing_ones_when_it_is_swept(
    tmp_path: Path, way: str
) -> None:
    async with measured(tmp_path / "s") as (relay, registry):
        home = await relay.household(devices=2)
        (anna, bert), (frame, other) = home.companions, home.devices

        async def figures() -> tuple[float | None, float | None, float | None]:
            await relay.app[RELAY].run("", operations.sweep(None))
            begun, ended = (
                registry.get_sample_value("companion_push_relay_mutes_total", {"event": event})
                for event in ("begun", "ended")
            )
            return begun, ended, registry.get_sample_value("companion_push_relay_muted_devices")

        assert await figures() == (0, 0, 0)
        if way == "not me":
            await muted_by(anna, frame, bert)
        else:
            assert (await anna.put(f"/v1/mutes/{frame.name}", {})).status == 201
        assert (await bert.put(f"/v1/mutes/{frame.name}", {})).status == 200  # it is muted already
        assert await figures() == (1, 0, 1)
        await muted_by(bert, other)
        assert await figures() == (2, 0, 2)
        for _ in range(2):
            assert (await bert.call("DELETE", f"/v1/mutes/{frame.name}")).status == 200
        assert await figures() == (2, 1, 1)
        await home.append(
            anna.person, bert.person, frame.person
        )  # the other one leaves, and its mute with it
        assert await figures() == (2, 1, 0)


async def test_a_submission_that_is_refused_is_received_and_not_stored(tmp_path: Path) -> None:
    async with measured(tmp_path / "s", quota=rates(1, 60)) as (relay, registry):
        home = await relay.household()
        (frame,) = home.devices
        for _ in range(3):
            await frame.submit(home.companions[0])
        assert counted(registry) == {"received": 3, "stored": 1}
        limit = {"limit": "requests-of-device"}
        assert registry.get_sample_value("companion_push_relay_refused_by_limit_total", limit) == 2


@pytest.mark.parametrize(
    "path", ["/v1/inbox?cursor={cursor}&wait=25", "/v1/inbox/stream"], ids=["held call", "stream"]
)
async def test_who_hangs_up_is_logged_and_counted(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with measured(tmp_path / "s") as (relay, registry), asyncio.timeout(SOON):
        anna, _ = (await relay.household()).companions
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        target = path.format(cursor=cursor)
        _, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
        proof = anna.proof("GET", target.partition("?")[0])
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nDPoP: {proof}\r\n\r\n".encode())
        while not len(relay.held_requests):  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)
        writer.transport.abort()
        while len(relay.held_requests):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        endpoint = "GET " + target.partition("?")[0]
        labels = {"endpoint": endpoint, "status": "499", "problem": "none"}
        assert registry.get_sample_value("companion_push_relay_answers_total", labels) == 1
        (line,) = [one.getMessage() for one in caplog.records if f"{endpoint}: 499" in one.getMessage()]
        assert re.fullmatch(rf"{endpoint}: 499 hung-up in \d+ ms", line)


async def test_answers_are_counted_by_endpoint_status_and_problem(tmp_path: Path) -> None:
    async with measured(tmp_path / "s") as (relay, registry):
        home = await relay.household()
        (frame,) = home.devices
        await frame.submit(home.companions[0])
        await frame.get(f"/v1/requests/{fresh_id()}")

        def value(endpoint: str, status: int, problem: str) -> float | None:
            labels = {"endpoint": endpoint, "status": str(status), "problem": problem}
            return registry.get_sample_value("companion_push_relay_answers_total", labels)

        assert value("PUT /v1/requests/{id}", 201, "none") == 1
        assert value("GET /v1/requests/{id}", 404, "not-found") == 1
        took = {"endpoint": "PUT /v1/requests/{id}"}
        assert registry.get_sample_value("companion_push_relay_answer_seconds_count", took) == 1


async def test_calls_that_wait_are_seen_while_they_do_and_their_time_is_not_counted(tmp_path: Path) -> None:
    async with measured(tmp_path / "s") as (relay, registry):
        home = await relay.household()
        anna, _ = home.companions
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        waiting = asyncio.ensure_future(anna.get(f"/v1/inbox?cursor={cursor}&wait=25"))
        async with asyncio.timeout(SOON):
            while registry.get_sample_value("companion_push_relay_held_calls") != 1:
                await anna.get("/v1/ring")
        await home.devices[0].submit(anna)
        await waiting
        assert registry.get_sample_value("companion_push_relay_held_calls") == 0
        took = {"endpoint": "GET /v1/inbox"}
        assert registry.get_sample_value("companion_push_relay_answer_seconds_count", took) == 1


async def test_store_proofs_and_event_loop_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_serving.metrics, "LAG_SECONDS", 0.001)
    async with measured(tmp_path / "s") as (relay, registry):
        home = await relay.household()
        before = registry.get_sample_value("companion_push_relay_store_seconds_count") or 0
        proofs = registry.get_sample_value("companion_push_relay_used_proofs") or 0
        await home.companions[0].inbox()
        assert registry.get_sample_value("companion_push_relay_store_seconds_count") == before + 1
        assert registry.get_sample_value("companion_push_relay_used_proofs") == proofs + 1
        assert registry.get_sample_value("companion_push_relay_transactions") == 0
        async with asyncio.timeout(SOON):
            while not registry.get_sample_value("companion_push_loop_lag_seconds_count"):
                await home.companions[0].inbox()


async def test_pushes_are_counted_by_channel_purpose_and_outcome(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    fcm = RecordingChannel(Kind.FCM, Delivery(outcome=PushOutcome.GONE))
    async with running_relay(tmp_path / "relay.sqlite3", registry=registry, channels=[fcm]) as relay:
        house = House(relay, fcm, await relay.household())
        for caller in house.home.companions:
            await registers(caller)
        name = fresh_id()
        await house.home.devices[0].submit(*house.home.companions, name=name)
        await house.settled(name)
        for outcome in ("sent", "gone"):
            labels = {"channel": "fcm", "purpose": "request", "outcome": outcome}
            async with asyncio.timeout(SOON):  # until it is on the disk
                while registry.get_sample_value("companion_push_relay_pushes_total", labels) != 1:  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.001)
        assert counted(registry) == {"received": 1, "stored": 1, "pushed": 1}
        assert registry.get_sample_value("companion_push_relay_push_services_failing") == 0
        text = generate_latest(registry).decode()
        assert not any(token(caller) in text for caller in house.home.companions)


LABEL = re.compile(r'(\w+)="([^"]*)"')


def labels(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        if not line.startswith("#"):
            yield from LABEL.findall(line)


@pytest.mark.threat("T11")
@pytest.mark.threat("T13")
async def test_no_metric_names_anybody_and_nobody_makes_series(tmp_path: Path) -> None:
    async with measured(tmp_path / "s", failures_per_address=600) as (relay, registry):
        home = await relay.household()
        name = await a_whole_life(home)
        anna = home.companions[0]
        for path in (
            "/v1/nothing",
            "/x",
            f"/v1/requests/{name}/other",
            f"/v1/invitations/{base64url(bytes(32))}",
        ):
            await anna.get(path)
        for method in ("PATCH", "BREW", "OPTIONS"):
            async with relay.session.request(method, relay.url + "/v1/ring"):
                pass
        text = generate_latest(registry).decode()
        routes = {
            f"{route.method} {route.resource.canonical}"
            for route in relay.app.router.routes()
            if route.resource is not None
        }
        methods = ("GET", "PUT", "POST", "DELETE", "other")
        paths = {"elsewhere", *(route.partition(" ")[2] for route in routes)}
        for label, value in labels(text):
            if label == "endpoint":
                method, _, path = value.partition(" ")
                assert method in methods
                assert path in paths
            if label == "problem":
                assert value == "none" or value in set(Slug)
        secrets = [name, home.account, SEALED, "127.0.0.1"]
        secrets += [member.name for member in (*home.companions, *home.devices)]
        secrets += [member.person.label for member in (*home.companions, *home.devices)]
        for secret in secrets:
            assert secret not in text


def test_an_embedder_gives_its_own_registry_and_one_relay_has_one(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    config = RelayConfig(public_url="https://relay.example", store=tmp_path / "s")
    make_app(config, registry=registry)
    assert registry.get_sample_value("companion_push_relay_held_calls") == 0
    with pytest.raises(ValueError, match="Duplicated"):
        make_app(config, registry=registry)


def test_without_a_registry_nothing_of_the_extra_is_loaded() -> None:
    assert "prometheus_client" not in loaded_by("companion_push.relay.command")
    assert "prometheus_client" not in loaded_by("companion_push.relay.app")


# The program


@pytest.mark.threat("T13")
async def test_the_program_shows_them_on_an_address_of_their_own_alone(tmp_path: Path) -> None:
    words = ("relay", "--listen", "127.0.0.1:0", "--store", tmp_path / "s", "--metrics", "127.0.0.1:0")
    async with running("companion_push", *words) as program, aiohttp.ClientSession() as session:
        url = await program.line()
        metrics = (await program.heard(r"metrics at (http://127\.0\.0\.1:\d+/metrics)"))[1]
        async with session.get(url + "/metrics") as response:
            assert response.status == 404
        async with session.get(metrics) as response:
            assert response.status == 200
            assert response.content_type == "text/plain"
            text = await response.text()
        assert "\ncompanion_push_connections 1.0\n" in text
        assert '\ncompanion_push_relay_requests_total{milestone="stored"} 0.0\n' in text
        assert "\nprocess_open_fds " in text
        async with session.get(
            metrics, headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        ) as response:
            assert response.content_type == "application/openmetrics-text"
            assert (await response.text()).endswith("# EOF\n")
        async with session.get(metrics.removesuffix("/metrics") + "/v1/ring") as response:
            assert response.status == 404
        assert await program.end() == 0
