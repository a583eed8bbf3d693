"""The relay's settings: what a host may not configure."""

from pathlib import Path

import pytest

from companion_push.relay.config import RelayConfig
from companion_push.relay.mailbox import CEILING
from headless_passkey.errors import LocalProtocolError


def config(
    *, public_url: str = "https://relay.example", ceiling: int = CEILING, member: int = 4, address: int = 0
) -> RelayConfig:
    return RelayConfig(
        public_url=public_url,
        store=Path("relay.sqlite3"),
        ceiling=ceiling,
        held_per_member=member,
        held_per_address=address,
    )


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
    assert config(public_url=url).public_url == kept


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
    with pytest.raises(LocalProtocolError):
        config(public_url=url)


@pytest.mark.threat("T5")
@pytest.mark.parametrize("ceiling", [0, -1, CEILING + 1])
def test_configuration_only_shortens_the_five_minutes(ceiling: int) -> None:
    with pytest.raises(LocalProtocolError):
        config(ceiling=ceiling)


@pytest.mark.parametrize(("member", "address"), [(0, 0), (1, -1)])
def test_there_is_room_for_at_least_one_who_waits(member: int, address: int) -> None:
    with pytest.raises(LocalProtocolError):
        config(member=member, address=address)
