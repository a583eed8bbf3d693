"""Fixtures for the tests of push services."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from certificates import Certificate
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from companion_push.push.apns import ApnsChannel
from companion_push.push.fcm import FcmChannel
from companion_push.push.provider_token import ProviderKey
from companion_push.push.service_account import ServiceAccount
from tests.push.apple import DEVICE, KEY, TEAM, TOPIC, Apple, serving_apple, write_p8
from tests.push.google import PATIENCE, PING, Clock, Google, serving_google, write_account


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def google(
    loopback_certificate: Certificate, rsa_key: rsa.RSAPrivateKey, clock: Clock
) -> AsyncIterator[Google]:
    async with serving_google(loopback_certificate, rsa_key, clock) as google:
        yield google
        assert google.faults == []


@pytest_asyncio.fixture
async def fcm(
    google: Google, loopback_certificate: Certificate, clock: Clock, tmp_path: Path
) -> AsyncIterator[FcmChannel]:
    account = ServiceAccount.load(write_account(tmp_path / "account.json", google.account()))
    channel = FcmChannel(
        {"example": account},
        url=google.url,
        tls=loopback_certificate.client_context(),
        clock=clock.unix,
        ticks=clock.steady,
        seconds=PATIENCE,
    )
    yield channel
    await channel.close()


@pytest.fixture(scope="session")
def p8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key file as Apple gives it."""
    path = tmp_path_factory.mktemp("apple") / "AuthKey_2X9R4HXF34.p8"
    return write_p8(path, ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def provider_key(p8: Path) -> ProviderKey:
    return ProviderKey.load(p8, team=TEAM, key_id=KEY)


@pytest_asyncio.fixture
async def apple(
    loopback_certificate: Certificate, clock: Clock, provider_key: ProviderKey
) -> AsyncIterator[Apple]:
    keys = {(TEAM, KEY): provider_key.private.public_key()}
    async with serving_apple(loopback_certificate, clock, keys=keys, topics={TEAM: {TOPIC}}) as apple:
        apple.devices.add((TOPIC, DEVICE))
        yield apple
        assert apple.faults == []


@pytest_asyncio.fixture
async def apns(
    apple: Apple, loopback_certificate: Certificate, clock: Clock, provider_key: ProviderKey
) -> AsyncIterator[ApnsChannel]:
    channel = ApnsChannel(
        {TOPIC: provider_key},
        production=apple.url,
        sandbox="https://127.0.0.1:1",
        tls=loopback_certificate.client_context(),
        clock=clock.unix,
        ticks=clock.steady,
        seconds=PATIENCE,
        ping_seconds=PING,
    )
    yield channel
    await channel.close()
