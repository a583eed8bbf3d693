"""``companion-push companion remove``, ``rename`` and ``restore``, as programs."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from program_parts.base64url import base64url
from tests.companion.family import enrolled
from tests.companion.program import at_terminal, outcome
from tests.relay.household import Household, Relay
from tests.screen import Screen
from tests.trust.people import companion, device, grow

HUB, TABLET, FRAME = device("Kitchen hub"), companion("Tablet"), device("Frame")


@pytest_asyncio.fixture
async def home(relay: Relay) -> AsyncIterator[Household]:
    """Phone 0 let the tablet and the hub in, and the tablet let the frame in."""
    home = await relay.household(companions=1, devices=0)
    phone = home.companions[0]
    await home.append(phone.person, TABLET, HUB)
    tablet = relay.caller(TABLET)
    ring = grow(home.ring, TABLET, phone.person, TABLET, HUB, FRAME, now=relay.clock())
    assert (await tablet.post("/v1/ring", {"ring": base64url(ring.document)})).status == 201
    home.ring = ring
    yield home


@pytest.fixture
def state(tmp_path: Path, home: Household) -> Path:
    enrolled(tmp_path, home.companions[0], home)
    return tmp_path / home.companions[0].name


async def labels(state: Path) -> list[str]:
    status, stdout, said = await outcome("companion", "members", "--state", state, "--json")
    assert status == 0, said
    return [member["label"] for member in json.loads(stdout)["members"]]


async def change(state: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    command, *rest = words
    status, stdout, said = await outcome("companion", command, "--state", state, "--json", *rest)
    assert stdout == ""
    return status, [json.loads(line) for line in said]


async def press(screen: Screen, question: str, keys: str) -> None:
    await screen.until(question)
    screen.type(keys)


@pytest.mark.threat("T16")
async def test_a_member_is_removed_with_what_it_had_let_in(state: Path) -> None:
    status, said = await change(state, "remove", "Tablet", "--introduced", "--confirm", "Tablet")
    assert status == 0, said
    assert [(line["stage"], line.get("label")) for line in said] == [
        ("removing", "Tablet"),
        ("introduced", "Frame"),
        ("removed", None),
    ]
    assert said[-1]["names"] == [TABLET.name, FRAME.name]
    assert await labels(state) == ["phone 0", "Kitchen hub"]


@pytest.mark.threat("T16")
async def test_whoever_let_others_in_is_not_removed_without_a_word_about_them(state: Path) -> None:
    status, said = await change(state, "remove", "Tablet", "--confirm", "Tablet")
    assert status == 2
    assert "--introduced or --only" in said[-1]["message"]
    status, said = await change(state, "remove", "Tablet", "--only", "--confirm", "Tablet")
    assert status == 0, said
    assert await labels(state) == ["phone 0", "Kitchen hub", "Frame"]


@pytest.mark.threat("T16")
async def test_at_a_terminal_the_label_is_typed_and_the_introduced_are_offered(state: Path) -> None:
    async with at_terminal("companion", "remove", "Tablet", "--state", state) as (program, screen):
        await press(screen, "y or n:", "y\n")
        await press(screen, "type its label (or ", "Tablet\n")
        assert await program.ended() == 0
    assert await labels(state) == ["phone 0", "Kitchen hub"]


@pytest.mark.threat("T16")
@pytest.mark.parametrize("typed", ["Tabletop", "tablet", "y"])
async def test_another_label_than_the_members_changes_nothing(state: Path, typed: str) -> None:
    async with at_terminal("companion", "remove", "Kitchen hub", "--state", state) as (program, screen):
        await press(screen, "type its label (or ", f"{typed}\n")
        assert await program.ended() == 6
    status, _ = await change(state, "remove", "Kitchen hub", "--confirm", typed)
    assert status == 6
    assert len(await labels(state)) == 4


@pytest.mark.threat("T16")
@pytest.mark.parametrize("how", ["label", "short name"])
async def test_a_member_whose_label_nobody_can_type_is_removed_all_the_same(
    state: Path, home: Household, how: str
) -> None:
    """A hostile companion names its puppets; the ring takes labels that are in no normal form, or of any script."""
    phone = home.companions[0]
    puppet = companion("Cafe\u0301 \U00012000")
    while how == "short name" and not puppet.name.startswith("-"):  # which no option is taken for
        puppet = companion(puppet.label)
    ring = grow(home.ring, phone.person, phone.person, TABLET, HUB, FRAME, puppet)
    assert (await phone.post("/v1/ring", {"ring": base64url(ring.document)})).status == 201
    typed = "Caf\u00e9 \U00012000" if how == "label" else puppet.name[:10]
    status, said = await change(state, "remove", "--confirm", typed, typed)
    assert status == 0, said
    assert await labels(state) == ["phone 0", "Tablet", "Kitchen hub", "Frame"]
    status, _ = await change(state, "remove", "Kitchen hub", "--confirm", HUB.name[:5])
    assert status == 6, "too short to be meant"


async def test_a_member_is_renamed_and_keeps_what_it_is(state: Path, home: Household) -> None:
    status, said = await change(state, "rename", "Kitchen hub", "Cellar hub", "--confirm", "Kitchen hub")
    assert status == 0, said
    assert await labels(state) == ["phone 0", "Tablet", "Cellar hub", "Frame"]
    reply = await home.companions[0].get("/v1/ring")
    assert reply.body["version"] == home.ring.version + 1


@pytest.mark.threat("T16")
async def test_a_label_that_looks_like_anothers_is_refused(state: Path) -> None:
    status, said = await change(state, "rename", "Kitchen hub", "T\u0430blet", "--confirm", "Kitchen hub")
    assert (status, said[-1]["reason"]) == (8, "label-taken")


async def test_who_was_removed_is_put_back_by_its_name(state: Path) -> None:
    assert (await change(state, "remove", "Kitchen hub", "--confirm", "Kitchen hub"))[0] == 0
    status, said = await change(state, "restore", "--confirm", "Kitchen hub", HUB.name[:10])
    assert status == 0, said
    assert await labels(state) == ["phone 0", "Tablet", "Frame", "Kitchen hub"]


@pytest.mark.threat("T16")
async def test_who_was_removed_is_not_put_back_beside_its_twin(state: Path) -> None:
    assert (await change(state, "remove", "Kitchen hub", "--confirm", "Kitchen hub"))[0] == 0
    assert (await change(state, "rename", "Frame", "KITCHEN HUB", "--confirm", "Frame"))[0] == 0
    status, said = await change(state, "restore", "--confirm", "Kitchen hub", HUB.name[:10])
    assert (status, said[-1]["reason"]) == (8, "label-taken")
    assert await labels(state) == ["phone 0", "Tablet", "KITCHEN HUB"]


@pytest.mark.threat("T16")
async def test_the_last_companion_stays(state: Path) -> None:
    assert (await change(state, "remove", "Tablet", "--only", "--confirm", "Tablet"))[0] == 0
    status, said = await change(state, "remove", "phone 0", "--only", "--confirm", "phone 0")
    assert (status, said[-1]["reason"]) == (8, "last-companion")


@pytest.mark.parametrize("words", [("remove", "Nobody"), ("restore", "Tablet"), ("rename", "Nobody", "x")])
async def test_who_is_not_there_is_a_usage_error(state: Path, words: tuple[str, ...]) -> None:
    status, said = await change(state, *words, "--confirm", "x")
    assert status == 2, said


@pytest.mark.threat("T16")
async def test_a_companion_that_was_removed_says_by_whom(
    state: Path, relay: Relay, home: Household, tmp_path: Path
) -> None:
    home.companions.append(relay.caller(TABLET))
    enrolled(tmp_path, home.companions[1], home)
    assert (await change(state, "remove", "Tablet", "--only", "--confirm", "Tablet"))[0] == 0
    for words in (("remove", "Frame", "--confirm", "Frame"), ("members",)):
        status, _, said = await outcome("companion", *words, "--state", tmp_path / TABLET.name)
        if words[0] == "remove":
            assert status == 9, said
            assert 'removed from the account by "phone 0" in ring' in said[-1]
