"""Radios by name, and what is said when one is not there."""

import sys

import pytest

from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.radio.bumble import BumbleRadio
from headless_passkey.radio.choose import open_radio
from headless_passkey.radio.pipe import PipeRadio


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("bleak", BleakRadio),
        ("bleak:hci1", BleakRadio),
        ("bumble:tcp-client:127.0.0.1:1", BumbleRadio),
        ("stdin", PipeRadio),
    ],
)
def test_a_radio_has_a_name(spec: str, kind: type) -> None:
    assert isinstance(open_radio(spec), kind)


@pytest.mark.parametrize("spec", ["", "bluez", "bleak:", "bumble", "bumble:", "stdin:", "stdout", "STDIN"])
def test_another_name_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match="no such radio"):
        open_radio(spec)


@pytest.mark.parametrize(
    ("spec", "module", "extra"),
    [("bleak", "bleak", "device"), ("bumble:usb:0", "bumble", "emulation")],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, spec: str, module: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, f"headless_passkey.radio.{module}")
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SetupError, match="is not installed") as failed:
        open_radio(spec)
    assert failed.value.reason is SetupReason.MISSING_PACKAGE
    assert failed.value.advice == f"`pip install '.[{extra}]'` in the clone of headless-passkey"
