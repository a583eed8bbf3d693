"""An answer that a limit refuses says which limit, how much it allows, and when to come again."""

import asyncio
import secrets
from pathlib import Path

import pytest

from companion_push.relay import app
from companion_push.relay.limits import Quota, Rate
from companion_push.relay.strangers import Budget
from http_serving.rate_limit import Policy, Unit, limit_headers
from program_parts.base64url import base64url
from tests.relay.household import Caller, Reply, fresh_id, rates, running_relay

HEADERS = ("RateLimit-Policy", "RateLimit", "Retry-After")


def test_a_policy_is_told_in_the_drafts_structured_fields() -> None:
    assert limit_headers(Policy(name="rings", quota=30, seconds=3600), 120) == {
        "Retry-After": "120",
        "RateLimit-Policy": '"rings";q=30;w=3600',
        "RateLimit": '"rings";r=0;t=120',
    }
    assert limit_headers(Policy(name="ring-bytes", quota=5, seconds=0.5, unit=Unit.BYTES), 1) == {
        "Retry-After": "1",
        "RateLimit-Policy": '"ring-bytes";q=5;qu="content-bytes";w=1',
        "RateLimit": '"ring-bytes";r=0;t=1',
    }
    assert limit_headers(Policy(name="held", quota=4, unit=Unit.AT_A_TIME), 5)["RateLimit-Policy"] == (
        '"held";q=4;qu="concurrent-requests"'
    )
    assert limit_headers(None, 2) == {"Retry-After": "2"}


def check(reply: Reply, problem: str, policy: str) -> None:
    """That the answer is refused by that policy, in three headers and a member that agree."""
    assert (reply.status, reply.problem) == (429, problem)
    seconds = reply.body["retry_after"]
    assert seconds >= 1
    name = policy.partition(";")[0]
    assert [reply.headers[header] for header in HEADERS] == [policy, f"{name};r=0;t={seconds}", str(seconds)]


async def test_a_devices_limit_is_told(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", quota=rates(1, 60)) as relay:
        home = await relay.household()
        (frame,) = home.devices
        accepted = await frame.submit(home.companions[0])
        assert not {*HEADERS} & {*accepted.headers}
        check(await frame.submit(home.companions[0]), "rate-limited", '"requests-of-device";q=1;w=60')


async def test_the_accounts_limit_is_told(tmp_path: Path) -> None:
    quota = Quota(
        pending=9,
        rates=(),
        account_rates=(Rate(count=1, seconds=86_400),),
        spared=Rate(count=1, seconds=86_400),
    )
    async with running_relay(tmp_path / "s", quota=quota) as relay:
        home = await relay.household()
        (frame,) = home.devices
        assert (await frame.submit(home.companions[0])).status == 201
        check(await frame.submit(home.companions[0]), "rate-limited", '"requests-of-account";q=1;w=86400')


async def test_the_limit_of_pending_requests_is_told(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", quota=Quota(pending=1, rates=())) as relay:
        home = await relay.household(devices=2)
        assert (await home.devices[0].submit(home.companions[0])).status == 201
        reply = await home.devices[1].submit(home.companions[0])
        check(reply, "too-many-pending", '"pending-requests";q=1;qu="concurrent-requests"')


async def test_the_limit_of_open_invitations_is_told(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s") as relay:
        anna = (await relay.household()).companions[0]
        body = {"kind": "device", "expires_at": int(anna.clock()) + 500}
        for _ in range(16):
            path = f"/v1/invitations/{base64url(secrets.token_bytes(32))}"
            assert (await anna.put(path, body)).status == 201
        reply = await anna.put(f"/v1/invitations/{base64url(secrets.token_bytes(32))}", body)
        check(reply, "too-many-pending", '"open-invitations";q=16;qu="concurrent-requests"')


async def test_the_limit_of_calls_for_words_is_told(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s") as relay:
        (frame,) = (await relay.household()).devices
        for _ in range(3):
            assert (await frame.post("/v1/words/call", {})).status == 202
        check(await frame.post("/v1/words/call", {}), "rate-limited", '"calls-for-words";q=3;w=60')


async def test_the_limit_of_held_calls_of_an_address_is_told(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", held_per_address=1) as relay:
        anna, bert = (await relay.household()).companions
        path = f"/v1/inbox?cursor={(await anna.get('/v1/inbox')).body['cursor']}&wait=25"
        waiting = [asyncio.ensure_future(caller.get(path)) for caller in (anna, bert)]
        (refused,), _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        check(refused.result(), "rate-limited", '"held-of-address";q=1;qu="concurrent-requests"')
        relay.held_requests.close()
        await asyncio.wait(waiting)


async def test_the_limit_of_failures_of_an_address_is_told(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", failures_per_address=1) as relay:
        url = f"{relay.url}/v1/requests/{fresh_id()}"
        replies = []
        for _ in range(2):
            async with relay.session.get(url, headers={"DPoP": "none"}) as response:
                replies.append(
                    Reply(response.status, await response.json(content_type=None), response.headers)
                )
        assert replies[0].status == 401
        check(replies[1], "rate-limited", '"failures-of-address";q=1;w=60')


@pytest.mark.parametrize(
    ("budget", "path", "policy"),
    [
        ("_calls", "/v1/inbox", '"calls";q=1;w=60'),
        ("_ring_bytes", "/v1/ring", '"ring-bytes";q=1;qu="content-bytes";w=60'),
    ],
    ids=["calls", "ring-bytes"],
)
async def test_the_share_of_a_key_is_told(
    budget: str, path: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "REFUSAL_SECONDS", 0.0)
    async with running_relay(tmp_path / "s") as relay:
        anna: Caller = (await relay.household()).companions[0]
        unit = Unit.BYTES if budget == "_ring_bytes" else Unit.REQUESTS
        name = policy.split('"')[1]
        setattr(relay.app[app.RELAY], budget, Budget(name=name, per_minute=1, unit=unit))
        assert (await anna.get(path)).status == 200
        check(await anna.get(path), "rate-limited", policy)
