"""Domains: known ones, which every door for RP IDs judges alike."""

from collections.abc import Callable
from contextlib import suppress

import pytest

from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.trust.ring import check_rp_ids
from headless_passkey.trust.text_form import check_relay_url
from headless_passkey.webauthn.origins import check_origin, well_known_url
from program_parts.domains import is_domain, is_this_machine
from relying_party.config import check_public_url
from relying_party.errors import UsageError
from relying_party.resource import Keys
from tests.vectors_loader import Vector, name, vectors


@pytest.mark.threat("T14")
@pytest.mark.parametrize("case", vectors("domains"), ids=name)
def test_a_known_text_is_a_domain_or_none_at_every_door(case: Vector) -> None:
    text, valid = case["text"], case["valid"]
    assert is_domain(text) is valid
    for door in (lambda: check_rp_ids([text]), lambda: well_known_url(text)):
        if valid:
            door()
        else:
            with pytest.raises(HeadlessPasskeyError):
                door()
    if valid:
        assert check_origin(f"https://{text}") == f"https://{text}"


@pytest.mark.threat("T13")
@pytest.mark.parametrize("case", vectors("this_machine"), ids=name)
def test_a_known_host_is_this_machine_or_another(case: Vector) -> None:
    assert is_this_machine(case["text"]) is case["this_machine"]


@pytest.mark.threat("T13")
@pytest.mark.parametrize("case", vectors("this_machine"), ids=name)
def test_plain_http_goes_to_this_machine_alone_at_every_door(case: Vector) -> None:
    host = case["text"]
    url = f"http://[{host}]:8470" if ":" in host else f"http://{host}:8470"
    doors: tuple[Callable[[], object], ...] = (
        lambda: check_relay_url(url),
        lambda: check_origin(url),
        lambda: Keys(jwks_uri=url),
        lambda: check_public_url(url),
    )
    for door in doors:
        with suppress(HeadlessPasskeyError, UsageError):
            door()
            assert case["this_machine"] or not host.isascii(), "taken"  # what is mapped to an address is one
