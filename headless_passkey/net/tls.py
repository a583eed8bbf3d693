"""The trusted roots of TLS clients: the system's, or one PEM file in their place."""

import shlex
import ssl
from pathlib import Path

from headless_passkey.errors import SetupError, SetupReason
from headless_passkey.mends import setup_error


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Make a client's TLS settings, which always verify certificate and host name.

    ca: a PEM file whose certificates replace the system's roots; None keeps those. `SetupError` (bad-certificate) when
    the file cannot be read or holds no certificate.
    """
    if ca is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise _bad(ca, f"{ca} does not hold certificates in PEM form") from error
    except OSError as error:
        raise _bad(ca, f"cannot read {ca}: {error.strerror}") from error


def tls_or_default(ca: Path | None) -> ssl.SSLContext | None:
    """Make a client's TLS settings of a file; None for the system's roots, where aiohttp takes the settings that it has.

    aiohttp has read the system's roots when it was imported; a second time would take 20 ms and 5 MiB.
    """
    return None if ca is None else tls_context(ca)


def _bad(ca: Path, what: str) -> SetupError:
    return setup_error(what, SetupReason.BAD_CERTIFICATE, file=shlex.quote(str(ca)))
