"""The relay's settings: what a host may not configure."""

from pathlib import Path
from typing import Any

import pytest

from companion_push.relay.config import RelayConfig
from companion_push.relay.limits import Quota, Rate
from headless_passkey.errors import UsageError


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://relay.example", "https://relay.example"),
        ("https://relay.example/push/", "https://relay.example/push"),
        ("http://127.0.0.1:8470", "http://127.0.0.1:8470"),
        ("http://[::1]:8470", "http://[::1]:8470"),
        ("http://localhost:1/a", "http://localhost:1/a"),
    ],
)
def test_a_public_url_is_kept_without_a_slash_at_its_end(url: str, kept: str) -> None:
    assert made(public_url=url).public_url == kept


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay.example",
        "http://relay.example",
        "https://",
        "https://a@b",
        "https://a/?b",
        "https://a/#b",
        "ftp://a",
    ],
)
def test_a_public_url_that_clients_could_not_call_safely_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        made(public_url=url)


def made(**changes: Any) -> RelayConfig:
    return RelayConfig(**{"public_url": "https://relay.example", "store": Path("s"), **changes})


HUGE, ENDLESS = 10**400, 10**5000  # above what a float holds, and above what Python writes as digits
NO_COUNTS: list[Any] = [
    0,
    -1,
    1.0,
    True,
    "4",
    None,
    float("nan"),
    float("inf"),
    pytest.param(HUGE, id="huge"),
    pytest.param(ENDLESS, id="endless"),
]


@pytest.mark.threat("T5")
@pytest.mark.parametrize("value", [*NO_COUNTS, 301])
def test_configuration_only_shortens_the_five_minutes(value: Any) -> None:
    with pytest.raises(UsageError, match=r"\Aceiling: expected a whole number from 1 to 300, got "):
        made(ceiling=value)


@pytest.mark.parametrize("value", [*NO_COUNTS, 61])
def test_configuration_only_shortens_the_lease(value: Any) -> None:
    with pytest.raises(UsageError, match=r"\Alease: expected a whole number from 1 to 60, got "):
        made(lease=value)


@pytest.mark.parametrize("value", [*NO_COUNTS, 3601])
def test_one_proof_is_good_for_an_hour_at_most(value: Any) -> None:
    with pytest.raises(UsageError, match=r"\Astream_life: expected a whole number from 1 to 3600, got "):
        made(stream_life=value)


@pytest.mark.parametrize("value", NO_COUNTS)
def test_a_count_is_a_whole_number_of_one_or_more(value: Any) -> None:
    for name, make in (
        ("held_per_member", lambda: made(held_per_member=value)),
        ("pending", lambda: Quota(pending=value)),
        ("count", lambda: Rate(count=value, seconds=60)),
    ):
        with pytest.raises(UsageError, match=rf"\A{name}: expected a whole number of 1 or more, got "):
            make()


def test_no_limit_for_an_address_is_a_setting() -> None:
    assert made(held_per_address=0).held_per_address == 0
    with pytest.raises(UsageError, match=r"\Aheld_per_address: expected a whole number of 0 or more"):
        made(held_per_address=-1)


@pytest.mark.parametrize(
    "seconds", [0, 0.0, -1, float("nan"), float("inf"), True, "60", None, pytest.param(HUGE, id="huge")]
)
def test_a_rate_is_for_a_time(seconds: Any) -> None:
    with pytest.raises(UsageError, match=r"\Aseconds: expected a number above 0, got "):
        Rate(count=1, seconds=seconds)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"public_url": None}, "public_url"),
        ({"public_url": b"https://relay.example"}, "public_url"),
        ({"store": None}, "store"),
        ({"store": 7}, "store"),
        ({"quota": None}, "quota"),
        ({"quota": 3}, "quota"),
        ({"clock": 0}, "clock"),
    ],
    ids=str,
)
def test_a_setting_of_another_kind_is_refused_with_its_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=rf"\A{name}: expected "):
        made(**changes)


def test_rates_are_rates() -> None:
    with pytest.raises(UsageError, match=r"\Arates: expected "):
        Quota(rates=((5, 60),))  # type: ignore[arg-type]


def test_a_store_may_be_named_in_text() -> None:
    assert made(store="relay.sqlite3").store == Path("relay.sqlite3")
