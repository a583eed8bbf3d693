"""Invitations and account codes: vectors, properties, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError, TrustReason
from headless_passkey.hybrid import cbor
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.invitation import INVITATION_LABEL, LIFETIME, Invitation
from headless_passkey.trust.ring import MAX_SKEW, Role
from headless_passkey.trust.text_form import check_relay_url
from program_parts.base64url import base64url
from tests.trust.people import ACCOUNT, ACCOUNT_NAME, NOW, companion, device, found, grow
from tests.trust.refusal import refused

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "invitation.json").read_text())
RELAY = "https://relay.example/push"
PHONE, TABLET, FRAME, THIEF = companion("phone"), companion("tablet"), device("frame"), device("thief")
RING = grow(found(PHONE), PHONE, PHONE, TABLET)


def invite(kind: Role = Role.DEVICE, **changes: Any) -> Invitation:
    values: dict[str, Any] = {
        "relay_url": RELAY,
        "ring": RING,
        "kind": kind,
        "inviter": PHONE.name,
        "now": NOW,
    }
    return Invitation.make(**(values | changes))


# Vectors


@pytest.mark.parametrize("case", VECTORS["invitations"], ids=lambda case: case["name"])
def test_a_known_invitation_gives_the_known_keys(case: dict[str, Any]) -> None:
    invitation = Invitation.parse(case["text"])
    assert invitation.secret.hex() == case["secret"]
    assert invitation.ticket.hex() == case["ticket"]
    assert invitation.k_new.hex() == case["k_new"]
    assert invitation.k_inv.hex() == case["k_inv"]
    assert invitation.id == case["id"]


@pytest.mark.parametrize("case", VECTORS["account_codes"], ids=lambda case: case["name"])
def test_a_known_account_code_is_read(case: dict[str, Any]) -> None:
    code = AccountCode.parse(case["text"])
    assert (code.relay_url, code.account, code.code.hex()) == (
        case["relay_url"],
        case["account"],
        case["code"],
    )


# Properties


@pytest.mark.parametrize("kind", Role)
def test_an_invitation_is_one_line_and_read_back(kind: Role) -> None:
    invitation = invite(kind)
    line = invitation.encode()
    assert line.isascii()
    assert len(line.split()) == 1
    assert Invitation.parse(f"  {line}\n") == invitation
    assert invitation.expires_at == NOW + LIFETIME


def test_an_account_code_is_one_line_and_read_back() -> None:
    code = AccountCode.generate(relay_url=RELAY, account=ACCOUNT, account_name=ACCOUNT_NAME)
    assert AccountCode.parse(code.encode() + "\n") == code
    assert AccountCode.generate(relay_url=RELAY, account=ACCOUNT, account_name=ACCOUNT_NAME) != code


@given(st.text(max_size=200))
@pytest.mark.threat("T12")
def test_any_text_is_refused_politely(text: str) -> None:
    for parse, prefix in ((Invitation.parse, "hpk-invitation:"), (AccountCode.parse, "hpk-account:")):
        for line in (text, prefix + text):
            with pytest.raises(RemoteProtocolError):
                parse(line)


@given(st.binary(max_size=200))
@pytest.mark.threat("T12")
def test_any_bytes_behind_the_prefix_are_refused_politely(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Invitation.parse("hpk-invitation:" + base64url(data))


def test_the_three_keys_of_an_invitation_differ_and_come_from_its_secret_alone() -> None:
    one, two = invite(), invite()
    keys = {one.ticket, one.k_new, one.k_inv, two.ticket, two.k_new, two.k_inv}
    assert len(keys) == 6
    assert replace(two, secret=one.secret).ticket == one.ticket


def test_a_newcomers_clock_may_differ_from_the_inviters_by_two_minutes() -> None:
    invitation = invite()
    invitation.check_expiry(NOW + LIFETIME + 119, skew=MAX_SKEW)
    with refused(TrustReason.INVITATION_EXPIRED, saying="120 s ago"):
        invitation.check_expiry(NOW + LIFETIME + 120, skew=MAX_SKEW)


def test_an_invitation_says_where_it_leads_and_who_made_it() -> None:
    invitation = Invitation.parse(invite().encode())
    assert (invitation.account, invitation.account_name) == (ACCOUNT, "alice")
    assert (invitation.inviter, invitation.inviter_label) == (PHONE.name, "phone")
    assert invitation.relay_url == RELAY
    with refused(TrustReason.NOT_A_MEMBER):
        invite(inviter=companion("stranger").name)


# Refusals: text forms


FIELDS: list[object] = [RELAY, ACCOUNT, "alice", "device", PHONE.name, "phone", bytes(16), NOW]


def test_a_line_with_these_fields_is_an_invitation() -> None:
    line = "hpk-invitation:" + base64url(cbor.encode([INVITATION_LABEL, *FIELDS]))
    assert Invitation.parse(line).encode() == line


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "values",
    [
        ["other label", *FIELDS],
        [INVITATION_LABEL, "http://relay.example", *FIELDS[1:]],
        [INVITATION_LABEL, RELAY, "alice", *FIELDS[2:]],
        [INVITATION_LABEL, *FIELDS[:2], "", *FIELDS[3:]],
        [INVITATION_LABEL, *FIELDS[:3], "owner", *FIELDS[4:]],
        [INVITATION_LABEL, *FIELDS[:4], "phone", *FIELDS[5:]],
        [INVITATION_LABEL, *FIELDS[:5], "two\nlines", *FIELDS[6:]],
        [INVITATION_LABEL, *FIELDS[:6], bytes(8), NOW],
        [INVITATION_LABEL, *FIELDS[:7], -1],
        [INVITATION_LABEL, *FIELDS[:7]],
        [INVITATION_LABEL, *FIELDS, 1],
        {},
    ],
    ids=range(12),
)
def test_a_field_out_of_shape_makes_it_no_invitation(values: object) -> None:
    with pytest.raises(RemoteProtocolError):
        Invitation.parse("hpk-invitation:" + base64url(cbor.encode(values)))


@pytest.mark.threat("T12")
def test_an_overlong_line_is_refused_before_it_is_read() -> None:
    with pytest.raises(RemoteProtocolError):
        Invitation.parse("hpk-invitation:" + "A" * 5000)


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay.example",
        "ftp://relay.example",
        "http://relay.example",
        "http://10.0.0.1:8080",
        "http://localhost.example",
        "https://Relay.example",
        "https://relay.example/",
        "https://relay.example/a//b",
        "https://relay.example?x=1",
        "https://relay.example#top",
        "https://user@relay.example",
        "https://user:word@relay.example",
        "https://relay.example:99999",
        "https://relay.example:port",
        "https://[::1",
        "https://",
        "https:///path",
        "https://relay.example/\n",
        "https://relay.example/%2e%2e",
        "https://" + "a" * 300,
    ],
)
def test_what_is_no_relay_url_is_refused(url: str) -> None:
    with pytest.raises(RemoteProtocolError):
        check_relay_url(url)


@pytest.mark.parametrize(
    "url",
    [
        RELAY,
        "https://relay.example",
        "https://relay.example:8443/a/b-c",
        "https://127.0.0.1:8443",
        "https://[::1]:8443",
        "http://127.0.0.1:8080",
        "http://localhost:8080/push",
        "http://[::1]:80",
    ],
)
def test_a_relay_is_reached_over_https_or_on_loopback(url: str) -> None:
    assert check_relay_url(url) == url


def test_an_account_code_out_of_shape_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        AccountCode(relay_url=RELAY, account=ACCOUNT, account_name="a\tb", code=bytes(32))
    with pytest.raises(RemoteProtocolError):
        AccountCode(relay_url=RELAY, account="alice", account_name="alice", code=bytes(32))
    with pytest.raises(RemoteProtocolError):
        AccountCode(relay_url=RELAY, account=ACCOUNT, account_name="alice", code=bytes(16))
    with pytest.raises(RemoteProtocolError):
        AccountCode(relay_url="http://relay.example", account=ACCOUNT, account_name="alice", code=bytes(32))


@pytest.mark.threat("T11")
def test_secrets_do_not_show_in_a_repr() -> None:
    invitation = invite()
    code = AccountCode.generate(relay_url=RELAY, account=ACCOUNT, account_name=ACCOUNT_NAME)
    for value in (invitation, code):
        text = repr(value)
        for secret in (invitation.secret, invitation.k_new, invitation.k_inv, invitation.ticket, code.code):
            assert repr(secret) not in text
            assert secret.hex() not in text
            assert base64url(secret) not in text
