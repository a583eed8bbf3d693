"""The command ``relying-party serve``: it serves until SIGTERM."""

import argparse
import contextlib
import fcntl
import os
import tempfile
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from aiohttp import web

from http_serving.connections import ConnectionLimits, Connections
from http_serving.listening import Listener, plain
from http_serving.metrics import LIMITS, ServerMetrics
from program_parts.domains import is_localhost, is_this_machine
from relying_party.config import DEFAULT_LIFETIMES, Config, origin_of
from relying_party.core.access_tokens import TokenKey
from relying_party.core.credentials import BackupEligibility
from relying_party.core.sessions import SIGNED_TOKEN_SECONDS, Lifetimes
from relying_party.errors import ExitStatus, SetupError, UsageError
from relying_party.http.app import METRICS, make_app, make_metrics_app
from relying_party.http.listening import inherited, listening, serving, until_terminated
from relying_party.http.metrics import PREFIX
from relying_party.output import out
from relying_party.place import PostgresUri, store_place
from relying_party.store.shared import SharedChallenges, SharedProofs
from relying_party.store.sqlite import SqliteStore, locked
from relying_party.workers import HandOver
from server_workers.workers import NotReadyError, Retirement, Workers

MAX_SECRETS: Final = 64 * 1024  # bytes of the file
MAX_PORT: Final = 0xFFFF


async def serve(args: argparse.Namespace, say: Callable[[str], None]) -> ExitStatus:
    """Listen, and serve until SIGTERM; returns the exit status. say: prints a line for the operator."""
    handed_over = HandOver.received()
    if handed_over is not None:
        await _work(args, handed_over)
        return ExitStatus.DONE
    if args.workers > 1:
        return await _keep_workers(args, say)
    ended = until_terminated()
    with contextlib.ExitStack() as listeners:
        listener = listeners.enter_context(
            listening(*args.listen, cert=args.cert, key=args.key, anywhere=bool(args.trusted_proxy))
        )
        base_url = _base_url(args, listener)
        config = _config(args, listener, base_url)
        app = make_app(config)
        limits = ConnectionLimits(
            total=args.connections, per_address=args.connections_per_address, idle=args.idle_seconds
        )
        async with (
            _served(args, app, config, listener, limits=limits, say=say),
            contextlib.AsyncExitStack() as inside,
        ):
            if args.metrics is not None:
                metrics = listeners.enter_context(
                    listening(*args.metrics, cert=None, key=None, anywhere=True)
                )
                await inside.enter_async_context(_served_metrics(app, metrics))
                say(f"metrics at {metrics.base_url()}/metrics")
            out(f"{base_url}\n")
            await ended
    return ExitStatus.DONE


async def _work(args: argparse.Namespace, told: HandOver) -> None:
    """Serve as one of several workers, with its part of each limit."""
    ended, retirement = until_terminated(), Retirement()
    retirement.watch(lambda: None if ended.done() else ended.set_result(None))
    with contextlib.ExitStack() as listeners:
        listener = listeners.enter_context(
            inherited(args.listen[0], told.sockets, cert=args.cert, key=args.key)
        )
        base_url = _base_url(args, listener)
        config = _config(args, listener, base_url)
        config = replace(
            config,
            store=store_place(told.store),
            shared_store=told.shared_store,
            requests_per_minute=told.part(config.requests_per_minute),
            registrations_per_day=told.part(config.registrations_per_day),
        )
        limits = ConnectionLimits(
            total=told.part(args.connections),
            per_address=told.part(args.connections_per_address),
            idle=args.idle_seconds,
        )
        async with contextlib.AsyncExitStack() as stack:
            app = await _app_of_worker(config, Path(told.folder), stack)
            serves = _served(
                args, app, config, listener, limits=limits, say=lambda _: None, linger=retirement.linger
            )
            await stack.enter_async_context(serves)
            if told.metrics:
                metrics = inherited("", told.metrics, cert=None, key=None)
                await stack.enter_async_context(_served_metrics(app, listeners.enter_context(metrics)))
            out(f"{base_url}\n")
            await ended


async def _app_of_worker(config: Config, folder: Path, stack: contextlib.AsyncExitStack) -> web.Application:
    """Make the application of a worker, which shares with the others a database, or a store and the files in a folder."""
    if isinstance(config.store, PostgresUri):
        return make_app(config)
    path = config.store
    proofs = await stack.enter_async_context(SharedProofs(folder / "proofs.sqlite"))
    return make_app(
        config,
        open_store=lambda: SqliteStore(path),  # the first process has it locked
        challenges=await stack.enter_async_context(SharedChallenges(folder / "ceremonies.sqlite")),
        used_proofs=None if config.shared_store else proofs,
    )


async def _keep_workers(args: argparse.Namespace, say: Callable[[str], None]) -> ExitStatus:
    """Listen, and keep the workers that serve, until SIGTERM; SIGUSR1 replaces them one by one."""
    ended = until_terminated()
    with (
        _shared_folder() as folder,
        contextlib.ExitStack() as lock,
        contextlib.ExitStack() as listeners,
    ):
        listener = listeners.enter_context(
            listening(*args.listen, cert=args.cert, key=args.key, anywhere=bool(args.trusted_proxy))
        )
        config = _config(args, listener, _base_url(args, listener))  # what is wrong in it is said once
        if isinstance(config.store, Path):
            lock.enter_context(locked(config.store, shared=config.shared_store))
        metrics = [listeners.enter_context(one) for one in _metrics_of_workers(args)]
        places = [
            HandOver(
                workers=args.workers,
                sockets=tuple(one.fileno() for one in listener.sockets),
                metrics=tuple(one.fileno() for one in (metrics[place].sockets if metrics else ())),
                folder=folder,
                store=str(config.store),
                shared_store=config.shared_store,
            )
            for place in range(args.workers)
        ]

        def ready(base_url: str) -> None:
            if listener.tls is None:
                say(plain(args.trusted_proxy))
            for number, one in enumerate(metrics, 1):
                say(f"metrics of worker {number} at {one.base_url()}/metrics")
            out(base_url)

        try:
            await Workers(args.words, places, say=say).keep(ended=ended, ready=ready, closing=listeners.close)
        except NotReadyError as error:
            return ExitStatus(error.status) if error.status in set(ExitStatus) else ExitStatus.OUR_FAULT
    return ExitStatus.DONE


@contextlib.contextmanager
def _shared_folder() -> Iterator[str]:
    """Make the folder of what the workers share, and keep it locked (flock): systemd-tmpfiles takes old files out of no locked folder.

    A worker that replaces another one would share nothing with the others if the files, or their logs' indices, were made anew.
    """
    with tempfile.TemporaryDirectory(prefix="relying-party-") as folder:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield folder
        finally:
            os.close(descriptor)


def _metrics_of_workers(args: argparse.Namespace) -> Iterator[contextlib.AbstractContextManager[Listener]]:
    """One address for each worker: the ports from the given one on, or free ones."""
    if args.metrics is None:
        return
    host, port = args.metrics
    if port + args.workers - 1 > MAX_PORT:
        raise UsageError(f"--metrics: there are no {args.workers} ports from {port} on")
    for place in range(args.workers):
        yield listening(host, port + place if port else 0, cert=None, key=None, anywhere=True)


@contextlib.asynccontextmanager
async def _served(
    args: argparse.Namespace,
    app: web.Application,
    config: Config,
    listener: Listener,
    *,
    limits: ConnectionLimits,
    say: Callable[[str], None],
    linger: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[None]:
    server = ServerMetrics(app[METRICS].registry, PREFIX)
    async with serving(
        app,
        listener,
        say=say,
        trusted_proxies=args.trusted_proxy,
        public_url=config.public_url,
        limits=limits,
        closed=server.closed,
        linger=linger,
    ) as connections:
        server.shows(connections)
        yield


def _served_metrics(
    app: web.Application, listener: Listener
) -> contextlib.AbstractAsyncContextManager[Connections]:
    return serving(make_metrics_app(app), listener, say=lambda _: None, limits=LIMITS)


def _config(args: argparse.Namespace, listener: Listener, base_url: str) -> Config:
    port = listener.port
    if args.public_url is None and not args.origin and args.listen[0] in ("0.0.0.0", "::"):
        raise UsageError("listening on every address needs --public-url")
    origins = tuple(_with_port(origin, port) for origin in args.origin)
    config = Config.make(
        rp_id=args.rp_id,
        rp_name=args.rp_name,
        public_url=args.public_url or (*origins, base_url)[0],
        also_reached_at=(base_url, _origin(listener, listener.host)),
        web_origins=origins,
        device_origins=tuple(_with_port(origin, port) for origin in args.device_origin),
        store=args.store,
        page_shows=args.page,
        requests_per_minute=args.requests_per_minute,
        shared_store=args.shared_store,
        registrations_per_day=args.registrations_per_day,
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
        ),
    )
    return replace(config, manage=f"{config.path}/", enroll=f"{config.path}/")  # our own pages


def _base_url(args: argparse.Namespace, listener: Listener) -> str:
    """The base URL of the listener, with ``localhost`` for loopback, as browsers require for passkeys."""
    local = is_this_machine(listener.host) and is_localhost(args.rp_id)
    return _origin(listener, args.rp_id if local else listener.host)


def _origin(listener: Listener, host: str) -> str:
    return origin_of("http" if listener.tls is None else "https", host, listener.port)


def _secrets(path: Path) -> dict[str, str]:
    """Read the resource servers' secrets from a private file."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise SetupError(f"{path} is open to others: chmod 0600 {path}")
            secrets = tomllib.loads(file.read(MAX_SECRETS).decode())
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SetupError(f'{path} is not TOML of lines "ORIGIN" = "SECRET"') from error
    if not all(isinstance(secret, str) for secret in secrets.values()):
        raise SetupError(f"{path} has something else than a secret for an origin")
    return secrets


def _with_port(origin: str, port: int) -> str:
    scheme, separator, rest = origin.partition("://")
    if separator and rest.endswith(":0"):
        return origin_of(scheme, rest.removesuffix(":0").strip("[]"), port)
    return origin
