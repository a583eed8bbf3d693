"""The FIDO URL: vectors, properties, refusals."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.fido_url import (
    MAX_LENGTH,
    FidoUrl,
    RequestKind,
    decode_digits,
    encode_digits,
)
from headless_passkey.hybrid.keys import compressed, generate
from tests.strategies import cbor_values, fido_urls
from tests.vectors_loader import Vector, name, vectors

SECRET = bytes(range(16))
KEY = compressed(generate().public_key())


def url_of(*, drop: tuple[int, ...] = (), **changes: Any) -> str:
    """A URL whose map has `changes`, such as ``key4=True``."""
    values: dict[Any, Any] = {0: KEY, 1: SECRET, 2: 2, 3: 1_800_000_000, 4: False, 5: "ga"}
    values |= {int(key.removeprefix("key")): value for key, value in changes.items()}
    return "FIDO:/" + encode_digits(
        cbor.encode({key: value for key, value in values.items() if key not in drop})
    )


@pytest.mark.parametrize("case", vectors("digits", op="digits"), ids=name)
def test_known_digits(case: Vector) -> None:
    assert encode_digits(bytes.fromhex(case["bytes"])) == case["digits"]
    assert decode_digits(case["digits"]).hex() == case["bytes"]


@pytest.mark.parametrize("case", vectors("digits", op="digits-invalid"), ids=name)
def test_known_bad_digits(case: Vector) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_digits(case["digits"])


@pytest.mark.parametrize("case", vectors("digits", op="digits-zero-lengths"), ids=name)
def test_zeros_stand_for_zero_bytes_at_the_known_lengths_only(case: Vector) -> None:
    accepted = []
    for length in range(20):
        with suppress(RemoteProtocolError):
            assert not any(decode_digits("0" * length))
            accepted.append(length)
    assert accepted == case["accepted"]


@pytest.mark.parametrize("case", [case for case in vectors("fido_urls") if case["valid"]], ids=name)
def test_a_known_url_is_read(case: Vector) -> None:
    assert decode_digits(case["url"].removeprefix("FIDO:/")).hex() == case["cbor"]
    url, expected = FidoUrl.parse(case["url"]), dict(case["expected"])
    for key in ("public_key", "secret", "tunnel_id"):
        if key in expected:
            assert getattr(url, key).hex() == expected.pop(key)
    for key, value in expected.items():
        found = getattr(url, key)
        assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize("case", [case for case in vectors("fido_urls") if not case["valid"]], ids=name)
def test_a_known_bad_url_is_refused(case: Vector) -> None:
    with pytest.raises(RemoteProtocolError):
        FidoUrl.parse(case["url"])


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_the_url_of_a_real_browser_is_read_and_written_back(case: Vector) -> None:
    url = FidoUrl.parse(case["fido_url"]["url"])
    assert url.encode() == case["fido_url"]["url"]
    assert url.tunnel_id.hex() == case["fido_url"]["tunnel_id"]
    assert url.hint.value == {"get": "ga", "create": "mc"}[case["page"]["kind"]]
    assert (url.assigned_domains, url.unknown_keys, url.channels) == (2, (), None)


def test_the_url_of_a_real_browser_is_written_back_byte_by_byte() -> None:
    (published,) = (case for case in vectors("fido_urls") if case["name"] == "chromium-145")
    assert FidoUrl.parse(published["url"]).encode() == published["url"]


@given(fido_urls())
def test_what_was_written_is_read_back(url: FidoUrl) -> None:
    text = url.encode()
    assert FidoUrl.parse(text) == url
    assert set(text.removeprefix("FIDO:/")) <= set("0123456789")
    assert text == text.upper()


@given(st.binary(max_size=60))
@example(b"")
@example(bytes(7))
def test_any_bytes_survive_the_digits(data: bytes) -> None:
    digits = encode_digits(data)
    assert decode_digits(digits) == data
    assert digits == "" or (digits.isascii() and digits.isdigit())


@pytest.mark.threat("T12")
@given(st.text(alphabet="0123456789", max_size=200))
def test_any_digits_are_one_spelling_of_some_bytes_or_refused(digits: str) -> None:
    with suppress(RemoteProtocolError):
        assert encode_digits(decode_digits(digits)) == digits
    with suppress(RemoteProtocolError):
        FidoUrl.parse("FIDO:/" + digits)


@pytest.mark.threat("T12")
@given(st.text(max_size=100) | st.text(max_size=100).map("FIDO:/".__add__))
@example("FIDO:/")
@example("")
def test_any_text_is_a_url_or_refused(text: str) -> None:
    with suppress(RemoteProtocolError):
        FidoUrl.parse(text)


@pytest.mark.threat("T12")
@given(cbor_values())
def test_any_cbor_is_a_url_or_refused(value: Any) -> None:
    with suppress(RemoteProtocolError):
        FidoUrl.parse("FIDO:/" + encode_digits(cbor.encode(value)))


@pytest.mark.threat("T12")
@given(st.dictionaries(st.integers(0, 7), cbor_values(), max_size=4))
def test_any_value_under_any_key_is_taken_or_refused(changes: dict[int, Any]) -> None:
    values = {0: KEY, 1: SECRET} | changes
    with suppress(RemoteProtocolError):
        url = FidoUrl.parse("FIDO:/" + encode_digits(cbor.encode(values)))
        assert FidoUrl.parse(url.encode()).hint == url.hint


@pytest.mark.parametrize("prefix", ["FIDO:/", "fido:/", "Fido:/", "fIdO:/"])
def test_the_prefix_is_read_in_any_case(prefix: str) -> None:
    assert FidoUrl.parse(prefix + url_of().removeprefix("FIDO:/")).secret == SECRET


@pytest.mark.parametrize(
    "prefix",
    ["", "FIDO:", "FIDO://", "FIDO/", " FIDO:/", "FIDO:/ ", "GIDO:/", "FID0:/", "F\u0131DO:/", "\ufb01do:/"],
)
@pytest.mark.threat("T1")
def test_other_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(RemoteProtocolError):
        FidoUrl.parse(prefix + url_of().removeprefix("FIDO:/"))


@pytest.mark.threat("T1")
@pytest.mark.parametrize("zero", ["\u0660", "\u0966", "\uff10", "\U0001d7ce", "\u00b2", "\u2460"])
def test_digits_of_other_scripts_are_refused(zero: str) -> None:
    url = url_of()
    for text in (url.replace("0", zero), url[:-1] + zero):
        with pytest.raises(RemoteProtocolError):
            FidoUrl.parse(text)


@pytest.mark.threat("T1")
@pytest.mark.parametrize("noise", [" ", "\n", "\r\n", "\t", "+", "-", "_", ".", "?x", "#", "/", "%30"])
def test_nothing_stands_between_or_behind_the_digits(noise: str) -> None:
    url = url_of()
    for text in (url + noise, url[:30] + noise + url[30:], url[:6] + noise + url[6:]):
        with pytest.raises(RemoteProtocolError):
            FidoUrl.parse(text)


@pytest.mark.threat("T12")
@pytest.mark.parametrize("length", [1, 2, 4, 6, 7, 9, 11, 12, 14, 16, 18])
def test_lengths_that_stand_for_no_number_of_bytes_are_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match="no whole number of bytes"):
        decode_digits("0" * length)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(("size", "digits"), [(1, 3), (2, 5), (3, 8), (4, 10), (5, 13), (6, 15), (7, 17)])
def test_a_number_that_exceeds_its_bytes_is_refused(size: int, digits: int) -> None:
    most = (1 << (8 * size)) - 1
    assert decode_digits(f"{most:0{digits}}") == b"\xff" * size
    with pytest.raises(RemoteProtocolError, match="exceed"):
        decode_digits(f"{most + 1:0{digits}}")


@pytest.mark.threat("T12")
def test_a_url_beyond_any_that_was_ever_sent_is_refused_unread() -> None:
    with pytest.raises(RemoteProtocolError, match="too long"):
        FidoUrl.parse("FIDO:/" + "0" * (MAX_LENGTH - 5))


def test_unknown_keys_are_ignored_and_named() -> None:
    """Chromium's sample code and an Android phone's vendor send such keys on purpose."""
    url = FidoUrl.parse(url_of(key65535=0, key7=[1, {2: b""}], key999=True))
    assert url.unknown_keys == (7, 999, 65535)
    assert url.secret == SECRET


def test_keys_that_are_no_numbers_are_unknown_too() -> None:
    values = {0: KEY, 1: SECRET, "0": 1, b"0": 2, -1: 3}
    assert FidoUrl.parse("FIDO:/" + encode_digits(cbor.encode(values))).unknown_keys == (-1, b"0", "0")


def test_what_is_absent_has_its_meaning() -> None:
    url = FidoUrl.parse(url_of(drop=(2, 3, 4, 5)))
    assert (url.assigned_domains, url.time, url.linking, url.hint, url.hint_raw, url.channels) == (
        0,
        None,
        None,
        RequestKind.GET_ASSERTION,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("raw", "resolved"),
    [("ga", "ga"), ("mc", "mc"), ("dcp", "dcp"), ("dci", "dci"), ("", "ga"), ("GA", "ga"), ("zz", "ga")],
)
def test_an_unknown_hint_means_ga(raw: str, resolved: str) -> None:
    url = FidoUrl.parse(url_of(key5=raw))
    assert (url.hint.value, url.hint_raw) == (resolved, raw)


@pytest.mark.parametrize(
    ("value", "channels"),
    [([0], (0,)), ([0, 1], (0, 1)), ([1], (1,)), ([], ()), ([7], (7,)), (True, None), (False, None)],
    ids=repr,
)
def test_key_6_is_a_list_of_channels_or_the_boolean_of_older_drafts(
    value: Any, channels: tuple[int, ...] | None
) -> None:
    assert FidoUrl.parse(url_of(key6=value)).channels == channels


REFUSED: dict[str, dict[str, Any]] = {
    "no public key": {"drop": (0,)},
    "a public key of text": {"key0": "x" * 33},
    "an uncompressed public key": {"key0": b"\4" + bytes(64)},
    "a public key off the curve": {"key0": b"\2" + b"\xff" * 32},
    "an empty public key": {"key0": b""},
    "no secret": {"drop": (1,)},
    "a secret of 15 bytes": {"key1": bytes(15)},
    "a secret of 17 bytes": {"key1": bytes(17)},
    "a secret of text": {"key1": "x" * 16},
    "domains of text": {"key2": "2"},
    "domains of true": {"key2": True},
    "negative domains": {"key2": -1},
    "no domains, said as null": {"key2": None},
    "a time of text": {"key3": "now"},
    "a negative time": {"key3": -1},
    "a time of true": {"key3": True},
    "linking of 0": {"key4": 0},
    "linking of null": {"key4": None},
    "a hint of bytes": {"key5": b"ga"},
    "a hint of 0": {"key5": 0},
    "channels of text": {"key6": "0"},
    "one bare channel": {"key6": 0},
    "a channel of true": {"key6": [True]},
    "a negative channel": {"key6": [-1]},
    "channels of null": {"key6": None},
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED)
def test_it_refuses(why: str) -> None:
    with pytest.raises(RemoteProtocolError):
        FidoUrl.parse(url_of(**REFUSED[why]))


@pytest.mark.threat("T11")
@given(fido_urls())
def test_neither_secret_nor_url_shows_in_a_repr(url: FidoUrl) -> None:
    shown = repr(url) + str(url)
    assert repr(url.secret) not in shown
    assert url.secret.hex() not in shown
    assert url.encode() not in shown


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "text", ["FIDO:/" + "1" * 40, url_of() + "9", url_of(key1=bytes(15)), url_of(key5=0)]
)
def test_a_refusal_does_not_quote_the_url(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        FidoUrl.parse(text)
    assert not any(text[start : start + 8] in str(refused.value) for start in range(6, len(text) - 8))
