"""RFC 8291: the published message, messages for any user agent, and what is refused."""

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from companion_push.push.message_encryption import RECORD, encrypt, key_of
from tests.push.receiver import Subscription, point
from tests.vectors_loader import Vector, name, vectors


@pytest.mark.parametrize("case", vectors("web_push"), ids=name)
def test_the_published_message_is_made_byte_by_byte(case: Vector) -> None:
    there = Subscription(
        "https://push.example/x",
        private=bytes.fromhex(case["receiver_private"]),
        auth=bytes.fromhex(case["auth"]),
    )
    p256dh = there.key.public_key()
    assert point(p256dh).hex() == case["receiver_public"]
    made = encrypt(
        bytes.fromhex(case["plaintext"]),
        p256dh=p256dh,
        auth=there.auth,
        key=ec.derive_private_key(int(case["sender_private"], 16), ec.SECP256R1()),
        salt=bytes.fromhex(case["salt"]),
    )
    assert made.hex() == case["encrypted"]
    assert there.decrypt(made).hex() == case["plaintext"]


@given(plaintext=st.binary(max_size=200).filter(lambda text: not text.endswith((b"\0", b"\2"))))
def test_messages_of_one_size_decrypt_to_what_was_encrypted(plaintext: bytes) -> None:
    there = Subscription("https://push.example/x")
    made = encrypt(plaintext, p256dh=there.key.public_key(), auth=there.auth, size=200)
    assert len(made) == 21 + 65 + 200 + 17
    assert there.decrypt(made) == plaintext


def test_no_two_messages_share_a_key_or_salt() -> None:
    there = Subscription("https://push.example/x")
    made = [encrypt(b"same", p256dh=there.key.public_key(), auth=there.auth) for _ in range(20)]
    assert len({message[:16] for message in made}) == 20
    assert len({message[21:86] for message in made}) == 20


def test_a_message_is_for_one_user_agent_and_secret() -> None:
    there, other = Subscription("https://push.example/x"), Subscription("https://push.example/y")
    made = encrypt(b"for there", p256dh=there.key.public_key(), auth=there.auth)
    with pytest.raises(InvalidTag):
        other.decrypt(made)
    there.auth = other.auth
    with pytest.raises(InvalidTag):
        there.decrypt(made)


@pytest.mark.parametrize(("length", "size"), [(RECORD - 17, 0), (0, RECORD - 17)], ids=["text", "padding"])
def test_a_message_fills_a_record_and_no_more(length: int, size: int) -> None:
    there = Subscription("https://push.example/x")
    made = encrypt(b"x" * length, p256dh=there.key.public_key(), auth=there.auth, size=size)
    assert there.decrypt(made) == b"x" * length
    with pytest.raises(ValueError, match="longer than a record"):
        encrypt(
            b"x" * (length and length + 1),
            p256dh=there.key.public_key(),
            auth=there.auth,
            size=size and size + 1,
        )


@pytest.mark.threat("T12")
@pytest.mark.parametrize("case", vectors("p256_points"), ids=name)
def test_a_key_is_a_point_of_the_curve_in_uncompressed_form(case: Vector) -> None:
    encoded = bytes.fromhex(case["public"])
    found = key_of(encoded)
    if case["op"] == "refused" or len(encoded) != 65:
        assert found is None
    else:
        assert found is not None
        assert point(found) == encoded


@pytest.mark.threat("T12")
@given(st.binary(max_size=70))
def test_any_bytes_are_a_key_or_none(encoded: bytes) -> None:
    found = key_of(encoded)
    assert found is None or point(found) == encoded
