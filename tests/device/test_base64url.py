"""base64url without padding: what encoding gives, and nothing else."""

import base64
import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text.base64url import base64url, from_base64url

ALPHABET = string.ascii_letters + string.digits + "-_"


def refused(text: str) -> bool:
    try:
        from_base64url(text)
    except RemoteProtocolError:
        return True
    return False


@given(st.binary(max_size=70))
def test_what_was_encoded_is_decoded(data: bytes) -> None:
    assert from_base64url(base64url(data)) == data


@pytest.mark.threat("T12")
@pytest.mark.parametrize("length", [2, 3])
def test_of_all_forms_of_the_same_bytes_one_is_taken(length: int) -> None:
    """Stray bits at the end would give one name many texts."""
    taken = [
        "".join(text) for text in itertools.product(ALPHABET, repeat=length) if not refused("".join(text))
    ]
    assert len(taken) == 256 ** (length - 1)
    assert {base64url(from_base64url(text)) for text in taken} == set(taken)


@pytest.mark.threat("T12")
@given(st.text(max_size=9))
def test_any_text_is_what_encoding_gives_or_refused(text: str) -> None:
    if refused(text):
        return
    assert base64.urlsafe_b64encode(from_base64url(text)).decode().rstrip("=") == text


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
    with pytest.raises(RemoteProtocolError, match="base64url"):
        from_base64url(text)


def test_nothing_is_nothing() -> None:
    assert from_base64url("") == b""
