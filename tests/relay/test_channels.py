"""The channels of companions: who registers, replaces, lists and removes them, and who learns of them."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from companion_push.push.channel import Apns, Delivery, Fcm, Kind, Purpose, PushOutcome, WebPush
from companion_push.relay.app import close_account
from companion_push.relay.channels import identity_of
from companion_push.relay.messages import ChannelBody, parse_body
from program_parts.base64url import base64url
from tests.push.recording import RecordingChannel
from tests.relay import stores
from tests.relay.household import Relay, fresh_id, running_relay
from tests.relay.stores import place_of

POINT: Final = base64url(
    ec.derive_private_key(7, ec.SECP256R1())
    .public_key()
    .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
)
AUTH: Final = base64url(bytes(16))
SECRET: Final = ("token", "endpoint", "p256dh", "auth")
FCM: Final = {"kind": "fcm", "app": "app.example", "token": "token-of-a-phone"}
APNS: Final = {"kind": "apns", "topic": "app.example", "token": "0A" * 32}
WEB_PUSH: Final = {"kind": "web-push", "endpoint": "https://push.example/abc", "p256dh": POINT, "auth": AUTH}


@asynccontextmanager
async def a_relay(store: Path, *channels: RecordingChannel) -> AsyncIterator[Relay]:
    made = channels or tuple(RecordingChannel(kind) for kind in Kind)
    async with running_relay(store / "relay.sqlite3", channels=made) as relay:
        yield relay


def handle(number: int = 0) -> str:
    return base64url(bytes([number + 1]) * 16)


@pytest.mark.parametrize("body", [FCM, APNS, WEB_PUSH], ids=["fcm", "apns", "web push"])
async def test_a_companion_registers_confirms_lists_and_removes_a_channel(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    async with a_relay(tmp_path) as relay:
        (anna, _) = (await relay.household()).companions
        first = await anna.put(f"/v1/channels/{handle()}", body)
        assert (first.status, first.body) == (201, {})
        assert (await anna.put(f"/v1/channels/{handle()}", body)).status == 200  # the same again
        listed = (await anna.get("/v1/channels")).body["channels"]
        assert [(each["handle"], each["kind"], each["state"]) for each in listed] == [
            (handle(), body["kind"], "good")
        ]
        assert set(listed[0]) == {"handle", "kind", "state", "registered_at"}  # and no address
        assert (await anna.call("DELETE", f"/v1/channels/{handle()}")).status == 200
        assert (await anna.call("DELETE", f"/v1/channels/{handle()}")).status == 200
        assert (await anna.get("/v1/channels")).body["channels"] == []


async def test_a_companion_learns_what_the_relay_is_set_up_for(tmp_path: Path) -> None:
    async with a_relay(tmp_path, RecordingChannel(Kind.FCM)) as relay:
        (anna, _) = (await relay.household()).companions
        assert (await anna.get("/v1/channels")).body["offers"] == {"fcm": {"apps": ["app.example"]}}


async def test_a_channel_is_replaced_under_its_handle(tmp_path: Path) -> None:
    async with a_relay(tmp_path) as relay:
        (anna, _) = (await relay.household()).companions
        await anna.put(f"/v1/channels/{handle()}", FCM)
        assert (await anna.put(f"/v1/channels/{handle()}", FCM | {"token": "another"})).status == 201
        assert (await anna.put(f"/v1/channels/{handle()}", APNS)).status == 201
        (listed,) = (await anna.get("/v1/channels")).body["channels"]
        assert listed["kind"] == "apns"


async def test_a_companion_has_four_channels_and_may_replace_each(tmp_path: Path) -> None:
    async with a_relay(tmp_path) as relay:
        (anna, bert) = (await relay.household()).companions
        for number in range(4):
            body = FCM | {"token": f"token {number}".replace(" ", "-")}
            assert (await anna.put(f"/v1/channels/{handle(number)}", body)).status == 201
        refused = await anna.put(f"/v1/channels/{handle(4)}", APNS)
        assert (refused.status, refused.problem, refused.body["limit"]) == (409, "too-many-channels", 4)
        assert (await anna.put(f"/v1/channels/{handle(3)}", APNS)).status == 201
        # its own token under another handle moves, and is no fifth one
        assert (await anna.put(f"/v1/channels/{handle(5)}", FCM | {"token": "token-0"})).status == 201
        assert len((await anna.get("/v1/channels")).body["channels"]) == 4
        assert (await bert.put(f"/v1/channels/{handle()}", APNS | {"token": "0B" * 32})).status == 201


async def test_a_companion_registers_at_most_thirty_others_an_hour_and_confirms_freely(
    tmp_path: Path,
) -> None:
    async with a_relay(tmp_path) as relay:
        (anna, bert) = (await relay.household()).companions
        for number in range(30):
            reply = await anna.put(f"/v1/channels/{handle()}", FCM | {"token": f"t{number}"})
            assert reply.status == 201
        refused = await anna.put(f"/v1/channels/{handle()}", FCM | {"token": "t30"})
        assert (refused.status, refused.problem) == (429, "rate-limited")
        assert refused.headers["Retry-After"] == str(refused.body["retry_after"])
        assert (await anna.put(f"/v1/channels/{handle()}", FCM | {"token": "t29"})).status == 200
        assert (await bert.put(f"/v1/channels/{handle()}", FCM)).status == 201  # T17


@pytest.mark.threat("T13")
async def test_only_companions_have_channels(tmp_path: Path) -> None:
    async with a_relay(tmp_path) as relay:
        (frame,) = (await relay.household()).devices
        for reply in (
            await frame.get("/v1/channels"),
            await frame.put(f"/v1/channels/{handle()}", FCM),
            await frame.call("DELETE", f"/v1/channels/{handle()}"),
        ):
            assert (reply.status, reply.problem) == (404, "not-found")


MALFORMED: Final[dict[str, dict[str, Any]]] = {
    "no kind": {"token": "t"},
    "another kind": FCM | {"kind": "sms"},
    "none is no channel": {"kind": "none"},
    "a member of another kind": FCM | {"endpoint": "https://push.example"},
    "sandbox of fcm": FCM | {"sandbox": True},
    "no app": {"kind": "fcm", "token": "t"},
    "an unknown member": FCM | {"account": "x"},
    "an empty token": FCM | {"token": ""},
    "a token with a space": FCM | {"token": "a b"},
    "a long token": FCM | {"token": "t" * 1025},
    "an app with a slash": FCM | {"app": "a/b"},
    "a device token that is not hexadecimal": APNS | {"token": "0G" * 32},
    "a short device token": APNS | {"token": "0A" * 31},
    "an odd device token": APNS | {"token": "0A" * 32 + "0"},
    "a long device token": APNS | {"token": "0A" * 101},
    "a topic with a line break": APNS | {"topic": "app\n"},
    "http": WEB_PUSH | {"endpoint": "http://push.example/abc"},
    "a scheme in capitals is https all the same, and a user is not allowed": WEB_PUSH
    | {"endpoint": "HTTPS://user@push.example/"},
    "no host": WEB_PUSH | {"endpoint": "https:///abc"},
    "a fragment": WEB_PUSH | {"endpoint": "https://push.example/abc#"},
    "a backslash": WEB_PUSH | {"endpoint": "https://push.example\\@evil.example/"},
    "a control character": WEB_PUSH | {"endpoint": "https://push.example/\tabc"},
    "dot segments": WEB_PUSH | {"endpoint": "https://push.example/x/%2e%2E/abc"},
    "a port that is none": WEB_PUSH | {"endpoint": "https://push.example:99999/"},
    "port 0": WEB_PUSH | {"endpoint": "https://push.example:0/"},
    "another script": WEB_PUSH | {"endpoint": "https://pücsh.example/"},
    "a long endpoint": WEB_PUSH | {"endpoint": "https://push.example/" + "a" * 1004},
    "a point off the curve": WEB_PUSH | {"p256dh": base64url(b"\x04" + bytes(63) + b"\x01")},
    "a compressed point": WEB_PUSH | {"p256dh": base64url(b"\x02" + bytes(32))},
    "a hybrid point": WEB_PUSH | {"p256dh": base64url(b"\x06" + bytes(64))},
    "a short auth": WEB_PUSH | {"auth": base64url(bytes(15))},
    "a padded auth": WEB_PUSH | {"auth": AUTH + "=="},
}


@pytest.mark.threat("T12")
async def test_what_is_no_address_of_its_kind_is_refused_and_not_repeated(tmp_path: Path) -> None:
    async with a_relay(tmp_path) as relay:
        (anna, _) = (await relay.household()).companions
        for what, body in MALFORMED.items():
            reply = await anna.put(f"/v1/channels/{handle()}", body)
            assert (reply.status, reply.problem) == (400, "invalid-request"), what
            assert "push.example" not in json.dumps(reply.body), what
        for wrong in ("short", handle() + "A", "A" * 21 + "!"):
            assert (await anna.put(f"/v1/channels/{wrong}", FCM)).problem == "invalid-request"
        longest = WEB_PUSH | {"endpoint": "https://push.example/" + "a" * 1003}
        assert (await anna.put(f"/v1/channels/{handle()}", longest)).status == 201


async def test_a_kind_or_address_that_the_relay_pushes_nothing_to_is_refused(tmp_path: Path) -> None:
    picky = RecordingChannel(Kind.WEB_PUSH, refused="no push service of this relay has such endpoints")
    async with a_relay(tmp_path, picky) as relay:
        (anna, _) = (await relay.household()).companions
        for body, detail in (
            (FCM, "the relay is not set up for this kind"),
            (WEB_PUSH, "no push service of this relay has such endpoints"),
        ):
            reply = await anna.put(f"/v1/channels/{handle()}", body)
            assert (reply.status, reply.problem) == (400, "unsupported-channel")
            assert reply.body["detail"] == detail
        assert (await anna.get("/v1/channels")).body["channels"] == []


# One owner


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    ("first", "again"),
    [
        (FCM, FCM | {"app": "other.example"}),
        (APNS, APNS | {"token": "0a" * 32, "sandbox": True}),
        (WEB_PUSH, WEB_PUSH | {"endpoint": "https://PUSH.example.:443/%61bc", "auth": base64url(b"a" * 16)}),
        (
            WEB_PUSH | {"endpoint": "https://push.example/fcm/send/a:b?x=%2f"},
            WEB_PUSH | {"endpoint": "https://push.example/fcm/send/a%3Ab?x=/"},
        ),
    ],
    ids=["fcm", "apns", "web push", "web push, encoded"],
)
async def test_a_token_has_one_owner_in_whatever_form_it_comes(
    tmp_path: Path, first: dict[str, Any], again: dict[str, Any]
) -> None:
    async with a_relay(tmp_path) as relay:
        alice, carol = await relay.household("alice"), await relay.household("carol")
        (anna, bert), (cleo, _) = alice.companions, carol.companions
        await anna.put(f"/v1/channels/{handle()}", first)
        assert (await bert.put(f"/v1/channels/{handle(1)}", again)).status == 201  # of the same account
        assert (await anna.get("/v1/channels")).body["channels"] == []
        assert (await cleo.put(f"/v1/channels/{handle(2)}", first)).status == 201  # of another one
        assert (await bert.get("/v1/channels")).body["channels"] == []


@pytest.mark.parametrize(
    "other",
    [
        "https://push.example/ABC",
        "https://push.example:444/abc",
        "https://push.example/abc?x",
        "https://push.example/%2fabc",
    ],
    ids=["another path", "another port", "a query", "an encoded slash"],
)
def test_different_endpoints_are_not_taken_for_the_same(other: str) -> None:
    def identity(endpoint: str) -> bytes:
        return identity_of(WebPush(endpoint=endpoint, p256dh=b"", auth=b""))

    assert identity(other) != identity("https://push.example/abc")
    assert identity("https://push.example/abc?") == identity("https://push.example/abc")


async def test_an_endpoint_that_a_relay_of_before_has_stored_has_one_owner_too(tmp_path: Path) -> None:
    encoded = WEB_PUSH | {"endpoint": "https://push.example/?token=a%2Fb"}
    async with a_relay(tmp_path) as relay:
        anna, bert = (await relay.household()).companions
        await anna.put(f"/v1/channels/{handle()}", encoded)
        stored = sha256(b"web-push https://push.example:443/?token=a%2Fb").digest()
        await relay._relay._open_store.transact(
            lambda db: db.execute("UPDATE channels SET identity = ?", (stored,))
        )
        assert (await bert.put(f"/v1/channels/{handle(1)}", encoded)).status == 201
        assert (await anna.get("/v1/channels")).body["channels"] == []


def test_a_token_of_one_kind_is_not_a_token_of_another() -> None:
    assert identity_of(Fcm(app="a", token="aa")) != identity_of(Apns(topic="a", token="aa"))


# The end of a membership


async def test_a_removed_companion_has_no_channel_any_more(tmp_path: Path) -> None:
    async with a_relay(tmp_path) as relay:
        home = await relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        await anna.put(f"/v1/channels/{handle()}", FCM)
        await bert.put(f"/v1/channels/{handle()}", APNS)
        await home.append(anna.person, frame.person)
        assert [kind for (kind,) in rows(relay, "SELECT kind FROM channels")] == ["fcm"]
        await home.append(anna.person, bert.person, frame.person)  # it comes back, and registers anew
        assert (await bert.get("/v1/channels")).body["channels"] == []


async def test_a_closed_account_keeps_neither_channels_nor_its_tag(tmp_path: Path) -> None:
    async with a_relay(tmp_path) as relay:
        home = await relay.household()
        await home.companions[0].put(f"/v1/channels/{handle()}", FCM)
        await close_account(relay.app, "alice")
        assert rows(relay, "SELECT * FROM channels") == rows(relay, "SELECT * FROM push_tags") == []


# Who sees what


@pytest.mark.threat("T11")
def test_an_address_has_no_repr_on_its_way_in() -> None:
    for body in (FCM, APNS, WEB_PUSH):
        parsed = parse_body(json.dumps(body).encode(), ChannelBody)
        assert repr(parsed) == f"ChannelBody(kind={body['kind']})"
        address = parsed.parse()
        assert [value for name, value in body.items() if name in SECRET and value in repr(address)] == []


@pytest.mark.threat("T11")
async def test_no_answer_and_no_log_holds_an_address(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = [FCM["token"], APNS["token"], "push.example/abc", AUTH, POINT]
    said: list[Any] = []
    with caplog.at_level(logging.DEBUG):
        async with a_relay(tmp_path) as relay:
            home = await relay.household()
            (anna, bert), (frame,) = home.companions, home.devices
            for number, body in enumerate((FCM, APNS, WEB_PUSH)):
                said.append((await anna.put(f"/v1/channels/{handle(number)}", body)).body)
            name = fresh_id()
            said.append((await frame.submit(anna, bert, name=name)).body)
            for caller in (anna, bert):
                said += [(await caller.get(path)).body for path in ("/v1/channels", "/v1/inbox", "/v1/ring")]
            said.append(await frame.status(name))
    text = json.dumps(said) + caplog.text
    assert [secret for secret in secrets if secret.lower() in text.lower()] == []


def rows(relay: Relay, query: str) -> list[tuple[Any, ...]]:
    return stores.query(place_of(relay.store), query)


# Tests of a channel


@pytest.mark.parametrize("outcome", PushOutcome)
async def test_a_companion_tests_a_channel_and_hears_what_became_of_the_push(
    tmp_path: Path, outcome: PushOutcome
) -> None:
    service = RecordingChannel(Kind.FCM, Delivery(outcome=outcome, detail="secret of the operator"))
    async with a_relay(tmp_path, service) as relay:
        (anna, _) = (await relay.household()).companions
        await anna.put(f"/v1/channels/{handle()}", FCM)
        tested = await anna.post(f"/v1/channels/{handle()}/test", {})
        assert (tested.status, tested.body) == (200, {"outcome": str(outcome)})
        ((address, push),) = service.pushes
        assert address == Fcm(app=FCM["app"], token=FCM["token"])
        assert (push.purpose, push.handle, push.request_id) == (Purpose.TEST, handle(), None)
        listed = [each["state"] for each in (await anna.get("/v1/channels")).body["channels"]]
        expected = {PushOutcome.GONE: [], PushOutcome.STALE: ["stale"], PushOutcome.REFUSED: ["refused"]}
        assert listed == expected.get(outcome, ["good"])


@pytest.mark.threat("T13")
async def test_nobody_tests_what_is_another_companions(tmp_path: Path) -> None:
    service = RecordingChannel(Kind.FCM)
    async with a_relay(tmp_path, service) as relay:
        house = await relay.household()
        anna, berta = house.companions
        await anna.put(f"/v1/channels/{handle()}", FCM)
        for caller in (berta, *house.devices):
            refused = await caller.post(f"/v1/channels/{handle()}/test", {})
            assert (refused.status, refused.problem) == (404, "not-found")
        assert (await anna.post(f"/v1/channels/{handle(1)}/test", {})).status == 404
        assert service.pushes == []


@pytest.mark.threat("T13")
async def test_a_companion_tests_ten_times_an_hour(tmp_path: Path) -> None:
    service = RecordingChannel(Kind.FCM)
    async with a_relay(tmp_path, service) as relay:
        (anna, _) = (await relay.household()).companions
        await anna.put(f"/v1/channels/{handle()}", FCM)
        for _ in range(10):
            assert (await anna.post(f"/v1/channels/{handle()}/test", {})).status == 200
        refused = await anna.post(f"/v1/channels/{handle()}/test", {})
        assert (refused.status, refused.problem) == (429, "rate-limited")
        assert len(service.pushes) == 10


async def test_a_test_of_a_service_that_raises_has_failed(tmp_path: Path) -> None:
    service = RecordingChannel(Kind.FCM, ValueError("secret"))
    async with a_relay(tmp_path, service) as relay:
        (anna, _) = (await relay.household()).companions
        await anna.put(f"/v1/channels/{handle()}", FCM)
        assert (await anna.post(f"/v1/channels/{handle()}/test", {})).body == {"outcome": "failed"}
        assert (await anna.get("/v1/channels")).body["channels"][0]["state"] == "good"
