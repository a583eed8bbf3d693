"""What one check found: a status, a reason out of the SDK's own words, and a mend."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Self

from headless_passkey.errors import (
    ExitStatus,
    HeadlessPasskeyError,
    SetupReason,
    TransportReason,
    TrustReason,
)
from headless_passkey.mends import Reason, mend


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
    reason: Reason | None = None  # of a problem or warning: the reason that a failing sign-in would have
    mend: str | None = None  # what to do about it
    subject: str | None = None  # the host, where a check has several

    @classmethod
    def ok(cls, check: Check, message: str, *, subject: str | None = None) -> Self:
        return cls(check=check, status=Status.OK, message=message, subject=subject)

    @classmethod
    def not_checked(cls, check: Check, message: str) -> Self:
        return cls(check=check, status=Status.NOT_CHECKED, message=message)

    @classmethod
    def trouble(
        cls,
        check: Check,
        message: str,
        reason: Reason,
        *,
        case: str | None = None,
        names: Mapping[str, str] = MappingProxyType({}),
        status: Status = Status.PROBLEM,
        subject: str | None = None,
    ) -> Self:
        """case, names: as `headless_passkey.mends.mend` takes them. A mend that ends `message` is taken off it."""
        return cls(
            check=check,
            status=status,
            message=message.removesuffix(f": {mend(reason, case, **names)}")
            .removesuffix(f": {mend(reason, case)}")
            .removesuffix(f": {mend(reason)}"),
            reason=reason,
            mend=mend(reason, case, **names),
            subject=subject,
        )

    @classmethod
    def of(
        cls,
        check: Check,
        error: HeadlessPasskeyError,
        *,
        otherwise: Reason,
        case: str | None = None,
        names: Mapping[str, str] = MappingProxyType({}),
        status: Status = Status.PROBLEM,
        subject: str | None = None,
    ) -> Self:
        """What `error` says. otherwise: its reason, where it has none of its own."""
        own = error.reason
        reason = own if isinstance(own, TransportReason | TrustReason | SetupReason) else otherwise
        return cls.trouble(check, str(error), reason, case=case, names=names, status=status, subject=subject)

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of a program that fails for this reason."""
        if self.status is not Status.PROBLEM:
            return ExitStatus.DONE
        match self.reason:
            case TransportReason():
                return ExitStatus.TRANSPORT
            case TrustReason():
                return ExitStatus.NOT_TRUSTED
            case SetupReason():
                return _STATUS[self.reason]
        return ExitStatus.OUR_FAULT


_STATUS: Final = {
    SetupReason.NOT_ENROLLED: ExitStatus.NOT_ENROLLED,
    SetupReason.JOIN_UNFINISHED: ExitStatus.NOT_ENROLLED,
    SetupReason.STATE_EXPOSED: ExitStatus.PROTOCOL,
    SetupReason.STATE_FOREIGN: ExitStatus.PROTOCOL,
    SetupReason.STATE_DAMAGED: ExitStatus.PROTOCOL,
    SetupReason.STATE_INCOMPATIBLE: ExitStatus.PROTOCOL,
    SetupReason.STATE_UNREADABLE: ExitStatus.TRANSPORT,
    SetupReason.STATE_UNWRITABLE: ExitStatus.TRANSPORT,
    SetupReason.WRONG_SERVER: ExitStatus.PROTOCOL,
    SetupReason.MISSING_PACKAGE: ExitStatus.USAGE,
}
