"""Several tunnel services behind one name: which of them a routing ID names, alone and behind the proxies of the docs."""

import asyncio
import contextlib
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import pytest
from aiohttp.test_utils import TestClient, TestServer
from certificates import Certificate

from companion_push.tunnel_service.app import make_app
from headless_passkey.errors import UsageError
from headless_passkey.hybrid.tunnel_url import ROUTING_ID_HEADER, connect_url, new_url
from headless_passkey.net.tunnel import open_tunnel
from tests.ports import reserved_port
from tests.programs import ROOT, running

NODES: Final = (1, 2)
PAGE: Final = ROOT / "docs/how-to/reverse-proxy.md"
UPGRADE: Final = {
    "Sec-WebSocket-Protocol": "fido.cable",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
Front = Callable[[Certificate, Path, list[int]], AbstractAsyncContextManager[int]]


@pytest.mark.parametrize("node", [0, 7, 255])
async def test_a_node_gives_routing_ids_that_begin_with_its_number(node: int) -> None:
    async with TestClient(TestServer(make_app(node=node))) as client:
        given = []
        for number in range(8):
            path = new_url("", bytes([number] * 16))
            async with client.ws_connect(path, protocols=["fido.cable"]) as first:
                given.append(bytes.fromhex(first._response.headers[ROUTING_ID_HEADER]))
    assert {routing_id[0] for routing_id in given} == {node}
    assert {len(routing_id) for routing_id in given} == {3}
    assert len({routing_id[1:] for routing_id in given}) > 1  # the rest is not always the same


async def test_who_comes_to_another_node_is_told_so() -> None:
    async with TestClient(TestServer(make_app(node=7))) as client:
        answer = await client.get(connect_url("", b"\x08\0\0", bytes(16)), headers=UPGRADE)
        assert answer.status == 404
        assert (await answer.json())["detail"] == "a tunnel of another node"


@pytest.mark.parametrize("node", [-1, 256])
def test_a_node_has_a_number_of_one_byte(node: int) -> None:
    with pytest.raises(UsageError, match=r"^node: expected a number from 0 to 255$"):
        make_app(node=node)


def block(language: str) -> str:
    """The last block of the page in that language: the one for several nodes."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return str(blocks[-1])


def placed(config: str, ports: dict[str, int]) -> str:
    """The configuration with the ports of this test. ports: by what stands in the page; each stands in it."""
    for written, port in ports.items():
        assert written in config
        config = re.sub(
            rf"(?<!\d){written}\b", written.replace(written.rpartition(":")[2], str(port)), config
        )
    return config


@contextlib.asynccontextmanager
async def proxy(*command: str | Path, port: int) -> AsyncIterator[None]:
    """A proxy program while the context is open, from when it listens at the port on."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # where Debian has them
    program = shutil.which(str(command[0]), path=path)
    assert program is not None, f"{command[0]} is missing: make system-packages"
    process = await asyncio.create_subprocess_exec(
        program, *command[1:], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    ended = asyncio.ensure_future(process.communicate())
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert not ended.done(), ended.result()[0].decode()
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                break
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await ended


@contextlib.asynccontextmanager
async def haproxy(certificate: Certificate, folder: Path, ports: list[int]) -> AsyncIterator[int]:
    both = folder / "certificate-and-key.pem"
    both.touch(mode=0o600)
    both.write_bytes(certificate.cert.read_bytes() + certificate.key.read_bytes())
    port = reserved_port()
    config = block("haproxy").replace("bind :443", f"bind 127.0.0.1:{port}").replace(both.name, str(both))
    config = placed(config, {"127.0.0.1:8471": ports[0], "127.0.0.1:8472": ports[1]})
    file = folder / "haproxy.cfg"
    file.write_text(config)
    async with proxy("haproxy", "-db", "-f", file, port=port):
        yield port


@contextlib.asynccontextmanager
async def nginx(certificate: Certificate, folder: Path, ports: list[int]) -> AsyncIterator[int]:
    port = reserved_port()
    config = block("nginx").replace("listen 443", f"listen 127.0.0.1:{port}")
    config = placed(config, {"127.0.0.1:8471": ports[0], "127.0.0.1:8472": ports[1]})
    for name, path in (("cert.pem", certificate.cert), ("key.pem", certificate.key)):
        config = config.replace(f" {name};", f" {path};")
    places = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    file.write_text(
        f"{user}daemon off;\nmaster_process off;\npid {folder / 'pid'};\nevents {{}}\nhttp {{\n{places}{config}}}\n"
    )
    async with proxy("nginx", "-p", folder, "-e", "stderr", "-c", file, port=port):
        yield port


@pytest.mark.parametrize("front", [haproxy, nginx], ids=["HAProxy", "nginx"])
async def test_both_ends_meet_at_the_node_that_the_phone_came_to(
    front: Front, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as programs:
        ports = []
        for node in NODES:
            program = await programs.enter_async_context(
                running(
                    "companion_push",
                    *("tunnel-service", "--listen", "127.0.0.1:0", "--node", str(node)),
                    *("--trusted-proxy", "127.0.0.1"),
                )
            )
            ports.append(int((await program.line()).rpartition(":")[2]))
        port = await programs.enter_async_context(front(loopback_certificate, tmp_path, ports))
        base, tls = f"wss://127.0.0.1:{port}", loopback_certificate.client_context()
        met = [await meet(base, tls, bytes([number] * 16)) for number in range(6)]
    assert set(met) == set(NODES)


async def meet(base: str, tls: ssl.SSLContext, tunnel_id: bytes) -> int:
    """Say something through a tunnel in each direction, and return its node."""
    async with open_tunnel(new_url(base, tunnel_id), tls=tls) as first:
        assert first.routing_id is not None
        async with open_tunnel(connect_url(base, first.routing_id, tunnel_id), tls=tls) as second:
            await second.send(b"hello")
            assert await first.receive() == b"hello"
            await first.send(b"and back")
            assert await second.receive() == b"and back"
    return first.routing_id[0]
