"""Which origin may use which RP ID: Chromium's cases, the public suffix list, and the rules of related origins."""

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from fido2.rpid import verify_rp_id
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError, UsageError
from headless_passkey.webauthn.options import AuthenticationOptions, RegistrationOptions, foreign_rp_id
from headless_passkey.webauthn.origins import (
    MAX_DOCUMENT_SIZE,
    RelatedOrigins,
    check_origin,
    host_of,
    is_within,
    well_known_url,
)
from program_parts.base64url import base64url
from program_parts.domains import is_domain

# --- origins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "https://login.example.com",
        "https://example.com:8443",
        "https://xn--bcher-kva.example",
        "https://localhost",
        "https://frame",
        "http://localhost",
        "http://localhost:8000",
        "http://demo.localhost:1",
    ],
)
def test_an_origin_that_we_may_speak_for(origin: str) -> None:
    assert check_origin(origin) == origin


@pytest.mark.threat("T14")
@pytest.mark.parametrize(
    "origin",
    [
        "",
        "example.com",
        "//example.com",
        "http://example.com",
        "http://localhost.example.com",
        "http://notlocalhost",
        "ftp://example.com",
        "wss://example.com",
        "https://",
        "https:///",
        "https://example.com/",
        "https://example.com/path",
        "https://example.com?x",
        "https://example.com#x",
        "https://user@example.com",
        "https://user:word@example.com",
        "https://Example.com",
        "HTTPS://example.com",
        "https://example.com.",
        "https://.example.com",
        "https://example..com",
        "https://-example.com",
        "https://example-.com",
        "https://exam_ple.com",
        "https://b\u00fccher.example",
        "https://example.com:",
        "https://example.com:0443",
        "https://example.com:443",
        "http://localhost:80",
        "https://example.com:65536",
        "https://example.com:x",
        "https://example.com:\uff14\uff14\uff14",
        "https://example.com ",
        " https://example.com",
        "https://exam\nple.com",
        "https://exam\tple.com",
        "https://127.0.0.1",
        "http://127.0.0.1:8000",
        "https://10.1",
        "https://0x7f.1",
        "https://0x7f000001",
        "https://1.2.3.0x4",
        "https://[::1]",
        "https://[::1",
        "https://" + "a" * 64 + ".com",
        "https://" + "a.bc" * 64,
        "null",
    ],
    ids=lambda origin: repr(origin)[:40],
)
def test_an_origin_that_no_browser_would_give_a_passkey_is_refused(origin: str) -> None:
    with pytest.raises(UsageError):
        check_origin(origin)
    with pytest.raises(UsageError):
        AuthenticationOptions.parse({"challenge": "AQ"}, origin=origin)


@given(st.text(max_size=30) | st.text(max_size=30).map("https://".__add__))
def test_any_text_is_an_origin_or_refused(origin: str) -> None:
    with suppress(UsageError):
        assert check_origin(origin) == origin


# --- RP IDs ------------------------------------------------------------------------------------------------


@pytest.mark.threat("T14")
@pytest.mark.parametrize(
    ("host", "rp_id"),
    [
        ("example.com", "example.com"),
        ("login.example.com", "example.com"),
        ("a.b.example.com", "b.example.com"),
        ("a.example.co.uk", "example.co.uk"),
        ("a.someone.github.io", "someone.github.io"),
        ("github.io", "github.io"),  # a public suffix that is a host itself
        ("localhost", "localhost"),
        ("com", "com"),
        ("www.city.kobe.jp", "city.kobe.jp"),  # an exception to *.kobe.jp
        ("a.b.unheard-of", "b.unheard-of"),
        ("b.a.xn--55qx5d.cn", "a.xn--55qx5d.cn"),
    ],
)
def test_an_rp_id_is_the_host_or_a_registrable_domain_it_is_within(host: str, rp_id: str) -> None:
    assert is_within(host, rp_id)
    assert verify_rp_id(rp_id, f"https://{host}")


@pytest.mark.threat("T14")
@pytest.mark.parametrize(
    ("host", "rp_id"),
    [
        ("example.com", "com"),
        ("example.co.uk", "co.uk"),
        ("example.co.uk", "uk"),
        ("someone.github.io", "github.io"),
        ("someone.github.io", "io"),
        ("b.kobe.jp", "kobe.jp"),
        ("a.b.kobe.jp", "b.kobe.jp"),  # *.kobe.jp
        ("a.b.kobe.jp", "kobe.jp"),
        ("a.b.kobe.jp", "jp"),
        ("www.city.kobe.jp", "kobe.jp"),
        ("a.unheard-of", "unheard-of"),  # a domain that no rule names is a public suffix at its end
        ("demo.localhost", "localhost"),
        ("a.xn--55qx5d.cn", "xn--55qx5d.cn"),  # the list has it in Chinese
        ("example.com", "example.org"),
        ("example.com", "ample.com"),
        ("example.com", "login.example.com"),
        ("example.com", ""),
        ("example.com", "."),
        ("example.com", ".com"),
        ("example.com", "example.com."),
        ("login.example.com", ".example.com"),
        ("login.example.com", "Example.com"),
        ("login.example.com", "https://example.com"),
    ],
)
def test_an_rp_id_that_others_could_use_too_is_refused(host: str, rp_id: str) -> None:
    assert not is_within(host, rp_id)


_labels = st.sampled_from(
    ["a", "b", "example", "co", "com", "uk", "io", "github", "jp", "kobe", "city", "new"]
)
_names = st.lists(_labels, min_size=1, max_size=4).map(".".join)


@pytest.mark.threat("T14")
@given(_names, _names)
def test_whatever_is_allowed_python_fido2_allows_too(host: str, rp_id: str) -> None:
    """Not the other way round: it has no rule for domains that the list does not name."""
    if is_within(host, rp_id):
        assert verify_rp_id(rp_id, f"https://{host}")


@pytest.mark.threat("T12")
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_two_texts_are_within_each_other_or_not(host: str, rp_id: str) -> None:
    assert is_within(host, rp_id) in (True, False)
    assert is_domain(host) in (True, False)


LOADED = """
import sys
from headless_passkey.webauthn.options import AuthenticationOptions
AuthenticationOptions.parse({"challenge": "AQ", "rpId": sys.argv[1]}, origin="https://login.example.com")
print("publicsuffixlist" in sys.modules)
"""


@pytest.mark.parametrize(("rp_id", "loaded"), [("login.example.com", "False"), ("example.com", "True")])
def test_the_list_is_read_only_when_it_is_needed(rp_id: str, loaded: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, rp_id], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loaded


WITHOUT = """
import sys
sys.modules["publicsuffixlist"] = None
from headless_passkey.errors import SetupError
from headless_passkey.webauthn.origins import is_within
print(is_within("a.example.com", "a.example.com"), is_within("a.example.com", "b.com"))
try:
    is_within("a.example.com", "example.com")
except SetupError as error:
    print(error.reason, error.advice)
"""


def test_without_the_list_the_host_itself_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "True False",
        "missing-package `pip install '.[device]'` in the clone of headless-passkey",
    ]


# --- related origins ---------------------------------------------------------------------------------------


def related(*origins: str, rp_id: str = "example.com") -> RelatedOrigins:
    return RelatedOrigins.parse(json.dumps({"origins": origins}).encode(), rp_id=rp_id)


# chromium/chromium, content/browser/webauth/webauth_request_security_checker_unittest.cc,
# WebAuthRequestSecurityCheckerWellKnownJSONTest, for the caller https://foo.com
CHROMIUMS: list[tuple[tuple[str, ...], bool]] = [
    ((), False),
    (("https://foo.com",), True),
    (("https://foo2.com",), False),
    (("https://com",), False),
    (("other://foo.com",), False),
    (("https://a.com", "https://b.com", "https://c.com", "https://d.com", "https://foo.com"), True),
    (
        (
            "https://a.com",
            "https://b.com",
            "https://c.com",
            "https://d.com",
            "https://e.com",
            "https://foo.com",
        ),
        False,
    ),
    (
        (
            "https://a.com",
            "https://b.com",
            "https://c.com",
            "https://d.com",
            "https://foo.com",
            "https://e.com",
        ),
        True,
    ),
    (
        (
            "https://foo.co.uk",
            "https://foo.de",
            "https://foo.in",
            "https://foo.net",
            "https://foo.org",
            "https://foo.com",
        ),
        True,
    ),
]


@pytest.mark.threat("T14")
@pytest.mark.parametrize(("origins", "allowed"), CHROMIUMS)
def test_chromiums_cases_have_chromiums_verdicts(origins: tuple[str, ...], allowed: bool) -> None:  # noqa: FBT001
    assert related(*origins).allow("https://foo.com") is allowed


@pytest.mark.threat("T14")
@pytest.mark.parametrize(
    ("entry", "allowed"),
    [
        ("https://foo.com/", True),
        ("https://foo.com/path?query#fragment", True),
        ("https://FOO.com:443", True),
        ("https://foo.com:8443", False),
        ("http://foo.com", False),
        ("https://login.foo.com", False),
        ("https://foo.com.", False),
        ("https://foo.com@bar.com", False),
        ("foo.com", False),
        ("//foo.com", False),
        ("https://foo.com:x", False),
        ("https://[", False),
        ("https://127.0.0.1", False),
        ("", False),
    ],
)
def test_an_entry_means_its_origin_and_no_other(entry: str, allowed: bool) -> None:  # noqa: FBT001
    assert related(entry).allow("https://foo.com") is allowed


def test_the_list_may_begin_with_a_byte_order_mark() -> None:
    document = b'\xef\xbb\xbf{"origins": ["https://foo.com"]}'
    assert RelatedOrigins.parse(document, rp_id="example.com").allow("https://foo.com")


def test_a_port_of_the_entry_counts() -> None:
    assert related("https://foo.com:8443/x").allow("https://foo.com:8443")


def test_entries_that_mean_nothing_do_not_count_as_labels() -> None:
    nothing = [f"https://{number}" for number in range(9)] + ["https://com", "?", "https://localhost"]
    assert related(*nothing, "https://foo.com").allow("https://foo.com")


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"foo": "bar"}',
        b'{"origins": "bar"}',
        b'{"origins": [1]}',
        b'{"origins": {}}',
        b'{"origins": ["https://foo.com", null]}',
        b"\xff",
        b"[" * 100_000,
        b'{"origins": [], "x": "' + b" " * MAX_DOCUMENT_SIZE + b'"}',
    ],
    ids=lambda document: document[:30],
)
def test_a_document_that_lists_no_origins_is_refused(document: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        RelatedOrigins.parse(document, rp_id="example.com")


@pytest.mark.threat("T12")
@given(
    st.binary(max_size=60) | st.lists(st.text(max_size=30)).map(lambda o: json.dumps({"origins": o}).encode())
)
def test_any_document_allows_or_not_or_is_refused(document: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert RelatedOrigins.parse(document, rp_id="example.com").allow("https://foo.com") in (True, False)


@pytest.mark.parametrize(
    "rp_id", ["", "Example.com", "a/b", "127.0.0.1", "example.com:443", "user@example.com"]
)
def test_what_is_no_hosts_name_is_asked_nothing(rp_id: str) -> None:
    with pytest.raises(RemoteProtocolError):
        well_known_url(rp_id)
    with pytest.raises(RemoteProtocolError):
        related(rp_id=rp_id)


def test_the_document_is_at_the_rp_ids_host() -> None:
    assert well_known_url("example.com") == "https://example.com/.well-known/webauthn"
    assert host_of("https://example.com:8443") == "example.com"


GET: dict[str, Any] = {"challenge": "AQ", "rpId": "example.com"}
CREATE: dict[str, Any] = {
    "challenge": "AQ",
    "rp": {"id": "example.com"},
    "user": {"id": base64url(b"u"), "name": "n"},
    "pubKeyCredParams": [],
}


@pytest.mark.parametrize(
    ("options", "rp_id"),
    [
        (GET, "example.com"),
        (json.dumps(GET), "example.com"),
        ({"publicKey": CREATE}, "example.com"),
        (GET | {"rpId": "a.example.de"}, "a.example.de"),
        (GET | {"rpId": ""}, ""),
        (GET | {"rpId": "example.de"}, None),
        (GET | {"rpId": "login.example.de"}, None),
        (GET | {"rpId": None}, None),
        (CREATE | {"rp": {"name": "Example"}}, None),
        (CREATE | {"rp": "example.com"}, None),
        ({}, None),
    ],
)
def test_a_host_is_asked_only_about_an_rp_id_that_the_origin_is_not_within(
    options: Any, rp_id: str | None
) -> None:
    assert foreign_rp_id(options, origin="https://login.example.de") == rp_id


@pytest.mark.threat("T14")
def test_options_for_another_domain_need_that_domains_word() -> None:
    """The RP ID and the origin are both what they were: only that they may go together is new."""
    origin, willing = "https://example.de", related("https://example.de")
    for parse, values in ((AuthenticationOptions.parse, GET), (RegistrationOptions.parse, CREATE)):
        options = parse(values, origin=origin, related=willing)
        assert (options.rp_id, options.origin) == ("example.com", origin)
        assert b'"origin":"https://example.de"' in options.client_data
        for unwilling in (None, related("https://example.fr"), related(origin, rp_id="example.org")):
            with pytest.raises(RemoteProtocolError, match="does not belong"):
                parse(values, origin=origin, related=unwilling)
