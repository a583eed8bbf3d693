"""The relay mounted in a host's service: `examples/companion_backend.py`, run as a user runs it."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from companion_push.relay.accounts import add_account
from companion_push.relay.database import open_database
from program_parts.base64url import base64url
from tests.ports import reserved_port
from tests.programs import ROOT
from tests.relay.household import Caller, Clock, all_held
from tests.trust.people import companion, found


@asynccontextmanager
async def backend(store: Path) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    port = reserved_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "examples/companion_backend.py", "--port", str(port), "--store", str(store),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert b"Running on" in await process.stdout.readline()
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_host_and_relay_answer_side_by_side(tmp_path: Path) -> None:
    store = tmp_path / "backend.sqlite3"
    async with backend(store) as (url, process), aiohttp.ClientSession() as session:
        async with session.get(url + "/") as response:
            assert "host's own page" in await response.text()
        async with session.get(url + "/push/livez") as response:
            assert response.status == 200
        async with open_database(store) as database:
            now = time.time()
            added = await database.transact(
                lambda db: add_account(db, name="alice", now=now, expires_at=int(now) + 60)
            )
        assert added is not None
        anna = Caller(companion(), session, url + "/push", Clock())
        ring = found(anna.person, account=added[0], now=now)
        body = {"code": base64url(added[1]), "ring": base64url(ring.document)}
        assert (await anna.post("/v1/accounts", body)).status == 201
        inbox = await anna.get("/v1/inbox")
        assert inbox.body["requests"] == []
        assert (await anna.get("/v1/nothing")).problem == "not-found"

        # a proof for the address without the prefix is a proof for something else
        beside = Caller(anna.person, session, url, Clock(), kept=anna.kept)
        proof = beside.proof("GET", "/v1/inbox")
        assert (await anna.call("GET", "/v1/inbox", proofs=[proof])).problem == "proof-invalid"

        # the host's end is the relay's: who is held is answered
        held = await all_held(anna, inbox.body["cursor"], wait=25)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert [reply.status for reply in await asyncio.gather(*held)] == [200] * len(held)
            await process.wait()
