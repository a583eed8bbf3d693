"""Text that is shown to people, and the one way to read what was signed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.trust.fields import Fields, is_plain, plain


@pytest.mark.parametrize(
    "text", ["frame", "Küche 2", "冷蔵庫", "مطبخ", "\N{WOMAN}\u200d\N{PERSONAL COMPUTER}", "a  b", "<b>"]
)
def test_what_people_call_things_is_plain(text: str) -> None:
    assert is_plain(text, 64)
    assert plain(text, 64) == " ".join(text.split())


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " frame",
        "frame ",
        "two\nlines",
        "tab\t",
        "\x1b[2J",
        "nul\0",
        "\x7f",
        "\x9b",
        "no-break\u00a0space",
        "soft\u00adhyphen",
        "line\u2028separator",
        "\u202egnp.exe",
        "\u2066isolate",
        "\u200bzero width",
        "\ufeffmark",
        "\u3164",
        "tag\U000e0041",
        "lone\udc80",
        "a" * 65,
    ],
)
def test_what_could_rewrite_or_hide_its_line_is_not(text: str) -> None:
    assert not is_plain(text, 64)


@given(st.text(st.characters(categories=["C", "Z", "L", "S"]), max_size=100), st.integers(1, 80))
def test_any_text_can_be_made_plain(text: str, longest: int) -> None:
    shown = plain(text, longest)
    assert shown is None or is_plain(shown, longest)


def test_a_long_text_is_cut_and_says_so() -> None:
    assert plain("a" * 65, 64) == "a" * 63 + "\N{HORIZONTAL ELLIPSIS}"
    assert plain("\n\t ", 64) is None
    assert plain("two\r\nlines", 64) == "two lines"


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
