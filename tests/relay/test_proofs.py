"""Request proofs: what holds, and every way in which one does not."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey

from companion_push.relay.problems import Problem, Slug
from companion_push.relay.proofs import SKEW, Proof, check_proof
from headless_passkey.net.proof import make_proof
from headless_passkey.trust.signing import SoftwareSigningKey, base64url, thumbprint

NOW = 1_800_000_000
URL = "https://relay.example/v1/inbox"
KEY = SoftwareSigningKey.generate()
JTI = "A" * 22


def jwk(key: SoftwareSigningKey = KEY) -> dict[str, Any]:
    x, y = key.public_key[1:33], key.public_key[33:]
    return {"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)}


def header(**changes: object) -> dict[str, object]:
    return without_none({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk()} | changes)


def claims(**changes: object) -> dict[str, object]:
    return without_none({"htm": "GET", "htu": URL, "iat": NOW, "jti": JTI} | changes)


def without_none(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}


def signed(head: Mapping[str, object], body: Mapping[str, object], key: SoftwareSigningKey = KEY) -> str:
    signing_input = f"{segment(head)}.{segment(body)}"
    return f"{signing_input}.{base64url(key.sign(signing_input.encode()))}"


def segment(value: object) -> str:
    return base64url(json.dumps(value).encode())


def check(*proofs: str, method: str = "GET", url: str = URL, now: float = NOW) -> Proof:
    return check_proof(list(proofs), method=method, url=url, now=now)


def refusal(*proofs: str, method: str = "GET", url: str = URL, now: float = NOW) -> Problem:
    with pytest.raises(Problem) as problem:
        check(*proofs, method=method, url=url, now=now)
    return problem.value


def test_a_proof_of_our_clients_names_its_key() -> None:
    proof = make_proof(KEY, method="PUT", url=URL + "?wait=25", now=NOW)
    assert check(proof, method="PUT").name == thumbprint(KEY.public_key)


def test_a_proof_made_by_another_jose_library_holds() -> None:
    key = ECKey.generate_key("P-256")
    proof = jws.serialize_compact(
        {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.as_dict(private=False)},
        json.dumps(claims()).encode(),
        key,
    )
    assert check(proof).name == key.thumbprint()


def test_claims_we_do_not_know_are_ignored() -> None:
    assert check(signed(header(), claims(ath="something", nonce="else"))).jti == JTI


@pytest.mark.parametrize(
    ("htu", "url"),
    [
        ("https://RELAY.example/v1/inbox", URL),
        ("HTTPS://relay.example:443/v1/inbox", URL),
        (URL, "https://relay.example:443/v1/inbox"),
        ("http://127.0.0.1:80/v1/inbox", "http://127.0.0.1/v1/inbox"),
        ("https://[::1]:8470/v1/inbox", "https://[::1]:8470/v1/inbox"),
    ],
)
def test_case_of_the_host_and_the_default_port_do_not_matter(htu: str, url: str) -> None:
    assert check(signed(header(), claims(htu=htu)), url=url).jti == JTI


@pytest.mark.parametrize("off", [-SKEW, 0, SKEW])
def test_a_clock_may_differ_by_a_minute(off: int) -> None:
    assert check(signed(header(), claims(iat=NOW + off))).until == NOW + off + SKEW + 1


@pytest.mark.threat("T13")
@pytest.mark.parametrize("off", [-SKEW - 1, SKEW + 1, -NOW])
def test_a_wrong_clock_is_told_the_time_when_nothing_else_is_wrong(off: int) -> None:
    problem = refusal(signed(header(), claims(iat=NOW + off)))
    assert problem.slug is Slug.PROOF_CLOCK
    assert problem.members == {"now": NOW}
    assert refusal(signed(header(), claims(iat=NOW + off, htm="PUT"))).slug is Slug.PROOF_INVALID


PRIVATE = jwk() | {"d": base64url(KEY.to_bytes())}
OTHER = SoftwareSigningKey.generate()
OFF_CURVE = jwk() | {"y": base64url(bytes(31) + b"\x01")}
SHORT = jwk() | {"x": base64url(bytes(31))}

REFUSED = {
    "none at all": (),
    "two proofs": (signed(header(), claims()), signed(header(), claims(jti="B" * 22))),
    "empty": ("",),
    "two parts": ("a.b",),
    "four parts": (signed(header(), claims()) + ".",),
    "not base64url": (signed(header(), claims()) + "=",),
    "not JSON": (f"{base64url(b'x')}.{base64url(b'y')}.{base64url(bytes(64))}",),
    "deep JSON": (f"{base64url(b'[' * 700)}.{segment({})}.{base64url(bytes(64))}",),
    "not ASCII": ("é.é.é",),
    "too long": (signed(header(), claims(padding="x" * 2000)),),
    "type of another kind": (signed(header(typ="JWT"), claims()),),
    "no type": (signed(header(typ=None), claims()),),
    "another algorithm": (signed(header(alg="RS256"), claims()),),
    "no algorithm": (signed(header(alg="none"), claims()),),
    "critical extension": (signed(header(crit=["exp"]), claims()),),
    "a private key": (signed(header(jwk=PRIVATE), claims()),),
    "another curve": (signed(header(jwk=jwk() | {"crv": "P-384"}), claims()),),
    "a symmetric key": (signed(header(jwk={"kty": "oct", "k": "AAAA"}), claims()),),
    "a point off the curve": (signed(header(jwk=OFF_CURVE), claims()),),
    "the point (0, 0)": (
        signed(header(jwk=jwk() | {"x": base64url(bytes(32)), "y": base64url(bytes(32))}), claims()),
    ),
    "a short coordinate": (signed(header(jwk=SHORT), claims()),),
    "no key": (signed(header(jwk=None), claims()),),
    "signed by another key": (signed(header(), claims(), key=OTHER),),
    "no signature": (signed(header(), claims()).rpartition(".")[0] + ".",),
    "zeros for a signature": (signed(header(), claims()).rpartition(".")[0] + "." + base64url(bytes(64)),),
    "another method": (signed(header(), claims(htm="POST")),),
    "a method in lower case": (signed(header(), claims(htm="get")),),
    "another path": (signed(header(), claims(htu="https://relay.example/v1/ring")),),
    "another host": (signed(header(), claims(htu="https://relay.example.evil/v1/inbox")),),
    "another port": (signed(header(), claims(htu="https://relay.example:444/v1/inbox")),),
    "another scheme": (signed(header(), claims(htu="http://relay.example/v1/inbox")),),
    "a query": (signed(header(), claims(htu=URL + "?wait=1")),),
    "a user": (signed(header(), claims(htu="https://relay.example@evil/v1/inbox")),),
    "no URL": (signed(header(), claims(htu="https://[relay/v1/inbox")),),
    "an impossible port": (signed(header(), claims(htu="https://relay.example:x/v1/inbox")),),
    "a short id": (signed(header(), claims(jti="A" * 21)),),
    "a long id": (signed(header(), claims(jti="A" * 129)),),
    "an id of other characters": (signed(header(), claims(jti="A" * 21 + "\n")),),
    "no id": (signed(header(), claims(jti=None)),),
    "time as text": (signed(header(), claims(iat=str(NOW))),),
    "time beyond any clock": (signed(header(), claims(iat=1 << 80)),),
    "no time": (signed(header(), claims(iat=None)),),
}


@pytest.mark.threat("T13")
@pytest.mark.parametrize("proofs", REFUSED.values(), ids=REFUSED.keys())
def test_a_proof_that_does_not_hold_is_refused(proofs: tuple[str, ...]) -> None:
    assert refusal(*proofs).slug is Slug.PROOF_INVALID


@pytest.mark.threat("T12")
@given(
    st.text(max_size=300) | st.lists(st.text(alphabet="AQezIi019_-", max_size=60), max_size=4).map(".".join)
)
def test_any_header_holds_or_is_refused(text: str) -> None:
    assert refusal(text).slug is Slug.PROOF_INVALID


@pytest.mark.threat("T12")
@given(position=st.integers(0, 10_000), bit=st.integers(0, 5))
def test_a_proof_with_one_character_changed_is_refused(position: int, bit: int) -> None:
    proof = make_proof(KEY, method="GET", url=URL, now=NOW)
    position %= len(proof)
    changed = chr(ord(proof[position]) ^ (1 << bit))
    assert refusal(proof[:position] + changed + proof[position + 1 :]).slug is Slug.PROOF_INVALID


def test_the_id_stays_out_of_repr() -> None:
    assert JTI not in repr(check(signed(header(), claims())))
