"""Passkeys inside a service you already have: the relying party mounted under a prefix, and a handler that asks it
who is there.

    python examples/rp_backend.py --port 8472 --store backend.sqlite

Browsers and devices register and sign in under /passkeys; the host's own address /notes then knows them, by
cookie or by a token with a proof of the device's key. The host has its own pages, so the relying party's are
not mounted.
"""

import argparse
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from relying_party.config import Config
from relying_party.errors import NotSignedIn, RequestRefused
from relying_party.http.app import make_app, problem_of, well_known_routes, who
from relying_party.http.http_server import http_logger

PREFIX = "/passkeys"
PASSKEYS = web.AppKey("passkeys", web.Application)
NOTES = web.AppKey("notes", dict[bytes, list[str]])


def make_service(url: str, store: Path, *, rp_id: str = "localhost") -> web.Application:
    """A host service at `url`, whose users sign in with passkeys kept in `store`."""
    config = Config.make(
        rp_id=rp_id,
        rp_name="A service with notes",
        web_origins=(url,),
        device_origins=(),
        public_url=url + PREFIX,
        store=store,
    )
    service = web.Application(middlewares=[refusals], handler_args={"logger": http_logger})
    service[PASSKEYS] = make_app(config, with_pages=False)
    service[NOTES] = {}
    service.add_subapp(PREFIX, service[PASSKEYS])
    service.add_routes(well_known_routes(config))
    service.router.add_get("/notes", notes)
    service.router.add_post("/notes", add_note)
    return service


async def notes(request: web.Request) -> web.Response:
    return web.json_response(request.app[NOTES].get(await _user(request), []))


async def add_note(request: web.Request) -> web.Response:
    user = await _user(request)
    request.app[NOTES].setdefault(user, []).append(await request.text())
    return web.Response(status=204)


async def _user(request: web.Request) -> bytes:
    """Answer with the signed-in user's handle. A service stores its own data under this handle."""
    found = await who(request, request.app[PASSKEYS])
    if found is None:
        raise NotSignedIn("sign in first")
    return found.user.handle


@web.middleware
async def refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer a refusal of the relying party in the relying party's own form."""
    try:
        return await handler(request)
    except RequestRefused as refusal:
        return problem_of(refusal)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8472)
    parser.add_argument("--store", type=Path, default=Path("backend.sqlite"))
    args = parser.parse_args()
    url = f"http://localhost:{args.port}"
    web.run_app(make_service(url, args.store), host="127.0.0.1", port=args.port, access_log=None)


if __name__ == "__main__":
    main()
