"""Checks of the device's radio."""

import sys
from typing import Final

from headless_passkey.doctor.finding import Check, Finding
from headless_passkey.doctor.scan import CHECKS, examine_by_scanning, not_checked_after
from headless_passkey.errors import SetupError
from headless_passkey.radio.choose import open_radio

LISTEN: Final = 3.0  # seconds
LIMIT: Final = 25.0  # seconds for everything here; the bus may have to start bluetoothd first


async def examine_bluetooth(
    radio: str, *, passive: bool = False, listen: float = LISTEN, limit: float = LIMIT
) -> list[Finding]:
    """Check `radio`, named as for `headless_passkey.radio.choose.open_radio`.

    passive: scan passively, as sign-ins here do. listen: seconds to scan. limit: seconds for all checks.
    `UsageError` when there is no such radio.
    """
    kind, _, name = radio.partition(":")
    try:
        source = open_radio(radio, passive=passive)
    except SetupError as error:  # its package is not installed
        missing = Finding.of(Check.ADAPTER, error)
        return [missing, *not_checked_after([missing], CHECKS)]
    if radio == "stdin":
        return [Finding.not_checked(check, "adverts come from stdin") for check in CHECKS]
    if kind == "bleak" and sys.platform == "linux":
        from headless_passkey.doctor.bluez import examine_bluez  # noqa: PLC0415  dbus-fast is on Linux alone

        return await examine_bluez(name or None, passive=passive, listen=listen, limit=limit)
    case = "controller" if kind == "bumble" else None
    return await examine_by_scanning(source, listen=listen, limit=limit, case=case)
