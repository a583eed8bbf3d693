"""base64url without padding: what encoding gives, and nothing else."""

import base64
import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

import headless_passkey.text.base64url
from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from program_parts.base64url import base64url, from_base64url
from tests.vectors_loader import Vector, name, vectors

ALPHABET = string.ascii_letters + string.digits + "-_"


@given(st.binary(max_size=70))
def test_what_was_encoded_is_decoded(data: bytes) -> None:
    assert from_base64url(base64url(data)) == data


@pytest.mark.threat("T12")
@pytest.mark.parametrize("case", vectors("base64url"), ids=name)
def test_a_known_text_stands_for_its_bytes_or_for_none(case: Vector) -> None:
    assert from_base64url(case["text"]) == (None if case["bytes"] is None else bytes.fromhex(case["bytes"]))


@pytest.mark.threat("T12")
@pytest.mark.parametrize("length", [2, 3])
def test_of_all_forms_of_the_same_bytes_one_is_taken(length: int) -> None:
    """Stray bits at the end would give one name many texts."""
    texts = ("".join(text) for text in itertools.product(ALPHABET, repeat=length))
    taken = {text: data for text in texts if (data := from_base64url(text)) is not None}
    assert len(taken) == 256 ** (length - 1)
    assert set(map(base64url, taken.values())) == set(taken)


@pytest.mark.threat("T12")
@given(st.text(max_size=9) | st.text(alphabet="AZaz09-_=+/ \n\u00e9"))
def test_any_text_is_what_encoding_gives_or_refused(text: str) -> None:
    data = from_base64url(text)
    assert data is None or base64.urlsafe_b64encode(data).decode().rstrip("=") == text


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "text",
    ["A", "AAAAA", "AA==", "AA=", "A A", "AA\n", "AA+A", "AA/A", "Aé", "A\uff21", "AB", "AAB"],
    ids=[
        "one",
        "five",
        "padded",
        "half padded",
        "space",
        "newline",
        "plus",
        "slash",
        "accent",
        "wide letter",
        "stray bits",
        "stray bit",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    assert from_base64url(text) is None


def test_nothing_is_nothing() -> None:
    assert from_base64url("") == b""


@given(st.text(alphabet="AZaz09-_=+/ \n\u00e9"))
def test_what_a_peer_sends_instead_is_its_violation_of_the_protocol(text: str) -> None:
    data = from_base64url(text)
    if data is not None:
        assert headless_passkey.text.base64url.from_base64url(text) == data
        return
    with pytest.raises(RemoteProtocolError, match="base64url") as caught:
        headless_passkey.text.base64url.from_base64url(text)
    assert caught.value.reason is ProtocolReason.MALFORMED_BASE64URL
