"""FCM HTTP v1: what is sent, what each answer means, and what is done about it. The real service is not reached here."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate

from companion_push.push.channel import Apns, Fcm, Kind, Purpose, Push, PushOutcome
from companion_push.push.fcm import FcmChannel
from companion_push.push.service_account import ServiceAccount
from headless_passkey.errors import LocalProtocolError, SetupError, SetupReason, TransportError, UsageError
from tests.loop_clock import LoopClock
from tests.open_things import Interruption, cancel_everywhere, interrupted
from tests.push.google import Clock, Google, answers, fails, failure, write_account

PHONE = "dGVzdC1pbnN0YW5jZQ:APA91b" + "x" * 134
ADDRESS = Fcm(app="example", token=PHONE)
HANDLE = "AAECAwQFBgcICQoLDA0ODw"
REQUEST = "_____________________w"


def push(clock: Clock, *, purpose: Purpose = Purpose.REQUEST, seconds: float = 300.0) -> Push:
    return Push(
        purpose=purpose,
        handle=HANDLE,
        account=b"an account's key",
        expires_at=clock.now + seconds,
        request_id=REQUEST if purpose in (Purpose.REQUEST, Purpose.DISMISS) else None,
    )


@pytest.fixture(autouse=True)
def phone(request: pytest.FixtureRequest) -> None:
    if "google" in request.fixturenames:
        request.getfixturevalue("google").phones.add(PHONE)


# What is sent


async def test_a_push_is_a_data_message_of_high_priority_that_ends_with_its_request(
    google: Google, fcm: FcmChannel, clock: Clock
) -> None:
    assert (await fcm.send(ADDRESS, push(clock))).outcome is PushOutcome.SENT
    (message,) = google.messages
    assert message.body == {
        "message": {
            "token": PHONE,
            "data": {"v": "1", "purpose": "request", "handle": HANDLE, "request": REQUEST},
            "android": {"priority": "HIGH", "ttl": "300s", "collapse_key": "headless-passkey"},
        }
    }


@pytest.mark.parametrize(
    ("purpose", "key"),
    [
        ("request", "headless-passkey"),
        ("dismiss", "headless-passkey"),
        ("ring", "headless-passkey-account"),
        ("removed", "headless-passkey-account"),
        ("reset", "headless-passkey-account"),
        ("word", "headless-passkey-account"),
        ("test", "headless-passkey-account"),
    ],
)
async def test_a_newer_push_takes_the_place_of_one_of_its_kind(
    google: Google, fcm: FcmChannel, clock: Clock, purpose: str, key: str
) -> None:
    assert (await fcm.send(ADDRESS, push(clock, purpose=Purpose(purpose)))).outcome is PushOutcome.SENT
    message = google.messages[0].body["message"]
    assert message["android"]["collapse_key"] == key
    assert message["data"]["purpose"] == purpose


@pytest.mark.threat("T2")
async def test_what_google_gets_names_no_account(google: Google, fcm: FcmChannel, clock: Clock) -> None:
    await fcm.send(ADDRESS, push(clock))
    assert "account" not in json.dumps(google.messages[0].body)


@pytest.mark.parametrize(
    ("seconds", "ttl"),
    [(1.0, "1s"), (59.99, "59s"), (119.0, "119s"), (40 * 86_400.0, "2419200s")],
    ids=["one second", "a part of one", "two minutes", "longer than FCM keeps"],
)
async def test_the_ttl_is_what_is_left_in_whole_seconds(
    google: Google, fcm: FcmChannel, clock: Clock, seconds: float, ttl: str
) -> None:
    clock.now = 1_000_000.0  # which floats add exactly
    await fcm.send(ADDRESS, push(clock, seconds=seconds))
    assert google.messages[0].body["message"]["android"]["ttl"] == ttl


@pytest.mark.parametrize("seconds", [0.9, 0.0, -1.0, -1000.0])
async def test_a_push_whose_time_is_over_is_not_sent(
    google: Google, fcm: FcmChannel, clock: Clock, seconds: float
) -> None:
    assert (await fcm.send(ADDRESS, push(clock, seconds=seconds))).outcome is PushOutcome.LATE
    assert (google.messages, google.token_requests) == ([], 0)


async def test_pushes_share_the_access_token(google: Google, fcm: FcmChannel, clock: Clock) -> None:
    sent = await asyncio.gather(*(fcm.send(ADDRESS, push(clock)) for _ in range(8)))
    assert {each.outcome for each in sent} == {PushOutcome.SENT}
    assert google.token_requests == 1
    assert len({message.token for message in google.messages}) == 1


async def test_each_app_is_pushed_to_in_the_project_of_its_account(
    google: Google, loopback_certificate: Certificate, clock: Clock, tmp_path: Path
) -> None:
    other = {**google.account(), "project_id": "another-project"}
    channel = FcmChannel(
        {
            "one": ServiceAccount.load(write_account(tmp_path / "1", google.account())),
            "two": ServiceAccount.load(write_account(tmp_path / "2", google.account())),
            "three": ServiceAccount.load(write_account(tmp_path / "3", other)),
        },
        url=google.url,
        tls=loopback_certificate.client_context(),
        clock=clock.unix,
        ticks=clock.steady,
    )
    try:
        assert channel.offer == {"apps": ["one", "three", "two"]}
        for app, outcome in (("one", "sent"), ("two", "sent"), ("three", "refused")):
            assert (await channel.send(Fcm(app=app, token=PHONE), push(clock))).outcome == outcome
        assert google.token_requests == 2  # two apps of one account share one
    finally:
        await channel.close()


def test_it_says_what_it_is_and_what_to_register_with(fcm: FcmChannel) -> None:
    assert fcm.kind is Kind.FCM
    assert fcm.offer == {"apps": ["example"]}


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (Fcm(app="other", token=PHONE), "this relay pushes to no such app"),
        (Fcm(app="example", token=""), "a registration token has at most 4096 printable characters"),
        (Fcm(app="example", token="a b"), "a registration token has at most 4096 printable characters"),
        (Fcm(app="example", token="é"), "a registration token has at most 4096 printable characters"),
        (Fcm(app="example", token="a" * 4097), "a registration token has at most 4096 printable characters"),
    ],
    ids=["app", "empty", "space", "not ASCII", "long"],
)
async def test_an_address_that_cannot_be_is_refused_without_a_request(
    google: Google, fcm: FcmChannel, clock: Clock, address: Fcm, why: str
) -> None:
    assert fcm.refusal(address) == why
    delivery = await fcm.send(address, push(clock))
    assert (delivery.outcome, delivery.detail) == (PushOutcome.REFUSED, why)
    assert google.messages == []


def test_an_address_that_can_be_is_not_refused(fcm: FcmChannel) -> None:
    assert fcm.refusal(ADDRESS) is None


async def test_an_address_of_another_service_is_a_bug_of_the_caller(fcm: FcmChannel, clock: Clock) -> None:
    with pytest.raises(LocalProtocolError):
        await fcm.send(Apns(topic="example", token="00"), push(clock))


@pytest.mark.parametrize("app", ["", "a b", "-a", "a/b", "a" * 129])
def test_an_app_has_a_name_that_can_be_typed(app: str) -> None:
    with pytest.raises(UsageError):
        FcmChannel({app: None})  # type: ignore[dict-item]


# What is answered

ANSWERS: dict[str, tuple[int, str, str | None, dict[str, str] | None, PushOutcome, float | None, str]] = {
    "unregistered": (404, "NOT_FOUND", "UNREGISTERED", None, PushOutcome.STALE, None, "404 UNREGISTERED"),
    "a bare 404": (404, "NOT_FOUND", None, None, PushOutcome.REFUSED, None, "404 NOT_FOUND"),
    "a bad argument": (
        400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", None, PushOutcome.REFUSED, None, "400 INVALID_ARGUMENT",
    ),
    "a bare 400": (400, "INVALID_ARGUMENT", None, None, PushOutcome.REFUSED, None, "400 INVALID_ARGUMENT"),
    "unregistered of another status": (
        400, "INVALID_ARGUMENT", "UNREGISTERED", None, PushOutcome.REFUSED, None, "400 UNREGISTERED",
    ),
    "another sender": (
        403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", None, PushOutcome.REFUSED, None, "403 SENDER_ID_MISMATCH",
    ),
    "no permission": (403, "PERMISSION_DENIED", None, None, PushOutcome.REFUSED, None, "403 PERMISSION_DENIED"),
    "Apple's credentials": (
        401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", None, PushOutcome.REFUSED, None, "401 THIRD_PARTY_AUTH_ERROR",
    ),
    "quota": (
        429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", {"Retry-After": "17"}, PushOutcome.BUSY, 17.0, "429 QUOTA_EXCEEDED",
    ),
    "quota without a time": (
        429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", None, PushOutcome.BUSY, 60.0, "429 QUOTA_EXCEEDED",
    ),
    "a bare 429": (429, "RESOURCE_EXHAUSTED", None, None, PushOutcome.BUSY, 60.0, "429 RESOURCE_EXHAUSTED"),
    "quota until a date": (
        429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", {"Retry-After": "Fri, 15 Jan 2027 08:00:30 GMT"},
        PushOutcome.BUSY, 30.0, "429 QUOTA_EXCEEDED",
    ),
    "unavailable": (
        503, "UNAVAILABLE", "UNAVAILABLE", {"Retry-After": "3"}, PushOutcome.BUSY, 3.0, "503 UNAVAILABLE",
    ),
    "unavailable without a time": (
        503, "UNAVAILABLE", "UNAVAILABLE", None, PushOutcome.BUSY, None, "503 UNAVAILABLE",
    ),
    "an internal error": (500, "INTERNAL", "INTERNAL", None, PushOutcome.FAILED, None, "500 INTERNAL"),
    "a gateway's error": (502, "", None, None, PushOutcome.FAILED, None, "502"),
    "a status that it has not": (418, "TEAPOT", None, None, PushOutcome.FAILED, None, "418 TEAPOT"),
    "words that are none": (400, "no \x1b[2J word", None, None, PushOutcome.REFUSED, None, "400"),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)
async def test_each_answer_has_its_outcome(google: Google, fcm: FcmChannel, clock: Clock, case: Any) -> None:
    status, word, code, headers, outcome, pause, detail = case
    google.to_messages.append(fails(status, word, code, headers))
    delivery = await fcm.send(ADDRESS, push(clock))
    assert (delivery.outcome, delivery.retry_after, delivery.detail) == (outcome, pause, detail)
    assert (len(google.messages), google.token_requests) == (1, 1)


MEANINGLESS: dict[str, tuple[int, Any, PushOutcome]] = {
    "nothing": (200, b"", PushOutcome.FAILED),
    "no JSON": (200, b"<html>sign in to this network", PushOutcome.FAILED),
    "a list": (200, ["name"], PushOutcome.FAILED),
    "no name": (200, {}, PushOutcome.FAILED),
    "a name that is none": (200, {"name": 7}, PushOutcome.FAILED),
    "deep": (200, b"[" * 10_000, PushOutcome.FAILED),
    "too much": (200, b" " * 20_000 + b'{"name":"projects/p/messages/1"}', PushOutcome.FAILED),
    "another success": (204, b"", PushOutcome.FAILED),
    "an error that is a word": (404, {"error": "UNREGISTERED"}, PushOutcome.REFUSED),
    "details that are none": (404, {"error": {"details": {"errorCode": "UNREGISTERED"}}}, PushOutcome.REFUSED),
    "details of another type": (
        404,
        {"error": {"details": [7, {"@type": "other", "errorCode": "UNREGISTERED"}]}},
        PushOutcome.REFUSED,
    ),
    "a code that is a list": (
        404,
        {"error": {"details": [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": []}]}},
        PushOutcome.REFUSED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANINGLESS.values(), ids=MEANINGLESS)
@pytest.mark.threat("T12")
async def test_an_answer_that_means_nothing_deletes_no_channel(
    google: Google, fcm: FcmChannel, clock: Clock, case: tuple[int, Any, PushOutcome]
) -> None:
    status, body, outcome = case
    google.to_messages.append(answers(status, body))
    assert (await fcm.send(ADDRESS, push(clock))).outcome is outcome


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.threat("T13")
async def test_no_redirect_is_followed(google: Google, fcm: FcmChannel, clock: Clock, status: int) -> None:
    google.to_messages.append(answers(status, b"", {"Location": "https://127.0.0.1:1/"}))
    delivery = await fcm.send(ADDRESS, push(clock))
    assert (delivery.outcome, delivery.detail) == (PushOutcome.FAILED, str(status))
    assert len(google.messages) == 1


# The access token


async def test_a_token_that_ended_early_is_replaced_and_the_push_sent_again(
    google: Google, fcm: FcmChannel, clock: Clock
) -> None:
    await fcm.send(ADDRESS, push(clock))
    google.revoke()
    clock.passes(600)
    assert (await fcm.send(ADDRESS, push(clock))).outcome is PushOutcome.SENT
    assert (len(google.messages), google.token_requests) == (3, 2)


async def test_a_service_that_refuses_each_token_is_asked_twice_and_gets_no_token_for_each_push(
    google: Google, fcm: FcmChannel, clock: Clock
) -> None:
    await fcm.send(ADDRESS, push(clock))
    clock.passes(600)
    google.to_messages += [fails(401, "UNAUTHENTICATED")] * 3
    for _ in range(2):
        delivery = await fcm.send(ADDRESS, push(clock))
        assert (delivery.outcome, delivery.detail) == (
            PushOutcome.REFUSED,
            "401: the access token is refused",
        )
    assert (len(google.messages), google.token_requests) == (4, 2)


async def test_without_an_access_token_nothing_is_sent(google: Google, fcm: FcmChannel, clock: Clock) -> None:
    google.to_token_requests += [answers(400, {"error": "invalid_grant"})]
    delivery = await fcm.send(ADDRESS, push(clock))
    assert (delivery.outcome, delivery.detail) == (
        PushOutcome.REFUSED,
        "no access token: its server answers 400 invalid_grant",
    )
    assert google.messages == []


async def test_a_token_server_that_is_down_makes_the_channel_busy(
    google: Google, fcm: FcmChannel, clock: Clock
) -> None:
    google.to_token_requests += [answers(503, b"", {"Retry-After": "20"})]
    delivery = await fcm.send(ADDRESS, push(clock))
    assert (delivery.outcome, delivery.retry_after) == (PushOutcome.BUSY, 20.0)


# What goes wrong on the way


async def test_a_slow_answer_is_waited_for_so_long(
    google: Google, fcm: FcmChannel, clock: Clock, loop_clock: LoopClock
) -> None:
    await fcm.send(ADDRESS, push(clock))
    google.to_messages.append(google.hold)
    sending = asyncio.create_task(fcm.send(ADDRESS, push(clock)))
    while len(google.messages) < 2:
        await google.arrived.get()
    loop_clock.passes(300)
    delivery = await sending
    assert delivery.outcome is PushOutcome.FAILED


async def test_nobody_waits_for_an_answer_longer_than_the_push_is_worth(
    google: Google, fcm: FcmChannel, clock: Clock, loop_clock: LoopClock
) -> None:
    await fcm.send(ADDRESS, push(clock))
    google.to_messages.append(google.hold)
    sending = asyncio.create_task(fcm.send(ADDRESS, push(clock, seconds=200)))
    while len(google.messages) < 2:
        await google.arrived.get()
    loop_clock.passes(200)
    delivery = await sending
    assert (delivery.outcome, delivery.detail) == (PushOutcome.FAILED, "no answer in time")


@pytest.mark.parametrize("how", ["reset", "garble"])
async def test_a_connection_that_breaks_is_a_failure_and_the_next_push_has_another(
    google: Google, fcm: FcmChannel, clock: Clock, how: str
) -> None:
    google.to_messages.append(getattr(google, how))
    delivery = await fcm.send(ADDRESS, push(clock))
    assert delivery.outcome is PushOutcome.FAILED
    assert PHONE not in delivery.detail
    assert "/v1/" not in delivery.detail
    assert (await fcm.send(ADDRESS, push(clock))).outcome is PushOutcome.SENT


@pytest.mark.threat("T2")
async def test_a_server_whose_certificate_is_not_trusted_gets_nothing(
    google: Google, clock: Clock, tmp_path: Path
) -> None:
    account = ServiceAccount.load(write_account(tmp_path / "account.json", google.account()))
    channel = FcmChannel({"example": account}, url=google.url, clock=clock.unix, ticks=clock.steady)
    try:
        delivery = await channel.send(ADDRESS, push(clock))
        assert delivery.outcome is PushOutcome.BUSY
        assert "certificate" in delivery.detail
        assert (google.token_requests, google.messages) == (0, [])
    finally:
        await channel.close()


@pytest.mark.threat("T11")
async def test_no_log_and_no_delivery_holds_a_token(
    google: Google, fcm: FcmChannel, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = []
    for handler in (None, fails(404, "NOT_FOUND", "UNREGISTERED"), google.reset, fails(400, PHONE)):
        if handler is not None:
            google.to_messages.append(handler)
        told.append(repr(await fcm.send(ADDRESS, push(clock))))
    said = caplog.text + "".join(told) + repr(ADDRESS)
    for secret in (PHONE, *google.granted):
        assert secret not in said


async def test_a_push_can_be_cancelled_at_each_point(google: Google, fcm: FcmChannel, clock: Clock) -> None:
    async def one(interruption: Interruption) -> Interruption:
        sending = asyncio.create_task(interrupted(fcm.send(ADDRESS, push(clock)), interruption))
        await asyncio.wait({sending})
        return interruption

    await one(Interruption(at=0))  # opens the connection that is kept
    assert await cancel_everywhere(one) > 1
    assert (await fcm.send(ADDRESS, push(clock))).outcome is PushOutcome.SENT


# The operator's check


async def test_the_check_is_a_dry_run_to_nobody(google: Google, fcm: FcmChannel) -> None:
    assert await fcm.check() == "FCM, app example, project passkeys-4711: takes these credentials"
    (message,) = google.messages
    assert message.body == {
        "validate_only": True,
        "message": {"topic": "headless-passkey-check", "data": {"purpose": "test"}},
    }


async def test_the_check_says_that_the_key_is_refused(google: Google, fcm: FcmChannel) -> None:
    google.to_token_requests.append(answers(400, {"error": "invalid_grant"}))
    with pytest.raises(SetupError, match="invalid_grant") as caught:
        await fcm.check()
    assert caught.value.reason is SetupReason.CREDENTIALS_REFUSED


async def test_the_check_says_that_the_account_may_not_push(google: Google, fcm: FcmChannel) -> None:
    google.to_messages.append(fails(403, "PERMISSION_DENIED"))
    with pytest.raises(SetupError, match="403 PERMISSION_DENIED"):
        await fcm.check()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_the_check_tells_a_service_that_is_away_from_one_that_refuses(
    google: Google, fcm: FcmChannel, status: int
) -> None:
    google.to_messages.append(fails(status, "UNAVAILABLE"))
    with pytest.raises(TransportError, match=str(status)):
        await fcm.check()


# The stand-in itself


async def test_the_stand_in_refuses_what_fcm_refuses(google: Google, fcm: FcmChannel, clock: Clock) -> None:
    assert failure(404, "NOT_FOUND", "UNREGISTERED").status == 404
    google.phones.clear()
    assert (await fcm.send(ADDRESS, push(clock))).outcome is PushOutcome.STALE
