"""The choice of the device's radio by name."""

from collections.abc import Callable

from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.mends import setup_error
from headless_passkey.process.streams import talk
from headless_passkey.radio.source import AdvertSource


def open_radio(spec: str, *, passive: bool = False, report: Callable[[str], object] = talk) -> AdvertSource:
    """Open the radio that `spec` names: ``bleak``, ``bleak:hci1``, ``bumble:TRANSPORT`` or ``stdin``.

    passive: send no scan requests. report: called for each line of stdin that holds no advert.
    `UsageError` for an unknown radio, `SetupError` (missing-package) for one whose extra is not installed.
    """
    kind, separator, rest = spec.partition(":")
    if kind == "bleak" and bool(rest) == bool(separator):
        try:
            from headless_passkey.radio.bleak import BleakRadio  # noqa: PLC0415
        except ImportError as error:
            raise _missing("bleak", "device") from error
        return BleakRadio(adapter=rest or None, passive=passive)
    if kind == "bumble" and rest:
        try:
            from headless_passkey.radio.bumble import BumbleRadio  # noqa: PLC0415
        except ImportError as error:
            raise _missing("bumble", "emulation") from error
        return BumbleRadio(rest, passive=passive)
    if spec == "stdin":
        from headless_passkey.radio.pipe import PipeRadio  # noqa: PLC0415

        return PipeRadio(report=report)
    raise UsageError(f"no such radio: {spec!r}; expected bleak, bleak:ADAPTER, bumble:TRANSPORT or stdin")


def _missing(kind: str, extra: str) -> SetupError:
    return setup_error(f"the radio {kind} is not installed", SetupReason.MISSING_PACKAGE, extra=extra)
