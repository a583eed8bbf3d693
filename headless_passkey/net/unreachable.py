"""Why a server cannot be reached, in one vocabulary for relay, tunnel service and relying party."""

import asyncio
import os
import ssl
from collections.abc import Awaitable
from typing import Final, TypeVar

import aiohttp

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.mends import transport_error
from name_lookups.resolver import NoAnswer

# by OpenSSL's X509_V_ERR codes: not yet valid, expired, another host, another address
_CASES: Final = {9: "dates", 10: "dates", 62: "name", 64: "name"}
_LONG: Final = 80  # characters of a name that is no name

_T = TypeVar("_T")


def unreachable(error: Exception, host: str) -> TransportError:
    """What went wrong between here and `host`, in a few words and without the URL; with a mend, where the certificate is to blame.

    error: what aiohttp or the system raised; host: how to call the server, with its name or address.
    """
    reason, why = what_went_wrong(error)
    what = f"{host} cannot be reached: {why}"
    if reason is TransportReason.UNTRUSTED_CERTIFICATE:
        return transport_error(what, reason, _case(error))
    return TransportError(what, reason=reason)


def check_name(host: str) -> None:
    """Refuse a host's name that no resolver takes, for an empty label or one of more than 63 octets (RFC 1035 §2.3.4).

    `TransportError` (name-not-resolved). `socket.getaddrinfo` would raise what its codec does, a bare `UnicodeError`.
    """
    try:
        host.encode("idna")
    except UnicodeError as error:
        name = host if len(host) < _LONG else f"{host[:_LONG]}…"
        what = f"{name!a} cannot be reached: it is no host's name"
        raise TransportError(what, reason=TransportReason.NAME_NOT_RESOLVED) from error


def what_went_wrong(error: Exception) -> tuple[TransportReason, str]:
    """The word and the few words for what aiohttp or the system raised; "it" is the server."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            why = "its certificate is not trusted"
            if isinstance(error.certificate_error, ssl.SSLCertVerificationError):
                why += f" ({error.certificate_error.verify_message})"
            return TransportReason.UNTRUSTED_CERTIFICATE, why
        case aiohttp.ClientConnectorSSLError():
            why = "it does not speak TLS as it should"
        case aiohttp.ClientConnectorDNSError(os_error=NoAnswer(strerror=str(why))):
            return TransportReason.NAME_NOT_RESOLVED, why
        case aiohttp.ClientConnectorDNSError():
            return TransportReason.NAME_NOT_RESOLVED, "its name cannot be resolved"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))) if number > 0:
            why = os.strerror(number).lower()  # asyncio puts words of its own into the error
        case aiohttp.ClientResponseError():
            why = "it does not speak HTTP as it should"
        case TimeoutError():
            why = "it did not answer in time"
        case _:
            why = "it hung up before it answered"
    return TransportReason.UNREACHABLE, why


def is_about_dates(error: BaseException | None) -> bool:
    """Whether a certificate is refused for its dates, which a wrong clock here may be to blame for."""
    return _case(error) == "dates"


def _case(error: BaseException | None) -> str | None:
    """The case of the mend for a certificate that is refused."""
    if not isinstance(error, aiohttp.ClientConnectorCertificateError):
        return None
    why = error.certificate_error
    return _CASES.get(why.verify_code) if isinstance(why, ssl.SSLCertVerificationError) else None


async def by(deadline: float, work: Awaitable[_T], message: str) -> _T:
    """Wait for `work` until `deadline` on the event loop's clock; `TransportError` (unreachable) with `message` after it."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError as error:
        raise TransportError(message, reason=TransportReason.UNREACHABLE) from error
