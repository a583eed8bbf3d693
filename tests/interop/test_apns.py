"""Our connection to APNs, with the HTTP/2 of Node.js (nghttp2) at its other end."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from certificates import Certificate
from cryptography.hazmat.primitives.asymmetric import ec

from companion_push.push.apns import ApnsChannel
from companion_push.push.channel import Apns, Delivery, Purpose, Push, PushOutcome
from companion_push.push.provider_token import ProviderKey
from tests.push.google import PATIENCE

FOLDER = Path(__file__).parent
ADDRESS = Apns(topic="com.example.companion", token="ab" * 32)
SENT = Delivery(outcome=PushOutcome.SENT)


class Node:
    """A server in a process of Node.js, which takes four requests at a time, and 100 bytes of each before it has read them."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        assert process.stdout is not None
        self._lines = process.stdout
        self.url = f"https://127.0.0.1:{port}"

    async def pushes(self, number: int) -> list[dict[str, Any]]:
        """The next pushes that it has got."""
        return [json.loads(await self._lines.readline()) for _ in range(number)]


@pytest_asyncio.fixture
async def node(loopback_certificate: Certificate) -> AsyncIterator[Node]:
    pipe = asyncio.subprocess.PIPE
    words = ("node", FOLDER / "apns.mjs", loopback_certificate.cert, loopback_certificate.key)
    process = await asyncio.create_subprocess_exec(*map(str, words), stdin=pipe, stdout=pipe)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Node(process, int(await process.stdout.readline()))
        process.stdin.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest_asyncio.fixture
async def channel(node: Node, loopback_certificate: Certificate) -> AsyncIterator[ApnsChannel]:
    key = ProviderKey(team="A1B2C3D4E5", key_id="2X9R4HXF34", private=ec.generate_private_key(ec.SECP256R1()))
    channel = ApnsChannel(
        {ADDRESS.topic: key},
        production=node.url,
        tls=loopback_certificate.client_context(),
        seconds=PATIENCE,
        ping_seconds=PATIENCE,
    )
    yield channel
    await channel.close()


def push(purpose: Purpose, handle: str = "a") -> Push:
    return Push(purpose=purpose, handle=handle, account=b"", expires_at=time.time() + 300)


async def test_pushes_get_through_its_windows_and_its_limit_of_streams(
    node: Node, channel: ApnsChannel
) -> None:
    sending = [channel.send(ADDRESS, push(Purpose.TEST, handle=f"{number}")) for number in range(20)]
    assert await asyncio.gather(*sending) == [SENT] * 20
    got = await node.pushes(20)
    assert sorted(int(each["body"]["handle"]) for each in got) == list(range(20))
    assert len({each["connection"] for each in got}) == 1
    assert {each["headers"][":path"] for each in got} == {f"/3/device/{'ab' * 32}"}


async def test_an_answer_after_goaway_is_read_and_the_next_push_has_another_connection(
    node: Node, channel: ApnsChannel
) -> None:
    assert await channel.send(ADDRESS, push(Purpose.RING)) == Delivery(
        outcome=PushOutcome.GONE, since=1_700_000_000.0, detail="410 Unregistered"
    )
    assert await channel.send(ADDRESS, push(Purpose.TEST)) == SENT
    assert len({each["connection"] for each in await node.pushes(2)}) == 2


async def test_a_refused_stream_is_sent_again_once(node: Node, channel: ApnsChannel) -> None:
    assert await channel.send(ADDRESS, push(Purpose.WORD)) == Delivery(
        outcome=PushOutcome.FAILED, detail="twice: the stream was refused"
    )
    first, second = await node.pushes(2)
    assert first["headers"]["apns-id"] == second["headers"]["apns-id"]
    assert await channel.send(ADDRESS, push(Purpose.TEST)) == SENT


async def test_a_push_that_is_cancelled_leaves_the_connection_as_it_was(
    node: Node, channel: ApnsChannel
) -> None:
    assert await channel.send(ADDRESS, push(Purpose.TEST)) == SENT
    cancelled = asyncio.create_task(channel.send(ADDRESS, push(Purpose.TEST)))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await channel.send(ADDRESS, push(Purpose.TEST)) == SENT
    assert (await node.pushes(1))[0]["connection"] == (await node.pushes(1))[0]["connection"]
