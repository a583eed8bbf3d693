"""How many sign-ins the relying party verifies, compared with the signatures and the store that it needs.

    make bench                                       with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/rp.py    measure and print

A sign-in is measured by its second request, from headers and body to the answer's body: everything but HTTP.
The baseline runs in turns with it: the same signatures, verified with keys that are loaded already, and the
same calls to the same store on the same disk. (The name is short because `relying_party` is the package.)
"""

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_bytes
from typing import Any, Final

import core
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from fido2 import cbor
from fido2.cose import ES256
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestedCredentialData,
    AuthenticationResponse,
    AuthenticatorAssertionResponse,
    AuthenticatorData,
    CollectedClientData,
    PublicKeyCredentialRpEntity,
)
from measure import HEADINGS, Row, table

from headless_passkey.net.proof import make_proof
from headless_passkey.trust.signing import SoftwareSigningKey
from program_parts.base64url import base64url
from relying_party.config import Config
from relying_party.core.callers import Caller, ClientKind
from relying_party.core.ceremonies import CHALLENGE_SIZE, ParsedAssertion, ParsedAuthentication
from relying_party.core.challenges import AuthenticationRecord
from relying_party.core.credentials import Credential, CredentialUse, User
from relying_party.core.messages import parse_authentication_result
from relying_party.core.proofs import Proof, verify_proof
from relying_party.core.sessions import Lifetimes, open_session
from relying_party.errors import UseDpopNonce
from relying_party.http.app import authentication_options, authentication_result, make_app
from relying_party.http.request import STATE, State
from relying_party.place import PostgresUri, StorePlace

ORIGIN: Final = "https://rp.example"
OPTIONS: Final = "/webauthn/authentication/options"
RESULT: Final = "/webauthn/authentication/result"
HEADING: Final = "# How many sign-ins the relying party verifies"
ROUNDS: Final = 61
BATCH: Final = 6  # sign-ins in one turn
FLAGS: Final = b"\x1d"  # user present, user verified, backup eligible, backed up

try:
    PEER = f"py_webauthn {version('webauthn')}"
except PackageNotFoundError:
    PEER = ""

Step = Callable[[], Awaitable[object]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the relying party.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    parser.add_argument("--store", type=Path, help="folder for the store; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.store) as folder:
        rows = asyncio.run(measured(Path(folder)))
    page = "\n".join(_page(rows)) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


def _page(rows: list[Row]) -> list[str]:
    return [
        HEADING,
        "",
        core.made(),
        "",
        table((*HEADINGS[:-1], "per second"), [(*row.cells[:-1], f"{1 / row.seconds:.0f}") for row in rows]),
        "",
        "A sign-in is the second request of one, without HTTP: its proof of key (a device's), its body, the ceremony's record, the credential, the",
        "verification, the session, the answer. One at a time, so per second is per core and worker of the store. The store is SQLite",
        "with `synchronous=FULL`: one of its three calls waits for the disk, and what is held against it waits for the same disk in turns. In PostgreSQL",
        "each of the three is a transaction of its own, the ceremony's record a fourth, and a device's used proof a fifth; these two are not held against it.",
        "",
        "python-fido2 parses the stored key and the authenticator data, loads the key and verifies. With its own response classes, which the",
        "relying party took until 2026-11-27, it evaluates type hints for each object besides. The proof of key is joserfc's for the most part."
        + ("" if PEER else " py_webauthn was not run: it is not installed."),
    ]


async def measured(folder: Path) -> list[Row]:
    """The rows of the table."""
    async with running(folder / "store.sqlite") as bench:
        rows = [
            await compare("a response verified, no store", bench.responses, "ES256", lambda: bench.verify(1)),
            await compare("of that python-fido2", bench.library, "ES256", lambda: bench.verify(1)),
            await compare(
                "python-fido2 with its own response classes",
                lambda: bench.library(AuthenticatorAssertionResponse, AuthenticationResponse),
                "ES256",
                lambda: bench.verify(1),
            ),
            *(
                [await compare("a response parsed and verified, no store", bench.parsed, PEER, bench.peer)]
                if PEER
                else []
            ),
            await compare("a proof of key verified", bench.proofs, "ES256", lambda: bench.verify(1)),
            await compare("sign-in in a browser", bench.browsers, "ES256 + store", lambda: bench.parts(1)),
            await compare("sign-in of a device", bench.devices, "2 ES256 + store", lambda: bench.parts(2)),
        ]
    return [*rows, *await in_postgresql()]


async def in_postgresql() -> list[Row]:
    """Sign-ins with their store in PostgreSQL, on a private server of this machine, with fsync; nothing where it is not installed."""
    from tests.relay.stores import PostgresServer, is_installed  # noqa: PLC0415  for this alone

    if not is_installed():
        return []
    server = PostgresServer(durable=True)
    try:
        server.do("postgres", "CREATE DATABASE party")
        async with running(PostgresUri(server.url("party").uri)) as bench:
            browser, device = (
                f"sign-in {whose}, store in PostgreSQL" for whose in ("in a browser", "of a device")
            )
            return [
                await compare(browser, bench.browsers, "ES256 + that store", lambda: bench.parts(1)),
                await compare(device, bench.devices, "2 ES256 + that store", lambda: bench.parts(2)),
            ]
    finally:
        server.end()


@asynccontextmanager
async def running(store: StorePlace) -> "AsyncIterator[Bench]":
    config = Config.make(
        rp_id="rp.example",
        rp_name=None,
        web_origins=(ORIGIN,),
        device_origins=(),
        public_url=ORIGIN,
        store=store,
        requests_per_minute=10**9,
        registrations_per_day=10**9,
    )
    app = make_app(config)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        yield await Bench.make(app)
    finally:
        await runner.cleanup()


@dataclass(slots=True, kw_only=True)
class Bench:
    """A relying party with one user, and that user's passkey."""

    app: web.Application
    state: State
    key: ec.EllipticCurvePrivateKey
    credential: Credential
    device: SoftwareSigningKey

    @classmethod
    async def make(cls, app: web.Application) -> "Bench":
        state, key = app[STATE], ec.generate_private_key(ec.SECP256R1())
        user = User(handle=token_bytes(32), name="ada", display_name="Ada")
        name, cose = token_bytes(32), ES256.from_cryptography_key(key.public_key())  # type: ignore[no-untyped-call]
        credential = Credential(
            credential_id=name,
            user_handle=user.handle,
            attested_data=bytes(AttestedCredentialData.create(bytes(16), name, cose)),
            aaguid=bytes(16),
            algorithm=-7,
            sign_count=0,
            backup_eligible=True,
            backed_up=True,
            transports=("hybrid", "internal"),
            attestation_object=bytes(200),
            client_data_hash=bytes(32),
            created_at=0,
        )
        bench = cls(
            app=app, state=state, key=key, credential=credential, device=SoftwareSigningKey.generate()
        )
        await state.store.register(credential, user, bench.session(), ends=None)
        return bench

    def session(self) -> Any:
        return open_session(
            user_handle=self.credential.user_handle,
            credential_id=self.credential.credential_id,
            caller=Caller(kind=ClientKind.DEVICE, key_thumbprint="somebody's"),
            now=time.time(),
            lifetimes=Lifetimes(),
            random=token_bytes,
        ).session

    # The subjects: each returns steps that are ready to run once

    async def browsers(self) -> Step:
        return await self._request({"Origin": ORIGIN}, {"Origin": ORIGIN})

    async def devices(self) -> Step:
        return await self._request(*[{"DPoP": await self._proof(path)} for path in (OPTIONS, RESULT)])

    async def responses(self) -> Step:
        """The pure part: a parsed response against its record."""
        challenge, caller = token_bytes(CHALLENGE_SIZE), Caller(kind=ClientKind.WEB)
        begun = self.state.ceremonies.begin_authentication(
            caller, expected=None, allowed=(), now=0, challenge=challenge
        )
        assert isinstance(begun.record, AuthenticationRecord)
        _, response = parse_authentication_result(self._body("", base64url(challenge)))

        async def run() -> None:
            self.state.ceremonies.complete_authentication(
                begun.record, caller, response, self.credential, now=1
            )

        return run

    async def library(
        self,
        assertion: type[AuthenticatorAssertionResponse] = ParsedAssertion,
        authentication: type[AuthenticationResponse] = ParsedAuthentication,
    ) -> Step:
        """What python-fido2 does in a verification: parse the stored key and the authenticator data, and verify."""
        challenge, kept = token_bytes(CHALLENGE_SIZE), self.credential.attested_data
        _, response = parse_authentication_result(self._body("", base64url(challenge)))
        entity = PublicKeyCredentialRpEntity(id="rp.example", name="rp.example")
        server = Fido2Server(entity, verify_origin={ORIGIN}.__contains__)
        state = {"challenge": base64url(challenge), "user_verification": "required"}

        async def run() -> None:
            made = assertion(
                client_data=CollectedClientData(response.client_data),
                authenticator_data=AuthenticatorData(response.authenticator_data),
                signature=response.signature,
                user_handle=response.user_handle,
            )
            parsed = authentication(raw_id=response.credential_id, response=made)
            server.authenticate_complete(state, [AttestedCredentialData(kept)], parsed)

        return run

    async def parsed(self) -> Step:
        """A response's bytes parsed and verified against its record."""
        challenge, caller = token_bytes(CHALLENGE_SIZE), Caller(kind=ClientKind.WEB)
        begun = self.state.ceremonies.begin_authentication(
            caller, expected=None, allowed=(), now=0, challenge=challenge
        )
        assert isinstance(begun.record, AuthenticationRecord)
        record, body = begun.record, self._body("", base64url(challenge))

        async def run() -> None:
            _, response = parse_authentication_result(body)
            self.state.ceremonies.complete_authentication(record, caller, response, self.credential, now=1)

        return run

    async def peer(self) -> Step:
        """The same by py_webauthn, which takes JSON too."""
        from webauthn import verify_authentication_response  # noqa: PLC0415  a library that may be missing

        challenge = token_bytes(CHALLENGE_SIZE)
        response = json.dumps(json.loads(self._body("", base64url(challenge)))["response"])
        key = cbor.encode(AttestedCredentialData(self.credential.attested_data).public_key)

        async def run() -> None:
            verify_authentication_response(
                credential=response,
                expected_challenge=challenge,
                expected_rp_id="rp.example",
                expected_origin=ORIGIN,
                credential_public_key=key,
                credential_current_sign_count=0,
                require_user_verification=True,
            )

        return run

    async def proofs(self) -> Step:
        """The proof of key in a device's second request, without its replay check."""
        text = await self._proof(RESULT)

        async def run() -> None:
            verify_proof(text, method="POST", urls=[ORIGIN + RESULT], now=time.time())

        return run

    async def _request(self, beginning: dict[str, str], ending: dict[str, str]) -> Step:
        answer = await authentication_options(self._post(OPTIONS, beginning, b"{}"))
        assert isinstance(answer.body, bytes)
        begun = json.loads(answer.body)
        request = self._post(RESULT, ending, self._body(begun["ceremony"], begun["publicKey"]["challenge"]))

        async def run() -> None:
            answer = await authentication_result(request)
            assert answer.status == 200

        return run

    def _post(self, path: str, headers: dict[str, str], body: bytes) -> web.Request:
        loop = asyncio.get_running_loop()
        payload = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
        payload.feed_data(body)
        payload.feed_eof()
        headers = {"Content-Type": "application/json", **headers}
        return make_mocked_request("POST", path, headers, payload=payload, app=self.app)

    async def _proof(self, path: str) -> str:
        """A device's proof for the path, with the nonce that a proof without one is refused with."""
        now = time.time()
        try:
            await self.state.used_proofs.take_proof(Proof(key_thumbprint="", id="", nonce=None), now=now)
        except UseDpopNonce as refused:
            nonce = refused.nonce
        return make_proof(self.device, method="POST", url=ORIGIN + path, now=now, nonce=nonce)

    def _body(self, ceremony: str, challenge: str) -> bytes:
        client_data = json.dumps(
            {"type": "webauthn.get", "challenge": challenge, "origin": ORIGIN, "crossOrigin": False}
        ).encode()
        data = sha256(b"rp.example").digest() + FLAGS + bytes(4)
        signature = self.key.sign(data + sha256(client_data).digest(), ec.ECDSA(SHA256()))
        name = base64url(self.credential.credential_id)
        response = {
            "clientDataJSON": base64url(client_data),
            "authenticatorData": base64url(data),
            "signature": base64url(signature),
            "userHandle": base64url(self.credential.user_handle),
        }
        credential = {"id": name, "rawId": name, "type": "public-key", "response": response}
        return json.dumps({"ceremony": ceremony, "response": credential}).encode()

    # The baseline

    async def verify(self, signatures: int) -> Step:
        data, public = bytes(69), self.key.public_key()
        signature = self.key.sign(data, ec.ECDSA(SHA256()))

        async def run() -> None:
            for _ in range(signatures):
                public.verify(signature, data, ec.ECDSA(SHA256()))

        return run

    async def parts(self, signatures: int) -> Step:
        """The signatures, and the calls to the store that a sign-in makes."""
        verify, store, session = await self.verify(signatures), self.state.store, self.session()
        name, user = self.credential.credential_id, self.credential.user_handle
        use = CredentialUse(
            credential_id=name, sign_count=0, backed_up=True, counter_anomaly=False, used_at=int(time.time())
        )

        async def run() -> None:
            await verify()
            await store.credential(name, now=time.time())
            await store.sign_in(use, session, ends=None)
            await store.credentials_of(user, now=time.time())

        return run


async def compare(
    what: str,
    subject: Callable[[], Awaitable[Step]],
    against: str,
    baseline: Callable[[], Awaitable[Step]],
    *,
    rounds: int = ROUNDS,
) -> Row:
    """Measure `subject` and `baseline` in turns, without the time for making the steps that they run."""
    pairs = []
    for turn in range(rounds):
        kinds = [subject, baseline]
        times = {}
        for index in (0, 1) if turn % 2 else (1, 0):
            steps = [await kinds[index]() for _ in range(BATCH)]
            times[index] = await _timed(steps)
        pairs.append((times[0], times[1]))
    return Row.of_pairs(what, against, pairs)


async def _timed(steps: list[Step]) -> float:
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    for step in steps:
        await step()
    seconds = time.perf_counter() - began
    gc.enable()
    return seconds / len(steps)


if __name__ == "__main__":
    main()
