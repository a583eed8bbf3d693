"""The page's server: its files, and four calls with which its script shows requests and brings answers.

Any page of the user's browser, and any program of this machine, can call it. So a call counts only with the name that the page
is called by (DNS rebinding), from the page's own origin (CSRF), and with both secrets of a session. No answer may be kept or
framed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from aiohttp import hdrs, web

from companion_push.companion.page.asking import AtPage, Reception
from companion_push.companion.page.sessions import MAX_SECRET, SESSION_SECONDS, Session, Sessions
from companion_push.serving.http_server import problem
from headless_passkey.errors import RemoteProtocolError
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.text.members import Members, answer_members
from http_serving.runner import HEALTH, http_logger
from program_parts.json_text import decode_json

MAX_BODY: Final = 1024  # bytes
BODY_SECONDS: Final = 10.0
WAIT: Final = 25.0  # seconds that a call waits for news
MAX_HELD: Final = 4  # such calls of a session, since browsers open six connections
KEY_HEADER: Final = "Companion-Key"
_TYPES: Final = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES: Final = {"/": "index.html"} | {
    f"/{name}": name for name in ("companion.css", "companion.js", "icon.svg")
}
_HEADERS: Final = {
    hdrs.CACHE_CONTROL: "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    page: AtPage
    sessions: Sessions
    origin: BaseUrl
    take_link: Callable[[str], bool]

    @property
    def cookie(self) -> str:
        """Browsers take the ``__Host-`` prefix over TLS only, which nobody has on loopback."""
        return "__Host-companion" if self.origin.scheme == "https" else "companion"

    # The files

    async def file(self, request: web.Request) -> web.Response:
        name = _FILES[request.path]
        kind = _TYPES[name[name.rindex(".") :]]
        return web.Response(body=_read(name), content_type=kind, charset="utf-8")

    async def live(self, _request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def ready(self, _request: web.Request) -> web.Response:
        return web.Response(status=204) if self.page.reached else problem(503, "the relay does not answer")

    # The calls

    async def begin(self, request: web.Request) -> web.Response:
        """Give a session to whoever has the link."""
        link = (await _body(request)).text("link", MAX_SECRET)
        if not self.take_link(link):
            logger.warning("a link was refused that is wrong, used or too old")
            return problem(403, "this link is wrong, used or too old")
        session = self.sessions.begin()
        logger.info("a browser has opened the page")
        response = web.json_response({"key": session.key})
        response.set_cookie(
            self.cookie,
            session.cookie,
            path="/",
            max_age=SESSION_SECONDS,
            secure=self.origin.scheme == "https",
            httponly=True,
            samesite="Strict",
        )
        return response

    async def end(self, request: web.Request) -> web.Response:
        self.sessions.end(self._session(request))
        self.page.publish()  # what it has open is told that the session is over
        response = web.Response(status=204)
        response.del_cookie(
            self.cookie, path="/", secure=self.origin.scheme == "https", httponly=True, samesite="Strict"
        )
        return response

    async def state(self, request: web.Request) -> web.Response:
        """Say what is shown, at once when that is not what the browser has seen, or when too many wait."""
        session, seen = self._session(request), request.query.get("seen", "")
        if seen.isascii() and seen.isdigit() and len(seen) < 16 and session.held < MAX_HELD:
            session.held += 1
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WAIT):
                        await self.page.newer(int(seen))
            finally:
                session.held -= 1
        if self.page.ended:
            return problem(503, "the companion has ended")
        self._session(request)  # it may have ended meanwhile
        return web.json_response(self.page.state(by=session))

    async def answer(self, request: web.Request) -> web.Response:
        session, given = self._session(request), await _body(request)
        name = given.text("request", 256)
        match self.page.answer(name, given.text("answer", 64), by=session):
            case Reception.TAKEN:
                return web.Response(status=204)
            case Reception.GONE:
                return problem(409, "nobody asks about this request now")
            case Reception.SLIP:
                return problem(422, self.page.slip(name))

    def _session(self, request: web.Request) -> Session:
        cookie, key = request.cookies.get(self.cookie, ""), request.headers.get(KEY_HEADER, "")
        session = self.sessions.find(cookie[:MAX_SECRET], key[:MAX_SECRET])
        if session is None:
            raise _CallError(401, "the page was not opened with a link, or its session is over")
        return session

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what does not come from the page itself, and add the security headers to every answer."""
        try:
            self._check(request)
            response = await handler(request)
        except _CallError as refused:
            response = problem(refused.status, refused.detail)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            response = problem(error.status)
        except RemoteProtocolError:
            response = problem(400, "the body is not as expected")
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    def _check(self, request: web.Request) -> None:
        if request.path in HEALTH:
            return  # whoever asks calls this machine by any name, and learns nothing
        if [each.lower() for each in request.headers.getall(hdrs.HOST, [])] != [self.origin.authority]:
            raise _CallError(421, "the page is called by another name")
        origins = request.headers.getall(hdrs.ORIGIN, [])
        if origins not in ([], [self.origin.origin]) or (
            not origins and request.method not in ("GET", "HEAD")
        ):
            raise _CallError(403, "the call comes from another page")
        if (
            request.path not in _FILES
            and request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
        ):
            raise _CallError(403, "the call comes from another page")


class _CallError(Exception):
    """A call that gets a problem as its answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def make_app(
    page: AtPage, sessions: Sessions, *, origin: BaseUrl, take_link: Callable[[str], bool]
) -> web.Application:
    """Make the page's application. origin: what browsers call it by, without a path. take_link: uses a link's secret up."""
    server = _Server(page=page, sessions=sessions, origin=origin, take_link=take_link)
    app = web.Application(
        middlewares=[server.guard], client_max_size=MAX_BODY, handler_args={"logger": http_logger}
    )
    app.router.add_routes([web.get(path, server.file) for path in _FILES])
    app.router.add_routes([web.get(HEALTH[0], server.live), web.get(HEALTH[1], server.ready)])
    app.router.add_routes([web.post("/session", server.begin), web.delete("/session", server.end)])
    app.router.add_routes(
        [web.get("/state", server.state, allow_head=False), web.post("/answer", server.answer)]
    )
    return app


async def _body(request: web.Request) -> Members:
    if request.content_type != "application/json" or hdrs.CONTENT_ENCODING in request.headers:
        raise _CallError(415, "expected application/json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content: Any = decode_json(await request.read())
    except TimeoutError as error:
        raise _CallError(408, "the body did not come in time") from error
    except ValueError as error:
        raise _CallError(400, "the body is not as expected") from error
    return answer_members(content, "the body")


@cache
def _read(name: str) -> bytes:
    return resources.files("companion_push.companion.page").joinpath("files", name).read_bytes()
