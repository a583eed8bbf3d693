"""The companion's page: who may use it, what it shows to whom, and that an answer counts once."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from companion_push.companion.attend import Outcomes, put_pending
from companion_push.companion.consent import describe
from companion_push.companion.inbox import Notice, NoticeKind
from companion_push.companion.page.app import BODY_SECONDS, MAX_BODY, MAX_HELD, WAIT
from companion_push.companion.page.asking import MAX_NOTICES
from companion_push.companion.page.serving import link_to
from companion_push.companion.page.sessions import LINK_SECONDS, MAX_SESSIONS, SESSION_SECONDS, Sessions
from headless_passkey.errors import TransportError, UsageError
from http_serving.addresses import network
from tests.companion.family import Companion, Frame
from tests.companion.page_client import ABSENT, TIMEOUT, Page, served
from tests.loop_clock import LoopClock
from tests.ports import reserved_port
from tests.relay.household import Household, Relay
from tests.trust.people import device

PATHS = ["/", "/companion.js", "/companion.css", "/icon.svg"]


@pytest_asyncio.fixture
async def page(anna: Companion) -> AsyncIterator[Page]:
    async with served(anna.state) as page:
        yield page


@pytest_asyncio.fixture
async def asked(page: Page, anna: Companion, frame: Frame) -> AsyncIterator[str]:
    """The page asks about a request of the device; its id at the relay."""
    name = await frame.ask(anna.caller, rp_name="Example Inc", note="by the window")
    putting = await begin(page, anna)
    yield name
    await end(putting)


async def begin(page: Page, anna: Companion) -> "asyncio.Task[None]":
    """Ask about what the relay has for this companion, as the program does."""
    anna.inbox._on_notice = page.asking.note
    await anna.inbox.poll()

    async def serve() -> None:
        while True:
            await put_pending(anna.inbox, page.asking, page.asking, Outcomes(), once=False)
            await anna.inbox.changed()

    return asyncio.create_task(serve())


async def end(putting: "asyncio.Task[None]") -> None:
    putting.cancel()
    await asyncio.wait([putting])


async def becomes(frame: Frame, name: str, state: str) -> None:
    """Wait until the relay has the request in this state."""
    async with asyncio.timeout(TIMEOUT):
        while await frame.state_of(name) != state:
            pass


def one(state: dict[str, Any]) -> bool:
    return len(state["requests"]) == 1 and bool(state["asking"])


def none(state: dict[str, Any]) -> bool:
    return not state["requests"]


def opened(state: dict[str, Any]) -> bool:
    return state["open"] is not None


# What is shown


async def test_the_page_shows_what_the_terminal_shows(page: Page, anna: Companion, asked: str) -> None:
    browser = await page.browser()
    state = await browser.until(one)
    (shown,), (request,) = state["requests"], anna.inbox.pending
    at_terminal = "\n".join(describe(request, page.clock()))
    assert shown["asks"] == '"frame 0" asks to sign in'
    for text in (shown["asks"], shown["at"], shown["words"], shown["note"]):
        assert text in at_terminal
    said = (shown["at"], shown["words"], shown["note"], shown["digits"])
    assert said == ("example.com", '"Example Inc"', '"by the window"', None)
    assert shown["expires"] == request.announcement.expires
    assert 200 < shown["seconds"] <= 300


@pytest.mark.threat("T18")
async def test_the_url_is_given_after_the_yes_to_the_browser_that_said_it_and_to_nobody_after_the_end(
    page: Page, anna: Companion, frame: Frame, asked: str
) -> None:
    desk, sofa = await page.browser(), await page.browser()
    state = await desk.until(one)
    assert "FIDO" not in json.dumps(state)
    assert await desk.answer(state["requests"][0]["name"], "yes") == 204
    state = await desk.until(opened)
    assert state["open"]["url"].startswith("FIDO:/")
    assert set("".join(state["open"]["modules"])) == {"0", "1"}
    assert 'must now say "example.com"' in state["open"]["compare"]
    elsewhere = (await sofa.until(opened))["open"]
    assert (elsewhere["url"], elsewhere["modules"]) == (None, None)
    assert elsewhere["asks"] == '"frame 0" asks to sign in'
    await becomes(frame, asked, "opened")
    await frame.caller.tell(asked, "cancelled")
    await anna.inbox.poll()
    state = await desk.until(lambda state: state["open"] is None)
    assert "FIDO" not in json.dumps(state)


async def test_the_url_goes_when_its_time_is_up(page: Page, anna: Companion, frame: Frame) -> None:
    await frame.ask(anna.caller)
    putting = await begin(page, anna)
    browser = await page.browser()
    state = await browser.until(one)
    await browser.answer(state["requests"][0]["name"], "yes")
    seconds = (await browser.until(opened))["open"]["seconds"]
    clock = LoopClock(asyncio.get_running_loop())
    clock.passes(seconds + 1)
    await browser.until(lambda state: state["open"] is None)
    await end(putting)


async def test_a_request_that_has_ended_disappears_at_once(
    page: Page, anna: Companion, frame: Frame, asked: str
) -> None:
    browser = await page.browser()
    state = await browser.until(one)
    gone = asyncio.create_task(browser.until(none))
    await frame.caller.tell(asked, "cancelled")
    await anna.inbox.poll()
    state = await gone
    assert state["notices"][-1]["text"] == "the device withdrew the request"
    assert await browser.answer("x", "yes") == 409


@pytest.mark.threat("T5")
async def test_what_has_expired_is_neither_shown_nor_taken(page: Page, anna: Companion, asked: str) -> None:
    browser = await page.browser()
    (request,) = (await browser.until(one))["requests"]
    page.clock.ahead = 400
    assert none(await browser.state())
    assert await browser.answer(request["name"], "yes") == 409


async def test_warnings_are_shown_as_at_the_terminal_and_only_the_last(page: Page) -> None:
    browser = await page.browser()
    refused = Notice(kind=NoticeKind.REFUSED, message="it is old", reason="expired", advice="set the clock")
    for number in range(MAX_NOTICES):
        page.asking.note(Notice(kind=NoticeKind.RING_CHANGED, message=f"change {number}"))
    page.asking.note(refused)
    texts = [each["text"] for each in (await browser.state())["notices"]]
    assert len(texts) == MAX_NOTICES
    assert texts[0] == "change 1"
    assert texts[-1] == "refused a request: it is old: set the clock [expired]"


# Answers


@pytest.mark.parametrize("text", ["no", "not me"])
async def test_a_no_declines_and_not_me_mutes_the_device(
    page: Page, anna: Companion, frame: Frame, asked: str, text: str
) -> None:
    browser = await page.browser()
    state = await browser.until(one)
    assert await browser.answer(state["requests"][0]["name"], text) == 204
    await browser.until(none)
    await becomes(frame, asked, "declined")
    await anna.inbox.poll()
    told = [each["text"] for each in (await browser.state())["notices"]]
    assert any("is muted" in each for each in told) is (text == "not me")


@pytest.mark.threat("T18")
async def test_of_several_tabs_one_answer_counts(page: Page, frame: Frame, asked: str) -> None:
    tabs = [await page.browser() for _ in range(4)]
    (request,) = (await tabs[0].until(one))["requests"]
    statuses = await asyncio.gather(*(tab.answer(request["name"], "no") for tab in tabs))
    assert sorted(statuses) == [204, 409, 409, 409]


@pytest.mark.threat("T4")
async def test_digits_are_the_yes_and_a_wrong_number_ends_it(
    page: Page, anna: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller, digits="42")
    putting = await begin(page, anna)
    browser = await page.browser()
    (request,) = (await browser.until(one))["requests"]
    assert request["digits"] == 2
    assert '"42"' not in json.dumps(await browser.state())
    for slip in ("yes", "y", "4", "422", "four", ""):
        answer = await browser.call("POST", "/answer", {"request": request["name"], "answer": slip})
        assert (answer.status, answer.body["detail"]) == (422, "That is no number of 2 digits.")
    assert await browser.answer(request["name"], "41") == 204
    await browser.until(none)
    async with asyncio.timeout(TIMEOUT):
        while not (failures := (await frame.caller.status(name))["failures"]):
            pass
    assert failures == [{"by": anna.caller.name, "reason": "wrong-digits"}]
    await end(putting)


@pytest.mark.threat("T4")
async def test_an_answer_is_for_the_request_that_it_names(page: Page, anna: Companion, frame: Frame) -> None:
    await frame.ask(anna.caller, digits="42")
    putting = await begin(page, anna)
    browser = await page.browser()
    (request,) = (await browser.until(one))["requests"]
    for other in ("", request["name"][:-1], request["name"].partition(".")[2], "0"):
        assert await browser.answer(other, "42") == 409
    assert await browser.answer(request["name"], " 4 2 ") == 204
    assert (await browser.until(opened))["open"]["url"].startswith("FIDO:/")
    await end(putting)


@pytest.mark.threat("T4")
async def test_what_arrives_while_another_is_open_is_shown_and_waits(
    page: Page, anna: Companion, frame: Frame, home: Household, relay: Relay
) -> None:
    newcomer = relay.caller(device("frame 1"))
    await home.append(*(each.person for each in (*home.companions, *home.devices, newcomer)))
    first = await frame.ask(anna.caller)
    putting = await begin(page, anna)
    browser = await page.browser()
    (request,) = (await browser.until(one))["requests"]
    await browser.answer(request["name"], "yes")
    await browser.until(opened)
    await Frame(caller=newcomer, home=home).ask(anna.caller)
    await anna.inbox.poll()
    state = await browser.until(lambda state: bool(state["requests"]))
    assert not state["asking"]
    assert await browser.answer(state["requests"][0]["name"], "yes") == 409
    await frame.caller.tell(first, "cancelled")
    await anna.inbox.poll()
    state = await browser.until(one)
    assert state["open"] is None
    assert await browser.answer(state["requests"][0]["name"], "no") == 204
    await browser.until(none)
    await end(putting)


# Who may use it


@pytest.mark.threat("T18")
async def test_without_a_link_nothing_is_shown_and_nothing_is_taken(page: Page, asked: str) -> None:
    await (await page.browser()).until(one)
    stranger = await page.stranger()
    for key in ("", "x", "é" * 200):
        stranger.key = key.encode().decode("latin-1")
        for call in (
            ("GET", "/state?seen="),
            ("DELETE", "/session"),
            ("POST", "/answer", {"request": "x", "answer": "yes"}),
        ):
            answer = await stranger.call(*call)
            assert answer.status == 401
            assert "frame" not in json.dumps(answer.body)


@pytest.mark.threat("T18")
async def test_the_cookie_alone_is_nothing_and_neither_is_the_key(page: Page) -> None:
    """A cookie goes to every port of the host, whoever serves there."""
    browser, other = await page.browser(), await page.browser()
    browser.key, other.key = other.key, browser.key
    assert (await browser.call("GET", "/state?seen=")).status == 401
    browser.key = ""
    assert (await browser.call("GET", "/state?seen=")).status == 401
    alone = await page.stranger()
    alone.key = other.key
    assert (await alone.call("GET", "/state?seen=")).status == 401


@pytest.mark.threat("T18")
async def test_a_link_opens_the_page_once(page: Page) -> None:
    link = page.link
    browsers = [await page.stranger() for _ in range(4)]
    statuses = await asyncio.gather(*(browser.enter(link) for browser in browsers))
    assert sorted(statuses) == [200, 403, 403, 403]


@pytest.mark.threat("T18")
async def test_a_newer_link_takes_the_place_of_the_one_before(page: Page) -> None:
    older, newer = page.link, page.link
    browser = await page.stranger()
    assert [await browser.enter(link) for link in (older, newer)] == [403, 200]


@pytest.mark.threat("T18")
@pytest.mark.parametrize("passed", [LINK_SECONDS + 60, -60], ids=["too late", "a clock that was set back"])
async def test_a_link_opens_nothing_beyond_its_time(page: Page, passed: float) -> None:
    link = page.link
    page.clock.ahead = passed
    browser = await page.stranger()
    assert await browser.enter(link) == 403
    page.clock.ahead = 0
    assert await browser.enter(link) == 403, "it is used up"


@pytest.mark.threat("T17")
async def test_wrong_secrets_take_the_link_from_nobody(page: Page) -> None:
    link, stranger = page.link, await page.stranger()
    for wrong in ("", "x", link.partition("#")[2][:-1], "é" * 32):
        assert await stranger.enter(f"#{wrong}") == 403
    assert await (await page.stranger()).enter(link) == 200


@pytest.mark.threat("T11")
async def test_no_secret_is_in_the_state_directory(page: Page) -> None:
    secret = page.link.partition("#")[2]
    browser = await page.browser()
    kept = b"".join(file.read_bytes() for file in page.state.page.parent.iterdir() if file.is_file())
    assert secret.encode() not in kept
    assert browser.key.encode() not in kept


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"hash":1,"expires":2}', b"x" * 9000])
async def test_a_link_that_was_damaged_is_none(page: Page, content: bytes) -> None:
    browser, link = await page.stranger(), page.link
    page.state.page_link.write_bytes(content)
    assert await browser.enter(link) == 403
    assert await browser.enter(page.link) == 200


@pytest.mark.threat("T18")
async def test_a_link_file_that_others_may_write_is_none(page: Page) -> None:
    browser, link = await page.stranger(), page.link
    page.state.page_link.chmod(0o666)
    assert await browser.enter(link) == 403


@pytest.mark.threat("T18")
async def test_a_session_can_be_ended_and_its_tabs_hear_of_it(page: Page) -> None:
    browser = await page.browser()
    seen = (await browser.state())["version"]
    waiting = asyncio.create_task(browser.call("GET", f"/state?seen={seen}"))
    await page.until_held(1)
    answer = await browser.call("DELETE", "/session")
    assert answer.status == 204
    assert 'companion="";' in answer.headers["Set-Cookie"]
    assert (await waiting).status == 401
    assert (await browser.call("GET", "/state?seen=")).status == 401


def test_a_session_ends_with_its_time_and_the_oldest_for_a_new_one() -> None:
    now = 0.0
    sessions = Sessions(clock=lambda: now)
    first = sessions.begin()
    now = 60
    others = [sessions.begin() for _ in range(MAX_SESSIONS)]
    assert sessions.find(first.cookie, first.key) is None
    assert all(sessions.find(each.cookie, each.key) is each for each in others)
    now = 60 + SESSION_SECONDS
    assert all(sessions.find(each.cookie, each.key) is None for each in others)


@pytest.mark.threat("T11")
def test_a_session_does_not_show_its_secrets() -> None:
    session = Sessions().begin()
    assert session.cookie not in repr(session)
    assert session.key not in repr(session)


# Other pages of the browser


@pytest.mark.threat("T18")
@pytest.mark.parametrize("path", [*PATHS, "/state?seen="])
@pytest.mark.parametrize("host", ["evil.example", "localhost:{port}", "127.0.0.1", "127.0.0.1:1", ""])
async def test_a_name_that_was_made_to_lead_here_gets_nothing(page: Page, path: str, host: str) -> None:
    """DNS rebinding: the browser calls us, and takes us for another origin."""
    browser = await page.browser()
    host = host.format(port=page.origin.rpartition(":")[2])
    assert (await browser.call("GET", path, headers={"Host": host})).status == 421


FOREIGN = {
    "another origin": {"Origin": "https://evil.example"},
    "the origin of another port": {"Origin": "http://127.0.0.1:1"},
    "null": {"Origin": "null"},
    "no origin": {"Origin": ABSENT},
    "another site": {"Sec-Fetch-Site": "cross-site"},
    "another port": {"Sec-Fetch-Site": "same-site"},
    "a navigation": {"Sec-Fetch-Site": "none"},
}


@pytest.mark.threat("T18")
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
async def test_no_other_page_can_answer(page: Page, asked: str, headers: dict[str, str]) -> None:
    """CSRF, even with both secrets."""
    browser = await page.browser()
    (request,) = (await browser.until(one))["requests"]
    body = {"request": request["name"], "answer": "yes"}
    assert (await browser.call("POST", "/answer", body, headers=headers)).status == 403
    link = {"link": page.link.partition("#")[2]}
    assert (await browser.call("POST", "/session", link, headers=headers)).status == 403
    assert (await browser.call("DELETE", "/session", headers=headers)).status == 403
    assert one(await browser.state())


@pytest.mark.threat("T18")
async def test_a_form_of_another_page_cannot_even_be_read(page: Page) -> None:
    browser = await page.browser()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = await browser.call("POST", "/answer", b"{}", headers={"Content-Type": kind})
        assert answer.status == 415


@pytest.mark.threat("T18")
async def test_every_answer_forbids_framing_keeping_and_foreign_code(page: Page) -> None:
    browser = await page.browser()
    answers = [await browser.call("GET", path) for path in (*PATHS, "/state?seen=", "/nothing", "/livez")]
    answers.append(await browser.call("GET", "/", headers={"Host": "evil.example"}))
    answers.append(await browser.call("POST", "/answer", {"request": "x", "answer": "yes"}))
    assert [each.status for each in answers] == [200] * 5 + [404, 204, 421, 409]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Server" not in answer.headers


@pytest.mark.threat("T18")
async def test_the_cookie_is_the_servers_alone(page: Page) -> None:
    stranger = await page.stranger()
    answer = await stranger.call("POST", "/session", {"link": page.link.partition("#")[2]})
    cookie = answer.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert part in cookie
    assert "Domain" not in cookie


@pytest.mark.threat("T18")
async def test_behind_a_proxy_the_cookie_is_of_the_host_alone_and_for_tls(anna: Companion) -> None:
    port = reserved_port()
    proxies = (network("127.0.0.1"),)
    async with served(
        anna.state, port=port, public_url="https://companion.example", trusted_proxies=proxies
    ) as page:
        assert page.link.startswith("https://companion.example/#")
        stranger = await page.stranger()
        answer = await stranger.call("POST", "/session", {"link": page.link.partition("#")[2]})
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-companion=")
        for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Secure"):
            assert part in cookie
        assert (await stranger.call("GET", "/", headers={"Host": f"127.0.0.1:{port}"})).status == 421


# Whatever is sent


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b"{}", b'{"request":1,"answer":"yes"}', b'{"request":"x","answer":null}', b"[" * 900,
     json.dumps({"request": "x", "answer": "y" * 65}).encode(), json.dumps({"request": "x" * 257, "answer": "y"}).encode()],
)  # fmt: skip
async def test_a_body_that_is_none_is_400(page: Page, body: bytes) -> None:
    browser = await page.browser()
    answer = await browser.call("POST", "/answer", body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.threat("T12")
async def test_bodies_and_waiting_calls_are_bounded(page: Page) -> None:
    browser = await page.browser()
    long = b'{"link":"' + b"x" * MAX_BODY + b'"}'
    answer = await browser.call("POST", "/session", long, headers={"Content-Type": "application/json"})
    assert answer.status == 413
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await browser.call("POST", "/session", b"{}", headers=packed)).status == 415
    seen = (await browser.state())["version"]
    waiting = [asyncio.create_task(browser.call("GET", f"/state?seen={seen}")) for _ in range(MAX_HELD)]
    await page.until_held(MAX_HELD)
    assert (await browser.call("GET", f"/state?seen={seen}")).body["version"] == seen, (
        "one more does not wait"
    )
    page.asking.publish()
    assert [(await each).body["version"] for each in waiting] == [seen + 1] * MAX_HELD


@pytest.mark.threat("T12")
async def test_a_body_that_does_not_come_is_waited_for_some_seconds(page: Page) -> None:
    host, port = page.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /session HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: {page.origin}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 9\r\n\r\n".encode())
    await (await page.stranger()).call("GET", "/livez")  # it has begun to read the one before
    LoopClock(asyncio.get_running_loop()).passes(BODY_SECONDS + 30)
    async with asyncio.timeout(TIMEOUT):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.transport.abort()


async def test_without_news_a_call_is_answered_before_proxies_give_it_up(page: Page) -> None:
    browser = await page.browser()
    seen = (await browser.state())["version"]
    waiting = asyncio.create_task(browser.call("GET", f"/state?seen={seen}"))
    await page.until_held(1)
    LoopClock(asyncio.get_running_loop()).passes(WAIT + 30)
    answer = await waiting
    assert (answer.status, answer.body["version"]) == (200, seen)


async def test_whoever_waits_is_told_when_the_companion_ends(page: Page) -> None:
    browser = await page.browser()
    waiting = asyncio.create_task(browser.call("GET", f"/state?seen={(await browser.state())['version']}"))
    await page.until_held(1)
    page.asking.end()
    assert (await waiting).status == 503


async def test_health_tells_whether_the_relay_answers(page: Page) -> None:
    stranger = await page.stranger()
    anybody = {"Host": "127.0.0.1:8472"}
    assert (await stranger.call("GET", "/livez", headers=anybody)).status == 204
    assert (await stranger.call("GET", "/readyz", headers=anybody)).status == 503
    page.asking.note(Notice(kind=NoticeKind.LISTENING, message="connected to the relay"))
    assert (await stranger.call("GET", "/readyz", headers=anybody)).status == 204


# Where it is served


@pytest.mark.threat("T18")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"trusted_proxies": (network("127.0.0.1"),)}, "--public-url is needed"),
        ({"public_url": "https://home.example/companion"}, "no path"),
        ({"public_url": "http://home.example"}, "https"),
        ({"at": ("0.0.0.0", 0)}, "only loopback"),
    ],
)
async def test_an_address_that_is_not_the_pages_own_is_refused(
    anna: Companion, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        async with served(anna.state, **options):
            pass


async def test_a_companion_serves_one_page(page: Page) -> None:
    with pytest.raises(TransportError):
        async with served(page.state):
            pass


async def test_without_a_page_there_is_no_link(anna: Companion) -> None:
    async with served(anna.state) as page:
        assert page.link.startswith(f"{page.origin}/#")
    with pytest.raises(UsageError, match="serves no page"):
        link_to(anna.state, now=0)
    anna.state.page.write_text('{"origin": "http://127.0.0.1:1"}')  # left by a run that was killed
    with pytest.raises(UsageError, match="serves no page"):
        link_to(anna.state, now=0)
