"""The links of the software phone on disk, FOR DEMONSTRATIONS AND TESTS ONLY (CTAP 2.2 §11.5.2).

It holds the phone's long-term key, its identity, and a link for each device that it is linked with, with the
registration secret of its contact ID.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from companion_push.companion.software_file import VERSION, check_private_key, read_file, write_file
from companion_push.waking import MAX_CONTACTS, SECRET_SIZE, contact_id
from headless_passkey.errors import UsageError
from headless_passkey.hybrid.keys import CURVE, generate
from headless_passkey.hybrid.linking import LINK_ID_SIZE, LINK_SECRET_SIZE, OfferedLink
from headless_passkey.process.private_file import lock_within

_LIMIT: Final = 1 << 18  # bytes of the file
_WARNING: Final = (
    "links of a software phone for demonstrations and tests: whoever reads this file can stand for it"
)


class _Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    linked_at: Annotated[int, msgspec.Meta(ge=0)]
    tunnel_domain: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
    registration_secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_SIZE, max_length=SECRET_SIZE)]
    link_id: Annotated[bytes, msgspec.Meta(min_length=LINK_ID_SIZE, max_length=LINK_ID_SIZE)]
    link_secret: Annotated[bytes, msgspec.Meta(min_length=LINK_SECRET_SIZE, max_length=LINK_SECRET_SIZE)]

    def __repr__(self) -> str:
        return "_Link()"  # it holds a secret


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    warning: str
    private_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    links: Annotated[list[_Link], msgspec.Meta(max_length=MAX_CONTACTS)]

    def __repr__(self) -> str:
        return "_File()"  # it holds a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One link, as the phone keeps it."""

    device: str  # whom it was made for, as the phone's user knows it
    linked_at: int  # Unix seconds
    tunnel_domain: int  # of the tunnel service that knows its contact ID
    registration_secret: bytes = field(repr=False)  # 32 bytes
    offered: OfferedLink = field(repr=False)

    @property
    def name(self) -> str:
        """The link ID in hexadecimal, to name the link by."""
        return self.offered.link_id.hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFile:
    """The file of the software phone's links."""

    path: Path
    phone: str = "Software phone"  # what devices call it

    def load(self) -> tuple[Link, ...]:
        """All links; none when there is no file. `SetupError` when it cannot be used."""
        file = self._read()
        if file is None:
            return ()
        identity = self._identity(file)
        return tuple(self._link(identity, each) for each in file.links)

    async def add(self, *, device: str, tunnel_domain: int, now: int) -> Link | None:
        """Make a link for a device, and write it; None when there are `MAX_CONTACTS` already. now: Unix seconds."""
        async with lock_within(self.path.resolve()):
            file = self._read() or _File(VERSION, _WARNING, _private_bytes(generate()), [])
            identity = self._identity(file)
            if len(file.links) == MAX_CONTACTS:
                return None
            made = _Link(
                device=device[:256],
                linked_at=now,
                tunnel_domain=tunnel_domain,
                registration_secret=secrets.token_bytes(SECRET_SIZE),
                link_id=secrets.token_bytes(LINK_ID_SIZE),
                link_secret=secrets.token_bytes(LINK_SECRET_SIZE),
            )
            write_file(self.path, msgspec.structs.replace(file, links=[*file.links, made]))
        return self._link(identity, made)

    async def remove(self, name: str) -> None:
        """Remove a link by its name."""
        async with lock_within(self.path.resolve()):
            file = self._read()
            if file is not None:
                left = [each for each in file.links if each.link_id.hex() != name]
                write_file(self.path, msgspec.structs.replace(file, links=left))

    def named(self, name: str) -> Link:
        """The link of this name; `UsageError` when there is none."""
        found = next((each for each in self.load() if each.name == name), None)
        if found is None:
            raise UsageError(f"{self.path} has no link of that name")
        return found

    def _read(self) -> _File | None:
        return read_file(self.path, _File, what="links", limit=_LIMIT)

    def _identity(self, file: _File) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(check_private_key(self.path, file.private_key), CURVE)

    def _link(self, identity: ec.EllipticCurvePrivateKey, link: _Link) -> Link:
        offered = OfferedLink(
            contact_id=contact_id(link.registration_secret),
            link_id=link.link_id,
            link_secret=link.link_secret,
            identity=identity,
            name=self.phone,
        )
        return Link(
            device=link.device,
            linked_at=link.linked_at,
            tunnel_domain=link.tunnel_domain,
            registration_secret=link.registration_secret,
            offered=offered,
        )


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")
