"""Where fuzzing starts: the vectors of other people's code, and one good value of each of our own formats."""

import hashlib
import json
from typing import Any

from headless_passkey.hybrid import cbor, noise
from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    User,
)
from headless_passkey.hybrid.fido_url import PREFIX, RequestKind, decode_digits
from headless_passkey.hybrid.messages import PostHandshake, pad
from headless_passkey.net.proof import make_proof
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust import envelope
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.admission import InvitationRecord, Newcomer
from headless_passkey.trust.envelope import Announcement, seal
from headless_passkey.trust.signing import SIGNATURE_SIZE
from headless_passkey.trust.word import Claim, Word
from tests.fuzz.targets import (
    ACCOUNT,
    COMPANION,
    COMPANION_MEMBER,
    DEVICE,
    DEVICE_MEMBER,
    FOUNDED,
    INVITATION,
    KN_INITIATOR,
    NK_INITIATOR,
    NOW,
    PROOF_URL,
    TARGETS,
)
from tests.vectors_loader import vectors


def seeds() -> dict[str, list[bytes]]:
    """For every target the inputs to begin with, without repetition."""
    found: dict[str, list[bytes]] = {name: [b""] for name in TARGETS}
    for part in (_urls(), _adverts_and_tunnels(), _messages(), _ctap(), _webauthn(), _trust(), _proofs()):
        for name, inputs in part.items():
            found[name] += inputs
    # whatever is CBOR for somebody is CBOR
    found["cbor"] += [
        seed for name in ("get-info-response", "ring", "envelope", "fido-url-map") for seed in found[name]
    ]
    return {name: list(dict.fromkeys(inputs)) for name, inputs in found.items()}


def _urls() -> dict[str, list[bytes]]:
    urls = [case["url"] for case in vectors("fido_urls")]
    digits = [url[len(PREFIX) :] for url in urls]
    maps = [bytes.fromhex(case["cbor"]) for case in vectors("fido_urls") if "cbor" in case]
    maps.append(decode_digits(vectors("iphone_session")[0]["url"][len(PREFIX) :]))
    return {
        "fido-url": [url.encode() for url in urls],
        "fido-digits": [text.encode() for text in digits] + [b"16736865", b"00000"],
        "fido-url-map": maps,
        "base-url": [
            b"HTTPS://Login.Example:443/passkeys/",
            "https://bücher.example/x%20y".encode(),
            b"https://[2001:DB8::1]:8443",
            b"https://127.0.0.1/a/../b",
        ],
        "request-url": [
            b"https://api.example/a%2fb/\xc3\xa4?q=1 2#f",
            b"http://[::1]:80/",
            b"https://u@h.example\\x",
        ],
    }


def _adverts_and_tunnels() -> dict[str, list[bytes]]:
    adverts = [bytes.fromhex(case["service_data"]) for case in vectors("adverts") if "service_data" in case]
    plaintexts = [bytes.fromhex(case["plaintext"]) for case in vectors("adverts") if "plaintext" in case]
    lines = [prefix + advert.hex() + end for advert in adverts for prefix in ("", "fff9:") for end in ("\n",)]
    return {
        "advert": adverts + plaintexts + [plaintext + b"\xa1\x01\x19\x12\x34" for plaintext in plaintexts],
        "eid": plaintexts,
        "advert-line": [line.encode() for line in lines],
        "tunnel-path": [
            f"/cable/new/{'0aF9' * 8}".encode(),
            f"/cable/connect/0aF9ff/{'0aF9' * 8}".encode(),
            b"/cable/contact/AQIDBA",
        ],
        "routing-id-header": [b"0aF9ff", b"80BC14"],
        "advert-suffix": [bytes.fromhex(case["suffix"]) for case in vectors("advert_suffixes")],
        "client-payload-header": [("a1" * 33).encode(), b"A301"],
        "first-request": [
            b"\0" + _UPGRADE + bytes.fromhex("828101020304 79 888001020304"),
            b"\x10GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + _UPGRADE,
        ],
        "websocket-frames": [
            bytes.fromhex("828501020304") + b"iemhn",  # a message
            bytes.fromhex(
                "028201020304686b 808101020304 20 898001020304 828001020304 888201020304 02ea".replace(
                    " ", ""
                )
            ),
            bytes.fromhex("82fe008001020304") + bytes(128) + bytes.fromhex("82ff000000000001000001020304"),
            bytes.fromhex("818101020304") + b"x" + bytes.fromhex("8880010203048a8001020304"),
        ],
        "noise-kn-message1": [b"\1", noise.Initiator(**KN_INITIATOR).message1],
        "noise-nk-message1": [b"\1", noise.Initiator(**NK_INITIATOR).message1],
        "noise-kn-message2": [b"\1", bytes(80) + b"\1", bytes(81) + b"\1"],
        "noise-nk-message2": [b"\1", bytes(80) + b"\1", bytes(81) + b"\1"],
    }


_UPGRADE = (
    b"GET /cable/new/00112233445566778899AABBCCDDEEFF HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: fido.cable\r\n\r\n"
)


def _messages() -> dict[str, list[bytes]]:
    posts = [bytes.fromhex(case["plaintext"]) for case in vectors("post_handshake") if "plaintext" in case]
    padded = [bytes.fromhex(case["padded"]) for case in vectors("padding") if "padded" in case]
    links = [bytes.fromhex(case["cbor"]) for case in vectors("linking") if case["op"].startswith("linking-")]
    updates = [bytes.fromhex(case["plaintext"]) for case in vectors("linking", op="update-message")]
    frames = [
        *updates,
        b"\0",
        b"\1\0",
        b"\1\2\xa0",
        b"\2\xa0",
        b"\2\xa1\1\xa0",
        b"\3{}",
        *(bytes.fromhex(case["frame"]) for case in vectors("framing")),
    ]
    pieces = [bytes([len(pad(each))]) + pad(each) for each in frames if len(pad(each)) < 255]
    info = PostHandshake(get_info=GetInfoResponse(versions=("FIDO_2_0",), aaguid=bytes(16))).encode()
    opening = bytes([len(pad(info))]) + pad(info)
    return {
        "padding": padded,
        "linking-information": links,
        "client-payload": [bytes.fromhex(vectors("linking", op="client-payload")[0]["cbor"])],
        "post-handshake": posts,
        "message-frame": frames,
        "channel-to-client": [b"\xff" + pad(posts[0]), opening, *(opening + piece * 2 for piece in pieces)],
        "channel-to-authenticator": [b"".join(pieces[:3]), *pieces],
        "channel-ciphertext": [bytes(16), bytes(48)],
        "direct-messages": [
            bytes([60, 0, 3] + 13 * [40]) + b"hello",
            bytes(16) + b"\r\n" * 9,
            *(bytes([2] * 16) + bytes.fromhex(case["stream"]) for case in vectors("direct_messages")),
        ],
        "direct-handshake": [b"\x51" + bytes(81) + b"\2\r\n" + piece for piece in (opening, *pieces[:3])],
    }


def _ctap() -> dict[str, list[bytes]]:
    user = User(id=b"ada's handle", name="ada", display_name="Ada")
    session = vectors("iphone_session")[0]
    assertion_map = bytes.fromhex(session["ctap_response"])[1:]
    posts = [bytes.fromhex(case["get_info"]) for case in vectors("post_handshake") if "get_info" in case]
    requests = [
        bytes.fromhex(session["ctap_request"])[1:],
        GetAssertionRequest(
            rp_id="login.example",
            client_data_hash=bytes(32),
            allow_list=(b"id",),
            extensions={"prf": {"eval": {"first": bytes(32)}}},
            user_presence=False,
        ).encode(),
    ]
    responses = [
        assertion_map,
        GetAssertionResponse(
            auth_data=bytes(37),
            signature=bytes(70),
            credential_id=b"id",
            user=user,
            user_selected=True,
            unsigned_extension_outputs={"prf": {"results": {"first": bytes(32)}}},
        ).encode(),
    ]
    creations = [
        MakeCredentialRequest(
            client_data_hash=bytes(32),
            rp_id="login.example",
            rp_name="Example",
            user=user,
            algorithms=(-7, -257),
            exclude_list=(b"id",),
            extensions={"hmac-secret": True},
        ).encode()
    ]
    created = [
        MakeCredentialResponse(fmt="none", auth_data=bytes(37), att_stmt={"alg": -7, "sig": b"x"}).encode()
    ]
    return {
        "get-info-response": posts,
        "get-assertion-request": requests,
        "get-assertion-response": responses,
        "make-credential-request": creations,
        "make-credential-response": created,
    }


def _webauthn() -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {
        "authenticator-data": [bytes(32) + b"\x05" + bytes(4)],
        "authentication-options": [],
        "registration-options": [],
        "authentication-reply": [],
        "registration-reply": [],
    }
    for case in vectors("chromium_sessions"):
        page = case["page"]
        kind = "authentication" if page["kind"] == "get" else "registration"
        found[f"{kind}-options"] += [
            _at_login_example(page["publicKey"]),
            json.dumps({"publicKey": page["publicKey"]}).encode(),
        ]
        data = page["credential"]["response"].get("authenticatorData")
        if data is not None:
            found["authenticator-data"].append(from_base64url(data))
    values = {"first": bytes(32), "second": bytes(32)}
    blob = {"blob": b"\x03\0", "originalSize": 0}
    documents = [b'{"origins": ["https://other.example", "https://login.example:443"]}', b'{"origins": []}']
    extensions = {
        "prf": {"eval": {"first": "AAAA"}, "evalByCredential": {"AAAA": {"first": "BBBB", "second": "AAAA"}}},
        "largeBlob": {"read": True},
    }
    allowed = [{"type": "public-key", "id": "AAAA"}]
    found["authentication-options"].append(
        json.dumps({"challenge": "AAAA", "allowCredentials": allowed, "extensions": extensions}).encode()
    )
    return found | {
        "related-origins": documents,
        "extension-outputs": [
            cbor.encode({"prf": {"results": values}, "largeBlob": blob}),
            cbor.encode({"prf": {"results": {"first": bytes(32)}}}),
        ],
        "authentication-reply": [
            cbor.encode({1: {"id": b"id", "type": "public-key"}, 2: _data(0x05), 3: b"0\0", 4: {"id": b"u"}})
        ],
        "registration-reply": [
            cbor.encode({1: "none", 2: _data(0x45) + bytes(16) + b"\0\2id" + key, 3: {}}) for key in _keys()
        ],
        "registered-key": _keys(),
    }


def _at_login_example(options: Any) -> bytes:
    return json.dumps(options).replace("localhost", "login.example").encode()


def _data(flags: int) -> bytes:
    return hashlib.sha256(b"login.example").digest() + bytes([flags]) + bytes(4)


def _keys() -> list[bytes]:
    point = DEVICE.public_key
    return [
        cbor.encode({1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]}),
        cbor.encode({1: 1, 3: -8, -1: 6, -2: bytes(32)}),
        cbor.encode({1: 3, 3: -257, -1: b"\xff" * 256, -2: b"\1\0\1"}),
    ]


def _trust() -> dict[str, list[bytes]]:
    second = FOUNDED.next(COMPANION, members=(COMPANION_MEMBER, DEVICE_MEMBER), now=NOW + 1)
    newcomer = Newcomer.make(INVITATION, key=DEVICE, hpke_key=None, label="kiosk")
    came = newcomer.introduction
    record = InvitationRecord(invitation=INVITATION, rp_ids=("login.example",))
    code = AccountCode(relay_url="https://relay.example", account=ACCOUNT, account_name="ada", code=bytes(32))
    said = Announcement.address(
        COMPANION_MEMBER,
        ring=FOUNDED,
        device=DEVICE_MEMBER.name,
        request_id=bytes(16),
        confirmed=NOW - 60,
        now=NOW,
        lifetime=120,
        kind=RequestKind.GET_ASSERTION,
        url=vectors("fido_urls")[0]["url"],
        rp_id="login.example",
        rp_name="Example",
        note="at the door",
        digits="42",
    )
    assert COMPANION_MEMBER.hpke_key is not None
    sealed = seal(said, DEVICE, COMPANION_MEMBER.hpke_key)
    claim = Claim.of(device=DEVICE_MEMBER.name, request_id=bytes(16), sealed=sealed)
    words = [Word.give(COMPANION, ring=FOUNDED, now=NOW, claim=each) for each in (None, claim)]
    return {
        "ring": [FOUNDED.document[:-SIGNATURE_SIZE], second.document[:-SIGNATURE_SIZE]],
        "invitation": [_content(INVITATION.encode())],
        "account-code": [_content(code.encode())],
        "text-lines": [INVITATION.encode().encode(), code.encode().encode() + b"\n"],
        "introduction": [came.body],
        "invitation-record": [
            record.to_bytes(),
            record.taken_by(came).to_bytes(),
            record.taken_by(came).candidate(came, newcomer.nonce).agree_without_number().to_bytes(),
        ],
        "newcomer-record": [newcomer.to_bytes(), newcomer.hears(bytes(32)).to_bytes()],
        "word": [word.document[:-SIGNATURE_SIZE] for word in words],
        "envelope": [envelope._encode(said)],
        "envelope-sealed": [sealed],
        "shown-text": ["Ada\N{RIGHT-TO-LEFT OVERRIDE}".encode(), b"  a  b  ", b"x" * 65],
    }


def _content(line: str) -> bytes:
    return from_base64url(line.partition(":")[2])


def _proofs() -> dict[str, list[bytes]]:
    proof = make_proof(DEVICE, method="POST", url=PROOF_URL, now=NOW, access_token="token")
    header, claims, _ = proof.split(".")
    parts = [from_base64url(header) + b"\0" + from_base64url(claims)]
    return {
        "relay-proof": [proof.encode()],
        "relay-proof-signed": parts,
        "relying-party-proof": [proof.encode()],
        "relying-party-proof-signed": parts,
    }
