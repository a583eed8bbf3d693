"""The removal of the last old passkey, and of an account that has one: delayed, shown to all sessions, called off with an older one."""

from typing import Any

import pytest

from relying_party.core.removals import (
    DELAY_SECONDS,
    OLD_SECONDS,
    Aged,
    Removal,
    is_delayed,
    may_call_off,
    remaining,
)
from tests.rp.authenticator_double import Passkey, b64
from tests.rp.clients import Answer, Browser, Device, Site

WEEK, DELAY = 7 * 86400, 72 * 3600
NOW = 1_800_000_000


def aged(name: bytes, days: float) -> Aged:
    return Aged(credential_id=name, created_at=int(NOW - days * 86400))


def removal(asked_by: bytes, credential_id: bytes | None = b"o") -> Removal:
    return Removal(
        removal_id=b"r", credential_id=credential_id, asked_by=asked_by, asked_at=NOW, due_at=NOW + DELAY
    )


def test_a_week_and_three_days() -> None:
    assert (OLD_SECONDS, DELAY_SECONDS) == (604_800, 259_200)


@pytest.mark.threat("T16")
@pytest.mark.parametrize(
    ("removed", "stay", "delayed"),
    [
        (8.0, [0.1], True),
        (7.0, [6.99], True),
        (8.0, [7.0], False),
        (8.0, [30.0, 0.1], False),
        (6.99, [0.1], False),
        (0.1, [8.0], False),
        (400.0, [6.0, 5.0, 4.0], True),
    ],
)
def test_the_removal_of_the_last_old_passkey_is_delayed(
    removed: float, stay: list[float], *, delayed: bool
) -> None:
    others = [aged(b"%d" % number, days) for number, days in enumerate(stay)]
    assert is_delayed(aged(b"x", removed), others, now=NOW) is delayed


@pytest.mark.threat("T16")
def test_a_passkey_that_is_going_does_not_stay_unless_what_asked_goes_first() -> None:
    theirs = [aged(b"o", 9), aged(b"p", 8), aged(b"t", 1)]
    assert [one.credential_id for one in remaining(theirs, b"p", [removal(b"t")])] == [b"t"]
    assert [one.credential_id for one in remaining(theirs, b"t", [removal(b"t")])] == [b"o", b"p"]


@pytest.mark.threat("T16")
@pytest.mark.parametrize(
    ("asked_by", "used", "may"),
    [
        (b"t", b"o", True),
        (b"t", b"t", True),
        (b"o", b"t", False),
        (b"o", b"p", False),
        (b"p", b"o", True),
        (b"t", b"same age as t", False),
        (b"gone", b"t", True),
        (b"t", b"gone", False),
    ],
    ids=str,
)
def test_a_removal_is_called_off_with_the_passkey_that_asked_or_an_older_one(
    asked_by: bytes, used: bytes, *, may: bool
) -> None:
    theirs = [aged(b"o", 9), aged(b"p", 8), aged(b"t", 1), aged(b"same age as t", 1)]
    assert may_call_off(removal(asked_by), theirs, used) is may


class Theft:
    """Ada's account of a week, and a thief with a passkey of their own in it."""

    def __init__(self, site: Site) -> None:
        self.site, self.owner, self.thief = site, Browser(), Browser()

    async def begin(self) -> None:
        site = self.site
        self.old, _ = await site.register(self.owner, "ada")
        site.clock.now += WEEK
        await site.sign_in(self.owner, self.old)
        await site.sign_in(self.thief, self.old)
        self.young = await site.add_passkey(self.thief, self.old)
        await site.sign_in(self.thief, self.young)

    async def account(self, who: Browser | None = None) -> Any:
        return (await self.site.send(who or self.owner, "GET", "/me")).body

    async def remove(self, who: Browser, used: Passkey, removed: Passkey) -> Answer:
        return await self.site.remove_passkey(who, used, removed)

    async def delete(self, who: Browser, used: Passkey) -> Answer:
        assert (await self.site.step_up(who, used, "delete-account")).status == 200
        return await self.site.send(who, "DELETE", "/me")

    async def call_off(self, who: Browser) -> Answer:
        (pending,) = (await self.account())["removals"]
        return await self.site.send(who, "DELETE", f"/me/removals/{pending['id']}")


@pytest.fixture
async def theft(site: Site) -> Theft:
    made = Theft(site)
    await made.begin()
    return made


@pytest.mark.threat("T16")
async def test_a_young_passkey_does_not_put_out_the_old_one_at_once(theft: Theft) -> None:
    site, now = theft.site, int(theft.site.clock.now)
    answer = await theft.remove(theft.thief, theft.young, theft.old)
    assert answer.status == 202
    for who, may in ((theft.owner, True), (theft.thief, True)):
        (shown,) = (await theft.account(who))["removals"]
        del shown["id"]
        assert shown == {
            "credential_id": b64(theft.old.credential_id),
            "asked_by": b64(theft.young.credential_id),
            "asked_at": now,
            "due_at": now + DELAY,
            "may_call_off": may,
        }
    assert (await site.sign_in(Browser(), theft.old)).status == 200
    assert (await theft.call_off(theft.owner)).body["removals"] == []
    site.clock.now += DELAY
    assert (await site.sign_in(theft.owner, theft.old)).status == 200


@pytest.mark.threat("T16")
async def test_a_removal_that_nobody_calls_off_takes_effect_after_72_hours(theft: Theft) -> None:
    site, device = theft.site, Device()
    await site.sign_in(device, theft.old)
    await theft.remove(theft.thief, theft.young, theft.old)
    site.clock.now += DELAY - 1
    assert (await site.send(device, "GET", "/session")).status in (200, 401)  # its token may have ended
    assert (await site.sign_in(device, theft.old)).status == 200
    site.clock.now += 1
    assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"
    assert (await site.sign_in(Browser(), theft.old)).slug == "verification-failed"
    assert (await site.sign_in(theft.thief, theft.young)).status == 200
    body = await theft.account(theft.thief)
    assert [one["id"] for one in body["credentials"]] == [b64(theft.young.credential_id)]
    assert body["removals"] == []
    assert (body["changes"][0]["kind"], body["changes"][0]["client_kind"]) == ("passkey-removed", None)


@pytest.mark.threat("T16")
@pytest.mark.parametrize("between", [True, False], ids=["seen between", "not seen between"])
async def test_an_account_stays_when_the_passkey_that_asked_for_its_end_goes_before(
    theft: Theft, *, between: bool
) -> None:
    site = theft.site
    assert (await theft.remove(theft.thief, theft.young, theft.old)).status == 202
    site.clock.now += 3600
    assert (await theft.delete(theft.owner, theft.old)).status == 202
    site.clock.now += DELAY - 3600
    if between:
        assert (await site.sign_in(Browser(), theft.young)).status == 200
    site.clock.now += 3600
    assert (await site.sign_in(theft.thief, theft.young)).status == 200
    body = await theft.account(theft.thief)
    assert [one["id"] for one in body["credentials"]] == [b64(theft.young.credential_id)]
    assert body["removals"] == []


@pytest.mark.threat("T16")
@pytest.mark.parametrize("between", [True, False], ids=["seen between", "not seen between"])
async def test_a_passkey_stays_when_the_one_that_asked_for_its_removal_goes_before(
    site: Site, *, between: bool
) -> None:
    browser, day = Browser(), 86400
    first, _ = await site.register(browser, "ada")
    site.clock.now += 6.5 * day
    await site.sign_in(browser, first)
    second = await site.add_passkey(browser, first)
    site.clock.now += 4.5 * day
    await site.sign_in(browser, first)
    third = await site.add_passkey(browser, first)
    site.clock.now += 2 * day
    await site.sign_in(browser, third)
    assert (await site.remove_passkey(browser, third, first)).status == 202  # the only old one
    site.clock.now += day
    await site.sign_in(browser, first)
    assert (await site.remove_passkey(browser, first, second)).status == 202  # the only old one that stays
    site.clock.now += DELAY - day
    if between:
        assert (await site.sign_in(Browser(), third)).status == 200
    site.clock.now += day
    assert (await site.sign_in(browser, second)).status == 200
    body = (await site.send(browser, "GET", "/me")).body
    assert [one["id"] for one in body["credentials"]] == [
        b64(second.credential_id),
        b64(third.credential_id),
    ]
    assert [(one["kind"], one["at"]) for one in body["changes"]][:1] == [
        ("passkey-removed", int(site.clock.now) - day)
    ]


@pytest.mark.threat("T16")
async def test_asking_again_neither_hastens_nor_delays_it(theft: Theft) -> None:
    due = (await theft.remove(theft.thief, theft.young, theft.old)).body["removals"]
    theft.site.clock.now += 3600
    assert (await theft.remove(theft.thief, theft.young, theft.old)).body["removals"] == due


@pytest.mark.threat("T16")
async def test_the_owner_removes_the_thiefs_passkey_and_with_it_what_it_asked_for(theft: Theft) -> None:
    await theft.remove(theft.thief, theft.young, theft.old)
    answer = await theft.remove(theft.owner, theft.old, theft.young)
    assert (answer.status, answer.body["removals"]) == (200, [])
    assert [one["id"] for one in answer.body["credentials"]] == [b64(theft.old.credential_id)]
    assert (await theft.site.send(theft.thief, "GET", "/me")).slug == "not-signed-in"
    theft.site.clock.now += DELAY
    assert (await theft.site.sign_in(theft.owner, theft.old)).status == 200


@pytest.mark.threat("T16")
async def test_a_younger_passkey_calls_nothing_off(theft: Theft) -> None:
    await theft.site.step_up(theft.owner, theft.old, "delete-account")
    assert (await theft.site.send(theft.owner, "DELETE", "/me")).status == 202
    answer = await theft.call_off(theft.thief)
    assert (answer.status, answer.slug) == (403, "younger-passkey")
    assert [one["may_call_off"] for one in (await theft.account(theft.thief))["removals"]] == [False]
    assert (await theft.call_off(theft.owner)).status == 200


@pytest.mark.threat("T16")
async def test_a_device_calls_nothing_off(theft: Theft) -> None:
    device = Device()
    await theft.site.sign_in(device, theft.old)
    await theft.remove(theft.thief, theft.young, theft.old)
    (pending,) = (await theft.account())["removals"]
    answer = await theft.site.send(device, "DELETE", f"/me/removals/{pending['id']}")
    assert (answer.status, answer.slug) == (403, "browsers-only")


@pytest.mark.threat("T16")
async def test_nobody_calls_off_what_is_somebody_elses(theft: Theft) -> None:
    eve = Browser()
    await theft.site.register(eve, "eve")
    await theft.remove(theft.thief, theft.young, theft.old)
    assert (await theft.call_off(eve)).slug == "not-found"


@pytest.mark.threat("T16")
async def test_the_last_passkey_that_is_not_going_stays(theft: Theft) -> None:
    await theft.remove(theft.thief, theft.old, theft.old)
    answer = await theft.remove(theft.owner, theft.old, theft.young)
    assert (answer.status, answer.slug) == (409, "last-credential")


@pytest.mark.threat("T16")
async def test_with_another_old_passkey_a_removal_takes_effect_at_once(theft: Theft) -> None:
    theft.site.clock.now += WEEK
    await theft.site.sign_in(theft.owner, theft.old)
    assert (await theft.remove(theft.owner, theft.young, theft.old)).status == 200


@pytest.mark.threat("T16")
async def test_an_account_with_an_old_passkey_ends_after_72_hours(theft: Theft) -> None:
    site = theft.site
    answer = await theft.delete(theft.thief, theft.young)
    assert (answer.status, answer.body["removals"][0]["credential_id"]) == (202, None)
    site.clock.now += DELAY - 1
    assert (await site.sign_in(theft.owner, theft.old)).status == 200
    site.clock.now += 1
    for passkey in (theft.old, theft.young):
        assert (await site.sign_in(Browser(), passkey)).slug == "verification-failed"
    assert (await site.send(theft.owner, "GET", "/me")).slug == "not-signed-in"
    assert (await site.register(Browser(), "ada"))[1].status == 201


async def test_a_young_account_is_deleted_at_once_with_everything(site: Site) -> None:
    browser, device = Browser(), Device()
    passkey, _ = await site.register(browser, "ada")
    await site.sign_in(device, passkey)
    await site.step_up(browser, passkey, "delete-account")
    answer = await site.send(browser, "DELETE", "/me")
    assert (answer.status, answer.cookies["__Host-session"]) == (204, "")
    assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"
    assert await site.state.store.everyone(now=site.clock.now, most=9) == []
    tables = ("users", "credentials", "sessions", "step_ups", "changes", "removals")
    count = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)  # noqa: S608  our names
    left = await site.state.store._transaction(
        lambda connection: connection.execute(f"SELECT {count} AS left_over").fetchone()["left_over"]
    )
    assert left == 0


@pytest.mark.threat("T16")
async def test_the_other_sessions_are_told_what_was_done(theft: Theft) -> None:
    site = theft.site
    await site.step_up(theft.thief, theft.young, "rename-user", name="Eve")
    await site.send(theft.thief, "PATCH", "/me", {"display_name": "Eve"})
    target = b64(theft.old.credential_id)
    await site.step_up(theft.thief, theft.young, "rename-passkey", target=target, name="old phone")
    await site.send(theft.thief, "PATCH", f"/me/credentials/{target}", {"label": "old phone"})
    await theft.remove(theft.thief, theft.young, theft.old)
    await theft.call_off(theft.owner)
    told = [(one["kind"], one["name"], one["here"]) for one in (await theft.account())["changes"]]
    assert told == [
        ("removal-called-off", "old phone", True),
        ("removal-asked", "old phone", False),
        ("passkey-renamed", "old phone", False),
        ("name-changed", "Eve", False),
        ("passkey-added", None, False),
    ]
    await site.step_up(theft.thief, theft.young, "end-other-sessions")
    await site.send(theft.thief, "DELETE", "/me/sessions")
    await site.sign_in(theft.owner, theft.old)
    first = (await theft.account())["changes"][0]
    assert (first["kind"], first["client_kind"], first["here"]) == ("sessions-ended", "web", False)


@pytest.mark.threat("T16")
async def test_many_changes_of_one_kind_hide_none_of_another(theft: Theft) -> None:
    for number in range(15):
        name = f"Eve {number}"
        await theft.site.step_up(theft.thief, theft.young, "rename-user", name=name)
        await theft.site.send(theft.thief, "PATCH", "/me", {"display_name": name})
    kinds = [one["kind"] for one in (await theft.account())["changes"]]
    assert kinds == ["name-changed"] * 10 + ["passkey-added"]


async def test_changes_are_shown_for_thirty_days(theft: Theft) -> None:
    for days, shown in ((30, 1), (31, 0)):
        theft.site.clock.now = NOW + WEEK + days * 86400 - 1
        await theft.site.sign_in(theft.owner, theft.old)
        assert len((await theft.account())["changes"]) == shown
