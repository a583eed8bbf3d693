"""The tunnel service as a program: what it prints, and how it ends."""

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from certificates import Certificate

from companion_push.waking import (
    PATH,
    Register,
    Registered,
    contact_id,
    encode_waking,
    parse_from_service,
)
from companion_push.waking import SUBPROTOCOL as PHONES
from headless_passkey.hybrid.tunnel_url import (
    SUBPROTOCOL,
    connect_url,
    contact_headers,
    contact_url,
    new_url,
)
from headless_passkey.net.tunnel import TunnelClosed, open_tunnel
from tests.programs import run, running

TUNNEL_ID = bytes(16)


def words(certificate: Certificate, *more: str, listen: str = "127.0.0.1:0") -> list[str]:
    return [
        "tunnel-service",
        "--listen",
        listen,
        "--cert",
        str(certificate.cert),
        "--key",
        str(certificate.key),
        *more,
    ]


async def test_it_prints_its_base_url_serves_and_ends_with_0(loopback_certificate: Certificate) -> None:
    tls = loopback_certificate.client_context()
    async with running("companion_push", *words(loopback_certificate)) as program:
        base = await program.line()
        assert base.startswith("wss://127.0.0.1:")
        async with open_tunnel(new_url(base, TUNNEL_ID), tls=tls) as first:
            assert first.routing_id is not None
            async with open_tunnel(connect_url(base, first.routing_id, TUNNEL_ID), tls=tls) as second:
                await second.send(b"hello")
                assert await first.receive() == b"hello"
        assert await program.end() == 0
        assert await program.stderr() == ""


async def test_it_ends_quickly_while_a_tunnel_is_open(loopback_certificate: Certificate) -> None:
    tls = loopback_certificate.client_context()
    async with running("companion_push", *words(loopback_certificate)) as program:
        base = await program.line()
        async with open_tunnel(new_url(base, TUNNEL_ID), tls=tls) as first:
            waiting = asyncio.ensure_future(first.receive())
            async with asyncio.timeout(60):
                assert await program.end() == 0
                with pytest.raises(TunnelClosed) as closed:
                    await waiting
            assert str(closed.value).endswith("is being shut down, and closed the tunnel")


async def test_options_come_from_a_file_and_the_environment(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[tunnel-service]\nlisten = "127.0.0.1:0"\ncert = "{loopback_certificate.cert}"\ntunnels = 1\n'
    )
    environment = {"COMPANION_PUSH_TUNNEL_SERVICE_KEY": str(loopback_certificate.key)}
    words = ("tunnel-service", "--config", str(config))
    async with running("companion_push", *words, environment=environment) as program:
        assert (await program.line()).startswith("wss://127.0.0.1:")


async def test_a_taken_port_is_a_setup_error(loopback_certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        status, stdout, stderr = await run("companion_push", *words(loopback_certificate, listen=listen))
    assert (status, stdout) == (10, "")
    assert f"cannot listen on {listen}" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    "more", [["--listen", "nowhere"], ["--tunnels", "0"], ["--waiting", "-1"], ["--life", "nan"], ["--what"]]
)
async def test_wrong_words_are_a_usage_error(loopback_certificate: Certificate, more: list[str]) -> None:
    status, stdout, _stderr = await run("companion_push", *words(loopback_certificate, *more))
    assert (status, stdout) == (2, "")


async def test_with_a_folder_of_contacts_it_wakes_phones_and_a_restart_forgets_none(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    tls, secret = loopback_certificate.client_context(), bytes(range(32))
    arguments = words(loopback_certificate, "--contacts", str(tmp_path / "contacts"))

    async with aiohttp.ClientSession() as session:

        async def contact(base: str) -> int:
            try:
                device = await session.ws_connect(
                    contact_url(base, contact_id(secret)),
                    protocols=(SUBPROTOCOL,),
                    headers=contact_headers(b"payload"),
                    ssl=tls,
                )
            except aiohttp.WSServerHandshakeError as error:
                return error.status
            await device.close()
            return 101

        async with running("companion_push", *arguments) as program:
            base = await program.line()
            assert await contact(base) == 410
            phone = await session.ws_connect(base + PATH, protocols=(PHONES,), ssl=tls)
            await phone.send_str(encode_waking(Register(secrets=(secret,))))
            assert parse_from_service(await phone.receive_str(timeout=60)) == Registered()
            assert await contact(base) == 101
            assert await program.end() == 0
            await phone.close()
        async with running("companion_push", *arguments) as program:
            assert await contact(await program.line()) == 503


async def test_a_folder_of_contacts_that_others_may_enter_is_a_setup_error(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    folder = tmp_path / "contacts"
    folder.mkdir(mode=0o755)
    status, _, stderr = await run("companion_push", *words(loopback_certificate, "--contacts", str(folder)))
    assert status == 10
    assert str(folder) in stderr
