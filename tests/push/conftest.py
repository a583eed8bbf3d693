"""Fixtures for the tests of push services."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from certificates import Certificate
from cryptography.hazmat.primitives.asymmetric import rsa

from companion_push.push.fcm import FcmChannel
from companion_push.push.service_account import ServiceAccount
from tests.push.google import Clock, Google, serving_google, write_account


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
    )
    yield channel
    await channel.close()
