"""Whom a TLS client here believes: the system's roots, or one PEM file instead of them."""

import ssl
from pathlib import Path

from headless_passkey.command_line import UsageError


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """A client's TLS settings: certificates are verified and the host name is always checked.

    ca: a PEM file whose certificates replace the system's roots; None keeps those. `UsageError` when the
    file cannot be read or holds no certificate.
    """
    if ca is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise UsageError(f"{ca} does not hold certificates in PEM form") from error
    except OSError as error:
        raise UsageError(f"cannot read {ca}: {error.strerror}") from error
