"""Fixtures that tests of several rooms share."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from certificates import Certificate, make_certificate
from hypothesis import settings

from tests import fork_server
from tests.left_out import pytest_terminal_summary  # noqa: F401  a hook
from tests.loop_clock import LoopClock
from tests.open_things import Open, note_sessions, until_nothing_is_left

collect_ignore = ["ble", "peers"]  # in a guest, and with programs of others: make ble-test, make interop

note_sessions()
fork_server.install()

# what a test reaches is here, whatever stands between this machine and others
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]

# No program of a test trusts the system's certificate authorities: none reaches beyond this machine. To read them costs
# each program a tenth of the processor time of its start.
os.environ["SSL_CERT_FILE"], os.environ["SSL_CERT_DIR"] = os.devnull, os.devnull

# machines are noisy: how long one example took says nothing
settings.register_profile("every-day", deadline=None, derandomize=True)  # the same tree, the same answer
settings.register_profile("few", deadline=None, derandomize=True, max_examples=10)  # make coverage
settings.register_profile("new", deadline=None, max_examples=1000, print_blob=True)  # make properties
settings.load_profile("every-day")

# In the background of a shell, or under nohup, these are ignored, and the programs that tests start would inherit
# that. What is handled here is at its default again in them.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda _number, _frame: None)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a case without a backslash: mutmut cannot hand one back to pytest, nor can people paste it into a shell."""
    if isinstance(val, bytes) and not val.isascii():
        return val.hex()
    text = val.decode() if isinstance(val, bytes) else val
    if not isinstance(text, str) or (text.isprintable() and text.isascii() and "\\" not in text):
        return None
    return text.encode("unicode_escape").decode().replace("\\", "/")


@pytest.fixture(autouse=True)
def no_handlers_are_left() -> Iterator[None]:
    """A program run in this process writes its log to a stream that is closed when its test has ended."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a shared loop nobody waits for the TLS connections that aiohttp closes in the background: the collector finds them."""
    for item in items:
        if _shares_its_loop(item):
            for message in ("unclosed transport", "unclosed <socket"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{message}:ResourceWarning"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Execute the programs of this test, its fixtures' included, where it says so."""
    fork_server.executed = item.get_closest_marker("executed") is not None


def pytest_collection_finish() -> None:
    """Let the collector pass over the tests and all that they import: none of it is garbage, and it looks often."""
    gc.collect()
    gc.freeze()
    if "PYTEST_XDIST_WORKER" in os.environ:  # it will be needed, and no test shall wait for it
        fork_server.running_server()


def _shares_its_loop(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("asyncio")
    return marker is not None and "loop_scope" in marker.kwargs


@pytest.fixture(autouse=True)
def nothing_is_left_open(request: pytest.FixtureRequest) -> None:
    """An asynchronous test, its fixtures included, leaves no task, client session, socket or pipe behind.

    Tests that share a loop share what is open in it too, and are not counted: they say so with ``loop_scope``.
    """
    if request.node.get_closest_marker("asyncio") is not None and not _shares_its_loop(request.node):
        request.getfixturevalue("open_things_counted")


@pytest_asyncio.fixture
async def open_things_counted() -> AsyncIterator[None]:
    before = Open.now()
    yield
    await until_nothing_is_left(before)


@pytest.fixture(scope="session")
def loopback_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """(ca, cert, key): paths for TLS on localhost, 127.0.0.1 and ::1."""
    folder = tmp_path_factory.mktemp("certificates")
    return make_certificate(folder, names=("localhost", "127.0.0.1", "::1"))


@pytest_asyncio.fixture
async def loop_clock() -> LoopClock:
    """The clock of the loop that the test runs in."""
    return LoopClock(asyncio.get_running_loop())
