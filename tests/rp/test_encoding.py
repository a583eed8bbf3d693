"""base64url: strict in, plain out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relying_party.core.encoding import base64url, from_base64url


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    assert from_base64url(base64url(data)) == data


@given(st.text(alphabet="AZaz09-_=+/ \n\u00e9"))
def test_text_has_one_reading_or_none(text: str) -> None:
    data = from_base64url(text)
    assert data is None or base64url(data) == text


@pytest.mark.parametrize("text", ["A", "AA=", "AA==", "AB", "AA\n", " AA", "A+", "A/", "A\u0391"])
def test_what_no_encoder_writes_is_refused(text: str) -> None:
    assert from_base64url(text) is None
