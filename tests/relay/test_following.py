"""Following an inbox on one connection, without the connection."""

import asyncio
from pathlib import Path

import pytest

from companion_push.relay import accounts
from companion_push.relay.app import close_account
from companion_push.relay.following import Ended, Ending
from companion_push.relay.mailbox import RENEWED
from companion_push.relay.problems import Problem, Slug
from companion_push.relay.stores import open_store
from tests.relay.household import Household, Relay, fresh_id, running_relay
from tests.relay.stores import ON_POSTGRES, place_of

PATIENCE = 60.0  # seconds: a safety net, so that a hang is a failure
NOW = 0.0  # seconds: what is new is there already


async def test_the_inbox_comes_at_once_and_then_as_it_changes(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    name = fresh_id()
    with relay.followed(anna) as inbox:
        async with asyncio.timeout(PATIENCE):
            seen = [await anext(inbox)]
            await frame.submit(anna, name=name)
            seen.append(await anext(inbox))
            await frame.tell(name, "cancelled")
            seen.append(await anext(inbox))
    assert [[item["id"] for item in answer.body["requests"]] for answer in seen] == [[], [name], []]
    assert (await anna.get("/v1/inbox")).body["cursor"] == seen[-1].body["cursor"]


async def test_whoever_has_the_newest_waits_for_what_comes(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    with relay.followed(anna, cursor=cursor) as inbox:
        assert await inbox.news(PATIENCE) is None  # the first reading waits for nothing
        await frame.submit(anna)
        answer = await inbox.news(PATIENCE)
    assert answer is not None
    assert len(answer.body["requests"]) == 1


async def test_no_change_is_lost_however_submitting_and_reading_interleave(
    relay: Relay, home: Household
) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    with relay.followed(anna) as inbox:
        await anext(inbox)
        for _ in range(40):
            name = fresh_id()
            submitting = asyncio.create_task(frame.submit(anna, name=name))
            async with asyncio.timeout(PATIENCE):
                async for answer in inbox:
                    if [item["id"] for item in answer.body["requests"]] == [name]:
                        break
            assert (await submitting).status == 201


async def test_what_came_while_nobody_read_is_read_once(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    with relay.followed(anna) as inbox:
        await anext(inbox)
        for _ in range(3):  # each supersedes the one before
            await frame.submit(anna, bert)
        answer = await inbox.news(NOW)
        assert answer is not None
        assert [item["version"] for item in answer.body["requests"]] == [2]
        assert await inbox.news(NOW) is None


async def test_time_alone_changes_the_inbox(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    await frame.submit(anna, expires_in=1)
    with relay.followed(anna) as inbox:
        assert len((await anext(inbox)).body["requests"]) == 1
        async with asyncio.timeout(PATIENCE):
            assert (await anext(inbox)).body["requests"] == []


@pytest.mark.threat("T16")
async def test_who_is_removed_is_told_so_at_once(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    with relay.followed(bert) as inbox:
        await anext(inbox)
        await home.append(anna.person, home.devices[0].person)
        with pytest.raises(Problem) as refused:
            async with asyncio.timeout(PATIENCE):
                await anext(inbox)
    assert refused.value.slug is Slug.NOT_FOUND


@pytest.mark.threat("T16")
async def test_an_account_that_is_closed_ends_it_at_once(relay: Relay, home: Household) -> None:
    with relay.followed(home.companions[0]) as inbox:
        await anext(inbox)
        await close_account(relay.app, "alice")
        with pytest.raises(Problem) as refused:
            async with asyncio.timeout(PATIENCE):
                await anext(inbox)
    assert refused.value.slug is Slug.ACCOUNT_CLOSED


@pytest.mark.threat("T16")
async def test_an_account_that_another_process_closes_ends_it_with_the_next_reading(
    relay: Relay, home: Household
) -> None:
    with relay.followed(home.companions[0]) as inbox:
        await anext(inbox)
        async with open_store(place_of(relay.store)) as other:
            now = relay.clock()
            await other.transact(lambda db: accounts.close_account(db, name="alice", now=now))
        with pytest.raises(Problem) as refused:
            await inbox.news(NOW)
    assert refused.value.slug is Slug.ACCOUNT_CLOSED


async def test_nobody_follows_who_is_no_companion(relay: Relay, home: Household) -> None:
    with relay.followed(home.devices[0]) as inbox, pytest.raises(Problem) as refused:
        await anext(inbox)
    assert refused.value.slug is Slug.NOT_FOUND


@pytest.mark.threat("T13")
async def test_a_members_oldest_connection_makes_room(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", held_per_member=1) as relay:
        anna, _ = (await relay.household()).companions
        with relay.followed(anna) as older:
            await anext(older)
            with relay.followed(anna) as newer:
                await anext(newer)
                assert [answer async for answer in older] == []
                assert older.ended is Ending.REPLACED
                assert len(relay.held_requests) == 1
                assert await newer.news(NOW) is None
            assert len(relay.held_requests) == 0


@pytest.mark.threat("T13")
async def test_too_many_from_one_address_are_told_to_come_back(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", held_per_address=1) as relay:
        anna, bert = (await relay.household()).companions
        with relay.followed(anna) as one:
            await anext(one)
            with pytest.raises(Problem) as refused, relay.followed(bert):
                pass
    assert refused.value.slug is Slug.RATE_LIMITED


async def test_a_relay_that_closes_ends_it_in_order(relay: Relay, home: Household) -> None:
    with relay.followed(home.companions[0]) as inbox:
        await anext(inbox)
        relay.held_requests.close()
        with pytest.raises(Ended) as ended:
            await inbox.news(PATIENCE)
    assert ended.value.reason is inbox.ended is Ending.DRAINING


async def test_a_relay_that_has_closed_meanwhile_ends_it_after_the_first_answer(
    relay: Relay, home: Household
) -> None:
    relay.held_requests.close()
    with relay.followed(home.companions[0]) as inbox:
        assert len([answer async for answer in inbox]) == 1
        assert inbox.ended is Ending.DRAINING


async def test_one_proof_is_good_for_so_long(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", stream_life=1) as relay:
        home = await relay.household()
        with relay.followed(home.companions[0]) as inbox:
            async with asyncio.timeout(PATIENCE):
                assert len([answer async for answer in inbox]) == 1
            assert inbox.ended is Ending.RENEW


async def test_a_claim_lasts_by_calls_and_signs_of_life_and_not_by_an_open_connection(
    relay: Relay, home: Household
) -> None:
    """The system of a phone acknowledges what it is sent for an app that sleeps."""
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    with relay.followed(anna) as inbox:
        await anext(inbox)
        await anna.act(frame, name, "claimed")
        relay.clock.ahead += 59
        assert await inbox.news(NOW) is not None  # the claim; what it is sent is no call
        inbox.heard()
        assert await inbox.news(NOW) is None  # with which one of several processes notes it
        relay.clock.ahead += 59
        assert (await frame.status(name))["state"] == "claimed"
        relay.clock.ahead += 2 if not ON_POSTGRES else 2 + RENEWED
        answer = await inbox.news(NOW)
        assert answer is not None
        assert [item["state"] for item in answer.body["requests"]] == ["delivered"]
    assert (await frame.status(name))["failures"] == [{"by": anna.name, "reason": "vanished"}]
