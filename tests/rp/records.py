"""What tests store: users, passkeys, sessions, and how a passkey was used."""

from relying_party.core.callers import ClientKind
from relying_party.core.credentials import Credential, CredentialUse, User
from relying_party.core.sessions import Session

ADA = User(handle=b"a" * 32, name="ada", display_name="Ada L.")
EVE = User(handle=b"e" * 32, name="eve", display_name="Eve")


def credential(user: User = ADA, name: bytes = b"credential") -> Credential:
    return Credential(
        credential_id=name,
        user_handle=user.handle,
        attested_data=b"attested",
        aaguid=bytes(16),
        algorithm=-7,
        sign_count=0,
        backup_eligible=True,
        backed_up=False,
        transports=("hybrid", "internal"),
        attestation_object=b"object",
        client_data_hash=bytes(32),
        created_at=1,
    )


def session(user: User = ADA, token: bytes = b"token", *, key: str | None = None) -> Session:
    return Session(
        session_id=b"id of " + token,
        token_hash=token,
        user_handle=user.handle,
        credential_id=b"credential",
        client_kind=ClientKind.WEB if key is None else ClientKind.DEVICE,
        key_thumbprint=key,
        created_at=1,
        auth_time=1,
        expires_at=100,
        ends_at=100,
    )


def use(name: bytes = b"credential") -> CredentialUse:
    return CredentialUse(credential_id=name, sign_count=0, backed_up=True, counter_anomaly=False, used_at=2)
