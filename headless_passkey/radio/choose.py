"""Which radio the device listens with, by name."""

from collections.abc import Callable

from headless_passkey.command_line import UsageError, talk
from headless_passkey.radio.source import AdvertSource


def open_radio(spec: str, *, passive: bool = False, report: Callable[[str], object] = talk) -> AdvertSource:
    """The radio that `spec` names: ``bleak``, ``bleak:hci1``, ``bumble:TRANSPORT`` or ``stdin``.

    passive: scan without asking advertisers for more. report: told of each line of stdin that holds no advert.
    `UsageError` when it names none, or one whose extra is not installed.
    """
    kind, separator, rest = spec.partition(":")
    if kind == "bleak" and bool(rest) == bool(separator):
        try:
            from headless_passkey.radio.bleak import BleakRadio  # noqa: PLC0415
        except ImportError as error:
            raise UsageError(
                "this radio needs bleak: pip install '.[device]' in the clone of headless-passkey"
            ) from error
        return BleakRadio(adapter=rest or None, passive=passive)
    if kind == "bumble" and rest:
        try:
            from headless_passkey.radio.bumble import BumbleRadio  # noqa: PLC0415
        except ImportError as error:
            raise UsageError(
                "this radio needs bumble: pip install '.[emulation]' in the clone of headless-passkey"
            ) from error
        return BumbleRadio(rest, passive=passive)
    if spec == "stdin":
        from headless_passkey.radio.pipe import PipeRadio  # noqa: PLC0415

        return PipeRadio(report=report)
    raise UsageError(f"no such radio: {spec!r}; expected bleak, bleak:ADAPTER, bumble:TRANSPORT or stdin")
