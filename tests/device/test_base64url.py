"""base64url: known values, which the relying party's copy reads alike; any text; any bytes."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text.base64url import base64url, from_base64url, new_id
from tests.vectors_loader import Vector, name, vectors


@pytest.mark.threat("T12")
@pytest.mark.parametrize("case", vectors("base64url"), ids=name)
def test_a_known_text_stands_for_its_bytes_or_for_none(case: Vector) -> None:
    if case["bytes"] is None:
        with pytest.raises(RemoteProtocolError, match="base64url"):
            from_base64url(case["text"])
    else:
        assert from_base64url(case["text"]) == bytes.fromhex(case["bytes"])
        assert base64url(bytes.fromhex(case["bytes"])) == case["text"]


@given(st.binary(max_size=100))
def test_bytes_come_back(data: bytes) -> None:
    assert from_base64url(base64url(data)) == data


@pytest.mark.threat("T12")
@given(st.text(max_size=50) | st.text(alphabet="AZaz09-_=+/ \n\u00e9"))
def test_any_text_has_one_reading_or_none(text: str) -> None:
    with suppress(RemoteProtocolError):
        assert base64url(from_base64url(text)) == text


def test_a_new_id_does_not_begin_as_an_option_does() -> None:
    drawn = [bytes([first]) + bytes(15) for first in (0xFB, 0xF8, 0xFC)]
    assert base64url(new_id(lambda: drawn.pop(0))) == "_AAAAAAAAAAAAAAAAAAAAA"
    assert drawn == []
