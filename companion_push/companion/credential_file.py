"""The software phone's credentials on disk, FOR DEMONSTRATIONS AND TESTS ONLY.

It is one JSON file of mode 0600 with unencrypted private keys: there is neither hardware to hold them nor a secret of
the user to encrypt them with. It is parsed strictly and in bounded size. Changes are made under a lock, so that several
software phones may share the file.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import msgspec

from companion_push.companion.software_key import (
    MAX_CREDENTIALS,
    Credential,
    Registered,
    Registration,
    SoftwareKey,
)
from headless_passkey.errors import SetupError, SetupReason
from headless_passkey.hybrid.ctap2 import User
from headless_passkey.process.private_file import lock_within, read_private, write_private
from headless_passkey.text.json_text import without_mark

_VERSION: Final = 1
_LIMIT: Final = 4 << 20  # bytes of the file
_WARNING: Final = "software passkeys for demonstrations and tests: whoever reads this file is the user"

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class _User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    id: Annotated[bytes, msgspec.Meta(min_length=1, max_length=64)]
    name: _Text | None = None
    display_name: _Text | None = None


class _Credential(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
    rp_id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    user: _User
    private_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    created: Annotated[int, msgspec.Meta(ge=0)]
    discoverable: bool
    synced: bool


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    warning: str
    credentials: Annotated[list[_Credential], msgspec.Meta(max_length=MAX_CREDENTIALS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFile:
    """The file of the software phone's credentials."""

    path: Path
    synced: bool = False  # whether new credentials say that they are backed up (BE, BS)

    def load(self) -> SoftwareKey:
        """What is in the file; nothing when there is none. `SetupError` when it cannot be used."""
        content = read_private(self.path.resolve(), limit=_LIMIT)
        if content is None:
            return SoftwareKey(synced=self.synced)
        try:
            file = msgspec.json.decode(without_mark(content), type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # not the decoder's message: it may quote a key
            raise SetupError(
                f"{self.path} is not a file of software passkeys", reason=SetupReason.STATE_DAMAGED
            ) from error
        if file.version != _VERSION:
            raise SetupError(
                f"{self.path} has version {file.version}, this program knows {_VERSION}",
                reason=SetupReason.STATE_INCOMPATIBLE,
            )
        return SoftwareKey(tuple(map(self._read, file.credentials)), synced=self.synced)

    async def register(self, asked: Registration, *, now: int) -> Registered:
        """Make a credential for `asked`, and write it to disk before the response is sent."""
        async with lock_within(self.path.resolve()):
            key = self.load()  # another software phone may have added credentials
            made = replace(asked, key=key).approve(now=now)
            file = _File(_VERSION, _WARNING, [_written(each) for each in key.adding(made).credentials])
            write_private(self.path.resolve(), msgspec.json.format(msgspec.json.encode(file)) + b"\n")
        return made

    def _read(self, entry: _Credential) -> Credential:
        if not 0 < int.from_bytes(entry.private_key, "big") < _P256_ORDER:
            raise SetupError(f"{self.path} holds an invalid private key", reason=SetupReason.STATE_DAMAGED)
        user = User(id=entry.user.id, name=entry.user.name, display_name=entry.user.display_name)
        return Credential(
            credential_id=entry.id,
            rp_id=entry.rp_id,
            user=user,
            private_key=entry.private_key,
            created=entry.created,
            discoverable=entry.discoverable,
            synced=entry.synced,
        )


def _written(credential: Credential) -> _Credential:
    user = credential.user
    return _Credential(
        id=credential.credential_id,
        rp_id=credential.rp_id,
        user=_User(user.id, user.name, user.display_name),
        private_key=credential.private_key,
        created=credential.created,
        discoverable=credential.discoverable,
        synced=credential.synced,
    )
