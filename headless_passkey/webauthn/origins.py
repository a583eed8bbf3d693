"""The rules by which an origin may use an RP ID (WebAuthn Level 3 §5.1.3, §5.11).

An origin may use its host as RP ID, a parent domain of its host that is no public suffix, or an RP ID whose
``https://RP_ID/.well-known/webauthn`` lists the origin. The public suffix list is part of the package
publicsuffixlist; nothing is fetched. A process reads it once, in about 50 ms on two cores, at the first RP ID that differs
from the host.
"""

import functools
from typing import TYPE_CHECKING, Final, NamedTuple, Self
from urllib.parse import urlsplit

from headless_passkey.errors import ProtocolReason, RemoteProtocolError, SetupReason, UsageError
from headless_passkey.mends import setup_error
from program_parts.domains import is_domain, is_localhost
from program_parts.json_text import decode_json

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

MAX_LABELS: Final = 5  # labels that may share an RP ID; WebAuthn requires at least 5
MAX_DOCUMENT_SIZE: Final = 256 * 1024  # bytes of a well-known document, Chromium's limit

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


def check_origin(origin: str) -> str:
    """Check that `origin` is a web origin that a device may use, and return it; `UsageError` otherwise."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError as error:
        raise UsageError("the origin is not a URL") from error
    host = parts.hostname or ""
    secure = parts.scheme == "https" or (parts.scheme == "http" and is_localhost(host))
    if not secure or not is_domain(host) or origin != _written(parts.scheme, host, port):
        raise UsageError(
            "an origin is https://NAME[:PORT], or http://localhost[:PORT], in lower case, as browsers write it:"
            " no address, no default port"
        )
    return origin


def host_of(origin: str) -> str:
    """The host of an origin that `check_origin` returned."""
    return urlsplit(origin).hostname or ""


def is_within(host: str, rp_id: str) -> bool:
    """Whether `rp_id` is `host` or a registrable domain suffix of it (HTML)."""
    if rp_id == host:
        return True
    if not is_domain(rp_id) or not host.endswith("." + rp_id):
        return False
    suffixes = _public_suffixes()
    public = suffixes.publicsuffix(host) or host
    return suffixes.publicsuffix(rp_id) != rp_id and not ("." + public).endswith("." + rp_id)


class RelatedOrigins(NamedTuple):
    """An RP ID's related origins: other origins that its host allows to use it (§5.11)."""

    rp_id: str
    origins: tuple[str, ...]  # unchecked URLs of the document

    @classmethod
    def parse(cls, document: bytes, *, rp_id: str) -> Self:
        """Parse the document of `well_known_url`; `RemoteProtocolError` when it is malformed."""
        if len(document) > MAX_DOCUMENT_SIZE:
            raise RemoteProtocolError(
                "a list of related origins has 256 KiB at most", reason=ProtocolReason.TOO_LONG
            )
        try:
            values = decode_json(document)
        except ValueError as error:
            raise RemoteProtocolError(
                "the list of related origins is not JSON", reason=ProtocolReason.MALFORMED_JSON
            ) from error
        origins = values.get("origins") if isinstance(values, dict) else None
        if not isinstance(origins, list) or not all(isinstance(origin, str) for origin in origins):
            raise RemoteProtocolError(
                "the list of related origins has no member origins that lists strings",
                reason=ProtocolReason.MALFORMED_RELATED_ORIGINS,
            )
        return cls(rp_id=_check_rp_id(rp_id), origins=tuple(origins))

    def allow(self, origin: str) -> bool:
        """Run the related origins validation procedure (§5.11.1), without its fetch.

        The same name under several public suffixes counts as one label. Origins of a sixth label are skipped, and so are
        entries that are not URLs of a registrable domain.
        """
        labels: set[str] = set()
        for entry in self.origins:
            entry_origin, label = _read_entry(entry)
            if label is None or (len(labels) >= MAX_LABELS and label not in labels):
                continue
            if entry_origin == origin:
                return True
            labels.add(label)
        return False


def well_known_url(rp_id: str) -> str:
    """The URL of an RP ID's related origins; `RemoteProtocolError` when the RP ID is not a domain name."""
    return f"https://{_check_rp_id(rp_id)}/.well-known/webauthn"


def _check_rp_id(rp_id: str) -> str:
    if not is_domain(rp_id):
        raise RemoteProtocolError(
            "an RP ID is a domain name in lower case", reason=ProtocolReason.MALFORMED_RP_ID
        )
    return rp_id


def _read_entry(entry: str) -> tuple[str, str] | tuple[None, None]:
    """Parse an entry: the origin of a URL, and the label of its registrable domain (``example`` of ``https://a.example.co.uk``)."""
    try:
        parts = urlsplit(entry)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None, None
    registrable = _public_suffixes().privatesuffix(host) if is_domain(host) else None
    if registrable is None:
        return None, None
    return _written(parts.scheme, host, port), registrable.partition(".")[0]


def _written(scheme: str, host: str, port: int | None) -> str:
    """Serialise an origin as browsers do."""
    return f"{scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS.get(scheme)) else f":{port}")


@functools.cache
def _public_suffixes() -> "PublicSuffixList":
    try:
        from publicsuffixlist import PublicSuffixList  # noqa: PLC0415  most sign-ins do not need it
    except ImportError as error:
        raise setup_error(
            "to check this RP ID takes publicsuffixlist", SetupReason.MISSING_PACKAGE, extra="device"
        ) from error
    return PublicSuffixList()
