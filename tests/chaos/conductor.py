"""The conductor of a chaotic run: it carries a plan out, and checks after each round what must hold whatever happened.

What must hold: a sign-in ends in a session or in an error of a known kind, within its deadline; a request is opened by one companion
alone; an approval makes one session at the most; a session that a device was given is there; when the faults are over, a sign-in works;
and no connection, advert, task, file or process is left.
"""

import asyncio
import errno
import functools
import operator
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from programs import Program, ProgramFailed, event

from companion_push.relay import redis_states
from headless_passkey.errors import ExitStatus, HeadlessPasskeyError, TransportError
from postgres_store import database
from tests.chaos.air import Air
from tests.chaos.databases import Postgres, Redis, ValkeyCluster
from tests.chaos.junction import Trouble
from tests.chaos.plan import COMPANIONS, HOMES, WORKER, Deployment, Fault, Kind, Plan, Round
from tests.chaos.town import NODES, SCRATCH, TIMEOUT, WORKERS, Heard, Town, user_of
from tests.end_to_end.household import Home, Session, copied, processes, put_back
from tests.relay.stores import query

GRACE: Final = 45.0  # seconds after its deadline until a sign-in counts as hanging: what a slow machine needs to start and to end it
PATIENCE: Final = 60.0  # seconds for what must come
FORGOTTEN: Final = 240.0  # seconds until all is let go: a phone waits for a device that was killed for 120 s after the request's end
ROGUE: Final = Path(__file__).parents[2] / "examples" / "rogue_relay.py"
# how a sign-in may end that met faults; each is told with a reason and advice
ENDS: Final = frozenset({ExitStatus.DONE, ExitStatus.TRANSPORT, ExitStatus.EXPIRED})
# and where clocks were wrong, the relay had forgotten, or it withheld
DISTRUSTED: Final = {Kind.JUMP, Kind.ROLL_BACK, Kind.WITHHOLD, Kind.REMOVE}
KILLED: Final = -signal.SIGKILL
KEEP: Final[Mapping[str, Sequence[str]]] = {  # which programs that stay keep connections to a server
    "relay": ("companion", "device"),
    "relying party": ("device",),
    "tunnel service": ("phone",),
}
KEPT: Final = 4  # connections that one of them keeps at the most
KEPT_BY_PROCESS: Final = {  # and each process of a relay
    "postgresql": database.CONNECTIONS + 1,  # one listens
    "redis": redis_states.CONNECTIONS,
    **dict.fromkeys(NODES, redis_states.CONNECTIONS),
}
SESSIONS: Final = "SELECT session_id, name FROM sessions JOIN users ON handle = user_handle"
REMOVED: Final = ExitStatus.NOT_ENROLLED
FAULTY: Final = re.compile(r"Traceback|unexpected \w+ at \S+:\d+")  # a fault that nobody has thought of
FULL: Final = re.compile(r"disk is full|No space left")
ADRIFT: Final = re.compile(r"^\..*\.[0-9a-f]{16}$")  # a private file that is being written


class Broken(Exception):  # noqa: N818  it says what does not hold
    """Something that must hold does not."""


@dataclass(slots=True)
class Tally:
    """What a run has done."""

    sign_ins: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(
        default_factory=Counter
    )  # faults that something has met: what was killed ran, what was cut was used
    missed: int = 0  # faults whose moment did not come
    adverts: int = 0  # that were on the air
    latest: float = 0.0  # seconds by which a sign-in has ended after its deadline, at the most


@dataclass(slots=True)
class Conductor:
    """Carries out a plan in a town."""

    town: Town
    plan: Plan
    marker: tuple[str, str]
    say: Callable[[str], None]
    tally: Tally = field(default_factory=Tally)
    _copies: list[Path] = field(default_factory=list)
    _began: int = 0  # of the round, in what was heard
    _files: frozenset[str] = frozenset()
    _over: bool = False  # the round's sign-ins have ended
    _air: Air | None = None
    _deaf: int = 0  # what was heard before there was an ear for adverts
    _idle: dict[str, Counter[str]] = field(
        default_factory=dict
    )  # what each program has while nobody signs in
    _busy: dict[str, asyncio.Lock] = field(default_factory=dict)  # by program: one fault at a time

    async def run(self) -> None:
        """Carry the plan out; `Broken` when something does not hold."""
        async with Air.listen(self.town.ether) as self._air:
            self._deaf = len(self.town.heard)
            await self._carry_out()
        await self._all_stops()

    @property
    def _ear(self) -> Air:
        assert self._air is not None
        return self._air

    async def _carry_out(self) -> None:
        """Sign in without faults, make the rounds, and sign in once more."""
        for home in self.town.homes:
            await self._must_sign_in(home)
        self._files = self._all_files()
        for name in [*self.town.servers, *self.town.running]:
            self._idle[name] = functools.reduce(operator.or_, await self.town.use(name))
        for each in self.plan.rounds:
            try:
                await self._round(each)
            except Broken as error:
                raise Broken(f"round {each.number}: {error}") from error
        for home in [*self.town.homes]:
            await self._must_sign_in(home)

    # A round

    async def _round(self, one: Round) -> None:
        town = self.town
        await self._copy_store()
        self._began, self._over, self._busy = len(town.heard), False, {}
        sessions_before = self._session_ids()
        faults = [fault for _, fault in one.faults]
        for number, fault in one.faults:
            self.say(f"round {one.number}: fault {number}: {fault}")
        devices = [asyncio.create_task(self._sign_in(number, faults)) for number, _ in enumerate(town.homes)]
        conducting = [asyncio.create_task(self._conduct(fault)) for fault in faults]
        try:
            results = await asyncio.gather(*devices)
            self._over = True
            town.news.set()
            await asyncio.gather(*conducting)
        finally:
            for task in [*devices, *conducting]:
                task.cancel()
            await asyncio.wait([*devices, *conducting])
        await self._mend()
        self._check_claims(faults)
        self._check_sessions(sessions_before)
        for home, status in zip(town.homes, results, strict=True):
            if status == 0 and not any(fault.kind is Kind.JUMP for fault in faults):
                await self._check_session(home)
        # a device that was killed has called nothing off: its next request takes the place of that one
        killed = {number for number, status in enumerate(results) if status == KILLED}
        for number in sorted({one.number % len(town.homes)} | killed):
            await self._must_sign_in(town.homes[number])
        await self._nothing_is_left()

    async def _sign_in(self, number: int, faults: list[Fault]) -> int:
        """One sign-in; returns its status."""
        home = self.town.homes[number]
        began = time.monotonic()
        stopped = sum(fault.seconds for fault in faults)
        ended = await self._ended(home, TIMEOUT, TIMEOUT + stopped + GRACE)
        seconds = time.monotonic() - began
        self.tally.latest = max(self.tally.latest, seconds - TIMEOUT - stopped)
        self._check_end(ended, faults)
        why = (ended.failure or {}).get("reason")
        killed = ended.status == KILLED
        self.tally.ends[
            "session" if ended.status == 0 else "killed" if killed else f"{ended.status} {why}"
        ] += 1
        self.say(f"    home {number}: {ended.status} {why or ''} after {seconds:.1f} s")
        return ended.status

    async def _ended(self, home: Home, seconds: float, patience: float) -> "_End":
        """Sign in, and see it end; `Broken` when it does not. seconds: for the sign-in. patience: seconds until it counts as hanging."""
        self.tally.sign_ins += 1
        device = self.town.running.get(home.hub)
        began = 0 if device is None else len(device.said)
        try:
            async with asyncio.timeout(patience):
                if device is None:
                    device = await self.town.device(home.hub, "sign-in", "--timeout", str(seconds))
                    output = await device.output()
                    status = await device.wait()
                    if (status == 0) != bool(output):
                        raise Broken(f"{device.name} ended with {status} and said {output!r}")
                    self.town.dismiss(device)
                else:
                    status = await _one_more(device, seconds)
        except TimeoutError:
            raise Broken(f"the sign-in of {home.hub} hangs: {device and device.said[-5:]}") from None
        said = device.said[began:]
        failures = [each for each in map(event, said) if each is not None and "error" in each]
        return _End(home.hub, status, said, failures[-1] if failures else None)

    def _check_end(self, end: "_End", faults: list[Fault]) -> None:
        """A session, or an error of a known kind."""
        said = "\n".join(end.said[-12:])
        _check_words(end.device, end.said)
        if end.status == KILLED and any(
            fault.kind is Kind.KILL and fault.target == end.device for fault in faults
        ):
            return
        may = ENDS | ({ExitStatus.NOT_TRUSTED} if DISTRUSTED & {fault.kind for fault in faults} else set())
        if end.status not in may:
            raise Broken(f"{end.device} ended with {end.status}:\n{said}")
        if end.status != 0 and (end.failure is None or not end.failure["message"]):
            raise Broken(f"{end.device} ended with {end.status} and told no failure:\n{said}")

    # Faults

    async def _conduct(self, fault: Fault) -> None:
        """Wait for the moment of a fault, make it, and end it."""
        async with AsyncExitStack() as stack:
            if fault.kind is Kind.REMOVE:  # else another one might have the claim
                stack.enter_context(self._others_stand_still(fault))
            if not await self._moment(fault):
                self.tally.missed += 1
                return
            for name in self._touched(fault):
                await stack.enter_async_context(self._busy.setdefault(name, asyncio.Lock()))
            self.tally.faults[fault.kind] += 1
            await asyncio.to_thread(self.town.aim, fault)
            make = {
                Kind.KILL: self._kill,
                Kind.STOP: self._stop,
                **dict.fromkeys((Kind.CUT, Kind.DELAY, Kind.SWALLOW, Kind.DEAFEN), self._trouble),
                Kind.FILL: self._fill,
                Kind.JUMP: self._jump,
                Kind.ROLL_BACK: self._roll_back,
                Kind.REMOVE: self._remove,
                Kind.WITHHOLD: self._withhold,
                Kind.LOSE: self._lose,
            }
            has_met = await make[fault.kind](fault)
            self.tally.met[fault.kind] += has_met

    @contextmanager
    def _others_stand_still(self, fault: Fault) -> Iterator[None]:
        """The other companions of a home are stopped."""
        companions = [each for each in self.town.running if each.startswith(f"companion {fault.home}.")]
        stopped = [pid for each in companions if each != fault.target for pid in self.town.processes(each)]
        _send(stopped, signal.SIGSTOP)
        try:
            yield
        finally:
            _send(stopped, signal.SIGCONT)

    def _touched(self, fault: Fault) -> list[str]:
        """The programs that only one fault at a time may end and start, always in the same order."""
        if fault.kind is Kind.ROLL_BACK:
            return sorted([*self.town.deployment.relays, *self.town.deployment.databases])
        return [fault.target]

    async def _moment(self, fault: Fault) -> bool:
        """Wait for it; returns whether it came before the sign-ins were over."""
        looked_at, town = self._began, self.town
        while fault.moment != "begun":
            town.news.clear()
            fresh = town.heard[looked_at:]
            looked_at += len(fresh)
            if any(each.home == fault.home and each.said.get("stage") == fault.moment for each in fresh):
                break
            if self._over:
                return False
            await town.news.wait()
        return True

    def _member(self, target: str) -> str:
        """The name under which a program of the plan runs."""
        return self.town.members.get(target, target)

    # Each returns whether something has met it.

    async def _kill(self, fault: Fault) -> bool:
        running = self.town.processes(fault.target)
        if fault.target in self.town.databases:
            await asyncio.to_thread(self.town.databases[fault.target].kill)
        elif fault.target == WORKER:
            _send(running, signal.SIGKILL)  # who keeps it starts another one
            return bool(running)
        else:
            program = self.town.program(fault.target)
            if program is None:
                return False
            program.kill()
            await program.wait()
        await asyncio.sleep(fault.seconds)
        await self._back(fault.target)
        return bool(running)

    async def _back(self, target: str) -> None:
        """Start again what has ended, except for programs of one sign-in."""
        if target in self.town.databases:
            if self.town.databases[target].pid is None:
                await asyncio.to_thread(self.town.databases[target].start)
        elif target in self.town.servers:
            if self.town.servers[target][0].process.returncode is not None:
                _check_words(target, self.town.servers[target][0].said)
                await self.town.restart(target)
        elif target in self.town.running:
            program = self.town.running[target]
            if program.process.returncode is not None:
                self.town.dismiss(program)
                await self.town.attend(target)

    async def _stop(self, fault: Fault) -> bool:
        stopped = self.town.processes(fault.target)
        _send(stopped, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            _send(stopped, signal.SIGCONT)
        database = self.town.databases.get(fault.target)
        if isinstance(database, ValkeyCluster):  # a primary that stood still is a replica now
            await asyncio.to_thread(database.recover)
        return bool(stopped)

    async def _jump(self, fault: Fault) -> bool:
        database = self.town.databases.get(fault.target)
        member = self._member(fault.target)
        for ahead in (fault.amount, 0):
            if isinstance(database, Postgres | ValkeyCluster):
                await asyncio.to_thread(database.jump, ahead)
            else:
                self.town.jump(member, ahead)
            if ahead:
                await asyncio.sleep(fault.seconds)
        return database is not None or self.town.has_read_wrong_clock(member)

    async def _lose(self, fault: Fault) -> bool:
        """Kill Redis, and let it begin with nothing."""
        redis = self.town.databases["redis"]
        assert isinstance(redis, Redis)
        ran = redis.pid is not None
        await asyncio.to_thread(redis.kill)
        redis.empty()
        await asyncio.sleep(fault.seconds)
        await self._back("redis")
        return ran

    async def _trouble(self, fault: Fault) -> bool:
        junctions, party = self.town.before(fault.server), self._member(fault.target)
        trouble = Trouble()  # each link's, since it is one fault
        for junction in junctions:
            junction.troubles[party] = trouble
            match fault.kind:
                case Kind.CUT:
                    trouble.cut = True
                    junction.break_calls(party)
                case Kind.DELAY:
                    trouble.delay = fault.amount
                case Kind.SWALLOW:
                    trouble.swallows = True
                case _:
                    trouble.deaf = True
        await asyncio.sleep(fault.seconds)
        for junction in junctions:
            junction.troubles[party] = Trouble()
            junction.break_calls(party, swallowed_only=True)
        return trouble.met > 0

    async def _fill(self, fault: Fault) -> bool:
        postgres = self.town.databases.get("postgresql")
        folders = {
            "relay": self.town.relay_store.parent,
            "relying party": self.town.relying_party_store.parent,
            "postgresql": postgres.folder if isinstance(postgres, Postgres) else None,
        }
        folder = folders[fault.target]
        assert folder is not None
        servers = [fault.target] if fault.target in self.town.servers else self.town.deployment.relays
        before = {name: len(self.town.servers[name][0].said) for name in servers}
        with _filled(folder):
            await asyncio.sleep(fault.seconds)
        return any(
            FULL.search(line) for name, at in before.items() for line in self.town.servers[name][0].said[at:]
        )

    async def _roll_back(self, fault: Fault) -> bool:
        copy = self._copies[max(0, len(self._copies) - 1 - int(fault.amount))]
        relays = self.town.deployment.relays
        await asyncio.gather(*map(self._end_server, relays))
        postgres = self.town.databases.get("postgresql")
        if isinstance(postgres, Postgres):
            await self._back("postgresql")
            await asyncio.to_thread(postgres.put_back, copy)
        else:
            again = copy.with_suffix(".again")
            shutil.copy(copy, again)
            put_back(self.town.relay_store, again)
        await asyncio.gather(*map(self.town.restart, relays))
        return True

    async def _end_server(self, name: str) -> None:
        program = self.town.servers[name][0]
        if program.process.returncode is None:
            await program.stop()

    async def _remove(self, fault: Fault) -> bool:
        home, processes = self.town.homes[fault.home], self.town.processes(fault.target)
        _send(processes, signal.SIGSTOP)  # if it has the claim, it shall not be done before it is removed
        try:
            await home.remove(self._member(fault.target))
        except (HeadlessPasskeyError, AssertionError):  # the relay is not there, or the ring has changed
            return False
        else:
            # the claim is its own, since the others stand still
            return not any(
                each.who == fault.target and each.said.get("stage") == "finished" for each in self._heard()
            )
        finally:
            _send(processes, signal.SIGCONT)

    async def _withhold(self, fault: Fault) -> bool:
        await self._end_server("relay")
        honest, command = self.town.servers["relay"]
        self.town.dismiss(honest)
        at = command.index("relay")
        rogue = await self.town.run("relay", sys.executable, ROGUE, "--mode", "withhold", *command[at + 1 :])
        self.town.servers["relay"] = rogue, command
        try:
            await rogue.line()
        except ProgramFailed:  # its database was not there
            if not self.town.databases or rogue.process.returncode != ExitStatus.TRANSPORT:
                raise
        await asyncio.sleep(fault.seconds)
        await self._end_server("relay")
        _check_words("relay that withholds", rogue.said)
        await self.town.restart("relay")
        return "withheld" in rogue.stages

    # After a round

    async def _mend(self) -> None:
        """All programs run again, and nothing is wrong with links and clocks."""
        town = self.town
        for name in town.databases:
            await self._back(name)
        for name, (program, _) in [*town.servers.items()]:
            status = program.process.returncode
            if status is not None and status != KILLED:
                raise Broken(f"the {name} has ended with {status}: {program.said[-10:]}")
            _check_words(name, program.said)
            await self._back(name)
        removed = [
            each for each in town.running if each.startswith("companion") and await self._was_removed(each)
        ]
        for who, program in [*town.running.items()]:
            _check_words(who, program.said)
            if who in removed:
                status = await program.wait(timeout=PATIENCE)
                if status not in (REMOVED, KILLED):
                    raise Broken(f"{who} was removed and ended with {status}: {program.said[-10:]}")
                town.dismiss(program)
                await town.move_in(town.homes[int(who.split()[1][0])], who)
                continue
            status = program.process.returncode
            if status is not None and status != KILLED:
                raise Broken(f"{who} has ended with {status}: {program.said[-10:]}")
            await self._back(who)

    async def _was_removed(self, who: str) -> bool:
        """Whether a companion is no member any more, by what its home's first companion knows."""
        home = self.town.homes[int(who.split()[1][0])]
        member = self._member(who)
        if member == home.phone or COMPANIONS[int(who.split()[1][0])] == 1:
            return False
        head, why = await home.membership(home.phone).members()
        if why is not None:
            raise Broken(f"home {who} does not learn its ring: {why}")
        return head.member(home.identity(member).keys.name) is None

    def _heard(self) -> list[Heard]:
        """What was said in this round."""
        return self.town.heard[self._began :]

    def _check_claims(self, faults: list[Fault]) -> None:
        """A request is opened by one companion, whose phone answers it once; where a companion has not kept its claim, another one has it.

        Then the device leaves the first phone, which may have answered, for the other one's.
        """
        opened: dict[str, set[str]] = {}
        finished: Counter[tuple[str, str]] = Counter()
        for each in self._heard():
            request = each.said.get("request")
            if request and each.said.get("stage") == "opened":
                opened.setdefault(request, set()).add(each.who)
            if request and each.said.get("stage") == "finished":
                finished[request, each.who] += 1
        for (request, who), count in finished.items():
            if count > 1:
                raise Broken(f"request {request} was answered {count} times by {who}")
        for request, by in opened.items():
            if len(by) > 1 and not any(self._may_lose_claim(fault, by) for fault in faults):
                raise Broken(f"request {request} was opened by {sorted(by)}")

    def _may_lose_claim(self, fault: Fault, by: set[str]) -> bool:
        """Whether a claim may be another one's after a fault. Where relays share a database, it outlives each of them."""
        if fault.target in by or fault.kind in (Kind.ROLL_BACK, Kind.LOSE):
            return True
        if fault.target == "valkey" and fault.kind in (Kind.KILL, Kind.STOP):  # what was not replicated yet
            return True
        return fault.target == "relay" and self.town.deployment is Deployment.FILE

    def _session_ids(self) -> set[tuple[bytes, str]]:
        """The sessions that the relying party keeps, each with its user."""
        postgres = self.town.databases.get("postgresql")
        if isinstance(postgres, Postgres) and "relying party" in self.town.deployment.calls:
            return {(bytes(row[0]), row[1]) for row in query(postgres.passkeys, SESSIONS)}
        with closing(sqlite3.connect(f"file:{self.town.relying_party_store}?mode=ro", uri=True)) as store:
            return {(row[0], row[1]) for row in store.execute(SESSIONS)}

    def _check_sessions(self, before: set[tuple[bytes, str]]) -> None:
        """No user has more new sessions than its home's phones have given approvals."""
        fresh = Counter(user for _, user in self._session_ids() - before)
        approvals = Counter(each.home for each in self._heard() if each.said.get("stage") == "phone-answered")
        for number in HOMES:
            sessions = fresh.pop(user_of(number), 0)
            if sessions > approvals[number]:
                raise Broken(f"{sessions} sessions of {approvals[number]} approvals in home {number}")
        if fresh:
            raise Broken(f"sessions of users who did not sign in: {sorted(fresh)}")

    async def _check_session(self, home: Home) -> None:
        """The session that the device was given is one."""
        try:
            async with asyncio.timeout(PATIENCE):
                await Session.of(home, home.hub).get()
        except (HeadlessPasskeyError, TimeoutError) as error:
            raise Broken(f"the session of {home.hub} is lost: {error!r}") from error

    async def _must_sign_in(self, home: Home) -> None:
        """A sign-in without faults works."""
        ended = await self._ended(home, 2 * PATIENCE, 4 * PATIENCE)
        if ended.status != 0:
            raise Broken(
                f"after the faults {home.hub} does not sign in, but ends with {ended.status}: {ended.said[-12:]}"
            )
        self.tally.ends["session, after the faults"] += 1
        await self._check_session(home)

    async def _nothing_is_left(self) -> None:
        """No connection but those of programs that stay, and no file."""
        for name in self.town.junctions:
            await self._until_none(partial(self._strange_calls, name))
        await self._until_none(self._unfinished)
        for name in [*self.town.servers, *self.town.running]:
            await self._until_none(partial(self._excess, name))
        await self._until_none(self._sent)
        self._check_adverts()
        adrift = [
            each
            for each in self._all_files() - self._files
            if ADRIFT.match(Path(each).name) or Path(each).parts[0] == SCRATCH
        ]
        if (
            len(adrift) > self.tally.faults[Kind.KILL]
        ):  # a writer that is killed leaves one, until its next write
            raise Broken(f"files are left: {sorted(adrift)}")

    def _strange_calls(self, server: str) -> str:
        """The connections to a server that should not be there, for people."""
        kinds = KEEP.get(server, ())
        most = KEPT
        keepers = {self._member(who) for who in self.town.running if who.partition(" ")[0] in kinds}
        if server in KEPT_BY_PROCESS:
            keepers = {*self.town.deployment.calls, *NODES}
            most = KEPT_BY_PROCESS[server] * WORKERS
        by = Counter(call.party for call in self.town.junctions[server].calls)
        strange = [
            f"{count} by {party or 'a program that has ended'}"
            for party, count in by.items()
            if count > (most if party in keepers else 0)
        ]
        return f"connections to the {server} are left, {', '.join(strange)}" if strange else ""

    def _unfinished(self) -> str:
        """What is open in PostgreSQL and should not be, for people."""
        postgres = self.town.databases.get("postgresql")
        count = postgres.unfinished() if isinstance(postgres, Postgres) else 0
        return f"{count} transactions are open, and nobody goes on with them" if count else ""

    async def _excess(self, name: str) -> str:
        """The tasks and open files that a program has more than when nobody had met a fault, for people."""
        more = [used - self._idle[name] for used in await self.town.use(name)]
        said = [f"{count} times {what}" for each in more for what, count in each.items()]
        return f"the {name} has more than when it began: {', '.join(said)}" if said else ""

    async def _sent(self) -> str:
        """The adverts that are on the air, though nobody signs in, for people."""
        try:
            async with asyncio.timeout(PATIENCE):
                count = len(await self._ear.others())
        except (TransportError, TimeoutError) as error:
            return f"the radio does not carry an advert: {error!r}"
        return f"{count} adverts are still sent" if count else ""

    def _check_adverts(self) -> None:
        """Each phone has said that it sends an advert, and each advert is one phone's."""
        said = sum(each.said.get("stage") == "phone-advertising" for each in self.town.heard[self._deaf :])
        self.tally.adverts = len(self._ear.senders)
        if self.tally.adverts > said:
            raise Broken(f"{self.tally.adverts} adverts were sent, and phones have said so of {said}")
        if self._ear.doubled:
            raise Broken(f"{len(self._ear.doubled)} adverts were sent by several hosts each")

    async def _until_none(self, left: Callable[[], str | Awaitable[str]]) -> None:
        deadline = time.monotonic() + FORGOTTEN
        while said := await _said(left()):
            if time.monotonic() > deadline:
                raise Broken(said)
            await asyncio.sleep(0.05)

    def _all_files(self) -> frozenset[str]:
        return frozenset(
            str(each.relative_to(self.town.folder)) for each in self.town.folder.rglob("*") if each.is_file()
        )

    async def _copy_store(self) -> None:
        number = len(self._copies)
        kept = self.town.folder / "clocks" / f"relay.{number}.copy"
        postgres = self.town.databases.get("postgresql")
        if isinstance(postgres, Postgres):
            await asyncio.to_thread(postgres.copy_to, kept)
        else:
            shutil.move(copied(self.town.relay_store), kept)
        self._copies.append(kept)

    # The end

    async def _all_stops(self) -> None:
        """All ends in good order: those who call first, then the servers, which have nothing open any more."""
        town = self.town
        for who, program in town.running.items():
            status = await program.stop()
            if status not in (0, ExitStatus.INTERRUPTED):
                raise Broken(f"{who} was asked to end, and ended with {status}: {program.said[-10:]}")
        for name, born in town.at_birth.items():

            def left(name: str = name, born: int = born) -> str:
                now = town.sockets(name)
                return f"the {name} has {now} sockets open, {born} when it began" if now > born else ""

            await self._until_none(left)
        for name in town.servers:
            status = await town.servers[name][0].stop()
            if status != 0:
                raise Broken(f"the {name} was asked to end, and ended with {status}")
        left_over = processes("=".join(self.marker))
        if left_over:
            raise Broken(f"processes are left: {left_over}")


@dataclass(frozen=True, slots=True)
class _End:
    """How a sign-in ended."""

    device: str
    status: int
    said: list[str]  # by the device, in this sign-in
    failure: dict[str, Any] | None


async def _one_more(device: Program, seconds: float) -> int:
    """One sign-in of a device that stays; its status, or that of the process when it is killed."""
    stdin = device.process.stdin
    assert stdin is not None
    with suppress(ConnectionError):
        stdin.write(f"{seconds}\n".encode())
        await stdin.drain()
    try:
        ended = await device.stage("ended", timeout=10 * PATIENCE)
    except ProgramFailed:
        return await device.wait()
    if ended["tasks"]:
        raise Broken(f"{device.name} has {ended['tasks']} tasks left after its sign-in")
    return int(ended["status"])


async def _said(left: str | Awaitable[str]) -> str:
    return left if isinstance(left, str) else await left


def _check_words(who: str, said: Sequence[str]) -> None:
    """No program has met what nobody has thought of."""
    for at, line in enumerate(said):
        if FAULTY.search(line):
            raise Broken(f"the {who} says of a fault of its own: {said[at : at + 30]}")


def _send(processes: Sequence[int], number: signal.Signals) -> None:
    for each in processes:
        with suppress(ProcessLookupError):
            os.kill(each, number)


@contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """Fill a file system to its last byte, with one file."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            piece = bytes(1 << 16)
            while piece:
                try:
                    file.write(piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece = piece[: len(piece) // 2]
        yield
    finally:
        filler.unlink(missing_ok=True)
