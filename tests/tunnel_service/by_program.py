"""Serving as the program does, which lets a tunnel service take upgrades before aiohttp's server sees them."""

import socket

from companion_push.serving.http_server import Runner


async def listen(runner: Runner) -> int:
    """Listen in plain on this machine, for a runner that is set up; the port. The runner's `cleanup` ends it."""
    listener = socket.create_server(("127.0.0.1", 0))
    await runner.site(listener, None).start()
    return int(listener.getsockname()[1])
