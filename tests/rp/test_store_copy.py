"""``relying-party store``: a store is checked, and copied whole or not at all."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from postgres_store import copying as shared_copying
from relying_party.core.credentials import NEVER_USED_SECONDS
from relying_party.errors import SetupError, StoreUnavailable
from relying_party.place import StorePlace
from relying_party.store.copying import TABLES, checked, copy_store
from relying_party.store.sqlite import SqliteStore
from tests.programs import run
from tests.rp.records import ADA, EVE, credential, session, use
from tests.rp.stores import Engine, engine, new_database

BACK = {"sqlite": "postgresql", "postgresql": "sqlite"}


async def filled(place: Engine) -> None:
    """Something in each table."""
    async with place.store() as store:
        first = replace(session(token=b"t1", key="key"), refresh_hash=b"r1")
        await store.register(credential(), ADA, first, ends=None)
        second = replace(first, token_hash=b"t2", refresh_hash=b"r2", previous_refresh_hash=b"r1")
        third = replace(first, token_hash=b"t3", refresh_hash=b"r3", previous_refresh_hash=b"r2")
        assert await store.replace_session(second, was=b"t1")
        assert await store.replace_session(third, was=b"t2")
        await store.add_credential(credential(ADA, b"c2"), replace(third, token_hash=b"t4"), was=b"t3")
        await store.step_up(use(), replace(third, token_hash=b"t5"), was=b"t4", operation=b"o", until=9)
        now = NEVER_USED_SECONDS
        await store.remove_user(removal_id=b"r", by=third, now=now)
        await store.register(
            credential(EVE, b"c3"), replace(EVE, display_name="E\N{SNOWMAN}"), session(EVE, b"e"), ends=None
        )
        await store.secret("prf")


def read(place: StorePlace) -> dict[str, int]:
    return checked(place).counts


@pytest.mark.parametrize("kind", BACK)
async def test_all_of_a_store_is_copied_into_the_other_engine_and_back(tmp_path: Path, kind: str) -> None:
    source = engine(kind, tmp_path)
    await filled(source)
    target, again = engine(BACK[kind], tmp_path), Engine(tmp_path / "again")
    counts = copy_store(source.place, target.place)
    assert counts == read(source.place) == read(target.place)
    assert {table for table, count in counts.items() if not count} == set()
    async with source.store() as one, target.store() as two:
        assert await one.registered(ADA.handle, now=2) == await two.registered(ADA.handle, now=2)
        assert await one.secret("prf") == await two.secret("prf")
        await two.rename_user("Ada", by=session(), now=2)  # the numbers of its changes go on
    if kind == "sqlite":
        assert copy_store(target.place, again.place)["users"] == 2
        with closing(sqlite3.connect(again.file)) as file:
            assert file.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_a_store_that_is_not_empty_is_not_copied_into(tmp_path: Path) -> None:
    source, target = Engine(tmp_path / "s"), Engine(new_database())
    await filled(source)
    copy_store(source.place, target.place)
    with pytest.raises(SetupError, match="not empty"):
        copy_store(source.place, target.place)


async def test_a_copy_that_is_broken_off_has_copied_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = Engine(tmp_path / "s"), Engine(new_database())
    await filled(source)
    real = shared_copying._copied_table

    def broken(one: object, two: object, table: str) -> int:
        if table == TABLES[-1]:
            raise KeyboardInterrupt
        return real(one, two, table)

    with monkeypatch.context() as patch:
        patch.setattr(shared_copying, "_copied_table", broken)
        with pytest.raises(KeyboardInterrupt):
            copy_store(source.place, target.place)
    assert set(read(target.place).values()) == {0}
    assert copy_store(source.place, target.place)["users"] == 2


async def test_a_file_that_is_used_is_not_copied(tmp_path: Path) -> None:
    from relying_party.http.app import _locked_store  # noqa: PLC0415  what a program opens
    from tests.rp.clients import make_config  # noqa: PLC0415

    async with _locked_store(make_config(tmp_path / "s")):
        with pytest.raises(StoreUnavailable, match="another relying party"):
            copy_store(tmp_path / "s", tmp_path / "to")
        assert set(read(tmp_path / "s").values()) == {0}


async def test_the_command_checks_and_copies(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
    to = str(new_database())
    status, stdout, stderr = await run(
        "relying_party", "store", "copy", "--store", tmp_path / "s", "--to", to
    )
    assert (status, stdout) == (0, "")
    assert stderr.startswith("1 users with 1 passkeys are copied")
    status, stdout, stderr = await run("relying_party", "store", "check", "--store", to)
    assert status == 0
    assert "credentials 1\n" in stdout
    assert "warning: fsync is off" in stderr  # the server of the tests
    (tmp_path / "rp.toml").write_text(f"[store.check]\nstore = '{to}'\n[serve]\nstore = 'none'\n")
    for settings, environment in (
        (("--config", str(tmp_path / "rp.toml")), {}),
        ((), {"RELYING_PARTY_STORE_CHECK_STORE": to, "RELYING_PARTY_STORE": "none"}),
    ):
        status, stdout, _ = await run("relying_party", "store", "check", *settings, environment=environment)
        assert status == 0
        assert "credentials 1\n" in stdout
    for words, says in (
        (("check", "--store", tmp_path / "none"), "there is no"),
        (("copy", "--store", to, "--to", to), "expected another place"),
        (("copy", "--store", to, "--to", "postgresql://a:s3cret@b/c"), "PGPASSFILE"),
    ):
        status, stdout, stderr = await run("relying_party", "store", *words)
        assert (status, stdout) == (2, "")
        assert says in stderr
        assert "s3cret" not in stderr
