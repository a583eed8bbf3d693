"""What a statement of the relay reads of a table that grows with accounts: rows that an index leads to, on both engines."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from companion_push.push.channel import Kind, Purpose
from companion_push.relay import accounts, channels
from companion_push.relay.store_place import StorePlace
from companion_push.relay.stores import open_store
from companion_push.relay.transaction import Rows, Transaction
from tests.relay.stores import of_files, postgres, query
from tests.trust.people import companion, device, found, grow

pytestmark = of_files  # the places are named here

MANY: Final = 1000
FAR: Final = 2_000_000_000  # Unix seconds
# a table's columns that refer to another table, and that no index begins with
NOT_LED_TO: Final = """
    SELECT tables.name, refers."from" FROM sqlite_schema AS tables, pragma_foreign_key_list(tables.name) AS refers
    WHERE tables.type = 'table' AND refers."from" NOT IN (
        SELECT columns.name FROM pragma_index_list(tables.name) AS indexes, pragma_index_info(indexes.name) AS columns
        WHERE columns.seqno = 0
        UNION SELECT name FROM pragma_table_info(tables.name) WHERE pk = 1)
"""
NOT_LED_TO_IN_POSTGRES: Final = """
    SELECT conrelid::regclass::text, conkey FROM pg_constraint WHERE contype = 'f'
    AND NOT EXISTS (SELECT 1 FROM pg_index WHERE indrelid = conrelid AND indkey[0] = conkey[1] AND indpred IS NULL)
"""


class Explained:
    """A transaction that asks for the plan of each statement before it executes it."""

    def __init__(self, db: Transaction) -> None:
        self._db = db
        self.whole: set[str] = set()  # what a statement reads from end to end, a table or an index of it
        self.looked_up: set[str] = set()  # the indexes, of PostgreSQL, that a value is looked up in

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
        if statement.split(maxsplit=1)[0] in ("SELECT", "DELETE", "UPDATE"):
            (self._explain if isinstance(self._db, sqlite3.Connection) else self._explain_in_postgres)(
                statement, values
            )
        return self._db.execute(statement, values)

    def _explain(self, statement: str, values: Sequence[Any]) -> None:
        for *_, step in self._db.execute(f"EXPLAIN QUERY PLAN {statement}", values):
            if step.startswith("SCAN"):
                self.whole.add(f"{statement}: {step}")

    def _explain_in_postgres(self, statement: str, values: Sequence[Any]) -> None:
        ((found,),) = self._db.execute(f"EXPLAIN (FORMAT JSON) {statement}", values).fetchall()
        plans = [found[0]["Plan"]]
        while plans:
            plan = plans.pop()
            plans += plan.get("Plans", [])
            # a transaction has no sequential scan where there is any index, and reads that from end to end
            if "Index Cond" in plan:
                self.looked_up.add(plan["Index Name"])
            elif "Scan" in plan["Node Type"] and "Relation Name" in plan:
                self.whole.add(plan["Relation Name"])

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> None:
        for each in values:
            self.execute(statement, each)


@pytest.fixture(params=["file", "database"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    return tmp_path / "relay.sqlite3" if request.param == "file" else postgres().database_for(tmp_path)


def fill(db: Transaction) -> None:
    """Many accounts, of which all have something."""
    for number in range(MANY):
        account, blob = f"account {number}", b"%d" % number
        member, frame = f"anna {number}", f"frame {number}"
        filled: tuple[tuple[Any, ...], ...] = (
            ("accounts", account, None, 1, 2, 0),
            ("members", member, account, "companion"),
            ("former", f"bert {number}", account, 0, FAR),
            ("account_codes", account, blob, FAR),
            ("invitations", account, blob, member, "", FAR, *[None] * 6, 0, None, None),
            ("words", member, account, 1, b""),
            ("word_calls", member, account),
            ("channels", member, "", account, "", b"", blob, 1.0, "", None),
            ("push_tags", account, blob),
            ("pushes", number, account, "", "", "", b"", b"", "", None, None, 1.0, 0.0),
            ("account_states", account, 1, b"", 1.0),
            ("envelopes", account, "", "", "", b""),
            ("mutes", frame, account, "", 1),
            ("account_events", frame, account, account, b"", 1.0, 1, 1.0),
            ("suspensions", account, 1),
            ("subjects", "", account, account, None, 0, -1, 0.0),
        )
        for table, *row in filled:
            places = ", ".join("?" * len(row))
            db.executemany(f"INSERT INTO {table} VALUES ({places})", [row])  # noqa: S608


async def explained(place: StorePlace, work: Callable[[Transaction], object]) -> Explained:
    """What the statements of `work` read."""

    def asked(db: Transaction) -> Explained:
        wrapped = Explained(db)
        work(wrapped)
        return wrapped

    async with open_store(place) as store:
        await store.transact(fill)
        query(place, "ANALYZE")
        return await store.transact(asked)


def life(db: Transaction) -> None:
    """An account from its code to its end, and what a sweep does."""
    anna = companion()
    ring = grow(found(anna), anna, anna, device("frame"))
    accounts.add_account(db, name="alice", now=1.0, expires_at=100)
    db.execute("INSERT INTO accounts VALUES (?, 'bob', 1, NULL, 0)", (ring.account,))
    accounts.store_ring(db, ring, 1.0)
    accounts.call_for_words(db, ring.account)
    channels.tell(db, ring.account, Purpose.RING, 1.0, kinds=frozenset(Kind))
    accounts.close(db, ring.account, now=1.0)
    accounts.sweep_accounts(db, 1e9)


async def test_what_an_accounts_life_reads_of_the_others_is_led_to_by_an_index(place: StorePlace) -> None:
    read = await explained(place, life)
    if isinstance(place, Path):
        assert read.whole == set()
    else:  # whose planner reads small tables as a whole where many of their rows are asked for
        assert {"invitations_ending", "pushes_of", "word_calls_of", "members_of"} <= read.looked_up
        assert not read.whole & {"members", "pushes", "word_calls", "words", "mutes"}


async def test_a_statement_that_no_index_helps_is_found(place: StorePlace) -> None:
    statement = "SELECT name FROM accounts WHERE created_at = ?"
    read = await explained(place, lambda db: db.execute(statement, (1,)))
    (whole,) = read.whole
    assert whole == "accounts" or whole.startswith(statement)


async def test_an_index_leads_to_what_refers_to_a_row_that_is_deleted(place: StorePlace) -> None:
    """Whoever deletes a row is made to look for those that refer to it."""
    async with open_store(place):
        pass
    asked = NOT_LED_TO if isinstance(place, Path) else NOT_LED_TO_IN_POSTGRES
    assert query(place, asked) == []
    query(place, "CREATE TABLE more (account TEXT REFERENCES accounts)")
    assert [row[0] for row in query(place, asked)] == ["more"]
