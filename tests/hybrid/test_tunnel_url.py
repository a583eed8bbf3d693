"""Tunnel domains and URLs: vectors, properties, refusals."""

import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid.tunnel_url import (
    ConnectTunnel,
    NewTunnel,
    connect_url,
    new_url,
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


@pytest.mark.threat("T12")
@given(st.text(max_size=60) | st.text(max_size=60).map("/cable/new/".__add__))
def test_any_path_is_ours_or_none(path: str) -> None:
    parse_path(path)


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
        f"/cable/contact/{TUNNEL}",
    ],
)
def test_a_path_that_is_not_exactly_right_is_nothing(path: str) -> None:
    assert parse_path(path) is None


@pytest.mark.threat("T11")
def test_the_ids_of_a_tunnel_do_not_show_in_a_repr() -> None:
    assert repr(parse_path(f"/cable/new/{TUNNEL}")) == "NewTunnel()"
    assert repr(parse_path(f"/cable/connect/001122/{TUNNEL}")) == "ConnectTunnel()"


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
