"""One household of servers for the tests of a module; every test has an account, device and companion of its own.

The tests run in their module's event loop, which the household lives in too: each module says so in `pytestmark`.
"""

import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from world import World

from tests.end_to_end.household import Home, processes
from tests.end_to_end.terminal import Terminal

MARKER = "HEADLESS_PASSKEY_TEST_HOUSEHOLD"


@pytest.fixture(scope="module")
def marker() -> str:
    """What stands in the environment of every program of this module's household."""
    return f"{MARKER}={secrets.token_hex(8)}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, marker: str) -> AsyncIterator[World]:
    """The servers; nobody has joined. When it has ended, no process of it is left. What programs say stands beside a failure."""
    name, _, value = marker.partition("=")
    async with World.start(
        tmp_path_factory.mktemp("world"),
        environment={name: value},
        on_line=lambda program, line: print(f"{program}: {line}"),  # noqa: T201  pytest shows it
    ) as world:
        yield world
    assert [program.name for program in world.programs if program.process.returncode != 0] == []
    assert processes(marker) == []


@pytest_asyncio.fixture(loop_scope="module")
async def home(world: World, tidy: None) -> Home:
    """An account of this test alone: one companion, one device."""
    return await Home.make(world)


@pytest_asyncio.fixture(loop_scope="module")
async def tidy(world: World) -> AsyncIterator[None]:
    """What a test started ends with it, and none of it was at fault."""
    before = {id(program): program for program in world.programs}  # kept, so that no later one has its id
    yield
    servers = [program for program, _ in world.servers.values()]
    new = [program for program in world.programs if id(program) not in before]
    started = [program for program in new if program not in servers]
    for program in started:
        program.kill()
        await program.wait()
        world.programs.remove(program)
    for program in started + servers:
        assert not any("Traceback" in line for line in program.said), program.said
        assert program.process.returncode != 70, program.last_words


@pytest_asyncio.fixture(loop_scope="module")
async def terminal() -> AsyncIterator[Terminal]:
    """A terminal for one program."""
    async with Terminal.open() as terminal:
        yield terminal
