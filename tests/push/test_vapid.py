"""RFC 8292: the key's file, the tokens, and for how long they are used."""

import stat
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from companion_push.push.vapid import LIFETIME, MAX_ORIGINS, REFRESH, VapidKey, VapidTokens, check_contact
from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.text.base64url import from_base64url
from tests.push.receiver import verified

NOW = 1_800_000_000
CONTACT = "mailto:push@example.com"
ORIGIN = "https://push.example"


def token(header: str) -> str:
    return header.removeprefix("vapid t=").partition(",")[0]


def test_a_key_is_written_once_for_its_owner_alone(tmp_path: Path) -> None:
    path, key = tmp_path / "vapid.pem", VapidKey.generate()
    key.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert VapidKey.read(path).public == key.public
    with pytest.raises(SetupError, match="is there already") as refused:
        VapidKey.generate().write(path)
    assert refused.value.reason is SetupReason.STATE_UNWRITABLE
    assert VapidKey.read(path).public == key.public


def test_a_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "vapid.pem"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError):
        VapidKey.generate().write(link)
    assert not (tmp_path / "elsewhere").exists()


def test_the_public_key_is_what_browsers_want() -> None:
    encoded = from_base64url(VapidKey.generate().public)
    assert (len(encoded), encoded[0]) == (65, 4)


@pytest.mark.threat("T11")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vapid.pem"
    VapidKey.generate().write(path)
    path.chmod(0o640)
    with pytest.raises(SetupError) as refused:
        VapidKey.read(path)
    assert refused.value.reason is SetupReason.STATE_EXPOSED


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


WRONG = {
    "nothing": b"",
    "text": b"a letter",
    "another curve": pem(ec.derive_private_key(5, ec.SECP384R1())),
    "another algorithm": pem(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))),
    "cut short": pem(ec.derive_private_key(5, ec.SECP256R1()))[:100],
    "too long": b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 5000,
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_file_that_holds_no_such_key_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vapid.pem"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(SetupError) as refused:
        VapidKey.read(path)
    assert refused.value.reason is SetupReason.STATE_DAMAGED


def test_who_has_no_key_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as refused:
        VapidKey.read(tmp_path / "my key.pem")
    assert f"`companion-push push keys '{tmp_path}/my key.pem'`" in refused.value.explain()


def test_a_token_names_origin_end_and_contact() -> None:
    key = VapidKey.generate()
    header = VapidTokens(key, CONTACT).header(ORIGIN, NOW + 0.9)
    assert header.endswith(f", k={key.public}")
    assert verified(token(header), from_base64url(key.public)) == {
        "aud": ORIGIN,
        "exp": NOW + 12 * 3600,
        "sub": CONTACT,
    }


def test_a_token_is_used_until_shortly_before_its_end() -> None:
    tokens = VapidTokens(VapidKey.generate(), CONTACT)
    first = tokens.header(ORIGIN, NOW)
    assert tokens.header(ORIGIN, NOW + LIFETIME - REFRESH - 1) == first
    second = tokens.header(ORIGIN, NOW + LIFETIME - REFRESH)
    assert second != first
    assert tokens.header(ORIGIN, NOW + LIFETIME) == second


def test_each_origin_has_a_token_of_its_own() -> None:
    tokens = VapidTokens(VapidKey.generate(), CONTACT)
    assert tokens.header(ORIGIN, NOW) != tokens.header("https://other.example", NOW)
    assert tokens.header(ORIGIN, NOW) == tokens.header(ORIGIN, NOW)


def test_a_clock_that_goes_back_makes_no_token_that_is_too_long() -> None:
    tokens = VapidTokens(VapidKey.generate(), CONTACT)
    early = tokens.header(ORIGIN, NOW)
    assert tokens.header(ORIGIN, NOW - 3 * 86_400) != early


def test_a_refused_token_is_not_used_again() -> None:
    tokens = VapidTokens(VapidKey.generate(), CONTACT)
    first = tokens.header(ORIGIN, NOW)
    tokens.forget(ORIGIN)
    tokens.forget("https://never.example")
    assert tokens.header(ORIGIN, NOW) != first


@pytest.mark.threat("T12")
def test_tokens_of_so_many_origins_are_kept_and_the_one_not_used_for_longest_goes() -> None:
    tokens = VapidTokens(VapidKey.generate(), CONTACT)
    first, second = tokens.header(ORIGIN, NOW), tokens.header("https://0.example", NOW)
    for number in range(1, MAX_ORIGINS):
        assert tokens.header(ORIGIN, NOW) == first
        tokens.header(f"https://{number}.example", NOW)
    assert len(tokens._tokens) == MAX_ORIGINS
    assert tokens.header("https://0.example", NOW) != second


@pytest.mark.threat("T11")
def test_no_repr_shows_the_key() -> None:
    key = VapidKey.generate()
    shown = repr(key) + repr(VapidTokens(key, CONTACT))
    assert f"{key._private.private_numbers().private_value:x}" not in shown
    assert "private" not in shown


@pytest.mark.parametrize(
    "contact",
    ["mailto:push@example.com", "mailto:a.b+c@mail.example.org", "https://example.com", "https://example.com:8443/contact"],
)  # fmt: skip
def test_a_contact_is_a_mail_address_or_a_page(contact: str) -> None:
    assert check_contact(contact) == contact


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "contact",
    ["", "push@example.com", "mailto:push", "mailto:push@localhost", "mailto: a@b.c", "http://example.com",
     "https://localhost", "mailto:a@b.c\r\nX: y", "mailto:a@b.c?subject=x", f"https://example.com/{'x' * 300}"],
    ids=["nothing", "bare", "no host", "localhost", "space", "http", "page on localhost", "line", "query", "long"],
)  # fmt: skip
def test_anything_else_is_no_contact(contact: str) -> None:
    with pytest.raises(UsageError, match=r"^vapid_contact: "):
        check_contact(contact)


@pytest.mark.threat("T12")
@given(st.text(max_size=40))
def test_any_text_is_a_contact_or_refused(text: str) -> None:
    with suppress(UsageError):
        assert check_contact(text).startswith(("mailto:", "https://"))
