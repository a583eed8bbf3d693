"""What can go wrong in the programs of this package beyond the shared error tree.

::

    HeadlessPasskeyError
    ├── TransportError
    │   └── StoreUnavailable   the store does not answer: trying again may help
    │       └── StoreBusy      another process holds it
    └── StoreUnusable          the store's file cannot be opened, or is not one of ours
"""

from headless_passkey.errors import ExitStatus, HeadlessPasskeyError, TransportError


class StoreUnavailable(TransportError):  # noqa: N818  a state, not a fault
    """The store does not answer: locked, full, gone, or no longer the file at its path. Trying again may help."""


class StoreBusy(StoreUnavailable):
    """Another process holds the store: trying again may help."""


class StoreUnusable(HeadlessPasskeyError):  # noqa: N818  a state, not a fault
    """The store's file cannot be opened, or is not one of ours: another --store is needed."""

    exit_status = ExitStatus.USAGE
