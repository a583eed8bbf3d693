"""PostgreSQL fails over to a streaming replica that has not all commits, in the middle of a sign-in with real programs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from world import World

from headless_passkey.trust.ring import Role
from tests.end_to_end.household import Home, ends
from tests.relay.stores import PostgresServer
from tests.relay.test_postgres import own_server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def replicated(folder: Path) -> AsyncIterator[tuple[World, PostgresServer, PostgresServer]]:
    """The servers, whose relay names both hosts, with a primary and its replica."""
    primary = await asyncio.to_thread(own_server)
    try:
        name = primary.database_for(folder).uri.rpartition("/")[2]
        replica = await asyncio.to_thread(PostgresServer, primary=primary)
        try:
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{replica.port}"
            database = f"postgresql://relay@{hosts}/{name}?target_session_attrs=read-write"
            async with World.start(folder, database=database) as world:
                yield world, primary, replica
        finally:
            replica.end()
    finally:
        primary.end()


async def is_left_behind(replica: PostgresServer, primary: PostgresServer) -> None:
    """Let the replica have all that is committed by now, and nothing that comes."""
    ((written,),) = primary.do("postgres", "SELECT pg_current_wal_flush_lsn()")
    while replica.do("postgres", f"SELECT pg_last_wal_replay_lsn() >= '{written}'") != [(True,)]:  # noqa: ASYNC110  a server's state
        await asyncio.sleep(0.05)
    replica.do("postgres", "ALTER SYSTEM SET primary_conninfo = ''")
    replica.do("postgres", "SELECT pg_reload_conf()")
    while primary.do("postgres", "SELECT FROM pg_stat_replication"):  # noqa: ASYNC110  a server's state
        await asyncio.sleep(0.05)


@pytest.mark.threat("T16")
async def test_after_a_fail_over_that_lost_commits_a_device_submits_again_gives_the_ring_back_and_signs_in(
    tmp_path: Path,
) -> None:
    async with replicated(tmp_path) as (world, primary, replica):
        home = await Home.make(world, companions=2)
        phone, lost = home.companions
        await home.registers_ada()
        await is_left_behind(replica, primary)
        await home.remove(lost)
        device = await world.device(home.hub, "sign-in")
        await device.stage("submitted")
        request = await waiting(home)
        primary.kill()
        replica.call("pg_ctl", "promote")
        await device.says("the relay has lost the request, which is submitted again")
        assert await waiting(home) == request
        companion = await world.companion(phone, "--once")
        assert (await ends(device), await ends(companion)) == (0, 0)
        assert await device.output()
        assert device.stages.count("relay-forgot-rings") == 1
        # the removal holds: others are let in by the ring that the device has given back
        await home.let_in(Role.COMPANION, "a new phone")
        ring, _ = await home.membership(phone).members()
        labels = {member.label for member in ring.members}
        assert labels == {phone, home.hub, "a new phone"}


async def waiting(home: Home) -> bytes:
    """The id of the device's request, once it waits for the phone."""
    async with asyncio.timeout(60):
        while len(found := [each[1] for each in await home.inbox(home.phone)]) != 1:  # noqa: ASYNC110  the device's doing
            await asyncio.sleep(0.05)
    return found[0]
