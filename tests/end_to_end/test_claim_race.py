"""Two companions approve the same request at the same moment: exactly one may open it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from programs import Program
from world import World

from companion_push.companion.inbox import CheckedRequest, Inbox
from companion_push.companion.keys import CompanionState
from companion_push.companion.openers import Opening
from companion_push.companion.relay_client import CompanionRelay
from headless_passkey.account.relay import RelayClient
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.net.proven_http import ProvenHttp, open_session
from headless_passkey.request import DeviceEvent
from headless_passkey.trust.envelope import Announcement, new_request_id, seal
from tests.end_to_end.household import Home, ends, trusted
from tests.end_to_end.terminal import Terminal

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.threat("T5")]

APPROVE: Final = "Approve? y or n:"
RACES: Final = 200
RACES_OF_PROGRAMS: Final = 5


@pytest_asyncio.fixture(loop_scope="module")
async def couple(world: World, tidy: None) -> Home:
    """An account with two companions."""
    return await Home.make(world, companions=2)


class CountingOpener:
    """Opens nothing, and remembers which URLs it was handed."""

    handed_over = "counted"
    phone_checks = True
    stays = False

    def __init__(self) -> None:
        self.urls: list[str] = []

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        self.urls.append(opening.url)
        yield


@dataclass
class Racer:
    """A companion in this process: the programs' own inbox, its own state and connection."""

    inbox: Inbox
    opener: CountingOpener

    async def arrived(self) -> CheckedRequest:
        """The one request, checked."""
        while not self.inbox.pending:
            await self.inbox.poll(wait=5)
        (request,) = self.inbox.pending
        return request


async def submit(home: Home, relay: RelayClient) -> tuple[bytes, dict[str, str]]:
    """A request as the device makes it, an envelope with a URL of its own for each companion."""
    joined = home.enrolment(home.hub)
    ring, request_id = joined.chain.head, new_request_id()
    sealed, urls = {}, {}
    for companion in ring.companions:
        urls[companion.name] = QrTransaction.create(
            hint=RequestKind.GET_ASSERTION, time=int(time.time())
        ).url.encode()
        announcement = Announcement.address(
            companion,
            ring=ring,
            device=joined.name,
            request_id=request_id,
            confirmed=joined.confirmed,
            now=time.time(),
            lifetime=60,
            kind=RequestKind.GET_ASSERTION,
            url=urls[companion.name],
            rp_id="localhost",
        )
        assert companion.hpke_key is not None
        sealed[companion.name] = seal(announcement, joined.key, companion.hpke_key)
    await relay.submit(request_id, sealed, expires_in=60)
    return request_id, urls


async def test_of_two_companions_exactly_one_opens_two_hundred_times(world: World, couple: Home) -> None:
    joined = couple.enrolment(couple.hub)
    won: list[str] = []
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(open_session(trusted(world)))
        device = RelayClient(ProvenHttp(session, world.relay, joined.key))
        racers: dict[str, Racer] = {}
        for who in couple.companions:
            me = couple.identity(who)
            relay = await stack.enter_async_context(
                CompanionRelay.connect(world.relay, me.keys.signing, tls=trusted(world))
            )
            racers[me.keys.name] = Racer(Inbox(CompanionState(world.state(who)), relay), CountingOpener())
        for race in range(RACES):
            request_id, urls = await submit(couple, device)
            requests = await asyncio.gather(*(racer.arrived() for racer in racers.values()))
            starts = list(zip(racers.values(), requests, strict=True))
            if race % 2:
                starts.reverse()
            results = await asyncio.gather(
                *(racer.inbox.approve(request, racer.opener) for racer, request in starts)
            )
            assert sorted(results) == [False, True], f"race {race}"
            opened = {name: racer.opener.urls[-1:] for name, racer in racers.items()}
            status = await device.status(request_id)
            assert status.claim is not None
            assert opened[status.claim.by] == [urls[status.claim.by]]
            won.append(status.claim.by)
            assert sum(len(racer.opener.urls) for racer in racers.values()) == race + 1
            await device.report(request_id, DeviceEvent.COMPLETED)
    assert set(won) == set(racers), "each wins sometimes, or it was no race"


async def test_of_two_companion_programs_exactly_one_hands_the_url_over(
    world: World, couple: Home, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    record.write_text('#!/bin/sh\ncat >> "$1"\n')
    record.chmod(0o700)
    files = [tmp_path / "opened by first", tmp_path / "opened by second"]
    async with Terminal.open() as first, Terminal.open() as second:
        companions = [
            await world.companion(
                who, "--consent", "ask", "--opener", "command",
                "--opener-command", f"{record} '{file}'", in_front=terminal.in_front,
            )
            for who, file, terminal in zip(couple.companions, files, (first, second), strict=True)
        ]  # fmt: skip
        for race in range(RACES_OF_PROGRAMS):
            device = await world.device(couple.hub, "sign-in")
            await first.until(APPROVE)
            await second.until(APPROVE)
            for terminal in (first, second) if race % 2 else (second, first):
                terminal.type("y\n")
            ended = [await each.stage("finished", "claim-lost", "gone") for each in companions]
            assert sorted(each["stage"] == "finished" for each in ended) == [False, True]
            assert await end(device) == 130
    assert len(set(opened(files))) == len(opened(files)) == RACES_OF_PROGRAMS


async def end(device: Program) -> int:
    device.process.terminate()
    return await ends(device)


def opened(files: list[Path]) -> list[str]:
    """The FIDO URLs that were handed over, by whomever."""
    return [line for file in files if file.exists() for line in file.read_text().splitlines()]
