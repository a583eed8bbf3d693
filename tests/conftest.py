"""Fixtures that tests of several rooms share."""

import pytest

from tests.certificates import Certificate, make_certificate


@pytest.fixture(scope="session")
def loopback_certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """(ca, cert, key): paths for TLS on localhost, 127.0.0.1 and ::1."""
    folder = tmp_path_factory.mktemp("certificates")
    return make_certificate(folder, names=("localhost", "127.0.0.1", "::1"))
