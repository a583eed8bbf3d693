"""Proxies in front of the servers: real ones, with the configurations of docs/how-to/reverse-proxy.md."""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from certificates import Certificate

from tests.programs import ROOT

PAGE: Final = ROOT / "docs/how-to/reverse-proxy.md"
RELAYS: Final = ROOT / "docs/how-to/several-relays.md"
WRITTEN: Final = "127.0.0.1:8471", "127.0.0.1:8472"  # where the pages have two nodes


def blocks(language: str, page: Path = PAGE) -> list[str]:
    """The blocks of the page in that language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def placed(config: str, places: Mapping[str, str]) -> str:
    """The configuration with the places of this test. places: by what the page has, all of which must be there."""
    for written, ours in places.items():
        assert written in config
        config = re.sub(rf"{re.escape(written)}\b", ours, config)
    return config


@asynccontextmanager
async def haproxy(config: str, folder: Path, certificate: Certificate, *, port: int) -> AsyncIterator[None]:
    """HAProxy, which listens at `port` where `config` has 443."""
    both = folder / "certificate-and-key.pem"
    both.touch(mode=0o600)
    both.write_bytes(certificate.cert.read_bytes() + certificate.key.read_bytes())
    file = folder / "haproxy.cfg"
    file.write_text(placed(config, {":443": f"127.0.0.1:{port}", both.name: str(both)}))
    async with _running("haproxy", "-db", "-f", file, port=port):
        yield


@asynccontextmanager
async def nginx(config: str, folder: Path, certificate: Certificate, *, port: int) -> AsyncIterator[None]:
    """nginx, which listens at `port` where `config` has 443; without a master process, as a child that ends with the test."""
    places = {
        "listen 443": f"listen 127.0.0.1:{port}",
        " cert.pem": f" {certificate.cert}",
        " key.pem": f" {certificate.key}",
    }
    kept = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    file = folder / "nginx.conf"
    file.write_text(
        f"{user}daemon off;\nmaster_process off;\npid {folder / 'pid'};\nevents {{}}\n"
        f"http {{\n{kept}{placed(config, places)}}}\n"
    )
    async with _running("nginx", "-p", folder, "-e", "stderr", "-c", file, port=port):
        yield


@asynccontextmanager
async def _running(*command: str | Path, port: int) -> AsyncIterator[None]:
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
