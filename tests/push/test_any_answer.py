"""Whatever a vendor's service answers, or speaks instead of HTTP/2, is an outcome; nothing is raised, and no channel goes for it."""

import asyncio
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from companion_push.push import apns, fcm
from companion_push.push.channel import PushOutcome
from companion_push.push.http2 import Answer, Broken, Http2Connection, Unprocessed
from companion_push.serving.retry_after import LONGEST, retry_after

STATUSES = st.integers(0, 999)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=10)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["error", "details", "errorCode", "@type", "name", "reason", "timestamp"]),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=10,
    ).map(lambda value: repr(value).replace("'", '"').encode()),
)


@given(STATUSES, BODIES)
def test_any_answer_of_fcm_has_an_outcome(status: int, body: bytes) -> None:
    delivery = fcm.outcome(status, body, None)
    assert (delivery is None) <= (status == 401)
    if delivery is not None:
        assert delivery.outcome is not PushOutcome.GONE
        assert delivery.detail.isascii()


@given(STATUSES, BODIES)
def test_any_answer_of_apns_has_an_outcome(status: int, body: bytes) -> None:
    reason, timestamp = apns._reason(body)
    delivery = apns.outcome(status, reason, timestamp, None)
    assert (delivery.outcome is PushOutcome.GONE) <= (status in (400, 410))
    assert delivery.detail.isascii()


@given(st.text(max_size=40), st.floats(0, 4e9))
@example("Fri, 31 Dec 9999 23:59:59 -9999", 0.0)
@example("9" * 400, 0.0)
@example("0", 0.0)
@example("Thu, 01 Jan 0001 00:00:00 +2359", 0.0)
def test_any_retry_after_is_a_time_or_none(text: str, now: float) -> None:
    seconds = retry_after(text, now)
    assert seconds is None or 0 <= seconds <= LONGEST


def test_a_retry_after_is_seconds_or_a_date() -> None:
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    assert [retry_after(text, 784_111_770.0) for text in (None, "7", " 7 ", date, "7.5", "-7", "")] == [
        None, 7.0, 7.0, 7.0, None, None, None,
    ]  # fmt: skip


FRAMES = st.builds(
    lambda kind, flags, stream, payload: (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    ),
    st.integers(0, 10),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
    st.binary(max_size=40),
)
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class Wire(asyncio.Transport):
    """Takes what is written, and can be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0


@given(st.lists(st.one_of(FRAMES, st.binary(max_size=30)), max_size=8), st.booleans())
@example([b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x00" * 8], True)
@example([b"\x00\x00\x07\x07\x00\x00\x00\x00\x00" + b"\x00" * 7], True)
@example([b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"], True)
def test_whatever_a_server_sends_a_request_ends_when_the_connection_does(
    frames: list[bytes],
    settled: bool,  # noqa: FBT001
) -> None:
    async def scenario() -> None:
        connection = Http2Connection()
        wire = Wire()
        connection.connection_made(wire)
        if settled:
            connection.data_received(SETTINGS)
        headers = [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/")]
        asking = asyncio.create_task(connection.request(headers, b"{}", limit=100))
        await asyncio.sleep(0)
        for frame in frames:
            if not wire.closing:
                connection.data_received(frame)
            await asyncio.sleep(0)
        connection.connection_lost(None)
        try:
            answer = await asking
        except (Broken, Unprocessed):
            pass
        else:
            assert isinstance(answer, Answer)
        assert not connection.usable

    asyncio.run(scenario())
