"""The push relay inside a service you already have: mounted under a prefix, with the host's own routes beside it.

    python examples/companion_backend.py --port 8471 --store backend.sqlite3

The relay needs to know one thing about its host: the URL by which clients call the relay, prefix included.
Every request has a proof that names the URL for which it was made.
"""

import argparse
from pathlib import Path

from aiohttp import web

from companion_push.relay.app import make_app
from companion_push.relay.config import RelayConfig
from companion_push.serving.http_server import http_logger

PREFIX = "/push"


def make_service(public_url: str, store: Path) -> web.Application:
    """A host service at `public_url`, whose relay keeps its data in `store`."""
    service = web.Application(handler_args={"logger": http_logger})
    service.router.add_get("/", home)
    relay = make_app(RelayConfig(public_url=public_url + PREFIX, store=store))
    service.add_subapp(PREFIX, relay)
    return service


async def home(_request: web.Request) -> web.Response:
    return web.Response(text="The host's own page; the relay is under /push.\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8471)
    parser.add_argument("--public-url", help="default: http://127.0.0.1:PORT")
    parser.add_argument("--store", type=Path, default=Path("backend.sqlite3"))
    args = parser.parse_args()
    public_url = args.public_url or f"http://127.0.0.1:{args.port}"
    web.run_app(
        make_service(public_url, args.store),
        host="127.0.0.1",
        port=args.port,
        handler_cancellation=True,
        access_log=None,
    )


if __name__ == "__main__":
    main()
