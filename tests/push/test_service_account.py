"""The service account's file, and its access token: fetched once for all who wait, renewed early, given up for a while."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from certificates import Certificate
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from companion_push.push.channel import Delivery, PushOutcome
from companion_push.push.service_account import AccessTokens, ServiceAccount
from headless_passkey.errors import SetupError, SetupReason
from headless_passkey.net.proxy import tracing
from tests.open_things import Interruption, cancel_everywhere, interrupted
from tests.push.google import EMAIL, KEY_ID, PROJECT, Clock, Google, answers, write_account

OTHERS = 0o640


@pytest_asyncio.fixture
async def tokens(
    google: Google, loopback_certificate: Certificate, clock: Clock, tmp_path: Path
) -> AsyncIterator[AccessTokens]:
    account = ServiceAccount.load(write_account(tmp_path / "account.json", google.account()))
    connector = aiohttp.TCPConnector(ssl=loopback_certificate.client_context())
    async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing()]) as session:
        tokens = AccessTokens(account, lambda: session, clock=clock.unix, ticks=clock.steady)
        yield tokens
        await tokens.close()


async def outcome(tokens: AccessTokens) -> tuple[PushOutcome, float | None, str]:
    """What comes instead of a token."""
    delivery = await tokens.token()
    assert isinstance(delivery, Delivery)
    return delivery.outcome, delivery.retry_after, delivery.detail


# The file


@pytest.fixture
def described(rsa_key: rsa.RSAPrivateKey, clock: Clock) -> dict[str, Any]:
    return Google(clock=clock, private=rsa_key, url="https://oauth2.googleapis.com").account()


def test_the_file_of_the_console_is_read(described: dict[str, Any], tmp_path: Path) -> None:
    account = ServiceAccount.load(write_account(tmp_path / "a.json", described))
    assert (account.project, account.email, account.key_id) == (PROJECT, EMAIL, KEY_ID)
    assert account.token_uri == "https://oauth2.googleapis.com/token"


@pytest.mark.threat("T11")
def test_the_file_is_refused_when_others_may_read_it(described: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        ServiceAccount.load(write_account(tmp_path / "a.json", described, OTHERS))
    assert caught.value.reason is SetupReason.STATE_EXPOSED


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"there is no file .*absent\.json"):
        ServiceAccount.load(tmp_path / "absent.json")


def _pem(key: Any) -> str:
    return str(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
    )


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "no JSON": lambda _: b"\x00",
    "a list": lambda _: [],
    "a user's credentials": lambda all_: {**all_, "type": "authorized_user"},
    "no project": lambda all_: {**all_, "project_id": None},
    "a project that leads elsewhere": lambda all_: {**all_, "project_id": "a/../b"},
    "http": lambda all_: {**all_, "token_uri": "http://oauth2.googleapis.com/token"},
    "a token_uri with a query": lambda all_: {**all_, "token_uri": "https://oauth2.googleapis.com/token?a=b"},
    "a key of another kind": lambda all_: {
        **all_,
        "private_key": _pem(ec.generate_private_key(ec.SECP256R1())),
    },
    "a short key": lambda all_: {**all_, "private_key": _pem(rsa.generate_private_key(65537, 1024))},  # noqa: S505  that is the point
    "half a key": lambda all_: {**all_, "private_key": all_["private_key"][:200]},
    "no key": lambda all_: {**all_, "private_key": 5},
    "too long": lambda all_: {**all_, "more": "x" * 20_000},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.threat("T11")
def test_what_is_no_service_account_is_refused_and_not_repeated(
    described: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    path = write_account(tmp_path / "a.json", described)
    changed = change(described)
    path.write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())
    with pytest.raises(SetupError) as caught:
        ServiceAccount.load(path)
    assert caught.value.reason is SetupReason.STATE_DAMAGED
    assert described["private_key"][30:60] not in str(caught.value)


@pytest.mark.threat("T11")
def test_no_repr_shows_key_or_token(described: dict[str, Any], tmp_path: Path) -> None:
    account = ServiceAccount.load(write_account(tmp_path / "a.json", described))
    assert "key=" not in repr(account)


# The token


async def test_the_token_is_the_one_for_the_signed_assertion(google: Google, tokens: AccessTokens) -> None:
    assert await tokens.token() in google.granted
    assert google.token_requests == 1


async def test_whoever_waits_shares_one_request(google: Google, tokens: AccessTokens) -> None:
    google.to_token_requests.append(google.hold)
    waiting = [asyncio.create_task(tokens.token()) for _ in range(5)]
    await google.arrived.get()
    google.released.set()
    assert set(await asyncio.gather(*waiting)) == set(google.granted)
    assert google.token_requests == 1


async def test_who_is_cancelled_leaves_the_request_to_the_others(
    google: Google, tokens: AccessTokens
) -> None:
    google.to_token_requests.append(google.hold)
    first = asyncio.create_task(tokens.token())
    await google.arrived.get()
    second = asyncio.create_task(tokens.token())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    google.released.set()
    assert await second in google.granted
    assert google.token_requests == 1


async def test_it_is_kept_for_five_sixths_of_its_life(
    google: Google, tokens: AccessTokens, clock: Clock
) -> None:
    first = await tokens.token()
    clock.passes(2999)
    assert await tokens.token() == first
    assert google.token_requests == 1


async def test_it_is_renewed_while_the_old_one_is_used(
    google: Google, tokens: AccessTokens, clock: Clock
) -> None:
    first = await tokens.token()
    await google.arrived.get()
    clock.passes(3000)
    google.to_token_requests.append(google.hold)
    assert await tokens.token() == first
    await google.arrived.get()
    assert await tokens.token() == first  # and begins no second request
    google.released.set()
    assert tokens._fetch is not None
    await tokens._fetch
    second = await tokens.token()
    assert second != first
    assert second in google.granted
    assert google.token_requests == 2


async def test_a_renewal_that_fails_leaves_the_old_one_until_its_end(
    google: Google, tokens: AccessTokens, clock: Clock
) -> None:
    first = await tokens.token()
    clock.passes(3000)
    google.to_token_requests += [answers(503, {}), answers(503, {})]
    assert await tokens.token() == first
    assert tokens._fetch is not None
    await tokens._fetch
    clock.passes(539)  # 60 s before its end
    assert (await outcome(tokens))[0] is PushOutcome.BUSY


async def test_a_clock_that_is_set_changes_nothing(
    google: Google, tokens: AccessTokens, clock: Clock
) -> None:
    first = await tokens.token()
    clock.now -= 100_000
    assert await tokens.token() == first
    clock.now += 1_000_000
    assert await tokens.token() == first


async def test_after_a_failure_nobody_asks_until_a_pause_is_over_that_grows(
    google: Google, tokens: AccessTokens, clock: Clock
) -> None:
    google.to_token_requests += [answers(500, b"")] * 12
    for made, pause in enumerate((1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300), start=1):
        detail = "no access token: its server answers 500"
        assert await outcome(tokens) == (PushOutcome.BUSY, pause, detail)
        clock.passes(pause - 0.5)
        assert await outcome(tokens) == (PushOutcome.BUSY, 0.5, detail)
        assert google.token_requests == made
        clock.passes(0.5)
    google.to_token_requests.clear()
    assert await tokens.token() in google.granted


async def test_a_failure_after_a_success_begins_with_the_first_pause(
    google: Google, tokens: AccessTokens, clock: Clock
) -> None:
    google.to_token_requests += [answers(500, b""), answers(500, b"")]
    await outcome(tokens)
    clock.passes(1)
    await outcome(tokens)
    clock.passes(2)
    await tokens.token()
    clock.passes(3540)
    google.to_token_requests.append(answers(500, b""))
    assert (await outcome(tokens))[1] == 1


@pytest.mark.parametrize(
    ("header", "pause"),
    [("120", 120), ("99999", 300), ("Fri, 15 Jan 2027 08:01:00 GMT", 60), ("soon", 1), ("-5", 1)],
    ids=["seconds", "too long", "a date", "a word", "before now"],
)
async def test_the_servers_own_pause_is_kept(
    google: Google, tokens: AccessTokens, header: str, pause: float
) -> None:
    google.to_token_requests.append(answers(429, {}, {"Retry-After": header}))
    assert (await outcome(tokens))[:2] == (PushOutcome.BUSY, pause)


@pytest.mark.parametrize(
    ("status", "word"),
    [(400, "invalid_grant"), (401, "invalid_client"), (403, "access_denied"), (404, "")],
)
async def test_a_refusal_of_the_key_is_for_good_and_is_not_asked_for_all_the_time(
    google: Google, tokens: AccessTokens, status: int, word: str
) -> None:
    google.to_token_requests.append(answers(status, {"error": word, "error_description": "secret"}))
    expected = (PushOutcome.REFUSED, None, f"no access token: its server answers {status} {word}".rstrip())
    assert await outcome(tokens) == expected
    assert await outcome(tokens) == expected
    assert google.token_requests == 1


MEANINGLESS: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"<html>",
    "a list": [1],
    "no token": {"expires_in": 3599, "token_type": "Bearer"},
    "an empty token": {"access_token": "", "expires_in": 3599, "token_type": "Bearer"},
    "a token that is two headers": {
        "access_token": "a\r\nHost: b",
        "expires_in": 3599,
        "token_type": "Bearer",
    },
    "a token of another kind": {"access_token": "a", "expires_in": 3599, "token_type": "MAC"},
    "no life": {"access_token": "a", "token_type": "Bearer"},
    "a life in words": {"access_token": "a", "expires_in": "3599", "token_type": "Bearer"},
    "a short life": {"access_token": "a", "expires_in": 60, "token_type": "Bearer"},
    "a long life": {"access_token": "a", "expires_in": 10**9, "token_type": "Bearer"},
    "too much": b" " * 100_000 + b"{}",
}


@pytest.mark.parametrize("answer", MEANINGLESS.values(), ids=MEANINGLESS)
@pytest.mark.threat("T12")
async def test_an_answer_without_a_usable_token_is_a_failure_for_now(
    google: Google, tokens: AccessTokens, answer: Any
) -> None:
    google.to_token_requests.append(answers(200, answer))
    assert (await outcome(tokens))[:2] == (PushOutcome.BUSY, 1)


@pytest.mark.threat("T13")
async def test_no_redirect_is_followed(google: Google, tokens: AccessTokens) -> None:
    google.to_token_requests.append(answers(307, b"", {"Location": "/token"}))
    assert await outcome(tokens) == (
        PushOutcome.BUSY,
        1,
        "no access token: its server answers 307",
    )
    assert google.token_requests == 1


@pytest.mark.parametrize("how", ["reset", "garble"])
async def test_a_connection_that_breaks_is_a_failure_for_now(
    google: Google, tokens: AccessTokens, how: str
) -> None:
    google.to_token_requests += [getattr(google, how)] * 2  # aiohttp may try a kept connection again
    assert (await outcome(tokens))[0] is PushOutcome.BUSY


async def test_a_token_that_is_refused_soon_after_it_was_made_is_not_replaced(
    google: Google, tokens: AccessTokens, clock: Clock
) -> None:
    first = await tokens.token()
    assert isinstance(first, str)
    clock.passes(59)
    assert not tokens.refused(first)
    assert await tokens.token() == first
    clock.passes(1)
    assert tokens.refused(first)
    second = await tokens.token()
    assert second in set(google.granted) - {first}
    assert tokens.refused(first)  # somebody else's news
    assert await tokens.token() == second


async def test_closing_ends_a_request_that_is_under_way(google: Google, tokens: AccessTokens) -> None:
    google.to_token_requests.append(google.hold)
    waiting = asyncio.create_task(tokens.token())
    await google.arrived.get()
    await tokens.close()
    assert isinstance(await waiting, Delivery)


async def test_it_can_be_cancelled_at_each_point(google: Google, tokens: AccessTokens, clock: Clock) -> None:
    async def one(interruption: Interruption) -> Interruption:
        tokens._token = None
        with_it = asyncio.create_task(interrupted(tokens.token(), interruption))
        await asyncio.wait({with_it})
        if tokens._fetch is not None:
            await asyncio.wait({tokens._fetch})
        assert google.open_token_requests == 0
        return interruption

    await one(Interruption(at=0))
    assert await cancel_everywhere(one) >= 1
