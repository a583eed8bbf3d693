"""Base URLs, normalised to the form in which they are compared, stored and signed.

A server may be mounted below a path (``https://login.example/passkeys``). Scheme and host become lower case, an
internationalised host its A-labels (as browsers do, UTS #46), the scheme's default port and slashes at the end go::

    BaseUrl.parse("HTTPS://Login.Example:443/passkeys/")  # https://login.example/passkeys
"""

import ipaddress
import re
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from headless_passkey.errors import UsageError
from program_parts.domains import is_domain, is_this_machine

MAX_SIZE: Final = 1024  # characters
WEB: Final = ("https", "http")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80, "wss": 443, "ws": 80}
_PATH: Final = re.compile(r"(/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)*", re.ASCII)


# no dataclass, nor are `Proxy` and `RelatedOrigins`: a start waits for them, and a NamedTuple is made sooner (docs/adr/0043)
class BaseUrl(NamedTuple):
    """A server's base URL, with the path that it is mounted at."""

    scheme: str
    host: str  # a name in lower case, or an address; an IPv6 address without brackets
    port: int | None  # None: the scheme's default
    path: str  # nothing, or a slash in front and none at the end

    @classmethod
    def parse(cls, text: str, *, schemes: tuple[str, ...] = WEB) -> Self:
        """Parse and normalise user input; `UsageError` says what is wrong with it."""
        text = text.strip()
        if len(text) > MAX_SIZE:
            raise UsageError(f"a URL has at most {MAX_SIZE} characters")
        example = f"{schemes[0]}://HOST[:PORT][/PATH]"
        try:
            parts = urlsplit(text)
            name, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UsageError(f"expected {example}") from error
        if parts.scheme not in schemes or not name or not text.isprintable() or "\\" in text:
            raise UsageError(f"expected {example}")
        if "@" in parts.netloc or "?" in text or "#" in text:
            raise UsageError(f"expected {example}, without user, query and fragment")
        if port == 0:
            raise UsageError("port 0 is no port")
        path = parts.path.rstrip("/")
        dots = {".", ".."} & set(path.replace("%2E", ".").replace("%2e", ".").split("/"))
        if dots or not _PATH.fullmatch(path):
            raise UsageError("the path of a URL is of names between single slashes, percent-encoded")
        return cls(
            scheme=parts.scheme,
            host=_host(name, in_brackets="[" in parts.netloc),
            port=None if port == _DEFAULT_PORTS[parts.scheme] else port,
            path=path,
        )

    @property
    def origin(self) -> str:
        """The origin, as browsers serialise it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port is None else f":{self.port}")

    @property
    def authority(self) -> str:
        """Host and port, for messages."""
        return self.origin.partition("://")[2]

    def __str__(self) -> str:
        return self.origin + self.path

    @property
    def is_loopback(self) -> bool:
        """Whether the host is loopback, where plain http cannot be intercepted on a network."""
        return is_this_machine(self.host)


def _host(name: str, *, in_brackets: bool) -> str:
    """Normalise a host: an address to its canonical form, a name to lower-case A-labels."""
    if in_brackets:
        try:
            return str(ipaddress.IPv6Address(name if "%" not in name else ""))
        except ValueError as error:
            raise UsageError("between [ and ] stands an IPv6 address") from error
    try:
        return str(ipaddress.IPv4Address(name))
    except ValueError:
        pass
    host = name if name.isascii() else _a_labels(name)
    if not is_domain(host):
        raise UsageError("the host of a URL is a name of letters, digits and hyphens, or an address")
    return host


def _a_labels(name: str) -> str:
    try:
        from yarl import URL  # noqa: PLC0415  the bare core does without, and most names are ASCII
    except ImportError as error:
        raise UsageError("write the host in ASCII, with xn-- where it needs that") from error
    try:
        return URL.build(scheme="https", host=name).raw_host or ""
    except ValueError as error:  # UnicodeError is one
        raise UsageError("the host's name cannot be written in ASCII") from error
