"""The commands ``sign-in`` and ``register``: each runs a ceremony, and prints one line of JSON."""

import argparse
import asyncio
import json
import secrets
import ssl
from collections.abc import Awaitable, Mapping
from typing import Final

import aiohttp

from headless_passkey.account import enrolment
from headless_passkey.account.delivery import RelayDelivery, StdoutDelivery
from headless_passkey.account.links import AccountLinks
from headless_passkey.account.relay import RelayClient
from headless_passkey.ceremony import CeremonyResult, ForgottenLink, run_ceremony
from headless_passkey.command.command_line import expand_home, out, progress, read_input, show_progress
from headless_passkey.delivery import Ask, Delivery
from headless_passkey.errors import (
    TransportReason,
    TrustReason,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.linking import NoLink
from headless_passkey.mends import transport_error
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import ProvenHttp
from headless_passkey.net.related_origins import fetch_related_origins
from headless_passkey.net.unreachable import by
from headless_passkey.process.streams import talk
from headless_passkey.radio.choose import open_radio
from headless_passkey.rp.users import PinnedUsers, parse_handle
from headless_passkey.rp_ceremony import Asked, RelyingPartyCeremonies
from headless_passkey.stages import Stage, StageEvent
from headless_passkey.trust.freshness import ForgottenRings
from headless_passkey.webauthn.options import (
    MAX_JSON_SIZE,
    AuthenticationOptions,
    Options,
    RegistrationOptions,
    foreign_rp_id,
)
from headless_passkey.webauthn.origins import RelatedOrigins
from program_parts.base64url import base64url
from program_parts.names import printable, quoted

_TALK: Final[Mapping[Stage, str]] = {
    Stage.PREPARED: "listening for the phone",
    Stage.RING_UNCONFIRMED: "no companion has confirmed the account's members for a week",
    Stage.RELAY_FORGOT_RINGS: "the relay has forgotten rings",
    Stage.SUBMITTED: "request sent, waiting for approval",
    Stage.NOTIFIED: "your phone has been notified",
    Stage.NOT_NOTIFIED: "no phone could be notified: open the app",
    Stage.DELIVERED: "a companion has the request",
    Stage.CLAIMED: "approved on a companion",
    Stage.REFUSED: "a companion cannot take it",
    Stage.OPENED: "the companion passes it to the phone",
    Stage.CONTACTING: "asking for a linked phone",
    Stage.LINK_FORGOTTEN: "a link is forgotten",
    Stage.ADVERT_HEARD: "the phone is near",
    Stage.DIRECT_JOINED: "connected to the phone directly",
    Stage.DIRECT_FAILED: "no direct channel to the phone, trying the tunnel",
    Stage.TUNNEL_JOINED: "tunnel joined",
    Stage.CHANNEL_OPEN: "secure channel to the phone is open",
    Stage.ATTEMPT_FAILED: "that did not lead to the phone, still listening",
    Stage.REQUEST_SENT: "challenge sent, waiting for the phone",
    Stage.REPLY_CHECKED: "the phone answered",
    Stage.LINKED: "the phone is linked",
    Stage.NOT_LINKED: "the phone is not linked",
    Stage.COMPLETED: "done",
}

_FORGOTTEN: Final[Mapping[str, str]] = {
    ForgottenLink.GONE: "it has forgotten this device",
    ForgottenLink.COMPANION_GONE: "the companion through which it came has left the account",
    ForgottenLink.ACCOUNT_LEFT: "this device has left the account",
}
_NOT_LINKED: Final[Mapping[str, str]] = {
    NoLink.NOT_OFFERED: "it offers no link",
    NoLink.OUT_OF_PLACE: "it offers no link",
    NoLink.MALFORMED: "its link cannot be read",
    NoLink.BAD_SIGNATURE: "its link is not signed for this session",
    "too-many-links": "there are too many links, `headless-passkey phones forget` makes room",
}


class Ceremony:
    """A ceremony of the command line, whose options go together (`sign_in.check_options`)."""

    def __init__(self, args: argparse.Namespace, kind: RequestKind, tls: ssl.SSLContext | None) -> None:
        self._args, self._kind, self._state = args, kind, expand_home(args.state)
        self._digits = f"{secrets.randbelow(100):02d}" if args.match_digits else None
        self._expected = None if args.expect_user is None else parse_handle(args.expect_user)
        self._tls = tls
        self._radio = open_radio(args.radio, passive=args.scan == "passive", report=self._on_report)

    async def run(self, http: aiohttp.ClientSession, found: Awaitable[BaseUrl] | None) -> None:
        """Run the ceremony; prints the response, or with --rp the session, as one line on stdout.

        found: the search for the relying party that has begun already.
        """
        if self._args.rp is None:
            await self._for_options(http)
        else:
            await self._at_relying_party(http, found)

    async def _for_options(self, http: aiohttp.ClientSession) -> None:
        args, clock = self._args, asyncio.get_running_loop().time
        deadline = clock() + args.timeout
        options = await self._known_options(http, deadline)
        users = None if args.any_user else PinnedUsers(self._state, options.rp_id)
        if users is not None:
            users.read()  # one that is damaged is told before anybody is asked
        completed = await run_ceremony(
            Ask.of(options, note=args.note, digits=self._digits, user_handle=self._expected),
            options,
            delivery=self._stdout_delivery() or self._relay_delivery(http),
            radio=self._radio,
            tunnels=dict(args.tunnel),
            tls=self._tls,
            timeout=max(0.1, round(deadline - clock(), 1)),
            on_stage=self._on_stage,
            users=users,
            links=AccountLinks(
                self._state,
                http=http,
                through_account=args.delivery == "relay",
                require_witness=args.require_witness,
            ),
            link=args.link,
            min_rssi=args.min_rssi,
            join_within=args.join_within,
            direct=args.direct,
        )
        self._tell(completed)
        out(completed.credential.to_json())

    async def _at_relying_party(self, http: aiohttp.ClientSession, found: Awaitable[BaseUrl] | None) -> None:
        args = self._args
        ceremonies = RelyingPartyCeremonies(
            self._state,
            http=http,
            radio=self._radio,
            tunnels=dict(args.tunnel),
            tls=self._tls,
            require_witness=args.require_witness,
            direct=args.direct,
        )
        asked = Asked(
            kind=self._kind,
            user_name=args.user,
            user_handle=self._expected,
            rp_id=args.rp_id,
            note=args.note,
            digits=self._digits,
            audience=tuple(args.audience),
            add_user=args.add_user,
            any_user=args.any_user,
        )
        ended = await ceremonies.ask(
            args.rp,
            asked,
            on_stage=self._on_stage,
            timeout=args.timeout,
            delivery=self._stdout_delivery(),
            keep=not args.no_keep,
            link=args.link,
            min_rssi=args.min_rssi,
            join_within=args.join_within,
            found=found,
        )
        self._tell(ended.ceremony, pinned=ended.user_pinned)
        if ended.session is None:
            out(json.dumps({**ended.opened.to_json(), "relying_party": ended.relying_party}))
            return
        if not args.json:
            talk(f"the session is kept in {ended.session.path}")
        out(json.dumps(ended.session.to_json()))

    async def _known_options(self, http: aiohttp.ClientSession, deadline: float) -> Options:
        """Parse the options of --options for the origin of --origin."""
        origin = self._args.origin
        try:
            async with asyncio.timeout_at(deadline):
                text = await read_input(self._args.options, limit=MAX_JSON_SIZE + 1)
        except TimeoutError as error:
            what = f"the options did not come within {self._args.timeout:g} seconds"
            raise transport_error(what, TransportReason.NO_INPUT) from error
        foreign = foreign_rp_id(text, origin=origin)
        related: RelatedOrigins | None = None
        if foreign is not None:
            what = (
                f"{foreign} did not say within {self._args.timeout:g} seconds which origins it is related to"
            )
            related = await by(deadline, fetch_related_origins(http, foreign), what)
        parse = (
            AuthenticationOptions.parse
            if self._kind is RequestKind.GET_ASSERTION
            else RegistrationOptions.parse
        )
        return parse(text, origin=origin, related=related)

    def _stdout_delivery(self) -> Delivery | None:
        return StdoutDelivery(out) if self._args.delivery == "stdout" else None

    def _relay_delivery(self, http: aiohttp.ClientSession) -> Delivery:
        joined = enrolment.load(self._state)
        relay = RelayClient(ProvenHttp(http, joined.relay_url, joined.key))
        return RelayDelivery(relay, self._state, require_witness=self._args.require_witness)

    def _on_report(self, what: str) -> None:
        talk(progress(warning=what) if self._args.json else what)

    def _tell_digits(self, event: StageEvent, digits: str) -> None:
        how = self._args.digits_by
        if self._args.json:
            talk(progress(stage=event.stage, elapsed=round(event.elapsed, 4), digits=digits, by=how))
        else:
            talk(f"{'' if how == 'show' else f'{how} the '}number to type on the companion: {digits}")

    def _on_stage(self, event: StageEvent) -> None:
        if event.digits is not None:
            self._tell_digits(event, event.digits)
        elif self._args.json:
            talk(progress(stage=event.stage, elapsed=round(event.elapsed, 4), **event.detail))
        elif event.refusal is not None:  # printed also without a terminal
            talk(f"{event.elapsed:8.3f} s  {event.refusal} [{event.refusal.reason}]")
        elif event.stage is Stage.RING_UNCONFIRMED:
            who, days = quoted(event.detail["label"]), event.detail["days"]
            talk(
                f"{event.elapsed:8.3f} s  no word from {who} for {days} days [{TrustReason.UNCONFIRMED_RING}]"
            )
        elif event.stage is Stage.RELAY_FORGOT_RINGS:
            lost = event.detail
            said = ForgottenRings(
                first=lost["first"], last=lost["last"], given=lost["given"], why_not=lost.get("reason")
            )
            talk(f"{event.elapsed:8.3f} s  {said} [{event.stage}]")
        elif event.stage is Stage.ATTEMPT_FAILED:
            show_progress(f"{event.elapsed:8.3f} s  {_TALK[event.stage]}: {event.detail['why']}")
        elif event.stage is Stage.CONTACTING:
            show_progress(
                f"{event.elapsed:8.3f} s  asking for {quoted(event.detail['phone'])}, which is linked"
            )
        elif event.stage is Stage.LINK_FORGOTTEN:  # printed also without a terminal, as the next two
            who, why = quoted(event.detail["phone"]), event.detail["reason"]
            talk(f"{event.elapsed:8.3f} s  {who} is linked no more: {_FORGOTTEN[why]} [{why}]")
        elif event.stage is Stage.LINKED:
            talk(
                f"{event.elapsed:8.3f} s  {quoted(event.detail['phone'])} is linked: it is asked first from now on"
            )
        elif event.stage is Stage.NOT_LINKED:
            why = event.detail["reason"]
            talk(
                f"{event.elapsed:8.3f} s  the phone is not linked: {_NOT_LINKED.get(why, 'it cannot be kept')} [{why}]"
            )
        elif event.stage is Stage.NOTIFIED and "label" in event.detail:
            show_progress(f"{event.elapsed:8.3f} s  {quoted(event.detail['label'])} has been notified")
        elif event.stage is Stage.NOT_NOTIFIED:  # printed also without a terminal: somebody has to act
            talk(f"{event.elapsed:8.3f} s  {_TALK[event.stage]}")
        else:
            show_progress(f"{event.elapsed:8.3f} s  {_TALK[event.stage]}")

    def _tell(self, completed: CeremonyResult, *, pinned: bool = False) -> None:
        """Print the account that signed in: a device without a screen announces it (T3)."""
        credential = completed.credential
        handle = None if credential.user_handle is None else base64url(credential.user_handle)
        if self._args.json:
            account = {
                "user_handle": handle,
                "user_name": credential.user_name,
                "user_checked": completed.user_checked,
                "user_pinned": pinned,
            }
            talk(progress(account=account))
        else:
            who = printable(credential.user_name or handle or "the owner of an allowed credential")
            checked = "" if completed.user_checked else " (nobody was expected, so this was not checked)"
            expects = "; this device expects this user from now on" if pinned else ""
            talk(f"the passkey of {who} answered{checked}{expects}")
