"""``companion-push ether``: Bluetooth without a radio, for the demo and the tests.

Every TCP connection is one host, which gets an emulated controller of its own. All controllers receive each other.
Hosts use the transport name that the program prints first: ``tcp-client:HOST:PORT``.
"""

import argparse
import asyncio
import errno
import logging
from collections.abc import Coroutine
from typing import Any, Final

from companion_push.errors import cannot_listen
from companion_push.serving.options import at_most
from headless_passkey.command.command_line import add_settings, example, out
from headless_passkey.errors import UsageError
from headless_passkey.process.signals import until_terminated
from program_parts.command_line import host_port
from program_parts.domains import is_this_machine

CONTROLLERS: Final = 32

logger = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Add ``ether`` to the program's commands."""
    parser = subparsers.add_parser(
        "ether",
        help="emulated Bluetooth controllers on one virtual link, for demo and tests",
        description="Emulated Bluetooth controllers on one virtual link: one for every TCP connection.",
        epilog=example("companion-push ether --listen 127.0.0.1:0"),
    )
    add_settings(parser, section="ether", environment="COMPANION_PUSH_ETHER")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=host_port,
        required=True,
        help="where to listen; port 0 picks one",
    )
    parser.add_argument(
        "--controllers",
        metavar="N",
        type=at_most(256),
        default=CONTROLLERS,
        help="hosts at a time, up to 256 (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="listen on an address that is not loopback: whoever reaches it can advertise and listen",
    )
    parser.set_defaults(main=serve, waits=lambda _args: True)


def serve(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """Load the emulated radio link; what is returned runs it until SIGTERM."""
    import companion_push.emulation.controllers  # noqa: F401, PLC0415  bumble is an extra

    return _serve(args)


async def _serve(args: argparse.Namespace) -> None:
    from companion_push.emulation.controllers import Air, Host  # noqa: PLC0415  as above

    host, port = args.listen
    if not (args.allow_remote or is_this_machine(host)):
        raise UsageError(f"{host} is not a loopback address; --allow-remote listens there all the same")
    air = Air(args.controllers)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(lambda: Host(air), host, port)
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    except UnicodeError as error:  # of the codec that names are looked up with
        raise cannot_listen(host, port, OSError(errno.EADDRNOTAVAIL, "not a host's name")) from error
    async with server:
        ended = until_terminated()
        out(f"tcp-client:{host}:{server.sockets[0].getsockname()[1]}")
        try:
            await ended
        finally:
            server.close()
            air.close()
