"""What an operator chooses, checked once: frozen values, made at the edge and passed in."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from fido2.rpid import verify_rp_id

from relying_party.errors import UsageError

_RP_ID: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}

PageShows = Literal["everyone", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A relying party. `make` it: that is where its parts are checked against each other."""

    rp_id: str
    rp_name: str
    web_origins: frozenset[str]
    device_origins: frozenset[str]
    urls: tuple[str, ...]  # where clients reach us, scheme://host[:port]; request proofs name one of them
    store: Path
    page_shows: PageShows
    session_lifetime: int = 12 * 3600  # seconds
    requests_per_minute: int = 600  # from one address

    @classmethod
    def make(
        cls,
        *,
        rp_id: str,
        rp_name: str | None,
        web_origins: tuple[str, ...],
        device_origins: tuple[str, ...],
        reached_at: tuple[str, ...],
        store: Path,
        page_shows: PageShows | None = None,
        requests_per_minute: int = 600,
    ) -> "Config":
        """From an operator's words; `UsageError` when they do not fit together.

        web_origins, device_origins: none stand for the first of `reached_at`, and for the web's.
        reached_at: where we listen, as origins; the first is the one we tell.
        page_shows: None lets strangers see everyone only where there are no strangers, on localhost.
        """
        if not _RP_ID.fullmatch(rp_id) or rp_id.replace(".", "").isdigit():
            raise UsageError(f"{rp_id!r} is not an RP ID: expected a domain name in lower case")
        web = tuple(check_origin(origin, rp_id) for origin in web_origins or reached_at[:1])
        device = tuple(check_origin(origin, rp_id) for origin in device_origins or web)
        local = all(is_local(origin) for origin in web)
        return cls(
            rp_id=rp_id,
            rp_name=rp_name or rp_id,
            web_origins=frozenset(web),
            device_origins=frozenset(device),
            urls=tuple(dict.fromkeys((*reached_at, *web, *device))),
            store=store,
            page_shows=page_shows or ("everyone" if local else "own"),
            requests_per_minute=requests_per_minute,
        )

    @property
    def uses_tls(self) -> bool:
        """Whether every browser reaches us over TLS, here or at a proxy in front."""
        return all(origin.startswith("https://") for origin in self.web_origins)

    @property
    def is_local(self) -> bool:
        """Whether we are only reached on this machine."""
        return all(is_local(origin) for origin in self.web_origins)


def origin_of(scheme: str, host: str, port: int) -> str:
    """An origin as a browser writes it: without the port that goes without saying."""
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if _DEFAULT_PORTS.get(scheme) == port else f"{scheme}://{shown}:{port}"


def check_origin(origin: str, rp_id: str) -> str:
    """`origin`, when it is written as a browser writes it and may use the RP ID; else `UsageError`."""
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        written = origin_of(parts.scheme, parts.hostname or "", port)
    except ValueError:
        written = ""
    if written != origin:
        raise UsageError(f"{origin!r} is not an origin: expected https://host or https://host:port")
    if not verify_rp_id(rp_id, origin):
        raise UsageError(
            f"{origin} cannot use the RP ID {rp_id}: expected https and that domain or one below it"
        )
    return origin


def is_local(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    return host == "localhost" or host.endswith(".localhost")
