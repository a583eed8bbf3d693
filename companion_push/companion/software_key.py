"""A passkey authenticator in software, FOR DEMONSTRATIONS AND TESTS ONLY.

Its private keys are plain bytes in this process and, through `credential_file`, in a file: whoever reads them can
sign in as the user. A phone keeps passkeys in hardware and verifies its user. This module does neither: it sets the flag UV
where `SoftwareKey.verifies` says that its caller verifies the user, and UP because its caller asks for each command.

It is pure: no file, no clock, no user interface. A request has two stages, and the program asks its user between
them::

    asked = key.ask(command, payload)      # CtapError when the request fails already
    ...                                    # show asked.rp_id and asked.accounts, verify the user
    made = asked.approve(now=...)          # a Registration: send made.response, store key.adding(made)
    response = asked.approve(account=0)    # an Assertion; where asked.blob is to be stored: key.storing(...) first

Section numbers are CTAP 2.2's. The signature counter is always 0, which says that there is none (WebAuthn L3
§6.1.1): a counter only means something when every copy of a key shares it, and files are copied. Attestation
is ``none``. The extensions are in `software_extensions`.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from companion_push.companion.software_extensions import (
    CRED_PROTECT,
    EXTENSIONS,
    LARGE_BLOB,
    PRF,
    LargeBlob,
    LargeBlobUse,
    Prf,
    Protection,
    asks_large_blob,
    protection_of,
    refuse,
)
from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    Command,
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    Status,
    User,
)
from headless_passkey.hybrid.keys import CURVE, generate, uncompressed
from program_parts.domains import is_domain

AAGUID: Final = bytes.fromhex("f314e1c7a9434e95be5ab739b2b90776")  # names this model: the software phone
ES256: Final = -7
ML_DSA_44: Final = -48  # FIPS 204
Algorithm = Literal[-7, -48]  # COSE
MAX_CREDENTIALS: Final = 512
MAX_BLOBS: Final = 1 << 20  # bytes of all large blobs, compressed

_USER_PRESENT, _USER_VERIFIED = 0x01, 0x04
_BACKUP_ELIGIBLE, _BACKED_UP = 0x08, 0x10
_ATTESTED, _EXTENSIONS = 0x40, 0x80
_CREDENTIAL_ID_SIZE = 32
_MAX_NAME = 256  # characters stored of a user's names (truncation: §6.1.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One passkey."""

    credential_id: bytes  # 32 random bytes when made here
    rp_id: str
    user: User
    private_key: bytes = field(repr=False)  # 32 bytes: the scalar for ES256, the seed for ML-DSA-44
    created: int  # Unix seconds; of several, the newest is offered first
    discoverable: bool  # usable without an allow list
    synced: bool  # made on a phone that backs its passkeys up: flag BE, which never changes
    algorithm: Algorithm = ES256
    protection: Protection = Protection.OPTIONAL
    blob_enabled: bool = False  # whether it can have a large blob
    blob: LargeBlob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """The result of a registration: the response, the new credential, and all credentials after it."""

    response: MakeCredentialResponse
    credential: Credential
    replaced: (
        Credential | None
    )  # the account's former discoverable credential, which is removed (§6.1.2 step 15)


@dataclass(frozen=True, slots=True)
class SoftwareKey:
    """An authenticator's credentials and commands. Immutable: `adding` returns the next state."""

    credentials: tuple[Credential, ...] = ()
    synced: bool = False  # whether this phone backs passkeys up: flag BS, and BE of new ones
    verifies: bool = True  # whether the user is verified before each approval: flag UV
    algorithms: tuple[Algorithm, ...] = (ES256,)  # of these, the relying party's first choice is made

    @property
    def info(self) -> GetInfoResponse:
        """The response of authenticatorGetInfo (§6.4); docs/adr/0011 and 0042 give the reasons."""
        return GetInfoResponse(
            versions=("FIDO_2_0", "FIDO_2_1"),
            extensions=EXTENSIONS,
            aaguid=AAGUID,
            options={"rk": True, "up": True} | ({"uv": True} if self.verifies else {}),
            transports=("hybrid", "internal"),
            algorithms=self.algorithms,
        )

    def ask(self, command: int, payload: bytes) -> "Registration | Assertion":
        """Parse and check any command, its first stage. Total: any bytes give a stage, or `CtapError` with the status."""
        try:
            match command:
                case Command.MAKE_CREDENTIAL:
                    making = MakeCredentialRequest.parse(payload)
                    _refuse_unoffered(Command.MAKE_CREDENTIAL, payload)
                    return self.make_credential(making)
                case Command.GET_ASSERTION:
                    asking = GetAssertionRequest.parse(payload)
                    _refuse_unoffered(Command.GET_ASSERTION, payload)
                    return self.get_assertion(asking)
                case _:
                    refuse(Status.INVALID_COMMAND)
        except RemoteProtocolError:
            refuse(_parse_status(command, payload))

    def make_credential(self, request: MakeCredentialRequest) -> "Registration":
        """Check authenticatorMakeCredential (§6.1), its first stage."""
        if not is_domain(request.rp_id):
            refuse(Status.INVALID_PARAMETER)
        algorithm = next(
            (ours for each in request.algorithms for ours in self.algorithms if ours == each), None
        )
        if algorithm is None:
            refuse(Status.UNSUPPORTED_ALGORITHM)
        self._check_verification(request.user_verification)
        if len(self.credentials) >= MAX_CREDENTIALS:
            refuse(Status.KEY_STORE_FULL)
        return Registration(
            key=self,
            request=request,
            algorithm=algorithm,
            prf=Prf.of(request.extensions),
            protection=protection_of(request.extensions),
            blob_enabled=asks_large_blob(request.extensions, discoverable=request.resident_key),
        )

    def get_assertion(self, request: GetAssertionRequest) -> "Assertion":
        """Check authenticatorGetAssertion (§6.2), its first stage."""
        if not request.user_presence:
            refuse(Status.UNSUPPORTED_OPTION)  # an assertion without user presence
        self._check_verification(request.user_verification)
        of_rp = [each for each in reversed(self.credentials) if each.rp_id == request.rp_id]
        if request.allow_list:
            of_rp = [credential for credential in of_rp if credential.credential_id in request.allow_list]
        else:
            of_rp = [credential for credential in of_rp if credential.discoverable]
        of_rp = [
            credential for credential in of_rp if self.may_find(credential, named=bool(request.allow_list))
        ]
        if not of_rp:
            refuse(Status.NO_CREDENTIALS)
        of_rp.sort(key=lambda credential: credential.created, reverse=True)
        return Assertion(
            key=self,
            request=request,
            candidates=tuple(of_rp),
            prf=Prf.of(request.extensions),
            blob=LargeBlobUse.of(request.extensions, allowed=len(request.allow_list)),
        )

    def adding(self, made: Registered) -> "SoftwareKey":
        """The state after a registration."""
        kept = tuple(credential for credential in self.credentials if credential != made.replaced)
        return replace(self, credentials=(*kept, made.credential))

    def storing(self, credential_id: bytes, blob: LargeBlob) -> "SoftwareKey | None":
        """The state with this large blob in place of the credential's former one.

        None where it is not stored: the credential is gone, has none, or all blobs would be larger than `MAX_BLOBS`.
        """
        owner = next((each for each in self.credentials if each.credential_id == credential_id), None)
        if owner is None or not owner.blob_enabled:
            return None
        now = tuple(replace(each, blob=blob) if each is owner else each for each in self.credentials)
        if sum(len(each.blob.packed) for each in now if each.blob is not None) > MAX_BLOBS:
            return None
        return replace(self, credentials=now)

    def may_find(self, credential: Credential, *, named: bool) -> bool:
        """Whether the credential's protection lets it be found (§12.1). named: whether the request names it by its ID."""
        if self.verifies:
            return True
        return credential.protection is Protection.OPTIONAL or (
            named and credential.protection is Protection.OPTIONAL_WITH_ID
        )

    def _check_verification(self, required: bool) -> None:  # noqa: FBT001
        if required and not self.verifies:
            refuse(Status.INVALID_OPTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A checked registration that waits for the user's consent."""

    key: SoftwareKey = field(repr=False)
    request: MakeCredentialRequest
    algorithm: Algorithm
    prf: Prf | None = None
    protection: Protection | None = None
    blob_enabled: bool | None = None  # None: not asked for

    @property
    def rp_id(self) -> str:
        return self.request.rp_id

    @property
    def accounts(self) -> tuple[User, ...]:
        """The account of the new credential."""
        return (self.request.user,)

    def approve(self, *, now: int, random: Callable[[int], bytes] = secrets.token_bytes) -> Registered:
        """Make the credential; the caller has verified the user, where the key says so.

        An excluded credential is reported here and not earlier, so that nobody can probe for credentials without the
        user's consent (§6.1.2 step 12).
        """
        request, key = self.request, self.key
        excluded = set(request.exclude_list)
        if any(
            each.rp_id == request.rp_id and each.credential_id in excluded and key.may_find(each, named=True)
            for each in key.credentials
        ):
            refuse(Status.CREDENTIAL_EXCLUDED)
        private_key, public_key = _generate(self.algorithm)
        credential = Credential(
            credential_id=random(_CREDENTIAL_ID_SIZE),
            rp_id=request.rp_id,
            user=_shortened(request.user),
            private_key=private_key,
            created=now,
            discoverable=request.resident_key,
            synced=key.synced,
            algorithm=self.algorithm,
            protection=self.protection or Protection.OPTIONAL,
            blob_enabled=self.blob_enabled or False,
        )
        attested = (
            AAGUID
            + len(credential.credential_id).to_bytes(2, "big")
            + credential.credential_id
            + cbor.encode(public_key)
        )
        flags, extensions = _ATTESTED, b""
        if self.protection is not None:
            flags, extensions = flags | _EXTENSIONS, cbor.encode({CRED_PROTECT: int(self.protection)})
        outputs: dict[str, Any] = {}
        if self.prf is not None:
            evaluated = self.prf.evaluated(credential.credential_id, private_key)
            outputs[PRF] = {"enabled": True} | evaluated
        if self.blob_enabled is not None:
            outputs[LARGE_BLOB] = {"supported": self.blob_enabled}
        response = MakeCredentialResponse(
            fmt="none",
            auth_data=_auth_data(key, credential, flags) + attested + extensions,
            att_stmt={},
            unsigned_extension_outputs=outputs,
        )
        return Registered(response=response, credential=credential, replaced=self._replaced(credential))

    def _replaced(self, credential: Credential) -> Credential | None:
        for each in self.key.credentials:
            same = each.rp_id == credential.rp_id and each.user.id == credential.user.id
            if same and each.discoverable and credential.discoverable:
                return each
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """A checked assertion that waits for the user's consent."""

    key: SoftwareKey = field(repr=False)
    request: GetAssertionRequest
    candidates: tuple[Credential, ...]  # at least one, newest first
    prf: Prf | None = None
    blob: LargeBlobUse | None = None

    @property
    def rp_id(self) -> str:
        return self.request.rp_id

    @property
    def accounts(self) -> tuple[User, ...]:
        """The accounts to choose from, in the order of `candidates`."""
        return tuple(credential.user for credential in self.candidates)

    def approve(self, *, account: int = 0, blob_written: bool = False) -> GetAssertionResponse:
        """Sign the assertion; the caller has verified the user, where the key says so.

        account: index in `candidates`. blob_written: whether the large blob of the request was stored (`SoftwareKey.storing`).
        """
        credential = self.candidates[account]
        auth_data = _auth_data(self.key, credential, 0)
        outputs: dict[str, Any] = {}
        if self.prf is not None:
            outputs[PRF] = self.prf.evaluated(credential.credential_id, credential.private_key)
        if self.blob is not None:
            outputs[LARGE_BLOB] = self.blob.output(credential.blob, written=blob_written)
        return GetAssertionResponse(
            credential_id=credential.credential_id,
            auth_data=auth_data,
            signature=_sign(credential, auth_data + self.request.client_data_hash),
            user=self._user(credential),
            user_selected=not self.request.allow_list,
            unsigned_extension_outputs=outputs,
        )

    def _user(self, credential: Credential) -> User | None:
        """The account that the client is told of: without names where nobody was verified (§6.2.2)."""
        if not credential.discoverable:
            return None
        return credential.user if self.key.verifies else User(id=credential.user.id)


def _refuse_unoffered(command: Command, payload: bytes) -> None:
    """Refuse members that need a feature of getInfo, which this authenticator does not have (§6.1.2, §6.2.2)."""
    members = cbor.decode_map(payload)
    making = command is Command.MAKE_CREDENTIAL
    options = members.get(0x07 if making else 0x05) or {}
    if members.keys() & ({0x08, 0x0A} if making else {0x06}):  # pinUvAuthParam, enterpriseAttestation
        refuse(Status.INVALID_PARAMETER)
    if making and options.get("up") is False:
        refuse(Status.INVALID_OPTION)
    if not making and "rk" in options:
        refuse(Status.UNSUPPORTED_OPTION)


def _parse_status(command: int, payload: bytes) -> Status:
    """The status for a request that does not parse: no CBOR, a missing member, or one of another type."""
    try:
        members = cbor.decode_map(payload)
    except RemoteProtocolError:
        return Status.INVALID_CBOR
    needed = {1, 2, 3, 4} if command == Command.MAKE_CREDENTIAL else {1, 2}
    return Status.CBOR_UNEXPECTED_TYPE if needed <= members.keys() else Status.MISSING_PARAMETER


def _shortened(user: User) -> User:
    name = user.name and user.name[:_MAX_NAME]
    display_name = user.display_name and user.display_name[:_MAX_NAME]
    return User(id=user.id, name=name, display_name=display_name)


def _auth_data(key: SoftwareKey, credential: Credential, flags: int) -> bytes:
    """Make authenticator data, 37 bytes: RP ID hash, flags, counter (WebAuthn L3 §6.1)."""
    flags |= _USER_PRESENT
    if key.verifies:
        flags |= _USER_VERIFIED
    if credential.synced:
        flags |= _BACKUP_ELIGIBLE | (_BACKED_UP if key.synced else 0)
    return hashlib.sha256(credential.rp_id.encode()).digest() + bytes([flags]) + bytes(4)


def has_ml_dsa() -> bool:
    """Whether the cryptography that is installed has ML-DSA, which depends on its OpenSSL."""
    try:
        MLDSA44PrivateKey.generate()
    except UnsupportedAlgorithm:
        return False
    return True


def _generate(algorithm: Algorithm) -> tuple[bytes, Mapping[int, Any]]:
    """Generate a key pair: the private key, 32 bytes, and the public one as a COSE key."""
    if algorithm == ML_DSA_44:
        key = MLDSA44PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        return key.private_bytes_raw(), {1: 7, 3: ML_DSA_44, -1: public}  # key type AKP
    private = generate()
    point = uncompressed(private.public_key())
    scalar = private.private_numbers().private_value.to_bytes(32, "big")
    return scalar, {1: 2, 3: ES256, -1: 1, -2: point[1:33], -3: point[33:65]}  # EC2, P-256 (RFC 9053 §7.1)


def _sign(credential: Credential, message: bytes) -> bytes:
    if credential.algorithm == ML_DSA_44:
        try:
            return MLDSA44PrivateKey.from_seed_bytes(credential.private_key).sign(message)
        except UnsupportedAlgorithm:  # the file is from another machine
            refuse(Status.UNSUPPORTED_ALGORITHM)
    private = ec.derive_private_key(int.from_bytes(credential.private_key, "big"), CURVE)
    return private.sign(message, ec.ECDSA(SHA256()))
