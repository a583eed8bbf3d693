"""``relying-party store migrate``: an older store becomes the newest, and a dry run says beforehand how."""

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from postgres_store.schema import migrate as migrate_database
from relying_party.errors import SetupError, StoreUnavailable
from relying_party.place import PostgresUri, StorePlace
from relying_party.store import postgres
from relying_party.store.copying import checked
from relying_party.store.migration import migrate, planned
from relying_party.store.sql import MIGRATIONS
from relying_party.store.sqlite import APPLICATION_ID
from tests.programs import run
from tests.rp.records import ADA, credential, session
from tests.rp.stores import ENGINES, Engine, engine, new_database
from tests.rp.stores import query as ask_database

OLD = 5  # a version of before; the steps after it make tables and change one


def query(place: StorePlace, statement: str) -> list[tuple[object, ...]]:
    """What another program reads, or does."""
    if isinstance(place, PostgresUri):
        return ask_database(place, statement)
    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        return other.execute(statement).fetchall()


def version(place: StorePlace) -> object:
    is_file = isinstance(place, Path)
    asked = "PRAGMA user_version" if is_file else "SELECT version FROM headless_passkey_relying_party"
    return query(place, asked)[0][0]


def columns(place: StorePlace) -> set[tuple[object, ...]]:
    asked = (
        "SELECT tables.name, columns.name, columns.type FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns"
        if isinstance(place, Path)
        else "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
    )
    return {row for row in query(place, asked) if row[0] != "headless_passkey_relying_party"}


@pytest.fixture(params=ENGINES)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """A store of an older version, with a user in it."""
    made: StorePlace
    if request.param == "sqlite":
        made = tmp_path / "s"
        made.touch(mode=0o600)
        with closing(sqlite3.connect(made)) as file:
            for step in MIGRATIONS[:OLD]:
                file.executescript(";".join(step))
            file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            file.execute(f"PRAGMA user_version = {OLD}")
    else:
        made = new_database(empty=True)
        with psycopg.connect(made.uri, autocommit=True) as connection:
            migrate_database(
                connection, postgres.STEPS[:OLD], table=postgres._VERSION, errors=postgres.ERRORS
            )
    users = "INSERT INTO users (handle, name, display_name, created_at) VALUES "
    query(made, users + ("(x'aa'" if isinstance(made, Path) else "('a'") + ", 'grace', 'Grace', 1)")
    return made


def test_a_plan_has_the_statements_that_are_missing_and_changes_nothing(old: StorePlace) -> None:
    before = columns(old)
    plan = planned(old)
    assert (plan.version, plan.newest, len(plan.steps)) == (OLD, len(MIGRATIONS), len(MIGRATIONS) - OLD)
    assert any("CREATE INDEX users_never_used" in each for each in plan.steps[-1])
    assert any("UNLOGGED" in each for each in plan.steps[0]) is isinstance(old, PostgresUri)
    assert (version(old), columns(old)) == (OLD, before)


def test_the_statements_of_a_plan_are_what_a_migration_does(old: StorePlace, tmp_path: Path) -> None:
    empty: StorePlace
    if isinstance(old, Path):
        empty = tmp_path / "empty"
        empty.touch(mode=0o600)
    else:
        empty = new_database(empty=True)
    for step in planned(empty).steps:
        for statement in step:
            query(empty, statement)
    migrate(old)
    assert columns(empty) == columns(old)


async def test_an_old_store_is_migrated_once_with_who_is_in_it(old: StorePlace) -> None:
    migrate(old)
    assert (version(old), planned(old).steps) == (len(MIGRATIONS), ())
    assert query(old, "SELECT name, used FROM users") == [("grace", 0)]
    async with Engine(old).store() as store:
        assert (await store.user_by_name("grace", now=2)) is not None
    migrate(old)


async def test_a_file_that_is_used_is_not_migrated(tmp_path: Path) -> None:
    from relying_party.http.app import _locked_store  # noqa: PLC0415  what a program opens
    from tests.rp.clients import make_config  # noqa: PLC0415

    async with _locked_store(make_config(tmp_path / "s")):
        with pytest.raises(StoreUnavailable, match="another relying party"):
            migrate(tmp_path / "s")
        assert planned(tmp_path / "s").steps == ()


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path, kind: str) -> None:
    made = engine(kind, tmp_path)
    async with made.store():
        pass
    is_file = isinstance(made.place, Path)
    query(
        made.place,
        "PRAGMA user_version = 99" if is_file else "UPDATE headless_passkey_relying_party SET version = 99",
    )
    for act in (planned, migrate):
        with pytest.raises(SetupError, match="newer version"):
            act(made.place)
    assert version(made.place) == 99


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch(mode=0o600)
    query(other, "CREATE TABLE notes (text TEXT)")
    content = other.read_bytes()
    for act in (planned, migrate):
        with pytest.raises(SetupError, match="another program"):
            act(other)
    assert query(other, "SELECT * FROM notes") == []
    assert other.read_bytes() == content


async def test_the_command_says_what_it_would_do_and_does_it(old: StorePlace) -> None:
    words = ("relying_party", "store", "migrate", "--store", str(old))
    status, shown, said = await run(*words, "--dry-run")
    assert (status, shown.startswith(f"-- step {OLD + 1}\n")) == (0, True)
    assert (
        said
        == f"the store has version {OLD} of the schema, and would be brought to version {len(MIGRATIONS)}\n"
    )
    assert version(old) == OLD
    status, shown, said = await run(*words)
    assert (status, shown) == (0, "")
    assert said == f"the store is brought from version {OLD} of the schema to version {len(MIGRATIONS)}\n"
    status, shown, said = await run(*words, "--dry-run")
    assert (status, shown, said) == (0, "", f"the store has the newest schema, version {len(MIGRATIONS)}\n")
    async with Engine(old).store() as store:
        await store.register(credential(), ADA, session(), ends=None)


async def test_a_check_leaves_an_old_store_to_the_program_that_uses_it(old: StorePlace) -> None:
    before = columns(old)
    status, shown, said = await run("relying_party", "store", "check", "--store", str(old))
    assert status == 0
    assert "users 1\n" in shown
    newest = len(MIGRATIONS)
    assert (
        f"warning: it has version {OLD} of the schema, and this program makes it version {newest} when it starts\n"
        in said
    )
    assert (version(old), columns(old)) == (OLD, before)
    migrate(old)
    assert "of the schema" not in " ".join(checked(old).warnings)


async def test_the_command_makes_no_file(tmp_path: Path) -> None:
    status, _, said = await run("relying_party", "store", "migrate", "--store", str(tmp_path / "none"))
    assert (status, "there is no" in said) == (2, True)
    assert not (tmp_path / "none").exists()
