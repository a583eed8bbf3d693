"""FCM and APNs as an operator sets them up: the real programs, with the services' real names, which a proxy leads to stand-ins."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from certificates import make_certificate
from cryptography.hazmat.primitives.asymmetric import rsa

from companion_push.cli import make_parser
from companion_push.push.channel import Kind
from companion_push.push.options import push_channels
from companion_push.push.provider_token import ProviderKey
from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.trust.account_code import AccountCode
from program_parts.base64url import base64url
from tests.device.connect_proxy import ConnectProxy
from tests.programs import run, running
from tests.push.apple import DEVICE, KEY, TEAM, TOPIC, Apple, replies, serving_apple
from tests.push.google import PROJECT, Clock, Google, serving_google, write_account
from tests.relay import household
from tests.relay.household import Caller, fresh_id
from tests.trust import people
from tests.trust.people import companion, device, grow

FCM, OAUTH = "fcm.googleapis.com", "oauth2.googleapis.com"
APNS, SANDBOX = "api.push.apple.com", "api.sandbox.push.apple.com"
PHONE = "dGVzdC1pbnN0YW5jZQ:APA91b" + "x" * 134


class Now(Clock):
    """The real clocks, for programs of their own."""

    def unix(self) -> float:
        return time.time()

    def steady(self) -> float:
        return time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Vendors:
    google: Google
    apple: Apple
    options: Sequence[str]
    environment: dict[str, str]


@pytest_asyncio.fixture
async def vendors(
    tmp_path: Path, rsa_key: rsa.RSAPrivateKey, p8: Path, provider_key: ProviderKey
) -> AsyncIterator[Vendors]:
    certificate = make_certificate(tmp_path, names=(FCM, OAUTH, APNS, SANDBOX))
    keys = {(TEAM, KEY): provider_key.private.public_key()}
    async with AsyncExitStack() as stack:
        google = await stack.enter_async_context(serving_google(certificate, rsa_key, Now()))
        apple = await stack.enter_async_context(
            serving_apple(certificate, Now(), keys=keys, topics={TEAM: {TOPIC}})
        )
        ports = {name: int(url.rpartition(":")[2]) for name, url in (("g", google.url), ("a", apple.url))}
        google.url = f"https://{OAUTH}"
        google.phones.add(PHONE)
        apple.devices.add((TOPIC, DEVICE))
        proxy = ConnectProxy(
            {f"{host}:443": ports["g" if "google" in host else "a"] for host in (FCM, OAUTH, APNS, SANDBOX)}
        )
        address = await stack.enter_async_context(proxy.running())
        file = write_account(tmp_path / "account.json", google.account())
        yield Vendors(
            google=google,
            apple=apple,
            options=("--fcm", f"companion={file}", "--apns", f"{TOPIC}:{TEAM}:{KEY}={p8}"),
            environment={"HTTPS_PROXY": f"http://{address}", "SSL_CERT_FILE": str(certificate.ca)},
        )
        assert google.faults == apple.faults == []


async def test_the_check_asks_both_services(vendors: Vendors) -> None:
    status, stdout, stderr = await run(
        "companion_push", "push", "check", *vendors.options, environment=vendors.environment
    )
    assert (status, stderr) == (0, "")
    assert stdout.splitlines() == [
        f"FCM, app companion, project {PROJECT}: takes these credentials",
        f"APNs, topic {TOPIC}, production: takes these credentials",
        f"APNs, topic {TOPIC}, sandbox: takes these credentials",
    ]


async def test_the_check_ends_with_10_when_a_service_refuses_the_key(vendors: Vendors) -> None:
    vendors.apple.script += [replies(403, "InvalidProviderToken")] * 2
    status, stdout, stderr = await run(
        "companion_push", "push", "check", *vendors.options, environment=vendors.environment
    )
    assert status == 10
    assert stdout.startswith("FCM, app companion")
    (line,) = stderr.splitlines()
    assert f"APNs, topic {TOPIC}: production: 403 InvalidProviderToken; sandbox: 403" in line
    assert line.endswith("[credentials-refused]")


@pytest.mark.threat("T11")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_relay_wakes_phones_of_both_vendors_and_takes_the_notification_away(
    vendors: Vendors, tmp_path: Path, loop: str
) -> None:
    store = tmp_path / "relay.sqlite3"
    words = (
        "relay",
        "--listen",
        "127.0.0.1:0",
        "--store",
        str(store),
        "--event-loop",
        loop,
        "--log-level",
        "debug",
        *vendors.options,
    )
    async with running("companion_push", *words, environment=vendors.environment) as program:
        url = await program.line()
        async with aiohttp.ClientSession() as session:
            anna, frame = (
                Caller(person, session, url, household.Clock()) for person in (companion(), device())
            )
            _, line, _ = await run(
                "companion_push", "account", "add", "alice", "--store", store, "--relay", url
            )
            code = AccountCode.parse(line)
            ring = people.found(
                anna.person, account=code.account, account_name=code.account_name, now=time.time()
            )
            body = {"code": base64url(code.code), "ring": base64url(ring.document)}
            assert (await anna.post("/v1/accounts", body)).status == 201
            android, iphone = fresh_id(), fresh_id()
            for handle, address in (
                (android, {"kind": "fcm", "app": "companion", "token": PHONE}),
                (iphone, {"kind": "apns", "topic": TOPIC, "token": DEVICE}),
            ):
                assert (await anna.put(f"/v1/channels/{handle}", address)).status == 201
            ring = grow(ring, anna.person, anna.person, frame.person)
            assert (await anna.post("/v1/ring", {"ring": base64url(ring.document)})).status == 201

            def told(purpose: str, handle: str, request: str | None = None) -> dict[str, str]:
                said = {"v": "1", "purpose": purpose, "handle": handle}
                return said if request is None else {**said, "request": request}

            async def told_to_both(number: int, purpose: str, request: str | None = None) -> None:
                received = await vendors.apple.coming(number)
                content = {key: value for key, value in received.body.items() if key != "aps"}
                assert content == told(purpose, iphone, request)
                while len(vendors.google.messages) < number:
                    await vendors.google.arrived.get()
                message = vendors.google.messages[number - 1].body["message"]
                assert message["data"] == told(purpose, android, request)

            await told_to_both(1, "ring")
            name = fresh_id()
            assert (await frame.submit(anna, name=name)).status == 201
            await told_to_both(2, "request", name)
            status = await frame.status(name)
            while any(each["outcome"] == "pending" for each in status["notified"]):
                held = await frame.get(f"/v1/requests/{name}?version={status['version']}&wait=20")
                status = held.body
            assert sorted((each["channel"], each["outcome"]) for each in status["notified"]) == [
                ("apns", "sent"),
                ("fcm", "sent"),
            ]
            assert (await frame.tell(name, "cancelled")).status == 200
            await told_to_both(3, "dismiss", name)
        assert await program.end() == 0
        said = await program.stderr()
        for secret in (PHONE, DEVICE, *vendors.google.granted, *vendors.apple.bearers):
            assert secret not in said


# Options


def channels(*words: object) -> Any:
    return push_channels(make_parser("push").parse_args(["push", "check", *map(str, words)]))


def test_without_options_nothing_is_set_up() -> None:
    assert channels() == ()


def test_an_app_has_the_name_of_its_project_or_its_own(rsa_key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    account = Google(clock=Clock(), private=rsa_key, url=f"https://{OAUTH}").account()
    file = write_account(tmp_path / "a=b.json", account)
    (channel,) = channels("--fcm", file, "--fcm", f"com.example.app={file}")
    assert channel.kind is Kind.FCM
    assert channel.offer == {"apps": ["com.example.app", PROJECT]}
    with pytest.raises(UsageError, match=f"--fcm: {PROJECT} is there twice"):
        channels("--fcm", file, "--fcm", file)


def test_topics_share_a_key(p8: Path) -> None:
    (channel,) = channels("--apns", f"a.b:{TEAM}:{KEY}={p8}", "--apns", f"a.c:{TEAM}:{KEY}={p8}")
    assert channel.kind is Kind.APNS
    assert channel.offer == {"topics": ["a.b", "a.c"]}
    with pytest.raises(UsageError, match=r"--apns: a\.b is there twice"):
        channels("--apns", f"a.b:{TEAM}:{KEY}={p8}", "--apns", f"a.b:{TEAM}:{KEY}={p8}")


@pytest.mark.parametrize(
    "word",
    ["key.p8", "a.b=key.p8", "a.b:TEAM=key.p8", "a.b:T:K=", "::=key.p8", "a:b:c:d=key.p8"],
)
def test_a_topic_without_its_parts_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        channels("--apns", word)
    assert refused.value.code == 2
    assert "expected TOPIC:TEAM:KEY=FILE" in capsys.readouterr().err


@pytest.mark.threat("T11")
@pytest.mark.parametrize("option", ["--fcm", "--apns"])
def test_a_file_that_others_may_read_is_refused(option: str, p8: Path, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(p8.read_bytes())
    path.chmod(0o644)
    with pytest.raises(SetupError) as refused:
        channels(option, path if option == "--fcm" else f"a.b:{TEAM}:{KEY}={path}")
    assert refused.value.reason is SetupReason.STATE_EXPOSED
