"""What a phone's answers come from: a file of software passkeys (`credential_file`), or a security key (`security_key`)."""

from typing import Protocol

from headless_passkey.hybrid.ctap2 import GetInfoResponse, User


class Asked(Protocol):
    """A command that was parsed and checked, and waits for the user's consent."""

    @property
    def rp_id(self) -> str: ...

    @property
    def accounts(self) -> tuple[User, ...]:
        """The accounts to choose from; for a registration the new one; empty where they are not known yet."""

    async def answer(self, *, account: int, now: int) -> bytes:
        """Make the response's CBOR after the user's consent.

        account: index in `accounts`; 0 where there are none. now: Unix seconds. Raises `CtapError`, `NotApproved` when the
        user declines after all, `TransportError` when the authenticator has gone. Cancelled when nobody waits any more.
        """


class Authenticator(Protocol):
    """Something that holds passkeys."""

    async def info(self) -> GetInfoResponse:
        """The response of authenticatorGetInfo, as the device gets it."""

    async def ask(self, command: int, payload: bytes) -> Asked:
        """Parse and check a command; `CtapError` when it fails already."""
