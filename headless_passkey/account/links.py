"""A device's links: the phones that it can reach again without a FIDO URL (CTAP 2.2 §11.5.2), in one file of mode 0600.

::

    STATE/links.json

A link is a credential: whoever holds it can bring a question before the phone's user. `LinkStore` is the file; nothing that it
lists or logs holds a secret. `AccountLinks` is what a ceremony asks: it deletes links before anything is tried with them, when the
companion through which they came has left the account, or this device has.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from headless_passkey.account import enrolment
from headless_passkey.account.device_files import (
    incompatible,
    lock_within,
    mend_names,
    private_directory,
    read_private,
    remove_private,
    write_private,
)
from headless_passkey.account.enrolment import Enrolment
from headless_passkey.account.relay import RelayClient
from headless_passkey.ceremony import ForgottenLink
from headless_passkey.delivery import Ask
from headless_passkey.errors import (
    EnrolmentReason,
    HeadlessPasskeyError,
    NotEnrolled,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TrustError,
    UsageError,
)
from headless_passkey.hybrid.keys import parse_uncompressed
from headless_passkey.hybrid.linking import LINK_ID_SIZE, LINK_SECRET_SIZE, LinkedPhone
from headless_passkey.hybrid.tunnel_url import MAX_CONTACT_ID_SIZE
from headless_passkey.mends import setup_error
from headless_passkey.net.proven_http import ProvenHttp
from headless_passkey.text.members import Members, file_members
from headless_passkey.trust.freshness import DAY
from program_parts.base64url import base64url
from program_parts.json_text import decode_json
from program_parts.names import MAX_LABEL, is_plain, plain

FILE_NAME: Final = "links.json"
MAX_LINKS: Final = 16
CATCH_UP_TIMEOUT: Final = 3.0  # seconds for the account's news, when links are about to be tried
UNNAMED: Final = "a phone"  # one that has no name for itself
_MAX_FILE: Final = 1 << 17  # bytes
_FORMAT: Final = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLink:
    """A link as it is stored."""

    phone: LinkedPhone = field(repr=False)  # with its label as the name
    account: (
        str | None
    )  # the account and the companion, by its name in the ring, through which the link came;
    companion: str | None  # None: the FIDO URL went another way, so no companion answers for the link
    linked_at: int  # Unix seconds by our own clock
    used_at: int | None = None  # when a sign-in or registration through it was accepted last

    @property
    def label(self) -> str:
        """What the phone called itself, until somebody renames it; no two links have the same."""
        return self.phone.name

    @property
    def name(self) -> str:
        """The link ID in hexadecimal, by which the phone lists it too."""
        return self.phone.link_id.hex()

    def to_json(self) -> dict[str, Any]:
        """What may be shown of it."""
        return {
            "link": self.name,
            "label": self.label,
            "companion": self.companion,
            "tunnel_domain": self.phone.tunnel_domain,
            "linked_at": self.linked_at,
            "used_at": self.used_at,
        }


class LinkStore:
    """The file of links in one state directory."""

    def __init__(self, state: Path) -> None:
        self.path = state / FILE_NAME

    def read(self) -> tuple[KeptLink, ...]:
        """Read all links; none without a file. `SetupError` for a file that is not in order."""
        content = read_private(self.path, limit=_MAX_FILE, case="links")
        if content is None:
            return ()
        try:
            members = file_members(decode_json(content), FILE_NAME)
            if members.integer("format") != _FORMAT:
                raise incompatible(self.path, "links")
            links = tuple(map(_parse, members.objects("links", MAX_LINKS)))
        except (ValueError, RemoteProtocolError) as error:
            raise self._damaged() from error
        for told in zip(*((link.phone.public_key, link.name, link.label) for link in links), strict=True):
            if len(set(told)) < len(links):
                raise self._damaged()
        return links

    def named(self, text: str) -> KeptLink:
        """The link of this label, or this link ID; `UsageError` when there is none."""
        found = next((link for link in self.read() if text in (link.label, link.name)), None)
        if found is None:
            raise UsageError(
                "this device has no link of that name",
                advice="`headless-passkey phones list` shows which it has",
            )
        return found

    async def add(
        self, phone: LinkedPhone, *, account: str | None, companion: str | None, now: int
    ) -> KeptLink | None:
        """Store a link, in place of an earlier one to the same phone; None when there are `MAX_LINKS` others. now: Unix seconds."""
        private_directory(self.path.parent)
        async with lock_within(self.path):
            before = self.read()
            others = tuple(link for link in before if link.phone.public_key != phone.public_key)
            if len(others) == MAX_LINKS or any(link.phone.link_id == phone.link_id for link in others):
                return None
            former = next((link for link in before if link not in others), None)
            label = _free(phone.name or UNNAMED, others) if former is None else former.label
            made = KeptLink(
                phone=replace(phone, name=label),
                account=account,
                companion=companion,
                linked_at=now,
            )
            self._write((*others, made))
        return made

    async def rename(self, link: KeptLink, label: str) -> None:
        """Give a link another label; `UsageError` when another link has it. label: a valid name."""
        async with lock_within(self.path):
            links = self.read()
            if any(label in (one.label, one.name) and not _same(one, link.phone) for one in links):
                raise UsageError("another linked phone is called that already")
            self._write(
                tuple(
                    replace(one, phone=replace(one.phone, name=label)) if _same(one, link.phone) else one
                    for one in links
                )
            )

    async def used(self, phone: LinkedPhone, *, now: int) -> None:
        """Note that a sign-in or registration through a link was accepted. now: Unix seconds."""
        async with lock_within(self.path):
            links = self.read()
            self._write(tuple(replace(one, used_at=now) if _same(one, phone) else one for one in links))

    async def forget(self, *phones: LinkedPhone) -> None:
        """Delete links; one that was replaced meanwhile stays."""
        async with lock_within(self.path):
            links = self.read()
            left = tuple(one for one in links if not any(_same(one, phone) for phone in phones))
            if not left:
                remove_private(self.path)
            elif left != links:
                self._write(left)

    def remove_all(self) -> bool:
        """Delete all links, also where the file is not in order; returns whether there was a file."""
        found = self.path.is_file()
        remove_private(self.path)
        return found

    def _write(self, links: Sequence[KeptLink]) -> None:
        values = {"format": _FORMAT, "links": [_values(link) for link in links]}
        write_private(self.path, json.dumps(values, indent=1).encode())

    def _damaged(self) -> SetupError:
        return setup_error(
            f"{self.path} is damaged", SetupReason.STATE_DAMAGED, "links", **mend_names(self.path)
        )


class AccountLinks:
    """The links that a device may use, and where new ones are kept; the `Links` of a ceremony."""

    def __init__(
        self,
        state: Path,
        *,
        http: aiohttp.ClientSession,
        through_account: bool,
        require_witness: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """through_account: whether FIDO URLs go to the account's companions, so that new links are theirs.

        require_witness: as `RelayDelivery` takes it.
        """
        self._store, self._state, self._http, self._clock = LinkStore(state), state, http, clock
        self._through_account, self._require_witness = through_account, require_witness

    async def usable(
        self, ask: Ask, on_forgotten: Callable[[str, ForgottenLink], None]
    ) -> tuple[LinkedPhone, ...]:
        """The links that may be tried for `ask`, the one used last first; deletes those that may never be used again.

        The account's news are fetched first where the relay answers. None may be tried where the request itself would be
        refused, as for a device that was removed or whose account is suspended, or where digits are to be typed, which a
        linked phone does not ask for. Mutes are not among the news. on_forgotten: told of the label of each deleted link, and why. `SetupError` for a file that is not in order.
        """
        links = self._store.read()
        if not links:
            return ()
        try:
            joined, closed = await self._news(), False
        except NotEnrolled as error:
            closed = error.reason is EnrolmentReason.ACCOUNT_CLOSED
            if not closed and error.reason not in _NOT_JOINED:
                logger.info("no linked phone is tried: %s", error)
                return ()
            joined = None
        except HeadlessPasskeyError as error:
            logger.info("no linked phone is tried: %s", error)
            return ()
        lost = {link: why for link in links if (why := _lost(link, joined)) is not None}
        if lost:
            await self._store.forget(*(link.phone for link in lost))
            for link, why in lost.items():
                on_forgotten(link.label, why)
        if closed or not self._may_ask(ask, joined):
            return ()
        left = sorted(
            (link for link in links if link not in lost),
            key=lambda link: (link.used_at or 0, link.linked_at),
            reverse=True,
        )
        return tuple(link.phone for link in left)

    async def _news(self) -> Enrolment:
        """The enrolment, with the account's news where the relay gives them in time."""
        joined = enrolment.load(self._state)
        relay = RelayClient(ProvenHttp(self._http, joined.relay_url, joined.key, clock=self._clock))
        try:
            async with asyncio.timeout(CATCH_UP_TIMEOUT):
                return await enrolment.refresh(self._state, relay, patience=0)
        except (TransportError, TimeoutError) as error:
            logger.info(
                "linked phones are tried without the account's news: %s", error or "they take too long"
            )
            return enrolment.load(self._state)

    def _may_ask(self, ask: Ask, joined: Enrolment | None) -> bool:
        if ask.digits is not None:
            return False
        if joined is None:
            return True
        if joined.removed or joined.member.needs_digits:
            return False
        try:
            joined.check_rp(rp_id=ask.rp_id, origin=ask.origin)
        except TrustError:
            return False
        days, witness = self._require_witness, next(iter(joined.witnesses), None)
        return days is None or witness is None or not witness.is_silent(self._clock(), after=days * DAY)

    async def keep(self, phone: LinkedPhone, recipient: str) -> str | None:
        """Store a link that came from `recipient`'s phone; returns its label, and None when there are too many."""
        account = companion = None
        if self._through_account:
            joined = enrolment.load(self._state)
            account, companion = joined.account, recipient
        made = await self._store.add(phone, account=account, companion=companion, now=int(self._clock()))
        return None if made is None else made.label

    async def used(self, phone: LinkedPhone) -> None:
        """Note that a response through this link was accepted."""
        await self._store.used(phone, now=int(self._clock()))

    async def forget(self, phone: LinkedPhone) -> None:
        """Delete a link that is dead."""
        await self._store.forget(phone)


_NOT_JOINED: Final = (EnrolmentReason.NOT_ENROLLED, EnrolmentReason.JOIN_UNFINISHED)


def _lost(link: KeptLink, joined: Enrolment | None) -> ForgottenLink | None:
    """Why a link may never be used again; None for one that may."""
    if link.companion is None:
        return None
    if joined is None or link.account != joined.account or joined.removed:
        return ForgottenLink.ACCOUNT_LEFT
    if all(member.name != link.companion for member in joined.chain.head.companions):
        return ForgottenLink.COMPANION_GONE
    return None


def _same(link: KeptLink, phone: LinkedPhone) -> bool:
    return (link.phone.public_key, link.phone.link_id) == (phone.public_key, phone.link_id)


def _free(label: str, others: Sequence[KeptLink]) -> str:
    """A label that no other link has: phones choose their names, and may choose another one's."""
    taken = {link.label for link in others} | {link.name for link in others}
    number, free = 1, label
    while free in taken:
        number += 1
        suffix = f" ({number})"
        free = (plain(label, MAX_LABEL - len(suffix)) or UNNAMED) + suffix
    return free


def _parse(link: Members) -> KeptLink:
    public_key, label = link.octets("public_key", 65), link.text("label", MAX_LABEL)
    parse_uncompressed(public_key)
    if not is_plain(label):
        raise ValueError("a label is no valid name")
    return KeptLink(
        phone=LinkedPhone(
            contact_id=link.octets("contact_id", 1, MAX_CONTACT_ID_SIZE),
            link_id=link.octets("link_id", LINK_ID_SIZE),
            link_secret=link.octets("link_secret", LINK_SECRET_SIZE),
            public_key=public_key,
            name=label,
            tunnel_domain=link.integer("tunnel_domain", 0xFFFF),
        ),
        account=link.optional_text("account"),
        companion=link.optional_text("companion"),
        linked_at=link.integer("linked_at"),
        used_at=link.integer("used_at") if link.has("used_at") else None,
    )


def _values(link: KeptLink) -> dict[str, Any]:
    return {
        "label": link.label,
        "account": link.account,
        "companion": link.companion,
        "linked_at": link.linked_at,
        "used_at": link.used_at,
        "tunnel_domain": link.phone.tunnel_domain,
        "contact_id": base64url(link.phone.contact_id),
        "link_id": base64url(link.phone.link_id),
        "link_secret": base64url(link.phone.link_secret),
        "public_key": base64url(link.phone.public_key),
    }
