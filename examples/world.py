"""A whole household of programs: servers, companions and a device, as processes on this machine.

The demo and the end-to-end tests start it in the same way, through the command lines a user has.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from programs import START_TIMEOUT, Certificates, Program, ProgramFailed, event, run, running

TUNNEL_DOMAIN: Final = "300"  # a hashed domain number, pointed at our own tunnel service on both sides
ACCOUNT: Final = "home"


@dataclass
class World:
    """What is running, where it listens, and where its files are."""

    folder: Path
    on_line: Callable[[str, str], None]  # told a program's name and each line of its stderr
    certificates: Certificates
    programs: list[Program] = field(default_factory=list)
    radio: str = ""  # for --radio
    tunnel: str = ""  # for --tunnel
    relay: str = ""  # URL
    relying_party: str = ""  # URL
    _listening: dict[str, asyncio.Event] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        folder: Path,
        *,
        on_line: Callable[[str, str], None] = lambda _name, _line: None,
        relay: tuple[str | Path, ...] = ("companion-push", "relay"),
    ) -> AsyncIterator["World"]:
        """The four servers: radio, tunnel service, relay, relying party. relay: another program in its place."""
        world = cls(folder, on_line, Certificates.make(folder))
        async with running(world.programs):
            ether, tunnel, queue, rp = await asyncio.gather(
                world.run("radio", "companion-push", "ether", "--listen", "127.0.0.1:0"),
                world.serve("tunnel service", "companion-push", "tunnel-service"),
                world.serve("relay", *relay, "--store", world.relay_store, "--requests-per-minute", "1000"),
                world.serve(
                    "relying party", "relying-party", "serve", "--store", world.relying_party_store,
                    "--rp-id", "localhost", "--rp-name", "Demo",
                ),
            )  # fmt: skip
            world.radio = f"bumble:{await ether.line()}"
            world.tunnel = f"{TUNNEL_DOMAIN}={await tunnel.line()}"
            world.relay = await queue.line()
            world.relying_party = await rp.line()
            yield world

    @property
    def relay_store(self) -> Path:
        return self.folder / "relay.db"

    @property
    def relying_party_store(self) -> Path:
        return self.folder / "relying-party.db"

    @property
    def passkeys(self) -> Path:
        """The software passkeys, on every companion: as if they were synced."""
        return self.folder / "passkeys.json"

    def state(self, who: str) -> Path:
        """The state directory of a companion or device."""
        return self.folder / who.replace(" ", "-").replace("'", "")

    async def run(self, name: str, *command: str | Path) -> Program:
        """Start a program; it ends with the world."""
        program = await Program.start(name, *command, "--json", on_line=self._heard)
        self.programs.append(program)
        return program

    async def serve(self, name: str, *command: str | Path, listen: str = "localhost:0") -> Program:
        """Start a server with our certificate."""
        tls = ("--cert", self.certificates.cert, "--key", self.certificates.key)
        return await self.run(name, *command, "--listen", listen, *tls)

    async def found_account(self, who: str, *, account: str = ACCOUNT) -> None:
        """The first companion of an account, with a one-time code from the account system."""
        code = await run(
            "companion-push", "account", "add", account, "--store", self.relay_store, "--relay", self.relay
        )
        await self.join_companion(who, code)

    async def join_companion(self, who: str, code: str) -> None:
        """code: an account code or an invitation."""
        await run(
            "companion-push", "companion", "join", "--code", "-", "--label", who,
            "--state", self.state(who), *self._trust, stdin=code, name=who,
        )  # fmt: skip

    async def invite(self, inviter: str, kind: str, who: str, *options: str) -> None:
        """`inviter` lets a device or companion in; the invitation does not pass through the relay."""
        inviting = await self.run(
            inviter, "companion-push", "companion", "invite", "--kind", kind, "--yes", *options,
            "--state", self.state(inviter), *self._trust,
        )  # fmt: skip
        invitation = await inviting.line()
        if kind == "companion":
            await self.join_companion(who, invitation)
        else:
            await self.join_device(who, invitation)
        if await inviting.wait() != 0:
            raise ProgramFailed(f"the invitation failed: {inviting.last_words}")

    async def join_device(self, who: str, invitation: str) -> None:
        await run(
            "headless-passkey", "join", "--invitation", "-", "--label", who,
            "--state", self.state(who), *self._trust, stdin=invitation, name=who,
        )  # fmt: skip

    async def companion(self, who: str, *options: str | Path) -> Program:
        """A companion with the software phone in it, connected to the relay. Later options win."""
        listening = self._listening[who] = asyncio.Event()
        program = await self.run(
            who, "companion-push", "companion", "run", "--state", self.state(who), *self._trust,
            "--opener", "phone", "--credentials", self.passkeys, "--radio", self.radio,
            "--tunnel", self.tunnel, "--consent", "accept", "--uv", "accept", *options,
        )  # fmt: skip
        async with asyncio.timeout(START_TIMEOUT):
            await listening.wait()
        return program

    async def device(self, who: str, ceremony: str, *options: str | Path) -> Program:
        """A device for one ceremony at our relying party; its stdout is the session."""
        return await self.run(
            who, "headless-passkey", ceremony, "--rp", self.relying_party, "--state", self.state(who),
            "--radio", self.radio, "--tunnel", self.tunnel, *self._trust, *options,
        )  # fmt: skip

    async def ceremony(self, who: str, name: str, *options: str | Path) -> tuple[int, dict[str, Any] | None]:
        """One ceremony to its end: the device's exit status, and the session the relying party opened."""
        device = await self.device(who, name, *options)
        output = await device.output()
        return await device.wait(), json.loads(output) if output else None

    @property
    def _trust(self) -> tuple[str, Path]:
        return "--ca", self.certificates.ca

    def _heard(self, program: str, line: str) -> None:
        said = event(line)
        if said is not None and said.get("stage") == "listening" and program in self._listening:
            self._listening[program].set()
        self.on_line(program, line)
