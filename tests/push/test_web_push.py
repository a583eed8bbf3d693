"""Web Push against a service that checks everything over TLS: what is sent, what its answers mean, where it does not go."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientResponse
from certificates import Certificate

from companion_push.push import web_push
from companion_push.push.channel import Apns, Channel, Delivery, Kind, Purpose, Push, PushOutcome, WebPush
from companion_push.push.dispatcher import RUNNING_OF_ACCOUNT
from companion_push.push.endpoints import EndpointRules
from companion_push.push.vapid import LIFETIME, REFRESH, VapidKey
from companion_push.push.web_push import BODY_SECONDS, SECONDS, SIZE, WebPushChannel
from headless_passkey.errors import LocalProtocolError, TransportError, TransportReason
from headless_passkey.net.proxy import read_bounded
from headless_passkey.text.base64url import from_base64url
from http_serving.addresses import network
from tests.loop_clock import LoopClock
from tests.push.receiver import Receiver, Reply, Subscription, receiving
from tests.swallowing import PATIENCE, SWALLOWING, first_address_swallows

NOW = 1_800_000_000.5
CONTACT = "mailto:push@example.com"
LOOPBACK = [network("127.0.0.0/8")]


class Clock:
    """The clock of the channel."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key() -> VapidKey:
    return VapidKey.generate()


@pytest_asyncio.fixture
async def there(loopback_certificate: Certificate) -> AsyncIterator[Receiver]:
    async with receiving(loopback_certificate) as receiver:
        yield receiver
    assert receiver.wrong == []


@asynccontextmanager
async def opened(key: VapidKey, clock: Clock, **options: Any) -> AsyncIterator[WebPushChannel]:
    channel = WebPushChannel(key, contact=CONTACT, clock=clock, **options)
    try:
        yield channel
    finally:
        await channel.close()


@pytest_asyncio.fixture
async def channel(
    key: VapidKey, clock: Clock, there: Receiver, loopback_certificate: Certificate
) -> AsyncIterator[WebPushChannel]:
    rules = EndpointRules(hosts=[f"localhost:{there.port}"], networks=LOOPBACK)
    async with opened(key, clock, rules=rules, tls=loopback_certificate.client_context()) as channel:
        yield channel


def push(**changes: Any) -> Push:
    return replace(
        Push(
            purpose=Purpose.REQUEST,
            handle="aGFuZGxlIG9mIGl0LiAgLg",
            account=b"account's secret",
            expires_at=NOW + 300,
            request_id="cmVxdWVzdCdzIGlkICAgLg",
        ),
        **changes,
    )


# What is sent


async def test_a_push_says_what_it_is_for_and_nothing_else(channel: WebPushChannel, there: Receiver) -> None:
    there_too: Channel = channel
    assert there_too.kind is Kind.WEB_PUSH
    subscription = there.subscribe()
    delivery = await there_too.send(subscription.address, push())
    assert delivery == Delivery(outcome=PushOutcome.SENT, detail="status 201")
    (received,) = there.received
    assert subscription.endpoint == there.origin + received.path
    assert subscription.decrypt(received.body) == (
        b'{"v":"1","purpose":"request","handle":"aGFuZGxlIG9mIGl0LiAgLg","request":"cmVxdWVzdCdzIGlkICAgLg"}'
    )
    assert (received.ttl, received.headers["Urgency"]) == (300, "high")


async def test_a_service_learns_no_purpose_by_the_length(channel: WebPushChannel, there: Receiver) -> None:
    subscription = there.subscribe()
    for purpose in Purpose:
        for request_id in ("cmVxdWVzdCdzIGlkICAgLg", None):
            await channel.send(subscription.address, push(purpose=purpose, request_id=request_id))
    assert len(there.received) == 2 * len(Purpose)
    assert {len(received.body) for received in there.received} == {21 + 65 + SIZE + 17}


async def test_more_than_that_size_is_a_bug(channel: WebPushChannel, there: Receiver) -> None:
    with pytest.raises(LocalProtocolError):
        await channel.send(there.subscribe().address, push(handle="x" * SIZE))


async def test_a_topic_is_constant_for_a_subscription_and_tells_nobody_whose_it_is(
    channel: WebPushChannel, there: Receiver
) -> None:
    mine, also_mine = there.subscribe(), there.subscribe()
    for subscription, account in (
        (mine, b"a" * 16),
        (mine, b"a" * 16),
        (also_mine, b"a" * 16),
        (mine, b"b" * 16),
    ):
        await channel.send(subscription.address, push(account=account))
    first, again, other_subscription, other_account = (one.headers["Topic"] for one in there.received)
    assert first == again
    assert len({first, other_subscription, other_account}) == 3


@pytest.mark.parametrize(("left", "ttl"), [(300, 300), (299.9, 299), (1, 1), (1.99, 1)])
async def test_a_service_keeps_a_push_as_long_as_it_is_worth_something(
    left: float, ttl: int, channel: WebPushChannel, there: Receiver
) -> None:
    await channel.send(there.subscribe().address, push(expires_at=NOW + left))
    assert [received.ttl for received in there.received] == [ttl]


@pytest.mark.threat("T5")
@pytest.mark.parametrize("left", [0.99, 0, -1, -1e9])
async def test_a_push_whose_time_is_over_is_not_sent(
    left: float, channel: WebPushChannel, there: Receiver
) -> None:
    delivery = await channel.send(there.subscribe().address, push(expires_at=NOW + left))
    assert delivery.outcome is PushOutcome.LATE
    assert not there.arrived.is_set()


async def test_pushes_share_a_token_until_shortly_before_its_end(
    channel: WebPushChannel, there: Receiver, clock: Clock, key: VapidKey
) -> None:
    for now in (NOW, NOW + LIFETIME - REFRESH - 10, NOW + LIFETIME - REFRESH + 10):
        clock.now = now
        await channel.send(there.subscribe().address, push(expires_at=now + 300))
    first, again, later = there.received
    assert first.headers["Authorization"] == again.headers["Authorization"]
    assert first.claims == {"aud": there.origin, "exp": int(NOW) + LIFETIME, "sub": CONTACT}
    assert later.claims["exp"] == first.claims["exp"] + LIFETIME - REFRESH + 10
    assert {one.key for one in there.received} == {from_base64url(key.public)}
    assert channel.offer == {"vapid_key": key.public}


async def test_many_pushes_at_once_each_arrive(channel: WebPushChannel, there: Receiver) -> None:
    subscriptions = [there.subscribe() for _ in range(100)]
    deliveries = await asyncio.gather(*(channel.send(one.address, push()) for one in subscriptions))
    assert {delivery.outcome for delivery in deliveries} == {PushOutcome.SENT}
    by_path = {there.origin + received.path: received for received in there.received}
    for subscription in subscriptions:
        assert b'"request"' in subscription.decrypt(by_path[subscription.endpoint].body)


# What is answered


ANSWERS = {
    200: PushOutcome.SENT, 201: PushOutcome.SENT, 202: PushOutcome.SENT,
    204: PushOutcome.FAILED,
    300: PushOutcome.REFUSED, 301: PushOutcome.REFUSED, 302: PushOutcome.REFUSED, 307: PushOutcome.REFUSED,
    308: PushOutcome.REFUSED,
    400: PushOutcome.REFUSED, 401: PushOutcome.REFUSED, 403: PushOutcome.REFUSED, 413: PushOutcome.REFUSED,
    404: PushOutcome.GONE, 410: PushOutcome.GONE,
    429: PushOutcome.BUSY, 503: PushOutcome.BUSY,
    500: PushOutcome.FAILED, 502: PushOutcome.FAILED, 504: PushOutcome.FAILED,
}  # fmt: skip


@pytest.mark.parametrize("status", ANSWERS)
async def test_each_status_has_its_outcome(status: int, channel: WebPushChannel, there: Receiver) -> None:
    there.reply = Reply(status=status)
    delivery = await channel.send(there.subscribe().address, push())
    assert delivery == Delivery(outcome=ANSWERS[status], detail=f"status {status}")


async def test_a_push_that_is_not_kept_for_later_is_noted(channel: WebPushChannel, there: Receiver) -> None:
    for ttl, note in (("0", ", not kept for later"), ("120", ""), ("", "")):
        there.reply = Reply(status=201, headers={"TTL": ttl})
        delivery = await channel.send(there.subscribe().address, push())
        assert delivery == Delivery(outcome=PushOutcome.SENT, detail=f"status 201{note}")


RETRY_AFTER = {
    "0": 0.0, "7": 7.0, " 120 ": 120.0, "9" * 30: 86_400.0, "100000": 86_400.0,
    formatdate(NOW + 60, usegmt=True): 59.5, formatdate(NOW - 60, usegmt=True): 0.0,
    "Fri, 31 Dec 9999 23:59:59 GMT": 86_400.0,
    "": None, "soon": None, "-5": None, "1.5": None, "\u0663": None, "Mon, 99 Foo 2027 00:00:00 GMT": None,
}  # fmt: skip


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("text", RETRY_AFTER)
async def test_a_busy_service_says_when_to_come_again(
    text: str, status: int, channel: WebPushChannel, there: Receiver
) -> None:
    there.reply = Reply(status=status, headers={"Retry-After": text})
    delivery = await channel.send(there.subscribe().address, push())
    assert delivery.outcome is PushOutcome.BUSY
    assert delivery.retry_after == RETRY_AFTER[text]


async def test_a_service_that_refuses_a_token_gets_a_new_one(
    channel: WebPushChannel, there: Receiver
) -> None:
    seen = []
    for status in (201, 403, 201):
        there.reply = Reply(status=status)
        await channel.send(there.subscribe().address, push())
        seen.append(channel._tokens.header(there.origin, NOW))
    assert seen[0] != seen[1] == seen[2]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"reason":"BadJwtToken"}', "status 400, BadJwtToken"),
        (b'{"code":401,"errno":109,"error":"Unauthorized"}', "status 400, errno 109"),
        (b'{"reason":"see https://push.example/secret"}', "status 400"),
        (b'{"reason":"' + b"a" * 41 + b'"}', "status 400"),
        (b'{"errno":true,"reason":5}', "status 400"),
        (b'{"errno":-1}', "status 400"),
        (b"[" * 4000, "status 400"),
        (b'["reason"]', "status 400"),
        (b"\xff\x00", "status 400"),
        (b'{"errno":' + b"9" * 5000 + b"}", "status 400"),
    ],
    ids=["Apple", "Mozilla", "URL", "long", "types", "negative", "deep", "list", "bytes", "huge"],
)
@pytest.mark.threat("T12")
async def test_a_refusal_is_told_in_words_of_a_bounded_vocabulary(
    body: bytes, detail: str, channel: WebPushChannel, there: Receiver
) -> None:
    there.reply = Reply(status=400, body=body)
    delivery = await channel.send(there.subscribe().address, push())
    assert delivery == Delivery(outcome=PushOutcome.REFUSED, detail=detail)


@pytest.mark.threat("T13")
async def test_a_redirect_is_not_followed(
    channel: WebPushChannel, there: Receiver, loopback_certificate: Certificate
) -> None:
    async with receiving(loopback_certificate) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            there.reply = Reply(status=status, headers={"Location": f"{elsewhere.origin}/push/x"})
            delivery = await channel.send(there.subscribe().address, push())
            assert delivery.outcome is PushOutcome.REFUSED
        assert not elsewhere.arrived.is_set()


@pytest.mark.threat("T12")
async def test_an_answer_is_read_no_further_than_its_bound(channel: WebPushChannel, there: Receiver) -> None:
    there.reply = Reply(status=400, flood=256)
    delivery = await channel.send(there.subscribe().address, push())
    assert delivery == Delivery(outcome=PushOutcome.REFUSED, detail="status 400")
    await there.cut.wait()


@pytest.mark.threat("T12")
async def test_a_push_is_sent_when_the_service_says_so_also_where_its_answer_never_ends(
    channel: WebPushChannel,
    there: Receiver,
    loop_clock: LoopClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = asyncio.Event()

    async def read_on(response: ClientResponse, limit: int) -> bytes:
        reading.set()
        return await read_bounded(response, limit)

    monkeypatch.setattr(web_push, "read_bounded", read_on)
    there.reply = Reply(status=201, endless=True)
    sending = asyncio.ensure_future(channel.send(there.subscribe().address, push()))
    await reading.wait()
    loop_clock.passes(BODY_SECONDS)
    assert (await sending).outcome is PushOutcome.SENT


@pytest.mark.parametrize("left", [300, 3])
async def test_a_service_that_does_not_answer_has_failed_when_its_time_is_over(
    left: int, channel: WebPushChannel, there: Receiver, loop_clock: LoopClock
) -> None:
    there.reply = Reply(silent=True)
    sending = asyncio.ensure_future(channel.send(there.subscribe().address, push(expires_at=NOW + left)))
    await there.arrived.wait()
    loop_clock.passes(min(left, SECONDS))
    assert await sending == Delivery(outcome=PushOutcome.FAILED, detail="it did not answer in time")


async def test_a_push_that_is_cancelled_leaves_nothing_behind(
    channel: WebPushChannel, there: Receiver
) -> None:
    there.reply = Reply(silent=True)
    sending = asyncio.ensure_future(channel.send(there.subscribe().address, push()))
    await there.arrived.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


# Where it does not go


@pytest.mark.threat("T13")
async def test_a_private_address_is_refused_at_the_connection(
    key: VapidKey, clock: Clock, there: Receiver, loopback_certificate: Certificate
) -> None:
    rules = EndpointRules(hosts=[f"localhost:{there.port}"])
    async with opened(key, clock, rules=rules, tls=loopback_certificate.client_context()) as channel:
        address = there.subscribe().address
        assert channel.refusal(address) is None
        delivery = await channel.send(address, push())
    assert delivery == Delivery(
        outcome=PushOutcome.REFUSED, detail="its host has an address that no push goes to"
    )
    assert not there.arrived.is_set()


@pytest.mark.threat("T13")
@pytest.mark.parametrize("form", ["127.0.0.1", "[::ffff:127.0.0.1]"])
async def test_so_is_one_that_the_endpoint_names(
    form: str, key: VapidKey, clock: Clock, there: Receiver, loopback_certificate: Certificate
) -> None:
    rules = EndpointRules(hosts=[f"{form}:{there.port}"])
    async with opened(key, clock, rules=rules, tls=loopback_certificate.client_context()) as channel:
        subscription = there.subscribe()
        subscription.endpoint = subscription.endpoint.replace("localhost", form)
        assert (await channel.send(subscription.address, push())).outcome is PushOutcome.REFUSED
    assert not there.arrived.is_set()


Resolve = Callable[..., Any]


@pytest.mark.threat("T13")
async def test_a_name_that_resolves_differently_each_time_reaches_no_private_address(
    key: VapidKey,
    clock: Clock,
    there: Receiver,
    loopback_certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS rebinding: what the name resolved to before does not matter; the socket's own address does."""
    answers = ["127.0.0.9", "127.0.0.1", "127.0.0.9"]  # the first and last are in the operator's network
    asked: list[str] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(answers[len(asked)])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (asked[-1], port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    rules = EndpointRules(hosts=[f"localhost:{there.port}"], networks=[network("127.0.0.9/32")])
    seen = []
    for _ in answers:
        async with opened(key, clock, rules=rules, tls=loopback_certificate.client_context()) as channel:
            seen.append((await channel.send(there.subscribe().address, push())).outcome)
    assert asked == answers
    assert seen == [
        PushOutcome.FAILED,
        PushOutcome.REFUSED,
        PushOutcome.FAILED,
    ]  # nobody listens at 127.0.0.9
    assert not there.arrived.is_set()


@pytest.mark.threat("T13")
async def test_of_several_addresses_only_those_are_tried_that_may_be(
    channel: WebPushChannel, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        places = ("10.0.0.1", "169.254.169.254", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port)) for place in places]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    connected: list[Any] = []
    connect = loop.sock_connect

    async def connecting(sock: socket.socket, address: Any) -> None:
        connected.append(address[0])
        await connect(sock, address)

    monkeypatch.setattr(loop, "sock_connect", connecting)
    assert (await channel.send(there.subscribe().address, push())).outcome is PushOutcome.SENT
    assert connected == ["127.0.0.1"]


async def test_an_address_that_swallows_packets_costs_no_push(
    channel: WebPushChannel, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with first_address_swallows(there.port, monkeypatch) as tried:
        async with asyncio.timeout(PATIENCE):
            assert (await channel.send(there.subscribe().address, push())).outcome is PushOutcome.SENT
    assert tried == [SWALLOWING, "127.0.0.1"]


@pytest.mark.threat("T17")
@pytest.mark.parametrize("below", ["*.push.example", "*.push.example:8443"])
async def test_names_whose_servers_do_not_answer_keep_no_other_account_from_its_push(
    below: str, key: VapidKey, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """31 accounts, each with as many such names as pushes of one account are sent at a time: two of them have a thread."""
    may_end = threading.Event()

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        if host.startswith("dead"):
            may_end.wait(PATIENCE)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    colon = below.partition(":")[2]
    port = f":{colon}" if colon else ""
    rules = EndpointRules(hosts=[below, "listed.example"])
    private = Delivery(outcome=PushOutcome.REFUSED, detail="its host has an address that no push goes to")
    async with opened(key, clock, rules=rules) as channel:
        dead = [
            asyncio.create_task(
                channel.send(at(f"https://dead{account}-{number}.push.example{port}/x"), of(account))
            )
            for account in range(31)
            for number in range(RUNNING_OF_ACCOUNT)
        ]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(PATIENCE):
                living = (f"https://living.push.example{port}/x", "https://listed.example/x")
                assert [await channel.send(at(endpoint), of(99)) for endpoint in living] == [private] * 2
            assert channel._below_listed._running.total() == 31 * 2
        finally:
            may_end.set()
        await asyncio.gather(*dead)


def at(endpoint: str) -> WebPush:
    return Subscription(endpoint).address


def of(account: int) -> Push:
    return push(account=account.to_bytes(4, "big"))


@pytest.mark.threat("T17")
async def test_names_of_one_kind_wait_for_none_of_another(
    key: VapidKey, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What accounts without number do where any host is allowed keeps no push from a host below a listed one, or from a listed one."""
    may_end = threading.Event()

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        if host.endswith(".mallory.example"):
            may_end.wait(PATIENCE)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with opened(key, clock, rules=EndpointRules(hosts=["any", "listed.example"])) as channel:
        dead = [
            asyncio.create_task(channel.send(at(f"https://dead{number}.mallory.example/x"), of(number)))
            for number in range(100)
        ]
        await asyncio.sleep(0)
        try:
            for host in (
                "listed.example",
                "fcm.googleapis.com",
                "web.push.apple.com",
                "db5p.notify.windows.com",
            ):
                async with asyncio.timeout(PATIENCE):
                    assert (
                        await channel.send(at(f"https://{host}/x"), of(200))
                    ).outcome is PushOutcome.REFUSED
            assert channel._any._running.total() == 64
        finally:
            may_end.set()
        await asyncio.gather(*dead)


@pytest.mark.threat("T13")
async def test_a_host_that_is_not_listed_is_refused_before_its_name_is_looked_up(
    key: VapidKey, clock: Clock, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with opened(key, clock) as channel:
        address = there.subscribe().address
        delivery = await channel.send(address, push())
        assert delivery == Delivery(outcome=PushOutcome.REFUSED, detail=channel.refusal(address) or "")
    assert delivery.detail == "the endpoint's host is not one that this relay sends to"
    assert not there.arrived.is_set()


@pytest.mark.threat("T13")
async def test_a_proxy_of_the_environment_is_not_used(
    channel: WebPushChannel, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await channel.send(there.subscribe().address, push())).outcome is PushOutcome.SENT


@pytest.mark.threat("T13")
async def test_a_service_must_show_a_certificate_that_is_trusted(
    key: VapidKey, clock: Clock, there: Receiver
) -> None:
    rules = EndpointRules(hosts=[f"localhost:{there.port}"], networks=LOOPBACK)
    async with opened(key, clock, rules=rules) as channel:
        delivery = await channel.send(there.subscribe().address, push())
    assert delivery.outcome is PushOutcome.FAILED
    assert delivery.detail.startswith("its certificate is not trusted")
    assert not there.arrived.is_set()


@pytest.mark.parametrize("kind", ["nobody", "no TLS"])
async def test_a_service_that_cannot_be_reached_has_failed(
    kind: str, key: VapidKey, clock: Clock, loopback_certificate: Certificate
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 201 Created\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if kind == "nobody":
        server.close()
        await server.wait_closed()
    rules = EndpointRules(hosts=[f"127.0.0.1:{port}"], networks=LOOPBACK)
    address = replace(here(), endpoint=f"https://127.0.0.1:{port}/push/secret")
    async with opened(key, clock, rules=rules, tls=loopback_certificate.client_context()) as channel:
        delivery = await channel.send(address, push())
    if kind != "nobody":
        server.close()
        await server.wait_closed()
    assert delivery.outcome is PushOutcome.FAILED
    assert "secret" not in delivery.detail


def here() -> WebPush:
    p256dh = from_base64url(VapidKey.generate().public)
    return WebPush(endpoint="https://fcm.googleapis.com/fcm/send/secret", p256dh=p256dh, auth=bytes(16))


WRONG = {
    "a key off the curve": {"p256dh": b"\4" + bytes(64)},
    "a compressed key": {"p256dh": b"\2" + bytes(32)},
    "no key": {"p256dh": b""},
    "a short secret": {"auth": bytes(15)},
    "a long secret": {"auth": bytes(17)},
    "plain http": {"endpoint": "http://fcm.googleapis.com/secret"},
    "another host": {"endpoint": "https://secret.example/secret"},
    "no URL": {"endpoint": "secret"},
}


@pytest.mark.threat("T13")
@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
async def test_an_address_is_refused_at_its_registration_with_words_that_do_not_repeat_it(
    changes: dict[str, Any], key: VapidKey, clock: Clock
) -> None:
    async with opened(key, clock) as channel:
        assert channel.refusal(here()) is None
        why = channel.refusal(replace(here(), **changes))
        assert why
        assert "secret" not in why
        delivery = await channel.send(replace(here(), **changes), push())
    assert delivery == Delivery(outcome=PushOutcome.REFUSED, detail=why)


async def test_an_address_of_another_service_is_a_bug(channel: WebPushChannel) -> None:
    with pytest.raises(LocalProtocolError):
        await channel.send(Apns(topic="x", token="y"), push())


# The check of the operator


async def test_a_check_says_who_answers_and_what_the_public_key_is(
    channel: WebPushChannel, there: Receiver, key: VapidKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = EndpointRules(hosts=[f"localhost:{there.port}"], networks=LOOPBACK)
    monkeypatch.setattr(only, "hosts", only.hosts[-1:])
    channel._rules = only
    said = await channel.check()
    assert key.public in said
    assert said.endswith("answered by localhost")


@pytest.mark.threat("T13")
async def test_a_check_of_services_that_do_not_answer_names_each(
    key: VapidKey, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        if host == "ntfy.example":
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with opened(key, clock, rules=EndpointRules(hosts=["ntfy.example"])) as channel:
        with pytest.raises(TransportError) as failed:
            await channel.check()
    assert failed.value.reason is TransportReason.UNREACHABLE
    assert str(failed.value) == (
        "Web Push: fcm.googleapis.com: its host has an address that no push goes to; "
        "updates.push.services.mozilla.com: its host has an address that no push goes to; "
        "ntfy.example: its name cannot be resolved"
    )


@pytest.mark.threat("T11")
def test_no_repr_shows_an_endpoint_or_a_key() -> None:
    shown = repr(here())
    assert "secret" not in shown
    assert "p256dh" not in shown
