"""``sign-in`` and ``register`` as commands: options or relying party in, one line of JSON out."""

import argparse
import asyncio
import json
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

import aiohttp

from headless_passkey import enrolment
from headless_passkey.command_line import (
    UsageError,
    expand_home,
    out,
    progress,
    read_input,
    show_progress,
    talk,
)
from headless_passkey.conduit import Conduit, find_relying_party
from headless_passkey.delivery import RelayDelivery, StdoutDelivery
from headless_passkey.errors import (
    NotApproved,
    NotEnrolled,
    Outcome,
    RemoteProtocolError,
)
from headless_passkey.hybrid.fido_url import Hint
from headless_passkey.names import printable
from headless_passkey.origins import RelatedOrigins, is_within
from headless_passkey.proven_http import ProvenHttp, open_session
from headless_passkey.radio.choose import open_radio
from headless_passkey.related_origins import fetch_related_origins
from headless_passkey.relay import Relay
from headless_passkey.sign_in import Ask, Delivery, OptionsSource, SignedIn, Stage, StageEvent, sign_in
from headless_passkey.tls import tls_context
from headless_passkey.trust.signing import SigningKey, SoftwareSigningKey
from headless_passkey.webauthn import (
    MAX_JSON_SIZE,
    AuthenticationOptions,
    Options,
    RegistrationOptions,
    base64url,
    foreign_rp_id,
    from_base64url,
)

_TALK: Final[Mapping[Stage, str]] = {
    Stage.PREPARED: "listening for the phone",
    Stage.SUBMITTED: "request sent, waiting for approval",
    Stage.DELIVERED: "a companion has the request",
    Stage.CLAIMED: "approved on a companion",
    Stage.OPENED: "the companion passes it to the phone",
    Stage.ADVERT_HEARD: "the phone is near",
    Stage.TUNNEL_JOINED: "tunnel joined",
    Stage.CHANNEL_OPEN: "secure channel to the phone is open",
    Stage.ATTEMPT_FAILED: "that did not lead to the phone, still listening",
    Stage.REQUEST_SENT: "challenge sent, waiting for the phone",
    Stage.REPLY_CHECKED: "the phone answered",
    Stage.COMPLETED: "done",
}


class Ceremony:
    """What the command line asked for, checked before anything is sent."""

    def __init__(self, args: argparse.Namespace, kind: Hint) -> None:
        """Raises `UsageError` when the options do not go together."""
        if (args.rp is None) == (args.options is None):
            raise UsageError("give either --rp URL, or --options FILE with --origin ORIGIN")
        if args.options is not None and args.origin is None:
            raise UsageError("--options needs --origin")
        if args.options == "-" and args.radio == "stdin":
            raise UsageError("--options - and --radio stdin both want stdin")
        if args.min_rssi is not None and args.radio == "stdin":
            raise UsageError("--min-rssi needs a radio that tells how strong an advert is; stdin does not")
        if args.rp is not None and kind is Hint.MAKE_CREDENTIAL and args.user is None:
            raise UsageError("register with --rp needs --user NAME")
        self._args, self._kind, self._state = args, kind, expand_home(args.state)
        self._digits = f"{secrets.randbelow(100):02d}" if args.match_digits else None
        self._expected = None if args.expect_user is None else _handle(args.expect_user)
        self._tls = tls_context(args.ca)
        self._radio = open_radio(args.radio, passive=args.scan == "passive", report=self._on_report)

    async def run(self) -> None:
        """The whole ceremony; the response, or with --rp the session, is one line on stdout."""
        args, clock = self._args, asyncio.get_running_loop().time
        deadline = clock() + args.timeout
        more = {"note": args.note, "digits": self._digits}
        if self._expected is not None:
            more["user_handle"] = self._expected
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(open_session(self._tls))
            conduit = None if args.rp is None else await self._conduit(http, deadline)
            if conduit is None:
                known = await self._known_options(http, deadline)
                options: OptionsSource = known
                ask = Ask.of(known, **more)
            else:
                options, rp_id = conduit.begin, args.rp_id or conduit.host
                if not is_within(conduit.host, rp_id):
                    more["related"] = await self._related_origins(http, rp_id, deadline)
                ask = Ask(kind=self._kind, origin=conduit.origin, rp_id=rp_id, **more)
            self._tell_digits()
            signed_in = await sign_in(
                ask,
                options,
                delivery=self._delivery(http),
                radio=self._radio,
                tunnels=dict(args.tunnel),
                tls=self._tls,
                timeout=max(0.1, round(deadline - clock(), 1)),
                on_stage=self._on_stage,
                settle=None if conduit is None else conduit.complete,
                min_rssi=args.min_rssi,
                join_within=args.join_within,
            )
        self._tell(signed_in)
        if conduit is None or conduit.session is None:
            out(signed_in.credential.to_json())
        else:
            out(json.dumps(conduit.session.to_json()))

    async def _known_options(self, http: aiohttp.ClientSession, deadline: float) -> Options:
        """What --options holds, for the origin that --origin names."""
        origin = self._args.origin
        try:
            async with asyncio.timeout_at(deadline):
                text = await read_input(self._args.options, limit=MAX_JSON_SIZE + 1)
        except TimeoutError as error:
            message = f"the options did not come within {self._args.timeout:g} seconds"
            raise NotApproved(Outcome.EXPIRED, message) from error
        foreign = foreign_rp_id(text, origin=origin)
        related = None if foreign is None else await self._related_origins(http, foreign, deadline)
        parse = AuthenticationOptions.parse if self._kind is Hint.GET_ASSERTION else RegistrationOptions.parse
        return parse(text, origin=origin, related=related)

    async def _related_origins(
        self, http: aiohttp.ClientSession, rp_id: str, deadline: float
    ) -> RelatedOrigins:
        """What `rp_id` says of other origins, by the deadline of the whole ceremony."""
        try:
            async with asyncio.timeout_at(deadline):
                return await fetch_related_origins(http, rp_id)
        except TimeoutError as error:
            message = (
                f"{rp_id} did not say within {self._args.timeout:g} seconds which origins it is related to"
            )
            raise NotApproved(Outcome.EXPIRED, message) from error

    async def _conduit(self, http: aiohttp.ClientSession, deadline: float) -> Conduit:
        """To the relying party, which is looked for before anybody is asked to approve."""
        args = self._args
        key, label = self._identity()
        try:
            async with asyncio.timeout_at(deadline):
                base = await find_relying_party(http, args.rp, key)
        except TimeoutError as error:
            message = f"{args.rp} did not answer within {args.timeout:g} seconds"
            raise NotApproved(Outcome.EXPIRED, message) from error
        return Conduit(
            ProvenHttp(http, str(base), key),
            origin=base.origin,
            kind=self._kind,
            user_name=args.user,
            label=label,
        )

    def _identity(self) -> tuple[SigningKey, str | None]:
        """This device's key and label; a key for this run alone where it belongs to no account and needs none."""
        try:
            joined = enrolment.load(self._state)
        except NotEnrolled:
            if self._args.delivery == "relay":
                raise
            return SoftwareSigningKey.generate(), None
        return joined.key, joined.label

    def _delivery(self, http: aiohttp.ClientSession) -> Delivery:
        if self._args.delivery == "stdout":
            return StdoutDelivery(out)
        joined = enrolment.load(self._state)
        return RelayDelivery(Relay(ProvenHttp(http, joined.relay_url, joined.key)), self._state)

    def _on_report(self, what: str) -> None:
        talk(progress(warning=what) if self._args.json else what)

    def _tell_digits(self) -> None:
        if self._digits is not None:
            what = f"number to type on the companion: {self._digits}"
            talk(progress(digits=self._digits) if self._args.json else what)

    def _on_stage(self, event: StageEvent) -> None:
        if self._args.json:
            talk(progress(stage=event.stage, elapsed=round(event.elapsed, 4), **event.detail))
        else:
            show_progress(f"{event.elapsed:8.3f} s  {_TALK[event.stage]}")

    def _tell(self, signed_in: SignedIn) -> None:
        """Who it was: the device announces it, since it cannot show it (T3)."""
        credential = signed_in.credential
        handle = None if credential.user_handle is None else base64url(credential.user_handle)
        if self._args.json:
            account = {
                "user_handle": handle,
                "user_name": credential.user_name,
                "user_checked": signed_in.user_checked,
            }
            talk(progress(account=account))
        else:
            who = printable(credential.user_name or handle or "the owner of an allowed credential")
            checked = "" if signed_in.user_checked else " (nobody was expected, so this was not checked)"
            talk(f"the passkey of {who} answered{checked}")


def _handle(text: str) -> bytes:
    try:
        handle = from_base64url(text)
    except RemoteProtocolError:
        handle = b""
    if not 1 <= len(handle) <= 64:
        raise UsageError("--expect-user takes a user handle of 1 to 64 bytes in base64url")
    return handle
