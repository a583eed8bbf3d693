"""JSON of others: UTF-8 with or without a byte order mark, and nothing else."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from program_parts.json_text import decode_json, without_mark

MARK = b"\xef\xbb\xbf"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("data", [MARK + b'{"a": 1}', '\ufeff{"a": 1}', b'{"a": 1}', '{"a": 1}'])
def test_a_byte_order_mark_in_front_is_read_over(data: bytes | str) -> None:
    assert decode_json(data) == {"a": 1}


@given(values, st.booleans())
def test_any_value_comes_back(value: Any, marked: bool) -> None:  # noqa: FBT001
    text = json.dumps(value, ensure_ascii=False)
    with suppress(UnicodeEncodeError):  # half a surrogate pair
        assert decode_json((MARK if marked else b"") + text.encode()) == value
    assert decode_json(("\ufeff" if marked else "") + text) == value


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        MARK,
        MARK + MARK + b"{}",
        b"{} " + MARK,
        b"\xff\xfe{\x00}\x00",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32"),
        '{"a": 1}'.encode("utf-16-le"),
        b'{"\xff": 1}',
        b"NaN",
        b"[Infinity]",
        b'{"a": -Infinity}',
        b"{} {}",
        b"[" * 100_000,
        "",
        "\ufeff\ufeff{}",
    ],
    ids=lambda data: repr(data)[:30],
)
def test_anything_else_is_refused(data: bytes | str) -> None:
    with pytest.raises(ValueError):
        decode_json(data)


@pytest.mark.threat("T12")
@given(st.binary(max_size=200) | st.text(max_size=100))
def test_any_bytes_are_json_or_refused(data: bytes | str) -> None:
    with suppress(ValueError):
        decode_json(data)


@given(st.binary(max_size=20))
def test_one_mark_is_taken_off_and_nothing_else(data: bytes) -> None:
    assert without_mark(MARK + data) == data
    if not data.startswith(MARK):
        assert without_mark(data) == data
