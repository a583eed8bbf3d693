"""Proxies in front of the servers: real ones, with the configurations of docs/how-to/reverse-proxy.md."""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from certificates import Certificate

from tests.programs import ROOT

PAGE: Final = ROOT / "docs/how-to/reverse-proxy.md"
RELAYS: Final = ROOT / "docs/how-to/several-relays.md"
WRITTEN: Final = "127.0.0.1:8471", "127.0.0.1:8472"  # where the pages have two nodes


class Front(Protocol):
    """Starts a proxy with a configuration of the pages."""

    def __call__(
        self, config: str, folder: Path, certificate: Certificate, *, port: int
    ) -> AbstractAsyncContextManager[None]: ...


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
async def caddy(config: str, folder: Path, certificate: Certificate, *, port: int) -> AsyncIterator[None]:
    """Caddy, which serves `localhost` at `port` with our certificate where `config` has example.com, for which it would get one."""
    site = f"https://localhost:{port} {{\n    bind 127.0.0.1\n    tls {certificate.cert} {certificate.key}"
    file = folder / "Caddyfile"
    # no administration at port 2019, no redirection from port 80, and no waiting for streams when it ends
    options = "{\n    admin off\n    auto_https disable_redirects\n    grace_period 1s\n}\n"
    assert config.count("example.com {") == 1
    file.write_text(options + config.replace("example.com {", site))
    # it keeps its last configuration and what it knows of certificates
    kept = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    async with _running("caddy", "run", "--config", file, port=port, environment=kept):
        yield


@asynccontextmanager
async def _running(
    *command: str | Path, port: int, environment: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[None]:
    """A proxy program while the context is open, from when it listens at the port on."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # where Debian has them
    program = shutil.which(str(command[0]), path=path)
    assert program is not None, f"{command[0]} is missing: make system-packages"
    process = await asyncio.create_subprocess_exec(
        program,
        *command[1:],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
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
