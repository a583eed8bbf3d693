"""Checks by a scan of a few seconds, made as a sign-in makes it."""

import asyncio
from collections.abc import Sequence
from typing import Final

from headless_passkey.doctor.finding import Check, Finding
from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.radio.source import AdvertSource

CHECKS: Final = (Check.ADAPTER, Check.SCAN)


async def examine_by_scanning(
    source: AdvertSource, *, listen: float, limit: float, case: str | None = None
) -> list[Finding]:
    """Check adapter and scan where no service can be asked: the scan fails with the adapter's reason.

    listen: seconds to scan. limit: seconds for all. case: of the mends, for this kind of radio.
    """
    failed = TransportReason.BLUETOOTH_FAILED
    ready = Finding.ok(Check.ADAPTER, "the adapter can be used")
    try:
        async with asyncio.timeout(limit):
            heard = await count_adverts(source, listen)
    except TransportError as error:
        if error.reason is not failed:
            unfit = Finding.of(Check.ADAPTER, error, case=case)
            return [unfit, *not_checked_after([unfit], CHECKS)]
        return [ready, Finding.of(Check.SCAN, error, case=case)]
    except TimeoutError:
        return [ready, too_slow(Check.SCAN, limit)]
    return [ready, scanned("", listen, heard)]


async def count_adverts(source: AdvertSource, seconds: float) -> int:
    """Count the adverts of `seconds`, from the start of the scan."""
    heard = 0
    clock = asyncio.get_running_loop().time
    async with source.adverts() as adverts:
        until = clock() + seconds
        try:
            async with asyncio.timeout_at(until):
                async for _ in adverts:
                    heard += 1
        except TimeoutError:
            if clock() < until:
                raise
    return heard


def scanned(where: str, seconds: float, heard: int) -> Finding:
    """The finding for a scan that worked. No phone advertises unasked, so a count of zero is no problem."""
    adverts = {0: "no FIDO advert, as usual while no phone is asked", 1: "1 FIDO advert"}
    said = adverts.get(heard, f"{heard} FIDO adverts")
    return Finding.ok(Check.SCAN, f"listened {where}for {seconds:g} s; heard {said}")


def too_slow(check: Check, limit: float) -> Finding:
    slow = TransportError(f"no answer within {limit:g} s", reason=TransportReason.BLUETOOTH_FAILED)
    return Finding.of(check, slow)


def not_checked_after(findings: Sequence[Finding], checks: Sequence[Check]) -> list[Finding]:
    """Findings ``not-checked`` for those of `checks` that come after the last of `findings`."""
    because = f"because of {findings[-1].check}"
    return [Finding.not_checked(check, because) for check in checks[len(findings) :]]
