"""Why a server cannot be reached, in one vocabulary for relay, tunnel service and relying party."""

import os
import ssl

import aiohttp

from headless_passkey.errors import TransportError, TransportReason


def unreachable(error: Exception, host: str) -> TransportError:
    """What went wrong between here and `host`, in a few words and without the URL.

    error: what aiohttp or the system raised; host: how to call the server, with its name or address.
    """
    reason = TransportReason.UNREACHABLE
    match error:
        case aiohttp.ClientConnectorCertificateError():
            reason = TransportReason.UNTRUSTED_CERTIFICATE
            why = "its certificate is not to be trusted"
            if isinstance(error.certificate_error, ssl.SSLCertVerificationError):
                why += f" ({error.certificate_error.verify_message})"
        case aiohttp.ClientConnectorSSLError():
            why = "it does not speak TLS as it should"
        case aiohttp.ClientConnectorDNSError():
            reason = TransportReason.NAME_NOT_RESOLVED
            why = "its name cannot be resolved"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))) if number > 0:
            why = os.strerror(number).lower()  # asyncio puts words of its own into the error
        case TimeoutError():
            why = "it did not answer in time"
        case _:
            why = "it hung up before it answered"
    return TransportError(f"{host} cannot be reached: {why}", reason=reason)
