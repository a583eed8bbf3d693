"""Tunnel domains and URLs: vectors, properties, refusals."""

import re
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid.tunnel_url import (
    CLIENT_PAYLOAD_HEADER,
    CONNECT_SIGNAL,
    MAX_CLIENT_PAYLOAD_SIZE,
    MAX_CONTACT_ID_SIZE,
    SIGNAL_CONNECTION_HEADER,
    ConnectTunnel,
    ContactTunnel,
    NewTunnel,
    check_connect_signal,
    connect_url,
    connection_is_signalled,
    contact_headers,
    contact_url,
    new_url,
    parse_client_payload_header,
    parse_path,
    parse_routing_id,
    tunnel_domain,
)
from tests.strategies import exactly
from tests.vectors_loader import Vector, name, vector, vectors

TUNNEL = "00112233445566778899AABBCCDDEEFF"


@pytest.mark.parametrize("case", vectors("tunnel_domains", op="domain"), ids=name)
def test_a_known_domain(case: Vector) -> None:
    assert tunnel_domain(case["id"]) == case["expected"]


@pytest.mark.parametrize("case", vectors("tunnel_domains", op="domain-range-none"), ids=name)
def test_numbers_that_nobody_was_given_name_no_host(case: Vector) -> None:
    for number in range(case["lo"], case["hi"] + 1):
        with pytest.raises(RemoteProtocolError, match="not assigned"):
            tunnel_domain(number)


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_the_request_of_a_real_browser(case: Vector) -> None:
    tunnel = case["tunnel"]
    assert tunnel_domain(tunnel["number"]) == tunnel["host"]
    eid = bytes.fromhex(case["advert"]["plaintext"])
    tunnel_id = bytes.fromhex(case["fido_url"]["tunnel_id"])
    assert parse_path(tunnel["path"]) == ConnectTunnel(routing_id=eid[11:14], tunnel_id=tunnel_id)
    assert connect_url(f"wss://{tunnel['host']}", eid[11:14], tunnel_id).endswith(tunnel["path"])


@pytest.mark.parametrize("case", vectors("linked_sessions"), ids=name)
def test_the_contact_request_of_a_real_browser(case: Vector) -> None:
    tunnel, contact_id = case["tunnel"], bytes.fromhex(case["link"]["contact_id"])
    assert parse_path(tunnel["path"]) == ContactTunnel(contact_id=contact_id)
    assert contact_url(f"wss://{tunnel['host']}", contact_id) == f"wss://{tunnel['host']}{tunnel['path']}"
    payload = parse_client_payload_header(tunnel["headers"][CLIENT_PAYLOAD_HEADER])
    assert contact_headers(payload).items() <= tunnel["headers"].items()
    assert connection_is_signalled(tunnel["headers"][SIGNAL_CONNECTION_HEADER])


@pytest.mark.parametrize("case", vectors("tunnel_urls", op="contact-url"), ids=name)
def test_a_known_contact_url(case: Vector) -> None:
    contact_id = bytes.fromhex(case["contact_id"])
    assert contact_url("wss://" + tunnel_domain(case["domain"]), contact_id) == case["expected"]
    assert parse_path(urlsplit(case["expected"]).path) == ContactTunnel(contact_id=contact_id)


def test_a_known_url_in_the_other_case() -> None:
    case = vector("iphone_session", "iphone-session-2026")
    tunnel_id = bytes.fromhex(case["tunnel_id"])
    ours = connect_url("wss://" + tunnel_domain(1), bytes.fromhex("4d5888"), tunnel_id)
    assert ours.lower() == case["connect_url"]
    assert parse_path(urlsplit(case["connect_url"]).path) == parse_path(urlsplit(ours).path)


def test_every_hashed_domain_is_a_well_formed_host_of_its_own() -> None:
    hosts = [tunnel_domain(number) for number in range(256, 65536)]
    assert len(set(hosts)) == 65280
    form = re.compile(r"cable\.[a-z2-7]{1,13}\.(com|org|net|info)")
    assert all(form.fullmatch(host) for host in hosts)


@pytest.mark.parametrize("number", [-1, 2, 255, 65536, 1 << 40])
def test_numbers_out_of_range_are_refused(number: int) -> None:
    with pytest.raises(RemoteProtocolError):
        tunnel_domain(number)


@given(exactly(3), exactly(16), st.booleans())
def test_a_path_says_what_its_url_was_made_of(routing_id: bytes, tunnel_id: bytes, lower: bool) -> None:  # noqa: FBT001
    base = "wss://localhost:8443"
    for url, meaning in (
        (new_url(base, tunnel_id), NewTunnel(tunnel_id=tunnel_id)),
        (connect_url(base, routing_id, tunnel_id), ConnectTunnel(routing_id=routing_id, tunnel_id=tunnel_id)),
    ):
        path = url.removeprefix(base)
        assert parse_path(path.lower() if lower else path) == meaning


@given(st.binary(min_size=1, max_size=80) | exactly(MAX_CONTACT_ID_SIZE))
def test_a_contact_path_says_what_its_url_was_made_of(contact_id: bytes) -> None:
    path = contact_url("", contact_id)
    assert parse_path(path) == ContactTunnel(contact_id=contact_id)
    assert re.fullmatch(r"/cable/contact/[A-Za-z0-9_-]+", path)


@pytest.mark.threat("T12")
@given(st.sampled_from(["", "/cable/new/", "/cable/contact/"]), st.text(max_size=60))
def test_any_path_is_ours_or_none(prefix: str, rest: str) -> None:
    match parse_path(prefix + rest):
        case ContactTunnel(contact_id=contact_id):
            assert contact_url("", contact_id) == prefix + rest


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/cable",
        "/cable/new",
        "/cable/new/",
        f"/cable/new/{TUNNEL}/",
        f"//cable/new/{TUNNEL}",
        f"cable/new/{TUNNEL}",
        f"/Cable/new/{TUNNEL}",
        f"/cable/new/{TUNNEL}0",
        f"/cable/new/{TUNNEL}00",
        f"/cable/new/{TUNNEL[:-1]}",
        f"/cable/new/{TUNNEL[:-2]}",
        f"/cable/new/{TUNNEL[:-1]}g",
        f"/cable/new/{TUNNEL[:-2]} 0",
        f"/cable/new/{TUNNEL[:-2]}0x",
        f"/cable/new/{TUNNEL[:-1]}\uff10",
        f"/cable/new/{TUNNEL}?x",
        f"/cable/connect/{TUNNEL}",
        f"/cable/connect//{TUNNEL}",
        f"/cable/connect/0011/{TUNNEL}",
        f"/cable/connect/00112233/{TUNNEL}",
        f"/cable/connect/00112g/{TUNNEL}",
        f"/cable/connect/001122/{TUNNEL[:-2]}",
        f"/cable/connect/001122/{TUNNEL}/",
        f"/cable/connect/001122/{TUNNEL}/x",
        "/cable/contact",
        "/cable/contact/",
        "/cable/contact//AAAA",
        "/cable/contact/AAAA/",
        "/cable/contact/AAAA/x",
        "/cable/contact/A",  # of no length that bytes have
        "/cable/contact/AAAAA",
        "/cable/contact/AB",  # bits left over
        "/cable/contact/AAB",
        "/cable/contact/AA==",
        "/cable/contact/AA%3D%3D",
        "/cable/contact/A+A/",
        "/cable/contact/A+AA",
        "/cable/contact/A AA",
        "/cable/contact/AAA\n",
        "/cable/contact/AAA\uff21",
        "/cable/contact/" + "A" * (MAX_CONTACT_ID_SIZE * 4 // 3 + 2),
        "/cable/contact/" + "A" * (MAX_CONTACT_ID_SIZE * 4 // 3 + 4),
    ],
)
def test_a_path_that_is_not_exactly_right_is_nothing(path: str) -> None:
    assert parse_path(path) is None


@pytest.mark.threat("T11")
def test_the_ids_of_a_tunnel_do_not_show_in_a_repr() -> None:
    assert repr(parse_path(f"/cable/new/{TUNNEL}")) == "NewTunnel()"
    assert repr(parse_path(f"/cable/connect/001122/{TUNNEL}")) == "ConnectTunnel()"
    assert repr(parse_path("/cable/contact/AAAA")) == "ContactTunnel()"


@given(exactly(3))
def test_a_routing_id_is_read_in_either_case(routing_id: bytes) -> None:
    assert parse_routing_id(routing_id.hex()) == parse_routing_id(routing_id.hex().upper()) == routing_id


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    "header", ["", "00", "0011", "0011223", "00112233", "00112g", " 001122", "0x1122", "\uff10\uff101122"]
)
def test_a_malformed_routing_id_is_refused(header: str) -> None:
    with pytest.raises(RemoteProtocolError, match="six hexadecimal digits"):
        parse_routing_id(header)


@given(st.binary(min_size=1, max_size=60) | exactly(MAX_CLIENT_PAYLOAD_SIZE), st.booleans())
def test_a_client_payload_is_read_in_either_case(payload: bytes, lower: bool) -> None:  # noqa: FBT001
    header = contact_headers(payload)[CLIENT_PAYLOAD_HEADER]
    assert parse_client_payload_header(header.lower() if lower else header) == payload


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "header", ["", "0", "000", "0g", " 00", "0x00", "\uff10\uff10", "00" * (MAX_CLIENT_PAYLOAD_SIZE + 1)]
)
def test_a_malformed_client_payload_is_refused(header: str) -> None:
    with pytest.raises(RemoteProtocolError, match="client payload"):
        parse_client_payload_header(header)


@pytest.mark.threat("T12")
@given(st.text(max_size=80))
def test_any_client_payload_is_read_or_refused(header: str) -> None:
    with suppress(RemoteProtocolError):
        assert parse_client_payload_header(header).hex() == header.lower()


def test_a_connection_is_signalled_only_when_the_tunnel_service_says_so() -> None:
    assert connection_is_signalled("true")
    assert connection_is_signalled("True")
    for header in (None, "", "false", "1", "true, true"):
        assert not connection_is_signalled(header)


@pytest.mark.threat("T9")
def test_the_connect_signal_is_one_byte_and_nothing_else_is_taken_for_it() -> None:
    check_connect_signal(CONNECT_SIGNAL)
    for message in (b"", b"\1", b"\0\0", bytes(81)):
        with pytest.raises(RemoteProtocolError, match="connect signal"):
            check_connect_signal(message)
