"""The guard of push endpoints: hosts that are listed, https, and addresses of the public internet alone."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_push.push.endpoints import (
    WELL_KNOWN,
    EndpointRules,
    ForbiddenAddress,
    HostRule,
    is_public,
)
from headless_passkey.errors import UsageError
from http_serving.addresses import network

pytestmark = pytest.mark.threat("T13")

RULES = EndpointRules()


def allowed(rules: EndpointRules, endpoint: str) -> bool:
    url = rules.endpoint(endpoint)
    return url is not None and rules.allows(url)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://fcm.googleapis.com/fcm/send/abc:def",
        "https://FCM.googleapis.com:443/fcm/send/abc",
        "https://updates.push.services.mozilla.com/wpush/v2/gAAAA",
        "https://wns2-par02p.notify.windows.com/w/?token=BQYAAA%2b%2f",
        "https://web.push.apple.com/QOXN",
    ],
)
def test_the_well_known_services_are_allowed(endpoint: str) -> None:
    assert allowed(RULES, endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://push.example/x",
        "https://notify.windows.com/x",
        "https://evilnotify.windows.com/x",
        "https://fcm.googleapis.com.evil.example/x",
        "https://a.fcm.googleapis.com/x",
        "https://fcm.googleapis.com:8443/x",
        "https://web.push.apple.com:22/x",
        "https://localhost/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://169.254.169.254/latest/meta-data",
    ],
)
def test_a_host_or_port_that_is_not_listed_is_refused(endpoint: str) -> None:
    assert RULES.endpoint(endpoint) is not None
    assert not allowed(RULES, endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http://fcm.googleapis.com/x",
        "ws://fcm.googleapis.com/x",
        "file:///etc/passwd",
        "//fcm.googleapis.com/x",
        "fcm.googleapis.com/x",
        "https:///x",
        "https://user@fcm.googleapis.com/x",
        "https://:secret@fcm.googleapis.com/x",
        "https://fcm.googleapis.com@evil.example/x",
        "https://evil.example#@fcm.googleapis.com/x",
        "https://evil.example\\@fcm.googleapis.com/x",
        "https://fcm.googleapis.com./x",
        "https://fcm.googleapis.com:0/x",
        "https://fcm.googleapis.com:99999/x",
        "https://fcm.googleapis.com/x#fragment",
        "https://fcm.googleapis.com/x y",
        "https://fcm.googleapis.com/x\r\nHost: evil.example",
        "https://2130706433/x",
        "https://0x7f.1/x",
        "https://127.1/x",
        "https://[fe80::1%25eth0]/x",
        "https://fcm.googleapis.c\u043em/x",
        pytest.param("https://" + "a" * 2048, id="long"),
    ],
)
def test_what_is_no_plain_url_of_https_is_no_endpoint(endpoint: str) -> None:
    rules = EndpointRules(hosts=["any"])
    assert rules.endpoint(endpoint) is None


def test_any_host_is_allowed_by_that_word_alone_and_at_the_port_of_https() -> None:
    rules = EndpointRules(hosts=["any"])
    assert allowed(rules, "https://push.example/x")
    assert not allowed(rules, "https://push.example:8443/x")
    assert not allowed(rules, "https://93.184.216.34/x")


def test_an_operator_names_more_hosts() -> None:
    rules = EndpointRules(hosts=["ntfy.example:8443", "*.up.example", "192.168.1.5:443", "[fd00::5]:8080"])
    for endpoint in (
        "https://ntfy.example:8443/x",
        "https://a.up.example/x",
        "https://b.a.up.example/x",
        "https://192.168.1.5/x",
        "https://[fd00::5]:8080/x",
        "https://[FD00:0::5]:8080/x",
        "https://fcm.googleapis.com/x",
    ):
        assert allowed(rules, endpoint), endpoint
    for endpoint in (
        "https://ntfy.example/x",
        "https://up.example/x",
        "https://192.168.1.6/x",
        "https://[fd00::5]/x",
    ):
        assert not allowed(rules, endpoint), endpoint


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.com", "*.*.com", "https://push.example", "push.example/x", "push.example:", "push.example:0",
     "push.example:65536", "push.example:x", "push_1.example", "[::1", "[::1]x", "::1", "1.2.3", "*.1.2.3.4",
     "[fe80::1%eth0]", "user@push.example", "p\u00fcsh.example"],
)  # fmt: skip
def test_what_is_no_host_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(UsageError, match=r"^web_push_host: "):
        HostRule.parse(text)


def test_private_networks_and_any_host_exclude_each_other() -> None:
    with pytest.raises(UsageError, match=r"^web_push_network: "):
        EndpointRules(hosts=["any"], networks=[network("10.0.0.0/8")])


PRIVATE = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8"),
    *("169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
    *("255.255.255.255", "168.63.129.16"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1"),
    *("100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "3fff::1", "5f00::1", "4000::1"),
    # forms of an IPv4 address: mapped, compatible, translated, NAT64, 6to4, Teredo
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8"),
    *("2002:7f00:1::1", "2002:a00:1::", "2002:808:808::1", "2001:0:7f00:1::"),
]  # fmt: skip
PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "142.250.74.202", "34.107.243.93", "17.188.143.34", "172.15.0.1", "172.32.0.1"),
    *("100.63.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1", "192.0.1.1", "223.255.255.255"),
    *("2a00:1450:4001:80b::200a", "2620:149:a44::1", "2600::1", "2001:4860:4860::8888"),
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_no_push_goes_to_a_private_or_special_address(address: str) -> None:
    assert not RULES.reaches(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(ForbiddenAddress):
        RULES.open_socket((family, socket.SOCK_STREAM, 0, "", (address, 443)))


@pytest.mark.parametrize("address", PUBLIC)
def test_pushes_go_to_public_addresses(address: str) -> None:
    assert RULES.reaches(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        made = RULES.open_socket((family, socket.SOCK_STREAM, 0, "", (address, 443)))
    except ForbiddenAddress:
        raise
    except OSError:
        return  # a machine without IPv6
    assert (made.family, made.type) == (family, socket.SOCK_STREAM)
    made.close()


def test_a_network_that_the_operator_names_is_reached_in_each_form_that_leads_there() -> None:
    rules = EndpointRules(networks=[network("192.168.1.0/24"), network("fd00:1::/32")])
    assert rules.reaches("192.168.1.5")
    assert rules.reaches("::ffff:192.168.1.5")
    assert rules.reaches("fd00:1::5")
    assert rules.reaches("8.8.8.8")
    for address in ("192.168.2.5", "127.0.0.1", "64:ff9b::192.168.1.5", "2002:c0a8:105::", "fd00:2::5"):
        assert not rules.reaches(address), address


@given(st.ip_addresses(v=4))
def test_what_python_calls_private_is_never_public_here(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert not is_public(address)


@given(st.ip_addresses(v=6))
def test_nor_is_it_for_ipv6(address: ipaddress.IPv6Address) -> None:
    if not address.is_global or address.is_multicast:
        assert not is_public(address) or address in ipaddress.IPv6Network("64:ff9b::/96")


@given(st.text(max_size=60).map(lambda text: f"https://{text}") | st.text(max_size=60))
def test_any_text_is_an_endpoint_or_none(text: str) -> None:
    url = RULES.endpoint(text)
    assert url is None or url.scheme == "https"


@given(st.text(max_size=40))
def test_any_text_is_a_host_or_refused(text: str) -> None:
    try:
        rule = HostRule.parse(text)
    except UsageError:
        return
    assert 0 < rule.port < 1 << 16


def test_the_list_of_well_known_services_parses() -> None:
    assert [rule.port for rule in RULES.hosts] == [443] * len(WELL_KNOWN)
