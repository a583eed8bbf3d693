"""All programs of a sign-in: servers, companions and a device, as processes on this machine.

The demo and the end-to-end tests both start them through the command lines that a user has.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from certificates import Certificate, make_certificate
from programs import PROGRAMS, Program, ProgramFailed, run, running

TUNNEL_DOMAIN: Final = "300"  # a hashed domain number, pointed at our own tunnel service on both sides
ACCOUNT: Final = "home"
_NO_LIMITS: Final = (
    *("--requests-per-minute=1000", "--requests-per-day=1000", "--account-requests-per-day=1000"),
    "--no-pauses",
)


@dataclass
class World:
    """What is running, where it listens, and where its files are."""

    folder: Path
    on_line: Callable[[str, str], None]  # called with a program's name and each line of its stderr
    certificates: Certificate
    programs: list[Program] = field(default_factory=list)
    radio: str = ""  # value of --radio
    tunnel: str = ""  # value of --tunnel
    relay: str = ""  # URL
    relying_party: str = ""  # URL
    environment: Mapping[str, str] = field(default_factory=dict)  # of every program
    database: str | None = None  # in which the relay has its store; None: in a file
    servers: dict[str, tuple[Program, tuple[str | Path, ...]]] = field(
        default_factory=dict
    )  # each server by name, and the command that starts it again

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        folder: Path,
        *,
        on_line: Callable[[str, str], None] = lambda _name, _line: None,
        relay: tuple[str | Path, ...] = ("companion-push", "relay"),
        relying_party: tuple[str | Path, ...] = (),
        environment: Mapping[str, str] | None = None,
        behind: str | None = None,
        database: str | None = None,
        programs: list[Program] | None = None,
    ) -> AsyncIterator["World"]:
        """Start the four servers: radio, tunnel service, relay, relying party.

        relay: the relay's command, or another program in its place. relying_party: further options. behind: ``host:port`` of a
        proxy for TLS, which the caller starts: it serves relay and relying party under /push and /passkeys. database: the relay's
        store in PostgreSQL, in place of a file. programs: an empty list, which gets each program as soon as it is started.
        """
        world = cls(
            folder,
            on_line,
            make_certificate(folder),
            programs=[] if programs is None else programs,
            environment=environment or {},
            database=database,
        )
        tls = behind is None
        if behind is not None:
            trust = ("--trusted-proxy", "127.0.0.1")
            relay = (*relay, "--public-url", f"https://{behind}/push", *trust)
            relying_party = (*relying_party, "--public-url", f"https://{behind}/passkeys", *trust)
        async with running(world.programs):
            ether, tunnel, queue, rp = await asyncio.gather(
                world.serve("radio", "companion-push", "ether", tls=False),
                world.serve(
                    "tunnel service", "companion-push", "tunnel-service", "--contacts", folder / "contacts", tls=tls,
                ),
                world.serve("relay", *relay, "--store", world.relay_place, *_NO_LIMITS, tls=tls),
                world.serve(
                    "relying party", "relying-party", "serve", "--store", world.relying_party_store,
                    "--rp-id", "localhost", "--rp-name", "Demo", *relying_party, tls=tls,
                ),
            )  # fmt: skip
            if behind is not None:
                tunnel, queue, rp = f"wss://{behind}", f"https://{behind}/push", f"https://{behind}/passkeys"
            world.radio = f"bumble:{ether}"
            world.tunnel = f"{TUNNEL_DOMAIN}={tunnel}"
            world.relay, world.relying_party = queue, rp
            yield world

    @property
    def relay_place(self) -> str | Path:
        """Where the relay's store is."""
        return self.database or self.relay_store

    @property
    def relay_store(self) -> Path:
        return self.folder / "relay.db"

    @property
    def relying_party_store(self) -> Path:
        return self.folder / "relying-party.db"

    @property
    def passkeys(self) -> Path:
        """The file of software passkeys. All companions share it, as if the passkeys were synced."""
        return self.folder / "passkeys.json"

    def links(self, who: str) -> Path:
        """The software phone's file of links."""
        return self.folder / f"{self.state(who).name}-links.json"

    def state(self, who: str) -> Path:
        """The state directory of a companion or device."""
        return self.folder / who.replace(" ", "-").replace("'", "")

    def port(self, server: str) -> int:
        """The port of a server's own."""
        return int(str(self.servers[server][1][-1]).rpartition(":")[2])

    async def run(self, name: str, *command: str | Path) -> Program:
        """Start a program; it ends with the world."""
        program = await Program.start(
            name, *command, "--json", on_line=self.on_line, environment=self.environment
        )
        self.programs.append(program)
        return program

    async def run_to_end(self, name: str, *command: str | Path, stdin: str = "") -> str:
        """Run a program that ends by itself; return its stdout. `ProgramFailed` unless it ends with 0."""
        return await run(*command, stdin=stdin, name=name, on_line=self.on_line, environment=self.environment)

    async def serve(self, name: str, *command: str | Path, tls: bool = True) -> str:
        """Start a server on a free port, with our certificate; return the address that it prints."""
        host = "localhost" if tls else "127.0.0.1"
        if tls:
            command = (*command, "--cert", self.certificates.cert, "--key", self.certificates.key)
        program = await self.run(name, *command, "--listen", f"{host}:0")
        address = await program.line()
        port = address.rpartition(":")[2]
        self.servers[name] = program, (*command, "--listen", f"{host}:{port}")
        return address

    async def stop(self, name: str) -> None:
        """Stop a server, as its operator does."""
        await self.servers[name][0].stop()

    async def restart(self, name: str) -> None:
        """Start an ended server again, at the same address and with the same store."""
        ended, command = self.servers[name]
        self.programs.remove(ended)
        program = await self.run(name, *command)
        self.servers[name] = program, command
        await program.line()

    async def account_code(self, account: str = ACCOUNT) -> str:
        """Make an account code, with which an account's first companion joins."""
        return await self.run_to_end(
            "account system", "companion-push", "account", "add", account,
            "--store", self.relay_place, "--relay", self.relay,
        )  # fmt: skip

    async def found_account(self, who: str, *, account: str = ACCOUNT) -> None:
        """Join the first companion of a new account."""
        await self.join_companion(who, await self.account_code(account))

    async def join_companion(self, who: str, code: str) -> None:
        """Join a companion. code: an account code."""
        await self.run_to_end(who, *self._join("companion", who), stdin=code)

    async def invite(self, inviter: str, kind: str, who: str, *options: str) -> None:
        """`inviter` lets a device or companion in. Neither the invitation nor the number passes through the relay.

        The newcomer's number is carried to the inviter, as a person does that types it.
        """
        any_rp_id = ("--any-rp-id",) if kind == "device" and "--rp-id" not in options else ()
        inviting = await self.run(
            inviter, "companion-push", "companion", "invite", "--kind", kind, "--yes", "--number", "-",
            *any_rp_id, *options, "--state", self.state(inviter), *self.trust,
        )  # fmt: skip
        newcomer = await self.run(who, *self._join(kind, who))
        await newcomer.write(await inviting.line())
        shown = await newcomer.stage("number")
        await inviting.write(f"{shown['check_number']}\n")
        for program in (newcomer, inviting):
            if await program.wait() != 0:
                raise ProgramFailed(f"the invitation failed: {program.last_words}")

    def _join(self, kind: str, who: str) -> tuple[str | Path, ...]:
        """The command with which `who` joins; it reads the code or invitation from stdin."""
        as_device = ("headless-passkey", "join", "--invitation", "-")
        command = as_device if kind == "device" else ("companion-push", "companion", "join", "--code", "-")
        return (*command, "--label", who, "--state", self.state(who), *self.trust)

    async def companion(self, who: str, *options: str | Path, in_front: Sequence[str | Path] = ()) -> Program:
        """Start a companion with the software phone in it, and wait until it is connected to the relay.

        options: when two contradict, the later one counts. in_front: a command that is put before the
        companion's command and at last executes it.
        """
        program = await self.start_companion(who, *options, in_front=in_front)
        await program.stage("listening")
        return program

    async def start_companion(
        self, who: str, *options: str | Path, in_front: Sequence[str | Path] = ()
    ) -> Program:
        """Start a companion as `companion` does, without waiting for its connection."""
        return await self.run(
            who, *in_front, PROGRAMS / "companion-push", "companion", "run", "--state", self.state(who),
            *self.trust, "--opener", "phone", "--credentials", self.passkeys, "--radio", self.radio,
            "--tunnel", self.tunnel, "--consent", "accept", "--uv", "accept", *options,
        )  # fmt: skip

    async def linked_phone(self, who: str, *options: str | Path) -> Program:
        """Start a software phone that waits for the devices that it is linked with, and wait until it can be woken."""
        program = await self.run(
            who, "companion-push", "phone", "--linked", "--links", self.links(who), "--credentials", self.passkeys,
            "--radio", self.radio, "--tunnel", self.tunnel, "--uv", "accept", *self.trust, *options,
        )  # fmt: skip
        await program.stage("phone-waiting")
        return program

    async def device(
        self, who: str, ceremony: str, *options: str | Path, in_front: Sequence[str | Path] = ()
    ) -> Program:
        """Start a device for one ceremony; its stdout is the session. in_front: as with `companion`."""
        return await self.run(
            who, *in_front, PROGRAMS / "headless-passkey", ceremony, "--rp", self.relying_party, "--state", self.state(who),
            "--radio", self.radio, "--tunnel", self.tunnel, *self.trust, *options,
        )  # fmt: skip

    async def ceremony(
        self, who: str, name: str, *options: str | Path, in_front: Sequence[str | Path] = ()
    ) -> tuple[int, dict[str, Any] | None]:
        """Run one ceremony to its end; return the device's exit status and the session, if one was opened.

        in_front: as with `companion`.
        """
        device = await self.device(who, name, *options, in_front=in_front)
        output = await device.output()
        return await device.wait(), json.loads(output) if output else None

    @property
    def trust(self) -> tuple[str, Path]:
        """The options that name our certificate authority."""
        return "--ca", self.certificates.ca
