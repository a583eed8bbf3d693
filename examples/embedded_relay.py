"""The push relay in a service with users and an FCM client of its own.

    python examples/embedded_relay.py --port 8472 --store embedded.sqlite3

A user's session founds the user's account, the service's client wakes its phones, and a deleted user is gone from both.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from companion_push.identity.authority import AccountAuthority, SignIn, Subject, TokenRefused
from companion_push.push.channel import Address, Delivery, Fcm, Kind, Push, PushOutcome
from companion_push.relay.app import close_account, make_app
from companion_push.relay.config import RelayConfig
from companion_push.serving.http_server import http_logger


@dataclass
class FcmClient:
    """The service's own client of FCM; a real one sends `data` to the app."""

    sent: list[Mapping[str, str]] = field(default_factory=list)

    async def send(self, token: str, data: Mapping[str, str]) -> bool:
        self.sent.append(data)
        return bool(token)


@dataclass
class Users(AccountAuthority):
    """The service's users table, by ids that are never given to anybody else; a session founds its user's account."""

    names: dict[str, str]
    sessions: dict[str, tuple[str, int]]  # user, and time of the sign-in

    async def sign_in(self, token: str, *, key: str) -> SignIn:  # noqa: ARG002  our sessions are bound to no key
        if token not in self.sessions:
            raise TokenRefused("the session is over: sign in again")
        user, at = self.sessions[token]
        who = Subject(issuer="users", id=user)
        return SignIn(subject=who, account_name=self.names[user], issued_at=at, signed_in_at=at)


@dataclass
class OurFcm:
    """Phones are woken by the client that the service has."""

    client: FcmClient
    kind: Kind = Kind.FCM
    offer: Mapping[str, object] = field(default_factory=lambda: {"apps": ["our-app"]})

    def refusal(self, address: Address) -> str | None:
        return None if isinstance(address, Fcm) and address.app == "our-app" else "we push to our app only"

    async def send(self, address: Address, push: Push) -> Delivery:
        alive = isinstance(address, Fcm) and await self.client.send(address.token, push.content)
        return Delivery(outcome=PushOutcome.SENT if alive else PushOutcome.STALE)

    async def check(self) -> str:
        return "our own client"

    async def close(self) -> None:
        pass


def make_service(public_url: str, store: Path, users: Users, client: FcmClient) -> web.Application:
    service = web.Application(handler_args={"logger": http_logger})
    config = RelayConfig(public_url=f"{public_url}/push", store=store)
    relay = make_app(config, authority=users, channels=[OurFcm(client)])
    service.add_subapp("/push", relay)

    async def delete_user(request: web.Request) -> web.Response:  # ask who may: this lets everybody
        user = request.match_info["user"]
        users.names.pop(user, None)
        users.sessions = {token: found for token, found in users.sessions.items() if found[0] != user}
        await close_account(relay, Subject(issuer="users", id=user))
        return web.Response(status=204)

    service.router.add_delete("/users/{user}", delete_user)
    return service


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8472)
    parser.add_argument("--store", type=Path, default=Path("embedded.sqlite3"))
    args = parser.parse_args()
    users = Users({"17": "anna"}, {"a session of anna's": ("17", int(time.time()))})
    service = make_service(f"http://127.0.0.1:{args.port}", args.store, users, FcmClient())
    web.run_app(service, host="127.0.0.1", port=args.port, handler_cancellation=True, access_log=None)


if __name__ == "__main__":
    main()
