"""The relay's subscriptions, with graphql-ws of Node.js at the other end."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from companion_push.relay.graphql import subscriptions
from headless_passkey.net.proof import make_proof
from tests.relay.graphql_calls import submit
from tests.relay.household import PROBLEM, Caller, running_relay

FOLDER = Path(__file__).parent
PATIENCE = 60.0  # seconds: a safety net
FOLLOW = (
    "subscription Follow($cursor: String) { inbox(cursor: $cursor) { cursor requests { id state sealed } } }"
)


class Client:
    """The client in a process of Node.js, which makes its proofs with the key of `caller`."""

    def __init__(self, process: asyncio.subprocess.Process, caller: Caller) -> None:
        self._process, self._caller = process, caller
        self.nonces: list[str | None] = []  # with which it has asked for proofs

    async def subscribe(self, document: str, **variables: object) -> None:
        await self._say({"subscribe": document, "variables": variables})

    async def event(self, kind: str) -> Any:
        """The next event of that kind, or the first that says that it cannot come."""
        assert self._process.stdout is not None
        while True:
            event: dict[str, Any] = json.loads(await self._process.stdout.readline())
            if "proof" in event:
                self.nonces.append(event["proof"])
                await self._prove(event["proof"])
            if kind in event:
                return event[kind]
            assert "error" not in event, event

    async def inbox(self) -> dict[str, Any]:
        return dict((await self.event("next"))["data"]["inbox"])

    async def _prove(self, nonce: str | None) -> None:
        caller = self._caller
        url, now = f"{caller.url}/graphql", caller.clock()
        await self._say({"proof": make_proof(caller.person.key, method="GET", url=url, now=now, nonce=nonce)})

    async def _say(self, line: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        await self._process.stdin.drain()


@contextlib.asynccontextmanager
async def client(caller: Caller) -> AsyncIterator[Client]:
    """The client, until the end of its input, after which it has to end by itself."""
    installed = FOLDER / "node_modules" / "graphql-ws"
    assert installed.exists(), "graphql-ws is not here; please run: scripts/install-test-packages"
    process = await asyncio.create_subprocess_exec(
        "node", FOLDER / "graphql.mjs", f"{caller.url}/graphql".replace("http", "ws", 1),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    try:
        async with asyncio.timeout(PATIENCE):
            yield Client(process, caller)
            process.stdin.close()
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_it_comes_again_with_the_nonce_and_is_sent_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "INTERVAL", 0.05)
    async with running_relay(tmp_path / "r", graphql=True) as relay:
        home = await relay.household()
        (frame,), (phone, _) = home.devices, home.companions
        async with client(phone) as node:
            await node.subscribe(FOLLOW)
            assert await node.event("closed") == [4403, "use-dpop-nonce"]
            assert (await node.inbox())["requests"] == []
            first, *then = (
                node.nonces
            )  # more than two where the client was so slow that it was taken for idle
            assert first is None
            assert then
            assert None not in then
            name = await submit(frame, phone)
            (item,) = (await node.inbox())["requests"]
            assert (item["id"], item["state"]) == (name, "DELIVERED")
            assert await node.event("ping") is True
            assert (await frame.tell(name, "cancelled")).status == 200
            assert (await node.inbox())["requests"] == []


async def test_it_comes_back_with_a_new_proof_when_the_relay_ends_the_connection(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True, stream_life=1) as relay:
        (phone, _) = (await relay.household()).companions
        async with client(phone) as node:
            await node.subscribe(FOLLOW)
            await node.inbox()
            assert await node.event("closed") == [1001, "renew"]
            await node.inbox()
            assert len(node.nonces) == 3


async def test_it_is_told_why_a_document_is_refused_and_that_it_is_no_member(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True) as relay:
        home = await relay.household()
        (frame,), (phone, other) = home.devices, home.companions
        async with client(other) as node:
            await node.subscribe("subscription { inbox { nothing } }")
            (error,) = await node.event("error")
            assert error["extensions"]["type"] == f"{PROBLEM}invalid-request"
            await node.subscribe(FOLLOW)
            await node.inbox()
            await home.append(phone.person, frame.person)
            (error,) = await node.event("error")
            assert error["extensions"]["type"] == f"{PROBLEM}not-found"
