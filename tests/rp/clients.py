"""A running relying party and the two kinds of clients that talk to it, for tests."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request

from relying_party.config import Config
from relying_party.http.request import STATE
from relying_party.place import StorePlace
from tests.rp.authenticator_double import JSON, NO_FAULTS, DeviceKey, Faults, Passkey, b64, create, get

RP_ID: Final = "rp.example"
WEB_ORIGIN: Final = "https://rp.example"
DEVICE_ORIGIN: Final = "https://device.rp.example"
PROBLEM: Final = "urn:headless-passkey:problem:"


def make_config(store: StorePlace, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "rp_id": RP_ID,
        "rp_name": "An Example",
        "web_origins": (WEB_ORIGIN,),
        "device_origins": (DEVICE_ORIGIN,),
        "public_url": WEB_ORIGIN,
        "store": store,
        "requests_per_minute": 100_000,
        "registrations_per_day": 100_000,
        **changes,
    }
    return Config.make(**settings)


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Answer:
    """Status, headers and body of an HTTP answer."""

    status: int
    headers: Any
    body: Any
    cookies: dict[str, str]

    @property
    def slug(self) -> str:
        assert self.headers["Content-Type"].startswith("application/problem+json")
        assert self.body["status"] == self.status
        assert self.body["title"]
        assert self.body.get("detail") != ""
        return str(self.body["type"]).removeprefix(PROBLEM)


@dataclass
class Browser:
    origin: str = WEB_ORIGIN
    cookie: str | None = None
    client_origin: str = WEB_ORIGIN  # what it writes into client data

    def headers(self, method: str, path: str, now: float) -> dict[str, str]:
        headers = {} if method == "GET" else {"Origin": self.origin}
        if self.cookie:
            headers["Cookie"] = f"__Host-session={self.cookie}"
        return headers

    def keep(self, answer: Answer) -> None:
        self.cookie = answer.cookies.get("__Host-session", self.cookie)


@dataclass
class Device:
    key: DeviceKey = field(default_factory=DeviceKey)
    token: str | None = None
    client_origin: str = DEVICE_ORIGIN
    nonce: str | None = None  # the newest one of the relying party

    def headers(self, method: str, path: str, now: float) -> dict[str, str]:
        proof = self.key.proof(method, WEB_ORIGIN + path, now, self.token, nonce=self.nonce)
        headers = {"DPoP": proof}
        if self.token is not None:
            headers["Authorization"] = f"DPoP {self.token}"
        return headers

    def keep(self, answer: Answer) -> None:
        self.nonce = answer.headers.get("DPoP-Nonce", self.nonce)
        if isinstance(answer.body, dict) and answer.body.get("token"):
            self.token = answer.body["token"]


Who = Browser | Device


@dataclass
class Site:
    """The relying party under test."""

    http: TestClient[Request, Application]
    app: Application
    clock: Clock
    config: Config
    prefix: str = ""  # where the application is mounted

    @property
    def state(self) -> Any:
        return self.app[STATE]

    @property
    def file(self) -> Path:
        """The file that its store is; a test that needs one is left out where it is a database."""
        if not isinstance(self.config.store, Path):
            pytest.skip("the store is no file")
        return self.config.store

    @property
    def nonce(self) -> str:
        """The newest nonce of a relying party that remembers its proofs in memory."""
        return str(self.state.used_proofs.nonce(now=self.clock.now))

    async def send(self, who: Who, method: str, path: str, body: Any = None) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        answer = await self.raw(method, path, who.headers(method, path, self.clock.now), data)
        who.keep(answer)
        if answer.status == 401 and answer.slug == "use-dpop-nonce":
            answer = await self.raw(method, path, who.headers(method, path, self.clock.now), data)
            who.keep(answer)
        return answer

    async def raw(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
        if body is not None:
            headers = {"Content-Type": "application/json", **headers}
        async with self.http.request(method, path, headers=headers, data=body) as response:
            return await _answer(response)

    async def begin(self, who: Who, ceremony: str, **body: Any) -> tuple[str, JSON]:
        answer = await self.send(who, "POST", f"{self.prefix}/webauthn/{ceremony}/options", body)
        assert answer.status == 200, answer.body
        assert set(answer.body) - {"mediation"} == {"ceremony", "publicKey"}
        return answer.body["ceremony"], answer.body["publicKey"]

    async def finish(self, who: Who, ceremony: str, name: str, response: JSON) -> Answer:
        path = f"{self.prefix}/webauthn/{ceremony}/result"
        return await self.send(who, "POST", path, {"ceremony": name, "response": response})

    async def register(
        self, who: Who, name: str = "ada", faults: Faults = NO_FAULTS, **create_with: Any
    ) -> tuple[Passkey, Answer]:
        ceremony, options = await self.begin(who, "registration", user_name=name)
        passkey, response = create(options, who.client_origin, faults, **create_with)
        return passkey, await self.finish(who, "registration", ceremony, response)

    async def step_up(
        self, who: Who, passkey: Passkey, operation: str, faults: Faults = NO_FAULTS, **more: Any
    ) -> Answer:
        """Use a passkey for one operation; more: its target or name."""
        ceremony, options = await self.begin(who, "step-up", **{"operation": operation, **more})
        response = get(passkey, options, who.client_origin, faults)
        return await self.finish(who, "step-up", ceremony, response)

    async def add_passkey(self, who: Who, passkey: Passkey, name: str = "ada") -> Passkey:
        """Add a passkey to an account, with one that it has."""
        assert (await self.step_up(who, passkey, "add-passkey")).status == 200
        added, answer = await self.register(who, name)
        assert answer.status == 201, answer.body
        return added

    async def remove_passkey(self, who: Who, passkey: Passkey, removed: Passkey) -> Answer:
        """Remove a passkey of an account, with one that it has."""
        target = b64(removed.credential_id)
        assert (await self.step_up(who, passkey, "remove-passkey", target=target)).status == 200
        return await self.send(who, "DELETE", f"/me/credentials/{target}")

    async def sign_in(
        self, who: Who, passkey: Passkey, faults: Faults = NO_FAULTS, **begin_with: Any
    ) -> Answer:
        ceremony, options = await self.begin(who, "authentication", **begin_with)
        response = get(passkey, options, who.client_origin, faults)
        return await self.finish(who, "authentication", ceremony, response)


async def _answer(response: ClientResponse) -> Answer:
    data = await response.read()
    is_json = data and "json" in response.headers.get("Content-Type", "")  # HEAD has no body
    return Answer(
        status=response.status,
        headers=response.headers,
        body=json.loads(data) if is_json else data.decode(),
        cookies={name: morsel.value for name, morsel in response.cookies.items()},
    )
