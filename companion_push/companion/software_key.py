"""A passkey authenticator in software, FOR DEMONSTRATIONS AND TESTS ONLY.

Its private keys are plain bytes in this process and, through `credential_file`, in a file: whoever reads them can
sign in as the user. A phone keeps passkeys in hardware and verifies its user. This module does neither: it sets the flag UV,
and leaves user verification to its caller.

It is pure: no file, no clock, no user interface. A request has two stages, and the program asks its user between
them::

    asked = key.ask(command, payload)      # CtapError when the request fails already
    ...                                    # show asked.rp_id and asked.accounts, verify the user
    made = asked.approve(now=...)          # a Registration: send made.response, store key.adding(made)
    response = asked.approve(account=0)    # an Assertion

Section numbers are CTAP 2.2's. The signature counter is always 0, which says that there is none (WebAuthn L3
§6.1.1): a counter only means something when every copy of a key shares it, and files are copied. Attestation
is ``none``. One extension is served, ``prf``, in the form that phones have over hybrid: salts in, and among the
unsigned extension outputs a MAC of each under a secret that belongs to the credential.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from headless_passkey.errors import CtapError, RemoteProtocolError
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
    status_name,
)
from headless_passkey.hybrid.keys import CURVE, generate, uncompressed
from headless_passkey.text.domains import is_domain

AAGUID: Final = bytes.fromhex("f314e1c7a9434e95be5ab739b2b90776")  # names this model: the software phone
ES256: Final = -7
PRF: Final = "prf"
MAX_CREDENTIALS: Final = 512

_USER_PRESENT, _USER_VERIFIED = 0x01, 0x04
_BACKUP_ELIGIBLE, _BACKED_UP = 0x08, 0x10
_ATTESTED = 0x40
_CREDENTIAL_ID_SIZE = 32
_MAX_NAME = 256  # characters stored of a user's names (truncation: §6.1.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One passkey."""

    credential_id: bytes  # 32 random bytes when made here
    rp_id: str
    user: User
    private_key: bytes = field(repr=False)  # 32-byte scalar
    created: int  # Unix seconds; of several, the newest is offered first
    discoverable: bool  # usable without an allow list
    synced: bool  # flags BE and BS: backup eligible, and backed up


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
    synced: bool = False  # whether new credentials have the flags BE and BS

    @property
    def info(self) -> GetInfoResponse:
        """The response of authenticatorGetInfo (§6.4); docs/adr/0011 gives the reasons."""
        return GetInfoResponse(
            versions=("FIDO_2_0", "FIDO_2_1"),
            extensions=(PRF,),
            aaguid=AAGUID,
            options={"rk": True, "up": True, "uv": True},
            transports=("hybrid", "internal"),
            algorithms=(ES256,),
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
        if ES256 not in request.algorithms:
            refuse(Status.UNSUPPORTED_ALGORITHM)
        if len(self.credentials) >= MAX_CREDENTIALS:
            refuse(Status.KEY_STORE_FULL)
        return Registration(key=self, request=request, prf=_Prf.of(request.extensions))

    def get_assertion(self, request: GetAssertionRequest) -> "Assertion":
        """Check authenticatorGetAssertion (§6.2), its first stage."""
        if not request.user_presence:
            refuse(Status.UNSUPPORTED_OPTION)  # an assertion without user presence
        of_rp = [each for each in reversed(self.credentials) if each.rp_id == request.rp_id]
        if request.allow_list:
            of_rp = [credential for credential in of_rp if credential.credential_id in request.allow_list]
        else:
            of_rp = [credential for credential in of_rp if credential.discoverable]
        if not of_rp:
            refuse(Status.NO_CREDENTIALS)
        of_rp.sort(key=lambda credential: credential.created, reverse=True)
        return Assertion(request=request, candidates=tuple(of_rp), prf=_Prf.of(request.extensions))

    def adding(self, made: Registered) -> "SoftwareKey":
        """The state after a registration."""
        kept = tuple(credential for credential in self.credentials if credential != made.replaced)
        return SoftwareKey((*kept, made.credential), synced=self.synced)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A checked registration that waits for the user's consent."""

    key: SoftwareKey = field(repr=False)
    request: MakeCredentialRequest
    prf: "_Prf | None" = None

    @property
    def rp_id(self) -> str:
        return self.request.rp_id

    @property
    def accounts(self) -> tuple[User, ...]:
        """The account of the new credential."""
        return (self.request.user,)

    def approve(self, *, now: int, random: Callable[[int], bytes] = secrets.token_bytes) -> Registered:
        """Make the credential; the caller has verified the user.

        An excluded credential is reported here and not earlier, so that nobody can probe for credentials without the
        user's consent (§6.1.2 step 12).
        """
        request, owned = self.request, self.key.credentials
        excluded = set(request.exclude_list)
        if any(each.rp_id == request.rp_id and each.credential_id in excluded for each in owned):
            refuse(Status.CREDENTIAL_EXCLUDED)
        private = generate()
        credential = Credential(
            credential_id=random(_CREDENTIAL_ID_SIZE),
            rp_id=request.rp_id,
            user=_shortened(request.user),
            private_key=private.private_numbers().private_value.to_bytes(32, "big"),
            created=now,
            discoverable=request.resident_key,
            synced=self.key.synced,
        )
        attested = (
            AAGUID
            + len(credential.credential_id).to_bytes(2, "big")
            + credential.credential_id
            + _cose_key(private.public_key())
        )
        response = MakeCredentialResponse(
            fmt="none",
            auth_data=_auth_data(credential, _ATTESTED) + attested,
            att_stmt={},
            unsigned_extension_outputs={}
            if self.prf is None
            else {PRF: {"enabled": True} | self.prf.evaluated(credential)},
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

    request: GetAssertionRequest
    candidates: tuple[Credential, ...]  # at least one, newest first
    prf: "_Prf | None" = None

    @property
    def rp_id(self) -> str:
        return self.request.rp_id

    @property
    def accounts(self) -> tuple[User, ...]:
        """The accounts to choose from, in the order of `candidates`."""
        return tuple(credential.user for credential in self.candidates)

    def approve(self, *, account: int = 0) -> GetAssertionResponse:
        """Sign the assertion; the caller has verified the user. account: index in `candidates`."""
        credential = self.candidates[account]
        auth_data = _auth_data(credential, 0)
        private = ec.derive_private_key(int.from_bytes(credential.private_key, "big"), CURVE)
        return GetAssertionResponse(
            credential_id=credential.credential_id,
            auth_data=auth_data,
            signature=private.sign(auth_data + self.request.client_data_hash, ec.ECDSA(SHA256())),
            user=credential.user if credential.discoverable else None,
            user_selected=not self.request.allow_list,
            unsigned_extension_outputs={} if self.prf is None else {PRF: self.prf.evaluated(credential)},
        )


@dataclass(frozen=True, slots=True)
class _Prf:
    """The salts for a credential's pseudo-random function: 32 bytes each, ``first`` and perhaps ``second``."""

    salts: Mapping[str, bytes] | None = field(repr=False)  # for any credential
    by_credential: Mapping[bytes, Mapping[str, bytes]] = field(repr=False)  # by credential ID

    @classmethod
    def of(cls, extensions: Mapping[str, Any]) -> "_Prf | None":
        """Parse a request's prf extension; `CtapError` when it is malformed."""
        if PRF not in extensions:
            return None
        members = _mapping(extensions[PRF])
        by_credential = _mapping(members.get("evalByCredential", {}))
        return cls(
            salts=_salts(members["eval"]) if "eval" in members else None,
            by_credential={key: _salts(values) for key, values in by_credential.items()},
        )

    def evaluated(self, credential: Credential) -> dict[str, Any]:
        """Evaluate for this credential: the member ``results``, or empty without a salt."""
        salts = self.by_credential.get(credential.credential_id, self.salts)
        if salts is None:
            return {}
        secret = hmac.digest(credential.private_key, b"software phone, prf", "sha256")
        return {"results": {name: hmac.digest(secret, salt, "sha256") for name, salt in salts.items()}}


def _salts(values: Any) -> dict[str, bytes]:
    salts = {name: salt for name, salt in _mapping(values).items() if name in ("first", "second")}
    if "first" not in salts or not all(
        isinstance(salt, bytes) and len(salt) == 32 for salt in salts.values()
    ):
        refuse(Status.INVALID_PARAMETER)
    return salts


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        refuse(Status.CBOR_UNEXPECTED_TYPE)
    return value


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


def refuse(status: Status) -> NoReturn:
    """End the command with `status`."""
    raise CtapError(status, status_name(status))


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


def _auth_data(credential: Credential, flags: int) -> bytes:
    """Make authenticator data, 37 bytes: RP ID hash, flags, counter (WebAuthn L3 §6.1)."""
    flags |= _USER_PRESENT | _USER_VERIFIED
    if credential.synced:
        flags |= _BACKUP_ELIGIBLE | _BACKED_UP
    return hashlib.sha256(credential.rp_id.encode()).digest() + bytes([flags]) + bytes(4)


def _cose_key(public: ec.EllipticCurvePublicKey) -> bytes:
    """Encode the public key as a COSE key (RFC 9053 §7.1): EC2, ES256, P-256."""
    point = uncompressed(public)
    return cbor.encode({1: 2, 3: ES256, -1: 1, -2: point[1:33], -3: point[33:65]})
