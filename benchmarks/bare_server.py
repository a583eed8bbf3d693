"""An aiohttp server that does nothing of what a relay does: it holds a call until another one wakes it.

It takes the calls that the benchmark of the relay makes, with the same headers and bodies, and verifies, stores and limits
nothing. So it costs what aiohttp costs by itself.
"""

import asyncio
import contextlib
import json
import ssl
import sys
from collections import defaultdict

from aiohttp import web

NAME_HEADER = "X-Name"  # who calls: this server reads no proof


class Bare:
    """The calls that are held, and what came for those that were not there."""

    def __init__(self) -> None:
        self._held: dict[str, asyncio.Future[str]] = {}
        self._left: defaultdict[str, list[str]] = defaultdict(list)

    async def read_inbox(self, request: web.Request) -> web.Response:
        name = request.headers[NAME_HEADER]
        wait = float(request.query.get("wait", "0"))
        requests = self._left.pop(name, [])
        if wait and not requests:
            self._held[name] = held = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    requests = [await held]
            self._held.pop(name, None)
        return web.json_response({"cursor": "none", "requests": [{"sealed": each} for each in requests]})

    async def submit(self, request: web.Request) -> web.Response:
        for envelope in json.loads(await request.read())["envelopes"]:
            held = self._held.pop(envelope["to"], None)
            if held is None or held.done():
                self._left[envelope["to"]].append(envelope["sealed"])
            else:
                held.set_result(envelope["sealed"])
        return web.json_response({"state": "pending"}, status=201)

    async def end(self, request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({})


async def serve(*certificate: str) -> None:
    """Serve on a free port of the loopback, and print the URL, until the process is ended.

    certificate: its file and that of its key, for TLS.
    """
    tls = None
    if certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*certificate)
    bare = Bare()
    app = web.Application()
    app.router.add_get("/v1/inbox", bare.read_inbox)
    app.router.add_put("/v1/requests/{id}", bare.submit)
    app.router.add_post("/v1/requests/{id}/events", bare.end)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=30)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024, ssl_context=tls).start()
    scheme, host = ("http", "127.0.0.1") if tls is None else ("https", "localhost")
    sys.stdout.write(f"{scheme}://{host}:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
