"""What a load balancer is told: the relying party lives, and whether it can do its work."""

import asyncio
import logging

import pytest

from relying_party.errors import StoreUnavailable
from relying_party.http import readiness
from relying_party.http.readiness import Readiness
from tests.rp.clients import Site


async def test_a_relying_party_whose_store_answers_is_ready(site: Site) -> None:
    answer = await site.raw("GET", "/readyz", {})
    assert (answer.status, answer.body) == (200, {"status": "ready"})
    assert answer.headers["Cache-Control"] == "no-store"


async def test_a_relying_party_whose_store_is_gone_is_not_ready_until_it_is_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readiness, "SHARED_SECONDS", 0.0)
    elsewhere = site.file.rename(f"{site.file}.elsewhere")
    for _ in range(3):
        answer = await site.raw("GET", "/readyz", {})
        assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "store-unavailable", "5")
        assert (await site.raw("GET", "/livez", {})).status == 200
    elsewhere.rename(site.file)
    assert (await site.raw("GET", "/readyz", {})).status == 200
    said = [record.getMessage() for record in caplog.records if record.name == readiness.__name__]
    assert [line.partition(":")[0] for line in said] == [
        "not ready, the store does not answer",
        "ready again",
    ]


@pytest.mark.threat("T17")
async def test_however_many_ask_the_store_is_read_once() -> None:
    reads, answered = 0, asyncio.Event()

    async def read() -> None:
        nonlocal reads
        reads += 1
        await answered.wait()

    store = Readiness(read)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(store.is_ready()) for _ in range(100)]
        await asyncio.sleep(0)
        answered.set()
    assert all(task.result() for task in asked)
    assert await store.is_ready()
    assert reads == 1


async def test_a_store_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readiness, "READ_SECONDS", 0.01)
    store = Readiness(asyncio.Event().wait)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not await store.is_ready()
    assert len(caplog.records) == 1
    await store.close()


async def test_a_store_that_cannot_be_read_is_no_error_of_who_asks() -> None:
    async def read() -> None:
        raise StoreUnavailable("away")

    store = Readiness(read)
    assert not await store.is_ready()
    await store.close()
