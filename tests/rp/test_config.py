"""What an operator may choose, and what does not fit together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from program_parts.domains import is_domain
from relying_party.config import ANDROID, Config, android_origin, label_of, origin_of
from relying_party.core.sessions import MAX_SECONDS, Lifetimes
from relying_party.errors import UsageError
from tests.vectors_loader import Vector, name, vectors


def make(**changes: Any) -> Config:
    settings: dict[str, Any] = {
        "rp_id": "rp.example",
        "rp_name": None,
        "web_origins": (),
        "device_origins": (),
        "public_url": "https://rp.example",
        "store": Path("unused"),
        **changes,
    }
    return Config.make(**settings)


@pytest.mark.parametrize(
    ("given", "one_form"),
    [
        ("http://[::1]:8080/a/", "http://[::1]:8080/a"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("http://[0000::0001]:80", "http://[::1]"),
        ("https://[2001:DB8:0:0::1]/", "https://[2001:db8::1]"),
    ],
)
def test_an_ipv6_address_is_kept_in_one_form(given: str, one_form: str) -> None:
    made = make(web_origins=("https://rp.example",), public_url=given)
    assert made.public_url == one_form
    assert replace(made, public_url=given).public_url == one_form


@pytest.mark.parametrize(
    "url", ["http://[::1%25lo]", "http://[::1%lo]", "http://rp.example", "rp.example", ""]
)
def test_a_public_url_that_is_none_is_refused_however_the_settings_are_made(url: str) -> None:
    with pytest.raises(UsageError, match="public_url: expected "):
        make(web_origins=("https://rp.example",), public_url=url)
    with pytest.raises(UsageError, match="public_url: expected "):
        replace(make(), public_url=url)


def test_what_is_not_said_follows_from_where_we_listen() -> None:
    config = make()
    assert config.web_origins == config.device_origins == {"https://rp.example"}
    assert config.rp_name == "rp.example"
    assert config.page_shows == "own"
    assert config.uses_tls


def test_devices_have_a_list_of_their_own() -> None:
    config = make(web_origins=("https://www.rp.example",), device_origins=("https://rp.example:8443",))
    assert config.web_origins == {"https://www.rp.example"}
    assert config.device_origins == {"https://rp.example:8443"}
    assert set(config.urls) == {"https://rp.example", "https://www.rp.example", "https://rp.example:8443"}


@pytest.mark.threat("T13")
@pytest.mark.parametrize("related", ["http://localhost:3000", "http://dev.localhost", "https://other.test"])
def test_a_related_origin_takes_no_protection_from_our_own_pages(related: str) -> None:
    config = make(related_origins=(related,))
    assert config.uses_tls
    assert not config.is_local
    local = make(
        rp_id="localhost", public_url="https://localhost:8443", related_origins=("https://other.test",)
    )
    assert local.uses_tls
    assert local.is_local


def test_on_localhost_everyone_is_shown_and_plain_http_will_do() -> None:
    config = make(rp_id="localhost", public_url="http://localhost:8080")
    assert config.page_shows == "everyone"
    assert not config.uses_tls


@pytest.mark.threat("T14")
@pytest.mark.parametrize("case", vectors("domains"), ids=name)
def test_an_rp_id_is_a_domain(case: Vector) -> None:
    rp_id = case["text"]
    assert is_domain(rp_id) is case["valid"]
    if case["valid"]:
        assert make(rp_id=rp_id, public_url=f"https://{rp_id}").rp_id == rp_id
    else:
        with pytest.raises(UsageError):
            make(rp_id=rp_id)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "rp.example",
        "https://rp.example/",
        "https://rp.example:443",
        "https://RP.example",
        "https://rp.example:99999",
        "https://user@rp.example",
        "https://rp.example?",
        "http://rp.example",
        "https://other.example",
        "https://notrp.example",
        "https://example",
        "https://[rp.example",
        "wss://rp.example",
    ],
)
def test_an_origin_is_written_as_browsers_write_it_and_may_use_the_rp_id(origin: str) -> None:
    with pytest.raises(UsageError):
        make(web_origins=(origin,))
    with pytest.raises(UsageError):
        make(device_origins=(origin,))


@pytest.mark.parametrize(
    ("parts", "origin"),
    [
        (("https", "rp.example", 443), "https://rp.example"),
        (("http", "localhost", 80), "http://localhost"),
        (("https", "rp.example", 80), "https://rp.example:80"),
        (("https", "::1", 8443), "https://[::1]:8443"),
    ],
)
def test_an_origin_leaves_out_the_port_that_goes_without_saying(
    parts: tuple[str, str, int], origin: str
) -> None:
    assert origin_of(*parts) == origin


def test_related_origins_are_for_browsers_and_for_devices_that_name_them() -> None:
    config = make(
        related_origins=("https://rp.test", "https://www.other.test:8443"),
        device_origins=("https://rp.test",),
    )
    assert config.web_origins == {"https://rp.example", "https://rp.test", "https://www.other.test:8443"}
    assert config.device_origins == {"https://rp.test"}
    assert config.home == "https://rp.example"


def test_related_origins_have_at_most_five_names_as_browsers_count_them() -> None:
    same = tuple(
        f"https://rp.{suffix}" for suffix in ("de", "fr", "co.uk", "com.au", "github.io", "co.jp", "test")
    )
    make(related_origins=same)
    four = tuple(f"https://www.name{number}.co.uk" for number in range(4))
    assert len(make(related_origins=(*same, *four)).web_origins) == 12
    with pytest.raises(UsageError, match="name4"):
        make(related_origins=(*four, "https://name4.test"))


@pytest.mark.parametrize("origin", ["http://rp.test", "https://rp.test/", "rp.test", "wss://rp.test", ""])
def test_a_related_or_top_origin_is_an_origin_over_tls(origin: str) -> None:
    for changes in ({"related_origins": (origin,)}, {"top_origins": (origin,)}):
        with pytest.raises(UsageError):
            make(**changes)


@pytest.mark.parametrize(
    ("origin", "label"),
    [
        ("https://example.com", "example"),
        ("https://www.example.co.uk:8443", "example"),
        ("https://a.b.example.github.io", "example"),
        ("https://www.ck", "www"),  # an exception to *.ck
        ("https://shop.www.ck", "www"),
        ("https://example.gov.ck", "example"),
        ("https://www.example.notlisted", "example"),
        ("http://localhost:8080", "localhost"),
    ],
)
def test_a_label_is_what_stands_before_the_public_suffix(origin: str, label: str) -> None:
    assert label_of(origin) == label


def test_an_app_is_named_by_its_certificate_in_either_spelling() -> None:
    fingerprint = ":".join(f"{number:02X}" for number in range(32))
    written = ANDROID + "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert (
        android_origin(fingerprint)
        == android_origin(fingerprint.lower())
        == android_origin(written)
        == written
    )
    assert make(android_apps=(fingerprint,)).android_origins == {written}
    assert make().android_origins == frozenset()


@pytest.mark.parametrize(
    "app",
    ["", "00:11", ANDROID, ANDROID + "AAAA", ANDROID + "A" * 44, "https://rp.example", "com.example.app"],
)
def test_what_is_no_certificate_is_refused(app: str) -> None:
    with pytest.raises(UsageError):
        make(android_apps=(app,))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "600", None])
@pytest.mark.parametrize("name", ["requests_per_minute", "registrations_per_day"])
def test_a_rate_limit_is_a_whole_number_of_one_or_more(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"\A{name}: expected a whole number of 1 or more, got "):
        make(**{name: value})


@pytest.mark.parametrize("name", ["cookie", "token", "session"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "600", None])
def test_a_lifetime_is_a_whole_number_of_seconds(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"\A{name}: expected a whole number of 1 or more, got "):
        Lifetimes(**{name: value})


@pytest.mark.parametrize("name", ["cookie", "token", "session"])
def test_a_lifetime_ends_at_a_date_that_the_page_can_show(name: str) -> None:
    Lifetimes(**{name: MAX_SECONDS})
    for value in (MAX_SECONDS + 1, 10**12, 10**5000):
        with pytest.raises(UsageError, match=rf"\A{name}: expected at most {MAX_SECONDS}"):
            Lifetimes(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("public_url", None),
        ("store", None),
        ("page_shows", "nobody"),
        ("lifetimes", None),
        ("lifetimes", 600),
        ("backup_eligibility", "fixed"),
    ],
)
def test_a_setting_of_another_kind_is_refused_with_its_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"\A{name}: expected "):
        make(**{name: value})


@pytest.mark.parametrize("name", ["manage", "enroll"])
def test_settings_that_are_replaced_are_checked_too(name: str) -> None:
    changes: Any = {name: "account"}
    with pytest.raises(UsageError, match=rf"\A{name}: expected a path with a slash in front"):
        replace(make(), **changes)
