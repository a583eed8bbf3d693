"""Our side of a test with somebody else's client: the phone, and a tunnel service at the host of a domain number."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from certificates import Certificate, make_certificate
from programs import Program, running

from headless_passkey.hybrid.tunnel_url import tunnel_domain
from tests.ble.lab.guest import Guest

PATIENCE: Final = 600.0  # seconds; a program takes ten and more to start on an emulated processor
NUMBER: Final = 300  # of the tunnel domain
HOST: Final = tunnel_domain(NUMBER)


@dataclass
class Parties:
    """What runs, and the files of the phone. Clients find the tunnel service by the number in the advert alone."""

    guest: Guest
    folder: Path
    certificate: Certificate
    programs: list[Program]

    @classmethod
    @asynccontextmanager
    async def meet(cls, guest: Guest, folder: Path) -> AsyncIterator["Parties"]:
        """Start the tunnel service at port 443 of its host, which is this guest."""
        programs: list[Program] = []
        certificate = make_certificate(folder, names=(HOST, "localhost"))
        with _named():
            async with running(programs):
                parties = cls(guest, folder, certificate, programs)
                program = await parties.run(
                    "tunnel service", "companion-push", "tunnel-service", "--listen", "127.0.0.1:443",
                    "--cert", certificate.cert, "--key", certificate.key, "--contacts", folder / "contacts",
                )  # fmt: skip
                await program.line(timeout=PATIENCE)
                yield parties

    async def run(
        self, name: str, *command: str | Path, environment: dict[str, str] | None = None
    ) -> Program:
        """Start a program, which ends with the test."""
        program = await Program.start(name, *command, environment=environment)
        self.programs.append(program)
        return program

    async def phone(self, *options: str | Path, radio: str, uv: str = "accept") -> Program:
        """A phone, whose files are the same each time."""
        return await self.run(
            "phone", "companion-push", "phone", *options, "--credentials", self.folder / "passkeys.json",
            "--radio", radio, "--tunnel", f"{NUMBER}=wss://{HOST}", "--ca", self.certificate.ca, "--uv", uv,
            "--json", "--timeout", f"{PATIENCE:g}",
        )  # fmt: skip

    async def scans(self, url: str, *options: str | Path, radio: str, uv: str = "accept") -> Program:
        """A phone that was given a FIDO URL, as by a camera."""
        phone = await self.phone("--url", "-", *options, radio=radio, uv=uv)
        await phone.write(url)
        return phone

    async def client(self, program: str, *words: str, log: str) -> "Client":
        """A program of ours around a crate. log: what the crate logs, in the terms of its RUST_LOG."""
        environment = {"SSL_CERT_FILE": str(self.certificate.ca), "RUST_LOG": log}
        return Client(await self.run(Path(program).name, program, *words, environment=environment))

    @property
    def links(self) -> Path:
        """Where the phone keeps its links."""
        return self.folder / "links.json"

    @property
    def own_radio(self) -> str:
        """A controller of the phone's own, which both adapters hear: a client takes either, and not always the same."""
        return f"bumble:{self.guest.air}"


@dataclass
class Client:
    """A program of ours around a crate, by the lines that it reads and prints: a word and a value."""

    program: Program

    async def says(self, word: str) -> str:
        """The value of the next line, which has this word."""
        line = await self.program.line(timeout=PATIENCE)
        assert line.split(" ")[0] == word, "\n".join([line, *self.program.said])
        return line.partition(" ")[2]

    async def type(self, line: str) -> None:
        assert self.program.process.stdin is not None
        self.program.process.stdin.write(f"{line}\n".encode())
        await self.program.process.stdin.drain()


@contextmanager
def _named() -> Iterator[None]:
    """The host of the domain number is this guest."""
    hosts = Path("/etc/hosts")
    was = hosts.read_text()
    hosts.write_text(f"{was}\n127.0.0.1 {HOST}\n")
    try:
        yield
    finally:
        hosts.write_text(was)
