"""Sign-ins through all programs while a conductor breaks what can break: `make chaos`, or one seed, or a part of its plan.

    python -m tests.chaos.run                               a seed, hundreds of sign-ins
    python -m tests.chaos.run --seed 7 --sign-ins 60        another one, fewer
    python -m tests.chaos.run --short                       about a minute
    python -m tests.chaos.run --seed 7 --faults 3,17        those faults of the plan alone
    python -m tests.chaos.run --deployment redis            two relays on PostgreSQL and Redis
    python -m tests.chaos.run --deployment valkey-cluster   and a Cluster, with the relying party on PostgreSQL

A run that fails prints its seed and the shortest part of its plan that was found to fail as well.
"""

import argparse
import asyncio
import secrets
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from programs import ProgramFailed

from headless_passkey.errors import HeadlessPasskeyError
from tests.chaos.conductor import Broken, Conductor, Tally
from tests.chaos.databases import missing
from tests.chaos.plan import COMPANIONS, Deployment, Kind, Plan, make_plan
from tests.chaos.shrink import shrink
from tests.chaos.town import Town

SEED: Final = 1
SIGN_INS: Final = 300
SHORT: Final = 16  # sign-ins
SHORT_SEED: Final = 1249  # nine kinds of faults in four rounds
PER_ROUND: Final = len(COMPANIONS) + 1  # sign-ins: each home, and one more when the faults are over
MARKER: Final = "HEADLESS_PASSKEY_CHAOS"
NOT_RUN: Final = 77  # the exit status where a deployment cannot be had here


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    tally: Tally
    broken: str | None  # what does not hold
    has_small: bool


async def run(plan: Plan, *, verbose: bool, log: Path | None = None) -> Outcome:
    """Carry a plan out in a new town."""
    marker, tally, has_small = (MARKER, secrets.token_hex(8)), Tally(), False
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, (log or Path("/dev/null")).open("w") as file:
        try:
            async with Town.found(
                Path(name),
                plan.deployment,
                marker=marker,
                on_line=lambda who, line: print(
                    f"{time.monotonic():.2f} {who}: {line}", file=file, flush=True
                ),
            ) as town:
                has_small = town.has_small

                def say(line: str) -> None:
                    print(f"{time.monotonic():.2f} {line}", file=file, flush=True)
                    if verbose:
                        print(line, flush=True)

                await Conductor(town, plan, marker, say, tally).run()
        except (Broken, ProgramFailed) as error:
            return Outcome(tally, str(error), has_small)
        except (HeadlessPasskeyError, AssertionError, OSError, sqlite3.Error) as error:
            return Outcome(tally, f"between the rounds: {error!r}", has_small)
    return Outcome(tally, None, has_small)


def report(plan: Plan, outcome: Outcome, seconds: float) -> None:
    tally = outcome.tally
    print(
        f"{tally.sign_ins} sign-ins in {len(plan.rounds)} rounds of seed {plan.seed} with {plan.deployment}, {seconds:.0f} s"
    )
    print("  ended: " + ", ".join(f"{count} {what}" for what, count in tally.ends.most_common()))
    met = (f"{tally.met[kind]} of {count} {kind}" for kind, count in tally.faults.most_common())
    print("  faults that met something: " + ", ".join(met))
    print(f"  faults whose moment did not come: {tally.missed}")
    print(f"  adverts on the air: {tally.adverts}; the latest end: {tally.latest:.1f} s after its deadline")
    if not outcome.has_small:
        print(f"  not run: {Kind.FILL}, since nobody may mount a file system here")


async def shortest(plan: Plan, failed_at: Sequence[int], seconds: float) -> Sequence[int]:
    """The fewest faults found that fail as well."""
    deadline = time.monotonic() + seconds

    async def fails(numbers: Sequence[int]) -> bool:
        print(f"  does it fail with faults {','.join(map(str, numbers))} alone? ", end="", flush=True)
        outcome = await run(plan.only(numbers), verbose=False)
        print("no" if outcome.broken is None else f"yes: {outcome.broken.splitlines()[0][:200]}", flush=True)
        return outcome.broken is not None

    return await shrink(failed_at, fails, may_try=lambda: time.monotonic() < deadline)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Sign-ins while all that can break does.")
    parser.add_argument("--seed", type=int, help=f"of the plan (default: {SEED}; with --short {SHORT_SEED})")
    parser.add_argument(
        "--sign-ins", type=int, default=SIGN_INS, metavar="N", help="about so many (default: %(default)s)"
    )
    parser.add_argument("--short", action="store_true", help=f"{SHORT} sign-ins: about a minute")
    parser.add_argument(
        "--deployment",
        choices=[each.value for each in Deployment],
        default=Deployment.FILE.value,
        help="file: one relay on SQLite (default). postgres: two relays on PostgreSQL, the second with two workers. redis: the "
        "same, with account states in Redis. valkey-cluster: with account states in six nodes of Valkey, and two workers of the "
        "relying party on PostgreSQL",
    )
    parser.add_argument("--faults", metavar="N,N", help="these faults of the plan alone")
    parser.add_argument(
        "--shrink-seconds",
        type=float,
        default=600,
        metavar="S",
        help="to look for the shortest failing part of a plan (default: %(default)s; 0: do not)",
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="gets all that the programs say")
    parser.add_argument("--plan", action="store_true", help="print the plan, and do nothing")
    args = parser.parse_args(words)
    sign_ins = SHORT if args.short else args.sign_ins
    seed = args.seed if args.seed is not None else SHORT_SEED if args.short else SEED
    deployment = Deployment(args.deployment)
    plan = make_plan(seed, -(-sign_ins // PER_ROUND), deployment)
    if args.faults:
        plan = plan.only(map(int, args.faults.split(",")))
    if args.plan:
        for each in plan.rounds:
            for number, fault in each.faults:
                print(f"round {each.number}, fault {number}: {fault}")
        return 0
    lacking = missing(deployment)
    if lacking is not None:
        print(f"not run: {lacking}")
        return NOT_RUN
    began = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # as Ctrl-C: all is undone
    outcome = asyncio.run(run(plan, verbose=True, log=args.log))
    report(plan, outcome, time.monotonic() - began)
    if outcome.broken is None:
        return 0
    print(f"\nBROKEN: {outcome.broken}\n")
    at = outcome.broken.partition(":")[0].removeprefix("round ")
    failing = plan.until(int(at)) if at.isdigit() else plan
    numbers: Sequence[int] = failing.faults
    if args.shrink_seconds > 0 and len(numbers) > 1:
        numbers = asyncio.run(shortest(plan, numbers, args.shrink_seconds))
    where = "" if deployment is Deployment.FILE else f"--deployment {deployment} "
    faults = ",".join(map(str, numbers))
    print(f'\nagain: make chaos CHAOS="{where}--seed {plan.seed} --sign-ins {sign_ins} --faults {faults}"')
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
