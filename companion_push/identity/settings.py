"""The settings of an OpenID Connect issuer, which are checked at construction."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_push.identity.authority import SignInWay
from headless_passkey.errors import UsageError
from headless_passkey.net.base_url import BaseUrl

EDDSA: Final = "EdDSA"  # what issuers call Ed25519 that are older than RFC 9864
# by kind of key and curve; all are asymmetric: whoever knows the verifying key cannot sign
ALGORITHMS: Final = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "Ed25519": ("OKP", "Ed25519"),
    EDDSA: ("OKP", "Ed25519"),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
}
DEFAULT_ALGORITHMS: Final = ("ES256", "ES384", "Ed25519", EDDSA, "PS256", "RS256")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIdSettings:
    """Whose tokens found accounts. A setting that cannot be is a `UsageError` with its name."""

    issuer: str  # exactly as the issuer writes it, with or without a slash at its end
    audience: str  # of the tokens: this relay's name at the issuer, or the client itself for ID tokens
    clients: tuple[str, ...]  # to whom the issuer gave them; a companion signs in as the first
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    require_bound: bool = False  # take only tokens that are bound to the caller's key (``cnf.jkt``)
    ca: Path | None = None  # a PEM file of roots to believe for the issuer, instead of the system's

    def __post_init__(self) -> None:
        check_issuer(self.issuer)
        for name, value in (("audience", self.audience), *(("clients", client) for client in self.clients)):
            if not isinstance(value, str) or not 0 < len(value) <= 256 or not value.isprintable():
                raise UsageError(f"{name}: expected 1 to 256 printable characters")
        if not isinstance(self.clients, tuple) or not self.clients:
            raise UsageError("clients: name the client that companions are at the issuer")
        if not self.algorithms or not set(self.algorithms) <= ALGORITHMS.keys():
            raise UsageError(f"algorithms: expected some of {', '.join(ALGORITHMS)}")

    @property
    def way(self) -> SignInWay:
        return SignInWay(issuer=self.issuer, client=self.clients[0], audience=self.audience)


def check_issuer(url: str) -> str:
    """Check an issuer's URL and return it as it is; refused is plain http beyond loopback."""
    try:
        parsed = BaseUrl.parse(url if isinstance(url, str) else "")
    except UsageError as error:
        raise UsageError(f"issuer: {error}") from error
    if parsed.scheme != "https" and not parsed.is_loopback:
        raise UsageError("issuer: expected https, where it is not this machine alone")
    return url
