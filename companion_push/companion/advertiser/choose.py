"""The choice of the phone's radio by name."""

import sys
from typing import Final

from companion_push.companion.advertiser.advertiser import Advertiser
from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.mends import setup_error

DEFAULT: Final = "bluez"


def open_advertiser(spec: str = DEFAULT) -> Advertiser:
    """Open the advertiser that `spec` names: ``bluez``, ``bluez:hci1``, ``bumble:TRANSPORT`` or ``stdout``.

    `UsageError` for an unknown radio, `SetupError` (missing-package) for one whose extra is not installed.
    """
    kind, separator, rest = spec.partition(":")
    if kind == "bluez" and bool(rest) == bool(separator):
        if sys.platform != "linux":
            raise UsageError("bluez is a radio of Linux: --radio bumble:TRANSPORT or stdout does here")
        try:
            from companion_push.companion.advertiser.bluez import BluezAdvertiser  # noqa: PLC0415
        except ImportError as error:
            raise _missing("bluez", "push") from error
        return BluezAdvertiser(rest or None)
    if kind == "bumble" and rest:
        try:
            from companion_push.companion.advertiser.bumble import BumbleAdvertiser  # noqa: PLC0415
        except ImportError as error:
            raise _missing("bumble", "emulation") from error
        return BumbleAdvertiser(rest)
    if spec == "stdout":
        from companion_push.companion.advertiser.pipe import PipeAdvertiser  # noqa: PLC0415

        return PipeAdvertiser()
    raise UsageError(f"no such radio: {spec!r}; expected bluez, bluez:ADAPTER, bumble:TRANSPORT or stdout")


def _missing(kind: str, extra: str) -> SetupError:
    return setup_error(f"the radio {kind} is not installed", SetupReason.MISSING_PACKAGE, extra=extra)
