"""``companion-push companion channel``, as a program: how a companion says by which push services it is woken."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from companion_push.companion.push_address import MAX_ADDRESS, parse_address
from companion_push.push.channel import Delivery, Kind, PushOutcome
from headless_passkey.errors import UsageError
from program_parts.base64url import base64url
from tests.companion.family import enrolled
from tests.companion.program import outcome
from tests.push.recording import RecordingChannel
from tests.relay.household import Household, Relay, running_relay
from tests.relay.test_channels import APNS, AUTH, FCM, POINT, WEB_PUSH

SUBSCRIPTION: Final = {
    "endpoint": WEB_PUSH["endpoint"],
    "expirationTime": None,
    "keys": {"p256dh": POINT, "auth": AUTH},
}


@pytest_asyncio.fixture
async def services() -> list[RecordingChannel]:
    return [RecordingChannel(Kind.WEB_PUSH), RecordingChannel(Kind.FCM)]


@pytest_asyncio.fixture
async def relay(tmp_path: Path, services: list[RecordingChannel]) -> AsyncIterator[Relay]:
    async with running_relay(tmp_path / "relay.sqlite3", channels=services) as running:
        yield running


@pytest.fixture
def state(tmp_path: Path, home: Household) -> Path:
    enrolled(tmp_path, home.companions[0], home)
    return tmp_path / home.companions[0].name


async def channel(state: Path, *words: object, stdin: object = None) -> tuple[int, str, list[dict[str, Any]]]:
    text = "" if stdin is None else json.dumps(stdin)
    status, stdout, said = await outcome(
        "companion", "channel", *words, "--state", state, "--json", stdin=text
    )
    return status, stdout.strip(), [json.loads(line) for line in said]


async def test_a_companion_adds_lists_replaces_and_removes_a_channel(
    state: Path, home: Household, services: list[RecordingChannel]
) -> None:
    status, handle, said = await channel(state, "add", "-", stdin=SUBSCRIPTION)
    assert (status, said[-1]["kind"]) == (0, "web-push")
    name, submitted = (
        base64url(bytes(16)),
        await home.devices[0].submit(home.companions[0], name=base64url(bytes(16))),
    )
    assert submitted.body["notified"][0]["channel"] == "web-push"
    (push,) = await services[0].came(1)
    assert (push.handle, push.request_id) == (handle, name)

    status, again, _ = await channel(state, "add", "-", "--handle", handle, stdin=FCM)
    assert (status, again) == (0, handle)
    status, listed, _ = await channel(state, "list")
    found = json.loads(listed)
    assert [(each["handle"], each["kind"], each["state"]) for each in found["channels"]] == [
        (handle, "fcm", "good")
    ]
    assert found["offers"] == {"web-push": {"apps": ["app.example"]}, "fcm": {"apps": ["app.example"]}}
    assert (await channel(state, "remove", handle))[0] == 0
    assert json.loads((await channel(state, "list"))[1])["channels"] == []


async def test_the_list_says_to_people_what_the_relay_is_set_up_for(state: Path) -> None:
    status, stdout, said = await outcome("companion", "channel", "list", "--state", state)
    assert (status, stdout) == (0, "")
    assert said == [
        "this companion has no channel: nothing wakes it while it sleeps",
        "the relay pushes through web-push apps app.example; fcm apps app.example",
    ]


@pytest.mark.threat("T11")
async def test_what_the_relay_does_not_push_to_is_said_without_the_address(
    state: Path, tmp_path: Path
) -> None:
    file = tmp_path / "address.json"
    for address, expected in (
        (APNS, "the relay pushes to no such address: the relay is not set up for this kind"),
        (FCM | {"token": "a b"}, "that is no push address: token: expected a registration token"),
    ):
        file.write_text(json.dumps(address))
        status, stdout, said = await channel(state, "add", file)
        assert (status, stdout) == (2, "")
        assert said[-1]["message"] == expected
        assert str(address["token"]) not in json.dumps(said)


async def test_a_fifth_channel_is_refused_with_what_to_do(state: Path) -> None:
    for number in range(4):
        assert (await channel(state, "add", "-", stdin=FCM | {"token": f"t{number}"}))[0] == 0
    status, _, said = await channel(state, "add", "-", stdin=FCM)
    assert status == 2
    assert said[-1]["advice"] == "remove one: `companion-push companion channel remove HANDLE`"


@pytest.mark.threat("T11")
@pytest.mark.parametrize("given", ["https://push.example/SECRET", '{"token": "SECRET"}'], ids=["url", "json"])
async def test_an_address_is_no_argument(state: Path, given: str) -> None:
    status, _, said = await channel(state, "add", given)
    assert status == 2
    assert "a push address is no argument" in said[-1]["message"]
    assert "SECRET" not in json.dumps(said)


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (SUBSCRIPTION, WEB_PUSH),
        (WEB_PUSH, WEB_PUSH),
        ({name: value for name, value in WEB_PUSH.items() if name != "kind"}, WEB_PUSH),
        (FCM, FCM),
        (APNS, APNS | {"sandbox": False}),
        (APNS | {"sandbox": True}, APNS | {"sandbox": True}),
    ],
    ids=["subscription", "web push", "without kind", "fcm", "apns", "sandbox"],
)
def test_an_address_is_read_in_either_form(given: dict[str, Any], parsed: dict[str, Any]) -> None:
    assert parse_address(json.dumps(given).encode()) == parsed


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SECRET",
        b'["SECRET"]',
        b'{"kind": "sms", "token": "SECRET"}',
        b'{"kind": "fcm", "token": "SECRET"}',
        b'{"kind": "apns", "topic": "a", "token": "SECRET", "sandbox": 1}',
        b'{"endpoint": "SECRET", "keys": []}',
        b'{"endpoint": 1}',
        b'"' + b"x" * MAX_ADDRESS + b'"',
    ],
    ids=["nothing", "text", "list", "another kind", "no app", "sandbox", "keys", "endpoint", "too long"],
)
def test_what_is_no_address_is_refused_and_not_repeated(data: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(data)
    assert "SECRET" not in str(caught.value)


async def test_a_companion_tests_all_its_channels_or_one(
    state: Path, services: list[RecordingChannel]
) -> None:
    """As `companion-push push test`."""
    handles = sorted([(await channel(state, "add", "-", stdin=body))[1] for body in (SUBSCRIPTION, FCM)])
    status, stdout, said = await outcome("push", "test", "--state", state)
    assert (status, said) == (0, [])
    assert [line.split()[::2] for line in stdout.splitlines()] == [[handle, "sent"] for handle in handles]
    status, stdout, said = await outcome("push", "test", handles[0], "--state", state)
    assert (status, stdout.split()[::2]) == (0, [handles[0], "sent"])
    assert sum(len(service.pushes) for service in services) == 3


@pytest.mark.parametrize(
    ("became", "expected", "reason"),
    [
        (PushOutcome.GONE, 10, "credentials-refused"),
        (PushOutcome.STALE, 10, "credentials-refused"),
        (PushOutcome.REFUSED, 10, "credentials-refused"),
        (PushOutcome.BUSY, 4, "server-failed"),
        (PushOutcome.FAILED, 4, "server-failed"),
    ],
)
async def test_a_test_that_reaches_nobody_says_what_to_do(
    state: Path, services: list[RecordingChannel], became: PushOutcome, expected: int, reason: str
) -> None:
    await channel(state, "add", "-", stdin=SUBSCRIPTION)
    services[0].answers.append(Delivery(outcome=became))
    status, stdout, said = await outcome("push", "test", "--state", state, "--json")
    assert (status, stdout.split()[1:]) == (expected, ["web-push", str(became)])
    (failed,) = map(json.loads, said)
    assert failed["reason"] == reason
    assert failed["advice"]


async def test_who_has_no_channel_has_nothing_to_test(state: Path) -> None:
    status, stdout, said = await outcome("push", "test", "--state", state, "--json")
    assert (status, stdout) == (2, "")
    assert json.loads(said[-1])["message"] == "this companion has no channel"
    await channel(state, "add", "-", stdin=FCM)
    status, _, said = await outcome("push", "test", base64url(bytes(16)), "--state", state, "--json")
    assert (status, json.loads(said[-1])["message"]) == (2, "this companion has no such channel")
