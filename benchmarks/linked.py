"""How fast a linked phone signs in: beside the messages and the cryptography that it needs, and beside a request through the relay."""

import argparse
import asyncio
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import core
from aiohttp import web
from certificates import make_certificate
from measure import HEADINGS, Row, table
from programs import Program, event
from whole_sign_in import CREATION, NUMBER, ORIGIN, REQUEST, Air, Handed
from world import World

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.link_file import LinkFile
from companion_push.companion.linked import LinkedWaiting
from companion_push.companion.phone import SoftwarePhone, TunnelService, accept
from companion_push.companion.waking_client import WakingClient, open_waking
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.contacts import ContactLimits, KnownContacts
from companion_push.waking import SECRET_SIZE, contact_id
from headless_passkey.ceremony import ForgottenLink, run_ceremony
from headless_passkey.delivery import Ask
from headless_passkey.hybrid.linking import LinkedPhone
from headless_passkey.hybrid.tunnel_url import connect_url, contact_headers, contact_url
from headless_passkey.net.tunnel import open_tunnel
from headless_passkey.webauthn.options import AuthenticationOptions, RegistrationOptions

HEADING: Final = "# How fast a linked phone signs in"
IN_ONE_PROCESS: Final = 30  # sign-ins
BY_PROGRAMS: Final = 15  # sign-ins, each way
REST: Final = 1.0  # seconds before a sign-in: a companion reads news without content at most every 0.5 s, also after the last one
NO_LIMITS: Final = ContactLimits(requests_per_contact=1e6, new_per_address=1e6)
# bytes of the messages of one sign-in after the connect signal: handshake, getInfo, getAssertion, its reply, shutdown
SENT: Final = ((True, 81), (False, 81), (False, 144), (True, 176), (False, 272), (True, 48))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure sign-ins with linked phones.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    args = parser.parse_args()
    page = "\n".join(_page(asyncio.run(in_one_process()), *asyncio.run(by_programs()))) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


def _page(*rows: Row) -> list[str]:
    return [
        HEADING,
        "",
        core.made(),
        "",
        table(HEADINGS, [row.cells for row in rows]),
        "",
        "Both in turns. In one process: device, waiting software phone and tunnel service over TLS on loopback; against it stand two websockets that are",
        "opened in the same way with messages of the same sizes, and the OpenSSL calls of the handshake. By the programs: from the device's first step to",
        "the session, with emulated Bluetooth, the relying party and the relay's news in all; against it stands a request that a companion fetches, claims at once and",
        "gives its software phone. Over the direct channel the request comes by the relay too, and then no tunnel service has a part. What starting the programs takes is in none.",
    ]


@dataclass
class Kept:
    """One link in memory."""

    phone: LinkedPhone | None = None

    async def usable(
        self, _ask: Ask, _on_forgotten: Callable[[str, ForgottenLink], None]
    ) -> Sequence[LinkedPhone]:
        return () if self.phone is None else (self.phone,)

    async def keep(self, phone: LinkedPhone, _recipient: str) -> str:
        self.phone = phone
        return phone.name

    async def used(self, _phone: LinkedPhone) -> None:
        pass

    async def forget(self, _phone: LinkedPhone) -> None:
        self.phone = None


@asynccontextmanager
async def _service(folder: Path) -> AsyncIterator[tuple[TunnelService, ssl.SSLContext]]:
    certificates = make_certificate(folder)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificates.cert, certificates.key)
    app = make_app(contacts=KnownContacts(folder / "contacts", NO_LIMITS))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server).start()
        base = f"wss://127.0.0.1:{runner.addresses[0][1]}"
        yield TunnelService(number=NUMBER, base=base), ssl.create_default_context(cafile=certificates.ca)
    finally:
        await runner.cleanup()


async def in_one_process(count: int = IN_ONE_PROCESS) -> Row:
    """Linked sign-ins, and what they need, in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with _service(folder) as (service, tls):
            air, kept, waits = Air(), Kept(), asyncio.Event()
            links = LinkFile(path=folder / "links.json")
            phone = SoftwarePhone(
                credentials=CredentialFile(path=folder / "passkeys.json"),
                advertiser=air,
                tunnel_service=service,
                tls=tls,
                verify_user=accept,
                links=links,
                on_stage=lambda stage: waits.set() if stage == "waiting" else None,
            )

            async def sign_in(options: AuthenticationOptions | RegistrationOptions, delivery: Handed) -> None:
                await run_ceremony(
                    Ask.of(options),
                    options,
                    delivery=delivery,
                    radio=air,
                    tunnels={NUMBER: service.base},
                    tls=tls,
                    timeout=20.0,
                    links=kept,
                    link=kept.phone is None,
                )

            async def answer(delivery: Handed) -> None:
                await phone.answer(await delivery.url, timeout=20)

            delivery = Handed()
            registering = RegistrationOptions.parse(CREATION, origin=ORIGIN)
            await asyncio.gather(sign_in(registering, delivery), answer(delivery))
            waiting = LinkedWaiting(phone=phone, links=links, timeout=20, on_end=lambda _: None)
            running = asyncio.create_task(waiting.run())
            await waits.wait()
            options, calls = AuthenticationOptions.parse(REQUEST, origin=ORIGIN), core.handshake_calls()
            cryptography, secret, pairs = core.in_a_row(calls), bytes(SECRET_SIZE), []
            try:
                async with open_waking(service.base, tls=tls) as waking:
                    await waking.register([secret])
                    for _ in range(count + 3):
                        began = time.perf_counter()
                        await sign_in(options, Handed())
                        between = time.perf_counter()
                        await _bare(service, tls, waking, contact_id(secret))
                        cryptography()
                        pairs.append((between - began, time.perf_counter() - between))
            finally:
                running.cancel()
                await asyncio.wait({running})
    return Row.of_pairs("linked sign-in, in one process", "its messages and cryptography", pairs[3:], aim=2)


async def _bare(service: TunnelService, tls: ssl.SSLContext, waking: WakingClient, contact: bytes) -> None:
    """Two websockets, and messages of a sign-in's sizes."""

    async def come() -> None:
        woken = await waking.wake()
        url = connect_url(service.base, woken.routing_id, woken.tunnel_id)
        async with open_tunnel(url, tls=tls) as tunnel:
            for by_device, size in SENT:
                if by_device:
                    await tunnel.receive()
                else:
                    await tunnel.send(bytes(size))

    async def ask() -> None:
        url, headers = contact_url(service.base, contact), contact_headers(bytes(33))
        async with open_tunnel(url, headers=headers, tls=tls) as tunnel:
            for by_device, size in SENT:
                if by_device:
                    await tunnel.send(bytes(size))
                else:
                    await tunnel.receive()

    await asyncio.gather(come(), ask())


async def by_programs(count: int = BY_PROGRAMS) -> list[Row]:
    """Sign-ins of a linked device, over the direct channel, and of another one by requests, in turns."""
    with tempfile.TemporaryDirectory() as name:
        async with World.start(Path(name)) as world:
            await world.found_account("phone")
            for device in ("linked", "asking"):
                await world.invite("phone", "device", device)
            companion = await world.companion("phone", "--links", world.links("phone"))
            await _sign_in(world, "linked", "register", "--user", "ada", "--link")
            await _sign_in(world, "asking", "sign-in")
            await world.linked_phone("phone")
            turns = [
                (
                    await _sign_in(world, "linked", "sign-in"),
                    await _sign_in(world, "asking", "sign-in", "--direct"),
                    await _sign_in(world, "asking", "sign-in"),
                )
                for _ in range(count)
            ]
            await companion.stop()
    by_request = "the same by a request, through the tunnel"
    return [
        Row.of_pairs(
            "linked sign-in, by the programs",
            by_request,
            [(linked, tunnel) for linked, _, tunnel in turns],
            aim=0.6,
        ),
        Row.of_pairs(
            "sign-in by a request, over the direct channel",
            by_request,
            [(direct, tunnel) for _, direct, tunnel in turns],
        ),
    ]


async def _sign_in(world: World, who: str, *options: str) -> float:
    """Seconds that a ceremony took, as its device tells them."""
    await asyncio.sleep(REST)
    device: Program = await world.device(who, *options)
    await device.output()
    if await device.wait() != 0:
        raise SystemExit(f"a sign-in failed: {device.last_words}")
    told = [each for each in map(event, device.said) if each is not None and each.get("stage") == "completed"]
    return float(told[-1]["elapsed"])


if __name__ == "__main__":
    main()
