"""A relay that cheats, for the demo and the tests. Companion and device must refuse what it delivers.

    python examples/rogue_relay.py --mode swap --listen localhost:0 --cert cert.pem --key key.pem

It is the real relay with a few lines that change its answers. Any operator of a relay could do all of this:
a relay knows all public keys, all sealed envelopes, and every call that companions make.

==================  ============================================================  =====================
mode                what it does with a request                                   which must be refused
==================  ============================================================  =====================
swap                seals its own FIDO URL to the companion in the device's name  bad-signature
unknown-device      the same, signed properly by a device of no account           unknown-device
other-account       the same, signed properly by a device of another account      unknown-device
other-request       delivers the real envelope under another request id           cannot-open
other-recipient     delivers one companion's envelope to another                  cannot-open
replay              delivers an envelope again after it was opened                replayed
fork                serves a next ring of its own making, with its own device     bad-signature
invent-claim        shows the device a claim that no companion has made           bad-claim
hide-claim          shows the device no claim                                     not-claimed
withhold            shows devices neither the newest ring nor any word            withheld-ring
conflict            says of each ring that a newer one is there, and shows none   relay-inconsistent
==================  ============================================================  =====================

With --mode-file it reads the mode from that file for each request, and is honest while there is no such file.
In the file, the state directory of the device that takes part follows ``other-account``, and may follow ``conflict`` the
path of a file, which gets one line for each ring.
"""

import argparse
import json
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from aiohttp import web

from companion_push.cli import main as companion_push
from companion_push.relay.app import make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.store_place import StorePlace
from companion_push.relay.stores import open_store
from headless_passkey.account import enrolment
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.envelope import Announcement, new_request_id, seal
from headless_passkey.trust.ring import Member, Ring, Role, prove_possession
from headless_passkey.trust.signing import SoftwareSigningKey, thumbprint
from headless_passkey.trust.word import Claim, Word
from program_parts.base64url import base64url

HONEST: Final = "honest"
MODES: Final = (
    "swap",
    "unknown-device",
    "other-account",
    "other-request",
    "other-recipient",
    "replay",
    "fork",
    "invent-claim",
    "hide-claim",
    "withhold",
    "conflict",
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Liar:
    """Signs in the name of another member, with the relay's own key."""

    def __init__(self, public_key: bytes, own: SoftwareSigningKey) -> None:
        self.public_key, self._own = public_key, own

    def sign(self, data: bytes) -> bytes:
        return self._own.sign(data)


class RogueRelay:
    """Records what an operator sees at the relay, and forges answers from it."""

    def __init__(self, say_mode: Callable[[], str]) -> None:
        """say_mode: returns the mode; it is called for each request."""
        self._say_mode = say_mode
        self._mode, self._insider = HONEST, ""
        self._own = SoftwareSigningKey.generate()
        self._rings: dict[str, Ring] = {}  # the newest, by account
        self._earlier: dict[str, Ring] = {}  # the one before the newest, by account
        self._envelopes: dict[str, str] = {}  # the newest, by recipient
        self._opened: list[dict[str, Any]] = []
        self._told: set[str] = set()

    def _tell_once(self, stage: str) -> None:
        """Say that it has cheated, as programs tell stages: whoever tries it knows then that somebody was cheated."""
        if stage not in self._told:
            self._told.add(stage)
            print(json.dumps({"stage": stage}), file=sys.stderr, flush=True)

    async def recall(self, place: StorePlace) -> None:
        """Read the rings in the store, as any operator can: a relay that cheats may have been honest before."""
        async with open_store(place) as store:
            rows = await store.transact(
                lambda db: db.execute("SELECT document FROM rings ORDER BY account, version").fetchall()
            )
        for (document,) in rows:
            self._follow(document)

    async def cheat(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware in front of the real relay."""
        if request.path == "/v1/inbox/stream":
            raise web.HTTPNotFound  # as an older relay says: companions poll, and get what is made of it below
        asked = await request.text()  # before the relay, which keeps no copy of it
        self._mode, _, self._insider = self._say_mode().partition(" ")
        if self._mode == "withhold" and '"envelopes"' in asked:
            request._read_bytes = self._for_members_only(asked, _caller(request))  # noqa: SLF001  what the relay reads
        if self._mode == "conflict" and (request.method, request.path) == ("POST", "/v1/ring"):
            return self._conflict()
        answer = await handler(request)
        if not isinstance(answer, web.Response) or not 200 <= answer.status < 300:
            return answer
        body = json.loads(asked) if asked else {}
        content = json.loads(answer.body) if isinstance(answer.body, bytes) and answer.body else {}
        self._remember(request, body)
        if request.path == "/v1/ring" and request.method == "GET" and self._mode == "fork":
            content = self._forked(content, _caller(request))
        elif request.path == "/v1/ring" and request.method == "GET" and self._mode == "withhold":
            content |= self._withheld(content, _caller(request))
        elif request.path == "/v1/inbox":
            content["requests"] = [self._changed(item, _caller(request)) for item in content["requests"]]
            if self._mode == "replay":
                live = {item["id"] for item in content["requests"]}
                content["requests"] += [item for item in self._opened if item["id"] not in live]
        elif request.path.startswith("/v1/requests/"):
            content |= self._shown_claim(request, content)
        return web.json_response(content, status=answer.status)

    def _conflict(self) -> web.Response:
        """What is said of a ring that follows the newest one."""
        if self._insider:
            with Path(self._insider).open("a", encoding="utf-8") as file:
                file.write("a ring\n")
        problem = {
            "type": "urn:headless-passkey:problem:ring-conflict",
            "status": 409,
            "title": "a newer ring is there",
        }
        return web.json_response(problem, status=409, content_type="application/problem+json")

    def _for_members_only(self, asked: str, device: str) -> bytes:
        """A submission without envelopes for whom the newest ring no longer holds, which the real relay would refuse."""
        if self._member(device) is None:  # it was removed, which the real relay says
            return asked.encode()
        body, ring = json.loads(asked), self._ring_of(device)
        body["envelopes"] = [each for each in body["envelopes"] if ring.member(each["to"]) is not None]
        return json.dumps(body).encode()

    def _remember(self, request: web.Request, body: dict[str, Any]) -> None:
        if isinstance(body.get("ring"), str):
            self._follow(from_base64url(body["ring"]))
        if request.path.startswith("/v1/requests/") and "envelopes" in body:
            self._envelopes = {envelope["to"]: envelope["sealed"] for envelope in body["envelopes"]}

    def _follow(self, document: bytes) -> None:
        """Keep a ring as the newest of its account."""
        grow: list[Callable[[bytes], Ring]] = [Ring.parse_founding]
        grow += [partial(ring.extend, now=time.time()) for ring in self._rings.values()]
        for parse in grow:
            with suppress(HeadlessPasskeyError):  # another account's ring, or one that we have already
                ring = parse(document)
                self._earlier[ring.account] = self._rings.get(ring.account, ring)
                self._rings[ring.account] = ring
                break

    def _changed(self, item: dict[str, Any], companion: str) -> dict[str, Any]:
        """What is delivered instead of `item`."""
        match self._mode:
            case "swap":
                return item | {"sealed": self._forged(item, companion, item["device"])}
            case "unknown-device":
                device = thumbprint(self._own.public_key)
                return item | {"device": device, "sealed": self._forged(item, companion, device)}
            case "other-account":
                key = enrolment.load(Path(self._insider)).key
                device = thumbprint(key.public_key)
                return item | {"device": device, "sealed": self._forged(item, companion, device, key)}
            case "other-request":
                return item | {"id": base64url(new_request_id())}
            case "other-recipient":
                others = [sealed for name, sealed in self._envelopes.items() if name != companion]
                return item | {"sealed": others[0]} if others else item
            case "replay" if item["id"] not in {opened["id"] for opened in self._opened}:
                self._opened.append(dict(item))
        return item

    def _shown_claim(self, request: web.Request, content: dict[str, Any]) -> dict[str, Any]:
        """What is shown to the device of the claim of its request."""
        match self._mode:
            case "invent-claim":
                companion = self._ring_of(_caller(request)).companions[0]
                word = self._claim_of(companion, _caller(request), from_base64url(content["id"]))
                return {"state": "claimed", "claim": {"by": companion.name, "word": base64url(word.document)}}
            case "withhold":
                before = self._before_the_newest(_caller(request))
                self._tell_once("withheld")
                return {"ring": {"version": before.version, "hash": base64url(before.hash)}}
            case "hide-claim" if content["claim"] is not None:
                return {"state": "delivered", "claim": None}
        return {}

    def _withheld(self, content: dict[str, Any], member: str) -> dict[str, Any]:
        """What is shown to a device: the rings without the newest one, and no words."""
        caller = self._member(member)  # None: it was removed, and may read its last rings
        if caller is None or caller.role is not Role.DEVICE:
            return {}
        before = self._before_the_newest(member)
        self._tell_once("withheld")
        newer = content["version"] - before.version
        rings = content["rings"][:-newer] if newer else content["rings"]
        return {"version": before.version, "hash": base64url(before.hash), "rings": rings, "words": []}

    def _before_the_newest(self, member: str) -> Ring:
        return self._earlier[self._ring_of(member).account]

    def _claim_of(self, companion: Member, device: str, request_id: bytes) -> Word:
        """A claim in a companion's name, over the very bytes, signed by ourselves."""
        sealed = from_base64url(self._envelopes[companion.name])
        claim = Claim.of(device=device, request_id=request_id, sealed=sealed)
        signer = Liar(companion.signing_key, self._own)
        return Word.give(signer, ring=self._ring_of(companion.name), now=time.time(), claim=claim)

    def _forged(
        self, item: dict[str, Any], companion: str, device: str, key: SoftwareSigningKey | None = None
    ) -> str:
        """An envelope with a FIDO URL of ours, sealed to the companion's real key. key: of `device`, if known."""
        ring = self._ring_of(companion)
        recipient, sender = ring.member(companion), ring.member(device)
        assert recipient is not None  # noqa: S101  the relay delivers to members only
        assert recipient.hpke_key is not None  # noqa: S101  companions have one
        announcement = Announcement.address(
            recipient,
            ring=ring,
            device=device,
            request_id=from_base64url(item["id"]),
            confirmed=int(time.time()),
            now=time.time(),
            lifetime=300,
            kind=RequestKind.GET_ASSERTION,
            url=QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=int(time.time())).url.encode(),
            rp_id="localhost",
        )
        signer = key or (self._own if sender is None else Liar(sender.signing_key, self._own))
        return base64url(seal(announcement, signer, recipient.hpke_key))

    def _member(self, name: str) -> Member | None:
        found = (ring.member(name) for ring in self._rings.values())
        return next((member for member in found if member is not None), None)

    def _ring_of(self, member: str) -> Ring:
        return next(ring for ring in self._rings.values() if ring.member(member) is not None)

    def _forked(self, content: dict[str, Any], member: str) -> dict[str, Any]:
        """The rings up to the head, followed by a version that no companion signed."""
        ring = self._ring_of(member)
        companion = ring.companions[0]
        mole = Member(
            role=Role.DEVICE,
            signing_key=self._own.public_key,
            hpke_key=None,
            possession=prove_possession(self._own, account=ring.account, role=Role.DEVICE),
            label=ring.members[-1].label,
        )
        signer = Liar(companion.signing_key, self._own)
        forged = ring.next(signer, members=(*ring.members, mole), now=time.time())
        return {
            "version": forged.version,
            "hash": base64url(forged.hash),
            "rings": [*content["rings"], base64url(forged.document)],
            "words": content["words"],
        }


def _caller(request: web.Request) -> str:
    """The name of the member whose proof is in the request."""
    header = request.headers["DPoP"].split(".")[0]
    jwk = json.loads(urlsafe_b64decode(header + "=" * (-len(header) % 4)))["jwk"]
    return thumbprint(b"\x04" + from_base64url(jwk["x"]) + from_base64url(jwk["y"]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, default="swap")
    parser.add_argument("--mode-file", type=Path, help="a file that holds the mode, while it exists")
    args, words = parser.parse_known_args()

    def say_mode() -> str:
        if args.mode_file is None:
            return str(args.mode)
        return args.mode_file.read_text(encoding="utf-8") if args.mode_file.exists() else HONEST

    rogue = RogueRelay(say_mode)

    def make_rogue_app(config: RelayConfig, **more: Any) -> web.Application:
        app = make_app(config, **more)

        @web.middleware
        async def cheat(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await rogue.cheat(request, handler)

        async def recall(_: web.Application) -> None:
            await rogue.recall(config.store)

        app.middlewares.append(cheat)
        app.on_startup.append(recall)
        return app

    with patch("companion_push.relay.app.make_app", make_rogue_app):
        return companion_push(["relay", *words])


if __name__ == "__main__":
    sys.exit(main())
