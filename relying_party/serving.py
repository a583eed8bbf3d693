"""The command ``relying-party serve``: it serves until SIGTERM."""

import argparse
import contextlib
import os
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from relying_party.config import DEFAULT_LIFETIMES, Config, origin_of
from relying_party.core.access_tokens import TokenKey
from relying_party.core.credentials import BackupEligibility
from relying_party.core.domains import is_localhost, is_this_machine
from relying_party.core.sessions import SIGNED_TOKEN_SECONDS, Lifetimes
from relying_party.errors import SetupError, UsageError
from relying_party.http.app import METRICS, make_app, make_metrics_app
from relying_party.http.connections import ConnectionLimits
from relying_party.http.listening import Listener, listening, serving, until_terminated
from relying_party.output import out

MAX_SECRETS: Final = 64 * 1024  # bytes of the file
METRICS_LIMITS: Final = ConnectionLimits(total=32, per_address=32)


async def serve(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Listen, and serve until SIGTERM. say: prints a line for the operator."""
    ended = until_terminated()
    with contextlib.ExitStack() as listeners:
        listener = listeners.enter_context(listening(*args.listen, cert=args.cert, key=args.key))
        base_url = _base_url(args, listener)
        config = _config(args, listener, base_url)
        app = make_app(config)
        limits = ConnectionLimits(
            total=args.connections, per_address=args.connections_per_address, idle=args.idle_seconds
        )
        async with (
            serving(
                app,
                listener,
                say=say,
                trusted_proxies=args.trusted_proxy,
                public_url=config.public_url,
                limits=limits,
                closed=lambda why: app[METRICS].count("connections_closed_total", reason=why),
            ),
            contextlib.AsyncExitStack() as inside,
        ):
            if args.metrics is not None:
                metrics = listeners.enter_context(
                    listening(*args.metrics, cert=None, key=None, anywhere=True)
                )
                own = serving(make_metrics_app(app), metrics, say=lambda _: None, limits=METRICS_LIMITS)
                await inside.enter_async_context(own)
                say(f"metrics at {metrics.base_url()}/metrics")
            out(f"{base_url}\n")
            await ended


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
    except ValueError as error:
        raise SetupError(f'{path} is not TOML of lines "ORIGIN" = "SECRET"') from error
    if not all(isinstance(secret, str) for secret in secrets.values()):
        raise SetupError(f"{path} has something else than a secret for an origin")
    return secrets


def _with_port(origin: str, port: int) -> str:
    scheme, separator, rest = origin.partition("://")
    if separator and rest.endswith(":0"):
        return origin_of(scheme, rest.removesuffix(":0").strip("[]"), port)
    return origin
