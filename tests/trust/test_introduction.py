"""Introductions and numbers: vectors, properties, refusals."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.trust.introduction import (
    INTRODUCTION_LABEL,
    Introduction,
    Nonces,
    commit,
    digits_of,
)
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import Role
from tests.trust.people import ACCOUNT, NOW, companion, device, found

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "introduction.json").read_text())
PHONE, FRAME, TABLET = companion("phone"), device("frame"), companion("tablet")
RING = found(PHONE)
NONCE = bytes(range(32))
OTHER = bytes(range(32, 64))


def invite(kind: Role = Role.DEVICE) -> Invitation:
    return Invitation.make(
        relay_url="https://relay.example/push", ring=RING, kind=kind, inviter=PHONE.name, now=NOW
    )


def introduce(label: str = "frame") -> Introduction:
    return Introduction.make(invite(), key=FRAME.key, hpke_key=None, label=label, nonce=NONCE)


@pytest.mark.parametrize("case", VECTORS["introductions"], ids=lambda case: case["name"])
def test_a_known_introduction_says_what_it_said(case: dict[str, Any]) -> None:
    introduction = Introduction.parse(
        **{part: bytes.fromhex(case[part]) for part in ("body", "signature", "mac")}
    )
    assert (str(introduction.kind), introduction.label) == (case["kind"], case["label"])
    assert introduction.name == case["newcomer"]
    assert introduction.account == ACCOUNT
    assert introduction.commitment == commit(bytes.fromhex(case["newcomer_nonce"]))
    assert introduction.commitment.hex() == case["commitment"]


@pytest.mark.parametrize("case", VECTORS["introductions"], ids=lambda case: case["name"])
def test_a_known_introduction_with_known_nonces_has_the_known_number(case: dict[str, Any]) -> None:
    introduction = Introduction.parse(
        **{part: bytes.fromhex(case[part]) for part in ("body", "signature", "mac")}
    )
    newcomer, inviter = (bytes.fromhex(case[f"{side}_nonce"]) for side in ("newcomer", "inviter"))
    assert Nonces(newcomer=newcomer, inviter=inviter).number(introduction) == case["number"]
    # the same, by the page and not by the code
    hashed = hashlib.sha256(bytes.fromhex(case["body"])).digest()
    whole = hashlib.sha256(cbor.encode(["headless-passkey number v2", hashed, newcomer, inviter])).digest()
    assert int(case["number"].replace(" ", "")) == int.from_bytes(whole[:8], "big") % 1_000_000


@pytest.mark.threat("T2")
def test_the_number_depends_on_introduction_and_both_nonces() -> None:
    one, two = introduce(), introduce("another")
    numbers = {
        Nonces(newcomer=newcomer, inviter=inviter).number(introduction)
        for introduction in (one, two)
        for newcomer in (NONCE, OTHER)
        for inviter in (NONCE, OTHER)
    }
    assert len(numbers) == 8


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_number_is_six_digits_in_two_groups(newcomer: bytes, inviter: bytes) -> None:
    number = Nonces(newcomer=newcomer, inviter=inviter).number(INTRODUCTION)
    assert len(number) == 7
    assert digits_of(number) == number.replace(" ", "")


INTRODUCTION = introduce()


@pytest.mark.parametrize("typed", ["123456", "123 456", " 123456 ", "12 34 56"])
def test_a_number_may_be_typed_with_spaces(typed: str) -> None:
    assert digits_of(typed) == "123456"


@pytest.mark.parametrize(
    "slip",
    [
        "",
        "12345",
        "1234567",
        "12345a",
        "123-456",
        "\u0661\u0662\u0663\u0664\u0665\u0666",
        "\u00b9\u00b2\u00b3456",
    ],
    ids=["nothing", "five", "seven", "a letter", "a hyphen", "digits of another script", "superscripts"],
)
def test_what_is_not_six_digits_is_a_slip(slip: str) -> None:
    assert digits_of(slip) is None


def test_what_no_ring_could_hold_is_not_introduced() -> None:
    for kind, hpke_key, label in (
        (Role.COMPANION, None, "no HPKE key"),
        (Role.DEVICE, TABLET.hpke_key, "an HPKE key"),
        (Role.DEVICE, None, "two\nlines"),
    ):
        with pytest.raises(LocalProtocolError):
            Introduction.make(invite(kind), key=FRAME.key, hpke_key=hpke_key, label=label, nonce=NONCE)


FIELDS: list[object] = [
    INTRODUCTION_LABEL,
    "device",
    ACCOUNT,
    "https://relay.example/push",
    PHONE.name,
    FRAME.key.public_key,
    None,
    bytes(64),
    "frame",
    bytes(32),
]


def test_a_body_with_these_fields_is_an_introduction() -> None:
    body = cbor.encode(FIELDS)
    assert Introduction.parse(body=body, signature=bytes(64), mac=bytes(32)).label == "frame"


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "headless-passkey introduction v1"),
        (1, "owner"),
        (2, "alice"),
        (3, "http://relay.example"),
        (4, "phone"),
        (5, bytes(65)),
        (6, [1, TABLET.key.public_key]),
        (7, bytes(63)),
        (8, ""),
        (9, bytes(31)),
        (9, None),
    ],
    ids=range(11),
)
def test_a_field_out_of_shape_makes_it_no_introduction(place: int, value: object) -> None:
    fields = [*FIELDS]
    fields[place] = value
    with pytest.raises(RemoteProtocolError):
        Introduction.parse(body=cbor.encode(fields), signature=bytes(64), mac=bytes(32))


@pytest.mark.threat("T12")
@pytest.mark.parametrize(("signature", "mac"), [(63, 32), (64, 31), (0, 0)])
def test_a_signature_or_mac_of_another_size_makes_it_no_introduction(signature: int, mac: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Introduction.parse(body=cbor.encode(FIELDS), signature=bytes(signature), mac=bytes(mac))


@pytest.mark.threat("T12")
@given(st.binary(max_size=300))
def test_any_bytes_are_an_introduction_or_refused_politely(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Introduction.parse(body=body, signature=bytes(64), mac=bytes(32))
