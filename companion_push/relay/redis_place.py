"""Where the account states are that lie beside the relay's database: Valkey or Redis, one server or a Cluster."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from headless_passkey.errors import UsageError

_PORT: Final = 6379
# as RFC 3986 divides a URI; `urlsplit` of newer Pythons (3.14.10) takes no list of hosts with an IPv6 address in it
_URI: Final = re.compile(
    r"(?P<scheme>rediss?)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?",
    re.IGNORECASE | re.ASCII,
)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_EXPECTED: Final = (
    "states: expected redis://[USER@]HOST[:PORT][,HOST...][/NUMBER], or rediss:// of that form for TLS"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisPlace:
    """Where one server answers, or some nodes of a Cluster."""

    hosts: tuple[tuple[str, int], ...]  # with ports; the first that answers says whether it is a Cluster
    tls: bool = False
    user: str | None = None  # of an ACL; None: the default user
    password: str | None = field(default=None, repr=False)
    number: int = 0  # of the database; a Cluster has none but 0
    prefix: str = "hpk"  # of each key
    ca: Path | None = None  # PEM file of roots to believe instead of the system's
    cert: Path | None = None  # the client's certificate and its key, for a server that asks for them
    key: Path | None = field(default=None, repr=False)

    def __str__(self) -> str:
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"redis{'s' * self.tls}://{hosts}"


def redis_place(uri: str, password: str | None = None) -> RedisPlace:
    """Read a URI: ``redis://[USER@]HOST[:PORT][,HOST...][/NUMBER]``, or ``rediss://`` for TLS, with ``?ca=FILE``, ``cert=FILE``,
    ``key=FILE``, ``prefix=WORD``.

    A password in it is refused, and not repeated: an argument is no place for a secret.
    """
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise UsageError(_EXPECTED)
    user, query = parts["user"] or "", parts["query"] or ""
    try:
        settings = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        if ":" in user or "password" in settings:
            raise UsageError("states: give the password in a file or in REDISCLI_AUTH, not in the URI")
        place = RedisPlace(
            hosts=tuple(_host(each) for each in parts["hosts"].split(",")),
            tls=parts["scheme"].lower() == "rediss",
            user=unquote(user) or None,
            password=password,
            number=int((parts["path"] or "").removeprefix("/") or 0),
            prefix=settings.pop("prefix", "hpk"),
            ca=_path(settings, "ca"),
            cert=_path(settings, "cert"),
            key=_path(settings, "key"),
        )
    except ValueError:
        raise UsageError(_EXPECTED) from None
    if place.number < 0:
        raise UsageError(_EXPECTED)
    if settings or not _PREFIX.fullmatch(place.prefix):
        raise UsageError("states: expected no more than ca, cert, key and prefix, a word of 1 to 32 letters")
    if not place.tls and (place.ca or place.cert or place.key):
        raise UsageError("states: ca, cert and key need rediss://")
    return place


def _host(text: str) -> tuple[str, int]:
    parts: SplitResult = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or parts.query:
        raise ValueError(text)
    return parts.hostname, parts.port or _PORT


def _path(settings: dict[str, str], name: str) -> Path | None:
    given = settings.pop(name, None)
    if given == "":
        raise ValueError(name)
    return None if given is None else Path(given)
