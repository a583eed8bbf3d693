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
from companion_push.relay.proofs import SKEW, STEP, Proof, ProofsInMemory, check_proof, claimed_in
from headless_passkey.net.proof import make_proof
from headless_passkey.trust.signing import SoftwareSigningKey, thumbprint
from http_serving.proofs import KnownKeys
from program_parts.base64url import base64url
from tests.vectors_loader import Vector, name, vectors

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
    assert check(signed(header(), claims(ath="something", more="else"))).jti == JTI


@pytest.mark.parametrize("nonce", [None, "", "a", "\U0001f511" * 100], ids=["none", "empty", "short", "keys"])
def test_a_proof_says_its_nonce(nonce: str | None) -> None:
    assert check(signed(header(), claims(nonce=nonce))).nonce == nonce


@pytest.mark.parametrize("nonce", [1, [], {}, True], ids=str)
def test_a_nonce_is_text(nonce: object) -> None:
    assert refusal(signed(header(), claims(nonce=nonce))).slug is Slug.PROOF_INVALID


@pytest.mark.parametrize("off", [-SKEW, 0, SKEW])
def test_a_clock_may_differ_by_a_minute(off: int) -> None:
    assert check(signed(header(), claims(iat=NOW + off))).jti == JTI


@pytest.mark.threat("T13")
@pytest.mark.parametrize("off", [-SKEW - 1, SKEW + 1, -NOW])
def test_a_wrong_clock_is_told_the_time_when_nothing_else_is_wrong(off: int) -> None:
    problem = refusal(signed(header(), claims(iat=NOW + off)))
    assert problem.slug is Slug.PROOF_CLOCK
    assert problem.members == {"now": NOW}
    assert refusal(signed(header(), claims(iat=NOW + off, htm="PUT"))).slug is Slug.PROOF_INVALID


@pytest.mark.threat("T13")
@pytest.mark.parametrize("case", vectors("proofs"), ids=name)
def test_every_known_proof_is_taken_or_refused_as_at_the_relying_party(case: Vector) -> None:
    given = {"method": case["method"], "url": case["url"], "now": case["now"]}
    if case["result"] == "taken":
        assert len(check(case["proof"], **given).name) == 43
    else:
        assert refusal(case["proof"], **given).slug == case["result"]


@pytest.mark.threat("T13")
@pytest.mark.parametrize("count", [0, 2])
def test_there_is_one_proof(count: int) -> None:
    proofs = [signed(header(), claims(jti=f"{number}" * 22)) for number in range(count)]
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


# Before a signature is verified


def test_what_a_proof_shows_is_read_without_its_signature() -> None:
    proof = make_proof(KEY, method="GET", url=URL, now=NOW, nonce="a nonce")
    known = KnownKeys()
    check_proof([proof], method="GET", url=URL, now=NOW, known=known)
    for each in (proof, proof.rpartition(".")[0] + ".AAAA"):
        for keys in (None, KnownKeys(), known):
            shown = claimed_in([each], keys)
            assert shown is not None
            assert (shown.name, shown.nonce) == (check(proof).name, "a nonce")


def test_what_a_proof_shows_spares_no_check_of_it() -> None:
    proof = signed(header(), claims())
    forged = proof.rpartition(".")[0] + "." + "A" * 86
    known = KnownKeys()
    check_proof([proof], method="GET", url=URL, now=NOW, known=known)
    for keys in (KnownKeys(), known):
        shown = claimed_in([forged], keys)
        assert shown is not None
        with pytest.raises(Problem, match="signature"):
            check_proof([forged], method="GET", url=URL, now=NOW, known=keys, shown=shown)


@pytest.mark.threat("T12")
@given(
    st.lists(st.text(max_size=50), max_size=2)
    | st.lists(st.text(alphabet="AQezIi019_-", max_size=60), max_size=4).map(lambda parts: [".".join(parts)])
)
def test_what_is_no_proof_shows_nothing(headers: list[str]) -> None:
    assert claimed_in(headers) is None


@pytest.mark.threat("T12")
def test_a_long_proof_is_not_read() -> None:
    assert claimed_in([signed(header(), claims(more="x" * 5000))]) is None


# Replay


def made(nonce: str | None, *, jti: str = JTI, name: str = "anna") -> Proof:
    return Proof(name=name, jti=jti, nonce=nonce)


def refused(used: ProofsInMemory, proof: Proof, now: float) -> Slug:
    with pytest.raises(Problem) as problem:
        used.take(proof, now)
    return problem.value.slug


@pytest.mark.threat("T13")
def test_a_proof_with_the_newest_nonce_is_taken_once() -> None:
    used = ProofsInMemory()
    proof = made(used.nonce(NOW))
    used.take(proof, NOW)
    assert refused(used, proof, NOW) is Slug.PROOF_INVALID
    used.take(made(used.nonce(NOW), name="bert"), NOW)
    used.take(made(used.nonce(NOW), jti="B" * 22), NOW)


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    "nonce", [None, "", "x", "A" * 22, "\U0001f511"], ids=["none", "empty", "x", "A", "key"]
)
def test_a_proof_without_a_nonce_of_ours_needs_one(nonce: str | None) -> None:
    assert refused(ProofsInMemory(), made(nonce), NOW) is Slug.USE_DPOP_NONCE


@pytest.mark.threat("T13")
def test_no_proof_from_before_a_start_is_taken_whatever_its_clock_said() -> None:
    before = ProofsInMemory()
    nonce = before.nonce(NOW)
    before.take(made(nonce), NOW)
    after = ProofsInMemory()
    assert refused(after, made(nonce), NOW) is Slug.USE_DPOP_NONCE  # used before it ended
    assert refused(after, made(nonce, jti="B" * 22), NOW + 60) is Slug.USE_DPOP_NONCE  # held back


@pytest.mark.threat("T13")
def test_a_nonce_is_given_for_one_step_and_taken_for_one_more() -> None:
    used = ProofsInMemory()
    first = used.nonce(NOW)
    assert used.nonce(NOW + STEP - 1) == first
    assert used.nonce(NOW + STEP) != first
    used.take(made(first), NOW + 2 * STEP - 1)
    assert refused(used, made(first, jti="B" * 22), NOW + 2 * STEP) is Slug.USE_DPOP_NONCE


@pytest.mark.threat("T13")
def test_a_nonce_does_not_last_because_nobody_calls() -> None:
    used = ProofsInMemory()
    first = used.nonce(NOW)
    assert refused(used, made(first), NOW + 2 * STEP) is Slug.USE_DPOP_NONCE
    second = used.nonce(NOW + 2 * STEP)
    used.nonce(NOW + 4 * STEP - 1)  # in the last moment
    assert refused(used, made(second), NOW + 4 * STEP) is Slug.USE_DPOP_NONCE


@pytest.mark.threat("T13")
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from([-STEP * 10, -STEP, -1, 0, 1, STEP - 1, STEP, 2 * STEP, 10**9]), st.booleans()
        ),
        max_size=40,
    ),
    most=st.integers(1, 5),
)
def test_no_proof_is_taken_twice_however_the_clock_jumps(calls: list[tuple[int, bool]], most: int) -> None:
    used, now, taken = ProofsInMemory(most=most), float(NOW), list[Proof]()
    for number, (jump, again) in enumerate(calls):
        now += jump
        proof = made(used.nonce(now), jti=f"{number:022}")
        used.take(proof, now)  # one that was made with the newest nonce is taken at any time
        taken.append(proof)
        for old in taken if again else ():
            assert refused(used, old, now) in (Slug.PROOF_INVALID, Slug.USE_DPOP_NONCE)


@pytest.mark.threat("T17")
def test_nobody_is_refused_because_strangers_made_many_proofs_and_few_are_remembered() -> None:
    used = ProofsInMemory(most=10)
    for number in range(1000):
        used.take(made(used.nonce(NOW), jti=f"{number:022}"), NOW)
    used.take(made(used.nonce(NOW), name="bert"), NOW)
    assert len(used._now) + len(used._before) <= 21


def counting(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The keys that are parsed from now on."""
    parsed: list[object] = []
    real = ECKey.import_key

    def counted(value: Any) -> ECKey:
        parsed.append(value)
        return real(value)

    monkeypatch.setattr(ECKey, "import_key", counted)
    return parsed


def test_a_key_whose_signature_held_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, known = counting(monkeypatch), KnownKeys()
    names = {
        check_proof([signed(header(), claims())], method="GET", url=URL, now=NOW, known=known).name
        for _ in range(3)
    }
    assert names == {thumbprint(KEY.public_key)}
    assert (len(parsed), len(known)) == (1, 1)


@pytest.mark.parametrize("is_known", [False, True], ids=["new", "known"])
def test_a_signature_is_verified_whether_the_key_is_known_or_not(*, is_known: bool) -> None:
    known = KnownKeys()
    if is_known:
        check_proof([signed(header(), claims())], method="GET", url=URL, now=NOW, known=known)
    of_another = signed(header(), claims(), SoftwareSigningKey.generate())
    for proof in (of_another, of_another.rpartition(".")[0] + ".", of_another + "=", of_another[:-1]):
        with pytest.raises(Problem) as problem:
            check_proof([proof], method="GET", url=URL, now=NOW, known=known)
        assert problem.value.slug is Slug.PROOF_INVALID
    assert len(known) == is_known  # a key of which nothing has held is not kept


def test_what_a_header_says_beside_a_known_key_is_read_again() -> None:
    known = KnownKeys()
    check_proof([signed(header(), claims())], method="GET", url=URL, now=NOW, known=known)
    for changes in ({"crit": ["b64"]}, {"typ": "JWT"}, {"alg": "none"}):
        with pytest.raises(Problem) as problem:
            check_proof([signed(header(**changes), claims())], method="GET", url=URL, now=NOW, known=known)
        assert problem.value.slug is Slug.PROOF_INVALID


def test_of_the_known_keys_the_one_that_called_longest_ago_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed, known = counting(monkeypatch), KnownKeys(most=2)
    first, second, third = (SoftwareSigningKey.generate() for _ in range(3))
    for key in (first, second, first, third, first, second):
        proof = signed(header(jwk=jwk(key)), claims(), key)
        assert check_proof([proof], method="GET", url=URL, now=NOW, known=known).name == thumbprint(
            key.public_key
        )
    assert len(known) == 2
    assert parsed == [jwk(first), jwk(second), jwk(third), jwk(second)]
