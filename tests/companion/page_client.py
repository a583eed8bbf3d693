"""The companion's page as a program that calls it, and not always as a browser would."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from companion_push.companion.keys import CompanionState
from companion_push.companion.page.asking import AtPage
from companion_push.companion.page.serving import link_to, serving_page
from companion_push.companion.page.sessions import Sessions

TIMEOUT = 120.0  # a safety net: says nothing about how fast anything is


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class Client:
    """What came by a link, or did not."""

    session: aiohttp.ClientSession
    origin: str
    at: str  # where it calls: the origin's own server, or what a proxy would call
    key: str = ""
    seen: int | None = None

    async def call(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One call as the page's script makes it; headers: in place of its own, None leaves one out."""
        sent = {"Companion-Key": self.key, "Sec-Fetch-Site": "same-origin"}
        if self.at != self.origin:
            sent["Host"] = self.origin.partition("://")[2]
        if method != "GET":
            sent["Origin"] = self.origin
        sent |= headers or {}
        sent = {name: value for name, value in sent.items() if value != ABSENT}
        data = {"data": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        async with (
            asyncio.timeout(TIMEOUT),
            self.session.request(
                method, self.at + path, headers=sent, allow_redirects=False, **data
            ) as answer,
        ):
            kind = answer.content_type
            read = await answer.json(content_type=None) if kind.endswith("json") else await answer.text()
            return Answer(status=answer.status, body=read, headers=answer.headers)

    async def enter(self, link: str) -> int:
        """Use a link; the status of the answer."""
        answer = await self.call("POST", "/session", {"link": link.partition("#")[2]})
        if answer.status == 200:
            self.key = answer.body["key"]
        return answer.status

    async def state(self) -> dict[str, Any]:
        """What is shown now."""
        answer = await self.call("GET", "/state?seen=")
        assert answer.status == 200, answer
        self.seen = answer.body["version"]
        return dict(answer.body)

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Follow the page until what is shown is so."""
        state = await self.state()
        async with asyncio.timeout(TIMEOUT):
            while not holds(state):
                answer = await self.call("GET", f"/state?seen={self.seen}")
                assert answer.status == 200, answer
                state, self.seen = answer.body, answer.body["version"]
        return state

    async def answer(self, name: str, text: str) -> int:
        return (await self.call("POST", "/answer", {"request": name, "answer": text})).status


ABSENT = "\0"  # of a header that is not sent


@dataclass(kw_only=True)
class Page:
    """A page that is served."""

    asking: AtPage
    state: CompanionState
    granted: Sessions
    origin: str
    clock: "Clock"
    clients: list[aiohttp.ClientSession] = field(default_factory=list)
    at: str | None = None  # where it is called, where that is not its origin

    @property
    def held(self) -> int:
        """The calls that wait for news."""
        return sum(session.held for session in self.granted._sessions.values())

    async def until_held(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT):
            while self.held < count:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0)

    @property
    def link(self) -> str:
        return link_to(self.state, now=self.clock())

    async def stranger(self) -> Client:
        """A browser without a session, with a cookie jar of its own."""
        self.clients.append(aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)))
        return Client(session=self.clients[-1], origin=self.origin, at=self.at or self.origin)

    async def browser(self) -> Client:
        """A browser that has come by a link."""
        client = await self.stranger()
        assert await client.enter(self.link) == 200
        return client


@dataclass
class Clock:
    ahead: float = 0

    def __call__(self) -> float:
        return time.time() + self.ahead


@contextlib.asynccontextmanager
async def served(state: CompanionState, *, port: int = 0, **options: Any) -> AsyncIterator[Page]:
    """The page of a companion on loopback, for `asking` to be asked.

    port: where a proxy would call it; 0: a free one. options: of `serving_page`.
    """
    clock, granted = Clock(), Sessions()
    asking = AtPage(clock=clock)
    how: dict[str, Any] = {
        "at": ("127.0.0.1", port),
        "cert": None,
        "key": None,
        "trusted_proxies": (),
        "public_url": None,
        "say": lambda _line: None,
        "clock": clock,
    }
    async with serving_page(asking, state, granted, **(how | options)) as origin:
        page = Page(asking=asking, state=state, granted=granted, origin=origin, clock=clock)
        page.at = f"http://127.0.0.1:{port}" if port else None
        try:
            yield page
        finally:
            for session in page.clients:
                await session.close()
