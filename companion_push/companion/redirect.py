"""The redirect by which a browser brings an authorization code to a program: a listener on loopback (RFC 8252 §7.3).

Every program of this machine can call it, and so can every page that its browsers show. So only the answer with the state
of this sign-in counts, which nobody else knows (RFC 6749 §10.12); whatever else comes is refused, and ends nothing.
"""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Final

from aiohttp import hdrs, web

from companion_push.serving.listening import listening, serving
from http_serving.connections import ConnectionLimits
from http_serving.runner import http_logger

_HOST: Final = "127.0.0.1"  # an address: a name could be looked up elsewhere (RFC 8252 §8.3)
_PATH: Final = "/signed-in"
_CONNECTIONS: Final = 16
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<meta name="viewport" content="width=device-width">
<title>Companion</title>
<h1>{heading}</h1>
<p>{text}</p>
</html>
"""
_HEADERS: Final = {
    hdrs.CACHE_CONTROL: "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the URL holds the code
    "X-Content-Type-Options": "nosniff",
}

logger = logging.getLogger(__name__)


class Redirect:
    """One redirect that is waited for. Made by `awaiting`."""

    def __init__(self, state: str, port: int) -> None:
        self.uri = f"http://{_HOST}:{port}{_PATH}"
        self._state, self._authority = state.encode(), f"{_HOST}:{port}"
        self._answer: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()

    async def answer(self) -> Mapping[str, str]:
        """Wait for the authorization response (RFC 6749 §4.1.2): its parameters, which are unverified but for the state."""
        return await self._answer

    async def handle(self, request: web.Request) -> web.Response:
        given = request.query
        state = given.get("state", "").encode(errors="replace")
        is_ours = (
            request.headers.getall(hdrs.HOST, []) == [self._authority]  # no name that was made to lead here
            and len(given) == len(set(given))  # each parameter once (RFC 6749 §3.1)
            and hmac.compare_digest(state, self._state)
        )
        if not is_ours or self._answer.done():
            return _page(
                400, "This is no sign-in that a companion waits for", "Begin it again at the terminal."
            )
        self._answer.set_result(dict(given))
        return _page(
            200, "Go back to the terminal", "It says whether you are signed in. This page can be closed."
        )


@contextlib.asynccontextmanager
async def awaiting(state: str) -> AsyncIterator[Redirect]:
    """Await a redirect at a port of loopback that is free. state: of this sign-in, a secret."""
    with listening(_HOST, 0, cert=None, key=None) as listener:
        redirect = Redirect(state, listener.port)
        app = web.Application(handler_args={"logger": http_logger})
        app.router.add_get(_PATH, redirect.handle, allow_head=False)
        limits = ConnectionLimits(total=_CONNECTIONS, per_address=_CONNECTIONS)
        async with serving(app, listener, say=logger.debug, limits=limits):
            yield redirect


def _page(status: int, heading: str, text: str) -> web.Response:
    body = _PAGE.format(heading=heading, text=text)
    return web.Response(status=status, text=body, content_type="text/html", headers=_HEADERS)
