"""The log as JSON: each line of stderr is a record, and names nobody."""

import json
from pathlib import Path

import aiohttp
import pytest

from tests.programs import run, running
from tests.relay.household import Caller, Clock, fresh_id
from tests.relay.test_command import found
from tests.trust.people import companion, device


@pytest.mark.threat("T11")
async def test_every_line_of_a_relay_is_a_record_without_names(tmp_path: Path) -> None:
    store = tmp_path / "s"
    words = (
        "relay",
        "--listen",
        "127.0.0.1:0",
        "--store",
        store,
        "--log-format",
        "json",
        "--log-level",
        "debug",
    )
    async with running("companion_push", *words) as program, aiohttp.ClientSession() as session:
        url = await program.line()
        anna, frame = (Caller(one, session, url, Clock()) for one in (companion(), device()))
        await found(store, anna, frame.person)
        name = fresh_id()
        assert (await frame.submit(anna, name=name)).status == 201
        assert (await frame.get(f"/v1/requests/{fresh_id()}")).status == 404
        assert await program.end() == 0
        text = await program.stderr()
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        assert (
            {"time", "level", "logger", "message"}
            <= set(record)
            <= {"time", "level", "logger", "message", "fields"}
        )
    assert "no certificate: plain HTTP, on loopback only" in [record["message"] for record in records]
    fields = [record["fields"] for record in records if "fields" in record]
    outcomes = [(one["endpoint"], one["status"], one["outcome"]) for one in fields]
    assert ("PUT /v1/requests/{id}", 201, "ok") in outcomes
    assert ("GET /v1/requests/{id}", 404, "not-found") in outcomes
    assert all(isinstance(one["milliseconds"], int) for one in fields)
    for secret in (name, anna.name, frame.name, anna.person.label, frame.person.label):
        assert secret not in text


@pytest.mark.parametrize("name", ["relay", "tunnel-service"])
async def test_a_failure_is_json_too(name: str) -> None:
    status, stdout, stderr = await run(
        "companion_push", name, "--log-format", "json", "--listen", "192.0.2.1:80"
    )
    (line,) = stderr.splitlines()
    assert (status, stdout, json.loads(line)["error"]) == (2, "", "UsageError")
