"""The commands ``sign-in`` and ``register`` until what they need is loaded: the relying party is asked meanwhile.

Loading is what takes time in a start (docs/adr/0043), and an answer comes from far away. The question is the one with which each
ceremony begins, whether there is a relying party. What is wrong with the answer counts when the ceremony gets there, after all
that is looked at here.
"""

import argparse
import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import aiohttp

from headless_passkey.command.command_line import expand_home
from headless_passkey.errors import HeadlessPasskeyError, UsageError
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import open_session
from headless_passkey.net.tls import tls_or_default
from headless_passkey.process.tasks import end_quietly
from headless_passkey.rp.finding import find_relying_party
from headless_passkey.rp.key_store import KeyStore

if TYPE_CHECKING:
    from headless_passkey.command.ceremony import Ceremony

_TURN: Final = 0.0001  # seconds
_HEAD_START: Final = 0.004  # seconds, in which a request to a near server is out


def check_options(args: argparse.Namespace, *, registers: bool) -> None:
    """Raise `UsageError` when the options do not go together."""
    if (args.rp is None) == (args.options is None):
        raise UsageError("give either --rp URL, or --options FILE with --origin ORIGIN")
    if args.options is not None and args.origin is None:
        raise UsageError("--options needs --origin")
    if args.options == "-" and args.radio == "stdin":
        raise UsageError("--options - and --radio stdin both want stdin")
    if args.min_rssi is not None and args.radio == "stdin":
        raise UsageError("--min-rssi needs a radio that tells how strong an advert is; stdin does not")
    if args.direct and args.radio == "stdin":
        raise UsageError("--direct needs a radio that connects: bleak or bumble, not stdin")
    if args.rp is None and (args.no_keep or args.audience):
        raise UsageError("--no-keep and --audience are about the session, which --rp alone opens")
    if args.rp is not None and registers and args.user is None:
        raise UsageError("register with --rp needs --user NAME")
    if args.add_user and args.any_user:
        raise UsageError("--add-user pins one more user, --any-user pins nobody: give one of them")
    if args.rp is None and args.add_user:
        raise UsageError("--add-user needs --rp: what --options prints may yet be refused")


async def run(args: argparse.Namespace, *, registers: bool) -> None:
    """Load the ceremony and its radio in a thread, and run it."""
    tls = tls_or_default(args.ca)
    async with open_session(tls) as http, _asked(args, http) as found:
        with _short_turns():
            ceremony = await asyncio.to_thread(_loaded, args, tls, registers=registers)
        await ceremony.run(http, found)


def _loaded(args: argparse.Namespace, tls: ssl.SSLContext | None, *, registers: bool) -> "Ceremony":
    from headless_passkey.command.ceremony import Ceremony  # noqa: PLC0415
    from headless_passkey.hybrid.fido_url import RequestKind  # noqa: PLC0415

    return Ceremony(args, RequestKind.MAKE_CREDENTIAL if registers else RequestKind.GET_ASSERTION, tls)


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let threads take turns every 0.1 ms: with Python's 5 ms each step of a request waits for a thread that loads."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@asynccontextmanager
async def _asked(
    args: argparse.Namespace, http: aiohttp.ClientSession
) -> AsyncIterator["asyncio.Task[BaseUrl] | None"]:
    """Ask the relying party, where this device has a key for it: otherwise the state directory is looked at first, and None comes."""
    key = None
    if args.rp is not None:
        with suppress(HeadlessPasskeyError):  # the ceremony says what is wrong, in its order
            key = KeyStore(expand_home(args.state)).kept(args.rp.origin)
    if key is None:
        yield None
        return
    found = asyncio.create_task(find_relying_party(http, args.rp, key))
    try:
        # it has the processor for itself until it is out, or waits for the network
        await asyncio.wait([found], timeout=_HEAD_START)
        yield found
    finally:
        await end_quietly(found)
