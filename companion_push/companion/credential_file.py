"""The software phone's credentials on disk, FOR DEMONSTRATIONS AND TESTS ONLY.

There is no hardware to hold the private keys. They are unencrypted, or sealed with a passphrase of the user (`seal`).
Changes are made under a lock, so that several software phones may share the file.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

import msgspec

from companion_push.companion.seal import Sealed, SealKey
from companion_push.companion.software_extensions import MAX_BLOB, MAX_PACKED_BLOB, LargeBlob, Protection
from companion_push.companion.software_file import (
    VERSION,
    check_private_key,
    read_file,
    sealed_file,
    write_file,
)
from companion_push.companion.software_key import (
    ES256,
    MAX_CREDENTIALS,
    Algorithm,
    Assertion,
    Credential,
    Registered,
    Registration,
    SoftwareKey,
)
from headless_passkey.hybrid.ctap2 import GetAssertionResponse, GetInfoResponse, User
from headless_passkey.process.private_file import lock_within

_LIMIT: Final = 6 << 20  # bytes of the file: 512 credentials with long names, and the large blobs, sealed
_WHAT: Final = "software passkeys"
_SEALED_WARNING: Final = "software passkeys for demonstrations and tests, sealed with a passphrase"
_WARNING: Final = "software passkeys for demonstrations and tests: whoever reads this file is the user"

_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class _User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    id: Annotated[bytes, msgspec.Meta(min_length=1, max_length=64)]
    name: _Text | None = None
    display_name: _Text | None = None


class _Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    packed: Annotated[bytes, msgspec.Meta(max_length=MAX_PACKED_BLOB)]
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOB)]


class _Credential(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
    rp_id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    user: _User
    private_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    created: Annotated[int, msgspec.Meta(ge=0)]
    discoverable: bool
    synced: bool
    algorithm: Algorithm = ES256
    protection: Protection = Protection.OPTIONAL
    blob_enabled: bool = False
    blob: _Blob | None = None

    def __repr__(self) -> str:
        return "_Credential()"  # it holds a secret


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    warning: str
    credentials: Annotated[list[_Credential], msgspec.Meta(max_length=MAX_CREDENTIALS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFile:
    """The file of the software phone's credentials."""

    path: Path
    model: SoftwareKey = field(default_factory=SoftwareKey)  # what the phone can do; without credentials
    key: SealKey | None = None  # None: the file is plain

    def load(self) -> SoftwareKey:
        """What is in the file; nothing when there is none. `SetupError` when it cannot be used."""
        file = read_file(self.path, _File, what=_WHAT, limit=_LIMIT, key=self.key)
        if file is None:
            return self.model
        return replace(self.model, credentials=tuple(map(self._read, file.credentials)))

    async def info(self) -> GetInfoResponse:
        return self.load().info

    async def ask(self, command: int, payload: bytes) -> "AskedFile":
        return AskedFile(file=self, stage=self.load().ask(command, payload))

    async def register(self, asked: Registration, *, now: int) -> Registered:
        """Make a credential for `asked`, and write it to disk before the response is sent."""
        async with lock_within(self.path.resolve()):
            key = self.load()  # another software phone may have added credentials
            made = replace(asked, key=key).approve(now=now)
            self._write(key.adding(made))
        return made

    async def sign(self, asked: Assertion, *, account: int) -> GetAssertionResponse:
        """Sign `asked`, and write its large blob to disk before the response is sent. account: index in its candidates."""
        if asked.blob is None or asked.blob.write is None:
            return asked.approve(account=account)
        async with lock_within(self.path.resolve()):
            stored = self.load().storing(asked.candidates[account].credential_id, asked.blob.write)
            response = asked.approve(account=account, blob_written=stored is not None)
            if stored is not None:
                self._write(stored)
        return response

    def sealed(self) -> Sealed | None:
        """The file where it is sealed, to derive its key for; None where it is plain, or there is none."""
        return sealed_file(self.path, what=_WHAT, limit=_LIMIT)

    async def reseal(self, key: SealKey | None) -> "CredentialFile":
        """Seal the file with `key`, or make it plain, or make it where there is none; returns the file as it is now."""
        now = replace(self, key=key)
        async with lock_within(self.path.resolve()):
            now._write(self.load())  # noqa: SLF001
        return now

    def _write(self, key: SoftwareKey) -> None:
        write_file(
            self.path,
            _File(VERSION, _WARNING, [_written(each) for each in key.credentials]),
            key=self.key,
            warning=_SEALED_WARNING,
        )

    def _read(self, entry: _Credential) -> Credential:
        if entry.algorithm == ES256:  # any seed makes a key of ML-DSA
            check_private_key(self.path, entry.private_key)
        user = User(id=entry.user.id, name=entry.user.name, display_name=entry.user.display_name)
        return Credential(
            credential_id=entry.id,
            rp_id=entry.rp_id,
            user=user,
            private_key=entry.private_key,
            created=entry.created,
            discoverable=entry.discoverable,
            synced=entry.synced,
            algorithm=entry.algorithm,
            protection=entry.protection,
            blob_enabled=entry.blob_enabled,
            blob=None if entry.blob is None else LargeBlob(entry.blob.packed, entry.blob.size),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedFile:
    """A command for the passkeys in a file that waits for the user's consent."""

    file: CredentialFile
    stage: Registration | Assertion

    @property
    def rp_id(self) -> str:
        return self.stage.rp_id

    @property
    def accounts(self) -> tuple[User, ...]:
        return self.stage.accounts

    async def answer(self, *, account: int, now: int) -> bytes:
        match self.stage:
            case Registration():
                return (await self.file.register(self.stage, now=now)).response.encode()
            case Assertion():
                return (await self.file.sign(self.stage, account=account)).encode()


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
        algorithm=credential.algorithm,
        protection=credential.protection,
        blob_enabled=credential.blob_enabled,
        blob=None if credential.blob is None else _Blob(credential.blob.packed, credential.blob.size),
    )
