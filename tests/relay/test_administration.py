"""The account service's endpoint: closing, resetting and suspending accounts with a secret of its own."""

from pathlib import Path
from typing import Any

import pytest

from companion_push.push.channel import Kind
from companion_push.relay.app import close_account, set_poll_only
from companion_push.relay.config import RelayConfig
from headless_passkey.errors import UsageError
from headless_passkey.trust.account_code import AccountCode
from tests.companion.program import outcome
from tests.push.recording import RecordingChannel
from tests.relay.household import PROBLEM, Relay, running_relay

SECRET = "s" * 31 + "~"
HERS = {"issuer": "https://issuer.example", "subject": "17"}


async def administer(
    relay: Relay, act: str, body: object, *, authorization: str | None = f"Bearer {SECRET}"
) -> tuple[int, Any]:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with relay.session.post(
        f"{relay.url}/admin/v1/accounts/{act}", json=body, headers=headers
    ) as response:
        return response.status, await response.json(content_type=None)


@pytest.mark.threat("T17")
async def test_the_account_service_suspends_lifts_resets_and_closes(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", admin_secret=SECRET) as relay:
        home = await relay.household()
        anna = home.companions[0]
        assert await administer(relay, "suspend", {"name": "alice"}) == (
            200,
            {"account": home.account, "code": None},
        )
        assert (await anna.get("/v1/ring")).problem == "account-suspended"
        assert (await administer(relay, "lift", {"account": home.account}))[0] == 200
        assert (await anna.get("/v1/ring")).status == 200
        status, body = await administer(relay, "reset", {"account": home.account})
        code = AccountCode.parse(body["code"])
        assert (status, body["account"], code.account_name) == (200, home.account, "alice")
        assert (await anna.get("/v1/ring")).problem == "account-closed"
        assert await administer(relay, "close", {"name": "alice"}) == (
            200,
            {"account": code.account, "code": None},
        )
        for act in ("suspend", "lift", "reset", "close"):
            status, body = await administer(relay, act, {"name": "alice"})
            assert (status, body["type"]) == (404, f"{PROBLEM}not-found")


async def test_the_account_service_lets_no_push_go_to_an_account(tmp_path: Path) -> None:
    fcm = RecordingChannel(Kind.FCM)
    channel = {"kind": "fcm", "app": "app.example", "token": "t"}
    async with running_relay(tmp_path / "s", admin_secret=SECRET, channels=[fcm]) as relay:
        home, other = await relay.household(), await relay.household("bob")
        (anna, _), (frame,) = home.companions, home.devices
        bobs = other.companions[0]
        assert (await anna.put(f"/v1/channels/{'A' * 22}", channel)).status == 201
        assert (await bobs.put(f"/v1/channels/{'A' * 22}", channel | {"token": "u"})).status == 201
        assert (await administer(relay, "poll-only", {"name": "alice"}))[0] == 200
        assert (await anna.get("/v1/channels")).body == {"channels": [], "offers": {}}
        assert (await anna.put(f"/v1/channels/{'A' * 22}", channel)).problem == "unsupported-channel"
        sent = await frame.submit(anna)
        assert sent.status == 201
        # where several processes may serve, the inbox may be one that is waited at
        assert [each for each in sent.body["notified"] if each["channel"] != "inbox"] == []
        assert len((await bobs.get("/v1/channels")).body["channels"]) == 1, "another account's"
        assert (await administer(relay, "push", {"account": home.account}))[0] == 200
        assert "fcm" in (await anna.get("/v1/channels")).body["offers"]
        assert (await anna.put(f"/v1/channels/{'A' * 22}", channel)).status == 201
        assert (await administer(relay, "poll-only", {"name": "nobody"}))[0] == 404
        assert (await administer(relay, "poll-only", HERS))[0] == 404


async def test_a_host_lets_no_push_go_to_an_account_and_a_new_one_begins_without_that(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", channels=[RecordingChannel(Kind.FCM)]) as relay:
        home = await relay.household()
        await set_poll_only(relay.app, "alice")
        assert (await home.companions[0].get("/v1/channels")).body["offers"] == {}
        await set_poll_only(relay.app, "alice", on=False)
        assert set((await home.companions[0].get("/v1/channels")).body["offers"]) == {"fcm"}
        await set_poll_only(relay.app, "alice")
        await close_account(relay.app, "alice")
        again = await relay.household()
        assert set((await again.companions[0].get("/v1/channels")).body["offers"]) == {"fcm"}
        with pytest.raises(UsageError):
            await set_poll_only(relay.app, "nobody")


async def test_a_subject_is_suspended_and_closed_out_before_it_has_an_account(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", admin_secret=SECRET) as relay:
        for act in ("suspend", "lift", "close"):
            assert await administer(relay, act, HERS) == (200, {"account": None, "code": None})
        assert (await administer(relay, "reset", HERS))[0] == 404


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}", f"bearer {SECRET}", SECRET, "Bearer \xff"],
    ids=["none", "empty", "longer", "shorter", "another-scheme", "bare", "not-ascii"],
)
async def test_who_lacks_the_secret_does_nothing(tmp_path: Path, authorization: str | None) -> None:
    async with running_relay(tmp_path / "s", admin_secret=SECRET) as relay:
        home = await relay.household()
        status, body = await administer(relay, "close", {"name": "alice"}, authorization=authorization)
        assert (status, body["type"]) == (401, "about:blank")
        assert (await home.companions[0].get("/v1/ring")).status == 200


@pytest.mark.parametrize(
    "body",
    [{}, {"name": "a", "account": "b"}, {"issuer": "i"}, {"subject": "s"}, {"name": 7}, [], HERS | {"name": "a"}],
    ids=["nobody", "two", "issuer-only", "subject-only", "number", "list", "three"],
)  # fmt: skip
async def test_one_account_is_named_in_one_way(tmp_path: Path, body: object) -> None:
    async with running_relay(tmp_path / "s", admin_secret=SECRET) as relay:
        status, answer = await administer(relay, "close", body)
        assert (status, answer["type"]) == (400, f"{PROBLEM}invalid-request")


@pytest.mark.threat("T13")
async def test_without_a_secret_there_is_no_administration(relay: Relay) -> None:
    for authorization in (None, "Bearer None", "Bearer "):
        assert (await administer(relay, "close", {"name": "a"}, authorization=authorization))[0] == 404
    async with running_relay(relay.store.with_name("other"), admin_secret=SECRET) as other:
        assert (await administer(other, "delete", {"name": "a"}))[0] == 404


@pytest.mark.threat("T11")
def test_the_secret_is_long_and_is_not_shown() -> None:
    config = RelayConfig(public_url="https://relay.example", store=Path("s"), admin_secret=SECRET)
    assert SECRET not in repr(config)
    for short in ("", "short", "x" * 31, "with a space in it and many more characters", "é" * 40):
        with pytest.raises(UsageError, match=r"^admin_secret: "):
            RelayConfig(public_url="https://relay.example", store=Path("s"), admin_secret=short)


@pytest.mark.threat("T11")
async def test_the_program_takes_the_secret_from_a_private_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    words = ["relay", "--listen", "127.0.0.1:0", "--store", tmp_path / "s", "--admin-secret", secret]
    assert (await outcome(*words))[0] == 2
    secret.write_text("short\n")
    secret.chmod(0o600)
    assert (await outcome(*words))[0] == 2
    secret.write_text(SECRET)
    secret.chmod(0o644)
    status, _, said = await outcome(*words)
    assert (status, SECRET in " ".join(said)) == (10, False)
