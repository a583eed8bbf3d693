"""A step of a store's schema that a release has is frozen: stores have taken it as it was, and no release takes it again.

Of a step that has changed nothing fails by itself: a new store gets the new text, and one of before keeps the old tables.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import pytest

from companion_push.relay import database, postgres
from postgres_store.schema import translated
from relying_party.store import sql
from relying_party.store.postgres import STEPS

# SHA-256 of the statements of each step as its engine takes them; all are of 0.1.0. Nothing is changed or removed here: with a release
# that has more steps, theirs are added.
RELEASED: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("relay", "SQLite"): ("a95c2e3be9807caeab34c91fce6c429f6f1463c75ccc5dd05ef083fd7678de40",),
    ("relay", "PostgreSQL"): ("ccc102061f93698a0c3fd627433eb0d3ae7ba5e3a24ef97a8ce14ce4c43b40f0",),
    ("relying party", "SQLite"): (
        "bae391a1a8d897b4911090f1fb971d646ff267bcc23fadc3e721f7c90c0a79e8",
        "2400c46f1a0e7ce1de9c2cb73ed1436f4156e114d19d4b984d38b9091abf9cb5",
        "87f50530a6d717b32f36b51a833be1d46db39c45a10276c847be5725a8d4a386",
        "960e0cec8fd8036762e4431c8b7adde05b6df7a543e0b8983fb067aade39cf3b",
        "d53bf38eaa85fce30324a5472c151f883ec3c7863e9dc549d409b8d40b0259c7",
        "caad91ce9ef91f0de3a09bb81122f95e6955fa7a2c85705144e7856b9a14f8c0",
        "f88e36f6f1ae7abf68d98e8d18be1877bb26b5b73cc7699eb881118128359597",
    ),
    ("relying party", "PostgreSQL"): (
        "0603744fd07f026170d748af9aac3a3b9b7b6a5b4be9f08aa9e46500d2f00726",
        "41b3aa092f13d4af1f7a194ebe93d9410cd2a01e8bed85f70c14edfb5b4f63ab",
        "1b862c0d64fee0fada8a9ebc973fd6599a79d14244fee1757b71dff384871ed7",
        "cf7f7128a8d849fc362f67eeafb595c6e1f0a4061e8a26f7edb3fe8640a87c25",
        "bdb39d55935e24256032ed825208726aa096c8b1ceb893c4aa8886929f73a578",
        "4815e141e19d95534cd3731027e071d4f4ec874e50759eb3e1541610f93f36b3",
        "71299b097a0f529c7bd0779774d533b7b650d024cd6a22b5a70d01d419c1dfd6",
    ),
}


def steps(store: str, engine: str) -> list[Sequence[str]]:
    """The statements of each step of now."""
    match store, engine:
        case "relay", "SQLite":
            return [database.statements(step) for step in database.MIGRATIONS]
        case "relay", "PostgreSQL":
            return [[translated(each) for each in step] for step in postgres._steps()]
        case "relying party", "SQLite":
            return list(sql.MIGRATIONS)
        case _:
            return [[translated(each) for each in step] for step in STEPS]


def checksum(statements: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(statements).encode()).hexdigest()


@pytest.mark.parametrize(("store", "engine"), RELEASED)
def test_a_step_of_a_schema_that_a_release_has_is_never_changed(store: str, engine: str) -> None:
    found = [checksum(step) for step in steps(store, engine)]
    released = RELEASED[store, engine]
    assert len(found) >= len(released), (
        f"step {len(found) + 1} of the {store}'s schema is in a release: put it back"
    )
    for number, (was, now) in enumerate(zip(released, found, strict=False), 1):
        assert now == was, (
            f"step {number} of the {store}'s schema in {engine} is in a release, and stores that have taken it never take it again: "
            "put its text back, and add a new step at the end of MIGRATIONS for what is to change"
        )
