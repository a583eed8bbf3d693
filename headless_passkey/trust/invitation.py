"""The invitation: what the inviter gives to one newcomer, on a channel that the relay does not see (docs/protocol/trust.md).

An invitation carries a secret S. S derives a ticket, which is all that the relay learns, and two MAC keys. With one the
newcomer proves possession of the invitation. With the other the inviter proves that the ring is its answer to this newcomer.
Where a person types the newcomer's number at the inviter, S may be known to anybody (`admission`).
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from headless_passkey.errors import ProtocolReason, TrustError, TrustReason
from headless_passkey.hybrid import cbor
from headless_passkey.trust.fields import PROJECT, Fields
from headless_passkey.trust.ring import Ring, Role, parse_role
from headless_passkey.trust.text_form import MAX_RELAY_URL, MAX_TEXT, check_relay_url, from_line, to_line
from program_parts.base64url import base64url
from program_parts.names import MAX_LABEL

PREFIX: Final = "hpk-invitation:"
SECRET_SIZE: Final = 16
LIFETIME: Final = 600  # seconds until the introduction
ANSWERABLE: Final = 600  # seconds after that in which a newcomer may still be answered
INVITATION_LABEL: Final = f"{PROJECT} invitation v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An invitation of one newcomer into an account.

    text = "hpk-invitation:" base64url([label, relay URL, account, account name, kind, inviter, inviter's label, S, expiry])
    """

    relay_url: str
    account: str  # the id, 22 characters
    account_name: str
    kind: Role  # of the newcomer that it admits
    inviter: str  # the name of a companion, which the newcomer pins
    inviter_label: str
    secret: bytes = field(repr=False)  # S: 16 random bytes
    expires_at: int  # Unix seconds by the inviter's clock

    @classmethod
    def make(cls, *, relay_url: str, ring: Ring, kind: Role, inviter: str, now: float) -> "Invitation":
        """Make an invitation into the account of `ring`, the head. inviter: the name of a companion in it."""
        member = ring.member(inviter)
        if member is None or member.role is not Role.COMPANION:
            raise TrustError(TrustReason.NOT_A_MEMBER, "only a companion of the account invites into it")
        return cls(
            relay_url=check_relay_url(relay_url),
            account=ring.account,
            account_name=ring.account_name,
            kind=kind,
            inviter=inviter,
            inviter_label=member.label,
            secret=secrets.token_bytes(SECRET_SIZE),
            expires_at=int(now) + LIFETIME,
        )

    def encode(self) -> str:
        """Encode the invitation as one line of text, which is a secret."""
        items = [INVITATION_LABEL, self.relay_url, self.account, self.account_name, self.kind, self.inviter]
        return to_line(PREFIX, cbor.encode([*items, self.inviter_label, self.secret, self.expires_at]))

    @classmethod
    def parse(cls, line: str) -> "Invitation":
        data = from_line(PREFIX, line, "invitation", ProtocolReason.MALFORMED_INVITATION)
        fields = Fields.of(data, INVITATION_LABEL, 8, limit=MAX_TEXT)
        return cls(
            relay_url=check_relay_url(fields.text(MAX_RELAY_URL)),
            account=fields.account(),
            account_name=fields.text(MAX_LABEL),
            kind=parse_role(fields.take()),
            inviter=fields.name(),
            inviter_label=fields.text(MAX_LABEL),
            secret=fields.octets(SECRET_SIZE),
            expires_at=fields.time(),
        )

    def check_expiry(self, now: float, *, skew: int = 0) -> None:
        """Refuse an invitation that has expired by this clock.

        skew: seconds by which this clock may differ from the inviter's: `MAX_SKEW` at a newcomer.
        """
        late = int(now) - self.expires_at
        if late >= skew:
            raise TrustError(
                TrustReason.INVITATION_EXPIRED, f"by this clock the invitation expired {late} s ago"
            )

    @property
    def ends_at(self) -> int:
        """When all is over, the answer included: Unix seconds by the inviter's clock."""
        return self.expires_at + ANSWERABLE

    @property
    def ticket(self) -> bytes:
        """The ticket, 32 bytes: admits one newcomer once. The relay sees no other part of an invitation."""
        return self._derive("ticket")

    @property
    def id(self) -> str:
        """The relay's name for this invitation: the hash of the ticket, base64url."""
        return base64url(hashlib.sha256(self.ticket).digest())

    @property
    def k_new(self) -> bytes:
        """The newcomer's MAC key, 32 bytes."""
        return self._derive("newcomer")

    @property
    def k_inv(self) -> bytes:
        """The inviter's MAC key, 32 bytes."""
        return self._derive("inviter")

    def _derive(self, purpose: str) -> bytes:
        info = f"{INVITATION_LABEL} {purpose}".encode()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self.secret)
