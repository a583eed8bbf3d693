"""`companion-push relay`: the relay as a program of its own."""

import argparse
import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from companion_push.identity.settings import OpenIdSettings
from companion_push.push.options import add_push, push_channels
from companion_push.relay.config import RelayConfig, check_public_url
from companion_push.relay.ladder import Ladder
from companion_push.relay.limits import CEILING, LEASE, Quota, Rate
from companion_push.relay.store_command import add_states, add_store, states_place, store_option
from companion_push.relay.store_place import PostgresUri, StorePlace
from companion_push.serving.options import (
    add_serving,
    at_most,
    connection_limits,
    count,
    count_or_none,
    key_file,
    program_metrics,
    secret_line,
    webhook_of,
)
from headless_passkey.command.command_line import add_settings, example, out, teller
from headless_passkey.errors import UsageError
from headless_passkey.process.signals import until_terminated
from server_workers import workers

if TYPE_CHECKING:
    from http_serving.listening import Listener

_MAX_PORT: Final = 0xFFFF


def add_parser(subparsers: Any) -> None:
    """Add ``relay`` to the programs of ``companion-push``."""
    parser = subparsers.add_parser(
        "relay",
        help="carry sealed requests from devices to companions",
        description="Carry sealed requests from devices to companions, and open none. "
        "The first line on stdout is the base URL it listens on.",
        epilog=example(
            "companion-push relay --listen 0.0.0.0:443 --public-url https://push.example \\",
            "    --cert cert.pem --key key.pem",
        ),
    )
    add_serving(parser, port=8470)
    parser.add_argument(
        "--public-url", metavar="URL", help="what clients call it by; default: the base URL it listens on"
    )
    add_store(parser, "--store", "the store")
    add_states(parser)
    parser.add_argument(
        "--store-direct", type=store_option, metavar="URL",
        help="the database's server itself, to listen to, where PgBouncer in transaction mode is at --store",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=at_most(64), default=1, metavar="N",
        help="processes that serve together, on PostgreSQL only, with the limits of connections and addresses shared out among "
        "them and metrics at a port of each from that of --metrics on; SIGUSR1 replaces them one by one; default: 1",
    )  # fmt: skip
    parser.add_argument(
        "--ceiling", type=at_most(CEILING, "seconds"), default=CEILING, metavar="S",
        help=f"seconds a request may wait for a claim, {CEILING} at the most (default)",
    )  # fmt: skip
    parser.add_argument(
        "--lease", type=at_most(LEASE, "seconds"), default=LEASE, metavar="S",
        help=f"seconds without a call after which a companion loses its claim, {LEASE} at the most (default)",
    )  # fmt: skip
    parser.add_argument(
        "--pending-per-account", type=count, default=3, metavar="N",
        help="unclaimed requests at a time, one per device (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--requests-per-minute", type=count, default=3, metavar="N", help="of one device (default: 3)"
    )
    parser.add_argument(
        "--requests-per-day", type=count, default=20, metavar="N", help="of one device (default: 20)"
    )
    parser.add_argument(
        "--account-requests-per-day", type=count, default=100, metavar="N",
        help="of all devices of one account, whose first 5 each are never refused for it (default: 100)",
    )  # fmt: skip
    parser.add_argument(
        "--no-pauses",
        action="store_true",
        help="let a device ask on whose requests nobody approves: for tests",
    )
    parser.add_argument(
        "--held-per-address", type=count_or_none, default=256, metavar="N",
        help="held requests from one network address (default: 256); 0: no limit",
    )  # fmt: skip
    parser.add_argument(
        "--failures-per-address", type=count_or_none, default=600, metavar="N",
        help="failed requests a minute from one network address, beyond which only known callers and newcomers with an "
        "open ticket or code are served there (default: 600); 0: no limit",
    )  # fmt: skip
    openid = parser.titled_group(
        "accounts that are founded by an OpenID Connect sign-in, beside those with codes"
    )
    openid.add_argument("--oidc-issuer", metavar="URL", help="the issuer, exactly as it names itself")
    openid.add_argument(
        "--oidc-client", metavar="ID", action="append", help="the client that companions are there; repeatable, the first counts"
    )  # fmt: skip
    openid.add_argument(
        "--oidc-audience", metavar="NAME",
        help="this relay's name there, for access tokens; default: the client, for ID tokens",
    )  # fmt: skip
    openid.add_argument(
        "--oidc-bound", action="store_true", help="take only tokens that the issuer has bound to the companion's key (DPoP)"
    )  # fmt: skip
    openid.add_argument(
        "--oidc-ca", metavar="FILE", type=Path, help="PEM file of roots to believe for the issuer, instead of the system's"
    )  # fmt: skip
    graphql = parser.titled_group("GraphQL")
    graphql.add_argument(
        "--graphql", action="store_true", help="answer at /graphql too; needs the extra graphql"
    )
    graphql.add_argument(
        "--graphql-documents", type=Path, metavar="FILE",
        help="JSON: documents by the SHA-256 with which callers may name them",
    )  # fmt: skip
    graphql.add_argument("--graphql-documents-only", action="store_true", help="refuse every other document")
    graphql.add_argument(
        "--graphql-introspection", action="store_true", help="show the schema to callers, for development"
    )
    add_push(parser)
    parser.add_argument(
        "--admin-secret", metavar="FILE", type=key_file,
        help="file of mode 0600 with a secret of 32 characters or more, with which the account service closes, resets and "
        "suspends accounts (POST /admin/v1/accounts/...); default: nobody does",
    )  # fmt: skip
    parser.add_argument(
        "--webhook", metavar="URL",
        help='https URL of the account service, which is told of each device that a user has muted ("not me"), signed; '
        "default: nobody is told",
    )  # fmt: skip
    parser.add_argument(
        "--webhook-secret", metavar="FILE", type=key_file,
        help="file of mode 0600 with the secret that signs these calls: whsec_ and base64; on further lines the secrets of before",
    )  # fmt: skip
    parser.add_argument(
        "--webhook-ca", metavar="FILE", type=Path,
        help="PEM file of roots to believe for the account service, instead of the system's",
    )  # fmt: skip
    add_settings(parser, section="relay", environment="COMPANION_PUSH_RELAY")
    parser.set_defaults(main=serve, waits=lambda _args: True)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver(workers.HandOver):
    """What a worker of the relay is told by the process that starts it."""

    program: ClassVar[str] = "companion_push"


def serve(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """Load the relay; what is returned runs it until SIGTERM."""
    import companion_push.serving.listening  # noqa: PLC0415  --help needs none of this

    told = HandOver.received()
    if told is None and args.workers > 1:
        return _keep_workers(args)
    import companion_push.relay.app  # noqa: F401, PLC0415  of a process that serves

    return _run(args, told)


async def _run(args: argparse.Namespace, told: HandOver | None) -> None:
    """Serve alone, or as one of several workers that is told what it shares."""
    from companion_push.serving.listening import inherited, listening  # noqa: PLC0415  --help needs none of this

    if told is None:
        with listening(
            *args.listen, cert=args.cert, key=args.key, anywhere=bool(args.trusted_proxy)
        ) as listener:
            await _serve(args, listener, teller(args), until_terminated)
        return
    retirement = workers.Retirement()

    def until_retired() -> "asyncio.Future[None]":
        ended = until_terminated()
        retirement.watch(lambda: None if ended.done() else ended.set_result(None))
        return ended

    args.connections, args.connections_per_address = map(
        told.part, (args.connections, args.connections_per_address)
    )
    args.held_per_address = told.part(args.held_per_address)
    args.failures_per_address = told.part(args.failures_per_address)
    with inherited(args.listen[0], told.sockets, cert=args.cert, key=args.key) as listener:
        await _serve(
            args,
            listener,
            lambda _: None,
            until_retired,
            metrics_at=told.metrics,
            linger=retirement.linger,
        )


async def _serve(
    args: argparse.Namespace,
    listener: "Listener",
    say: Callable[[str], None],
    until_ended: Callable[[], "asyncio.Future[None]"],
    *,
    metrics_at: Sequence[int] = (),
    linger: Callable[[], float] = lambda: 0.0,
) -> None:
    """Serve until the end. metrics_at: the descriptors of sockets that listen for those who ask for metrics. linger: says at the end
    how many seconds open connections have for one more request each.
    """
    from companion_push.relay.app import make_app  # noqa: PLC0415  --help needs none of this
    from companion_push.serving.listening import serving  # noqa: PLC0415

    metrics = program_metrics(args)
    config = _config(args, listener.base_url())
    async with (
        serving(
            make_app(
                config,
                channels=push_channels(args),
                registry=None if metrics is None else metrics.registry,
            ),
            listener,
            say=say,
            trusted_proxies=args.trusted_proxy,
            limits=connection_limits(args),
            public_url=config.public_url,
            handler_cancellation=True,
            closed=(lambda _: None) if metrics is None else metrics.closed,
            linger=linger,
        ) as connections,
        contextlib.AsyncExitStack() as inside,
    ):
        if metrics is not None:
            served = metrics.served(args.metrics, connections, say=say, descriptors=metrics_at)
            await inside.enter_async_context(served)
        ended = until_ended()
        out(listener.base_url())
        await ended


async def _keep_workers(args: argparse.Namespace) -> None:
    """Listen, and keep the workers that serve, until SIGTERM; SIGUSR1 replaces them one by one."""
    from companion_push.serving.listening import listening  # noqa: PLC0415  --help needs none of this
    from http_serving.listening import plain  # noqa: PLC0415

    if not isinstance(args.store, PostgresUri):
        raise UsageError("--workers needs a store in PostgreSQL: one process uses a file at a time")
    ended, say = until_terminated(), teller(args)
    with contextlib.ExitStack() as listeners:
        listener = listeners.enter_context(
            listening(*args.listen, cert=args.cert, key=args.key, anywhere=bool(args.trusted_proxy))
        )
        _config(args, listener.base_url())  # what is wrong in it is said once
        program_metrics(args)  # and what is missing for them
        metrics = [
            listeners.enter_context(listening(*address, cert=None, key=None, anywhere=True))
            for address in _metrics_addresses(args)
        ]
        places = [
            HandOver(
                workers=args.workers,
                sockets=tuple(one.fileno() for one in listener.sockets),
                metrics=tuple(one.fileno() for one in (metrics[place].sockets if metrics else ())),
            )
            for place in range(args.workers)
        ]

        def ready(_line: str) -> None:
            if listener.tls is None:
                say(plain(args.trusted_proxy))
            for number, one in enumerate(metrics, 1):
                say(f"metrics of worker {number} at {one.base_url()}/metrics")
            out(listener.base_url())

        try:
            kept = workers.Workers(args.words, places, say=say)
            await kept.keep(ended=ended, ready=ready, closing=listeners.close)
        except workers.NotReadyError as error:
            raise SystemExit(error.status) from None  # the worker has said why


def _metrics_addresses(args: argparse.Namespace) -> list[tuple[str, int]]:
    """One address for each worker: the ports from the given one on, or free ones."""
    if args.metrics is None:
        return []
    host, port = args.metrics
    if port + args.workers - 1 > _MAX_PORT:
        raise UsageError(f"--metrics: there are no {args.workers} ports from {port} on")
    return [(host, port + place if port else 0) for place in range(args.workers)]


def _config(args: argparse.Namespace, base_url: str) -> RelayConfig:
    if args.public_url is None and args.listen[0] in ("0.0.0.0", "::"):
        raise UsageError("listening on every address needs --public-url")
    _check_graphql(args)
    rates = (
        Rate(count=args.requests_per_minute, seconds=60),
        Rate(count=args.requests_per_day, seconds=86_400),
    )
    return RelayConfig(
        public_url=check_public_url(args.public_url or base_url),
        store=_store(args),
        states=states_place(args),
        ceiling=args.ceiling,
        lease=args.lease,
        quota=Quota(
            pending=args.pending_per_account,
            rates=rates,
            account_rates=(Rate(count=args.account_requests_per_day, seconds=86_400),),
        ),
        ladder=Ladder(device=(), account=()) if args.no_pauses else Ladder(),
        held_per_address=args.held_per_address,
        failures_per_address=args.failures_per_address,
        admin_secret=None if args.admin_secret is None else secret_line("--admin-secret", args.admin_secret),
        webhook=webhook_of("--webhook", args.webhook, args.webhook_secret, args.webhook_ca),
        openid=_openid(args),
        graphql=args.graphql,
        graphql_introspection=args.graphql_introspection,
        graphql_documents=args.graphql_documents,
        graphql_documents_only=args.graphql_documents_only,
    )


def _store(args: argparse.Namespace) -> StorePlace:
    store: StorePlace = args.store
    if args.store_direct is None:
        return store
    if not (isinstance(store, PostgresUri) and isinstance(args.store_direct, PostgresUri)):
        raise UsageError(
            "--store-direct: expected postgresql://[USER@]HOST[:PORT]/DATABASE, and the same of --store"
        )
    return PostgresUri(store.uri, direct=args.store_direct.uri)


def _check_graphql(args: argparse.Namespace) -> None:
    """Refuse options that mean nothing together, by their names; `RelayConfig` names its settings."""
    more = args.graphql_documents or args.graphql_documents_only or args.graphql_introspection
    if more and not args.graphql:
        raise UsageError("the other options of GraphQL need --graphql")
    if args.graphql_documents_only and not args.graphql_documents:
        raise UsageError("--graphql-documents-only needs --graphql-documents")


def _openid(args: argparse.Namespace) -> OpenIdSettings | None:
    if args.oidc_issuer is None:
        if args.oidc_client or args.oidc_audience or args.oidc_bound or args.oidc_ca:
            raise UsageError("the other options of OpenID Connect need --oidc-issuer")
        return None
    if not args.oidc_client:
        raise UsageError("--oidc-issuer needs --oidc-client")
    return OpenIdSettings(
        issuer=args.oidc_issuer,
        audience=args.oidc_audience or args.oidc_client[0],
        clients=tuple(args.oidc_client),
        require_bound=args.oidc_bound,
        ca=args.oidc_ca,
    )
