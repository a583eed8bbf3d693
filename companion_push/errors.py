"""The errors of this package, which extend the tree of headless_passkey.errors.

::

    HeadlessPasskeyError
    ├── TransportError(reason)
    │   └── StoreUnavailable   4   the store does not answer: trying again may help
    │       └── StoreBusy      4   another process holds it
    └── SetupError(reason)
        └── StoreUnusable      10  the store's file cannot be opened, or is no store
"""

import errno
import os

from headless_passkey.errors import SetupError, SetupReason, TransportError, TransportReason
from headless_passkey.mends import setup_error


class StoreUnavailable(TransportError):  # noqa: N818  a state, not a fault
    """The store does not answer: locked, full, gone, or no longer the file at its path. Trying again may help."""


class StoreBusy(StoreUnavailable):
    """Another process holds the store: trying again may help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=TransportReason.IN_USE)


class StoreUnusable(SetupError):  # noqa: N818  a state, not a fault
    """The store's file cannot be opened, or is no store: use another --store."""

    def __init__(self, message: str, *, reason: SetupReason = SetupReason.STATE_UNWRITABLE) -> None:
        super().__init__(message, reason=reason, advice="name another file with `--store`")


def cannot_listen(host: str, port: int, error: OSError) -> SetupError:
    """Make the error for an address that a server cannot listen on."""
    reason = SetupReason.PORT_TAKEN if error.errno == errno.EADDRINUSE else SetupReason.CANNOT_LISTEN
    name = f"[{host}]" if ":" in host else host
    why = error.strerror
    if (error.errno or 0) in errno.errorcode and error.errno != errno.EADDRNOTAVAIL:
        why = os.strerror(error.errno or 0)  # asyncio puts words of its own into the error
    return setup_error(f"cannot listen on {name}:{port}: {why or error}", reason, port=str(port))
