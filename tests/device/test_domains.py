"""Domains: known ones, which the relying party's copy of the rule judges alike, and so does every door for RP IDs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import relying_party.core.domains
from headless_passkey.domains import is_domain
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.trust.ring import check_rp_ids
from headless_passkey.webauthn.origins import check_origin, well_known_url
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


@given(st.text(max_size=40) | st.text(alphabet="a1.-x0", max_size=12))
def test_device_and_relying_party_agree_on_any_text(text: str) -> None:
    assert is_domain(text) == relying_party.core.domains.is_domain(text)
