"""The program ``relying-party``: read the settings, listen, serve until told to end.

Every long option is also a key of a TOML file (``--config``, table ``[serve]``) and an environment variable
(``RELYING_PARTY_…``); the command line wins, then the environment, then the file. A failure is one line on
stderr and an exit status, never a traceback.
"""

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from aiohttp import web

from relying_party.app import make_app, make_metrics_app
from relying_party.config import DEFAULT_LIFETIMES, Config, is_local, origin_of
from relying_party.credentials import BackupEligibility
from relying_party.errors import ExitStatus, RelyingPartyError, TransportError, UsageError
from relying_party.http_server import Runner, tls_context
from relying_party.names import printable
from relying_party.sessions import Lifetimes

SECTION: Final = "serve"
ENVIRONMENT: Final = "RELYING_PARTY_"
LONGEST_MESSAGE: Final = 2000  # characters of a failure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, serve_parser = _parsers()
    if words[:1] == [SECTION]:
        words[1:1] = _settings(serve_parser, words[1:], os.environ)
    args = parser.parse_args(words)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    try:
        asyncio.run(_serve(args))
    except RelyingPartyError as error:
        return _fail(error.exit_status, type(error).__name__, str(error), as_json=args.json)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _fail(ExitStatus.INTERRUPTED, "Interrupted", "interrupted", as_json=args.json)
    except BrokenPipeError:
        # whoever read our output has gone: say nothing more, not even when the interpreter flushes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.TRANSPORT
    except Exception as error:  # noqa: BLE001  the edge of the program
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        message = f"unexpected {type(error).__name__} at {where}; please report it"
        return _fail(ExitStatus.OUR_FAULT, type(error).__name__, message, as_json=args.json)
    return ExitStatus.DONE


def make_parser() -> argparse.ArgumentParser:
    """The command line; also what docs/cli.md is made from."""
    return _parsers()[0]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and status 2; argparse would print the whole usage first."""
        as_json = "--json" in sys.argv[1:]
        raise SystemExit(_fail(ExitStatus.USAGE, "UsageError", f"{message} (see --help)", as_json=as_json))


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    parser = _Parser(prog="relying-party", description="A small WebAuthn relying party.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = commands.add_parser(
        SECTION,
        help="serve registration, sign-in and a page that shows both",
        description="Serve registration and sign-in with passkeys, and a page that shows who is there. "
        "The first line on stdout is the base URL.",
        epilog="Example: relying-party serve --listen 127.0.0.1:8443 --rp-id localhost --cert cert.pem "
        f"--key key.pem. Every option can be set as {ENVIRONMENT}OPTION too.",
        allow_abbrev=False,
    )
    add = serve.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        type=_host_port,
        default=("127.0.0.1", 8443),
        help="default: 127.0.0.1:8443; port 0 takes a free one",
    )
    add("--rp-id", metavar="ID", default="localhost", help="the domain passkeys are for; default: localhost")
    add("--rp-name", metavar="TEXT", help="shown to people; default: the RP ID")
    add(
        "--origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="where our pages are, exactly; may be given again; port 0 means the one we listen on; default: the base URL",
    )
    add(
        "--device-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="what devices may name as their origin; may be given again; default: as --origin",
    )
    add(
        "--store",
        metavar="FILE",
        type=Path,
        default=Path("relying-party.sqlite"),
        help="default: relying-party.sqlite",
    )
    add("--cert", metavar="FILE", type=Path, help="certificate chain, PEM; without it plain HTTP on loopback")
    add("--key", metavar="FILE", type=Path, help="its private key, PEM")
    add(
        "--page",
        choices=("everyone", "own"),
        help="whom the page shows: everyone (default on localhost) or only those who look at it",
    )
    add(
        "--requests-per-minute",
        metavar="N",
        type=_positive,
        default=600,
        help="from one address; default: 600",
    )
    add(
        "--related-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="pages of another domain that use the same passkeys; may be given again",
    )
    add(
        "--android-app",
        metavar="CERTIFICATE",
        action="append",
        default=[],
        help="an app, by its certificate's SHA-256 fingerprint or android:apk-key-hash; may be given again",
    )
    add(
        "--top-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="a page of others that may embed ours; may be given again; default: nobody",
    )
    add("--ml-dsa", action="store_true", help="offer the ML-DSA algorithms after the others")
    add("--prf", action="store_true", help="ask passkeys for the prf extension")
    add(
        "--backup-eligibility",
        choices=[str(one) for one in BackupEligibility],
        default=BackupEligibility.FIXED,
        help="whether a passkey that could not be synced may say later that it can (may-begin), or the "
        "reverse too (may-change); default: fixed, the specification's rule",
    )
    for name, seconds, about in (
        ("cookie", DEFAULT_LIFETIMES.cookie, "a browser's session lasts"),
        ("token", DEFAULT_LIFETIMES.token, "a device's token lasts before it must be refreshed"),
        ("session", DEFAULT_LIFETIMES.session, "a device's session lasts, however often it is refreshed"),
        ("fresh", DEFAULT_LIFETIMES.fresh, "after using a passkey one may add and remove passkeys"),
    ):
        add(
            f"--{name}-seconds",
            metavar="N",
            type=_seconds,
            default=seconds,
            help=f"how long {about}; default: {seconds}",
        )
    add(
        "--metrics",
        metavar="HOST:PORT",
        type=_host_port,
        help="serve /metrics there, for Prometheus, over plain HTTP; without it nowhere",
    )
    add("--config", metavar="FILE", help=f"TOML file with these options in table [{SECTION}]")
    add("--json", action="store_true", help="failures as JSON, one object a line")
    add(
        "--log-level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="default: warning",
    )
    return parser, serve


async def _serve(args: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if (args.cert is None) != (args.key is None):
        raise UsageError("--cert and --key go together")
    tls = None if args.cert is None else tls_context(args.cert, args.key)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(one) for one in _listen(*args.listen)]
        if tls is None:
            _only_loopback(sockets, args)
        config = _config(args, port=sockets[0].getsockname()[1], scheme="http" if tls is None else "https")
        app = make_app(config)
        runners = [Runner(app)]
        try:
            await runners[0].setup()
            if args.metrics is not None:
                inside = [stack.enter_context(one) for one in _listen(*args.metrics)]
                runners.append(Runner(make_metrics_app(app)))
                await runners[1].setup()
                for one in inside:
                    await web.SockSite(runners[1], one).start()
                where = origin_of("http", args.metrics[0], inside[0].getsockname()[1])
                _say(f"metrics at {where}/metrics", args)
            for one in sockets:
                await web.SockSite(runners[0], one, ssl_context=tls).start()
            print(config.urls[0], flush=True)  # noqa: T201
            await ended.wait()
        finally:
            for runner in reversed(runners):
                await runner.cleanup()


def _config(args: argparse.Namespace, *, port: int, scheme: str) -> Config:
    host = args.listen[0]
    listening = origin_of(scheme, host, port)
    reached_at: tuple[str, ...] = (listening,)
    if _is_loopback(host) and is_local(f"{scheme}://{args.rp_id}"):
        reached_at = (origin_of(scheme, args.rp_id, port), listening)
    return Config.make(
        rp_id=args.rp_id,
        rp_name=args.rp_name,
        web_origins=tuple(_with_port(origin, port) for origin in args.origin),
        device_origins=tuple(_with_port(origin, port) for origin in args.device_origin),
        reached_at=reached_at,
        store=args.store,
        page_shows=args.page,
        requests_per_minute=args.requests_per_minute,
        related_origins=tuple(_with_port(origin, port) for origin in args.related_origin),
        android_apps=tuple(args.android_app),
        top_origins=tuple(_with_port(origin, port) for origin in args.top_origin),
        ml_dsa=args.ml_dsa,
        prf=args.prf,
        backup_eligibility=BackupEligibility(args.backup_eligibility),
        lifetimes=Lifetimes(
            cookie=args.cookie_seconds,
            token=args.token_seconds,
            session=args.session_seconds,
            fresh=args.fresh_seconds,
        ),
    )


def _with_port(origin: str, port: int) -> str:
    scheme, separator, rest = origin.partition("://")
    if separator and rest.endswith(":0"):
        return origin_of(scheme, rest.removesuffix(":0").strip("[]"), port)
    return origin


def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket for each address of `host`, all on one port, also when that is any free one."""
    listening = False
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            if family not in (socket.AF_INET, socket.AF_INET6):
                continue
            one = socket.socket(family, kind, protocol)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind((address[0], port, *address[2:]))
                one.listen(128)
            except OSError as error:
                one.close()
                if error.errno == errno.EADDRNOTAVAIL:
                    continue  # such as ::1 where there is no IPv6
                raise
            port, listening = one.getsockname()[1], True
            yield one
    except OSError as error:
        raise TransportError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    if not listening:
        raise TransportError(f"cannot listen on {host}:{port}: not an address of this machine")


def _only_loopback(sockets: Sequence[socket.socket], args: argparse.Namespace) -> None:
    if not all(_is_loopback(one.getsockname()[0]) for one in sockets):
        raise UsageError("without --cert and --key only loopback addresses are listened on")
    _say("no certificate: plain HTTP, on loopback only", args)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return is_local(f"http://{host}")


def _host_port(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) <= 0xFFFF):
        raise argparse.ArgumentTypeError("expected HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError("expected a number from 1 to 1000000")
    return int(text)


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 400 * 86400):
        raise argparse.ArgumentTypeError("expected a number of seconds, at most 400 days")
    return int(text)


def _settings(
    parser: argparse.ArgumentParser, words: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    """What file and environment say, in the words of the command line, less what that says itself."""
    actions = {
        name.removeprefix("--"): action
        for action in parser._actions  # noqa: SLF001  argparse names them nowhere else
        for name in action.option_strings
        if name.startswith("--") and name not in ("--help", "--config")
    }
    said = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    found = _from_file(parser, words, actions)
    for name, action in actions.items():
        value = environment.get(ENVIRONMENT + name.replace("-", "_").upper())
        if value is not None:
            found[name] = value.split() if _repeats(action) else value
    settled: list[str] = []
    for name, value in found.items():
        if name not in said:
            settled += _words(parser, name, actions[name], value)
    return settled


def _from_file(
    parser: argparse.ArgumentParser, words: Sequence[str], actions: Mapping[str, argparse.Action]
) -> dict[str, Any]:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        path = finder.parse_known_args(list(words))[0].config
    except argparse.ArgumentError:
        return {}  # --config without a value: the real parser says so
    if path is None:
        return {}
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8-sig")).get(SECTION, {})
    except (OSError, ValueError) as error:
        parser.error(f"cannot read {path}: {error}")
    if not isinstance(table, dict):
        parser.error(f"[{SECTION}] in {path} is not a table")
    for name in table:
        if name not in actions:
            parser.error(f"unknown setting {name!r} in {path}")
    return table


def _words(parser: argparse.ArgumentParser, name: str, action: argparse.Action, value: Any) -> list[str]:
    if action.nargs == 0:  # a switch
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        on = known.get(str(value).lower())
        if on is None:
            parser.error(f"setting {name!r} is neither true nor false")
        return [f"--{name}"] if on else []
    values = value if isinstance(value, list) and _repeats(action) else [value]
    if not all(isinstance(one, str | int) for one in values):
        parser.error(f"setting {name!r} is not text")
    return [f"--{name}={one}" for one in values]


def _repeats(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)  # noqa: SLF001


def _say(message: str, args: argparse.Namespace) -> None:
    with contextlib.suppress(OSError):
        print(json.dumps({"message": message}) if args.json else message, file=sys.stderr, flush=True)  # noqa: T201


def _fail(status: ExitStatus, kind: str, message: str, *, as_json: bool) -> ExitStatus:
    message = printable(" ".join(message.split()), LONGEST_MESSAGE)
    if as_json:
        line = json.dumps({"error": kind, "reason": None, "status": int(status), "message": message})
    else:
        line = f"relying-party: {message}"
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    return status
