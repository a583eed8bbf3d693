"""A relay that cheats, for the demo and the tests: what a companion must refuse.

    python examples/rogue_relay.py --mode swap --listen localhost:0 --cert cert.pem --key key.pem

It is the real relay with a few lines in front of its answers. Everything it does, any operator of a relay
could do: it knows all public keys, all sealed envelopes, and every way the companions ask.

==================  ============================================================  =====================
mode                what it does with a request on its way to a companion         which must be refused
==================  ============================================================  =====================
swap                seals its own FIDO URL to the companion in the device's name  bad-signature
unknown-device      the same, signed properly by a device of no account           unknown-device
other-request       delivers the real envelope under another request id           cannot-open
other-recipient     delivers one companion's envelope to another                  cannot-open
replay              delivers an envelope again after it was opened                replayed
fork                serves a next ring of its own making, with its own device     bad-signature
==================  ============================================================  =====================
"""

import argparse
import json
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable
from typing import Any, Final
from unittest.mock import patch

from aiohttp import web

from companion_push.cli import main as companion_push
from companion_push.relay.app import make_app
from companion_push.relay.config import RelayConfig
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import Hint
from headless_passkey.trust.envelope import Announcement, Kind, new_request_id, seal
from headless_passkey.trust.ring import Member, Ring, Role
from headless_passkey.trust.signing import SoftwareSigningKey, base64url, from_base64url, thumbprint

MODES: Final = ("swap", "unknown-device", "other-request", "other-recipient", "replay", "fork")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Liar:
    """Signs in somebody else's name, with the only key it has."""

    def __init__(self, public_key: bytes, own: SoftwareSigningKey) -> None:
        self.public_key, self._own = public_key, own

    def sign(self, data: bytes) -> bytes:
        return self._own.sign(data)


class RogueRelay:
    """What an operator sees pass by, and what it makes of it."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._own = SoftwareSigningKey.generate()
        self._ring: Ring | None = None
        self._envelopes: dict[str, str] = {}  # the newest, by recipient
        self._opened: list[dict[str, Any]] = []

    async def cheat(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware in front of the real relay."""
        answer = await handler(request)
        if not isinstance(answer, web.Response) or not 200 <= answer.status < 300:
            return answer
        body = (
            json.loads(await request.text())
            if request.can_read_body or request.method in ("PUT", "POST")
            else {}
        )
        content = json.loads(answer.body) if isinstance(answer.body, bytes) and answer.body else {}
        self._remember(request, body)
        if request.path == "/v1/ring" and request.method == "GET" and self._mode == "fork":
            content = self._forked(content)
        elif request.path == "/v1/inbox":
            content["requests"] = [self._changed(item, _caller(request)) for item in content["requests"]]
            if self._mode == "replay":
                live = {item["id"] for item in content["requests"]}
                content["requests"] += [item for item in self._opened if item["id"] not in live]
        return web.json_response(content, status=answer.status)

    def _remember(self, request: web.Request, body: dict[str, Any]) -> None:
        if isinstance(body.get("ring"), str):
            document = from_base64url(body["ring"])
            try:
                self._ring = (
                    Ring.parse_founding(document) if self._ring is None else self._ring.extend(document)
                )
            except HeadlessPasskeyError:
                return  # the answer to an introduction repeats the ring we have
        if request.path.startswith("/v1/requests/") and "envelopes" in body:
            self._envelopes = {envelope["to"]: envelope["sealed"] for envelope in body["envelopes"]}

    def _changed(self, item: dict[str, Any], companion: str) -> dict[str, Any]:
        """What is delivered instead of `item`."""
        match self._mode:
            case "swap":
                return item | {"sealed": self._forged(item, companion, item["device"])}
            case "unknown-device":
                device = thumbprint(self._own.public_key)
                return item | {"device": device, "sealed": self._forged(item, companion, device)}
            case "other-request":
                return item | {"id": base64url(new_request_id())}
            case "other-recipient":
                others = [sealed for name, sealed in self._envelopes.items() if name != companion]
                return item | {"sealed": others[0]} if others else item
            case "replay" if item["id"] not in {opened["id"] for opened in self._opened}:
                self._opened.append(dict(item))
        return item

    def _forged(self, item: dict[str, Any], companion: str, device: str) -> str:
        """An envelope with a FIDO URL of ours, sealed to the companion's real key."""
        assert self._ring is not None  # noqa: S101  a request comes after a ring
        recipient, sender = self._ring.member(companion), self._ring.member(device)
        assert recipient is not None  # noqa: S101  only members are delivered to
        assert recipient.hpke_key is not None  # noqa: S101  companions have one
        announcement = Announcement.address(
            recipient,
            ring=self._ring,
            device=device,
            request_id=from_base64url(item["id"]),
            now=time.time(),
            lifetime=300,
            kind=Kind.GET_ASSERTION,
            url=QrTransaction.create(hint=Hint.GET_ASSERTION, time=int(time.time())).url.encode(),
            rp_id="localhost",
        )
        key = self._own if sender is None else Liar(sender.signing_key, self._own)
        return base64url(seal(announcement, key, recipient.hpke_key))

    def _forked(self, content: dict[str, Any]) -> dict[str, Any]:
        """The head, and behind it a version that a companion never signed."""
        assert self._ring is not None  # noqa: S101  members ask, so there is one
        companion = self._ring.companions[0]
        mole = Member(
            role=Role.DEVICE,
            signing_key=self._own.public_key,
            hpke_key=None,
            label=self._ring.members[-1].label,
        )
        signer = Liar(companion.signing_key, self._own)
        forged = self._ring.next(signer, members=(*self._ring.members, mole), now=time.time())
        return {
            "version": forged.version,
            "hash": base64url(forged.hash),
            "rings": [*content["rings"], base64url(forged.document)],
        }


def _caller(request: web.Request) -> str:
    """The name of whoever proved itself in the request."""
    header = request.headers["DPoP"].split(".")[0]
    jwk = json.loads(urlsafe_b64decode(header + "=" * (-len(header) % 4)))["jwk"]
    return thumbprint(b"\x04" + from_base64url(jwk["x"]) + from_base64url(jwk["y"]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, default="swap")
    args, words = parser.parse_known_args()
    rogue = RogueRelay(args.mode)

    def make_rogue_app(config: RelayConfig) -> web.Application:
        app = make_app(config)

        @web.middleware
        async def cheat(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await rogue.cheat(request, handler)

        app.middlewares.append(cheat)
        return app

    with patch("companion_push.relay.command.make_app", make_rogue_app):
        return companion_push(["relay", *words])


if __name__ == "__main__":
    sys.exit(main())
