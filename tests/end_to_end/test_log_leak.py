"""A whole registration and sign-in at --log-level debug, and then a search for every secret that was made in it.

The secrets are written down as they are made, inside the programs, by `at_birth/sitecustomize.py`. They are
looked for in all that the programs said, in their arguments and environments, and in the servers' stores.
"""

import base64
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from world import World

from headless_passkey.rp.session_store import SessionStore
from headless_passkey.trust.invitation import Invitation
from tests.end_to_end.household import ends, processes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.threat("T11")]

AT_BIRTH: Final = Path(__file__).parent / "at_birth"
PROGRAMS: Final = (
    "HEADLESS_PASSKEY_JOIN", "HEADLESS_PASSKEY_REGISTER", "HEADLESS_PASSKEY_SIGN_IN", "COMPANION_PUSH_RELAY",
    "COMPANION_PUSH_TUNNEL_SERVICE", "COMPANION_PUSH_ETHER", "COMPANION_PUSH_ACCOUNT_ADD",
    "COMPANION_PUSH_COMPANION_JOIN", "COMPANION_PUSH_COMPANION_INVITE", "COMPANION_PUSH_COMPANION_RUN",
    "RELYING_PARTY",
)  # fmt: skip

# Where the random bytes are made that are no secrets: ids that travel in the clear
NO_SECRETS: Final = (
    "random:bumble.hci",  # addresses
    "random:headless_passkey.net.proof",
    "random:headless_passkey.trust.envelope",
    "random:headless_passkey.trust.admission",  # nonces, each of which is told to the other side
    "random:headless_passkey.trust.fields",  # ids of accounts
    "random:companion_push.tunnel_service.app",
    "random:companion_push.companion.software_key",
    "random:secrets",  # token_hex: names for the log, of files, of accounts
)
# What must have been written down, or the test would look for nothing
KINDS: Final = frozenset(
    {
        "account-code",
        "cipher-key:headless_passkey.hybrid.noise",
        "derived:headless_passkey.hybrid.keys",
        "derived:headless_passkey.hybrid.noise",
        "derived:headless_passkey.trust.invitation",
        "eid",
        "fido-url",
        "invitation",
        "private-key:headless_passkey.hybrid.keys",
        "private-key:headless_passkey.trust.hpke",
        "private-key:headless_passkey.trust.signing",
        "random:companion_push.relay.accounts",
        "random:headless_passkey.hybrid.client_platform",
        "random:headless_passkey.trust.invitation",
        "random:relying_party.http.app",
        "session-token",
    }
)


@dataclass(frozen=True)
class Secret:
    kind: str
    value: bytes

    def spellings(self) -> Iterator[tuple[str, bytes]]:
        """Every way in which it may stand somewhere."""
        value = self.value
        yield "raw", value
        yield "hex", value.hex().encode()
        yield "HEX", value.hex().upper().encode()
        yield "repr", repr(value)[2:-1].encode()
        yield "hex with colons", value.hex(":").encode()
        for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
            for shift in range(3):  # inside something longer it may begin at any of three places
                text = encode(bytes(shift) + value).rstrip(b"=")
                yield name, text[-(-shift * 4 // 3) : -1]
        for order in ("big", "little"):
            yield f"decimal, {order}-endian", str(int.from_bytes(value, order)).encode()
        yield "list of numbers", ", ".join(map(str, value)).encode()
        if self.kind == "fido-url":
            yield "digits", value.removeprefix(b"FIDO:/")


@dataclass(frozen=True)
class Place:
    name: str
    content: bytes


def found(born: Iterable[Secret], places: Iterable[Place]) -> list[tuple[str, str, str]]:
    """RequestKind of secret, how it was spelt, and where."""
    places = tuple(places)
    return [
        (secret.kind, spelling, place.name)
        for secret in born
        for spelling, needle in secret.spellings()
        for place in places
        if needle in place.content
    ]


@dataclass(frozen=True)
class Evidence:
    """Everything a sign-in made and left."""

    secrets: tuple[Secret, ...]
    said: tuple[Place, ...]  # by every program on stderr
    public: tuple[Place, ...]  # arguments and environments
    stores: tuple[Place, ...]  # of the servers


class Watch:
    """Arguments and environments of the running programs, at several moments."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self.places: set[Place] = set()

    def look(self) -> None:
        for number in processes(self._marker):
            for name in ("cmdline", "environ"):
                try:
                    content = Path(f"/proc/{number}/{name}").read_bytes()
                except OSError:
                    continue
                self.places.add(Place(f"{name} of {content[:60]!r}", content))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def evidence(tmp_path_factory: pytest.TempPathFactory, marker: str) -> AsyncIterator[Evidence]:
    folder = tmp_path_factory.mktemp("leak")
    record = folder / "secrets"
    name, _, value = marker.partition("=")
    environment = {
        name: value,
        "SECRETS_AT_BIRTH": str(record),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(AT_BIRTH), os.environ.get("PYTHONPATH")])),
        **{f"{program}_LOG_LEVEL": "debug" for program in PROGRAMS},
    }
    said: list[tuple[str, str]] = []
    watch = Watch(marker)

    def hear(program: str, line: str) -> None:
        said.append((program, line))
        watch.look()

    async with World.start(folder, environment=environment, on_line=hear) as world:
        told = await _story(world, watch)
        stores = tuple(
            Place(path.name, path.read_bytes())
            for path in sorted(folder.iterdir())
            if path.name.startswith((world.relay_store.name, world.relying_party_store.name))
        )
    born = [_parse(line) for line in record.read_text().splitlines()]
    handle = bytes.fromhex(told.pop("handle"))
    born = [secret for secret in born if secret.kind not in NO_SECRETS and secret.value != handle]
    born += [Secret(kind, text.encode()) for kind, text in told.items()]
    yield Evidence(
        tuple(dict.fromkeys(born)),
        tuple(Place(f"stderr of {program}", line.encode()) for program, line in said),
        tuple(watch.places),
        stores,
    )


async def _story(world: World, watch: Watch) -> dict[str, str]:
    """Join, register, sign in; the secrets that are texts."""
    code = await world.account_code()
    await world.join_companion("phone", code)
    inviting = await world.run(
        "phone", "companion-push", "companion", "invite", "--kind", "device", "--any-rp-id", "--yes", "--number", "-",
        "--state", world.state("phone"), *world.trust,
    )  # fmt: skip
    invitation = await inviting.line()
    joining = await world.run(
        "hub", "headless-passkey", "join", "--invitation", "-", "--label", "hub", "--state", world.state("hub"),
        *world.trust,
    )  # fmt: skip
    await joining.write(invitation)
    await inviting.write((await joining.stage("number"))["check_number"])
    assert (await ends(joining), await ends(inviting)) == (0, 0)
    companion = await world.companion("phone")
    status, _ = await world.ceremony("hub", "register", "--user", "ada")
    assert status == 0
    status, session = await world.ceremony("hub", "sign-in")
    assert status == 0
    assert session is not None
    kept = SessionStore(world.state("hub")).read(world.relying_party)
    assert kept is not None
    watch.look()
    assert await companion.stop() == 0
    for action in (("refresh",), ("fetch", f"{world.relying_party}/session"), ("sign-out",)):
        using = await world.run(
            "hub", "headless-passkey", "session", action[0], "--state", world.state("hub"), *world.trust,
            "--log-level", "debug", *action[1:],
        )  # fmt: skip
        assert await ends(using) == 0
    refreshed = kept.opened.refresh_token
    assert refreshed is not None
    handle: Any = session["user"]["handle"]
    return {
        "account-code": code.strip(),
        "invitation": invitation,
        "ticket": Invitation.parse(invitation).ticket.hex(),
        "session-token": kept.opened.token,
        "refresh-token": refreshed,
        "handle": base64.urlsafe_b64decode(handle + "==").hex(),
    }


def _parse(line: str) -> Secret:
    kind, _, value = line.partition(" ")
    return Secret(kind, bytes.fromhex(value))


async def test_every_kind_of_secret_was_written_down_at_its_birth(evidence: Evidence) -> None:
    assert {secret.kind for secret in evidence.secrets} >= KINDS
    assert {secret.kind for secret in evidence.secrets if len(secret.value) < 10} == set()


async def test_the_programs_said_a_lot(evidence: Evidence) -> None:
    """At debug level: otherwise there would be nothing to search."""
    for program in ("phone", "hub", "relay", "tunnel service", "relying party"):
        lines = [place for place in evidence.said if place.name == f"stderr of {program}"]
        assert lines, program
    assert any(b"debug" in place.content.lower() for place in evidence.said)
    assert any(b"--state" in place.content for place in evidence.public)
    assert sum(len(place.content) for place in evidence.stores) > 10_000


async def test_no_secret_was_said_by_any_program(evidence: Evidence) -> None:
    assert set(found(evidence.secrets, evidence.said)) == set()
    assert not any(b"FIDO:/" in place.content.upper() for place in evidence.said)


async def test_no_secret_stands_in_arguments_or_environments(evidence: Evidence) -> None:
    assert set(found(evidence.secrets, evidence.public)) == set()


async def test_no_secret_stands_in_the_servers_stores(evidence: Evidence) -> None:
    """But for the relying party's own, which is there to survive its restart, and the names of its sessions."""
    others = [secret for secret in evidence.secrets if not _is_the_relying_partys(secret)]
    assert set(found(others, evidence.stores)) == set()
    assert any(
        secret.kind == "random:relying_party.core.sessions" for secret in others
    )  # the tokens themselves


def _is_the_relying_partys(secret: Secret) -> bool:
    """A session's name has 16 bytes and opens nothing; its tokens have 32."""
    names_a_session = secret.kind == "random:relying_party.core.sessions" and len(secret.value) == 16
    return names_a_session or secret.kind == "random:relying_party.store.sql"


@pytest.mark.parametrize("in_front", [b"", b"x", b"xy"], ids=["aligned", "one byte on", "two bytes on"])
@pytest.mark.parametrize(
    "write",
    [
        lambda blob, _: blob,
        lambda blob, _: blob.hex().encode(),
        lambda blob, _: base64.b64encode(blob),
        lambda blob, _: base64.urlsafe_b64encode(blob),
        lambda blob, _: repr(blob).encode(),
        lambda _, secret: json.dumps({"n": int.from_bytes(secret, "big")}).encode(),
        lambda _, secret: str(list(secret)).encode(),
    ],
    ids=["raw", "hex", "base64", "base64url", "repr", "decimal", "list"],
)
async def test_a_secret_that_was_planted_is_found(write: Any, in_front: bytes) -> None:
    secret = secrets.token_bytes(32)
    planted = Place("a log", b"line 1\n" + write(in_front + secret + b"tail", secret) + b"\nline 3")
    assert found([Secret("planted", secret)], [planted]) != []
    other = Secret("not planted", secrets.token_bytes(32))
    assert found([other], [planted]) == []
