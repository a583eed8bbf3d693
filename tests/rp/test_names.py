"""Names in requests: the rule that devices and companions have, at every member that holds one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from program_parts.names import printable, why_not_plain
from relying_party.config import Config
from relying_party.core.messages import (
    parse_authentication_options,
    parse_display_name,
    parse_label,
    parse_registration_options,
)
from relying_party.errors import InvalidRequest, UsageError
from relying_party.names import name_of
from tests.vectors_loader import Vector, name, vectors

CASES = vectors("names")


def make(rp_name: str) -> Config:
    return Config.make(
        rp_id="rp.example",
        rp_name=rp_name,
        web_origins=(),
        device_origins=(),
        public_url="https://rp.example",
        store=Path("unused"),
    )


def _client_label(body: bytes) -> str | None:
    client = parse_authentication_options(body).client
    return None if client is None else client.label


# where a name stands in a request, and what reads it
DOORS: dict[str, tuple[Callable[[str], dict[str, Any]], Callable[[bytes], str | None]]] = {
    "user name": (lambda text: {"user_name": text}, lambda body: parse_registration_options(body).user_name),
    "user name to sign in": (
        lambda text: {"user_name": text},
        lambda body: parse_authentication_options(body).user_name,
    ),
    "display name": (
        lambda text: {"user_name": "ada", "display_name": text},
        lambda body: parse_registration_options(body).display_name,
    ),
    "new display name": (lambda text: {"display_name": text}, parse_display_name),
    "passkey": (lambda text: {"label": text}, parse_label),
    "device": (lambda text: {"client": {"label": text}}, _client_label),
}


@pytest.mark.threat("T4")
@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_rule_is_that_of_the_vectors(case: Vector) -> None:
    assert (why_not_plain(case["text"]) is None) is case["valid"]
    assert printable(case["text"]) == case["shown"]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_member_that_holds_a_name_takes_the_same_names(case: Vector) -> None:
    for write, read in DOORS.values():
        body = json.dumps(write(case["text"])).encode()
        if case["name_of"] is not None:
            assert read(body) == case["name_of"]
        else:
            with pytest.raises(InvalidRequest) as caught:
                read(body)
            assert str(caught.value).isascii()


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_relying_partys_own_name_keeps_to_the_rule(case: Vector) -> None:
    if case["name_of"] is not None:
        assert make(case["text"]).rp_name == case["name_of"]
    elif case["text"]:
        with pytest.raises(UsageError, match="the relying party's name: a name has"):
            make(case["text"])


def test_a_name_that_is_nothing_is_that_of_the_domain() -> None:
    config: Config = make("")
    assert config.rp_name == config.rp_id


@pytest.mark.threat("T12")
def test_a_long_run_of_marks_is_refused_before_it_is_put_in_order() -> None:
    with pytest.raises(InvalidRequest, match="has 10000001 characters"):
        name_of("a" + "\u0301\u0323" * 5_000_000)
