"""The webhook: signatures, settings, and one call of an account service, whatever it answers."""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from certificates import Certificate

from companion_push.relay.account_events import PAUSES
from companion_push.serving.webhook import Attempt, Webhook
from companion_push.serving.webhook_client import MAX_ANSWER, WebhookClient
from headless_passkey.errors import SetupError, UsageError
from tests.device.connect_proxy import ConnectProxy
from tests.loop_clock import LoopClock
from tests.open_things import Interruption, cancel_everywhere, interrupted
from tests.programs import ROOT
from tests.relay.account_service import (
    PATIENCE,
    RELEASED,
    AccountService,
    account_service,
    new_secret,
    silent,
    status,
)
from tests.test_documentation import blocks
from tests.vectors_loader import Vector, name, vectors

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LONG_AGO = 1_614_265_330.9
BODY = b'{"type":"device.muted"}'


@pytest.mark.parametrize("case", vectors("webhook"), ids=name)
def test_the_signature_is_that_of_the_libraries_of_standard_webhooks(case: Vector) -> None:
    webhook = Webhook(url="https://accounts.example/", secrets=(case["secret"],))
    assert webhook.headers(case["id"], case["body"].encode(), now=case["timestamp"] + 0.9) == {
        "Content-Type": "application/json",
        "webhook-id": case["id"],
        "webhook-timestamp": str(case["timestamp"]),
        "webhook-signature": case["signature"],
    }


def test_each_secret_makes_a_signature_so_that_one_can_take_the_place_of_another() -> None:
    old, new = new_secret(), new_secret()
    url = "https://accounts.example/"
    both = Webhook(url=url, secrets=(new, old)).headers("id", BODY, now=LONG_AGO)["webhook-signature"]
    alone = [
        Webhook(url=url, secrets=(each,)).headers("id", BODY, now=LONG_AGO)["webhook-signature"]
        for each in (new, old)
    ]
    assert both.split(" ") == alone


# Settings


@pytest.mark.parametrize(
    "url",
    [
        "https://accounts.example",
        "https://accounts.example:8443/hooks/17?tenant=4711",
        "https://10.0.0.7/",
        "https://[2001:db8::7]/",
        "http://127.0.0.1:8080/hooks",
        "http://localhost/",
        "http://[::1]:8080/",
    ],
)
def test_a_webhook_is_called_over_https_or_on_this_machine(url: str) -> None:
    Webhook(url=url, secrets=(SECRET,))


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "url",
    [
        "",
        "accounts.example",
        "http://accounts.example/",
        "http://10.0.0.7/",
        "ftp://accounts.example/",
        "https://",
        "https://ada:hunter2@accounts.example/",
        "https://ada@accounts.example/",
        "https://accounts.example/#hunter2",
        "https://accounts.example/#",
        "https://accounts.example:0/",
        "https://accounts.example:99999/",
        "https://accounts.example/hunter2 x",
        "https://accounts.example/hunter2\n",
        "https://accounts.example\\@hunter2/",
        "https://accounts.éxample/",
        "https://-accounts.example/hunter2",
        "https://accounts.example/" + "x" * 2048,
        None,
        7,
    ],
    ids=lambda url: repr(url)[:40],
)
def test_any_other_url_is_refused_and_not_repeated(url: Any) -> None:
    with pytest.raises(UsageError, match=r"^webhook: expected https://") as caught:
        Webhook(url=url, secrets=(SECRET,))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def base64_of(size: int) -> str:
    return base64.b64encode(bytes(range(size))).decode()


@pytest.mark.parametrize("size", [24, 25, 32, 64])
def test_a_secret_has_24_to_64_bytes(size: int) -> None:
    Webhook(url="https://accounts.example", secrets=("whsec_" + base64_of(size),))


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "secrets",
    [
        (),
        SECRET,
        [SECRET],
        (SECRET,) * 5,
        (SECRET, ""),
        ("whsec_",),
        (SECRET.removeprefix("whsec_"),),
        ("whsec_" + base64_of(23),),
        ("whsec_" + base64_of(65),),
        (SECRET + "=",),
        (SECRET[:-1],),
        (SECRET + "\n",),
        ("whsk_" + base64_of(32),),
        (SECRET.encode(),),
        (None,),
    ],
    ids=[
        "none", "text", "list", "five", "an empty one", "nothing in it", "without whsec_", "short", "long", "padding too much",
        "a character less", "line end", "an asymmetric one", "bytes", "null",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_refused_and_not_repeated(secrets: Any) -> None:
    with pytest.raises(UsageError, match=r"^webhook: ") as caught:
        Webhook(url="https://accounts.example", secrets=secrets)
    assert "MfKQ9r8GKYqr" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.threat("T11")
def test_a_webhook_shows_neither_secret_nor_address() -> None:
    shown = repr(Webhook(url="https://accounts.example/hunter2", secrets=(SECRET,)))
    assert shown == "Webhook(ca=None)"


def test_roots_that_cannot_be_read_are_refused_at_once(tmp_path: Any) -> None:
    with pytest.raises(SetupError):
        WebhookClient(Webhook(url="https://accounts.example", secrets=(SECRET,), ca=tmp_path / "none.pem"))


# One call


async def posted(service: AccountService, **changes: Any) -> Attempt:
    """One attempt."""
    client = WebhookClient(service.webhook(**changes))
    try:
        async with asyncio.timeout(PATIENCE):
            return await client.post("event-1", BODY)
    finally:
        await client.close()


@pytest.mark.parametrize("code", [200, 202, 204, 299])
async def test_any_status_of_success_takes_an_event(code: int) -> None:
    async with account_service() as service:
        service.answers = [status(code)]
        assert (await posted(service)).taken
    (told,) = service.told
    assert (told.id, told.body, told.path) == ("event-1", BODY, "/hooks?tenant=4711")


@pytest.mark.parametrize("code", [301, 302, 307, 400, 401, 403, 404, 409, 429, 500, 502, 503, 504])
async def test_no_other_status_does_and_a_redirect_is_not_followed(code: int) -> None:
    async with account_service() as service:
        service.answers = [status(code, {"Location": service.url})]
        assert await posted(service) == Attempt(detail=f"status {code}")
        assert service.calls.qsize() == 1


async def test_who_wants_no_more_says_gone() -> None:
    async with account_service() as service:
        service.answers = [status(410)]
        assert await posted(service) == Attempt(gone=True, detail="status 410")


@pytest.mark.parametrize(
    ("text", "seconds"), [("120", 120.0), ("99999999", 86_400.0), ("soon", None), ("-1", None)]
)
async def test_the_account_service_may_ask_for_a_pause_of_a_day_at_most(
    text: str, seconds: float | None
) -> None:
    async with account_service() as service:
        service.answers = [status(503, {"Retry-After": text})]
        assert (await posted(service)).retry_after == seconds


async def endless(request: web.Request) -> web.StreamResponse:
    """A body that never ends, as fast as it is read."""
    response = web.StreamResponse(status=200)
    await response.prepare(request)
    while True:
        await response.write(b"x" * MAX_ANSWER)


async def unfinished(request: web.Request) -> web.StreamResponse:
    """A body of which the end never comes."""
    response = web.StreamResponse(status=200)
    await response.prepare(request)
    await response.write(b"x")
    await request.app[RELEASED].wait()
    return response


async def bomb(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=200, body=b"no gzip", headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("answer", [endless, unfinished, bomb])
async def test_the_status_counts_whatever_the_body_is(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
    tls: bool,  # noqa: FBT001
    loopback_certificate: Certificate,
) -> None:
    async with account_service(loopback_certificate if tls else None) as service:
        service.answers = [answer]
        assert (await posted(service, ca=loopback_certificate.ca)).taken


async def raw(answer: bytes) -> Attempt:
    """What becomes of an attempt at a server that sends these bytes and hangs up."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        service = AccountService(url=f"http://127.0.0.1:{port}/hunter2")
        return await posted(service)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not HTTP\r\n\r\n",
        b"HTTP/1.1 \r\n\r\n",
        b"HTTP/1.1 99999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 50_000 + b"\r\n",
    ],
    ids=["nothing", "no HTTP", "no status", "five digits", "a long header", "many headers"],
)
async def test_what_is_no_answer_is_a_failure_that_names_the_host_alone(answer: bytes) -> None:
    attempt = await raw(answer)
    assert (attempt.taken, attempt.gone) == (False, False)
    assert attempt.detail.startswith("127.0.0.1:")
    assert "hunter2" not in attempt.detail


async def test_a_service_that_is_not_there_is_a_failure() -> None:
    async with account_service() as service:
        pass
    attempt = await posted(service)
    assert not attempt.taken
    assert attempt.detail.endswith("cannot be reached: connection refused")


async def test_who_does_not_answer_in_time_has_taken_nothing() -> None:
    clock = LoopClock(asyncio.get_running_loop())
    async with account_service() as service:
        service.answers = [silent(service)]
        attempt = asyncio.ensure_future(posted(service))
        await service.next()
        clock.passes(20.5)
        assert (await attempt).detail.endswith("it did not answer in time")


async def test_another_certificate_than_the_roots_have_signed_is_a_failure(
    loopback_certificate: Certificate,
) -> None:
    async with account_service(loopback_certificate) as service:
        assert "certificate" in (await posted(service)).detail
        assert service.calls.empty()
        assert (await posted(service, ca=loopback_certificate.ca)).taken


@pytest.mark.threat("T11")
async def test_neither_secret_nor_path_nor_body_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with account_service() as service:
        service.answers = [status(500), status(200)]
        said = repr([await posted(service), await posted(service)])
    for secret in (service.secret, "tenant", "/hooks", "device.muted"):
        assert secret not in caplog.text + said


async def test_a_call_may_be_cancelled_everywhere() -> None:
    async with account_service() as service:
        client = WebhookClient(service.webhook())

        async def one(interruption: Interruption) -> Interruption:
            posting = asyncio.create_task(interrupted(client.post("event-1", BODY), interruption))
            await asyncio.wait({posting})
            return interruption

        await one(Interruption(at=0))  # opens the session
        assert await cancel_everywhere(one) > 1
        assert (await client.post("event-1", BODY)).taken
        await client.close()


async def test_the_environments_proxy_sees_host_and_port_alone(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with account_service(loopback_certificate) as service:
        proxy = ConnectProxy({"accounts.test:443": service.port}, credentials="ada:secret")
        async with proxy.running() as address:
            monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{address}")
            attempt = await posted(service, url="https://accounts.test/hooks", ca=loopback_certificate.ca)
    assert "certificate" in attempt.detail, "it has reached the server, whose name is another one"
    assert proxy.asked == ["accounts.test:443"]
    assert b"/hooks" not in proxy.carried


# The receiver of docs/how-to/webhook.md


@pytest.mark.threat("T6")
async def test_the_pages_receiver_takes_what_the_relay_sends_and_nothing_else() -> None:
    (code,) = blocks("docs/how-to/webhook.md", "python")
    receiver: dict[str, Any] = {}
    exec(compile(code, "webhook.md", "exec"), receiver)  # noqa: S102  a page of ours
    verified = receiver["verified"]
    (published,) = receiver["SECRETS"]
    assert published == SECRET
    old = Webhook(url="https://accounts.example", secrets=(new_secret(), SECRET))
    headers = old.headers("event-1", BODY, now=LONG_AGO)
    event = {"type": "device.muted"}
    assert verified(headers, BODY, LONG_AGO) == event
    assert verified(headers, BODY, LONG_AGO + 299) == verified(headers, BODY, LONG_AGO - 300) == event
    assert verified(headers, BODY, LONG_AGO + 301) is None
    assert verified(headers, BODY, LONG_AGO - 302) is None
    assert verified(headers, BODY + b" ", LONG_AGO) is None
    for changes in (
        {"webhook-id": "event-2"},
        {"webhook-timestamp": "1614265331"},
        {"webhook-timestamp": "now"},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": headers["webhook-signature"].split(" ")[0]},
        {"webhook-signature": headers["webhook-signature"].replace("v1,", "v2,")},
    ):
        assert verified(headers | changes, BODY, LONG_AGO) is None
    for header in headers.keys() - {"Content-Type"}:
        assert (
            verified({key: value for key, value in headers.items() if key != header}, BODY, LONG_AGO) is None
        )


def test_the_pages_pauses_are_those_of_the_program() -> None:
    page = (ROOT / "docs/how-to/webhook.md").read_text("utf-8")
    units = {"s": 1, "min": 60, "h": 3600}
    (row,) = (line for line in page.splitlines() if line.startswith("| pause |"))
    cells = [cell.strip().split(" ") for cell in row.strip("|").split("|")[1:]]
    assert tuple(int(number) * units[unit] for number, unit in cells) == PAUSES
