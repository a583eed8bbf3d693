"""Apple's provider token: what it says, how often it is replaced, and that its signature is good for others too."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jwt
from joserfc.jwk import ECKey

from companion_push.push.provider_token import ProviderKey, ProviderTokens
from headless_passkey.errors import SetupError, SetupReason, UsageError
from tests.push.apple import KEY, TEAM, write_p8
from tests.push.google import Clock

START = 1_800_000_000  # the beginning of a half hour


@pytest.fixture
def clock() -> Clock:
    return Clock(now=START + 60.0)


@pytest.fixture
def tokens(provider_key: ProviderKey, clock: Clock) -> ProviderTokens:
    return ProviderTokens(provider_key, clock=clock.unix, ticks=clock.steady)


def issued(token: str) -> Any:
    claims = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["iat"]


# The key's file


def test_the_file_is_read(p8: Path) -> None:
    key = ProviderKey.load(p8, team=TEAM, key_id=KEY)
    assert (key.team, key.key_id, key.private.curve.name) == (TEAM, KEY, "secp256r1")


@pytest.mark.threat("T11")
def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = write_p8(tmp_path / "key.p8", ec.generate_private_key(ec.SECP256R1()))
    path.chmod(0o644)
    with pytest.raises(SetupError) as caught:
        ProviderKey.load(path, team=TEAM, key_id=KEY)
    assert caught.value.reason is SetupReason.STATE_EXPOSED


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"there is no file .*absent\.p8"):
        ProviderKey.load(tmp_path / "absent.p8", team=TEAM, key_id=KEY)


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize("what", ["nothing", "words", "another curve", "RSA", "a public key", "half"])
def test_what_is_no_key_is_refused(tmp_path: Path, what: str, rsa_key: rsa.RSAPrivateKey) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = write_p8(tmp_path / "key.p8", key)
    if what == "another curve":
        write_p8(path, ec.generate_private_key(ec.SECP384R1()))
    elif what == "RSA":
        write_p8(path, rsa_key)  # type: ignore[arg-type]
    else:
        good = path.read_bytes()
        path.write_bytes(
            {"nothing": b"", "words": b"no key", "a public key": _public(key), "half": good[:100]}[what]
        )
    with pytest.raises(SetupError, match="no private key of P-256") as caught:
        ProviderKey.load(path, team=TEAM, key_id=KEY)
    assert caught.value.reason is SetupReason.STATE_DAMAGED


@pytest.mark.parametrize("wrong", ["", "A1B2C3D4E", "A1B2C3D4E56", "a1b2c3d4e5", "A1B2C3D4E-", "Ä1B2C3D4E5"])
def test_an_id_is_ten_capitals_and_digits(p8: Path, wrong: str) -> None:
    with pytest.raises(UsageError, match="team"):
        ProviderKey.load(p8, team=wrong, key_id=KEY)
    with pytest.raises(UsageError, match="key"):
        ProviderKey.load(p8, team=TEAM, key_id=wrong)


@pytest.mark.threat("T11")
def test_no_repr_shows_the_key(provider_key: ProviderKey) -> None:
    assert repr(provider_key) == f"ProviderKey(team='{TEAM}', key_id='{KEY}')"


# The token


def test_a_token_names_key_team_and_date_and_its_signature_is_good(provider_key: ProviderKey) -> None:
    header, claims, signature = provider_key.token(START).split(".")

    def decoded(part: str) -> bytes:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

    assert json.loads(decoded(header)) == {"alg": "ES256", "kid": KEY}
    assert json.loads(decoded(claims)) == {"iss": TEAM, "iat": START}
    raw = decoded(signature)
    assert len(raw) == 64
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    public = provider_key.private.public_key()
    public.verify(der, f"{header}.{claims}".encode(), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        public.verify(der, f"{header}.{claims}x".encode(), ec.ECDSA(hashes.SHA256()))


def test_joserfc_takes_it_too(provider_key: ProviderKey) -> None:
    key = ECKey.import_key(provider_key.private)
    token = jwt.decode(provider_key.token(START), key, algorithms=["ES256"])
    assert token.claims == {"iss": TEAM, "iat": START}


def test_each_process_with_the_key_makes_the_very_same_token(p8: Path, clock: Clock) -> None:
    made = set()
    for seconds in (0, 1, 900, 1799):
        key = ProviderKey.load(p8, team=TEAM, key_id=KEY)
        made.add(ProviderTokens(key, clock=lambda at=clock.now + seconds: at, ticks=clock.steady).token())  # type: ignore[misc]
    assert len(made) == 1


def test_where_no_deterministic_signature_can_be_made_another_one_is(provider_key: ProviderKey) -> None:
    class Old:
        """An OpenSSL before 3.2."""

        def sign(self, data: bytes, algorithm: ec.ECDSA) -> bytes:
            if algorithm.deterministic_signing:
                raise UnsupportedAlgorithm("not here")
            return provider_key.private.sign(data, algorithm)

    old: Any = Old()
    token = ProviderKey(team=TEAM, key_id=KEY, private=old).token(START)
    jwt.decode(token, ECKey.import_key(provider_key.private), algorithms=["ES256"])


# Its renewal


def test_it_is_never_older_than_an_hour_and_never_replaced_within_twenty_minutes(
    tokens: ProviderTokens, clock: Clock
) -> None:
    """From each minute of the half hour on, for a day."""
    for start in range(30):
        clock.now, clock.ticks = START + 60.0 * start, 0.0
        fresh = ProviderTokens(tokens._key, clock=clock.unix, ticks=clock.steady)
        seen, since = fresh.token(), clock.now
        for _ in range(60 * 3):
            clock.passes(60)
            token = fresh.token()
            assert 60 <= clock.now - issued(token) < 3000
            if token != seen:
                assert clock.now - since >= 1200
                seen, since = token, clock.now


def test_it_is_replaced_each_half_hour(tokens: ProviderTokens, clock: Clock) -> None:
    assert issued(tokens.token()) == START
    clock.passes(1799)
    assert issued(tokens.token()) == START
    clock.passes(1)
    assert issued(tokens.token()) == START + 1800


def test_a_clock_that_is_set_back_makes_no_new_token_within_twenty_minutes(
    tokens: ProviderTokens, clock: Clock
) -> None:
    first = tokens.token()
    clock.now -= 86_400
    assert tokens.token() == first
    clock.passes(1199)
    assert tokens.token() == first
    clock.passes(1)
    assert issued(tokens.token()) == START - 86_400  # by the clock as it is now


def test_a_clock_that_is_set_forward_makes_one_that_is_not_too_old(
    tokens: ProviderTokens, clock: Clock
) -> None:
    """As after a machine has slept: the other clock stood still."""
    tokens.token()
    clock.now += 3 * 3600
    assert issued(tokens.token()) == START + 3 * 3600


def test_a_refused_token_is_replaced_once_it_is_twenty_minutes_old(
    tokens: ProviderTokens, clock: Clock
) -> None:
    first = tokens.token()
    clock.passes(1199)
    assert not tokens.refused(first)
    assert tokens.token() == first
    clock.passes(1)
    assert tokens.refused(first)
    assert issued(tokens.token()) == START + 60 + 1200
    assert tokens.refused(first)  # somebody else's news
    clock.passes(1199)
    assert issued(tokens.token()) == START + 60 + 1200  # the half hour has passed, but not twenty minutes
    clock.passes(1)
    assert issued(tokens.token()) == START + 1800


def test_a_token_is_not_replaced_by_one_with_an_earlier_date(tokens: ProviderTokens, clock: Clock) -> None:
    clock.passes(1140)
    first = tokens.token()
    clock.passes(1200)
    assert tokens.refused(first)
    assert issued(tokens.token()) == START + 2400
    clock.passes(1259)  # the half hour that has begun is not used before its first minute is over
    assert issued(tokens.token()) == START + 2400
    clock.passes(1)
    assert issued(tokens.token()) == START + 3600


def test_one_that_came_too_soon_gives_way_to_the_one_before(tokens: ProviderTokens, clock: Clock) -> None:
    first = tokens.token()
    assert not tokens.replaced_too_soon(first)  # there is none before
    clock.passes(1800)
    second = tokens.token()
    assert tokens.replaceable_in == 1200
    assert tokens.replaced_too_soon(second)
    assert tokens.token() == first
    assert tokens.replaced_too_soon(second)  # somebody else's news
    clock.passes(1199)
    assert tokens.token() == first
    clock.passes(1)
    assert tokens.token() == second  # made again, and the same


def test_one_that_is_too_old_does_not_come_back(tokens: ProviderTokens, clock: Clock) -> None:
    tokens.token()
    clock.passes(3600)
    assert not tokens.replaced_too_soon(tokens.token())
