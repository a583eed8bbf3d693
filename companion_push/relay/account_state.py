"""The state of an account: what of it lives for minutes, as one immutable value.

It holds the account's requests without their envelopes, the outcomes of those that are over, what its members have used of
their rates, and the requests in a row that nobody has approved. The module is pure: the rules turn one state into the next,
and `account_states` reads and stores it. `now` is passed in, Unix seconds by the relay's clock.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec
from msgspec import field
from msgspec.structs import replace

from companion_push.relay.ladder import FORGOTTEN, End, Streak
from companion_push.relay.mailbox import Key, Request

# requests that are over: the newest ones stay readable, so many of a device, and so many of its account
OUTCOMES: Final = 8
ALL_OUTCOMES: Final = 64
# seconds by which a transaction may have begun before another one whose state it reads; beyond that a clock has gone back
BEHIND: Final = 60


class AccountState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What of an account lives for minutes. Stores keep it by the names of its fields: a new one has a default."""

    requests: tuple[Request, ...] = ()  # the oldest first
    spent: dict[str, dict[str, float]] = field(default_factory=dict)  # by whose and rate: see `spent_by`
    spent_at: float = 0.0  # when a rate was used last
    streaks: dict[str, Streak] = field(default_factory=dict)  # by whose: a device's name, or the account's id
    # in a store beside the database: how many changes of who may do what it has seen, and until when it stays to say so
    authority: int = 0
    fenced_until: float = 0.0

    def at(self, now: float) -> "AccountState":
        """The state without what is forgotten at `now`. It is itself where nothing is.

        A clock that has gone back since a rate was used takes what is used along: the way back is no use of it. So it takes
        requests along that would come yet: their time begins anew, and they do not wait for as long as the clock went back.
        """
        if self.spent and now < self.spent_at:
            return self._taken_back(now).at(now)
        if self.requests and self.requests[-1].submitted_at > now + BEHIND:
            return self._with_requests_taken_back(math.ceil(self.requests[-1].submitted_at - now)).at(now)
        if min(self._ends, default=math.inf) > now:
            return self
        return replace(
            self,
            fenced_until=self.fenced_until if self.fenced_until > now else 0.0,
            requests=tuple(each for each in self.requests if each.forgotten_at > now),
            spent={whose: left for whose, rates in self.spent.items() if (left := _unfinished(rates, now))},
            streaks={whose: each for whose, each in self.streaks.items() if each.at + FORGOTTEN > now},
        )

    def _taken_back(self, now: float) -> "AccountState":
        back = self.spent_at - now
        spent = {
            whose: {rate: full_at - back for rate, full_at in rates.items()}
            for whose, rates in self.spent.items()
        }
        return replace(self, spent=spent, spent_at=now)

    def _with_requests_taken_back(self, back: int) -> "AccountState":
        """All requests so many seconds earlier: of the same age among themselves."""
        return replace(self, requests=tuple(each.earlier(back) for each in self.requests))

    def changes_at(self) -> float:
        """When time forgets an outcome, or the last that there is. Minus infinity: at any moment, while a request lives: stores
        do not know the lease of a claim, and what stays the same is not written with each event of a request.
        """
        if not self.requests:
            return self.ends_at()
        if any(each.live for each in reversed(self.requests)):
            return -math.inf
        return min(each.forgotten_at for each in self.requests)

    def ends_at(self) -> float:
        """When all of it is forgotten; minus infinity for an empty one."""
        return max(self._ends, default=-math.inf)

    @property
    def _ends(self) -> list[float]:
        """When each part of it is forgotten."""
        return [
            *[each.forgotten_at for each in self.requests],
            *[full_at for rates in self.spent.values() for full_at in rates.values()],
            *[each.at + FORGOTTEN for each in self.streaks.values()],
            *([self.fenced_until] if self.fenced_until else []),
        ]

    @property
    def is_empty(self) -> bool:
        return not (self.requests or self.spent or self.streaks or self.fenced_until)

    # Requests

    def request(self, key: Key) -> Request | None:
        return next((each for each in self.requests if each.key == key), None)

    def with_requests(self, changed: Iterable[Request]) -> "AccountState":
        """The state with these requests in place of those with their keys. Of the outcomes the newest ones stay."""
        new = {each.key: each for each in changed}
        if all(each.live for each in new.values()):  # nothing is over
            kept = [new.pop(each.key, each) for each in self.requests]
            if new:
                kept = sorted([*kept, *new.values()], key=_age)
            return replace(self, requests=tuple(kept))
        requests = {each.key: each for each in self.requests} | new
        newest_first = sorted(requests.values(), key=_age, reverse=True)
        kept = []
        over: dict[str, int] = {}  # by device
        all_over = 0
        for request in newest_first:
            if not request.live:
                of_device = over[request.device] = over.get(request.device, 0) + 1
                all_over += 1
                if of_device > OUTCOMES or all_over > ALL_OUTCOMES:
                    continue
                if of_device > 1 and request.notices:
                    request = replace(request, notices=())  # noqa: PLW2901  only the newest one tells whom it notified
            kept.append(request)
        return replace(self, requests=tuple(reversed(kept)))

    # Rates

    def spent_by(self, whose: str) -> Mapping[str, float]:
        """What is used of the rates of a member or of the account: for each the time at which it is unused again (GCRA)."""
        return self.spent.get(whose, {})

    def spending(self, used: Mapping[str, Mapping[str, float]], now: float) -> "AccountState":
        """The state with these rates used at `now`, by whose: a member's name, or the account's id."""
        spent = {whose: {**self.spent_by(whose), **rates} for whose, rates in used.items()}
        return replace(self, spent={**self.spent, **spent}, spent_at=now)

    # Requests in a row that nobody has approved

    def streak(self, whose: str) -> Streak:
        return self.streaks.get(whose, Streak())

    def counting(self, account: str, device: str, end: End, now: float) -> "AccountState":
        """The state after the end of a request of `device`, which counts for it and for its account."""
        after = {whose: self.streak(whose).after(end, now) for whose in (device, account)}
        both = {**self.streaks, **after}
        return replace(self, streaks={whose: each for whose, each in both.items() if each.count})

    def without_streaks_of(self, devices: Collection[str]) -> "AccountState":
        """The state after these devices have left the ring."""
        if self.streaks.keys().isdisjoint(devices):
            return self
        left = {whose: each for whose, each in self.streaks.items() if whose not in devices}
        return replace(self, streaks=left)


EMPTY = AccountState()

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(AccountState)


def encoded(state: AccountState) -> bytes:
    """Encode a state as MessagePack."""
    return _ENCODER.encode(state)


def decoded(value: bytes) -> AccountState:
    """Decode a state; `ValueError` when it is none."""
    try:
        return _DECODER.decode(value)
    except msgspec.MsgspecError as error:  # its messages quote no values
        raise ValueError(f"not the state of an account: {error}") from error


def _age(request: Request) -> tuple[int, Key]:
    """The order of requests, the oldest first."""
    return request.submitted_at, request.key


def _unfinished(rates: Mapping[str, float], now: float) -> dict[str, float]:
    return {rate: full_at for rate, full_at in rates.items() if full_at > now}
