"""Begin and complete registration and authentication (WebAuthn Level 3 §7), pure.

python-fido2's server verifies type, RP ID, user presence and verification, and the signature. This module checks the
rest, each with a name of its own: exact origins for each kind of client, no embedding by other sites, an offered
algorithm, the credential's owner, consistent backup flags. Unrequested extension outputs are ignored. Time and
randomness are passed in. The assertion of an unknown credential is verified against a dummy key, so that response
times do not show which credentials exist (timing side channel).
"""

import hmac
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.cose import ES256, RS256, CoseKey
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestationConveyancePreference,
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorAssertionResponse,
    AuthenticatorAttestationResponse,
    AuthenticatorData,
    CollectedClientData,
    PublicKeyCredentialParameters,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)
from fido2.webauthn import AuthenticationResponse as LibraryAuthenticationResponse
from fido2.webauthn import RegistrationResponse as LibraryRegistrationResponse

from program_parts.base64url import base64url
from program_parts.json_text import without_mark
from relying_party.core.callers import Caller, ClientKind
from relying_party.core.challenges import AuthenticationRecord, ChallengeRecord, Purpose, RegistrationRecord
from relying_party.core.credentials import (
    BackupEligibility,
    Credential,
    CredentialUse,
    User,
    counter_stands_still,
)
from relying_party.core.messages import AuthenticationResponse, Nothing, RegistrationResponse
from relying_party.core.operations import STEP_UP_SECONDS, Operation
from relying_party.errors import Check, VerificationFailed

# COSE algorithm → key type, most preferred first; fixed, so that a new version of the library changes no options.
ALGORITHMS: Final = {-7: 2, -8: 1, -257: 3}  # ES256, EdDSA (Ed25519), RS256
ML_DSA: Final = {-48: 7, -49: 7, -50: 7}  # ML-DSA-44, -65 and -87, by configuration
RSA_BITS: Final = (2048, 4096)
MAX_RSA_EXPONENT: Final = 4  # bytes
# COSE key type → the parameters of a public key, with the coordinates of Ed25519 (OKP), P-256 (EC2), RSA and ML-DSA (AKP).
KEY_PARAMETERS: Final = {1: (1, 3, -1, -2), 2: (1, 3, -1, -2, -3), 3: (1, 3, -1, -2), 7: (1, 3, -1)}
TIMEOUTS: Final = {ClientKind.WEB: 300, ClientKind.DEVICE: 600, ClientKind.ANDROID: 300}  # seconds
CONDITIONAL_TIMEOUT: Final = 900  # conditional mediation waits for the user longer than a prompt
CHALLENGE_SIZE: Final = 32
USER_HANDLE_SIZE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RelyingParty:
    """The relying party, with its origins and its choices."""

    rp_id: str
    name: str
    origins: Mapping[ClientKind, Collection[str]]  # exact, by kind of client
    top_origins: Collection[str] = ()  # origins that may embed our pages
    algorithms: tuple[int, ...] = tuple(ALGORITHMS)  # COSE, most preferred first
    prf: bool = False  # whether to request the prf extension
    backup_eligibility: BackupEligibility = BackupEligibility.FIXED


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A credential in options (PublicKeyCredentialDescriptorJSON)."""

    credential_id: bytes = field(repr=False)
    transports: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "public-key",
            "id": base64url(self.credential_id),
            "transports": list(self.transports),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A ceremony that has begun: the challenge record for the server, and the options for the client."""

    record: ChallengeRecord
    public_key: dict[str, Any] = field(repr=False)  # …OptionsJSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A verified registration."""

    caller: Caller  # who began it
    user: User
    session_id: bytes | None = field(repr=False)  # the only session that may store it, if it adds to a user
    credential: Credential


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """A verified sign-in or step-up."""

    caller: Caller  # who began it
    use: CredentialUse
    operation: Operation | None = None  # what a step-up was for


class _ClientData(msgspec.Struct, rename="camel"):
    """The checked members of CollectedClientData; a client may add others."""

    type: str
    challenge: str
    origin: str
    cross_origin: bool | Nothing = False
    top_origin: str | Nothing = None

    def __repr__(self) -> str:
        return "_ClientData()"  # it holds a secret


@dataclass(init=False, frozen=True)
class _MarkedClientData(CollectedClientData):
    """Client data with a byte order mark: parsed without it, and signed with it."""

    challenge: bytes = field(repr=False)

    @property
    def hash(self) -> bytes:
        return sha256(BOM_UTF8 + self).digest()


@dataclass(eq=False, frozen=True, kw_only=True)
class ParsedAssertion(AuthenticatorAssertionResponse):
    """An assertion whose members have their types already, from our own parser.

    python-fido2 evaluates the type hints of a class for each of its objects, to convert members that came as JSON. That was more
    than half of a verification (benchmarks/rp.py), and returns members that have their types as they are.
    """

    user_handle: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Convert nothing."""


class ParsedAuthentication(LibraryAuthenticationResponse):
    """An authentication response whose members have their types already. Its member ``id`` is unset: `raw_id` is verified."""

    def __post_init__(self) -> None:
        """Convert nothing."""


class Ceremonies:
    """The four steps. Those that complete raise `VerificationFailed` with the name of the check."""

    def __init__(self, relying_party: RelyingParty) -> None:
        self._rp = relying_party
        # the dummy key, made once, because generation costs more than verification
        self._servers = {kind: self._make_server(kind) for kind in relying_party.origins}
        # its private half is dropped at once, so no signature verifies
        nobody = ec.generate_private_key(ec.SECP256R1()).public_key()
        self._nobodys_key: CoseKey = ES256.from_cryptography_key(nobody)  # type: ignore[no-untyped-call]

    def begin_registration(
        self,
        caller: Caller,
        user: User,
        *,
        existing: Sequence[Descriptor],
        session_id: bytes | None,
        now: float,
        challenge: bytes,
    ) -> Begun:
        """Begin a registration: options for a new passkey of `user`, who has the `existing` ones.

        session_id: the session in which a registered user adds a passkey; None for a new user. challenge: 32 fresh
        random bytes.
        """
        options, _ = self._servers[caller.kind].register_begin(
            PublicKeyCredentialUserEntity(id=user.handle, name=user.name, display_name=user.display_name),
            resident_key_requirement=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
            challenge=challenge,
            extensions={"credProps": True, **({"prf": {}} if self._rp.prf else {})},
        )
        public_key = dict(dict(options)["publicKey"])
        public_key["timeout"] = TIMEOUTS[caller.kind] * 1000
        public_key["excludeCredentials"] = [descriptor.to_json() for descriptor in existing]
        public_key["hints"] = _hints(caller)
        record = RegistrationRecord(
            purpose=Purpose.REGISTRATION,
            challenge=challenge,
            caller=caller,
            user_verification=UserVerificationRequirement.REQUIRED,
            user=user,
            session_id=session_id,
            algorithms=self._rp.algorithms,
            extensions=frozenset(public_key["extensions"]),
            expires_at=now + TIMEOUTS[caller.kind],
        )
        return Begun(record=record, public_key=public_key)

    def complete_registration(
        self, record: ChallengeRecord, caller: Caller, response: RegistrationResponse, *, now: float
    ) -> Registration:
        """Verify a registration. The store decides later whether user name and credential ID are unused."""
        if not isinstance(record, RegistrationRecord):
            raise VerificationFailed(Check.PURPOSE)
        _check_caller(record, caller)
        self._check_client_data(record, response.client_data)
        attested = self._verified_attestation(record, response)
        data = attested.auth_data
        credential = data.credential_data
        if credential is None or credential.credential_id != response.credential_id:
            raise VerificationFailed(Check.CREDENTIAL_ID)
        algorithm = credential.public_key.get(3)
        if algorithm not in record.algorithms:
            raise VerificationFailed(Check.ALGORITHM)
        _check_public_key(credential.public_key)
        _check_backup_flags(data)
        _check_extensions(data)
        kept = AttestedCredentialData.create(
            credential.aaguid, credential.credential_id, _canonical(credential.public_key)
        )
        stored = Credential(
            credential_id=credential.credential_id,
            user_handle=record.user.handle,
            attested_data=bytes(kept),
            aaguid=bytes(credential.aaguid),
            algorithm=algorithm,
            sign_count=data.counter,
            backup_eligible=data.is_backup_eligible(),
            backed_up=data.is_backed_up(),
            transports=response.transports,
            attestation_object=_without_statement(data, kept),
            client_data_hash=sha256(response.client_data).digest(),
            created_at=int(now),
            discoverable=response.discoverable if "credProps" in record.extensions else None,
            prf=response.prf if "prf" in record.extensions else None,
        )
        return Registration(
            caller=record.caller, user=record.user, session_id=record.session_id, credential=stored
        )

    def begin_authentication(
        self,
        caller: Caller,
        *,
        expected: bytes | None,
        allowed: Sequence[Descriptor],
        now: float,
        challenge: bytes,
        session_id: bytes | None = None,
        operation: Operation | None = None,
        conditional: bool = False,
        prf_salt: bytes | None = None,
    ) -> Begun:
        """Begin an authentication: options for a sign-in, or for a step-up of the session `session_id` for `operation`.

        expected: the handle of the user who must sign in; None for any user. allowed: that user's
        credentials; empty for any discoverable one. challenge: 32 fresh random bytes. conditional: whether
        the browser uses conditional mediation. prf_salt: 32 bytes, to request the prf extension.
        """
        extensions = None if prf_salt is None else {"prf": {"eval": {"first": base64url(prf_salt)}}}
        options, _ = self._servers[caller.kind].authenticate_begin(
            user_verification=UserVerificationRequirement.REQUIRED, challenge=challenge
        )
        lifetime = CONDITIONAL_TIMEOUT if conditional else TIMEOUTS[caller.kind]
        if operation is not None:
            lifetime = STEP_UP_SECONDS
        public_key = dict(dict(options)["publicKey"])
        public_key["timeout"] = lifetime * 1000
        public_key["allowCredentials"] = [descriptor.to_json() for descriptor in allowed]
        public_key["hints"] = _hints(caller)
        if extensions is not None:
            public_key["extensions"] = extensions
        record = AuthenticationRecord(
            purpose=_purpose(session_id),
            challenge=challenge,
            caller=caller,
            user_verification=UserVerificationRequirement.REQUIRED,
            expected=expected,
            allowed=tuple(descriptor.credential_id for descriptor in allowed),
            session_id=session_id,
            operation=operation,
            expires_at=now + lifetime,
        )
        return Begun(record=record, public_key=public_key)

    def complete_authentication(
        self,
        record: ChallengeRecord,
        caller: Caller,
        response: AuthenticationResponse,
        credential: Credential | None,
        *,
        now: float,
        session_id: bytes | None = None,
    ) -> Authentication:
        """Verify an authentication by `credential`, which is stored under the response's credential ID.

        session_id: for a step-up, the session; it must be the one that the ceremony began with.
        """
        if not isinstance(record, AuthenticationRecord) or record.purpose is not _purpose(session_id):
            raise VerificationFailed(Check.PURPOSE)
        _check_caller(record, caller)
        if record.session_id != session_id:
            raise VerificationFailed(Check.SESSION)
        self._check_client_data(record, response.client_data)
        data = self._verified_assertion(record, response, credential)
        if credential is None:
            raise VerificationFailed(Check.UNKNOWN_CREDENTIAL)
        if record.allowed and credential.credential_id not in record.allowed:
            raise VerificationFailed(Check.NOT_ALLOWED)
        _check_owner(record, response, credential)
        was, eligible = credential.backup_eligible, data.is_backup_eligible()
        if not self._rp.backup_eligibility.allows(was=was, now=eligible):
            raise VerificationFailed(Check.BACKUP_ELIGIBILITY)
        _check_backup_flags(data)
        _check_extensions(data)
        use = CredentialUse(
            credential_id=credential.credential_id,
            sign_count=data.counter,
            backed_up=data.is_backed_up(),
            counter_anomaly=counter_stands_still(credential.sign_count, data.counter),
            used_at=int(now),
            backup_eligible=None if eligible == was else eligible,
        )
        return Authentication(caller=record.caller, use=use, operation=record.operation)

    def _check_client_data(self, record: ChallengeRecord, client_data: bytes) -> None:
        """Check the client data: challenge, origin, and no embedding by another site (clickjacking)."""
        try:
            parsed = msgspec.json.decode(without_mark(client_data), type=_ClientData)
        except (ValueError, RecursionError) as error:
            raise VerificationFailed(Check.CLIENT_DATA) from error
        if not hmac.compare_digest(parsed.challenge.encode(), base64url(record.challenge).encode()):
            raise VerificationFailed(Check.CHALLENGE)
        if parsed.origin not in self._rp.origins[record.caller.kind]:
            raise VerificationFailed(Check.ORIGIN)
        if parsed.cross_origin or parsed.top_origin:
            self._check_embedding(record, parsed)

    def _check_embedding(self, record: ChallengeRecord, parsed: _ClientData) -> None:
        """Check embedding: a cross-origin frame needs a top origin that the configuration lists."""
        embedded = record.caller.kind is ClientKind.WEB and parsed.cross_origin and parsed.top_origin
        if not embedded or parsed.top_origin not in self._rp.top_origins:
            raise VerificationFailed(Check.CROSS_ORIGIN)

    def _verified_attestation(
        self, record: ChallengeRecord, response: RegistrationResponse
    ) -> AttestationObject:
        state = _library_state(record)
        try:
            attestation = AttestationObject(response.attestation_object)
            self._servers[record.caller.kind].register_complete(
                state,
                LibraryRegistrationResponse(
                    raw_id=response.credential_id,
                    response=AuthenticatorAttestationResponse(
                        client_data=_library_client_data(response.client_data),
                        attestation_object=attestation,
                    ),
                ),
            )
        except Exception as error:  # the library raises any class on malformed bytes
            raise VerificationFailed(Check.LIBRARY) from error
        return attestation

    def _verified_assertion(
        self, record: ChallengeRecord, response: AuthenticationResponse, credential: Credential | None
    ) -> AuthenticatorData:
        """Verify the signature with exactly one key, the dummy key for an unknown credential."""
        state = _library_state(record)
        try:
            known = (
                AttestedCredentialData.create(bytes(16), response.credential_id, self._nobodys_key)
                if credential is None
                else AttestedCredentialData(credential.attested_data)
            )
            data = AuthenticatorData(response.authenticator_data)
            self._servers[record.caller.kind].authenticate_complete(
                state,
                [known],
                ParsedAuthentication(
                    raw_id=response.credential_id,
                    response=ParsedAssertion(
                        client_data=_library_client_data(response.client_data),
                        authenticator_data=data,
                        signature=response.signature,
                        user_handle=response.user_handle,
                    ),
                ),
            )
        except Exception as error:
            raise VerificationFailed(Check.LIBRARY) from error
        return data

    def _make_server(self, kind: ClientKind) -> Fido2Server:
        server = Fido2Server(
            PublicKeyCredentialRpEntity(id=self._rp.rp_id, name=self._rp.name),
            attestation=AttestationConveyancePreference.NONE,
            verify_origin=self._rp.origins[kind].__contains__,
        )
        server.allowed_algorithms = [
            PublicKeyCredentialParameters(type=PublicKeyCredentialType.PUBLIC_KEY, alg=algorithm)
            for algorithm in self._rp.algorithms
        ]
        return server


def _purpose(session_id: bytes | None) -> Purpose:
    return Purpose.SIGN_IN if session_id is None else Purpose.STEP_UP


def _hints(caller: Caller) -> list[str]:
    """The hints of the options: a device asks a phone, so ``hybrid`` comes first."""
    if caller.kind is ClientKind.DEVICE:
        return ["hybrid"]
    return []


def _library_state(record: ChallengeRecord) -> dict[str, Any]:
    """Make the state that the library verifies against. It checks user verification only if this says `required`."""
    if record.user_verification != UserVerificationRequirement.REQUIRED:
        raise VerificationFailed(Check.USER_VERIFICATION)
    return {
        "challenge": base64url(record.challenge),
        "user_verification": UserVerificationRequirement.REQUIRED,
    }


def _library_client_data(data: bytes) -> CollectedClientData:
    read = without_mark(data)
    return CollectedClientData(data) if read == data else _MarkedClientData(read)


def _check_caller(record: ChallengeRecord, caller: Caller) -> None:
    """Check that the caller is the one who began the ceremony."""
    if record.caller.kind.proves_key is not caller.kind.proves_key:
        raise VerificationFailed(Check.CLIENT_KIND)
    if record.caller.key_thumbprint != caller.key_thumbprint:
        raise VerificationFailed(Check.DEVICE_KEY)


def _check_public_key(key: CoseKey) -> None:
    """Refuse a public key that cannot verify signatures, at registration and not at the first sign-in."""
    if key.get(1) != (ALGORITHMS | ML_DSA)[key[3]]:
        raise VerificationFailed(Check.PUBLIC_KEY)
    try:
        key.verify(b"", bytes(64))
    except InvalidSignature:
        pass  # the key is usable: it refuses the dummy signature
    except Exception as error:  # a point off the curve, a short modulus, a missing member
        raise VerificationFailed(Check.PUBLIC_KEY) from error
    if key[3] == RS256.ALGORITHM:
        bits = int.from_bytes(key[-1], "big").bit_length()
        if not RSA_BITS[0] <= bits <= RSA_BITS[1] or len(key[-2]) > MAX_RSA_EXPONENT:
            raise VerificationFailed(Check.PUBLIC_KEY)
        if key[-1][0] == 0 or key[-2][0] == 0:  # RFC 8230 §4
            raise VerificationFailed(Check.PUBLIC_KEY)

    elif key[1] == 2 and not len(key[-2]) == len(key[-3]) == 32:
        raise VerificationFailed(Check.PUBLIC_KEY)


def _canonical(key: CoseKey) -> CoseKey:
    """Keep the parameters of a public key that verification reads (RFC 9053 §7, RFC 8230 §4), and no others.

    A client may pad a key with parameters of its own, which would be stored for as long as the account.
    """
    return CoseKey.parse({label: key[label] for label in KEY_PARAMETERS[key[1]]})


def _without_statement(data: AuthenticatorData, kept: AttestedCredentialData) -> bytes:
    """Encode the attestation object with format ``none``: what was asked for, whatever the client sent (§8.7).

    kept: the attested data that are stored. Extension outputs and members of the client's are left out.
    """
    flags = AuthenticatorData.FLAG(data.flags & ~AuthenticatorData.FLAG.ED)
    authenticator_data = AuthenticatorData.create(data.rp_id_hash, flags, data.counter, bytes(kept))
    return bytes(AttestationObject.create("none", authenticator_data, {}))


def _check_backup_flags(data: AuthenticatorData) -> None:
    if data.is_backed_up() and not data.is_backup_eligible():
        raise VerificationFailed(Check.BACKUP_STATE)


def _check_extensions(data: AuthenticatorData) -> None:
    """Check that signed extension outputs are a map. Unrequested outputs in it are ignored (§7.1, §7.2)."""
    if data.extensions is not None and not isinstance(data.extensions, Mapping):
        raise VerificationFailed(Check.EXTENSIONS)


def _check_owner(
    record: AuthenticationRecord, response: AuthenticationResponse, credential: Credential
) -> None:
    """Check that the credential belongs to the user whom the phone named, and to the expected user, if any."""
    if response.user_handle is None and not record.allowed:
        raise VerificationFailed(Check.OWNER)  # a discoverable credential names its user
    if response.user_handle is not None and response.user_handle != credential.user_handle:
        raise VerificationFailed(Check.OWNER)
    if record.expected is not None and record.expected != credential.user_handle:
        raise VerificationFailed(Check.OWNER)
