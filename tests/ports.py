"""Ports that a test names before, or without, anybody listens there."""

import socket
from pathlib import Path
from typing import Final

RESERVED: Final[set[str]] = set()  # the sockets that keep ports, as /proc names them


def reserved_port(host: str = "127.0.0.1") -> int:
    """A port at which nobody listens, and which no other test is given: until a program of this test does.

    The socket is bound, so that the system picks this port for nobody else, and is open until this process ends; a
    server that sets SO_REUSEADDR, as each of ours does, can listen beside it, as nothing else does.
    """
    reserving = socket.socket()
    reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserving.bind((host, 0))
    port = int(reserving.getsockname()[1])
    RESERVED.add(str(Path("/proc/self/fd", str(reserving.detach())).readlink()))
    return port
