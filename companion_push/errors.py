"""What can go wrong in the programs of this package beyond the shared error tree.

::

    HeadlessPasskeyError
    ├── TransportError
    │   └── StoreBusy      another process holds the store: trying again may help
    └── StoreUnusable      the store's file cannot be opened, or is not one of ours
"""

from headless_passkey.errors import ExitStatus, HeadlessPasskeyError, TransportError


class StoreBusy(TransportError):  # noqa: N818  a state, not a fault
    """Another process holds the store: trying again may help."""


class StoreUnusable(HeadlessPasskeyError):  # noqa: N818  a state, not a fault
    """The store's file cannot be opened, or is not one of ours: another --store is needed."""

    exit_status = ExitStatus.USAGE
