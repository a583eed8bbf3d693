"""benchmarks/rp.py measures what it says: a sign-in and what it is held against do the same work."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import rp
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from postgres_store.database import Database
from relying_party.errors import VerificationFailed
from relying_party.http.app import make_app
from relying_party.store.sqlite import SqliteStore
from tests.rp.clients import RP_ID, WEB_ORIGIN, make_config
from tests.rp.stores import new_database


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[rp.Bench]:
    assert (rp.ORIGIN, RP_ID) == (WEB_ORIGIN, "rp.example")
    app = make_app(make_config(tmp_path / "s", device_origins=()))
    runner = web.AppRunner(app)
    await runner.setup()
    yield await rp.Bench.make(app)
    await runner.cleanup()


async def _transactions(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Awaitable[rp.Step]]
) -> list[bool]:
    """Which transactions the step makes: whether each writes."""
    seen: list[bool] = []
    real = SqliteStore._transaction

    def counted(store: SqliteStore, work: Any, *, writes: bool = False) -> Any:
        seen.append(writes)
        return real(store, work, writes=writes)

    step = await make()
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_transaction", counted)
        await step()
    return seen


async def test_a_sign_in_and_its_parts_make_the_same_calls_to_the_store(
    bench: rp.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = await _transactions(monkeypatch, lambda: bench.parts(1))
    assert parts == [False, True, False]
    assert await _transactions(monkeypatch, bench.browsers) == parts
    assert await _transactions(monkeypatch, bench.devices) == parts
    assert await _transactions(monkeypatch, bench.responses) == []


async def test_in_postgresql_a_devices_sign_in_uses_up_its_proof_besides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The floor is the three calls of the file; record and proof come on top, as the page of numbers says."""
    runs, real = 0, Database.run

    def counted(database: Database, *args: Any, **options: Any) -> Any:
        nonlocal runs
        runs += 1
        return real(database, *args, **options)

    async with rp.running(new_database()) as bench:
        kinds: dict[int, Callable[[], Awaitable[rp.Step]]]
        kinds = {3: lambda: bench.parts(2), 4: bench.browsers, 5: bench.devices}
        for expected, make in kinds.items():
            step = await make()
            with monkeypatch.context() as patch:
                patch.setattr(Database, "run", counted)
                runs = 0
                await step()
            assert runs == expected


async def test_the_parts_of_a_verification_verify(bench: rp.Bench) -> None:
    for made in (bench.library, bench.proofs):
        await (await made())()
    bench.key = ec.generate_private_key(ec.SECP256R1())
    step = await bench.library()
    with pytest.raises(ValueError, match="signature"):
        await step()


async def test_a_step_that_fails_is_not_measured(bench: rp.Bench) -> None:
    bench.key = ec.generate_private_key(ec.SECP256R1())
    step = await bench.responses()
    with pytest.raises(VerificationFailed):
        await step()


async def test_a_row_says_how_both_did(bench: rp.Bench) -> None:
    row = await rp.compare("a", bench.responses, "b", lambda: bench.verify(1), rounds=3)
    assert (row.what, row.against) == ("a", "b")
    assert row.baseline is not None
    assert row.ratio is not None
    assert min(row.seconds, row.baseline, row.ratio) > 0
