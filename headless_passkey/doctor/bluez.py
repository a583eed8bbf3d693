"""Checks of Bluetooth on Linux: D-Bus, bluetoothd, adapter and scan, in this order."""

import asyncio
from collections.abc import Sequence
from typing import Final

from headless_passkey.doctor.finding import Check, Finding
from headless_passkey.doctor.scan import count_adverts, not_checked_after, scanned, too_slow
from headless_passkey.doctor.versions import bluez_version
from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.process.private_file import this_user
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.radio.bluez import Adapter, blocked_by, choose_listener, open_bluez

CHECKS: Final = (Check.D_BUS, Check.BLUETOOTH_SERVICE, Check.ADAPTER, Check.SCAN)


async def examine_bluez(name: str | None, *, passive: bool, listen: float, limit: float) -> list[Finding]:
    """Check D-Bus, bluetoothd, the adapter called `name` or any, and a scan; the first problem ends the checks.

    Steps and reasons are those of a sign-in. passive, listen, limit: see `examine_bluetooth`.
    """
    findings: list[Finding] = []
    unoffered = False  # whether bluetoothd offers no passive scan on the adapter
    try:
        async with asyncio.timeout(limit):
            async with open_bluez() as service:
                findings.append(Finding.ok(Check.D_BUS, "the system's D-Bus answers"))
                adapters = await service.adapters()
            version = await bluez_version()
            said = "bluetoothd answers" + (f", BlueZ {version}" if version else "")
            findings.append(Finding.ok(Check.BLUETOOTH_SERVICE, said))
            adapter = choose_listener(adapters, name)
            findings.append(Finding.ok(Check.ADAPTER, _describe(adapter, adapters)))
            unoffered = passive and not adapter.monitors
            radio = BleakRadio(adapter=adapter.name, passive=passive, patience=0)
            findings.append(scanned(f"on {adapter.name} ", listen, await count_adverts(radio, listen)))
    except TransportError as error:
        check = CHECKS[len(findings)]
        if error.reason is TransportReason.ADAPTER_BLOCKED:
            findings.append(_blocked(check, name))
        else:
            case = "passive" if unoffered else "named" if name else None
            names = {"user": this_user()} | ({"name": name} if name else {})
            findings.append(Finding.of(check, error, case=case, names=names))
    except TimeoutError:
        findings.append(too_slow(CHECKS[len(findings)], limit))
    return findings + not_checked_after(findings, CHECKS)


def _describe(adapter: Adapter, adapters: Sequence[Adapter]) -> str:
    passive = "yes" if adapter.monitors else "no (bluetoothd offers them with --experimental)"
    others = [
        f"{other.name} ({'on' if other.powered else 'off'})" for other in adapters if other is not adapter
    ]
    also = f"; also here: {', '.join(others)}" if others else ""
    return f"{adapter.name} is on and can listen; passive scans: {passive}{also}"


def _blocked(check: Check, name: str | None) -> Finding:
    """The finding for a block by rfkill, soft or hard: a command removes the first only."""
    case = "hard" if blocked_by(name) == "hard" else "soft"
    what = {"soft": "software (rfkill)", "hard": "a switch or the firmware (rfkill)"}[case]
    reason = TransportReason.ADAPTER_BLOCKED
    return Finding.of(check, TransportError(f"Bluetooth is blocked by {what}", reason=reason), case=case)
