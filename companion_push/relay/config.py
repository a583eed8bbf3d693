"""The relay's settings, which are checked at construction."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from companion_push.identity.settings import OpenIdSettings
from companion_push.relay.ladder import Ladder
from companion_push.relay.limits import CEILING, LEASE, Quota
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.store_place import PostgresUri, StorePlace
from companion_push.serving.bounds import check_bounds
from companion_push.serving.webhook import Webhook
from headless_passkey.errors import RemoteProtocolError, UsageError
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.trust.text_form import check_relay_url

_SECRET: Final = re.compile(r"[A-Za-z0-9._~+/-]{32,512}=*", re.ASCII)  # RFC 6750 §2.1
DEFAULT_STORE: Final = "companion-push.sqlite3"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """Everything `make_app` needs to know. A setting that cannot be is a `UsageError` with its name."""

    public_url: str  # the URL that clients use, with the prefix of a mounted relay; no slash at the end
    store: StorePlace  # a file, or a database in PostgreSQL
    states: RedisPlace | None = (
        None  # where what lives minutes is, beside a database in PostgreSQL; None: in the store
    )
    ceiling: int = CEILING  # seconds until an unclaimed request expires; at most 300
    lease: int = LEASE  # seconds a companion may hold a claim without another call; at most 60
    quota: Quota = field(default_factory=Quota)
    ladder: Ladder = field(default_factory=Ladder)  # pauses of devices whose requests nobody approves
    stream_life: int = (
        900  # seconds at most until a stream of the inbox ends, and its companion comes with a new proof
    )
    held_per_member: int = 4  # the oldest held request is released when a member has more
    held_per_address: int = 256  # more are refused with rate-limited; 0: no limit, for a relay behind a proxy
    failures_per_address: int = (
        600  # failed requests a minute, before signatures are verified for known callers only; 0: no limit
    )
    admin_secret: str | None = field(
        default=None, repr=False
    )  # of the account service, for /admin/v1: at least 32 characters; None: there is no /admin/v1
    webhook: Webhook | None = None  # where the account service is told of muted devices; None: nobody is
    openid: OpenIdSettings | None = None  # whose tokens found accounts; None: one-time codes only
    graphql: bool = False  # whether /graphql is there too; needs the extra `graphql`
    graphql_introspection: bool = (
        False  # whether /graphql shows its schema, and suggests names: for development
    )
    graphql_documents: Path | None = None  # JSON: documents by the SHA-256 with which callers may name them
    graphql_documents_only: bool = False  # whether every other document is refused
    clock: Callable[[], float] | None = (
        None  # Unix seconds; None: of the store, which is the system's for a file, and the server's for a database
    )

    def __post_init__(self) -> None:
        if not isinstance(self.states, RedisPlace | None):
            raise UsageError("states: expected a RedisPlace")
        if self.states is not None and not isinstance(self.store, PostgresUri):
            raise UsageError("states: expected a store in PostgreSQL beside it")
        check_bounds(self, "ceiling", lowest=1, highest=CEILING)
        check_bounds(self, "lease", lowest=1, highest=LEASE)
        check_bounds(self, "stream_life", lowest=1, highest=3600)
        check_bounds(self, "held_per_member", lowest=1)
        check_bounds(self, "held_per_address", lowest=0)
        check_bounds(self, "failures_per_address", lowest=0)
        if not self.graphql and (
            self.graphql_introspection or self.graphql_documents or self.graphql_documents_only
        ):
            raise UsageError("graphql: expected true where one of its settings is given")
        if self.graphql_documents_only and self.graphql_documents is None:
            raise UsageError("graphql_documents_only: expected graphql_documents beside it")
        if not isinstance(self.quota, Quota):
            raise UsageError("quota: expected a Quota")
        if not isinstance(self.ladder, Ladder):
            raise UsageError("ladder: expected a Ladder")
        if self.admin_secret is not None and not _SECRET.fullmatch(self.admin_secret):
            raise UsageError("admin_secret: expected 32 to 512 characters as a bearer token has them")
        if not isinstance(self.webhook, Webhook | None):
            raise UsageError("webhook: expected a Webhook")
        if not isinstance(self.openid, OpenIdSettings | None):
            raise UsageError("openid: expected OpenIdSettings")
        if self.clock is not None and not callable(self.clock):
            raise UsageError("clock: expected a function that returns Unix seconds")
        if not isinstance(self.store, PostgresUri):
            try:
                object.__setattr__(self, "store", Path(self.store))
            except TypeError as error:
                raise UsageError("store: expected a path") from error
        object.__setattr__(self, "public_url", check_public_url(self.public_url))


def check_public_url(url: str) -> str:
    """Check that invitations can hold `url`, and return it; refused is for instance plain http beyond loopback."""
    if not isinstance(url, str):
        raise UsageError("public_url: expected text")
    try:
        parsed = BaseUrl.parse(url)
        if parsed.scheme == "https" or parsed.is_loopback:
            return check_relay_url(str(parsed))
    except (UsageError, RemoteProtocolError) as error:
        raise UsageError(f"public_url: {error}") from error
    raise UsageError("public_url: expected https, where it is not this machine alone")
