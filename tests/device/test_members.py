"""The members of a JSON object: each is what was asked for, or an error of the branch of whose object it is."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text.members import Members, answer_members, file_members

Read = Callable[[Any, str], Members]
BOTH = pytest.mark.parametrize(
    ("read", "error"),
    [(answer_members, RemoteProtocolError), (file_members, ValueError)],
    ids=["an answer", "a file"],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


@BOTH
@given(value=JSON)
@pytest.mark.threat("T12")
def test_any_member_is_what_was_asked_for_or_refused_politely(
    read: Read, error: type[Exception], value: Any
) -> None:
    members = read({"x": value}, "test")
    readers: tuple[tuple[Callable[[str], object], type | tuple[type, ...]], ...] = (
        (members.text, str),
        (members.integer, int),
        (lambda name: members.octets(name, 0, 100), bytes),
        (members.word, str),
        (members.optional_word, (str, type(None))),
        (members.items, list),
        (members.objects, list),
        (members.object, Members),
        (members.optional_text, (str, type(None))),
        (lambda name: members.optional_octets(name, 1, 9), (bytes, type(None))),
    )
    for ask, kind in readers:
        with contextlib.suppress(error):
            assert isinstance(ask("x"), kind)
        with contextlib.suppress(error):
            assert ask("absent") is None


@BOTH
@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "value",
    [
        "",
        "x" * 65,
        "Stale",
        "a b",
        "a\n",
        "\x1b[2J",
        "a\u202eb",
        "\uff41",
        "\u0661",
        5,
        None,
        ["a"],
        {"a": 1},
    ],
    ids=ascii,
)
def test_a_word_is_a_word_and_nothing_else(read: Read, error: type[Exception], value: Any) -> None:
    with pytest.raises(error, match=r"^test: x: expected a word of at most 64 of \[a-z0-9-\]$"):
        read({"x": value}, "test").word("x")
    assert read({"x": "stale-ring2"}, "test").word("x") == "stale-ring2"


@BOTH
def test_members_have_bounds(read: Read, error: type[Exception]) -> None:
    members = read(
        json.loads('{"t": "abc", "n": 5, "b": "AAAA", "l": [1, 2], "yes": true, "s": "A"}'), "test"
    )
    assert members.text("t") == "abc"
    assert members.octets("b", 3) == bytes(3)
    for wrong in (
        lambda: members.text("t", 2),
        lambda: members.integer("n", 4),
        lambda: members.integer("yes"),
        lambda: members.octets("b", 4),
        lambda: members.octets("s", 0, 9),
        lambda: members.items("l", 1),
    ):
        with pytest.raises(error, match=r"^test: [tnbls]|^test: yes"):
            wrong()


@BOTH
@pytest.mark.threat("T12")
@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00"])
def test_text_is_what_any_encoding_can_write(read: Read, error: type[Exception], half: str) -> None:
    """JSON can write half of a surrogate pair, at which whoever encodes it would fail later."""
    members = read(json.loads(f'{{"t": "a {half} b", "whole": "\\ud83d\\ude00"}}'), "test")
    assert members.text("whole") == "\N{GRINNING FACE}"
    for ask in (members.text, members.optional_text, members.word):
        with pytest.raises(error, match=r"^test: t: "):
            ask("t")


@BOTH
@pytest.mark.parametrize("value", [None, [], "text", 5], ids=["null", "list", "text", "number"])
def test_what_is_no_object_has_no_members(read: Read, error: type[Exception], value: Any) -> None:
    with pytest.raises(error, match=r"^test: expected a JSON object$"):
        read(value, "test")


@BOTH
def test_an_object_inside_is_named_and_judged_like_the_one_around_it(
    read: Read, error: type[Exception]
) -> None:
    members = read({"inner": {"n": "x"}, "list": [{"n": 1}, {"n": -1}]}, "test")
    with pytest.raises(error, match=r"^test: inner: n: expected a whole number"):
        members.object("inner").integer("n")
    first, second = members.objects("list")
    assert first.integer("n") == 1
    with pytest.raises(error, match=r"^test: list: n: expected a whole number"):
        second.integer("n")


@BOTH
def test_what_is_said_of_a_member_never_holds_it(read: Read, error: type[Exception]) -> None:
    members = read({"key": "c2VjcmV0 c2VjcmV0"}, "test")
    with pytest.raises(error) as refused:
        members.octets("key", 12)
    assert str(refused.value) == "test: key: expected 12 bytes in base64url"
