"""What one check found: a status, a reason out of the SDK's own words, and a mend."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Self

from headless_passkey.errors import ExitStatus, HeadlessPasskeyError
from headless_passkey.mends import mend


class Check(StrEnum):
    """The checks, in the order of the report."""

    D_BUS = "d-bus"
    BLUETOOTH_SERVICE = "bluetooth-service"
    ADAPTER = "adapter"
    SCAN = "scan"
    STATE = "state"
    ENROLMENT = "enrolment"
    RELAY = "relay"
    CLOCK = "clock"
    MEMBERSHIP = "membership"
    USERS = "users"
    TUNNEL_SERVICE = "tunnel-service"
    RELYING_PARTY = "relying-party"


class Status(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"  # a sign-in may work nevertheless
    PROBLEM = "problem"  # a sign-in will fail
    NOT_CHECKED = "not-checked"  # an earlier problem or the settings made the check impossible


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: Check
    status: Status
    message: str
    reason: str | None = None  # of a problem or warning: the reason that a failing sign-in would have
    mend: str | None = None  # what to do about it
    subject: str | None = None  # the host, where a check has several
    error: HeadlessPasskeyError | None = field(default=None, compare=False)  # what a sign-in would fail with

    @classmethod
    def ok(cls, check: Check, message: str, *, subject: str | None = None) -> Self:
        return cls(check=check, status=Status.OK, message=message, subject=subject)

    @classmethod
    def not_checked(cls, check: Check, message: str) -> Self:
        return cls(check=check, status=Status.NOT_CHECKED, message=message)

    @classmethod
    def of(
        cls,
        check: Check,
        error: HeadlessPasskeyError,
        *,
        case: str | None = None,
        names: Mapping[str, str] = MappingProxyType({}),
        status: Status = Status.PROBLEM,
        subject: str | None = None,
    ) -> Self:
        """What `error` says. case, names: as `headless_passkey.mends.mend` takes them, where it has no advice of its own."""
        return cls(
            check=check,
            status=status,
            message=str(error),
            reason=error.reason,
            mend=error.advice or mend(error.reason, case, **names),
            subject=subject,
            error=error,
        )

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of a program that fails for this reason."""
        if self.status is not Status.PROBLEM:
            return ExitStatus.DONE
        return ExitStatus.OUR_FAULT if self.error is None else self.error.exit_status
