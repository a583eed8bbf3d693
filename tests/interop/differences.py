"""What four relying parties say to the same responses: the table of docs/reference/webauthn-libraries.md, which this program writes.

python -m tests.interop.differences
"""

import asyncio
import json
import tempfile
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from fido2 import cbor

from relying_party.http.app import make_app
from tests.interop.libraries import (
    FOLDER,
    Expected,
    Known,
    Library,
    PythonFido2,
    PyWebauthn,
    SimpleWebAuthn,
    known_from,
)
from tests.rp.authenticator_double import (
    BE,
    BS,
    JSON,
    NO_FAULTS,
    SYNCED,
    UP,
    UV,
    EdDSAKey,
    ES256Key,
    Faults,
    Key,
    Passkey,
    RS256Key,
    b64,
    create,
    get,
    unb64,
)
from tests.rp.clients import RP_ID, WEB_ORIGIN, Browser, Clock, Site, make_config

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "webauthn-libraries.md"
INSTALLED: Final = FOLDER / "node_modules" / "@simplewebauthn" / "server"
OURS: Final = "ours"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One response, and why we answer it as we do."""

    what: str
    why: str = ""
    taken: bool = False  # by ours
    faults: Faults = NO_FAULTS
    key: Callable[[], Any] = ES256Key
    before: Faults | None = None  # for a sign-in: how the passkey was registered, when that matters
    alter: Callable[[JSON], JSON] = lambda response: response
    again: bool = False  # it is sent twice, and the second answer counts


class _ES384Key:
    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP384R1())

    def cose(self) -> dict[int, Any]:
        numbers = self._private.public_key().public_numbers()
        return {1: 2, 3: -35, -1: 2, -2: numbers.x.to_bytes(48, "big"), -3: numbers.y.to_bytes(48, "big")}

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data, ec.ECDSA(SHA384()))


def _with(response: JSON, **members: Any) -> JSON:
    return {**response, **members}


def _inside(response: JSON, **members: Callable[[str], Any]) -> JSON:
    """The response with some members of its inner object made from what they were."""
    inner = response["response"]
    return {**response, "response": {**inner, **{name: make(inner[name]) for name, make in members.items()}}}


def _longer(text: str) -> str:
    return b64(unb64(text) + b"\0")


def _with_statement(text: str) -> str:
    return b64(cbor.encode({**_map(text), "attStmt": {"x": 1}}))


def _map(text: str) -> dict[str, Any]:
    return dict(cast("Mapping[str, Any]", cbor.decode(unb64(text))))


_EXACT = "an origin is a list of exact ones, for each kind of client"
_EMBEDDED = "we are in nobody's frame; WebAuthn Level 3 §7 has the relying party check it"
_FLAGS = "only a passkey that can be synced can be synced (§6.1.3)"
_UNASKED = "ignored: clients and keys send more than they were asked for (§7.1, §7.2)"
_CANONICAL = "one form of bytes for one meaning; base64url here has no padding"

# What either ceremony has: what is said of it, and why.
COMMON: Final = (
    Case(what="nothing wrong, synced", taken=True),
    Case(what="nothing wrong, bound to its device", taken=True, faults=Faults(flags=UP | UV)),
    Case(what="nothing wrong, EdDSA", taken=True, key=EdDSAKey),
    Case(what="nothing wrong, RS256", taken=True, key=RS256Key),
    Case(
        what="members that we do not know in client data",
        taken=True,
        why="clients may add to it (§5.8.1)",
        faults=Faults(client_data={"other_keys_can_be_added_here": "yes"}),
    ),
    Case(
        what="client data behind a byte order mark",
        taken=True,
        why='"UTF-8 decode" leaves it out (§7.1, §7.2)',
        faults=Faults(client_data_mark=BOM_UTF8),
    ),
    Case(what="another challenge", faults=Faults(challenge=b64(bytes(32)))),
    Case(what="the other ceremony's type", faults=Faults(type="webauthn.other")),
    Case(what="another site's origin", faults=Faults(origin="https://rp.example.evil.example")),
    Case(what="an origin below the RP ID", why=_EXACT, faults=Faults(origin="https://user.rp.example")),
    Case(what="our origin, another port", why=_EXACT, faults=Faults(origin=WEB_ORIGIN + ":8443")),
    Case(what="our origin without TLS", faults=Faults(origin="http://rp.example")),
    Case(what="crossOrigin true", why=_EMBEDDED, faults=Faults(client_data={"crossOrigin": True})),
    Case(
        what="a topOrigin",
        why=_EMBEDDED,
        faults=Faults(client_data={"crossOrigin": True, "topOrigin": "https://top.example"}),
    ),
    Case(what="another RP ID", faults=Faults(rp_id="other.example")),
    Case(what="nobody was there (UP)", faults=Faults(flags=UV | BE | BS)),
    Case(what="the owner was not recognised (UV)", faults=Faults(flags=UP | BE | BS)),
    Case(what="BS without BE", why=_FLAGS, faults=Faults(flags=UP | UV | BS)),
    Case(
        what="a client extension that was not asked for",
        taken=True,
        why=_UNASKED,
        faults=Faults(client_outputs={"appid": True}),
    ),
    Case(
        what="a signed extension that was not asked for",
        taken=True,
        why=_UNASKED,
        faults=Faults(signed_outputs={"uvm": [[2, 4, 2]]}),
    ),
    Case(what="id is not rawId", alter=lambda response: _with(response, id=b64(bytes(32)))),
    Case(
        what="rawId with padding",
        why=_CANONICAL,
        alter=lambda response: _with(response, rawId=response["rawId"] + "=", id=response["id"] + "="),
    ),
    Case(
        what="client data with padding",
        why=_CANONICAL,
        alter=lambda response: _inside(
            response, clientDataJSON=lambda text: text + "=" * (-len(text) % 4 or 4)
        ),
    ),
    Case(
        what="the same again",
        why="a challenge is used up by the first answer, and before it is verified",
        again=True,
    ),
)
REGISTRATION: Final = (
    *COMMON,
    Case(what="an algorithm that was not offered", key=_ES384Key),
    Case(
        what="a key that is on no curve",
        why="told now, and not at the first sign-in",
        faults=Faults(cose_key={1: 2, 3: -7, -1: 1, -2: bytes(32), -3: bytes(32)}),
    ),
    Case(what="an RSA key of 1024 bits", why="2048 to 4096", key=partial(RS256Key, 1024)),
    Case(what="rawId is not the attested credential's", faults=Faults(named_id=bytes(32))),
    Case(
        what="a statement where the format says none",
        why="we ask for no attestation and look at none",
        taken=True,
        alter=lambda response: _inside(response, attestationObject=_with_statement),
    ),
    Case(
        what="bytes after the attestation object",
        alter=lambda response: _inside(response, attestationObject=_longer),
    ),
)
SIGN_IN: Final = (
    *COMMON,
    Case(what="a signature of another key", faults=Faults(signature=ES256Key().sign(b"something else"))),
    Case(what="bytes after the signature", alter=lambda response: _inside(response, signature=_longer)),
    Case(
        what="bytes after the authenticator data",
        alter=lambda response: _inside(response, authenticatorData=_longer),
    ),
    Case(
        what="a counter that goes back",
        taken=True,
        why="recorded and shown, and nobody is locked out: synced passkeys do it (§6.1.1)",
        faults=Faults(counter=3),
        before=Faults(counter=5),
    ),
    Case(
        what="BE was set at registration and is not now",
        why="it never changes (§6.1.3)",
        faults=Faults(flags=UP | UV),
        before=Faults(flags=SYNCED),
    ),
    Case(
        what="BE was not set at registration and is now",
        why="it never changes (§6.1.3)",
        faults=Faults(flags=SYNCED),
        before=Faults(flags=UP | UV),
    ),
    Case(
        what="another user's handle",
        why="whoever the passkey names is its owner",
        faults=Faults(user_handle=bytes(32)),
    ),
    Case(
        what="no user handle, and nobody was asked for",
        why="a discoverable passkey names its user (§7.2)",
        faults=Faults(user_handle=None),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case and the answers to it: None, or why it was refused."""

    case: Case
    answers: dict[str, str | None]


@asynccontextmanager
async def libraries() -> AsyncIterator[tuple[Library, ...]]:
    """The other three; Node.js runs as long as the context."""
    assert INSTALLED.exists(), "@simplewebauthn/server is not here; please run: scripts/install-test-packages"
    process = await asyncio.create_subprocess_exec(
        "node", FOLDER / "answer.mjs", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    try:
        yield PyWebauthn(), SimpleWebAuthn(process), PythonFido2()
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def our_site(folder: Path) -> AsyncIterator[Site]:
    """Our relying party with a clock that stands still."""
    clock, config = Clock(), make_config(folder / "store.sqlite")
    app = make_app(config, clock=clock)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        yield Site(http=http, app=app, clock=clock, config=config)


async def registrations(site: Site, others: Sequence[Library]) -> list[Row]:
    rows: list[Row] = []
    for number, case in enumerate(REGISTRATION):
        who = Browser()
        ceremony, options = await site.begin(who, "registration", user_name=f"new-{number}")
        _, response = create(options, WEB_ORIGIN, case.faults, key=case.key())
        response = case.alter(response)
        expected = Expected(challenge=options["challenge"], rp_id=RP_ID, origins=(WEB_ORIGIN,))
        answers: dict[str, str | None] = {}
        for _ in range(1 + case.again):
            answers[OURS] = await _ours(site, who, "registration", ceremony, response)
            for other in others:
                answers[other.name] = await other.verify_registration(response, expected)
        rows.append(Row(case=case, answers=answers))
    return rows


async def sign_ins(site: Site, others: Sequence[Library]) -> list[Row]:
    rows: list[Row] = []
    for number, case in enumerate(SIGN_IN):
        who = Browser()
        before = case.before or Faults(flags=SYNCED if case.faults.flags & BE else UP | UV)
        passkey, known = await _registered(site, who, f"known-{number}", before, case.key())
        ceremony, options = await site.begin(who, "authentication")
        response = case.alter(get(passkey, options, WEB_ORIGIN, case.faults))
        expected = Expected(challenge=options["challenge"], rp_id=RP_ID, origins=(WEB_ORIGIN,))
        answers: dict[str, str | None] = {}
        for _ in range(1 + case.again):
            answers[OURS] = await _ours(site, who, "authentication", ceremony, response)
            for other in others:
                answers[other.name] = await other.verify_authentication(response, expected, known)
        rows.append(Row(case=case, answers=answers))
    return rows


async def _registered(site: Site, who: Browser, name: str, faults: Faults, key: Key) -> tuple[Passkey, Known]:
    ceremony, options = await site.begin(who, "registration", user_name=name)
    passkey, response = create(options, WEB_ORIGIN, faults, key=key)
    assert await _ours(site, who, "registration", ceremony, response) is None
    return passkey, known_from(response)


async def _ours(site: Site, who: Browser, kind: str, ceremony: str, response: JSON) -> str | None:
    answer = await site.finish(who, kind, ceremony, response)
    return None if answer.status in (200, 201) else answer.slug


def page(registered: Sequence[Row], signed_in: Sequence[Row]) -> str:
    """docs/reference/webauthn-libraries.md."""
    return _PAGE.format(
        fido2=version("fido2"),
        py_webauthn=version("webauthn"),
        simple=json.loads((FOLDER / "package-lock.json").read_text())["packages"][
            "node_modules/@simplewebauthn/server"
        ]["version"],
        registration=_table(registered),
        sign_in=_table(signed_in),
    )


def _table(rows: Sequence[Row]) -> str:
    names = list(rows[0].answers)
    lines = [f"| what comes | {' | '.join(names)} | why |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        answers = ("takes" if row.answers[name] is None else "**refuses**" for name in names)
        lines.append(f"| {row.case.what} | {' | '.join(answers)} | {row.case.why} |")
    return "\n".join(lines)


_PAGE: Final = """\
# What other WebAuthn libraries say to the same responses

Our relying party, py_webauthn {py_webauthn}, @simplewebauthn/server {simple} and python-fido2 {fido2}, whose verification ours is built on, are given the same
responses. Each library is told the challenge, the RP ID, our one origin, the stored public key and counter, to require user presence and verification, and
the algorithms ES256, EdDSA and RS256; it is asked whether the response verifies, and nothing is done around it. *takes* can so mean that its caller has to look.

The tables are made by `make docs`, from answers, and a test compares them with answers again. Other tests there have options of
each library answered by the device SDK with the software phone, and by Chromium, and each answer verified by all.

## Registration

{registration}

## Sign-in

{sign_in}
"""


async def _main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with libraries() as others, our_site(Path(folder)) as site:
            PAGE.write_text(page(await registrations(site, others), await sign_ins(site, others)))


if __name__ == "__main__":
    asyncio.run(_main())
