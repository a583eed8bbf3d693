"""What an operator chooses, checked once: frozen values, made at the edge and passed in."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal
from urllib.parse import urlsplit

from fido2.rpid import suffixes, verify_rp_id
from yarl import URL

from program_parts.base64url import base64url, from_base64url
from program_parts.domains import is_domain, is_localhost, is_this_machine
from relying_party.core.access_tokens import TokenKey, secret_hash
from relying_party.core.bounds import check_whole
from relying_party.core.credentials import BackupEligibility
from relying_party.core.sessions import Lifetimes
from relying_party.errors import InvalidRequest, UsageError
from relying_party.names import name_of
from relying_party.place import PostgresUri, StorePlace

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_SUFFIXES: Final = frozenset(suffixes)
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])*")
_FINGERPRINT: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}")
ANDROID: Final = "android:apk-key-hash:"
MAX_RESOURCES: Final = 16
MAX_LABELS: Final = 5  # of related origins that every browser looks at (WebAuthn Level 3 §5.11)

PageShows = Literal["everyone", "own"]


DEFAULT_LIFETIMES: Final = Lifetimes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A relying party. `make` it: that is where its parts are checked against each other."""

    rp_id: str
    rp_name: str
    public_url: str  # what clients call it by, with the path it is mounted at; no slash at the end
    home: str  # the first of our own web origins
    web_origins: frozenset[str]
    device_origins: frozenset[str]
    urls: tuple[str, ...]  # origins at which clients reach us; request proofs name one of them
    store: StorePlace
    page_shows: PageShows
    android_origins: frozenset[str] = frozenset()
    top_origins: frozenset[str] = frozenset()  # pages of others that may embed ours
    ml_dsa: bool = False  # whether to offer ML-DSA after the others
    prf: bool = False  # whether to ask for the prf extension
    resources: tuple[str, ...] = ()  # origins of the services that take our access tokens, beside ourselves
    resource_secrets: Mapping[bytes, str] = field(
        default_factory=dict, repr=False
    )  # whose each is, by its hash
    token_keys: tuple[TokenKey, ...] = ()  # the first signs; none: tokens are random text
    backup_eligibility: BackupEligibility = BackupEligibility.FIXED
    manage: str = "/"  # paths of our pages, for /.well-known/passkey-endpoints
    enroll: str = "/"
    lifetimes: Lifetimes = DEFAULT_LIFETIMES
    requests_per_minute: int = 600  # from one address
    shared_store: bool = False  # other processes serve with this store too, each with this setting
    registrations_per_day: int = 100  # new users, from one address

    def __post_init__(self) -> None:
        object.__setattr__(self, "public_url", check_public_url(self.public_url))
        check_whole(self, "requests_per_minute", "registrations_per_day")
        if self.page_shows not in ("everyone", "own"):
            raise UsageError("page_shows: expected everyone or own")
        for name in ("manage", "enroll"):
            if not str(getattr(self, name)).startswith("/"):
                raise UsageError(f"{name}: expected a path with a slash in front")
        if not isinstance(self.lifetimes, Lifetimes):
            raise UsageError("lifetimes: expected Lifetimes")
        if not isinstance(self.backup_eligibility, BackupEligibility):
            raise UsageError("backup_eligibility: expected a BackupEligibility")
        if not isinstance(self.store, PostgresUri):
            try:
                object.__setattr__(self, "store", Path(self.store))
            except TypeError as error:
                raise UsageError("store: expected a path or a PostgresUri") from error

    @classmethod
    def make(
        cls,
        *,
        rp_id: str,
        rp_name: str | None,
        web_origins: tuple[str, ...],
        device_origins: tuple[str, ...],
        public_url: str,
        also_reached_at: tuple[str, ...] = (),
        store: StorePlace,
        page_shows: PageShows | None = None,
        requests_per_minute: int = 600,
        shared_store: bool = False,
        registrations_per_day: int = 100,
        related_origins: tuple[str, ...] = (),
        android_apps: tuple[str, ...] = (),
        top_origins: tuple[str, ...] = (),
        ml_dsa: bool = False,
        prf: bool = False,
        backup_eligibility: BackupEligibility = BackupEligibility.FIXED,
        lifetimes: Lifetimes = DEFAULT_LIFETIMES,
        resources: tuple[str, ...] = (),
        resource_secrets: Mapping[str, str] = MappingProxyType({}),
        token_keys: tuple[TokenKey, ...] = (),
    ) -> "Config":
        """From an operator's words; `UsageError` when they do not fit together.

        public_url: what clients call it by, ``https://HOST[:PORT][/PATH]``, with the path where a service or proxy has
        it. also_reached_at: other origins of the same.
        web_origins, device_origins: none stand for the origin of `public_url`, and for the web's.
        page_shows: None lets strangers see everyone only where there are no strangers, on localhost.
        related_origins: of other domains, whose pages use the same RP ID (/.well-known/webauthn).
        android_apps: certificates, as SHA-256 fingerprint or as `android:apk-key-hash:…`.
        shared_store: several processes serve with this store, and share used proofs in it.
        top_origins: pages of others in whose frames ours may ask for a passkey.
        resources: services that take our access tokens, as origins. resource_secrets: by which those that ask us
        about a token are known, by origin; they need not be in `resources` too. token_keys: sign access tokens
        that services verify by themselves.
        """
        if not is_domain(rp_id):
            raise UsageError(f"{rp_id!r} is not an RP ID: expected a domain name in lower case")
        related = tuple(_check_https(origin) for origin in related_origins)
        web = tuple(check_origin(origin, rp_id) for origin in web_origins)
        public_url = check_public_url(public_url)
        own = origin_in(public_url)
        web = web or (check_origin(own, rp_id),)
        device = tuple(
            origin if origin in related else check_origin(origin, rp_id) for origin in device_origins or web
        )
        web += related
        _check_labels((*web, *device))
        services = tuple(_check_https(origin) for origin in dict.fromkeys((*resources, *resource_secrets)))
        if len(services) > MAX_RESOURCES:
            raise UsageError(f"at most {MAX_RESOURCES} services take our tokens")
        local = all(is_local(origin) for origin in web)
        return cls(
            rp_id=rp_id,
            rp_name=_shown_name(rp_name) if rp_name else rp_id,
            public_url=public_url,
            home=web[0],
            web_origins=frozenset(web),
            device_origins=frozenset(device),
            urls=tuple(dict.fromkeys((own, *also_reached_at, *web, *device))),
            store=store,
            page_shows=page_shows or ("everyone" if local else "own"),
            android_origins=frozenset(android_origin(app) for app in android_apps),
            top_origins=frozenset(_check_https(origin) for origin in top_origins),
            ml_dsa=ml_dsa,
            prf=prf,
            backup_eligibility=backup_eligibility,
            lifetimes=lifetimes,
            requests_per_minute=requests_per_minute,
            shared_store=shared_store,
            registrations_per_day=registrations_per_day,
            resources=services,
            resource_secrets={_check_secret(secret): name for name, secret in resource_secrets.items()},
            token_keys=token_keys,
        )

    @property
    def path(self) -> str:
        """The path of the public URL: empty, or a slash in front and none at the end."""
        return self.public_url.removeprefix(origin_in(self.public_url))

    @property
    def uses_tls(self) -> bool:
        """Whether every browser reaches us over TLS, here or at a proxy in front.

        Pages of related origins are elsewhere, such as on a developer's own machine: they reach us as all others do.
        """
        return all(origin.startswith("https://") for origin in self._own_origins)

    @property
    def is_local(self) -> bool:
        """Whether we are only reached on this machine."""
        return all(is_local(origin) for origin in self._own_origins)

    @property
    def _own_origins(self) -> list[str]:
        return _own_origins(self.rp_id, self.web_origins)


@lru_cache(maxsize=16)  # asked several times by each request
def _own_origins(rp_id: str, web_origins: frozenset[str]) -> list[str]:
    """The web origins of the RP ID's own domain."""
    return [origin for origin in web_origins if verify_rp_id(rp_id, origin)]


def _shown_name(rp_name: str) -> str:
    try:
        return name_of(rp_name)
    except InvalidRequest as error:
        raise UsageError(f"the relying party's name: {error}") from error


def android_origin(app: str) -> str:
    """The origin that Android writes for an app: of the SHA-256 of its certificate, in either spelling."""
    if _FINGERPRINT.fullmatch(app):
        digest = bytes.fromhex(app.replace(":", ""))
        return ANDROID + base64url(digest)
    if app.startswith(ANDROID) and len(from_base64url(app.removeprefix(ANDROID)) or b"") == 32:
        return app
    raise UsageError(f"{app!r} is neither a SHA-256 fingerprint nor {ANDROID} and a hash in base64url")


def origin_of(scheme: str, host: str, port: int) -> str:
    """An origin as a browser writes it: without the port that goes without saying."""
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if _DEFAULT_PORTS.get(scheme) == port else f"{scheme}://{shown}:{port}"


def check_public_url(url: str) -> str:
    """`url` in the one form in which it is compared: lower case, A-labels, no default port, no slash at the end.

    `UsageError` for one that clients could not call safely, such as plain http on another machine.
    """
    if not isinstance(url, str):
        raise UsageError("public_url: expected text")
    text = url.strip()
    wrong = UsageError("public_url: expected https://HOST[:PORT][/PATH], without user, query and fragment")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        name = host if host.isascii() else URL.build(scheme="https", host=host).raw_host or ""
        name = _address(name) or name
    except ValueError as error:  # UnicodeError is one
        raise wrong from error
    path = parts.path.rstrip("/")
    if (
        parts.scheme not in _DEFAULT_PORTS
        or not (is_domain(name) or _address(name))
        or not _PATH.fullmatch(path)
        or any(mark in text for mark in "@?#\\")
        or not text.isprintable()
        or parts.port == 0
    ):
        raise wrong
    origin = origin_of(parts.scheme, name, port)
    if parts.scheme == "http" and not is_this_machine(name):
        raise UsageError("public_url: expected https, where it is not this machine alone")
    return origin + path


def origin_in(url: str) -> str:
    """The origin of a URL that `check_public_url` has seen."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def check_origin(origin: str, rp_id: str) -> str:
    """`origin`, when it is written as a browser writes it and may use the RP ID; else `UsageError`."""
    _check_written(origin)
    if not verify_rp_id(rp_id, origin):
        raise UsageError(
            f"{origin} cannot use the RP ID {rp_id}: expected https and that domain or one below it"
        )
    return origin


def is_local(origin: str) -> bool:
    """Whether an origin's host is a name that browsers resolve to this machine."""
    return is_localhost(urlsplit(origin).hostname or "")


def label_of(origin: str) -> str:
    """What browsers count: the part of a host before its public suffix (`example` of www.example.co.uk)."""
    labels = (urlsplit(origin).hostname or "").split(".")
    for start in range(1, len(labels)):
        if _is_suffix(labels[start:]):
            return labels[start - 1]
    return labels[-2] if len(labels) > 1 else labels[0]  # a suffix that nobody has listed is one label long


def _is_suffix(labels: list[str]) -> bool:
    name = ".".join(labels)
    if f"!{name}" in _SUFFIXES:
        return False
    return name in _SUFFIXES or (len(labels) > 1 and f"*.{'.'.join(labels[1:])}" in _SUFFIXES)


def _check_written(origin: str) -> None:
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        written = origin_of(parts.scheme, parts.hostname or "", port)
    except ValueError:
        written = ""
    if written != origin:
        raise UsageError(f"{origin!r} is not an origin: expected https://host or https://host:port")


def _check_https(origin: str) -> str:
    _check_written(origin)
    if not (origin.startswith("https://") or is_local(origin)):
        raise UsageError(f"{origin} is not reached over TLS")
    return origin


def _address(host: str) -> str | None:
    """Write an IP address in the one form that browsers have for it (RFC 5952); None for what is none, or has a zone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return None if "%" in host else str(address)


def _check_secret(secret: str) -> bytes:
    if not (secret.isascii() and secret.isprintable() and " " not in secret and 32 <= len(secret) <= 256):
        raise UsageError("a resource server's secret has 32 to 256 characters of ASCII without spaces")
    return secret_hash(secret)


def _check_labels(origins: Iterable[str]) -> None:
    labels = sorted({label_of(origin) for origin in origins})
    if len(labels) > MAX_LABELS:
        raise UsageError(
            f"browsers look at related origins of {MAX_LABELS} names, and these are more: {', '.join(labels)}"
        )
