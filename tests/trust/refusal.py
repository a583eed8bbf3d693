"""What a refusal looks like to a test."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headless_passkey.errors import TrustError, TrustReason


@contextmanager
def refused(reason: TrustReason, *, saying: str = "") -> Iterator[pytest.ExceptionInfo[TrustError]]:
    """The block ends with a `TrustError` of that reason, whose message has `saying` in it."""
    with pytest.raises(TrustError) as caught:
        yield caught
    assert caught.value.reason is reason, f"expected {reason}, got {caught.value.reason}: {caught.value}"
    assert saying in str(caught.value)
