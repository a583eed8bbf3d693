"""Which radio the phone advertises with, by name."""

from companion_push.companion.advertiser.advertiser import Advertiser
from headless_passkey.command_line import UsageError


def open_advertiser(spec: str) -> Advertiser:
    """The advertiser that `spec` names: ``bumble:TRANSPORT`` or ``stdout``.

    `UsageError` when it names none, or one whose extra is not installed.
    """
    kind, _, rest = spec.partition(":")
    if kind == "bumble" and rest:
        try:
            from companion_push.companion.advertiser.bumble import BumbleAdvertiser  # noqa: PLC0415
        except ImportError as error:
            raise UsageError("this radio needs bumble: pip install 'headless-passkey[emulation]'") from error
        return BumbleAdvertiser(rest)
    if spec == "stdout":
        from companion_push.companion.advertiser.pipe import PipeAdvertiser  # noqa: PLC0415

        return PipeAdvertiser()
    raise UsageError(f"no such radio: {spec!r}; expected bumble:TRANSPORT or stdout")
