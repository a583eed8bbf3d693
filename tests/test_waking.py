"""What a phone and its tunnel service say to each other about waking it."""

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_push.waking import (
    Forget,
    Forgotten,
    Register,
    Registered,
    Wake,
    contact_id,
    encode_waking,
    parse_from_phone,
    parse_from_service,
)
from headless_passkey.errors import RemoteProtocolError

SECRET = bytes(range(32))
WAKE = Wake(routing_id=b"\1\2\3", tunnel_id=bytes(16), client_payload=b"payload")


def test_a_contact_id_is_a_hash_of_its_secret() -> None:
    assert contact_id(SECRET).hex() == "955c1a41d373cf25ca057ffb754d19ca78641010a893c5fc96e785e2b4be867e"


def test_what_a_phone_says_is_read_as_it_was_said() -> None:
    for said in (Register(secrets=(SECRET, bytes(32))), Forget(secrets=(SECRET,))):
        assert parse_from_phone(encode_waking(said)) == said


def test_what_the_service_says_is_read_as_it_was_said() -> None:
    for said in (Registered(), Forgotten(), WAKE):
        assert parse_from_service(encode_waking(said)) == said


def test_a_member_that_is_not_known_yet_is_ignored() -> None:
    assert parse_from_service('{"type": "registered", "until": 5}') == Registered()


@pytest.mark.parametrize(
    "secrets",
    [[], [bytes(31)], [bytes(33)], [bytes(32)] * 65],
    ids=["none", "one too short", "one too long", "too many"],
)
def test_secrets_that_cannot_be_are_refused(secrets: list[bytes]) -> None:
    text = json.dumps({"type": "register", "secrets": [base64.b64encode(each).decode() for each in secrets]})
    with pytest.raises(RemoteProtocolError):
        parse_from_phone(text)


def test_a_message_that_is_too_long_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        parse_from_service('{"type": "registered"}' + " " * 8192)


@pytest.mark.parametrize("parse", [parse_from_phone, parse_from_service], ids=["phone", "service"])
@given(text=st.text())
def test_any_text_is_read_or_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse(text)


@pytest.mark.threat("T11")
def test_a_message_shows_nothing_of_itself_when_it_is_printed() -> None:
    assert repr(Register(secrets=(SECRET,))) == "<register>"
    assert repr(WAKE) == "<wake>"


@pytest.mark.threat("T11")
def test_a_refusal_does_not_quote_the_message() -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        parse_from_phone('{"type": "register", "secrets": "SESAME"}')
    assert "SESAME" not in str(refused.value)
    assert refused.value.__cause__ is None
