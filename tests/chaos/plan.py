"""The plan of a chaotic run: which faults come in which round, as a pure function of the seed.

A round is one sign-in of every home at the same time. A fault comes when a home's sign-in has reached a moment, and ends after some
seconds. Faults are numbered through the whole plan, so that a seed and numbers name a part of a plan: what is left of a
failing plan after it was shrunk is such a part.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

SERVERS: Final = ("relay", "tunnel service", "relying party", "radio")  # of every deployment
WORKER: Final = "worker"  # one of those that the second relay keeps
COMPANIONS: Final = (1, 2, 1)  # of each home
LINKED: Final = 2  # the home whose device is linked with its phone
STAYS: Final = (
    False,
    True,
    True,
)  # of each home: whether its device is a process that stays, or a program for each sign-in
HOMES: Final = range(len(COMPANIONS))
MOST_FAULTS: Final = 3  # of a round
MOST_SECONDS: Final = 3.0  # that a fault lasts
ROUNDS_KEPT: Final = 4  # copies of the relay's store, each from the beginning of a round
MOMENTS: Final = (
    *("begun", "prepared", "submitted", "claimed", "opened", "phone-advertising", "advert-heard"),
    *("channel-open", "request-sent", "phone-asked", "phone-answered"),
)
MOMENTS_LINKED: Final = ("begun", "prepared", "contacting", "channel-open", "request-sent", "phone-asked")
UNHEARD: Final = (
    "begun",
    "prepared",
    "submitted",
    "claimed",
    "opened",
    "phone-advertising",
)  # no advert is heard yet
UNHEARD_LINKED: Final = ("begun", "prepared", "contacting")
JUMPS: Final = (-86400.0, -3600.0, -90.0, 90.0, 3600.0, 86400.0)  # seconds


class Deployment(StrEnum):
    """What the relay is, and where it keeps what it knows."""

    FILE = "file"  # one process on SQLite
    POSTGRES = "postgres"  # two relays on one database, the second with two workers
    REDIS = "redis"  # the same, with account states in Redis
    VALKEY_CLUSTER = "valkey-cluster"  # with account states in a Cluster, and the relying party on PostgreSQL

    @property
    def relays(self) -> tuple[str, ...]:
        return ("relay",) if self is Deployment.FILE else ("relay", "second relay")

    @property
    def databases(self) -> tuple[str, ...]:
        """The servers that the relays call."""
        return {
            Deployment.FILE: (),
            Deployment.POSTGRES: ("postgresql",),
            Deployment.REDIS: ("postgresql", "redis"),
            Deployment.VALKEY_CLUSTER: ("postgresql", "valkey"),
        }[self]

    @property
    def calls(self) -> dict[str, tuple[str, ...]]:
        """Which servers call which databases."""
        called = {relay: self.databases for relay in self.relays if self.databases}
        return called | ({"relying party": ("postgresql",)} if self is Deployment.VALKEY_CLUSTER else {})


class Kind(StrEnum):
    """The kinds of faults."""

    KILL = "kill"  # SIGKILL; started again later
    STOP = "stop"  # SIGSTOP; continued later
    CUT = "cut"  # connections break, and none is made
    DELAY = "delay"  # bytes come late
    SWALLOW = "swallow"  # bytes vanish, and nobody is told
    DEAFEN = "deafen"  # a device's controller hears no advert
    FILL = "fill"  # the file system of a server's store is full
    JUMP = "jump"  # a program's clock is wrong
    ROLL_BACK = "roll-back"  # the store of the relay, or of all relays, is an old copy
    REMOVE = "remove"  # the companion that has the claim is taken out of the ring
    WITHHOLD = "withhold"  # the relay shows devices neither the newest ring nor any word
    LOSE = "lose"  # Redis is killed, and begins with nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault."""

    kind: Kind
    target: str  # a program; or of a link its client
    server: str = ""  # the other end of a link
    home: int  # whose sign-in is watched for the moment
    moment: str  # one of `MOMENTS`
    seconds: float  # it lasts so long
    amount: float = 0.0  # JUMP, DELAY: seconds; ROLL_BACK: rounds

    def __str__(self) -> str:
        what = f"{self.kind} {self.target}" + (f" > {self.server}" if self.server else "")
        by = f" by {self.amount:g}" if self.amount else ""
        return f"{what}{by}, when home {self.home} is at {self.moment}, for {self.seconds:g} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The faults of one round, each with its number in the plan."""

    number: int
    faults: tuple[tuple[int, Fault], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rounds of a run, in their order."""

    seed: int
    rounds: tuple[Round, ...]
    deployment: Deployment = Deployment.FILE

    @property
    def faults(self) -> tuple[int, ...]:
        """The numbers of all faults, in their order."""
        return tuple(number for each in self.rounds for number, _ in each.faults)

    def only(self, numbers: Iterable[int]) -> "Plan":
        """The same plan with these faults alone; rounds that have none are left out."""
        kept = frozenset(numbers)
        rounds = [
            replace(each, faults=tuple(fault for fault in each.faults if fault[0] in kept))
            for each in self.rounds
        ]
        return replace(self, rounds=tuple(each for each in rounds if each.faults))

    def until(self, number: int) -> "Plan":
        """The rounds up to that of this number, which is the last."""
        return replace(self, rounds=tuple(each for each in self.rounds if each.number <= number))


def make_plan(seed: int, rounds: int, deployment: Deployment = Deployment.FILE) -> Plan:
    """The plan of a seed for a deployment. A longer plan begins with the shorter ones."""
    # of a generator only `random` gives the same numbers in each version of Python
    dice, made, count = _Dice(random.Random(seed)), [], 0  # noqa: S311  no secret
    for number in range(rounds):
        faults = []
        for _ in range(1 + dice.below(MOST_FAULTS)):
            faults.append((count, _fault(dice, deployment)))
            count += 1
        made.append(Round(number=number, faults=tuple(faults)))
    return Plan(seed=seed, rounds=tuple(made), deployment=deployment)


@dataclass(frozen=True, slots=True)
class _Dice:
    source: random.Random

    def below(self, limit: int) -> int:
        return int(self.source.random() * limit)

    def one_of(self, choices: Sequence[str]) -> str:
        return choices[self.below(len(choices))]


# what breaks often in the world comes often; what stops every home at once comes seldom
_KINDS: Final = (
    *([Kind.KILL] * 4 + [Kind.STOP] * 4 + [Kind.CUT] * 4 + [Kind.DELAY] * 3 + [Kind.SWALLOW] * 2),
    *([Kind.DEAFEN] + [Kind.FILL] * 2 + [Kind.JUMP] * 2 + [Kind.ROLL_BACK, Kind.REMOVE, Kind.WITHHOLD]),
)
_KINDS_OF: Final = {
    Deployment.FILE: _KINDS,
    Deployment.POSTGRES: _KINDS,
    Deployment.REDIS: (*_KINDS, Kind.LOSE),
    Deployment.VALKEY_CLUSTER: _KINDS,
}


def _fault(dice: _Dice, deployment: Deployment) -> Fault:
    kinds = _KINDS_OF[deployment]
    kind, home = kinds[dice.below(len(kinds))], dice.below(len(COMPANIONS))
    server, amount = "", 0.0
    several = deployment is not Deployment.FILE
    behind = [*deployment.relays, *([WORKER] if several else []), *deployment.databases]
    match kind:
        case Kind.KILL | Kind.STOP:
            target = dice.one_of([*behind, *SERVERS[1:], *_programs(home)])
        case Kind.JUMP:
            clocks = ["postgresql"] * 2 if several else []
            clocks += ["valkey"] * 3 if deployment is Deployment.VALKEY_CLUSTER else []
            target = dice.one_of([*deployment.relays, *SERVERS[1:3], *_programs(home), *clocks])
            amount = JUMPS[dice.below(len(JUMPS))]
        case Kind.CUT | Kind.DELAY | Kind.SWALLOW:
            target = dice.one_of([*_programs(home), *deployment.calls])
            server = dice.one_of(deployment.calls.get(target) or _servers_of(target))
            if kind is Kind.DELAY:
                amount = (1 + dice.below(8)) / 10
        case Kind.DEAFEN:
            target, server = f"device {home}", "radio"
        case Kind.FILL:
            stores = ["postgresql" if several else "relay", "relying party"]
            target = dice.one_of([each for each in stores if each not in deployment.calls])
        case Kind.ROLL_BACK:
            target, amount = "relay", float(dice.below(ROUNDS_KEPT))
        case Kind.REMOVE:
            home = COMPANIONS.index(2)
            target = f"companion {home}.1"
        case Kind.WITHHOLD:
            target = "relay"
        case Kind.LOSE:
            target = "redis"
    moments: Sequence[str] = MOMENTS_LINKED if home == LINKED else MOMENTS
    if kind is Kind.DEAFEN:  # who has heard the advert misses none
        moments = UNHEARD_LINKED if home == LINKED else UNHEARD
    moment = dice.one_of(moments)
    if kind is Kind.REMOVE:
        moment = "claimed"
    seconds = round(0.2 + dice.source.random() * (MOST_SECONDS - 0.2), 1)
    return Fault(
        kind=kind, target=target, server=server, home=home, moment=moment, seconds=seconds, amount=amount
    )


def _programs(home: int) -> list[str]:
    """What runs in a home."""
    linked = [f"phone {home}"] if home == LINKED else []
    return [f"device {home}", *(f"companion {home}.{each}" for each in range(COMPANIONS[home])), *linked]


def _servers_of(program: str) -> tuple[str, ...]:
    """The servers that a program calls."""
    match program.partition(" ")[0]:
        case "device":
            return SERVERS
        case "companion":
            return ("relay", "tunnel service", "radio")
        case _:
            return ("tunnel service", "radio")
