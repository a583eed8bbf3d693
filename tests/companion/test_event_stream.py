"""The parser of Server-Sent Events: examples of the standard, any bytes, bounds."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_push.companion.event_stream import Event, EventParser
from headless_passkey.errors import ProtocolReason, RemoteProtocolError

LONGEST = 1000


def parsed(*chunks: bytes) -> list[tuple[str, str]]:
    parser = EventParser(longest=LONGEST)
    return [(event.name, event.data) for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("text", "events"),
    [  # WHATWG HTML §9.2.6
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10")]),
        (
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [("message", "first event"), ("message", "second event"), ("message", " third event")],
        ),
        ("data\n\ndata\ndata\n\ndata:", [("message", ""), ("message", "\n")]),
        ("data:test\n\ndata: test\n\n", [("message", "test"), ("message", "test")]),
        ("event: add\ndata: 73857293\n\n", [("add", "73857293")]),
        # and what it says without an example
        ("event: none\n\ndata: x\n\n", [("message", "x")]),
        ("data: without an end", []),
        ("data: a:b\nretry: 2000\nunknown: field\n\n", [("message", "a:b")]),
        ("data: 1\r\ndata: 2\r\r\ndata: 3\n\r\n", [("message", "1\n2"), ("message", "3")]),
        ("\ufeffdata: after a mark\n\n", [("message", "after a mark")]),
        ("data: x\n\n\ufeffdata: a mark in the middle\n\n", [("message", "x")]),
        ("event: a\nevent: b\ndata: the last one\n\n", [("b", "the last one")]),
    ],
)
def test_examples_are_parsed_as_the_standard_says(text: str, events: list[tuple[str, str]]) -> None:
    assert parsed(text.encode()) == events
    assert parsed(*(bytes([byte]) for byte in text.encode())) == events


@pytest.mark.parametrize(
    "chunks",
    [
        (b"data: 1\rdata: 2", b"\n\n"),
        (b"data: 1\rdata: 2\r", b"\n\n"),
        (b"data: 1\r", b"", b"\ndata: 2\r", b"\n", b"\n"),
        (b"data: 1\r", b"data: 2\r\r"),
        (b"data: 1\r\ndata: 2\n\r", b"\n"),
    ],
    ids=["in the middle", "at the end", "nothing between", "none", "of nothing"],
)
def test_a_line_feed_belongs_to_a_return_right_before_it_and_to_no_other(chunks: tuple[bytes, ...]) -> None:
    assert parsed(*chunks) == [("message", "1\n2")]


@given(st.text("d:\r\n", max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_lines_end_alike_however_they_come(text: str, cuts: list[int]) -> None:
    data = text.replace("d", "data").encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert parsed(*(data[start:end] for start, end in pairwise(places))) == parsed(data)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_give_the_same_however_they_come(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[start:end] for start, end in pairwise(places)]
    try:
        whole = parsed(data)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            parsed(*chunks)
    else:
        assert parsed(*chunks) == whole


@given(
    st.lists(
        st.tuples(st.sampled_from(["inbox", "end"]), st.text(st.characters(codec="utf-8")).map(repr)),
        max_size=5,
    )
)
def test_what_was_sent_comes_out(events: list[tuple[str, str]]) -> None:
    sent = "".join(f"event: {name}\ndata: {data}\n\n:\n\n" for name, data in events)
    parser = EventParser(longest=LONGEST * 100)
    assert parser.feed(sent.encode()) == [Event(name=name, data=data) for name, data in events]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "endless",
    [
        b"data: " + b"x" * LONGEST,
        b"x" * 2 * LONGEST,
        b": " + b"x" * LONGEST,
        b"data: x\n" * LONGEST,
        b"data\n:\n" * LONGEST,
    ],
    ids=["a line", "a field", "a comment", "lines", "comments in an event"],
)
def test_an_event_has_a_largest_size(endless: bytes) -> None:
    chunks = [endless[start : start + 100] for start in range(0, len(endless), 100)]
    with pytest.raises(RemoteProtocolError) as refused:
        parsed(*chunks)
    assert refused.value.reason is ProtocolReason.TOO_LONG


@pytest.mark.threat("T12")
def test_events_and_comments_without_end_are_kept_by_nobody() -> None:
    parser = EventParser(longest=LONGEST)
    for _ in range(10_000):
        assert parser.feed(b":\n\n: a comment\ndata: x\n\n:\n") == [Event(name="message", data="x")]
    assert len(parser._line) + len(parser._data) == 0


@pytest.mark.threat("T12")
@pytest.mark.parametrize("line", [b"data: \xff", b"event: \xc3", b"data: \xed\xa0\x80"], ids=ascii)
def test_a_stream_is_utf_8(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parsed(line + b"\n\n")
