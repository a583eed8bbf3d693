"""Request proofs (RFC 9449): a good one names its key, and each way to be bad is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk

from headless_passkey.net.proof import make_proof
from headless_passkey.trust.signing import SoftwareSigningKey, thumbprint
from http_serving.proofs import KnownKeys
from relying_party.core import proofs
from relying_party.core.proofs import (
    CLOCK_TOLERANCE,
    MAX_PROOF_CHARACTERS,
    STEP_SECONDS,
    Proof,
    ProofsInMemory,
    Step,
    UsedProofs,
    verify_proof,
)
from relying_party.errors import ProofClock, ProofInvalid, RequestRefused, UseDpopNonce
from relying_party.store.shared import SharedProofs
from tests.rp.authenticator_double import DeviceKey, ProofFaults, b64, unb64
from tests.rp.stores import ENGINES, engine
from tests.vectors_loader import Vector, name, vectors

NOW = 1_800_000_000.0
URL = "https://rp.example/session"
KEY = DeviceKey()


KNOWN = KnownKeys()  # with `KEY`, from the first good proof on


def verify(text: str, *, token: str | None = None, now: float = NOW) -> Proof:
    """Verify a proof with no key known and with keys known, which makes no difference."""
    first, second = (outcome(text, known, token=token, now=now) for known in (None, KNOWN))
    assert (type(first), str(first)) == (type(second), str(second))
    if isinstance(first, RequestRefused):
        raise first
    return first


def outcome(text: str, known: KnownKeys | None, *, token: str | None, now: float) -> Proof | RequestRefused:
    try:
        return verify_proof(text, method="POST", urls=[URL], now=now, access_token=token, known=known)
    except RequestRefused as refusal:
        return refusal


def proof(token: str | None = None, **faults: Any) -> str:
    return KEY.proof("POST", URL, NOW, token, ProofFaults(**faults))


def test_a_good_proof_names_its_key() -> None:
    verified = verify(proof())
    assert verified.key_thumbprint == KEY.thumbprint == jwk.thumbprint(KEY.jwk)
    assert verified.nonce is None
    assert verify(proof(claims={"nonce": "a nonce"})).nonce == "a nonce"


def test_the_thumbprint_of_rfc_7638_comes_out_for_a_known_key() -> None:
    """The key of RFC 9449's examples; its thumbprint is the ``jkt`` there (§6.1)."""
    known = {
        "kty": "EC",
        "crv": "P-256",
        "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
        "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    }
    text = (
        "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZ"
        "OXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIs"
        "ImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVy"
        "LmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFL"
        "bdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
    )
    assert jwk.thumbprint(known) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    with pytest.raises(ProofInvalid):  # its id has 15 characters, fewer than we ask for
        verify_proof(text, method="POST", urls=["https://server.example.com/token"], now=1562262616)


def test_a_device_of_ours_makes_good_proofs() -> None:
    key = SoftwareSigningKey.generate()
    text = make_proof(key, method="POST", url=URL + "?a=b#c", now=NOW, access_token="a token")
    assert verify(text, token="a token").key_thumbprint == thumbprint(key.public_key)


@pytest.mark.threat("T13")
@pytest.mark.parametrize("case", vectors("proofs"), ids=name)
def test_every_known_proof_is_taken_or_refused_as_at_the_relay(case: Vector) -> None:
    def taken() -> Proof:
        return verify_proof(case["proof"], method=case["method"], urls=[case["url"]], now=case["now"])

    match case["result"]:
        case "taken":
            assert len(taken().key_thumbprint) == 43
        case "proof-clock":
            with pytest.raises(ProofClock):
                taken()
        case _:
            with pytest.raises(ProofInvalid):
                taken()


@pytest.mark.parametrize(
    "url", ["https://rp.example:443/session", "https://RP.example/session", "HTTPS://rp.example/session"]
)
def test_an_address_may_be_written_in_equal_ways(url: str) -> None:
    verify(proof(claims={"htu": url}))


@pytest.mark.parametrize(
    "faults",
    [
        {"header": {"typ": "JWT"}},
        {"header": {"typ": None}},
        {"header": {"alg": "none"}},
        {"header": {"alg": "HS256"}},
        {"header": {"alg": "ES384"}},
        {"header": {"jwk": None}},
        {"header": {"jwk": {}}},
        {"header": {"crit": ["exp"]}},
        {"header": {"crit": []}},
        {"header": {"b64": False}},
        {"jwk": {"d": b64(bytes(32))}},
        {"jwk": {"kty": "oct"}},
        {"jwk": {"crv": "P-384"}},
        {"jwk": {"crv": "secp256k1"}},
        {"jwk": {"x": b64(bytes(32))}},
        {"jwk": {"x": b64(bytes(31))}},
        pytest.param({"jwk": {"x": KEY.jwk["x"] + "="}}, id="x with padding"),
        {"jwk": {"y": 5}},
        pytest.param({"jwk": DeviceKey().jwk}, id="another key"),
        {"claims": {"htm": "GET"}},
        {"claims": {"htm": "post"}},
        {"claims": {"htu": "https://other.example/session"}},
        {"claims": {"htu": "https://rp.example/other"}},
        {"claims": {"htu": "https://rp.example:8443/session"}},
        {"claims": {"htu": "http://rp.example/session"}},
        {"claims": {"htu": URL + "?q"}},
        {"claims": {"htu": URL + "#f"}},
        {"claims": {"htu": "https://user@rp.example/session"}},
        {"claims": {"htu": "https://rp.example:x/session"}},
        {"claims": {"htu": "https://[rp.example/session"}},
        {"claims": {"htu": ""}},
        {"claims": {"iat": "now"}},
        {"claims": {"iat": None}},
        {"claims": {"jti": "short"}},
        {"claims": {"jti": "x" * 129}},
        {"claims": {"jti": None}},
        {"claims": {"nonce": 1}},
        {"signature": bytes(64)},
        {"signature": bytes(63)},
        {"signature": b"\xff" * 64},
    ],
    ids=str,
)
def test_a_bad_proof_is_refused(faults: dict[str, Any]) -> None:
    with pytest.raises(ProofInvalid):
        verify(proof(**faults))


def test_a_proof_by_another_curve_is_refused() -> None:
    numbers = ec.generate_private_key(ec.SECP384R1()).public_key().public_numbers()
    key = {"crv": "P-384", "x": b64(numbers.x.to_bytes(48, "big")), "y": b64(numbers.y.to_bytes(48, "big"))}
    with pytest.raises(ProofInvalid):
        verify(proof(jwk=key))


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_every_part_of_a_proof_is_covered(segment: int) -> None:
    parts = proof().split(".")
    data = bytearray(unb64(parts[segment]))
    data[len(data) // 2] ^= 1
    parts[segment] = b64(bytes(data))
    with pytest.raises(ProofInvalid):
        verify(".".join(parts))


@pytest.mark.parametrize(
    "text", ["", ".", "..", "...", "a.b.c", "é.é.é", "e30.e30.e30", "e30.e30.AA", "[].[].[]"]
)
def test_what_is_no_jws_is_refused(text: str) -> None:
    with pytest.raises(ProofInvalid):
        verify(text)


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    "faults",
    [
        {"signature": bytes(64)},
        {"header": {"crit": ["exp"]}},
        {"header": {"typ": "JWT"}},
        {"header": {"alg": "none"}},
        {"jwk": {"d": b64(bytes(32))}},
    ],
    ids=str,
)
def test_a_key_that_is_known_vouches_for_nothing_but_itself(faults: dict[str, Any]) -> None:
    known = KnownKeys()
    assert isinstance(outcome(proof(), known, token=None, now=NOW), Proof)
    assert isinstance(outcome(proof(**faults), known, token=None, now=NOW), ProofInvalid)
    assert len(known) == 1


@pytest.mark.threat("T17")
def test_a_key_of_which_nothing_has_held_is_not_kept_and_of_the_others_the_last_used_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[str] = []
    key_of = proofs._key_of

    def counted(raw: bytes) -> Any:
        parsed.append(json.loads(raw)["jwk"]["x"])
        return key_of(raw)

    monkeypatch.setattr(proofs, "_key_of", counted)
    known = KnownKeys(most=2)
    first, second, third = keys = [DeviceKey() for _ in range(3)]
    forged = first.proof("POST", URL, NOW, None, ProofFaults(signature=bytes(64)))
    assert isinstance(outcome(forged, known, token=None, now=NOW), ProofInvalid)
    assert len(known) == 0
    for key in (first, second, first, third, first, second):
        verified = outcome(key.proof("POST", URL, NOW), known, token=None, now=NOW)
        assert isinstance(verified, Proof)
        assert verified.key_thumbprint == key.thumbprint
    assert len(known) == 2
    assert parsed == [each.jwk["x"] for each in (first, *keys, second)]


def test_a_long_proof_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProofInvalid, match="too long"):
        verify(proof(claims={"more": "x" * MAX_PROOF_CHARACTERS}))


def test_a_proof_and_its_token_go_together() -> None:
    assert verify(proof("a token"), token="a token")
    for other in (proof("another"), proof(), proof("a token", claims={"ath": ""})):
        with pytest.raises(ProofInvalid, match="another token"):
            verify(other, token="a token")


@pytest.mark.parametrize("seconds", [-CLOCK_TOLERANCE - 1, CLOCK_TOLERANCE + 1])
def test_a_wrong_clock_is_told_apart_and_told_the_time(seconds: int) -> None:
    with pytest.raises(ProofClock) as refusal:
        verify(proof(), now=NOW + seconds)
    assert refusal.value.members == {"now": int(NOW + seconds)}


@pytest.mark.parametrize("seconds", [-CLOCK_TOLERANCE, CLOCK_TOLERANCE])
def test_a_clock_may_be_a_little_wrong(seconds: int) -> None:
    verify(proof(), now=NOW + seconds)


def test_a_wrong_clock_does_not_hide_a_worse_fault() -> None:
    for text in (proof(claims={"htm": "GET", "iat": 0}), proof(signature=bytes(64), claims={"iat": 0})):
        with pytest.raises(ProofInvalid):
            verify(text)


# Replay


def _made(nonce: str | None, *, identifier: str = "a", key: str = "key") -> Proof:
    return Proof(key_thumbprint=key, id=identifier, nonce=nonce)


@pytest.fixture(params=["memory", "store", "shared file", "database"])
async def used(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[UsedProofs]:
    """Each memory of used proofs in turn."""
    if request.param == "memory":
        yield ProofsInMemory()
    elif request.param in ("store", "database"):
        async with engine("sqlite" if request.param == "store" else "postgresql", tmp_path).store() as store:
            yield store
    else:
        async with SharedProofs(tmp_path / "s") as shared:
            yield shared


async def newest(used: UsedProofs, now: float = NOW) -> str:
    """The nonce that is given to who has none."""
    with pytest.raises(UseDpopNonce) as refusal:
        await used.take_proof(_made(None), now=now)
    return refusal.value.nonce


@pytest.mark.threat("T13")
async def test_a_proof_is_taken_once_for_as_long_as_its_nonce_is(used: UsedProofs) -> None:
    nonce = await newest(used)
    assert await used.take_proof(_made(nonce), now=NOW) == nonce
    for later in (0, STEP_SECONDS, 2 * STEP_SECONDS - 1):
        with pytest.raises(ProofInvalid):
            await used.take_proof(_made(nonce), now=NOW + later)
    with pytest.raises(UseDpopNonce):
        await used.take_proof(_made(nonce), now=NOW + 2 * STEP_SECONDS)


@pytest.mark.threat("T13")
async def test_a_proof_of_another_key_or_id_is_another_proof(used: UsedProofs) -> None:
    nonce = await newest(used)
    for key, identifier in (("key", "a"), ("other", "a"), ("key", "b")):
        await used.take_proof(_made(nonce, key=key, identifier=identifier), now=NOW)


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    "nonce", [None, "", "x", "A" * 22, "\U0001f511"], ids=["none", "empty", "x", "A", "key"]
)
async def test_a_proof_without_a_nonce_of_ours_needs_one(used: UsedProofs, nonce: str | None) -> None:
    with pytest.raises(UseDpopNonce):
        await used.take_proof(_made(nonce), now=NOW)


@pytest.mark.threat("T13")
async def test_the_answer_to_a_proof_has_the_newest_nonce(used: UsedProofs) -> None:
    first = await newest(used)
    second = await used.take_proof(_made(first), now=NOW + STEP_SECONDS)
    assert second != first
    assert await used.take_proof(_made(second, identifier="b"), now=NOW + STEP_SECONDS) == second


@pytest.mark.threat("T13")
async def test_a_nonce_does_not_last_because_nobody_calls(used: UsedProofs) -> None:
    nonce = await newest(used)
    await used.take_proof(_made(nonce), now=NOW)
    with pytest.raises(UseDpopNonce):
        await used.take_proof(_made(nonce, identifier="b"), now=NOW + 3 * STEP_SECONDS)


@pytest.mark.threat("T13")
@pytest.mark.parametrize("jump", [-(10**9), -3600, -STEP_SECONDS, -1, STEP_SECONDS, 3600, 10**9], ids=str)
async def test_no_clock_that_jumps_makes_a_proof_good_again(used: UsedProofs, jump: int) -> None:
    nonce = await newest(used)
    await used.take_proof(_made(nonce), now=NOW)
    for now in (NOW + jump, NOW, NOW + jump, NOW):
        with pytest.raises((UseDpopNonce, ProofInvalid)):
            await used.take_proof(_made(nonce), now=now)
        other = _made(await newest(used, now), identifier=token_hex(8))
        await used.take_proof(other, now=now)  # and whoever asks for a nonce goes on


@pytest.mark.threat("T13")
async def test_no_proof_from_before_a_start_is_taken_whatever_its_clock_said() -> None:
    before, after = ProofsInMemory(), ProofsInMemory()
    nonce = before.nonce(now=NOW)
    await before.take_proof(_made(nonce), now=NOW)
    for identifier in ("a", "held back"):
        with pytest.raises(UseDpopNonce):
            await after.take_proof(_made(nonce, identifier=identifier), now=NOW + 30)


@dataclass
class SharedFile:
    path: Path

    def store(self) -> SharedProofs:
        return SharedProofs(self.path)


@pytest.mark.threat("T13")
@pytest.mark.parametrize("kind", [*ENGINES, "shared file"])
async def test_processes_that_share_a_store_take_a_proof_once_between_them(tmp_path: Path, kind: str) -> None:
    place = SharedFile(tmp_path / "s") if kind == "shared file" else engine(kind, tmp_path)
    async with place.store() as one, place.store() as two:
        nonce = await newest(one)
        assert await newest(two) == nonce
        both = (one.take_proof(_made(nonce), now=NOW), two.take_proof(_made(nonce), now=NOW))
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        assert sorted(map(str, outcomes)) == sorted([nonce, "the proof was used before"])
    async with place.store() as restarted:
        with pytest.raises(ProofInvalid):
            await restarted.take_proof(_made(nonce), now=NOW)
        await restarted.take_proof(_made(nonce, identifier="b"), now=NOW)


@pytest.mark.threat("T17")
@given(most=st.integers(1, 5), number=st.integers(1, 60))
async def test_nobody_is_refused_because_strangers_made_many_proofs_and_few_are_remembered(
    most: int, number: int
) -> None:
    memory = ProofsInMemory(most=most)
    for stranger in range(number):
        await memory.take_proof(_made(memory.nonce(now=NOW), identifier=str(stranger)), now=NOW)
    await memory.take_proof(_made(memory.nonce(now=NOW), identifier="ours"), now=NOW)
    assert sum(map(len, memory._used.values())) <= 2 * most


@pytest.mark.threat("T17")
def test_a_step_is_over_when_enough_proofs_were_taken_in_it() -> None:
    full = Step(number=7, began=NOW, used=10)
    assert full.at(NOW + 1, most=11) is full
    assert full.at(NOW + 1, most=10) == Step(number=8, began=NOW + 1)


@given(st.text())
def test_any_text_is_refused_politely(text: str) -> None:
    with pytest.raises(ProofInvalid):
        verify(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    header=st.dictionaries(st.sampled_from(["typ", "alg", "jwk", "kid", "crit", "x5c"]), _JSON),
    claims=st.dictionaries(st.sampled_from(["htm", "htu", "iat", "jti", "ath"]), _JSON),
)
def test_any_header_and_claims_are_taken_or_refused_politely(
    header: dict[str, Any], claims: dict[str, Any]
) -> None:
    with suppress(RequestRefused):
        verify(proof(header=json.loads(json.dumps(header)), claims=json.loads(json.dumps(claims))))
