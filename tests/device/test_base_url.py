"""Base URLs: what people write, and the one form it is kept in."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_push.companion.phone import TunnelService
from companion_push.relay.config import RelayConfig
from headless_passkey.command.cli import make_parser
from headless_passkey.errors import UsageError
from headless_passkey.net.base_url import BaseUrl

WRITTEN = [
    ("https://login.example", "https://login.example"),
    ("https://login.example/", "https://login.example"),
    ("https://login.example:443", "https://login.example"),
    ("https://login.example:443/", "https://login.example"),
    ("HTTPS://Login.EXAMPLE", "https://login.example"),
    ("  https://login.example\n", "https://login.example"),
    ("https://login.example:8443/passkeys", "https://login.example:8443/passkeys"),
    ("https://login.example/passkeys/", "https://login.example/passkeys"),
    ("https://login.example/Passkeys//", "https://login.example/Passkeys"),
    ("https://login.example/a/b-c_d.e~f", "https://login.example/a/b-c_d.e~f"),
    ("https://login.example/a%20b", "https://login.example/a%20b"),
    ("https://bücher.example/x", "https://xn--bcher-kva.example/x"),
    ("https://BÜCHER.example", "https://xn--bcher-kva.example"),
    ("https://faß.example", "https://xn--fa-hia.example"),
    ("https://例え.テスト", "https://xn--r8jz45g.xn--zckzah"),
    ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ("https://ⓔxample.com", "https://example.com"),
    ("http://localhost:80/x", "http://localhost/x"),
    ("http://127.0.0.1:8470", "http://127.0.0.1:8470"),
    ("https://[::1]:8443/", "https://[::1]:8443"),
    ("https://[2001:DB8:0::1]", "https://[2001:db8::1]"),
]


@pytest.mark.parametrize(
    ("text", "written"), WRITTEN, ids=[f"case-{number}" for number in range(len(WRITTEN))]
)
def test_a_base_url_is_kept_in_one_form(text: str, written: str) -> None:
    base = BaseUrl.parse(text)
    assert str(base) == written
    assert BaseUrl.parse(written) == base


def test_an_origin_is_what_stands_before_the_path() -> None:
    base = BaseUrl.parse("https://Login.example:8443/passkeys/")
    assert (base.origin, base.authority, base.path) == (
        "https://login.example:8443",
        "login.example:8443",
        "/passkeys",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "login.example",
        "//login.example",
        "ftp://login.example",
        "wss://login.example",
        "https://",
        "https:///path",
        "https://:443",
        "https://login.example:0",
        "https://login.example:65536",
        "https://login.example:x",
        "https://user@login.example",
        "https://user:secret@login.example",
        "https://login.example?",
        "https://login.example/?q=1",
        "https://login.example/#x",
        "https://login.example//passkeys",
        "https://login.example/../x",
        "https://login.example/a/%2E%2e/x",
        "https://login.example/a b",
        "https://login.example/%zz",
        "https://login.example\\@evil.example",
        "https://login.example\x00.evil.example",
        "https://lo gin.example",
        "https://login.example.",
        "https://login..example",
        "https://-login.example",
        "https://lo%67in.example",
        "https://0x7f.1",
        "https://[::1",
        "https://[v1.a]",
        "https://[fe80::1%25eth0]",
        "https://ex\u00adample.com",
        "https://" + "a" * 1100,
    ],
    ids=[f"case-{number}" for number in range(34)],
)
def test_what_is_no_base_url_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        BaseUrl.parse(text)


@given(
    st.text(max_size=40) | st.text(max_size=40).map("https://".__add__) | st.text().map("https://a/".__add__)
)
def test_any_text_is_a_base_url_or_refused(text: str) -> None:
    with suppress(UsageError):
        base = BaseUrl.parse(text)
        assert str(base).isascii()
        assert BaseUrl.parse(str(base)) == base


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("demo.localhost", True),
        ("127.1.2.3", True),
        ("[::1]", True),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("[::2]", False),
    ],
)
def test_this_machine_is_known_by_its_names_and_addresses(host: str, loopback: bool) -> None:  # noqa: FBT001
    assert BaseUrl.parse(f"http://{host}:8470").is_loopback is loopback


# Where they are taken


@pytest.mark.parametrize(
    "words",
    [("sign-in", "--rp"), ("register", "--rp"), ("doctor", "--rp")],
    ids=["sign-in", "register", "doctor"],
)
def test_a_relying_party_is_named_with_the_path_it_is_mounted_at(words: tuple[str, str]) -> None:
    args = make_parser().parse_args([*words, "HTTPS://Bücher.example:443/passkeys/"])
    assert str(args.rp) == "https://xn--bcher-kva.example/passkeys"
    assert args.rp.origin == "https://xn--bcher-kva.example"
    for wrong in (
        "http://login.example/path",
        "https://192.0.2.1",
        "https://login.example?",
        "login.example",
    ):
        with pytest.raises(SystemExit):
            make_parser().parse_args([*words, wrong])


@pytest.mark.parametrize(
    "words",
    [("sign-in", "--options", "-", "--origin"), ("join", "--invitation", "-", "--label", "x", "--origin")],
    ids=["sign-in", "join"],
)
def test_an_origin_is_kept_as_browsers_write_it(words: tuple[str, ...]) -> None:
    parser = make_parser()
    assert parser.parse_args([*words, "HTTPS://Login.Example:443/"]).origin == "https://login.example"
    for wrong in ("https://login.example/path", "http://login.example", "https://192.0.2.1"):
        with pytest.raises(SystemExit):
            parser.parse_args([*words, wrong])


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("300=wss://Tunnel.Example:443/", "wss://tunnel.example"),
        ("300=WSS://tunnel.example:8443/fido/", "wss://tunnel.example:8443/fido"),
        ("300=wss://bücher.example", "wss://xn--bcher-kva.example"),
    ],
)
def test_a_tunnel_service_may_be_mounted_too(text: str, base: str) -> None:
    assert make_parser().parse_args(["sign-in", "--tunnel", text]).tunnel == [(300, base)]
    assert TunnelService.parse(text).base == base


@pytest.mark.parametrize(
    "text", ["300=https://tunnel.example", "300=wss://u@tunnel.example", "65536=wss://t.example"]
)
def test_what_is_no_tunnel_service_is_refused_at_both_ends(text: str) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["sign-in", "--tunnel", text])
    with pytest.raises(ValueError, match="expected"):
        TunnelService.parse(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://Push.Example:443/", "https://push.example"),
        ("https://push.example/Relay/", "https://push.example/Relay"),
        ("https://bücher.example/push", "https://xn--bcher-kva.example/push"),
        ("http://127.0.0.1:8470/", "http://127.0.0.1:8470"),
    ],
)
def test_a_relays_public_url_is_kept_as_invitations_hold_it(text: str, url: str, tmp_path: Path) -> None:
    assert RelayConfig(public_url=text, store=tmp_path / "relay.db").public_url == url
