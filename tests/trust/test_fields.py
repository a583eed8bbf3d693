"""The one way to read what was signed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.trust.fields import Fields, is_account, new_account
from tests.vectors_loader import Vector, name, vectors


@pytest.mark.threat("T12")
@given(st.binary(max_size=100))
def test_any_bytes_are_fields_or_refused_politely(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Fields.of(data, "a label", 2, limit=64)


@pytest.mark.threat("T12")
def test_the_label_the_count_and_the_bound_are_checked() -> None:
    data = cbor.encode(["label", 1, None])
    fields = Fields.of(data, "label", 2, limit=100)
    assert (fields.integer(0, 1), fields.optional(lambda: fields.integer(0, 1))) == (1, None)
    for label, count, limit in (("other", 2, 100), ("label", 1, 100), ("label", 3, 100), ("label", 2, 5)):
        with pytest.raises(RemoteProtocolError):
            Fields.of(data, label, count, limit=limit)


@pytest.mark.threat("T4")
@pytest.mark.parametrize("case", vectors("names"), ids=name)
def test_a_text_is_judged_as_it_stands(case: Vector) -> None:
    """What is signed is not normalised: which documents are valid depends on no version of Unicode."""
    fields = Fields([case["text"]], "a thing", 1)
    if case["valid"]:
        assert fields.text(64) == case["text"]
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            fields.text(64)
        assert str(caught.value).isascii()  # says what is wrong without the text itself


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="expected text, got bytes"):
        Fields([b"frame"], "a thing", 1).text(64)


def test_a_new_account_has_an_id_of_its_own() -> None:
    one, other = new_account(), new_account()
    assert one != other
    assert is_account(one)
    assert not is_account(one[:-1])
