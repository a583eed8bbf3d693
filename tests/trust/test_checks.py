"""What a companion checks before it shows a request: every sentence of the order is a test here."""

from dataclasses import replace
from typing import Any

import pytest

from headless_passkey.errors import TrustReason
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.checks import MAX_URL_LENGTH, check_envelope, recheck, untold_ring, usable_until
from headless_passkey.trust.envelope import Announcement
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.ring import HpkeKey, Member, Ring, Role, prove_possession
from tests.trust.people import BOBS, NOW, REQUEST_ID, Home, Person, device, entry, fido_url, grow, reseal
from tests.trust.refusal import refused

HOME = Home()
PHONE, TABLET, FRAME = HOME.phone, HOME.tablet, HOME.frame


def checked(sealed: bytes, *, by: Person = PHONE, **changes: Any) -> Announcement:
    values: dict[str, Any] = {
        "device": FRAME.name,
        "request_id": REQUEST_ID,
        "hpke_private": by.hpke_private,
        "me": by.name,
        "chain": HOME.chain,
        "opened_before": frozenset(),
        "now": NOW,
    }
    return check_envelope(sealed, **(values | changes))


def test_an_envelope_in_order_is_what_the_device_said() -> None:
    said = checked(HOME.seal(note="in the kitchen", digits="42"))
    assert (said.kind, said.rp_id, said.note, said.digits) == ("ga", "example.com", "in the kitchen", "42")
    recheck(said, NOW + 100)


def test_each_companion_opens_its_own() -> None:
    mine, theirs = HOME.seal(PHONE), HOME.seal(TABLET)
    assert checked(mine).url != checked(theirs, by=TABLET).url


# opens with this recipient and request id


@pytest.mark.threat("T2")
@pytest.mark.parametrize(
    "elsewhere",
    [{"request_id": bytes(16)}, {"device": TABLET.name}, {"by": TABLET}, {"me": TABLET.name}],
    ids=["id", "device", "companion", "name"],
)
def test_a_readdressed_envelope_does_not_open(elsewhere: dict[str, Any]) -> None:
    with refused(TrustReason.CANNOT_OPEN):
        checked(HOME.seal(), **elsewhere)


# device in the ring


@pytest.mark.threat("T6")
def test_a_device_nobody_enrolled_is_refused() -> None:
    stranger = device("stranger")
    sealed = reseal(HOME.say(device=stranger.name), by=stranger, to=PHONE)
    with refused(TrustReason.UNKNOWN_DEVICE):
        checked(sealed, device=stranger.name)


@pytest.mark.threat("T1")
def test_a_companion_is_no_device() -> None:
    sealed = reseal(HOME.say(device=TABLET.name), by=TABLET, to=PHONE)
    with refused(TrustReason.UNKNOWN_DEVICE):
        checked(sealed, device=TABLET.name)


@pytest.mark.threat("T1")
def test_a_removed_device_is_refused() -> None:
    chain = HOME.chain.extend([grow(HOME.ring, PHONE, PHONE, TABLET).document], now=NOW)
    with refused(TrustReason.UNKNOWN_DEVICE):
        checked(HOME.seal(), chain=chain)


# signature


@pytest.mark.threat("T1")
def test_the_relay_cannot_put_in_a_url_of_its_own() -> None:
    sealed = reseal(HOME.say(), by=device("relay"), to=PHONE, url=fido_url())
    with refused(TrustReason.BAD_SIGNATURE):
        checked(sealed)


@pytest.mark.threat("T2")
def test_a_key_of_another_account_is_refused() -> None:
    neighbours = Home(account=BOBS)
    sealed = reseal(HOME.say(), by=neighbours.frame, to=PHONE)
    with refused(TrustReason.BAD_SIGNATURE):
        checked(sealed)


# account, recipient and kind


@pytest.mark.threat("T2")
def test_what_is_said_to_others_is_refused() -> None:
    with refused(TrustReason.ACCOUNT_MISMATCH):
        checked(reseal(HOME.say(), by=FRAME, to=PHONE, account=BOBS))
    with refused(TrustReason.RECIPIENT_MISMATCH):
        checked(reseal(HOME.say(TABLET), by=FRAME, to=PHONE))
    with refused(TrustReason.KIND_MISMATCH):
        checked(reseal(HOME.say(), by=FRAME, to=PHONE, kind="dci"))


# id not opened before


@pytest.mark.threat("T5")
def test_a_replayed_envelope_is_refused() -> None:
    sealed = HOME.seal()
    checked(sealed)
    with refused(TrustReason.REPLAYED):
        checked(sealed, opened_before={(FRAME.name, REQUEST_ID)})


def test_the_same_id_of_another_device_is_another_request() -> None:
    checked(HOME.seal(), opened_before={(device().name, REQUEST_ID)})


# issued and expires, 120 s skew either way: each clock may be 60 s off the relay's


@pytest.mark.threat("T5")
@pytest.mark.parametrize(
    ("lifetime", "now"),
    [(300, NOW - 120), (300, NOW - 110), (300, NOW + 110), (180, NOW + 300), (10, NOW + 130)],
)
def test_two_minutes_of_skew_are_fine(lifetime: int, now: int) -> None:
    checked(HOME.seal(lifetime=lifetime), now=now)


@pytest.mark.threat("T5")
def test_a_device_ahead_of_us_is_refused_with_the_difference() -> None:
    with refused(TrustReason.CLOCK_SKEW, saying="121 s ahead of this one; at most 120 s are allowed"):
        checked(HOME.seal(), now=NOW - 121)


@pytest.mark.threat("T5")
def test_an_expired_envelope_is_refused_with_the_difference() -> None:
    with refused(TrustReason.EXPIRED, saying="expired 121 s ago") as _:
        checked(HOME.seal(lifetime=100), now=NOW + 221)
    with refused(TrustReason.EXPIRED, saying="the clocks differ by 221 s"):
        checked(HOME.seal(lifetime=100), now=NOW + 221)


# the ring is mine or an ancestor, and nothing removed since is involved


@pytest.mark.threat("T2")
def test_a_device_one_ring_behind_is_fine_while_nothing_it_uses_was_removed() -> None:
    ahead = HOME.chain.extend([grow(HOME.ring, PHONE, PHONE, FRAME, device("another")).document], now=NOW)
    checked(HOME.seal(), chain=ahead)


@pytest.mark.threat("T2")
def test_a_ring_above_ours_that_the_relay_did_not_show_us_is_withheld() -> None:
    ahead = grow(HOME.ring, PHONE, PHONE, TABLET, FRAME)
    with refused(TrustReason.WITHHELD_RING, saying=f"ring version {ahead.version}"):
        checked(HOME.seal(ring=ahead))


@pytest.mark.threat("T2")
def test_another_ring_of_a_version_that_we_hold_is_a_fork() -> None:
    fork = grow(HOME.chain.rings[0], PHONE, PHONE, FRAME)
    with refused(TrustReason.FORKED_RING):
        checked(HOME.seal(ring=fork))


@pytest.mark.threat("T2")
def test_a_ring_older_than_what_we_keep_is_stale() -> None:
    with refused(TrustReason.STALE_RING):
        checked(HOME.seal(ring=HOME.chain.rings[0]), chain=RingChain.start(HOME.ring))


@pytest.mark.threat("T2")
def test_a_ring_that_the_device_should_know_by_now_was_kept_from_it() -> None:
    later = [grow(HOME.ring, PHONE, PHONE, TABLET, FRAME, now=NOW + 5)]
    later.append(grow(later[0], PHONE, PHONE, TABLET, FRAME, now=NOW + 50))
    chain = HOME.chain.extend([ring.document for ring in later], now=NOW + 50)
    said = HOME.say(now=NOW + 606)
    assert untold_ring(said, chain) == later[0].version
    assert untold_ring(HOME.say(now=NOW + 605), chain) is None
    assert untold_ring(HOME.say(now=NOW + 606, ring=later[0]), chain) is None
    assert untold_ring(HOME.say(now=NOW + 9999, ring=later[1]), chain) is None


@pytest.mark.threat("T2")
def test_a_device_that_was_removed_since_and_came_back_must_use_a_newer_ring() -> None:
    without = grow(HOME.ring, PHONE, PHONE, TABLET)
    again = grow(without, PHONE, PHONE, TABLET, FRAME)
    chain = HOME.chain.extend([without.document, again.document], now=NOW)
    with refused(TrustReason.STALE_RING):
        checked(HOME.seal(), chain=chain)
    checked(HOME.seal(ring=again), chain=chain)


@pytest.mark.threat("T2")
def test_an_envelope_to_a_key_we_replaced_since_is_stale() -> None:
    fresh = SoftwareHpkeKey.generate()
    members = [replaced(PHONE, HOME.ring, fresh.public), *HOME.ring.members[1:]]
    chain = HOME.chain.extend([HOME.ring.next(PHONE.key, members=members, now=NOW).document], now=NOW)
    with refused(TrustReason.STALE_RING, saying="replaced"):
        checked(HOME.seal(), chain=chain)


@pytest.mark.threat("T2")
def test_a_companion_that_was_removed_opens_nothing_more() -> None:
    chain = HOME.chain.extend([grow(HOME.ring, TABLET, TABLET, FRAME).document], now=NOW)
    with refused(TrustReason.STALE_RING):
        checked(HOME.seal(), chain=chain)


# the URL


@pytest.mark.threat("T1")
@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://example.com/",
        "fido:/" + fido_url().removeprefix("FIDO:/"),
        " " + fido_url(),
        fido_url() + "\n",
        fido_url() + "?x=1",
        fido_url()[:-1] + "٣",
        "FIDO:/",
        "FIDO:/0",
        "FIDO:/" + "9" * 17,
        fido_url()[:-5],
        "FIDO:/" + "1" * MAX_URL_LENGTH,
        fido_url(time=None),
        b"FIDO:/1",
        None,
    ],
    ids=range(15),
)
def test_what_is_no_fido_url_of_ours_is_refused(url: object) -> None:
    with refused(TrustReason.BAD_URL):
        checked(reseal(HOME.say(), by=FRAME, to=PHONE, url=url))


@pytest.mark.threat("T5")
def test_a_url_is_at_most_300_s_old_and_120_s_ahead() -> None:
    checked(HOME.seal(url=fido_url(time=NOW - 300)))
    checked(HOME.seal(url=fido_url(time=NOW + 120)))
    with refused(TrustReason.EXPIRED, saying="301 s old"):
        checked(HOME.seal(url=fido_url(time=NOW - 301)))
    with refused(TrustReason.CLOCK_SKEW, saying="121 s ahead"):
        checked(HOME.seal(url=fido_url(time=NOW + 121)))


@pytest.mark.threat("T10")
def test_a_url_that_asks_for_something_else_than_the_envelope_is_refused() -> None:
    checked(HOME.seal(kind=RequestKind.MAKE_CREDENTIAL, url=fido_url(kind="mc")))
    for announced, in_url in (
        (RequestKind.GET_ASSERTION, "mc"),
        (RequestKind.MAKE_CREDENTIAL, "ga"),
        (RequestKind.GET_ASSERTION, None),
    ):
        with refused(TrustReason.KIND_MISMATCH):
            checked(HOME.seal(kind=announced, url=fido_url(kind=in_url)))


# rp id among the device's


@pytest.mark.threat("T4")
def test_a_device_asks_for_its_relying_parties_only() -> None:
    home = Home(frame=device("frame", rp_ids=("example.com", "example.org")))
    mine: dict[str, Any] = {
        "device": home.frame.name,
        "by": home.phone,
        "chain": home.chain,
    }
    checked(home.seal(rp_id="example.org"), **mine)
    with refused(TrustReason.RP_NOT_ALLOWED, saying="login.example.com"):
        checked(home.seal(rp_id="login.example.com"), **mine)


# digits


@pytest.mark.threat("T4")
def test_where_digits_are_demanded_a_request_without_them_is_refused() -> None:
    checked(HOME.seal(digits="42"), needs_digits=True)
    checked(HOME.seal(), needs_digits=False)
    with refused(TrustReason.DIGITS_MISSING):
        checked(HOME.seal(), needs_digits=True)


@pytest.mark.threat("T4")
def test_a_device_whose_entry_demands_digits_is_asked_for_them() -> None:
    home = Home()
    home.frame.needs_digits = True
    home.__post_init__()
    mine: dict[str, Any] = {"device": home.frame.name, "by": home.phone, "chain": home.chain}
    checked(home.seal(digits="42"), **mine)
    with refused(TrustReason.DIGITS_MISSING):
        checked(home.seal(), **mine)


# times again


@pytest.mark.threat("T5")
def test_the_times_are_checked_again_before_the_url_is_opened() -> None:
    said = checked(HOME.seal(lifetime=100))
    recheck(said, NOW + 220)
    with refused(TrustReason.EXPIRED):
        recheck(said, NOW + 221)
    said = checked(HOME.seal(url=fido_url(time=NOW - 200)))
    with refused(TrustReason.EXPIRED):
        recheck(said, NOW + 101)
    with refused(TrustReason.CLOCK_SKEW):
        recheck(said, NOW - 121)


@pytest.mark.threat("T5")
@pytest.mark.parametrize(
    ("lifetime", "made", "last"), [(300, NOW, NOW + 300), (100, NOW, NOW + 220), (300, NOW - 200, NOW + 100)]
)
def test_how_long_a_request_is_of_use_is_known_before_it_is_not(lifetime: int, made: int, last: int) -> None:
    said = checked(HOME.seal(lifetime=lifetime, url=fido_url(time=made)))
    assert usable_until(said) == last
    recheck(said, last)
    with refused(TrustReason.EXPIRED):
        recheck(said, last + 1)


# the order


@pytest.mark.threat("T12")
def test_the_first_thing_wrong_is_the_one_that_is_said() -> None:
    """An envelope with everything wrong, repaired step by step, is refused for one reason after the other."""
    stranger, other = device("stranger"), SoftwareHpkeKey.generate()
    wrong: dict[str, Any] = {"url": "FIDO:/1", "rp_id": "evil.example"}
    home = Home(phone=PHONE, frame=device("frame", rp_ids=("example.com",)))
    seen = {(home.frame.name, REQUEST_ID)}
    late = home.say(ring=HOME.ring, lifetime=10)
    mine: dict[str, Any] = {"chain": home.chain, "device": home.frame.name, "now": NOW + 1000}

    sealed = reseal(late, by=stranger, to=PHONE, sealed_from=stranger.name, **wrong)
    with refused(TrustReason.CANNOT_OPEN):
        checked(sealed, **mine | {"device": stranger.name, "hpke_private": other}, opened_before=seen)
    with refused(TrustReason.UNKNOWN_DEVICE):
        checked(sealed, **mine | {"device": stranger.name}, opened_before=seen)
    with refused(TrustReason.BAD_SIGNATURE):
        checked(reseal(late, by=stranger, to=PHONE, **wrong), **mine, opened_before=seen)
    with refused(TrustReason.RECIPIENT_MISMATCH):
        not_ours = reseal(late, by=home.frame, to=PHONE, **wrong | {"recipient": TABLET.name})
        checked(not_ours, **mine, opened_before=seen)
    sealed = reseal(late, by=home.frame, to=PHONE, **wrong)
    with refused(TrustReason.REPLAYED):
        checked(sealed, **mine, opened_before=seen)
    with refused(TrustReason.EXPIRED):
        checked(sealed, **mine)
    with refused(TrustReason.FORKED_RING):
        checked(sealed, **mine | {"now": NOW})
    now = home.say(lifetime=10)
    with refused(TrustReason.BAD_URL):
        checked(reseal(now, by=home.frame, to=PHONE, **wrong), **mine | {"now": NOW})
    with refused(TrustReason.RP_NOT_ALLOWED):
        checked(reseal(now, by=home.frame, to=PHONE, rp_id="evil.example"), **mine | {"now": NOW})
    checked(reseal(now, by=home.frame, to=PHONE), **mine | {"now": NOW})


def replaced(person: Person, ring: Ring, hpke_key: HpkeKey) -> Member:
    """The entry of a companion that has replaced its key for envelopes."""
    possession = prove_possession(person.key, account=ring.account, role=Role.COMPANION, hpke_key=hpke_key)
    return replace(entry(ring, person), hpke_key=hpke_key, possession=possession)
