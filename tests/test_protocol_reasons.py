"""Each breach of the protocol has a word of its own, chosen where the bytes are parsed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import GetInfoResponse
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.hybrid.keys import parse_uncompressed
from headless_passkey.hybrid.linking import LinkingInformation
from headless_passkey.hybrid.messages import PostHandshake
from headless_passkey.hybrid.tunnel_url import check_connect_signal, parse_routing_id, tunnel_domain
from headless_passkey.radio.pipe import parse_advert_line
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import answer_members
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import Ring
from headless_passkey.trust.signing import parse_public_key
from headless_passkey.webauthn.options import AuthenticationOptions, AuthenticatorData
from headless_passkey.webauthn.origins import RelatedOrigins, well_known_url

PACKAGES = ("headless_passkey", "companion_push")
ORIGIN = "https://example.com"

CASES: dict[str, tuple[Callable[[], object], ProtocolReason]] = {
    "a FIDO URL of another scheme": (lambda: FidoUrl.parse("https://x"), ProtocolReason.MALFORMED_FIDO_URL),
    "a FIDO URL without end": (lambda: FidoUrl.parse("FIDO:/" + "0" * 100_000), ProtocolReason.TOO_LONG),
    "half a CBOR value": (lambda: cbor.decode(b"\x42\x00"), ProtocolReason.MALFORMED_CBOR),
    "a CTAP reply that lacks a member": (
        lambda: GetInfoResponse.parse(b"\xa0"),
        ProtocolReason.MALFORMED_CTAP,
    ),
    "an EID with flags": (lambda: Eid.parse(b"\x01" + bytes(15)), ProtocolReason.MALFORMED_ADVERT),
    "a point that is on no curve": (
        lambda: parse_uncompressed(b"\x04" + bytes(64)),
        ProtocolReason.MALFORMED_KEY,
    ),
    "a signing key that is on no curve": (
        lambda: parse_public_key(b"\x04" + bytes(64)),
        ProtocolReason.MALFORMED_KEY,
    ),
    "linking information that is no map": (
        lambda: LinkingInformation.parse([]),
        ProtocolReason.MALFORMED_LINKING,
    ),
    "a post-handshake message that is no map": (
        lambda: PostHandshake.parse(b"\x80"),
        ProtocolReason.MALFORMED_MESSAGE,
    ),
    "a routing ID of five digits": (
        lambda: parse_routing_id("12345"),
        ProtocolReason.MALFORMED_TUNNEL_HEADER,
    ),
    "a tunnel domain of nobody": (lambda: tunnel_domain(255), ProtocolReason.UNASSIGNED_TUNNEL_DOMAIN),
    "an answer without the member": (
        lambda: answer_members({}, "relay").text("state"),
        ProtocolReason.MALFORMED_ANSWER,
    ),
    "base64url with padding": (lambda: from_base64url("AA=="), ProtocolReason.MALFORMED_BASE64URL),
    "an advert that is no hexadecimal": (lambda: parse_advert_line(b"xyz"), ProtocolReason.MALFORMED_ADVERT),
    "an invitation that is none": (lambda: Invitation.parse("hello"), ProtocolReason.MALFORMED_INVITATION),
    "an account code that is none": (
        lambda: AccountCode.parse("hello"),
        ProtocolReason.MALFORMED_ACCOUNT_CODE,
    ),
    "a connect signal that is something else": (
        lambda: check_connect_signal(b"hello"),
        ProtocolReason.UNEXPECTED_MESSAGE,
    ),
    "a ring that is no CBOR": (lambda: Ring.parse_kept(b"\xff" * 65), ProtocolReason.MALFORMED_CBOR),
    "a ring that is shorter than a signature": (
        lambda: Ring.parse_kept(b"\xff"),
        ProtocolReason.MALFORMED_RING,
    ),
    "a ring of too many bytes": (lambda: Ring.parse_kept(bytes(1 << 20)), ProtocolReason.TOO_LONG),
    "authenticator data that ends early": (
        lambda: AuthenticatorData.parse(bytes(36)),
        ProtocolReason.MALFORMED_AUTHENTICATOR_DATA,
    ),
    "options that are no JSON": (
        lambda: AuthenticationOptions.parse(b"{", origin=ORIGIN),
        ProtocolReason.MALFORMED_JSON,
    ),
    "options without a challenge": (
        lambda: AuthenticationOptions.parse(b"{}", origin=ORIGIN),
        ProtocolReason.MALFORMED_OPTIONS,
    ),
    "options of another site": (
        lambda: AuthenticationOptions.parse(b'{"challenge": "AAAA", "rpId": "example.org"}', origin=ORIGIN),
        ProtocolReason.RP_ID_NOT_OF_ORIGIN,
    ),
    "a list of related origins that is none": (
        lambda: RelatedOrigins.parse(b"{}", rp_id="example.com"),
        ProtocolReason.MALFORMED_RELATED_ORIGINS,
    ),
    "an RP ID that is an address": (lambda: well_known_url("127.0.0.1"), ProtocolReason.MALFORMED_RP_ID),
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("case", CASES)
def test_what_is_malformed_is_named_by_its_kind(case: str) -> None:
    parse, reason = CASES[case]
    with pytest.raises(RemoteProtocolError) as refused:
        parse()
    assert (refused.value.reason, refused.value.exit_status) == (reason, 3)


def test_every_word_is_used_somewhere() -> None:
    root = Path(__file__).parent.parent
    files = [file for package in PACKAGES for file in (root / package).rglob("*.py")]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    unused = [reason.name for reason in ProtocolReason if f"ProtocolReason.{reason.name}" not in source]
    assert unused == []
