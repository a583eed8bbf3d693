"""The CBOR door: vectors, properties, refusals."""

from collections import OrderedDict
from typing import Any

import pytest
from fido2 import cbor as fido2_cbor
from hypothesis import example, given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from tests.strategies import cbor_values
from tests.vectors_loader import Vector, name, vectors


def mutations() -> st.SearchStrategy[bytes]:
    """Good CBOR with a few bytes changed, which gets further into the decoder than noise."""

    def change(data: bytes, changes: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for at, byte in changes:
            changed[at % len(changed)] = byte
        return bytes(changed)

    changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3)
    return st.builds(change, cbor_values().map(cbor.encode), changes)


# RFC 8949, appendix A: those examples that are canonical in CTAP2's sense
RFC_8949 = {
    "00": 0,
    "17": 23,
    "1818": 24,
    "1903e8": 1000,
    "1a000f4240": 1_000_000,
    "1b000000e8d4a51000": 1_000_000_000_000,
    "1bffffffffffffffff": 18_446_744_073_709_551_615,
    "3bffffffffffffffff": -18_446_744_073_709_551_616,
    "20": -1,
    "3863": -100,
    "3903e7": -1000,
    "f4": False,
    "f5": True,
    "f6": None,
    "40": b"",
    "4401020304": b"\1\2\3\4",
    "60": "",
    "62c3bc": "ü",
    "64f0908591": "\U00010151",
    "80": [],
    "8301820203820405": [1, [2, 3], [4, 5]],
    "a0": {},
    "a201020304": {1: 2, 3: 4},
    "a26161016162820203": {"a": 1, "b": [2, 3]},
    "826161a161626163": ["a", {"b": "c"}],
}


@pytest.mark.parametrize("data", RFC_8949)
def test_the_examples_of_rfc_8949_decode_and_encode_back(data: str) -> None:
    value = RFC_8949[data]
    assert cbor.decode(bytes.fromhex(data)) == value
    assert type(cbor.decode(bytes.fromhex(data))) is type(value)
    assert cbor.encode(value).hex() == data


@pytest.mark.parametrize("case", [case for case in vectors("fido_urls") if case["valid"]], ids=name)
def test_maps_of_real_fido_urls_are_canonical(case: Vector) -> None:
    data = bytes.fromhex(case["cbor"])
    assert cbor.encode(cbor.decode_map(data)) == data


def test_map_keys_go_by_type_then_length_then_bytes() -> None:
    keys = ["aa", "z", b"b", -25, -1, 1000, 24, 3]
    encoded = cbor.encode(dict.fromkeys(keys, 0))
    assert list(cbor.decode_map(encoded)) == [3, 24, 1000, -1, -25, b"b", "z", "aa"]


def test_other_kinds_of_mapping_sequence_and_buffer_encode_alike() -> None:
    assert cbor.encode(OrderedDict({2: 0, 1: 0})) == cbor.encode({1: 0, 2: 0})
    assert cbor.encode((1, 2)) == cbor.encode([1, 2])
    assert cbor.encode(bytearray(b"ab")) == cbor.encode(memoryview(b"ab")) == cbor.encode(b"ab")


@given(cbor_values())
def test_what_was_encoded_decodes_to_the_same_value(value: Any) -> None:
    decoded = cbor.decode(cbor.encode(value))
    assert decoded == value
    assert repr(_ordered(decoded)) == repr(_ordered(value))  # True is not 1, "" is not b""


@given(cbor_values())
def test_the_first_value_and_the_rest_come_apart_again(value: Any) -> None:
    data = cbor.encode(value)
    decoded, rest = cbor.decode_first(data + b"rest")
    assert (decoded, rest) == (value, b"rest")


@given(cbor_values().filter(lambda value: not _holds_null(value)))
def test_fido2_says_the_same(value: Any) -> None:
    data = cbor.encode(value)
    assert fido2_cbor.encode(value) == data
    assert fido2_cbor.decode(data) == value


@pytest.mark.threat("T12")
@given(st.binary(max_size=64) | mutations())
@example(b"")
def test_any_bytes_are_a_canonical_value_or_refused(data: bytes) -> None:
    try:
        value = cbor.decode(data)
    except RemoteProtocolError:
        return
    assert cbor.encode(value) == data


REFUSED = {
    "nothing": "",
    "bytes behind the value": "0000",
    "a head cut short": "19ff",
    "a head without its argument": "18",
    "a string cut short": "4501",
    "a string longer than any memory": "5bffffffffffffffff",
    "an array cut short": "8201",
    "an array longer than any memory": "9bffffffffffffffff00",
    "a map cut short": "a101",
    "a map without its last value": "a2010203",
    "text that is not UTF-8": "61ff",
    "a surrogate in text": "63eda080",
    "an integer in a head too long (8 bits)": "1817",
    "an integer in a head too long (16 bits)": "190017",
    "an integer in a head too long (16 bits, 255)": "1900ff",
    "an integer in a head too long (32 bits)": "1a0000ffff",
    "an integer in a head too long (64 bits)": "1b00000000ffffffff",
    "a negative integer in a head too long": "3800",
    "a byte string in a head too long": "580100",
    "a text in a head too long": "780161",
    "an array in a head too long": "980100",
    "a map in a head too long": "b8010000",
    "an indefinite byte string": "5f4100ff",
    "an indefinite text": "7f6161ff",
    "an indefinite array": "9f00ff",
    "an indefinite map": "bf0000ff",
    "a break": "ff",
    "a reserved head (28)": "1c",
    "a reserved head (30)": "5e",
    "a tag": "c000",
    "a tag of a big number": "c2410a",
    "a tag that says it is CBOR": "d9d9f700",
    "undefined": "f7",
    "a simple value": "e0",
    "a simple value in two bytes": "f8ff",
    "false in two bytes": "f814",
    "half precision": "f93c00",
    "single precision": "fa47c35000",
    "double precision": "fb3ff199999999999a",
    "equal map keys": "a201000100",
    "equal map keys of text": "a2616100616100",
    "keys in descending order": "a202000100",
    "a longer key first": "a21818000100",
    "text before bytes": "a2616100416100",
    "negative before unsigned": "a220000000",
    "an array as key": "a18000",
    "a map as key": "a1a000",
    "null as key": "a1f600",
    "true as key": "a1f500",
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED)
def test_it_refuses(why: str) -> None:
    with pytest.raises(RemoteProtocolError):
        cbor.decode(bytes.fromhex(REFUSED[why]))


@pytest.mark.threat("T12")
@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x00", b"\xa1", b"\x82\x00"])
def test_it_refuses_depth(opening: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        cbor.decode(opening * 100_000)
    nested: Any = 0
    for _ in range(cbor.MAX_DEPTH):
        nested = [nested]
    assert cbor.decode(cbor.encode(nested)) == nested
    with pytest.raises(RemoteProtocolError, match="too deeply"):
        cbor.decode(b"\x81" + cbor.encode(nested))


class Counted(bytes):
    """Bytes that count how many of them were looked at."""

    looked_at = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.looked_at += len(found) if isinstance(found, bytes) else 1
        return found


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "data",
    [
        b"\x9a" + (1 << 16).to_bytes(4, "big") + bytes(1 << 16),
        b"\x9a" + (1 << 16).to_bytes(4, "big") + b"\x80" * (1 << 16),
        b"\x9a" + (1 << 16).to_bytes(4, "big") + b"\xa0" * (1 << 16),
        b"\x9a" + (1 << 16).to_bytes(4, "big") + b"\x41\0" * (1 << 16),
        cbor.encode(dict.fromkeys(range(1 << 14), 0)),
        cbor.encode(bytes(1 << 16)),
    ],
    ids=["integers", "empty arrays", "empty maps", "strings of one byte", "a map", "one string"],
)
def test_many_small_items_are_looked_at_once(data: bytes) -> None:
    counted = Counted(data)
    assert len(cbor.decode(counted)) >= 1 << 14
    assert counted.looked_at <= 4 * len(data)


@pytest.mark.parametrize("data", ["80", "00", "4100", "f6"])
def test_what_is_not_a_map_is_refused_where_a_map_belongs(data: str) -> None:
    with pytest.raises(RemoteProtocolError, match="expected a CBOR map"):
        cbor.decode_map(bytes.fromhex(data))


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        1 << 64,
        -(1 << 64) - 1,
        {1, 2},
        pytest.param(object(), id="object"),
        "\ud800",
        {1.5: 0},
        {None: 0},
        {True: 0},
        {(1,): 0},
    ],
    ids=repr,
)
def test_what_ctap2_cbor_cannot_say_is_a_local_error(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        cbor.encode(value)


def test_what_is_too_deep_to_be_read_is_not_written() -> None:
    nested: Any = 0
    for _ in range(cbor.MAX_DEPTH + 1):
        nested = [nested]
    with pytest.raises(LocalProtocolError):
        cbor.encode(nested)


def _holds_null(value: Any) -> bool:
    """fido2 reads null as False."""
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    return any(map(_holds_null, value)) if isinstance(value, list) else value is None


def _ordered(value: Any) -> Any:
    """Maps as sorted lists, so that equal values have equal reprs."""
    if isinstance(value, dict):
        return sorted(((repr(key), _ordered(item)) for key, item in value.items()), key=lambda pair: pair[0])
    return [_ordered(item) for item in value] if isinstance(value, list) else value
