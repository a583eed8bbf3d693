"""The inviter's side of a join, played by the first companion of a household on a real relay."""

from dataclasses import dataclass, field
from typing import Any

from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.admission import Candidate, InvitationRecord
from headless_passkey.trust.introduction import Introduction
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import Ring, Role
from program_parts.base64url import base64url
from tests.relay.household import Caller, Household, Relay


@dataclass
class Inviter:
    """One companion with one invitation, announced at the relay."""

    home: Household
    record: InvitationRecord
    numbers: list[str] = field(default_factory=list)  # that newcomers have shown

    @classmethod
    async def invite(
        cls, relay: Relay, home: Household, kind: Role = Role.DEVICE, *, rp_ids: tuple[str, ...] | None = None
    ) -> "Inviter":
        phone = home.companions[0]
        invitation = Invitation.make(
            relay_url=relay.url, ring=home.ring, kind=kind, inviter=phone.name, now=relay.clock()
        )
        inviter = cls(home, InvitationRecord(invitation=invitation, rp_ids=rp_ids))
        body = {"kind": kind, "expires_at": invitation.expires_at}
        reply = await phone.put(f"/v1/invitations/{invitation.id}", body)
        assert reply.status == 201, reply
        return inviter

    @property
    def phone(self) -> Caller:
        return self.home.companions[0]

    @property
    def invitation(self) -> Invitation:
        return self.record.invitation

    async def introduced(self) -> Introduction:
        """Whoever comes, after the inviter's checks."""
        reply = await self._left("open")
        parts = {name: from_base64url(value) for name, value in reply["introduction"].items()}
        introduction = self.record.check(**parts, now=self.phone.clock())
        self.record = self.record.taken_by(introduction)
        return introduction

    async def send_nonce(self, nonce: bytes | None = None) -> None:
        """Send the inviter's nonce, or another one."""
        nonce = nonce or self.record.nonce
        assert nonce is not None
        reply = await self.phone.post(
            f"/v1/invitations/{self.invitation.id}/nonce", {"nonce": base64url(nonce)}
        )
        assert reply.status == 200, reply

    async def candidate(self, introduction: Introduction) -> Candidate:
        """The newcomer after it has revealed its nonce."""
        await self.send_nonce()
        reply = await self._left("answering")
        return self.record.candidate(introduction, from_base64url(reply["nonce"]))

    async def admit(self, introduction: Introduction, *, label: str | None = None) -> Ring:
        """The whole answer: with the number of the newcomer that showed its number last, or without one."""
        candidate = await self.candidate(introduction)
        if self.numbers:
            self.record = candidate.agree(self.numbers[-1], label=label)
        else:
            self.record = candidate.agree_without_number(label=label)
        now = self.phone.clock()
        ring, mac = self.record.admit(introduction, ring=self.home.ring, key=self.phone.person.key, now=now)
        reply = await self.phone.post("/v1/ring", {"ring": base64url(ring.document)})
        assert reply.status == 201, reply
        reply = await self.phone.post(
            f"/v1/invitations/{self.invitation.id}/answer",
            {"ring": base64url(ring.document), "mac": base64url(mac)},
        )
        assert reply.status == 200, reply
        self.home.ring = ring
        return ring

    async def withdraw(self) -> None:
        reply = await self.phone.call("DELETE", f"/v1/invitations/{self.invitation.id}")
        assert reply.status == 200, reply

    async def _left(self, state: str) -> dict[str, Any]:
        while True:
            reply = await self.phone.get(f"/v1/invitations/{self.invitation.id}?state={state}&wait=20")
            assert reply.status == 200, reply
            body: dict[str, Any] = reply.body
            if body["state"] != state:
                return body
