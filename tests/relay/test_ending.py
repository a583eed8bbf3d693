"""SIGTERM answers every call that the relay holds, and on which event loop the programs run."""

import asyncio
import re
from pathlib import Path

import aiohttp
import pytest

from tests.programs import running
from tests.relay.household import Caller, Clock, Reply, fresh_id
from tests.relay.test_command import found
from tests.trust.people import companion, device

SOON = 60.0  # seconds: a safety net


async def streamed(caller: Caller) -> str:
    """All that a stream sends until the relay ends it."""
    path = "/v1/inbox/stream"
    headers = {"DPoP": caller.proof("GET", path)}
    async with caller.session.get(caller.url + path, headers=headers) as response:
        assert response.status == 200
        return await response.text()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_every_held_call_is_answered_and_every_stream_ended_when_the_relay_is(
    loop: str, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    words = ("relay", "--listen", "127.0.0.1:0", "--store", store, "--metrics", "127.0.0.1:0")
    more = ("--event-loop", loop, "--log-level", "info")
    async with (
        running("companion_push", *words, *more) as program,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.timeout(SOON),
    ):
        url = await program.line()
        await program.heard(rf"event loop: {loop}\n")
        metrics = (await program.heard(r"metrics at (\S+)"))[1]
        anna, frame = (Caller(one, session, url, Clock()) for one in (companion(), device()))
        await found(store, anna, frame.person)
        name = fresh_id()
        assert (await frame.submit(anna, name=name)).status == 201
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        version = (await frame.get(f"/v1/requests/{name}")).body["version"]
        calls: list[asyncio.Task[Reply]] = [
            *(asyncio.create_task(anna.get(f"/v1/inbox?cursor={cursor}&wait=25")) for _ in range(3)),
            *(
                asyncio.create_task(frame.get(f"/v1/requests/{name}?version={version}&wait=25"))
                for _ in range(4)
            ),
        ]
        stream = asyncio.create_task(streamed(anna))
        held = None
        while held != "8.0":
            async with session.get(metrics) as response:
                found_held = re.search(
                    r"^companion_push_relay_held_calls (\S+)$", await response.text(), re.MULTILINE
                )
                held = found_held[1] if found_held else None
        assert not any(call.done() for call in (*calls, stream))
        assert await program.end() == 0
        answers = await asyncio.gather(*calls)
        assert [answer.status for answer in answers] == [200] * 7
        assert {answer.body["cursor"] for answer in answers[:3]} == {cursor}
        assert {answer.body["version"] for answer in answers[3:]} == {version}
        events = re.findall(r"^event: (\w+)$", await stream, re.MULTILINE)
        assert events == ["inbox", "end"]
        assert '"reason":"draining"' in await stream


@pytest.mark.parametrize("name", ["relay", "tunnel-service"])
async def test_uvloop_runs_the_programs_where_it_is_installed(name: str, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "s") if name == "relay" else ()
    words = (name, "--listen", "127.0.0.1:0", "--log-level", "info", *store)
    async with running("companion_push", *words) as program:
        await program.line()
        await program.heard(r"event loop: uvloop\n")
        assert await program.end() == 0
