"""A whole passkey sign-in on this machine, in which every party is a process of its own.

TLS is real, the radio is emulated. There are several stories:

    make demo                            a hub joins, registers and signs in
    make demo DEMO=--decline             the user says no on the phone
    make demo DEMO=--expire              nobody answers (within some seconds)
    make demo DEMO=--notifications-off   the companion asks what is pending, later
    make demo DEMO=--race                two companions approve, one wins
    make demo DEMO=--rogue-relay         the relay swaps the FIDO URL for its own
    make demo DEMO=--unclaimed           a companion gives its URL to a phone, and does not claim
    make demo DEMO=--graphql             device and companion speak GraphQL with the relay
    make demo DEMO=--linked              the phone is linked, and the relay stopped
    make demo DEMO=--offline             without any tunnel service: device and phone speak over Bluetooth
    make demo DEMO=--json                events as JSON, one a line

The exit status is 0 when the story ended as it should: with a session or, in a
story that shows a defence, without one. Otherwise it is 1. All times are seconds
since the demo was started, by one clock, and show the order of events.

The demo starts every program as a user would start it, and imports none of the
packages.
"""

import os
import signal
import sys


def _end(_number: int, _frame: object) -> None:
    """End at Ctrl-C and SIGTERM while the modules below are loaded: no program has been started."""
    os.write(2, b"demo: interrupted\n")
    os._exit(130)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
if __name__ == "__main__":
    for each in SIGNALS:
        signal.signal(each, _end)

import argparse
import asyncio
import bisect
import json
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from programs import ProgramFailed, event
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from world import World

USER: Final = "ada"
DEVICE: Final = "Kitchen hub"
PHONE: Final = "Ada's phone"
TABLET: Final = "Ada's tablet"
EXPIRE_AFTER: Final = "4"  # seconds, in place of five minutes
UNCLAIMED_AFTER: Final = 12  # seconds: the phone is there by then, and no claim has come
SLOWEST: Final = 6  # times what the registration took: a machine with much to do has the phone there later

# The device's stages: for each, what happened and who then holds what. The phone is the companion's.
STAGES: Final[dict[str, tuple[str, str]]] = {
    "prepared": ("made FIDO URLs; listens to Bluetooth", "hub: FIDO URLs"),
    "submitted": ("sent them sealed; the relay queues", "relay: sealed bytes"),
    "delivered": ("hears that a companion has it", ""),
    "claimed": ("hears that one claim is granted", ""),
    "opened": ("hears that the phone has the URL", ""),
    "contacting": ("asks the phone that it is linked with", "hub: a link"),
    "linked": ("keeps the link that the phone gave", "hub: a link"),
    "advert-heard": ("heard the phone's Bluetooth advert", "hub: the shared key"),
    "direct-joined": ("connected to the phone over Bluetooth", "air: ciphertext"),
    "direct-failed": ("could not connect to the phone", ""),
    "tunnel-joined": ("joined the tunnel the advert names", "tunnel: two ends"),
    "channel-open": ("knows by Noise: phone read our URL", "both: channel keys"),
    "attempt-failed": ("was led nowhere; listens on", ""),
    "request-sent": ("fetched a challenge and sent it", "phone: the challenge"),
    "reply-checked": ("checked the phone's response", "hub: the response"),
    "completed": ("verified it, opened a session", "hub: a bound session"),
}

# The same, where a linked phone is asked: there is no FIDO URL.
LINKED_STAGES: Final[dict[str, tuple[str, str]]] = {
    "prepared": ("listens to Bluetooth, and makes no URL", "hub: a link"),
    "channel-open": ("knows by Noise: it is the linked phone", "both: channel keys"),
}

# The stages of a companion and of the software phone in it.
COMPANION_STAGES: Final[dict[str, tuple[str, str]]] = {
    "arrived": ("opened its envelope, checked it all", "phone: the FIDO URL"),
    "refused": ("REFUSED it", "nobody: anything"),
    "claimed": ("has the claim, for its user agreed", ""),
    "claim-lost": ("was slower, and opened nothing", ""),
    "opened": ("handed the FIDO URL to its phone", ""),
    "gone": ("the request is gone", ""),
    "phone-linked": ("lets the hub ask it again by itself", "phone: a link"),
    "phone-waiting": ("waits at its tunnel service", ""),
    "phone-advertising": ("advertises over Bluetooth", "phone: the shared key"),
    "phone-asked": ("verifies its user", ""),
    "phone-verified": ("signs the challenge", ""),
    "declined": ("its user said no", ""),
    "failed": ("gave up", ""),
}

HELD_BACK: Final = 0.3  # seconds a JSON event waits for others that happened before it and are told later


@dataclass(frozen=True)
class Step:
    """Something that happened."""

    elapsed: float  # seconds since the story began
    who: str
    what: str
    holds: str  # who holds what now
    stage: str | None = None  # the program's own name for it
    reason: str | None = None


@dataclass
class Timeline:
    """What happened when, on the screen or as JSON lines."""

    as_json: bool
    console: Console
    waiting: str = "the programs start"
    title: str = ""
    took: float = 0.0  # seconds from sign_in() to session
    steps: list[Step] = field(default_factory=list)  # of the whole story, in the order in which they happened
    _told: int = 0  # how many of these steps stay on the screen
    _seen: dict[str, asyncio.Event] = field(default_factory=dict)
    _began: float = field(default_factory=time.time)
    _held: list[dict[str, Any]] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        """Begin a new chapter; the steps so far stay on the screen."""
        self.flush()
        self.title = title
        self._emit(event="chapter", title=title)

    def add(self, who: str, what: str, holds: str = "", *, at: float | None = None, **more: Any) -> None:
        """Add a step. at: when it happened, in Unix seconds; None: now."""
        elapsed = max(0.0, (time.time() if at is None else at) - self._began)
        stage, reason = more.get("stage"), more.get("reason")
        step = Step(elapsed, who, what, holds, stage, reason)
        bisect.insort(self.steps, step, lo=self._told, key=lambda each: each.elapsed)
        self._hold(event="step", elapsed=round(elapsed, 4), who=who, what=what, holds=holds, **more)

    def heard(self, program: str, line: str) -> None:
        """Add the step that a line of a program's stderr tells of, if any."""
        said = event(line)
        if said is None:
            return
        stage, at = str(said.get("stage")), said.get("at")
        if program == DEVICE and stage in STAGES:
            linked = "links" in said or "phone" in said
            what, holds = (LINKED_STAGES if linked else STAGES).get(stage, STAGES[stage])
            self.waiting = f"{DEVICE} {what}"
            if stage == "completed":
                self.took = said["elapsed"]
            self.add("relying party" if stage == "completed" else DEVICE, what, holds, at=at, stage=stage)
            self.seen(stage).set()
        elif program != DEVICE and stage in COMPANION_STAGES:
            what, holds = COMPANION_STAGES[stage]
            reason = said.get("reason")
            if stage == "failed" and reason == "declined":  # on the phone
                what, reason = COMPANION_STAGES["declined"][0], None
            what = f"{what}: {reason}" if reason and stage in ("refused", "failed") else what
            self.add(program, what, holds, at=at, stage=stage, reason=reason)
        elif "error" in said:
            self.add(program, said["message"], reason=said["reason"], status=said["status"])

    def seen(self, stage: str) -> asyncio.Event:
        """The event that is set once the device has reported `stage`."""
        return self._seen.setdefault(stage, asyncio.Event())

    def conclude(self, ending: "Ending", status: int, session: dict[str, Any] | None) -> int:
        """Show the end of the story, and whether it is the right one. Returns the exit status."""
        right = ending.is_right(self, status, session)
        name = None if session is None else session["user"]["name"]
        text = ending.says if right else f"{ending.otherwise}\nThe device ended with status {status}."
        if session is not None:
            until = time.strftime("%Y-%m-%d %H:%M", time.localtime(session["ends_at"]))
            text += (
                f"\n{name} is signed in on {DEVICE} until {until}.\n"
                f"{self.took:.3f} s from sign_in() to the session, bound to the device's key."
            )
        self.flush()
        seconds = self.took if session else None
        self._emit(event="end", status=status, right=right, text=text, user=name, seconds=seconds)
        if not self.as_json:
            self.console.print(Panel(Text(text), border_style="green" if right else "red", expand=False))
        return 0 if right else 1

    def flush(self) -> None:
        """Show all steps so far; they stay on the screen."""
        self._release(everything=True)
        if self._told < len(self.steps) and not self.as_json:
            self.console.print(self._table())
        self._told = len(self.steps)

    def __rich__(self) -> Group:
        return Group(self._table(), Spinner("dots", text=Text(f" {self.waiting} …", style="dim")))

    def _table(self) -> Table:
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("s", justify="right", style="cyan", no_wrap=True, width=6)
        table.add_column("who", no_wrap=True, width=13)
        table.add_column("what happens", width=36)
        table.add_column("who holds what", width=21)
        for step in self.steps[self._told :]:
            who, what, holds = Text(step.who, "bold"), Text(step.what), Text(step.holds, "green")
            table.add_row(f"{step.elapsed:.3f}", who, what, holds)
        return table

    def _hold(self, **values: Any) -> None:
        """Write a JSON event later, after the events that happened before it."""
        bisect.insort(self._held, values, key=lambda each: each["elapsed"])
        asyncio.get_running_loop().call_later(HELD_BACK, self._release)

    def _release(self, *, everything: bool = False) -> None:
        ripe = time.time() - self._began - HELD_BACK
        while self._held and (everything or self._held[0]["elapsed"] <= ripe):
            self._emit(**self._held.pop(0))

    def _emit(self, **values: Any) -> None:
        if self.as_json:
            print(json.dumps(values), flush=True)


@dataclass(frozen=True)
class Ending:
    """How a story should end."""

    says: str
    otherwise: str = "This did not end as it should."
    status: int = 0  # of the device
    held: Callable[[Timeline], bool] = lambda _timeline: True  # whether a defence did its part

    def is_right(self, timeline: Timeline, status: int, session: dict[str, Any] | None) -> bool:
        return status == self.status and (session is not None) == (status == 0) and self.held(timeline)


def nothing_was_opened(timeline: Timeline) -> bool:
    """Whether the relay's forgery was refused for its signature, and nobody was asked or handed anything."""
    reasons = [step.reason for step in timeline.steps if step.stage == "refused"]
    told = {step.stage for step in timeline.steps}
    return reasons == ["bad-signature"] and not told & {
        "claimed",
        "opened",
        "phone-advertising",
        "phone-verified",
    }


def the_phone_got_no_command(timeline: Timeline) -> bool:
    """Whether a phone was there in both ceremonies, and the one without a claim got no command."""
    stages = [step.stage for step in timeline.steps if step.who == DEVICE]
    refused = [step.reason for step in timeline.steps if step.who == DEVICE and step.reason is not None]
    return (
        (stages.count("channel-open"), stages.count("request-sent")) == (2, 1)
        and stages.index("request-sent") < len(stages) - 1 - stages[::-1].index("channel-open")
        and refused == ["not-claimed"]
    )


def all_went_directly(timeline: Timeline) -> bool:
    """Whether in both ceremonies the device reached the phone over Bluetooth, and never through a tunnel."""
    stages = [step.stage for step in timeline.steps if step.who == DEVICE]
    return stages.count("direct-joined") == 2 and "tunnel-joined" not in stages


def one_phone_was_asked(timeline: Timeline) -> bool:
    """Whether in each of the two ceremonies one companion had the claim, and only its phone was asked."""
    told = [(step.stage, step.who) for step in timeline.steps if step.who in (PHONE, TABLET)]
    claimed = [who for stage, who in told if stage == "claimed"]
    return len(claimed) == 2 and claimed == [who for stage, who in told if stage == "phone-verified"]


def the_linked_phone_was_asked(timeline: Timeline) -> bool:
    """Whether the last sign-in asked the linked phone, and sent no request."""
    stages = [step.stage for step in timeline.steps if step.who == DEVICE]
    return (
        "linked" in stages
        and "contacting" in stages
        and "submitted" not in stages[stages.index("contacting") :]
    )


ENDINGS: Final = {
    "plain": Ending("A sign-in as it should be."),
    "notifications_off": Ending("A sign-in as it should be, although nobody was told of it."),
    "graphql": Ending("A sign-in as it should be, over GraphQL and a subscription."),
    "offline": Ending(
        "As it should be: there is no tunnel service, and the two spoke over Bluetooth.",
        held=all_went_directly,
    ),
    "decline": Ending("As it should be: the user said no, and there is no session.", status=5),
    "expire": Ending("As it should be: nobody answered, and the request is over.", status=7),
    "linked": Ending(
        "As it should be: the relay was stopped, no companion was there, and the hub\n"
        "asked the phone that it is linked with.",
        held=the_linked_phone_was_asked,
    ),
    "race": Ending(
        "The defence held: both companions said yes, the relay let one of them claim\n"
        "it, and that one's phone alone was asked.",
        "The defence did NOT hold: not exactly one phone was asked.",
        held=one_phone_was_asked,
    ),
    "unclaimed": Ending(
        f"The defence held: {TABLET} gave its FIDO URL to a phone and did not\n"
        "claim the request, and the hub sent that phone no command.",
        "The defence did NOT hold: a phone without a claim was asked.",
        status=8,
        held=the_phone_got_no_command,
    ),
    "rogue_relay": Ending(
        f"The defence held: the relay put a FIDO URL of its own in place of the\n"
        f"hub's, {PHONE} refused it by its signature, and nobody was asked.",
        "The defence did NOT hold: the relay's own FIDO URL was not refused.",
        status=8,
        held=nothing_was_opened,
    ),
}


async def demo(args: argparse.Namespace, timeline: Timeline, folder: Path) -> int:
    """Run the whole story. Returns the exit status."""
    transport = (sys.executable, Path(__file__).with_name("graphql_client.py")) if args.graphql else ()
    ending = ENDINGS[next((name for name in ENDINGS if getattr(args, name, False)), "plain")]
    async with World.start(folder, on_line=timeline.heard, relay=_relay(args)) as world:
        direct = ("--direct",) if args.offline else ()
        if args.offline:
            await world.stop("tunnel service")
            timeline.add("tunnel service", "does not exist here")
        timeline.chapter(f"{DEVICE} joins an account; keys are handed over outside the relay")
        timeline.add("relay", "waits for requests", "relay: no keys")
        await world.found_account(PHONE)
        timeline.add(PHONE, "founded the account with a code", "phone: ring 1")
        await world.invite(PHONE, "device", DEVICE)
        timeline.add(DEVICE, "joined by an invitation", "hub: ring 2, signed")
        if args.race or args.unclaimed:
            await world.invite(PHONE, "companion", TABLET)
            timeline.add(TABLET, "joined as a second companion", "tablet: ring 3")
        if args.race:
            await world.companion(TABLET, "--uv", "accept")

        if not args.rogue_relay:  # a rogue relay lets no registration through either
            timeline.chapter("It registers a passkey")
            companion = await world.companion(PHONE, "--uv", "accept", in_front=transport)
            begun = time.monotonic()
            status, account = await world.ceremony(
                DEVICE, "register", "--user", USER, *direct, in_front=transport
            )
            took = time.monotonic() - begun
            if status != 0 or account is None:
                return timeline.conclude(Ending("", "The registration failed."), status, None)
            timeline.add("relying party", f"registered {account['user']['name']}", "relying party: a key")
            if not args.race:
                await companion.stop()

        timeline.chapter("It signs in")
        if args.linked:
            status, session = await _linked(world, timeline)
        elif args.expire:
            timeline.add(PHONE, f"is off; the device waits {EXPIRE_AFTER} s")
            status, session = await world.ceremony(DEVICE, "sign-in", "--timeout", EXPIRE_AFTER)
        elif args.unclaimed:
            rogue = (sys.executable, Path(__file__).with_name("rogue_companion.py"))
            await world.companion(TABLET, "--uv", "accept", in_front=rogue)
            timeline.add(TABLET, "is stolen: it will not claim")
            after = max(UNCLAIMED_AFTER, round(SLOWEST * took))
            status, session = await world.ceremony(DEVICE, "sign-in", "--timeout", f"{after}")
        elif args.notifications_off:
            timeline.add(PHONE, "has notifications off")
            timeline.seen("submitted").clear()
            signing_in = asyncio.create_task(world.ceremony(DEVICE, "sign-in"))
            await timeline.seen("submitted").wait()
            timeline.add(PHONE, "is opened now, asks what is pending")
            await world.companion(PHONE, "--uv", "accept", "--pending")
            status, session = await signing_in
        else:
            if not args.race:
                uv = "decline" if args.decline else "accept"
                await world.companion(PHONE, "--uv", uv, in_front=transport)
            how = "subscribes to its inbox" if args.graphql else "holds a connection to the relay"
            timeline.add(PHONE, how)
            status, session = await world.ceremony(DEVICE, "sign-in", *direct, in_front=transport)
    return timeline.conclude(ending, status, session)


async def _linked(world: World, timeline: Timeline) -> tuple[int, dict[str, Any] | None]:
    """A sign-in that links the phone, and one without the relay."""
    companion = await world.companion(PHONE, "--uv", "accept", "--links", world.links(PHONE))
    timeline.add(PHONE, "holds a connection to the relay")
    status, session = await world.ceremony(DEVICE, "sign-in", "--link")
    await companion.stop()
    if status != 0:
        return status, session
    timeline.chapter("The relay is stopped, and it signs in once more")
    await world.stop("relay")
    timeline.add("relay", "is stopped", "relay: nothing")
    await world.linked_phone(PHONE)
    return await world.ceremony(DEVICE, "sign-in")


def _relay(args: argparse.Namespace) -> tuple[str | Path, ...]:
    if args.rogue_relay:
        return (sys.executable, Path(__file__).with_name("rogue_relay.py"))
    return ("companion-push", "relay", *(["--graphql"] if args.graphql else []))


async def _until_terminated(story: Coroutine[Any, Any, int]) -> int:
    """Run the story. SIGTERM ends it, and every program, as Ctrl-C does."""
    task = asyncio.ensure_future(story)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    story = parser.add_mutually_exclusive_group()
    story.add_argument("--decline", action="store_true", help="the user says no on the phone")
    story.add_argument("--expire", action="store_true", help="nobody answers")
    story.add_argument(
        "--notifications-off", action="store_true", help="the companion asks what is pending, later"
    )
    story.add_argument("--race", action="store_true", help="two companions approve at once")
    story.add_argument("--unclaimed", action="store_true", help="a companion does not claim the request")
    story.add_argument("--rogue-relay", action="store_true", help="the relay swaps the FIDO URL")
    story.add_argument("--offline", action="store_true", help="there is no tunnel service")
    story.add_argument("--graphql", action="store_true", help="device and companion speak GraphQL")
    story.add_argument("--linked", action="store_true", help="the phone is linked, and the relay stopped")
    parser.add_argument("--json", action="store_true", help="events as JSON, one a line")
    return parser


def main() -> int:
    args = make_parser().parse_args()
    console = Console()
    timeline = Timeline(args.json, console)
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.default_int_handler)
        with tempfile.TemporaryDirectory(prefix="headless-passkey-demo-") as folder:
            telling = _until_terminated(demo(args, timeline, Path(folder)))
            if args.json:
                return asyncio.run(telling)
            with Live(timeline, console=console, transient=True, refresh_per_second=12):
                return asyncio.run(telling)
    except ProgramFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 70
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("demo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
