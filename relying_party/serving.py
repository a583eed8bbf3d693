"""What ``relying-party serve`` does: listen where the settings say, and serve until told to end."""

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from aiohttp import web

from relying_party.config import DEFAULT_LIFETIMES, Config, is_local, origin_of
from relying_party.core.access_tokens import TokenKey
from relying_party.core.credentials import BackupEligibility
from relying_party.core.sessions import SIGNED_TOKEN_SECONDS, Lifetimes
from relying_party.errors import TransportError, UsageError
from relying_party.http.app import make_app, make_metrics_app
from relying_party.http.http_server import Runner, tls_context

MAX_SECRETS: Final = 64 * 1024  # bytes of the file that has them


async def serve(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Listen, and serve until the process is asked to end. say: tells the operator a line."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if (args.cert is None) != (args.key is None):
        raise UsageError("--cert and --key go together")
    tls = None if args.cert is None else tls_context(args.cert, args.key)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(one) for one in _listen(*args.listen)]
        if tls is None:
            _only_loopback(sockets, say)
        port, scheme = sockets[0].getsockname()[1], "http" if tls is None else "https"
        config = _config(args, port=port, scheme=scheme)
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
                say(f"metrics at {where}/metrics")
            for one in sockets:
                await web.SockSite(runners[0], one, ssl_context=tls).start()
            print(f"{_base_url(args, port=port, scheme=scheme)}\n", end="", flush=True)  # noqa: T201
            await ended.wait()
        finally:
            for runner in reversed(runners):
                await runner.cleanup()


def _config(args: argparse.Namespace, *, port: int, scheme: str) -> Config:
    if args.public_url is None and not args.origin and args.listen[0] in ("0.0.0.0", "::"):
        raise UsageError("listening on every address needs --public-url")
    listening = _base_url(args, port=port, scheme=scheme)
    origins = tuple(_with_port(origin, port) for origin in args.origin)
    return Config.make(
        rp_id=args.rp_id,
        rp_name=args.rp_name,
        public_url=args.public_url or (*origins, listening)[0],
        also_reached_at=(listening, origin_of(scheme, args.listen[0], port)),
        web_origins=origins,
        device_origins=tuple(_with_port(origin, port) for origin in args.device_origin),
        store=args.store,
        page_shows=args.page,
        requests_per_minute=args.requests_per_minute,
        related_origins=tuple(_with_port(origin, port) for origin in args.related_origin),
        android_apps=tuple(args.android_app),
        top_origins=tuple(_with_port(origin, port) for origin in args.top_origin),
        resources=tuple(_with_port(origin, port) for origin in args.resource),
        resource_secrets={} if args.resource_secrets is None else _secrets(args.resource_secrets),
        token_keys=tuple(TokenKey.load(Path(path)) for path in args.token_key),
        ml_dsa=args.ml_dsa,
        prf=args.prf,
        backup_eligibility=BackupEligibility(args.backup_eligibility),
        lifetimes=Lifetimes(
            cookie=args.cookie_seconds,
            token=args.token_seconds or (SIGNED_TOKEN_SECONDS if args.token_key else DEFAULT_LIFETIMES.token),
            session=args.session_seconds,
            fresh=args.fresh_seconds,
        ),
    )


def _base_url(args: argparse.Namespace, *, port: int, scheme: str) -> str:
    """Where it listens, with the name under which browsers have passkeys on this machine."""
    host = args.listen[0]
    if _is_loopback(host) and is_local(f"{scheme}://{args.rp_id}"):
        host = args.rp_id
    return origin_of(scheme, host, port)


def _secrets(path: Path) -> dict[str, str]:
    """Which secret each resource server has, from a file that only its owner may read."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"{path} is open to others: chmod 0600 {path}")
            secrets = tomllib.loads(file.read(MAX_SECRETS).decode())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f'{path} is not TOML of lines "ORIGIN" = "SECRET"') from error
    if not all(isinstance(secret, str) for secret in secrets.values()):
        raise UsageError(f"{path} has something else than a secret for an origin")
    return secrets


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


def _only_loopback(sockets: Sequence[socket.socket], say: Callable[[str], None]) -> None:
    if not all(_is_loopback(one.getsockname()[0]) for one in sockets):
        raise UsageError("without --cert and --key only loopback addresses are listened on")
    say("no certificate: plain HTTP, on loopback only")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return is_local(f"http://{host}")
