"""APNs: what is sent, what each answer means, and what is done about connections and tokens. The service is not reached here."""

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate, make_certificate
from cryptography.hazmat.primitives.asymmetric import ec

from companion_push.push.apns import ApnsChannel, payload, push_id
from companion_push.push.channel import Apns, Delivery, Fcm, Kind, Purpose, Push, PushOutcome
from companion_push.push.provider_token import ProviderKey
from headless_passkey.errors import LocalProtocolError, SetupError, SetupReason, TransportError, UsageError
from tests.device.connect_proxy import ConnectProxy
from tests.loop_clock import LoopClock
from tests.open_things import Interruption, cancel_everywhere, interrupted
from tests.push.apple import (
    DEVICE,
    KEY,
    TEAM,
    TOPIC,
    Apple,
    breaks_off,
    garbles,
    goes_away,
    hold,
    replies,
    resets,
    says,
    serving_apple,
    write_p8,
)
from tests.push.google import PATIENCE, PING, Clock
from tests.swallowing import PATIENCE as PATIENT
from tests.swallowing import SWALLOWING, first_address_swallows

ADDRESS = Apns(topic=TOPIC, token=DEVICE)
HANDLE = "AAECAwQFBgcICQoLDA0ODw"
REQUEST = "_____________________w"
SENT = Delivery(outcome=PushOutcome.SENT)


@pytest.fixture
def clock() -> Clock:
    """From the first moment of a provider token on: so it is 20 minutes old before the next half hour."""
    return Clock(now=1_800_000_060.0)


def push(clock: Clock, *, purpose: Purpose = Purpose.REQUEST, seconds: float = 300.0) -> Push:
    return Push(
        purpose=purpose,
        handle=HANDLE,
        account=b"an account's key",
        expires_at=clock.now + seconds,
        request_id=REQUEST if purpose in (Purpose.REQUEST, Purpose.DISMISS) else None,
    )


# What is sent


async def test_a_push_is_an_alert_that_ends_with_its_request(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    assert await apns.send(ADDRESS, push(clock)) == SENT
    (received,) = apple.pushes
    told = {
        name: received.headers[name]
        for name in (":method", ":path", "apns-topic", "apns-push-type", "apns-priority")
    }
    assert told == {
        ":method": "POST",
        ":path": f"/3/device/{DEVICE}",
        "apns-topic": TOPIC,
        "apns-push-type": "alert",
        "apns-priority": "10",
    }
    assert received.headers["apns-expiration"] == str(int(clock.now) + 300)  # absolute, and not a ttl
    assert received.headers["apns-collapse-id"] == REQUEST
    assert received.body == {
        "aps": {
            "alert": {"loc-key": "headless-passkey.request"},
            "mutable-content": 1,
            "interruption-level": "time-sensitive",
            "sound": "default",
        },
        "v": "1",
        "purpose": "request",
        "handle": HANDLE,
        "request": REQUEST,
    }


@pytest.mark.parametrize(
    ("purpose", "level", "sound"),
    [
        (Purpose.REQUEST, "time-sensitive", True),
        (Purpose.WORD, "time-sensitive", True),
        (Purpose.REMOVED, "time-sensitive", True),
        (Purpose.RESET, "time-sensitive", True),
        (Purpose.RING, "active", True),
        (Purpose.TEST, "active", True),
        (Purpose.DISMISS, "passive", False),
    ],
)
async def test_each_purpose_has_a_key_and_a_level(
    apple: Apple, apns: ApnsChannel, clock: Clock, purpose: Purpose, level: str, *, sound: bool
) -> None:
    assert await apns.send(ADDRESS, push(clock, purpose=purpose)) == SENT
    aps = apple.pushes[0].body["aps"]
    assert aps["alert"] == {"loc-key": f"headless-passkey.{purpose.value}"}
    assert (aps["interruption-level"], "sound" in aps) == (level, sound)


async def test_a_dismissal_takes_the_place_of_its_request(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    for purpose in (Purpose.REQUEST, Purpose.DISMISS, Purpose.RING, Purpose.WORD):
        await apns.send(ADDRESS, push(clock, purpose=purpose))
    collapse = [received.headers["apns-collapse-id"] for received in apple.pushes]
    assert collapse == [REQUEST, REQUEST, f"ring-{HANDLE}", f"word-{HANDLE}"]


async def test_a_push_that_is_sent_again_keeps_its_id_and_no_other_has_it(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    first = push(clock)
    for each in (first, first, push(clock, purpose=Purpose.DISMISS), push(clock, seconds=200)):
        await apns.send(ADDRESS, each)
    ids = [received.headers["apns-id"] for received in apple.pushes]
    assert ids[0] == ids[1] == push_id(first)
    assert len(set(ids)) == 3


def test_the_largest_push_fits() -> None:
    largest = Push(purpose=Purpose.DISMISS, handle="x" * 22, account=b"", expires_at=0.0, request_id="x" * 22)
    assert len(payload(largest)) < 300


def test_what_does_not_fit_is_a_bug_of_the_caller() -> None:
    with pytest.raises(LocalProtocolError, match="4096"):
        payload(Push(purpose=Purpose.RING, handle="x" * 4000, account=b"", expires_at=0.0))


@pytest.mark.threat("T2")
def test_what_apple_gets_names_no_account(clock: Clock) -> None:
    assert b"account" not in payload(push(clock))


@pytest.mark.parametrize("seconds", [0.9, 0.0, -1.0, -1000.0])
async def test_a_push_whose_time_is_over_is_not_sent(
    apple: Apple, apns: ApnsChannel, clock: Clock, seconds: float
) -> None:
    assert (await apns.send(ADDRESS, push(clock, seconds=seconds))).outcome is PushOutcome.LATE
    assert apple.connections == []


def test_it_says_what_it_is_and_what_to_register_with(apns: ApnsChannel) -> None:
    assert apns.kind is Kind.APNS
    assert apns.offer == {"topics": [TOPIC]}


BAD_TOKEN = "a device token has 8 to 100 bytes in hexadecimal"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (Apns(topic="com.example.other", token=DEVICE), "this relay pushes to no app with this topic"),
        (Apns(topic=TOPIC, token=""), BAD_TOKEN),
        (Apns(topic=TOPIC, token="00" * 7), BAD_TOKEN),
        (Apns(topic=TOPIC, token="00" * 101), BAD_TOKEN),
        (Apns(topic=TOPIC, token=DEVICE[:-1]), BAD_TOKEN),
        (Apns(topic=TOPIC, token="../" + DEVICE), BAD_TOKEN),
        (Apns(topic=TOPIC, token="0\u0660" * 32), BAD_TOKEN),
    ],
    ids=["topic", "empty", "short", "long", "odd", "a path", "digits of others"],
)
async def test_an_address_that_cannot_be_is_refused_without_a_request(
    apple: Apple, apns: ApnsChannel, clock: Clock, address: Apns, why: str
) -> None:
    assert apns.refusal(address) == why
    assert await apns.send(address, push(clock)) == Delivery(outcome=PushOutcome.REFUSED, detail=why)
    assert apple.connections == []


async def test_a_device_token_in_capitals_is_the_same(apple: Apple, apns: ApnsChannel, clock: Clock) -> None:
    address = Apns(topic=TOPIC, token=DEVICE.upper())
    assert apns.refusal(address) is None
    assert await apns.send(address, push(clock)) == SENT


async def test_an_address_of_another_service_is_a_bug_of_the_caller(apns: ApnsChannel, clock: Clock) -> None:
    with pytest.raises(LocalProtocolError):
        await apns.send(Fcm(app="example", token="x"), push(clock))


@pytest.mark.parametrize("topic", ["", "a b", ".a", "a/b", "a" * 256])
def test_a_topic_is_a_bundle_id(topic: str, provider_key: ProviderKey) -> None:
    with pytest.raises(UsageError):
        ApnsChannel({topic: provider_key})


async def test_sandbox_and_production_are_two_services_and_each_key_has_its_own_connection(
    apple: Apple, loopback_certificate: Certificate, clock: Clock, provider_key: ProviderKey, tmp_path: Path
) -> None:
    other = ProviderKey.load(
        write_p8(tmp_path / "other.p8", ec.generate_private_key(ec.SECP256R1())),
        team="ZZZZZZZZZZ",
        key_id="0000000000",
    )
    apple.keys["ZZZZZZZZZZ", "0000000000"] = other.private.public_key()
    apple.topics["ZZZZZZZZZZ"] = {"com.example.other"}
    apple.devices.add(("com.example.other", DEVICE))
    async with serving_apple(
        loopback_certificate, clock, keys=apple.keys, topics=apple.topics
    ) as sandbox_service:
        sandbox_service.devices.add((TOPIC, DEVICE))
        channel = ApnsChannel(
            {TOPIC: provider_key, f"{TOPIC}.two": provider_key, "com.example.other": other},
            production=apple.url,
            sandbox=sandbox_service.url,
            tls=loopback_certificate.client_context(),
            clock=clock.unix,
            ticks=clock.steady,
        )
        try:
            assert await channel.send(ADDRESS, push(clock)) == SENT
            assert await channel.send(Apns(topic="com.example.other", token=DEVICE), push(clock)) == SENT
            sandbox = Apns(topic=TOPIC, token=DEVICE, sandbox=True)
            assert await channel.send(sandbox, push(clock)) == SENT
            assert (len(apple.connections), len(sandbox_service.connections)) == (2, 1)
            assert apple.bearers[0] == sandbox_service.bearers[0]
        finally:
            await channel.close()


# What is answered

ANSWERS: dict[str, tuple[int, str | None, PushOutcome]] = {
    "400 BadDeviceToken": (400, "BadDeviceToken", PushOutcome.GONE),
    "400 DeviceTokenNotForTopic": (400, "DeviceTokenNotForTopic", PushOutcome.GONE),
    "400 TopicDisallowed": (400, "TopicDisallowed", PushOutcome.REFUSED),
    "400 BadTopic": (400, "BadTopic", PushOutcome.REFUSED),
    "400 MissingTopic": (400, "MissingTopic", PushOutcome.REFUSED),
    "400 BadCollapseId": (400, "BadCollapseId", PushOutcome.REFUSED),
    "400 BadExpirationDate": (400, "BadExpirationDate", PushOutcome.REFUSED),
    "400 BadMessageId": (400, "BadMessageId", PushOutcome.REFUSED),
    "400 BadPriority": (400, "BadPriority", PushOutcome.REFUSED),
    "400 DuplicateHeaders": (400, "DuplicateHeaders", PushOutcome.REFUSED),
    "400 IdleTimeout": (400, "IdleTimeout", PushOutcome.FAILED),
    "400 InvalidPushType": (400, "InvalidPushType", PushOutcome.REFUSED),
    "400 MissingDeviceToken": (400, "MissingDeviceToken", PushOutcome.REFUSED),
    "400 PayloadEmpty": (400, "PayloadEmpty", PushOutcome.REFUSED),
    "400": (400, None, PushOutcome.REFUSED),
    "403 BadCertificate": (403, "BadCertificate", PushOutcome.REFUSED),
    "403 BadCertificateEnvironment": (403, "BadCertificateEnvironment", PushOutcome.REFUSED),
    "403 BadEnvironmentKeyInToken": (403, "BadEnvironmentKeyInToken", PushOutcome.REFUSED),
    "403 Forbidden": (403, "Forbidden", PushOutcome.REFUSED),
    "403 MissingProviderToken": (403, "MissingProviderToken", PushOutcome.REFUSED),
    "403 UnrelatedKeyIdInToken": (403, "UnrelatedKeyIdInToken", PushOutcome.REFUSED),
    "404 BadPath": (404, "BadPath", PushOutcome.REFUSED),
    "405 MethodNotAllowed": (405, "MethodNotAllowed", PushOutcome.REFUSED),
    "410 Unregistered": (410, "Unregistered", PushOutcome.STALE),
    "413 PayloadTooLarge": (413, "PayloadTooLarge", PushOutcome.REFUSED),
    "429 TooManyRequests": (429, "TooManyRequests", PushOutcome.BUSY),
    "500 InternalServerError": (500, "InternalServerError", PushOutcome.FAILED),
    "503 ServiceUnavailable": (503, "ServiceUnavailable", PushOutcome.BUSY),
    "503 Shutdown": (503, "Shutdown", PushOutcome.BUSY),
    "302": (302, None, PushOutcome.FAILED),
    "418": (418, None, PushOutcome.FAILED),
}


@pytest.mark.parametrize(("detail", "case"), ANSWERS.items(), ids=ANSWERS)
async def test_each_answer_has_its_outcome(
    apple: Apple, apns: ApnsChannel, clock: Clock, detail: str, case: tuple[int, str | None, PushOutcome]
) -> None:
    status, reason, outcome = case
    apple.script.append(replies(status, reason))
    assert await apns.send(ADDRESS, push(clock)) == Delivery(outcome=outcome, detail=detail)
    assert len(apple.pushes) == 1


@pytest.mark.parametrize("reason", ["Unregistered", "ExpiredToken"])
async def test_a_token_that_ended_says_since_when(
    apple: Apple, apns: ApnsChannel, clock: Clock, reason: str
) -> None:
    apple.script.append(replies(410, reason, timestamp=1_799_999_000_500))
    assert await apns.send(ADDRESS, push(clock)) == Delivery(
        outcome=PushOutcome.GONE, since=1_799_999_000.5, detail=f"410 {reason}"
    )


async def test_the_service_ends_tokens(apple: Apple, apns: ApnsChannel, clock: Clock) -> None:
    apple.ended[DEVICE] = 1_799_000_000_000
    assert (await apns.send(ADDRESS, push(clock))).since == 1_799_000_000.0
    unknown = Apns(topic=TOPIC, token="11" * 32)
    assert (await apns.send(unknown, push(clock))).detail == "400 BadDeviceToken"


@pytest.mark.parametrize(
    "timestamp", [None, "1799999000500", -1, 0, 1.5, 1 << 60, True], ids=["none", "text", "negative", "0", "part", "far", "true"]
)  # fmt: skip
@pytest.mark.threat("T12")
async def test_an_end_without_a_time_deletes_nothing_by_itself(
    apple: Apple, apns: ApnsChannel, clock: Clock, timestamp: Any
) -> None:
    apple.script.append(replies(410, "Unregistered", timestamp=timestamp))
    delivery = await apns.send(ADDRESS, push(clock))
    assert (delivery.outcome, delivery.since) == (PushOutcome.STALE, None)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_pause_that_the_service_names_is_kept(
    apple: Apple, apns: ApnsChannel, clock: Clock, status: int
) -> None:
    apple.script.append(lambda got: got.answer(status, "TooManyRequests", headers={"retry-after": "7"}))
    assert (await apns.send(ADDRESS, push(clock))).retry_after == 7.0


MEANINGLESS: dict[str, bytes] = {
    "no JSON": b"<html>",
    "a list": b"[1]",
    "deep": b"[" * 4000,
    "a reason that is none": b'{"reason": 7}',
    "a reason for a terminal": b'{"reason": "\x1b[2J"}',
    "a long reason": b'{"reason": "' + b"x" * 65 + b'"}',
    "not UTF-8": b'{"reason": "\xff"}',
}


@pytest.mark.parametrize("body", MEANINGLESS.values(), ids=MEANINGLESS)
@pytest.mark.threat("T12")
async def test_an_answer_that_means_nothing_deletes_no_channel(
    apple: Apple, apns: ApnsChannel, clock: Clock, body: bytes
) -> None:
    apple.script += [says(400, body), says(410, body)]
    assert await apns.send(ADDRESS, push(clock)) == Delivery(outcome=PushOutcome.REFUSED, detail="400")
    assert await apns.send(ADDRESS, push(clock)) == Delivery(outcome=PushOutcome.STALE, detail="410")


@pytest.mark.threat("T12")
async def test_an_answer_that_is_too_long_is_cut_off_and_disturbs_no_other_push(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.script += [hold, says(200, b"x" * 60_000)]
    waiting = asyncio.create_task(apns.send(ADDRESS, push(clock)))
    first = await apple.coming(1)
    delivery = await apns.send(ADDRESS, push(clock))
    assert (delivery.outcome, delivery.detail) == (PushOutcome.FAILED, "an answer of more than 4096 bytes")
    apple.judge(first, 1)
    apple.faults.clear()  # the size is not known any more
    first_delivery = await waiting
    assert first_delivery.detail.startswith("400")
    assert len(apple.connections) == 1


# The provider token


async def test_pushes_share_the_token_and_the_connection(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    assert await asyncio.gather(*(apns.send(ADDRESS, push(clock)) for _ in range(50))) == [SENT] * 50
    assert (len(set(apple.bearers)), len(apple.connections)) == (1, 1)


async def test_the_token_is_renewed_without_a_failed_push(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    for _ in range(20):
        assert await apns.send(ADDRESS, push(clock)) == SENT
        clock.passes(600)
    assert len(set(apple.bearers)) == 7
    assert len(apple.connections) == 1


@pytest.mark.parametrize("reason", ["ExpiredProviderToken", "InvalidProviderToken"])
async def test_a_refused_token_is_replaced_once_and_the_push_sent_again(
    apple: Apple, apns: ApnsChannel, clock: Clock, reason: str
) -> None:
    await apns.send(ADDRESS, push(clock))
    clock.passes(1200)
    apple.tokens.clear()
    apple.script.append(replies(403, reason))
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.pushes) == 3
    assert len(set(apple.bearers[1:])) == 2
    assert apple.pushes[1].headers["apns-id"] == apple.pushes[2].headers["apns-id"]


async def test_a_young_token_is_not_replaced_whatever_the_service_says(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.script += [replies(403, "InvalidProviderToken")] * 2
    for made in (1, 2):
        assert await apns.send(ADDRESS, push(clock)) == Delivery(
            outcome=PushOutcome.REFUSED, detail="403 InvalidProviderToken"
        )
        assert len(apple.pushes) == made
    assert len(set(apple.bearers)) == 1


async def test_a_service_that_refuses_the_new_token_too_is_not_asked_a_third_time(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    await apns.send(ADDRESS, push(clock))
    clock.passes(1200)
    apple.script += [replies(403, "ExpiredProviderToken")] * 2
    assert (await apns.send(ADDRESS, push(clock))).outcome is PushOutcome.REFUSED
    assert len(apple.pushes) == 3


async def test_after_too_many_updates_the_token_before_is_used_again(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    await apns.send(ADDRESS, push(clock))
    clock.passes(1800)
    (team_and_key,) = apple.tokens
    apple.tokens[team_and_key] = (
        apple.bearers[0],
        clock.ticks - 60,
    )  # another process has pushed with it just now
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert apple.bearers[0] == apple.bearers[2] != apple.bearers[1]


async def test_too_many_updates_without_a_token_before_is_for_as_long_as_it_lasts(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.tokens[TEAM, KEY] = "another token", clock.ticks
    assert await apns.send(ADDRESS, push(clock)) == Delivery(
        outcome=PushOutcome.BUSY, retry_after=1200.0, detail="429 TooManyProviderTokenUpdates"
    )
    assert len(apple.pushes) == 1


# The connection


async def test_a_push_that_goaway_leaves_unprocessed_is_sent_again_on_another_connection(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.script.append(goes_away(0))
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.connections) == 2
    assert apple.pushes[0].headers["apns-id"] == apple.pushes[1].headers["apns-id"]


async def test_goaway_keeps_the_answers_of_what_was_processed(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    """Three pushes under way, of which the server has begun the first."""
    apple.script += [hold, hold, hold]
    sending = [asyncio.create_task(apns.send(ADDRESS, push(clock))) for _ in range(3)]
    first = await apple.coming(1)
    await apple.coming(3)
    first.connection.go_away(first.stream)
    await apple.coming(5)  # the second and the third, again
    first.answer(429, "TooManyRequests")
    outcomes = sorted(delivery.outcome for delivery in await asyncio.gather(*sending))
    assert outcomes == [PushOutcome.BUSY, PushOutcome.SENT, PushOutcome.SENT]
    assert len(apple.connections) == 2
    await first.connection.lost.wait()  # it is closed after the last answer


async def test_a_push_that_is_left_unprocessed_twice_has_failed(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.script += [goes_away(0), goes_away(0)]
    delivery = await apns.send(ADDRESS, push(clock))
    assert (delivery.outcome, delivery.detail) == (PushOutcome.FAILED, "twice: the server is going away")
    assert len(apple.pushes) == 2
    assert await apns.send(ADDRESS, push(clock)) == SENT


async def test_a_goaway_while_nothing_is_under_way_costs_nothing(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    await apns.send(ADDRESS, push(clock))
    (connection,) = apple.connections
    connection.go_away(1)
    await connection.lost.wait()
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.connections) == 2


async def test_a_stream_that_the_server_refuses_is_sent_again(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.script.append(resets(7))  # REFUSED_STREAM
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.pushes) == 2


async def test_a_stream_that_is_reset_has_failed_and_others_go_on(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.script += [hold, resets(2)]  # INTERNAL_ERROR
    waiting = asyncio.create_task(apns.send(ADDRESS, push(clock)))
    first = await apple.coming(1)
    delivery = await apns.send(ADDRESS, push(clock))
    assert (delivery.outcome, delivery.detail) == (PushOutcome.FAILED, "it reset the stream")
    first.answer(200)
    assert await waiting == SENT
    assert len(apple.connections) == 1


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (breaks_off, "it hung up before it answered"),
        (garbles, "it does not speak HTTP/2 as it should"),
    ],
    ids=["reset", "no HTTP/2"],
)
async def test_a_connection_that_breaks_is_a_failure_and_the_next_push_has_another(
    apple: Apple, apns: ApnsChannel, clock: Clock, how: Any, why: str
) -> None:
    apple.script.append(how)
    assert await apns.send(ADDRESS, push(clock)) == Delivery(outcome=PushOutcome.FAILED, detail=why)
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.connections) == 2


async def test_a_service_that_is_not_there_is_a_failure(
    loopback_certificate: Certificate, clock: Clock, provider_key: ProviderKey
) -> None:
    channel = ApnsChannel(
        {TOPIC: provider_key},
        production="https://127.0.0.1:1",
        tls=loopback_certificate.client_context(),
        clock=clock.unix,
    )
    assert await channel.send(ADDRESS, push(clock)) == Delivery(
        outcome=PushOutcome.FAILED, detail="connection refused"
    )
    await channel.close()


# Through a proxy


HOST = "api.push.test"  # which nobody but the proxy knows


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("push.test"), names=(HOST,))


async def through(certificate: Certificate, clock: Clock, key: ProviderKey) -> Delivery:
    """A push through the environment's proxy."""
    channel = ApnsChannel(
        {TOPIC: key}, production=f"https://{HOST}", tls=certificate.client_context(), clock=clock.unix
    )
    try:
        return await channel.send(ADDRESS, push(clock))
    finally:
        await channel.close()


async def test_the_environments_proxy_carries_the_connection_and_sees_host_and_port(
    certificate: Certificate, clock: Clock, provider_key: ProviderKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {(TEAM, KEY): provider_key.private.public_key()}
    async with serving_apple(certificate, clock, keys=keys, topics={TEAM: {TOPIC}}) as apple:
        apple.devices.add((TOPIC, DEVICE))
        port = int(apple.url.rpartition(":")[2])
        proxy = ConnectProxy({f"{HOST}:443": port}, credentials="ada:secret")
        async with proxy.running() as address:
            monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{address}")
            assert await through(certificate, clock, provider_key) == SENT
        assert proxy.asked == [f"{HOST}:443"]
        assert DEVICE.encode() not in proxy.carried
        assert apple.faults == []


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ({"statuses": [407]}, "wants a name and a password, or others"),
        ({"statuses": [403]}, f"does not connect to {HOST} (HTTP status 403)"),
        ({"hangs_up": True}, f"does not connect to {HOST}"),
        ({"babbles": True}, f"does not connect to {HOST}"),
    ],
    ids=["credentials", "forbidden", "hangs up", "babbles"],
)
async def test_a_proxy_that_fails_is_named(
    certificate: Certificate,
    clock: Clock,
    provider_key: ProviderKey,
    monkeypatch: pytest.MonkeyPatch,
    *,
    trouble: Any,
    why: str,
) -> None:
    proxy = ConnectProxy({}, **trouble)
    async with proxy.running() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{address}")
        assert await through(certificate, clock, provider_key) == Delivery(
            outcome=PushOutcome.FAILED, detail=f"the proxy {address} {why}"
        )


async def test_a_proxy_that_is_not_there_is_named(
    certificate: Certificate, clock: Clock, provider_key: ProviderKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    delivery = await through(certificate, clock, provider_key)
    assert delivery.detail == "the proxy 127.0.0.1:1 cannot be reached"


# An address that swallows packets


async def test_an_address_that_swallows_packets_costs_no_push(
    apple: Apple, apns: ApnsChannel, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(apple.url.rpartition(":")[2])
    with first_address_swallows(port, monkeypatch) as tried:
        async with asyncio.timeout(PATIENT):
            assert await apns.send(ADDRESS, push(clock)) == SENT
        assert tried == [SWALLOWING, "127.0.0.1"]


async def test_a_proxys_address_that_swallows_packets_costs_no_push(
    certificate: Certificate, clock: Clock, provider_key: ProviderKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {(TEAM, KEY): provider_key.private.public_key()}
    async with serving_apple(certificate, clock, keys=keys, topics={TEAM: {TOPIC}}) as apple:
        apple.devices.add((TOPIC, DEVICE))
        proxy = ConnectProxy({f"{HOST}:443": int(apple.url.rpartition(":")[2])})
        async with proxy.running() as address:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
            with first_address_swallows(proxy.port, monkeypatch) as tried:
                async with asyncio.timeout(PATIENT):
                    assert await through(certificate, clock, provider_key) == SENT
            assert tried[:2] == [SWALLOWING, "127.0.0.1"]


async def test_addresses_that_fail_in_different_ways_are_not_said_to_have_hung_up(
    apns: ApnsChannel, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connecting(_: socket.socket, place: Any) -> None:
        number = errno.ENETUNREACH if place[0] == SWALLOWING else errno.ECONNREFUSED
        raise OSError(number, os.strerror(number))

    with first_address_swallows(0, monkeypatch):
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", connecting)
        delivery = await apns.send(ADDRESS, push(clock))
    assert delivery == Delivery(outcome=PushOutcome.FAILED, detail="none of its addresses can be reached")


# Trust


@pytest.mark.threat("T2")
async def test_a_server_whose_certificate_is_not_trusted_gets_nothing(
    apple: Apple, clock: Clock, provider_key: ProviderKey
) -> None:
    channel = ApnsChannel({TOPIC: provider_key}, production=apple.url, clock=clock.unix)
    delivery = await channel.send(ADDRESS, push(clock))
    assert delivery.outcome is PushOutcome.FAILED
    assert delivery.detail.startswith("its certificate is not trusted")
    assert apple.pushes == []
    await channel.close()


async def test_a_server_without_http_2_is_a_failure(
    loopback_certificate: Certificate, clock: Clock, provider_key: ProviderKey
) -> None:
    async with serving_apple(loopback_certificate, clock, keys={}, topics={}, protocols=("http/1.1",)) as old:
        channel = ApnsChannel(
            {TOPIC: provider_key},
            production=old.url,
            tls=loopback_certificate.client_context(),
            clock=clock.unix,
        )
        assert await channel.send(ADDRESS, push(clock)) == Delivery(
            outcome=PushOutcome.FAILED, detail="it does not speak HTTP/2"
        )
        await channel.close()


async def test_a_slow_answer_is_waited_for_so_long_and_the_next_push_has_another_connection(
    apple: Apple, apns: ApnsChannel, clock: Clock, loop_clock: LoopClock
) -> None:
    apple.script.append(hold)
    sending = asyncio.create_task(apns.send(ADDRESS, push(clock, seconds=2 * PATIENCE)))
    await apple.coming(1)
    loop_clock.passes(PATIENCE)
    assert await sending == Delivery(outcome=PushOutcome.FAILED, detail="no answer in time")
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.connections) == 2


async def test_a_push_that_is_cancelled_after_a_long_silence_leaves_no_dead_connection(
    apple: Apple, apns: ApnsChannel, clock: Clock, loop_clock: LoopClock
) -> None:
    """As by a dispatcher that waits for less time."""
    apple.script.append(hold)
    sending = asyncio.create_task(apns.send(ADDRESS, push(clock, seconds=2 * PATIENCE)))
    await apple.coming(1)
    loop_clock.passes(PING)
    sending.cancel()
    await asyncio.wait({sending})
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.connections) == 2


async def test_nobody_waits_for_an_answer_longer_than_the_push_is_worth_and_others_get_theirs(
    apple: Apple, apns: ApnsChannel, clock: Clock, loop_clock: LoopClock
) -> None:
    apple.script += [hold, hold]
    short = asyncio.create_task(apns.send(ADDRESS, push(clock, seconds=PING - 100)))
    await apple.coming(1)
    long = asyncio.create_task(apns.send(ADDRESS, push(clock, seconds=PATIENCE)))
    second = await apple.coming(2)
    loop_clock.passes(PING - 100)
    assert (await short).detail == "no answer in time"
    second.answer(200)
    assert await long == SENT
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.connections) == 1  # which was not silent for long enough to be dead


async def test_a_server_that_sends_no_settings_is_given_up(
    apple: Apple, apns: ApnsChannel, clock: Clock, loop_clock: LoopClock
) -> None:
    apple.silent = True
    sending = asyncio.create_task(apns.send(ADDRESS, push(clock)))
    await apple.arrived.get()
    loop_clock.passes(300)
    assert await sending == Delivery(outcome=PushOutcome.FAILED, detail="no answer in time")
    assert apple.pushes == []


async def test_no_more_streams_than_the_server_allows(apple: Apple, apns: ApnsChannel, clock: Clock) -> None:
    """As APNs does until it has seen the first provider token."""
    apple.most_streams = 1
    apple.script += [hold] * 3
    sending = [asyncio.create_task(apns.send(ADDRESS, push(clock))) for _ in range(3)]
    for number in (1, 2, 3):
        received = await apple.coming(number)
        assert len(apple.pushes) == number
        received.answer(200)
    assert await asyncio.gather(*sending) == [SENT] * 3
    assert len(apple.connections) == 1


async def test_whoever_waits_for_a_stream_and_is_cancelled_is_not_sent(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.most_streams = 1
    apple.script.append(hold)
    sending = [asyncio.create_task(apns.send(ADDRESS, push(clock))) for _ in range(3)]
    first = await apple.coming(1)
    sending[1].cancel()
    await asyncio.wait({sending[1]})
    first.answer(200)
    assert await asyncio.gather(*sending[::2]) == [SENT, SENT]
    assert len(apple.pushes) == 2


async def test_a_body_waits_for_the_servers_window(apple: Apple, apns: ApnsChannel, clock: Clock) -> None:
    apple.window = 50  # bytes, of each stream
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert apple.pushes[0].body["purpose"] == "request"


async def test_a_push_that_is_cancelled_is_reset_and_the_connection_stays(
    apple: Apple, apns: ApnsChannel, clock: Clock
) -> None:
    apple.script += [hold, hold]
    cancelled = asyncio.create_task(apns.send(ADDRESS, push(clock)))
    kept = asyncio.create_task(apns.send(ADDRESS, push(clock)))
    await apple.coming(2)
    (connection,) = apple.connections
    cancelled.cancel()
    await asyncio.wait({cancelled})
    while not connection.resets:
        await apple.arrived.get()
    (other,) = [each for each in apple.pushes if each.stream not in connection.resets]
    other.answer(200)
    assert await kept == SENT
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.connections) == 1


async def test_an_idle_connection_is_asked_whether_it_is_alive(
    apple: Apple, apns: ApnsChannel, clock: Clock, loop_clock: LoopClock
) -> None:
    await apns.send(ADDRESS, push(clock))
    loop_clock.passes(61)
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert len(apple.connections) == 1


async def test_an_idle_connection_that_is_dead_is_opened_anew_before_the_push(
    apple: Apple, apns: ApnsChannel, clock: Clock, loop_clock: LoopClock
) -> None:
    """As behind a router that has forgotten it: nothing comes back, not even a reset."""
    await apns.send(ADDRESS, push(clock))
    heard = asyncio.Event()
    (dead,) = apple.connections

    def deaf(_data: bytes) -> None:
        heard.set()

    dead.data_received = deaf  # type: ignore[method-assign, assignment]
    loop_clock.passes(61)
    sending = asyncio.create_task(apns.send(ADDRESS, push(clock, seconds=PATIENCE)))
    await heard.wait()
    loop_clock.passes(PING)
    assert await sending == SENT
    assert (len(apple.connections), len(apple.pushes)) == (2, 2)


async def test_closing_ends_what_is_under_way(apple: Apple, apns: ApnsChannel, clock: Clock) -> None:
    apple.script.append(hold)
    sending = asyncio.create_task(apns.send(ADDRESS, push(clock)))
    await apple.coming(1)
    await apns.close()
    assert await sending == Delivery(outcome=PushOutcome.FAILED, detail="the connection was closed here")


async def test_a_push_can_be_cancelled_at_each_point(apple: Apple, apns: ApnsChannel, clock: Clock) -> None:
    async def one(interruption: Interruption) -> Interruption:
        sending = asyncio.create_task(interrupted(apns.send(ADDRESS, push(clock)), interruption))
        await asyncio.wait({sending})
        return interruption

    async def on_a_new_connection(interruption: Interruption) -> Interruption:
        await apns.close()
        return await one(interruption)

    await one(Interruption(at=0))  # opens the connection that is kept
    assert await cancel_everywhere(one) >= 1
    assert await apns.send(ADDRESS, push(clock)) == SENT
    assert await cancel_everywhere(on_a_new_connection) > 1
    assert await apns.send(ADDRESS, push(clock)) == SENT


@pytest.mark.threat("T11")
async def test_no_log_and_no_delivery_holds_a_token(
    apple: Apple, apns: ApnsChannel, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = []
    behaviours: list[Any] = [None, replies(400, "BadDeviceToken"), breaks_off, replies(400, DEVICE)]
    for behaviour in behaviours:
        if behaviour is not None:
            apple.script.append(behaviour)
        told.append(repr(await apns.send(ADDRESS, push(clock))))
    said = caplog.text + "".join(told) + repr(ADDRESS)
    for secret in (DEVICE, *apple.bearers):
        assert secret not in said


# The operator's check


async def test_the_check_pushes_to_nobody_in_both_environments(
    apple: Apple, loopback_certificate: Certificate, clock: Clock, provider_key: ProviderKey
) -> None:
    channel = ApnsChannel(
        {TOPIC: provider_key},
        production=apple.url,
        sandbox=apple.url,
        tls=loopback_certificate.client_context(),
        clock=clock.unix,
        ticks=clock.steady,
    )
    try:
        assert await channel.check() == (
            f"APNs, topic {TOPIC}, production: takes these credentials\n"
            f"APNs, topic {TOPIC}, sandbox: takes these credentials"
        )
        assert {received.headers[":path"] for received in apple.pushes} == {f"/3/device/{'0' * 64}"}
        apple.script += [replies(403, "BadEnvironmentKeyInToken"), replies(400, "BadDeviceToken")]
        assert await channel.check() == (
            f"APNs, topic {TOPIC}, production: 403 BadEnvironmentKeyInToken\n"
            f"APNs, topic {TOPIC}, sandbox: takes these credentials"
        )
        apple.topics[TEAM].clear()
        with pytest.raises(SetupError, match="production: 400 TopicDisallowed; sandbox: 400 Topic") as caught:
            await channel.check()
        assert caught.value.reason is SetupReason.CREDENTIALS_REFUSED
        apple.script.append(replies(503, "ServiceUnavailable"))
        with pytest.raises(TransportError, match="production: 503 ServiceUnavailable"):
            await channel.check()
    finally:
        await channel.close()


def test_without_its_extra_it_says_what_to_install(p8: Path) -> None:
    code = (
        "import sys; sys.modules['h2'] = None\n"
        "from pathlib import Path\n"
        "from companion_push.push.apns import ApnsChannel\n"
        "from companion_push.push.provider_token import ProviderKey\n"
        "from headless_passkey.errors import SetupError\n"
        f"key = ProviderKey.load(Path({str(p8)!r}), team={TEAM!r}, key_id={KEY!r})\n"
        "try:\n"
        "    ApnsChannel({'com.example': key})\n"
        "except SetupError as error:\n"
        "    print(error.reason, error.advice)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "missing-package `pip install '.[apns]'` in the clone of headless-passkey\n"
