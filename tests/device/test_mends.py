"""One place for the words, and a page that has them all."""

import re
import sys
from itertools import groupby
from pathlib import Path

import pytest

from headless_passkey.doctor.finding import Check
from headless_passkey.errors import (
    EnrolmentReason,
    ProtocolReason,
    SessionReason,
    SetupReason,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.ctap2 import Status, status_name
from headless_passkey.mends import MENDS, mend, transport_error

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "doctor.md"


def rows(columns: int) -> list[list[str]]:
    """The cells of the page's tables with so many columns, without their heads."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells for cells in split if len(cells) == columns and cells[0] not in ("reason", "check")]


def test_every_reason_of_radio_network_and_set_up_has_a_mend() -> None:
    for reason in (*TransportReason, *SetupReason, *EnrolmentReason):
        assert mend(reason), reason


def test_what_a_phone_answers_is_spelled_as_the_specification_does() -> None:
    names = {reason for reason, _ in MENDS if reason.startswith("CTAP")}
    assert names
    assert names < {status_name(status) for status in Status}


def test_no_two_reasons_are_the_same_word() -> None:
    words = [
        str(reason)
        for reason in (
            *TransportReason,
            *TrustReason,
            *SetupReason,
            *EnrolmentReason,
            *ProtocolReason,
            *SessionReason,
        )
    ]
    assert len(words) == len(set(words))


def test_the_page_has_each_reason_with_its_mends_and_no_others() -> None:
    documented: dict[str, list[str]] = {}
    for reason, _, words in rows(3):
        if reason:
            documented[reason.strip("`")] = []
        documented[list(documented)[-1]].append(words)
    written = {
        str(reason): [words for _, words in mends]
        for reason, mends in groupby(MENDS.items(), key=lambda item: item[0][0])
    }
    assert documented == written


def test_the_page_has_every_check_in_its_order() -> None:
    assert [cells[0].strip("`") for cells in rows(2)] == list(Check)


def test_names_are_filled_in_at_once_and_only_where_they_are_given() -> None:
    assert mend(SetupReason.STATE_EXPOSED, mode="600", path="/MODE/USER") == (
        "`chmod 600 /MODE/USER`; if somebody may have read it, `headless-passkey leave` and join again"
    )
    assert "PATH" in str(mend(SetupReason.STATE_DAMAGED))


def test_a_case_that_a_reason_does_not_have_is_its_general_mend() -> None:
    assert mend(TransportReason.UNREACHABLE, "dates") == mend(TransportReason.UNREACHABLE)


def test_what_has_no_mend_is_told_all_the_same() -> None:
    assert mend(TrustReason.BAD_MAC) is None
    assert TrustError(TrustReason.BAD_MAC, "it is so").explain() == "it is so"


def test_an_error_keeps_its_message_and_the_mend_apart() -> None:
    error = transport_error("it is off", TransportReason.ADAPTER_OFF, "named", name="hci1")
    assert str(error) == "it is off"
    assert error.advice == mend(TransportReason.ADAPTER_OFF, "named", name="hci1")
    assert error.explain() == f"it is off: {error.advice}"


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_not_sent_to_programs_of_linux(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for reason in (
        TransportReason.NO_ADAPTER,
        TransportReason.ADAPTER_OFF,
        TransportReason.ADAPTER_UNABLE,
        TransportReason.BLUETOOTH_FORBIDDEN,
        TransportReason.BLUETOOTH_FAILED,
    ):
        for case in (None, "controller"):
            assert not re.search("systemctl|rfkill|bluetoothctl|usermod", str(mend(reason, case)))
    assert mend(EnrolmentReason.NOT_ENROLLED)
