"""Who follows the relay: what each operation has changed, after the commit."""

import asyncio
import logging
import os
import threading

import pytest

from companion_push.relay import operations
from companion_push.relay.app import RELAY
from companion_push.relay.messages import Submission, parse_body
from companion_push.relay.operations import Answer, Change
from headless_passkey.process.tasks import until_done
from headless_passkey.request import RequestState
from tests.relay.household import SEALED, Household, Relay, fresh_id
from tests.relay.states import stored_requests
from tests.relay.stores import of_files


def seen_by(relay: Relay) -> list[Change]:
    """The changes that a follower is told from now on."""
    told: list[Change] = []
    relay.app[RELAY].follow(lambda answer: told.extend(answer.changed))
    return told


async def test_a_follower_sees_each_step_of_a_request_and_who_made_it(relay: Relay, home: Household) -> None:
    (anna, _), (frame,) = home.companions, home.devices
    told = seen_by(relay)
    name = fresh_id()
    await frame.submit(anna, name=name)
    await frame.submit(anna, name=name)  # the same again changes nothing
    await anna.inbox()
    await anna.inbox()
    await anna.act(frame, name, "claimed")
    await anna.act(frame, name, "opened")
    await frame.tell(name, "completed")
    assert [(change.was, change.request.state, change.by) for change in told] == [
        (None, RequestState.PENDING, frame.name),
        (RequestState.PENDING, RequestState.DELIVERED, anna.name),
        (RequestState.DELIVERED, RequestState.CLAIMED, anna.name),
        (RequestState.CLAIMED, RequestState.OPENED, anna.name),
        (RequestState.OPENED, RequestState.COMPLETED, frame.name),
    ]
    assert {change.request.id for change in told} == {name}


@of_files
async def test_a_follower_is_told_once_it_is_on_the_disk_also_where_the_caller_has_gone(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def sync(_descriptor: int) -> None:
        begun.set()
        may_end.wait()

    (anna, _), (frame,) = home.companions, home.devices
    endpoints, name, told = relay.app[RELAY], fresh_id(), seen_by(relay)
    body = f'{{"expires_in":300,"envelopes":[{{"to":"{anna.name}","sealed":"{SEALED}"}}]}}'
    submission = endpoints.submission(name, parse_body(body.encode(), Submission))
    monkeypatch.setattr(os, "fdatasync", sync)
    submitting = asyncio.ensure_future(endpoints.run(frame.name, submission))
    await asyncio.to_thread(begun.wait)
    submitting.cancel()
    await asyncio.wait({submitting})
    assert submitting.cancelled()
    assert told == []
    assert endpoints._transactions  # for which a relay that ends waits
    may_end.set()
    await until_done(*endpoints._transactions)
    assert [change.request.id for change in told] == [name]


async def test_a_follower_sees_what_time_and_a_newer_request_have_ended(
    relay: Relay, home: Household
) -> None:
    (anna, _), (frame,) = home.companions, home.devices
    first, second = fresh_id(), fresh_id()
    await frame.submit(anna, name=first)
    told = seen_by(relay)
    await frame.submit(anna, name=second, expires_in=60)
    relay.clock.ahead += 61
    assert (await frame.status(second))["state"] == "expired"
    assert [(change.request.id, change.was, change.request.state, change.by) for change in told] == [
        (second, None, RequestState.PENDING, frame.name),
        (first, RequestState.PENDING, RequestState.SUPERSEDED, frame.name),
        (second, RequestState.PENDING, RequestState.EXPIRED, None),
    ]


async def test_whoever_reads_an_inbox_wakes_all_but_those_who_wait_for_that_inbox(
    relay: Relay, home: Household
) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    answers: list[Answer] = []
    relay.app[RELAY].follow(answers.append)
    assert len(await anna.inbox()) == 1
    assert [answer.topics for answer in answers] == [
        {operations.request_topic(frame.name, name), operations.inbox_topic(bert.name)}
    ]


async def test_a_follower_is_told_after_the_commit_and_before_the_caller(
    relay: Relay, home: Household
) -> None:
    (anna, _), (frame,) = home.companions, home.devices
    stored: list[str] = []

    def look(answer: Answer) -> None:
        if answer.changed:  # another connection reads what is committed, and nothing else
            stored.extend(request.state for request in stored_requests(relay.store))

    relay.app[RELAY].follow(look)
    await frame.submit(anna)
    assert stored == ["pending"]


async def test_a_refused_call_has_changed_nothing(relay: Relay, home: Household) -> None:
    (anna, _), (frame,) = home.companions, home.devices
    told = seen_by(relay)
    name = fresh_id()
    await frame.submit(anna, name=name)
    told.clear()
    assert (await frame.tell(name, "completed")).problem == "state-conflict"
    assert told == []


async def test_a_follower_that_fails_fails_no_call(
    relay: Relay, home: Household, caplog: pytest.LogCaptureFixture
) -> None:
    (anna, _), (frame,) = home.companions, home.devices

    def fail(answer: Answer) -> None:
        raise RuntimeError(f"a secret of {answer.body}")

    relay.app[RELAY].follow(fail)
    told = seen_by(relay)
    with caplog.at_level(logging.ERROR):
        assert (await frame.submit(anna)).status == 201
    assert len(told) == 1  # who follows after it is told as well
    assert "a follower failed: unexpected RuntimeError at test_follow.py:" in caplog.text
    assert "a secret" not in caplog.text
