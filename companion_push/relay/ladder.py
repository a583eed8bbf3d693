"""The ladder against fatigue: requests that nobody approves, one after the other, cost their device growing pauses.

The module is pure: `now` is passed in, Unix seconds by the relay's clock. `AccountState` keeps the counts. The numbers are in
docs/protocol/relay.md, Pauses.
"""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from companion_push.relay.problems import Problem, Slug
from companion_push.serving.bounds import check_bounds
from headless_passkey.errors import UsageError
from headless_passkey.request import RequestState
from http_serving.rate_limit import Policy

FORGOTTEN: Final = (
    86_400  # seconds after the last one in which a row of requests without approval is forgotten
)


class End(Enum):
    """What the end of a request says of whom it asked."""

    APPROVED = auto()
    UNAPPROVED = auto()  # by a no, or without an answer


def end_of(was: RequestState | None, state: RequestState, *, by_device: bool, claimed: bool) -> End | None:
    """Say how a request ended; None when it goes on, and where its end says nothing of a person.

    was: the state before. by_device: whether its device has ended it. claimed: whether somebody had said yes before.
    """
    match state:
        case RequestState.COMPLETED:
            return End.APPROVED
        case RequestState.DECLINED:
            return End.UNAPPROVED
        case RequestState.EXPIRED:
            return None if claimed else End.UNAPPROVED
        case RequestState.SUPERSEDED | RequestState.CANCELLED | RequestState.FAILED:
            # a device that takes its request back before somebody says no gets no more of them
            return End.UNAPPROVED if by_device and was is RequestState.DELIVERED else None
        case _:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Streak:
    """Requests in a row that nobody has approved."""

    count: int = 0
    at: float = 0  # when the last of them ended

    def after(self, end: End, now: float) -> "Streak":
        """The streak after one more request has ended at `now`."""
        if end is End.APPROVED:
            return Streak()
        return Streak(count=self.count_at(now) + 1, at=now)

    def count_at(self, now: float) -> int:
        """How many there are at `now`. One that is in the future is of a clock that has gone back since."""
        return self.count if self.at <= now < self.at + FORGOTTEN else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A pause after so many requests in a row that nobody has approved."""

    count: int
    seconds: int

    def __post_init__(self) -> None:
        check_bounds(self, "count", lowest=1)
        check_bounds(self, "seconds", lowest=1, highest=FORGOTTEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The pauses of a device, and those that all devices of an account share, which refuse no device without a streak of its own."""

    device: tuple[Rung, ...] = (
        Rung(count=3, seconds=60),
        Rung(count=4, seconds=300),
        Rung(count=5, seconds=900),
        Rung(count=6, seconds=3600),
    )
    account: tuple[Rung, ...] = (
        Rung(count=8, seconds=60),
        Rung(count=12, seconds=300),
        Rung(count=16, seconds=900),
    )

    def __post_init__(self) -> None:
        for name in ("device", "account"):
            if not all(isinstance(rung, Rung) for rung in getattr(self, name)):
                raise UsageError(f"{name}: expected several of Rung")

    def admit(self, device: Streak, account: Streak, now: float) -> None:
        """Refuse a request during a pause (`rate-limited`)."""
        _admit(self.device, device, now, of="unapproved-of-device")
        if device.count_at(now):
            _admit(self.account, account, now, of="unapproved-of-account")


def _admit(rungs: tuple[Rung, ...], streak: Streak, now: float, *, of: str) -> None:
    """Refuse a request during the pause of the highest rung that the streak has reached."""
    reached = [rung for rung in rungs if rung.count <= streak.count_at(now)]
    if not reached:
        return
    rung = max(reached, key=lambda each: each.count)
    left = streak.at + rung.seconds - now
    if left > 0:
        policy = Policy(name=of, quota=rung.count, seconds=rung.seconds)
        raise Problem(Slug.RATE_LIMITED, policy=policy, retry_after=math.ceil(left))
