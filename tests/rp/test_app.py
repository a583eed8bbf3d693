"""The HTTP face: problems, headers, bounds; any bytes get an answer of the right kind."""

import asyncio
import codecs
import gzip
import hashlib
import json
import logging
import re
import secrets
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relying_party.errors import Check, RequestRefused, SetupError
from relying_party.http import app as app_module
from relying_party.http import request as request_module
from relying_party.http.app import make_app
from relying_party.http.http_server import Runner
from relying_party.http.request import MAX_BODY
from relying_party.store import sqlite as sqlite_module
from tests.rp.authenticator_double import Faults, b64, create, get, unb64
from tests.rp.clients import WEB_ORIGIN, Browser, Clock, Device, Site, Who, make_config

POSTS = [
    f"/webauthn/{ceremony}/{step}"
    for ceremony in ("registration", "authentication")
    for step in ("options", "result")
]


async def test_it_lives(site: Site) -> None:
    answer = await site.raw("GET", "/livez", {})
    assert (answer.status, answer.body) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/", "/livez", "/nowhere", "/session", "/static/page.css"])
async def test_every_answer_carries_the_security_headers(site: Site, path: str) -> None:
    headers = (await site.raw("GET", path, {})).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "publickey-credentials-get=(self)" in headers["Permissions-Policy"]
    assert headers["Strict-Transport-Security"]
    assert headers["Cache-Control"] in ("no-store", "no-cache")


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/static/nothing.css", 404, "not-found"),
        ("GET", "/static/index.html", 404, "not-found"),
        ("GET", "/static/..%2fapp.py", 404, "not-found"),
        ("GET", POSTS[0], 405, "method-not-allowed"),
        ("PUT", "/session", 405, "method-not-allowed"),
    ],
)
async def test_what_is_not_there_is_a_problem(
    site: Site, method: str, path: str, status: int, slug: str
) -> None:
    answer = await site.raw(method, path, {})
    assert (answer.status, answer.slug) == (status, slug)


@pytest.mark.parametrize("name", ["page.css", "passkeys.js", "icon.svg"])
async def test_the_pages_files_are_there(site: Site, name: str) -> None:
    answer = await site.raw("GET", f"/static/{name}", {})
    assert answer.status == 200


@pytest.mark.parametrize("path", POSTS)
async def test_a_body_has_a_bound(site: Site, path: str) -> None:
    body = b'{"user_name": "' + b"x" * MAX_BODY + b'"}'
    answer = await site.raw("POST", path, Browser().headers("POST", path, 0), body)
    assert (answer.status, answer.slug) == (413, "payload-too-large")
    assert answer.body["limit"] == MAX_BODY


@pytest.mark.parametrize("path", POSTS)
async def test_a_body_says_that_it_is_json(site: Site, path: str) -> None:
    headers = {**Browser().headers("POST", path, 0), "Content-Type": "text/plain"}
    assert (await site.raw("POST", path, headers, b"{}")).slug == "invalid-request"


BAD_NAMES: list[Any] = ["", " ada", "ada ", "a\nb", "a\u202eb", "a\u00a0b", "x" * 65, 5, None, ["ada"], {}]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
async def test_a_name_is_a_line_of_text(site: Site, name: Any) -> None:
    for body in ({"user_name": name}, {"user_name": "ada", "display_name": name or " "}):
        answer = await site.send(Device(), "POST", POSTS[0], body)
        assert (answer.status, answer.slug) == (400, "invalid-request")


async def test_equal_names_are_one_name(site: Site) -> None:
    await site.register(Device(), "Zo\u00eb")
    answer = await site.send(Device(), "POST", POSTS[0], {"user_name": "Zoe\u0308"})
    assert answer.slug == "user-exists"


@pytest.mark.parametrize(
    "body",
    [
        {"user_name": "ada", "more": 1},
        {"user_name": "ada", "display_name": ""},
        {},
    ],
    ids=str,
)
async def test_registration_options_take_no_more_and_no_less(site: Site, body: Any) -> None:
    assert (await site.send(Device(), "POST", POSTS[0], body)).slug == "invalid-request"


def _changed(response: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(response))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


MALFORMED: list[tuple[tuple[str, ...], Any]] = [
    (("id",), b64(bytes(31))),
    (("rawId",), ...),
    (("rawId",), 5),
    (("type",), "password"),
    (("type",), ...),
    (("response",), ...),
    (("response",), []),
    (("response", "clientDataJSON"), ...),
    (("response", "clientDataJSON"), ""),
    (("response", "clientDataJSON"), "e30="),
    (("response", "clientDataJSON"), "e3 0"),
    (("response", "clientDataJSON"), "e31"),  # stray bits
    (("response", "clientDataJSON"), "e30\n"),
    (("response", "clientDataJSON"), b64(bytes(4097))),
    (("clientExtensionResults",), "none"),
    (("clientExtensionResults",), ["appid"]),
    (("clientExtensionResults",), False),
]
MALFORMED_REGISTRATIONS = [
    *MALFORMED,
    (("response", "attestationObject"), ...),
    (("response", "attestationObject"), "+/+/"),
    (("response", "attestationObject"), b64(bytes(32769))),
    (("response", "transports"), "hybrid"),
    (("response", "transports"), {}),
]
MALFORMED_SIGN_INS = [
    *MALFORMED,
    (("response", "authenticatorData"), ...),
    (("response", "authenticatorData"), b64(bytes(8193))),
    (("response", "signature"), ...),
    (("response", "signature"), b64(bytes(5121))),
    (("response", "userHandle"), ["AAAA"]),
    (("response", "userHandle"), b64(bytes(65))),
    (("response", "userHandle"), 7),
]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(("path", "value"), MALFORMED_REGISTRATIONS, ids=str)
async def test_a_malformed_registration_is_refused_and_uses_nothing_up(
    site: Site, path: tuple[str, ...], value: Any
) -> None:
    device = Device()
    ceremony, options = await site.begin(device, "registration", user_name="ada")
    _, response = create(options, device.client_origin)
    answer = await site.finish(device, "registration", ceremony, _changed(response, path, value))
    assert (answer.status, answer.slug) == (400, "invalid-request")
    assert (await site.finish(device, "registration", ceremony, response)).status == 201


@pytest.mark.threat("T12")
@pytest.mark.parametrize(("path", "value"), MALFORMED_SIGN_INS, ids=str)
async def test_a_malformed_sign_in_is_refused_and_uses_nothing_up(
    site: Site, path: tuple[str, ...], value: Any
) -> None:
    device = Device()
    passkey, _ = await site.register(device, "ada")
    ceremony, options = await site.begin(device, "authentication")
    response = get(passkey, options, device.client_origin)
    answer = await site.finish(device, "authentication", ceremony, _changed(response, path, value))
    assert (answer.status, answer.slug) == (400, "invalid-request")
    assert (await site.finish(device, "authentication", ceremony, response)).status == 200


NOTHINGS: list[Any] = ["", None, [], ...]
NOTHING_AS: Any = {"argvalues": NOTHINGS, "ids": ["empty text", "null", "empty list", "absent"]}


@pytest.mark.parametrize("nothing", **NOTHING_AS)
@pytest.mark.parametrize(
    "path", [("clientExtensionResults",), ("response", "transports"), ("authenticatorAttachment",)], ids=str
)
async def test_a_registration_may_say_nothing_in_each_way(
    site: Site, who: Who, path: tuple[str, ...], nothing: Any
) -> None:
    ceremony, options = await site.begin(who, "registration", user_name="ada")
    passkey, response = create(options, who.client_origin)
    answer = await site.finish(who, "registration", ceremony, _changed(response, path, nothing))
    assert answer.status == 201
    stored = await site.state.store.credential(passkey.credential_id, now=2)
    assert (stored.discoverable, stored.prf) == (None, None)
    assert stored.transports == (() if "transports" in path else ("hybrid", "internal"))


@pytest.mark.parametrize("nothing", **NOTHING_AS)
@pytest.mark.parametrize("path", [("clientExtensionResults",), ("authenticatorAttachment",)], ids=str)
async def test_a_sign_in_may_say_nothing_in_each_way(
    site: Site, who: Who, path: tuple[str, ...], nothing: Any
) -> None:
    passkey, _ = await site.register(who, "ada")
    ceremony, options = await site.begin(who, "authentication")
    response = _changed(get(passkey, options, who.client_origin), path, nothing)
    assert (await site.finish(who, "authentication", ceremony, response)).status == 200


@pytest.mark.parametrize("nothing", **NOTHING_AS)
async def test_an_empty_user_handle_is_no_user_handle(
    site: Site, who: Who, nothing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    passkey, _ = await site.register(who, "ada")
    for named, status in (({"user_name": "ada"}, 200), ({}, 403)):
        ceremony, options = await site.begin(who, "authentication", **named)
        response = get(passkey, options, who.client_origin)
        changed = _changed(response, ("response", "userHandle"), nothing)
        assert (await site.finish(who, "authentication", ceremony, changed)).status == status
    assert f"a ceremony did not verify: {Check.OWNER}" in caplog.messages  # nobody was named at all


@pytest.mark.parametrize("nothing", **NOTHING_AS)
@pytest.mark.parametrize("member", ["crossOrigin", "topOrigin"])
async def test_client_data_may_say_nothing_in_each_way(
    site: Site, who: Who, member: str, nothing: Any
) -> None:
    ceremony, options = await site.begin(who, "registration", user_name="ada")
    members = {
        "type": "webauthn.create",
        "challenge": options["challenge"],
        "origin": who.client_origin,
        "crossOrigin": False,
        "topOrigin": nothing if member == "topOrigin" else None,
    }
    members[member] = nothing
    raw = json.dumps({name: value for name, value in members.items() if value is not ...}).encode()
    _, response = create(options, who.client_origin, Faults(raw_client_data=raw))
    assert (await site.finish(who, "registration", ceremony, response)).status == 201


@pytest.mark.threat("T14")
@pytest.mark.parametrize("nothing", **NOTHING_AS)
async def test_a_frame_in_a_page_that_is_not_named_is_refused(
    site: Site, nothing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    added = {"crossOrigin": True, **({} if nothing is ... else {"topOrigin": nothing})}
    _, answer = await site.register(Browser(), "ada", Faults(client_data=added))
    assert answer.slug == "verification-failed"
    assert f"a ceremony did not verify: {Check.CROSS_ORIGIN}" in caplog.messages


BOM = codecs.BOM_UTF8


@pytest.mark.parametrize("path", POSTS)
async def test_a_body_may_begin_with_a_byte_order_mark(site: Site, path: str) -> None:
    headers = Browser().headers("POST", path, 0)
    body = {"user_name": "ada"} if path == POSTS[0] else {}
    plain = await site.raw("POST", path, headers, json.dumps(body).encode())
    marked = await site.raw("POST", path, headers, BOM + json.dumps(body).encode())
    assert (marked.status, plain.status) == ((200, 200) if "options" in path else (400, 400))
    assert (await site.raw("POST", path, headers, BOM + BOM + b"{}")).status == 400


async def test_client_data_may_begin_with_a_byte_order_mark_which_is_signed_too(
    site: Site, who: Who, caplog: pytest.LogCaptureFixture
) -> None:
    marked = Faults(client_data_mark=BOM)
    ceremony, options = await site.begin(who, "registration", user_name="ada")
    passkey, response = create(options, who.client_origin, marked)
    assert (await site.finish(who, "registration", ceremony, response)).status == 201
    stored = await site.state.store.credential(passkey.credential_id, now=2)
    sent = unb64(response["response"]["clientDataJSON"])
    assert sent.startswith(b'\xef\xbb\xbf{"type":"webauthn.create"')
    assert stored.client_data_hash == hashlib.sha256(sent).digest()
    assert (await site.sign_in(who, passkey, marked)).status == 200

    ceremony, options = await site.begin(who, "authentication")
    response = get(passkey, options, who.client_origin, marked)
    without = unb64(response["response"]["clientDataJSON"]).removeprefix(BOM)
    response["response"]["clientDataJSON"] = b64(without)
    answer = await site.finish(who, "authentication", ceremony, response)
    assert answer.slug == "verification-failed"
    assert caplog.messages[-1] == f"a ceremony did not verify: {Check.LIBRARY}"


@pytest.mark.parametrize("mark", [BOM + BOM, BOM + b" " + BOM, b"\xfe\xff", b"\xff\xfe"], ids=repr)
async def test_client_data_begins_with_nothing_else(
    site: Site, mark: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    _, answer = await site.register(Browser(), "ada", Faults(client_data_mark=mark))
    assert answer.slug == "verification-failed"
    assert caplog.messages == [f"a ceremony did not verify: {Check.CLIENT_DATA}"]


async def test_members_that_a_client_adds_to_webauthn_json_do_not_matter(site: Site) -> None:
    device = Device()
    ceremony, options = await site.begin(device, "registration", user_name="ada")
    _, response = create(options, device.client_origin)
    response["response"] |= {"publicKeyAlgorithm": -7, "publicKey": "AA", "authenticatorData": "AA"}
    response["more"] = {"deep": [1, {"er": None}]}
    assert (await site.finish(device, "registration", ceremony, response)).status == 201


OPTIONS, RESULT = POSTS[:2]
SAID: list[tuple[str, Any, str]] = [
    (OPTIONS, [], "the body is not a JSON object"),
    (OPTIONS, "ada", "the body is not a JSON object"),
    (OPTIONS, {}, "user_name is missing"),
    (OPTIONS, {"user_name": 5}, "user_name is not text"),
    (OPTIONS, {"user_name": ""}, "a name has 0 characters; 1 to 64 are expected"),
    (OPTIONS, {"user_name": "ada", "s3cret": 1}, "the body has a member that does not belong there"),
    (OPTIONS, {"user_name": "ada", "`$.x`": 1}, "the body has a member that does not belong there"),
    (OPTIONS, {"user_name": "a", "client": 1}, "client is not an object"),
    (OPTIONS, {"user_name": "a", "client": {"s3cret": 1}}, "client has a member that does not belong there"),
    (OPTIONS, {"user_name": "a", "client": {"kind": "s3cret"}}, 'client.kind is not "device" or "android"'),
    (POSTS[2], {"mediation": "s3cret"}, 'mediation is not "conditional"'),
    (RESULT, {"ceremony": "x"}, "response is missing"),
    (RESULT, {"ceremony": 1, "response": {}}, "ceremony is not the name that came with the options"),
    (RESULT, {"ceremony": "x", "response": 5}, "response is not an object"),
    (RESULT, {"ceremony": "x", "response": {"id": "a"}}, "response.rawId is missing"),
    (RESULT, {"ceremony": "x", "response": {"id": "a", "rawId": 5}}, "response.rawId is not text"),
    (
        RESULT,
        {"ceremony": "x", "response": {"id": "a", "rawId": "a", "type": "s3cret"}},
        'response.type is not "public-key"',
    ),
    (
        RESULT,
        {"ceremony": "x", "response": {"id": "a", "rawId": "a", "type": "public-key", "response": {}}},
        "response.response.clientDataJSON is missing",
    ),
]


@pytest.mark.parametrize(("path", "body", "said"), SAID, ids=[said for _, _, said in SAID])
async def test_what_is_wrong_with_a_body_is_said_in_our_own_words(
    site: Site, path: str, body: Any, said: str
) -> None:
    answer = await site.send(Device(), "POST", path, body)
    assert answer.body == {
        "type": "urn:headless-passkey:problem:invalid-request",
        "title": "The request is malformed",
        "status": 400,
        "detail": said,
    }


async def test_a_body_that_is_not_json_says_so(site: Site) -> None:
    for body in (b"", b"{", b'{"user_name":"ada"} x', b'{"user_name":"\xff"}', b"\xef\xbb\xbf"):
        answer = await site.raw("POST", OPTIONS, Browser().headers("POST", OPTIONS, 0), body)
        assert (answer.slug, answer.body["detail"]) == ("invalid-request", "the body is not JSON")


def test_each_refusal_has_a_title_of_its_own() -> None:
    titles = {kind.title for kind in _refusals(RequestRefused)}
    assert len(titles) == len(_refusals(RequestRefused)) > 10
    for title in titles:
        assert title == title.strip(".")
        assert title[0].isupper()
        assert not re.search(r"`|msgspec|aiohttp|fido2", title)


def _refusals(kind: type[RequestRefused]) -> list[type[RequestRefused]]:
    return [each for child in kind.__subclasses__() for each in (child, *_refusals(child))]


async def test_members_that_a_client_adds_around_it_do(site: Site) -> None:
    for path in (POSTS[1], POSTS[3]):
        body = {"ceremony": "x", "response": {}, "more": 1}
        assert (await site.send(Device(), "POST", path, body)).slug == "invalid-request"


@pytest.mark.threat("T12")
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-unknown", "identity, gzip", ""])
async def test_a_compressed_body_is_refused_and_not_unpacked(site: Site, encoding: str) -> None:
    headers = Browser().headers("POST", POSTS[0], 0)
    headers |= {"Content-Encoding": encoding, "Connection": "close"}
    for body in (b"\xff\xff\xff", gzip.compress(bytes(1_000_000))):
        answer = await site.raw("POST", POSTS[0], headers, body)
        assert (answer.status, answer.slug) == (415, "unsupported-media-type")


async def test_an_encoding_that_changes_nothing_is_taken(site: Site) -> None:
    headers = {**Browser().headers("POST", POSTS[0], 0), "Content-Encoding": "Identity"}
    assert (await site.raw("POST", POSTS[0], headers, b'{"user_name": "ada"}')).status == 200


async def test_a_client_that_hangs_up_before_its_body_has_come_is_no_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reading, ended = asyncio.Event(), asyncio.Event()
    read = request_module.json_body

    async def watched(request: web.Request) -> bytes:
        reading.set()
        try:
            return await read(request)
        finally:
            ended.set()

    monkeypatch.setattr(app_module, "json_body", watched)
    caplog.set_level(logging.INFO)
    # not aiohttp's own test server: that one ends the handler of who hangs up
    runner = Runner(make_app(make_config(tmp_path / "rp.sqlite")))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, writer = await asyncio.open_connection(*runner.addresses[0])
        head = (
            f"POST {POSTS[0]} HTTP/1.1\r\nHost: x\r\nOrigin: {WEB_ORIGIN}\r\nContent-Type: application/json"
        )
        writer.write(f"{head}\r\nContent-Length: 10\r\n\r\n{{".encode())
        await asyncio.wait_for(reading.wait(), 10)
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        await runner.cleanup()
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []
    assert any(record.message.startswith(f"POST {POSTS[0]}: 400") for record in caplog.records)


async def test_a_body_that_does_not_come_is_not_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(site.http.host, site.http.port)
    head = f"POST {POSTS[0]} HTTP/1.1\r\nHost: x\r\nOrigin: {WEB_ORIGIN}\r\nContent-Type: application/json"
    writer.write(f"{head}\r\nContent-Length: 10\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.threat("T11")
async def test_http_that_cannot_be_read_leaves_no_bytes_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    reader, writer = await asyncio.open_connection(site.http.host, site.http.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: __Host-session=" + b"secret" * 3000 + b"\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.0 400 ")
    writer.close()
    await writer.wait_closed()
    assert "a request could not be read: LineTooLong" in caplog.messages
    assert "secret" not in caplog.text


async def test_an_address_that_asks_too_often_waits(tmp_path: Path) -> None:
    clock = Clock()
    config = make_config(tmp_path / "rp.sqlite", requests_per_minute=3)
    app = make_app(config, clock=clock)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=clock, config=config)
        for _ in range(3):
            await site.begin(Device(nonce=site.nonce), "authentication")
        answer = await site.send(Device(), "POST", POSTS[2], {})
        assert (answer.status, answer.slug) == (429, "rate-limited")
        assert int(answer.headers["Retry-After"]) == answer.body["retry_after"] == 20
        assert answer.headers["RateLimit-Policy"] == '"changes-of-address";q=3;w=60'
        assert answer.headers["RateLimit"] == '"changes-of-address";r=0;t=20'
        assert (await site.send(Device(), "GET", "/session")).slug == "rate-limited"
        assert (await site.send(Browser(), "DELETE", "/session")).slug == "rate-limited"
        assert (await site.send(Browser(), "GET", "/session")).slug == "not-signed-in"
        assert (await site.raw("GET", "/livez", {})).status == 200
        clock.now += 20
        await site.begin(Device(nonce=site.nonce), "authentication")


@pytest.mark.threat("T17")
@pytest.mark.parametrize(
    "path", ["/", "/session", "/jwks.json", "/static/passkeys.js", "/.well-known/webauthn", "/nothing"],
    ids=["page", "session", "keys", "script", "well-known", "nothing"],
)  # fmt: skip
async def test_an_address_that_reads_too_often_waits_and_keeps_nobody_else_waiting(
    tmp_path: Path, path: str
) -> None:
    clock = Clock()
    config = make_config(tmp_path / "rp.sqlite", requests_per_minute=2)
    app = make_app(config, clock=clock)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=clock, config=config)
        answers = [await site.raw("GET", path, {}) for _ in range(10)]
        statuses = [answer.status for answer in answers]
        assert not any("RateLimit" in answer.headers for answer in answers[:8])
        for answer in (answers[8], await site.raw("GET", path, {"Accept": "text/html"})):  # a page too
            assert answer.headers["RateLimit-Policy"] == '"reads-of-address";q=8;w=60'
            assert answer.headers["RateLimit"] == f'"reads-of-address";r=0;t={answer.headers["Retry-After"]}'
        assert 429 not in statuses[:8]
        assert statuses[8:] == [429, 429]
        assert (await site.raw("HEAD", path, {})).status == 429
        assert (await site.raw("GET", "/livez", {})).status == 200
        await site.begin(Browser(), "authentication")  # what changes something has a limit of its own
        clock.now += 8
        assert (await site.raw("GET", path, {})).status == statuses[0]


async def test_a_store_that_does_not_answer_is_a_problem_and_loses_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    passkey, _ = await site.register(device, "ada")
    ceremony, options = await site.begin(device, "authentication")
    response = get(passkey, options, device.client_origin)
    browser = Browser()
    await site.sign_in(browser, passkey)
    other = sqlite3.connect(site.file)
    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT", 0.001)
    try:
        other.execute("BEGIN IMMEDIATE")  # holds the write lock
        answer = await site.finish(device, "authentication", ceremony, response)
        for path in ("/", "/me", "/session"):  # reads go on
            assert (await site.send(browser, "GET", path)).status == 200
        await site.begin(device, "authentication", user_name="ada")
    finally:
        other.close()
    monkeypatch.undo()
    assert (answer.status, answer.slug) == (503, "store-unavailable")
    assert answer.headers["Retry-After"] == "5"
    assert (await site.sign_in(device, passkey)).status == 200


async def test_a_store_whose_file_was_deleted_acknowledges_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    browser = Browser()
    ceremony, options = await site.begin(browser, "registration", user_name="ada")
    site.file.unlink()
    response = create(options, WEB_ORIGIN)[1]
    answer = await site.finish(browser, "registration", ceremony, response)
    assert (answer.status, answer.slug) == (503, "store-unavailable")
    assert (await site.send(Device(), "POST", POSTS[0], {"user_name": "eve"})).slug == "store-unavailable"
    assert f"the store is no longer the file at {site.config.store}" in caplog.text


async def test_a_fault_of_ours_is_a_problem_that_tells_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(name: str, *, now: float) -> None:
        raise ZeroDivisionError("ada.lovelace")

    monkeypatch.setattr(site.state.store, "user_by_name", broken)
    answer = await site.send(Device(), "POST", POSTS[0], {"user_name": "ada"})
    assert (answer.status, answer.slug) == (500, "internal-error")
    assert "ada.lovelace" not in caplog.text
    assert "unexpected ZeroDivisionError at test_app.py" in caplog.text


def _json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )


def _near_misses() -> st.SearchStrategy[Any]:
    """Bodies shaped like good ones, with bytes of any kind inside."""
    data = st.binary(max_size=200).map(b64) | st.text(max_size=20)
    client_data = (
        st.dictionaries(
            st.sampled_from(["type", "challenge", "origin", "crossOrigin", "topOrigin"]), _json_values()
        )
        .map(lambda value: b64(json.dumps(value).encode()))
        .filter(bool)
    )
    identifier = st.binary(min_size=1, max_size=64).map(b64)
    inner = st.fixed_dictionaries(
        {
            "clientDataJSON": client_data | data,
            "attestationObject": data,
            "authenticatorData": data,
            "signature": data,
        },
        optional={"userHandle": data, "transports": st.lists(st.text(max_size=9), max_size=9)},
    )
    return st.builds(
        lambda name, response, outputs: {
            "id": name,
            "rawId": name,
            "type": "public-key",
            "response": response,
            "clientExtensionResults": outputs,
        },
        identifier,
        inner,
        st.dictionaries(st.text(max_size=5), _json_values(), max_size=2),
    )


ANY_BODY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.threat("T12")
@pytest.mark.parametrize("path", POSTS)
@ANY_BODY
@given(body=st.binary(max_size=300) | _json_values().map(lambda value: json.dumps(value).encode()))
async def test_any_bytes_get_a_problem(site: Site, path: str, body: bytes) -> None:
    answer = await site.raw("POST", path, Browser().headers("POST", path, 0), body)
    if not (answer.status == 200 and path.endswith("options")):
        assert (answer.status, answer.slug) == (400, "invalid-request")
        assert not re.search(r"`|Expected|Invalid|Object|malformed:|codec", answer.body["detail"])


SIGNED_IN = [
    ("POST", "/webauthn/step-up/options"),
    ("POST", "/webauthn/step-up/result"),
    ("POST", "/session/refresh"),
    ("PATCH", "/me"),
    ("PATCH", "/me/credentials/AAAA"),
]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(("method", "path"), SIGNED_IN)
@ANY_BODY
@given(body=st.binary(max_size=300) | _json_values().map(lambda value: json.dumps(value).encode()))
async def test_any_bytes_of_who_is_signed_in_get_an_answer(
    site: Site, method: str, path: str, body: bytes
) -> None:
    browser = Browser()
    await site.register(browser, secrets.token_hex(16))
    answer = await site.raw(method, path, browser.headers(method, path, 0), body)
    if answer.status != 200:
        assert (answer.status, answer.slug) in (
            (400, "invalid-request"),
            (401, "not-signed-in"),
            (401, "step-up-required"),
            (404, "not-found"),
        )


@pytest.mark.threat("T12")
@given(name=st.text(max_size=60))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_name_in_an_address_is_not_there(site: Site, name: str) -> None:
    browser = Browser()
    await site.register(browser, secrets.token_hex(16))
    for kind in ("credentials", "sessions"):
        path = f"/me/{kind}/{quote(name, safe='', errors='surrogatepass')}"
        answer = await site.raw("DELETE", path, browser.headers("DELETE", path, 0))
        assert answer.status in (400, 401, 404, 405)


@pytest.mark.threat("T12")
@pytest.mark.parametrize("ceremony", ["registration", "authentication"])
@ANY_BODY
@given(response=_near_misses())
async def test_any_response_gets_a_problem(site: Site, ceremony: str, response: Any) -> None:
    device = Device()
    name, _ = await site.begin(
        device, ceremony, **({"user_name": "ada"} if ceremony == "registration" else {})
    )
    answer = await site.finish(device, ceremony, name, response)
    assert (answer.status, answer.slug) in ((400, "invalid-request"), (403, "verification-failed"))


@pytest.mark.threat("T12")
@ANY_BODY
@given(data=st.data())
async def test_a_sign_in_with_a_flipped_byte_is_refused(site: Site, data: st.DataObject) -> None:
    device = Device()
    passkey, _ = await site.register(device, secrets.token_hex(16))
    name, options = await site.begin(device, "authentication")
    response = get(passkey, options, device.client_origin)
    _flip(response, data.draw(st.sampled_from(["clientDataJSON", "authenticatorData", "signature"])), data)
    answer = await site.finish(device, "authentication", name, response)
    assert (answer.status, answer.slug) == (403, "verification-failed")


@pytest.mark.threat("T12")
@ANY_BODY
@given(data=st.data())
async def test_a_registration_with_a_flipped_byte_is_answered(site: Site, data: st.DataObject) -> None:
    """Without attestation nothing signs a registration: a changed AAGUID or counter is nobody's to see."""
    device = Device()
    name, options = await site.begin(device, "registration", user_name=secrets.token_hex(16))
    _, response = create(options, device.client_origin)
    _flip(response, data.draw(st.sampled_from(["clientDataJSON", "attestationObject"])), data)
    answer = await site.finish(device, "registration", name, response)
    assert answer.status == 201 or (answer.status, answer.slug) == (403, "verification-failed")


def _flip(response: dict[str, Any], name: str, data: st.DataObject) -> None:
    raw = bytearray(unb64(response["response"][name]))
    raw[data.draw(st.integers(0, 0xFFFF)) % len(raw)] ^= data.draw(st.integers(1, 255))
    response["response"][name] = b64(bytes(raw))


async def test_a_deep_body_is_refused(site: Site) -> None:
    for path in POSTS:
        for body in (b"[" * 30000 + b"]" * 30000, b'{"response":' * 5000 + b"1" + b"}" * 5000):
            answer = await site.raw("POST", path, Browser().headers("POST", path, 0), body)
            assert (answer.status, answer.slug) == (400, "invalid-request")


async def test_an_application_whose_store_cannot_open_says_so(tmp_path: Path) -> None:
    runner = web.AppRunner(make_app(make_config(tmp_path / "no" / "such" / "folder")))
    with pytest.raises(SetupError):
        await runner.setup()
    await runner.cleanup()


class _BehindAPassword(Browser):
    """A browser that a proxy in front has asked who its user is, which it says with each request from then on."""

    credentials = ""

    def headers(self, method: str, path: str, now: float) -> dict[str, str]:
        return super().headers(method, path, now) | {"Authorization": self.credentials}


@pytest.mark.parametrize(
    "credentials",
    ["Basic YWRhOmxvdmVsYWNl", 'Digest username="ada", realm="proxy"', "Negotiate YIIJ", "NTLM TlRMTVNTUAAD"],
    ids=lambda credentials: credentials.partition(" ")[0],
)
async def test_what_a_proxy_asks_for_makes_no_device_of_a_browser(site: Site, credentials: str) -> None:
    browser = _BehindAPassword()
    browser.credentials = credentials
    passkey, _ = await site.register(browser, "ada")
    assert (await site.sign_in(browser, passkey)).status == 200
    assert (await site.send(browser, "GET", "/me")).status == 200
