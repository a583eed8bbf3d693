"""base64url: strict in, plain out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relying_party.core.encoding import base64url, from_base64url
from tests.vectors_loader import Vector, name, vectors


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    assert from_base64url(base64url(data)) == data


@given(st.text(alphabet="AZaz09-_=+/ \n\u00e9"))
def test_text_has_one_reading_or_none(text: str) -> None:
    data = from_base64url(text)
    assert data is None or base64url(data) == text


@pytest.mark.threat("T12")
@pytest.mark.parametrize("case", vectors("base64url"), ids=name)
def test_a_known_text_stands_for_its_bytes_or_for_none_as_on_the_device(case: Vector) -> None:
    assert from_base64url(case["text"]) == (None if case["bytes"] is None else bytes.fromhex(case["bytes"]))
