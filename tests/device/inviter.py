"""The inviter's side of a join, played by the first companion of a household on a real relay."""

from dataclasses import dataclass

from headless_passkey.text.base64url import base64url, from_base64url
from headless_passkey.trust.invitation import Introduction, Invitation, InvitationRecord
from headless_passkey.trust.ring import Ring, Role
from tests.relay.household import Caller, Household, Relay


@dataclass
class Inviter:
    """One companion with one invitation, announced at the relay."""

    home: Household
    record: InvitationRecord

    @classmethod
    async def invite(
        cls, relay: Relay, home: Household, kind: Role = Role.DEVICE, *, rp_ids: tuple[str, ...] | None = None
    ) -> "Inviter":
        phone = home.companions[0]
        invitation = Invitation.make(
            relay_url=relay.url, account=home.account, kind=kind, inviter=phone.name, now=relay.clock()
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
        while True:
            reply = await self.phone.get(f"/v1/invitations/{self.invitation.id}?wait=20")
            if reply.body["introduction"] is not None:
                break
        parts = {name: from_base64url(value) for name, value in reply.body["introduction"].items()}
        introduction = self.record.check(**parts, now=self.phone.clock())
        self.record = self.record.taken_by(introduction)
        return introduction

    async def admit(self, introduction: Introduction) -> Ring:
        ring, mac = self.record.admit(
            introduction, ring=self.home.ring, key=self.phone.person.key, now=self.phone.clock()
        )
        reply = await self.phone.post("/v1/ring", {"ring": base64url(ring.document)})
        assert reply.status == 201, reply
        await self.answer({"ring": base64url(ring.document), "mac": base64url(mac)})
        self.home.ring = ring
        return ring

    async def answer(self, body: dict[str, object]) -> None:
        reply = await self.phone.post(f"/v1/invitations/{self.invitation.id}/answer", body)
        assert reply.status == 200, reply
