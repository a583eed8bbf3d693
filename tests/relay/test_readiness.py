"""What an orchestrator is told: the relay lives, and whether it can do its work."""

import asyncio
import logging
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from companion_push.push.channel import Fcm, Kind, PushOutcome
from companion_push.relay import operations, readiness
from companion_push.relay.app import RELAY
from companion_push.relay.operations import Answer, Call
from tests.push.recording import RecordingChannel
from tests.relay.household import Relay, Reply, running_relay
from tests.relay.stores import of_files

SOON = 60.0  # seconds: a safety net


async def ready(relay: Relay) -> Reply:
    async with relay.session.get(relay.url + "/readyz") as response:
        return Reply(response.status, await response.json(content_type=None), response.headers)


async def test_a_relay_whose_store_answers_is_ready(relay: Relay) -> None:
    reply = await ready(relay)
    assert (reply.status, reply.body) == (200, {"status": "ready", "channels": {}})
    assert reply.headers["Cache-Control"] == "no-store"


async def test_a_relay_that_drains_lives_and_is_not_ready(relay: Relay) -> None:
    relay.held_requests.close()
    reply = await ready(relay)
    assert (reply.status, reply.problem, reply.headers["Retry-After"]) == (503, "draining", "1")
    assert (await relay.session.get(relay.url + "/livez")).status == 200


@of_files
async def test_a_relay_whose_store_is_locked_is_not_ready_until_it_is_free(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readiness, "READ_SECONDS", 0.05)
    monkeypatch.setattr(readiness, "SHARED_SECONDS", 0.0)
    other = sqlite3.connect(relay.store, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for _ in range(3):
        reply = await ready(relay)
        assert (reply.status, reply.problem, reply.headers["Retry-After"]) == (503, "store-unavailable", "2")
    assert (await relay.session.get(relay.url + "/livez")).status == 200
    other.execute("ROLLBACK")
    other.close()
    async with asyncio.timeout(SOON):
        while (await ready(relay)).status != 200:
            pass
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        "not ready, the store does not answer: it takes longer than a read should",
        "ready again: the store answers",
    ]


@of_files
async def test_a_relay_whose_disk_hangs_is_not_ready_until_it_goes_on(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "READ_SECONDS", 0.05)
    monkeypatch.setattr(readiness, "SHARED_SECONDS", 0.0)
    goes_on = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _descriptor: goes_on.wait())
    adding = asyncio.ensure_future(relay.app[RELAY].new_account("alice", valid=60))
    try:
        reply = await ready(relay)
        assert (reply.status, reply.problem) == (503, "store-unavailable")
        assert (await relay.session.get(relay.url + "/livez")).status == 200
    finally:
        goes_on.set()
    assert await adding is not None
    async with asyncio.timeout(SOON):
        while (await ready(relay)).status != 200:
            pass


@of_files
async def test_a_relay_whose_store_was_taken_away_is_not_ready(relay: Relay, tmp_path: Path) -> None:
    relay.store.rename(tmp_path / "elsewhere")
    reply = await ready(relay)
    assert (reply.status, reply.problem) == (503, "store-unavailable")
    assert str(tmp_path) not in str(reply.body)


@pytest.mark.threat("T13")
async def test_strangers_who_ask_at_once_cost_one_read_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "SHARED_SECONDS", 3600.0)
    reads = []
    read_store = operations.read_store

    def counted(call: Call) -> Answer:
        reads.append(call.now)
        return read_store(call)

    monkeypatch.setattr(operations, "read_store", counted)
    async with running_relay(tmp_path / "s") as relay:
        replies = await asyncio.gather(*(ready(relay) for _ in range(50)))
        replies.append(await ready(relay))
        assert {reply.status for reply in replies} == {200}
    assert len(reads) == 1


async def test_a_push_service_that_fails_is_shown_and_makes_no_relay_unready(tmp_path: Path) -> None:
    fcm = RecordingChannel(Kind.FCM)
    async with running_relay(tmp_path / "s", channels=[fcm]) as relay:
        assert (await ready(relay)).body == {"status": "ready", "channels": {"fcm": "ok"}}
        lane = relay.app[RELAY]._notifier._dispatcher._lanes[Kind.FCM]
        circuit = lane._circuit(Fcm(app="app.example", token="t"))
        for number in range(10):
            circuit.note(PushOutcome.FAILED, b"%d" % number, asyncio.get_running_loop().time())
        reply = await ready(relay)
        assert (reply.status, reply.body) == (200, {"status": "ready", "channels": {"fcm": "failing"}})
