"""A whole passkey sign-in on this machine: every party a process of its own, real TLS, emulated radio.

    make demo                                a hub joins an account, registers a passkey, signs in
    make demo DEMO=--decline                 the user says no on the phone
    make demo DEMO=--expire                  nobody answers (with a deadline of a few seconds)
    make demo DEMO=--notifications-off       the companion starts later and asks what is pending
    make demo DEMO=--race                    two companions approve at once, one wins
    make demo DEMO=--rogue-relay             the relay swaps the FIDO URL for one of its own
    make demo DEMO=--json                    events as JSON, one a line

The exit status is the device's: 0 signed in, 5 the phone said no, 7 expired, 8 refused by a trust check.
Everything is started as a user would start it; nothing of the packages is imported here.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine
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

# What a stage of the device means to an onlooker: who acts, what happens, and who holds what then.
STAGES: Final[dict[str, tuple[str, str, str]]] = {
    "prepared": ("device", "made a FIDO URL for each companion; radio on", "FIDO URL: the device alone"),
    "submitted": ("relay", "queued the request", "relay: sealed envelopes it cannot open"),
    "delivered": ("relay", "told the companion", "companion: its envelope"),
    "claimed": ("relay", "granted the claim, once", "companion: the FIDO URL, checked and approved"),
    "opened": ("relay", "heard that the phone has the FIDO URL", "phone: the FIDO URL"),
    "advert-heard": (
        "device",
        "heard the phone's advert over Bluetooth",
        "device and phone: the pre-shared key",
    ),
    "tunnel-joined": ("device", "joined the tunnel the advert names", "tunnel service: two ends, no keys"),
    "channel-open": (
        "device",
        "Noise handshake done: the phone read our URL",
        "tunnel service: ciphertext only",
    ),
    "attempt-failed": ("device", "that did not lead to the phone; listening on", "device: still waiting"),
    "request-sent": ("device", "got a challenge from the relying party, sent it", "phone: the challenge"),
    "reply-checked": ("device", "checked the phone's response", "device: the signed response"),
    "completed": (
        "relying party",
        "verified the response, opened a session",
        "device: a session bound to its key",
    ),
}


# What a companion, and the software phone in it, say of themselves.
COMPANION_STAGES: Final[dict[str, tuple[str, str]]] = {
    "arrived": ("opened its envelope, made every check, asks its user", "companion: the FIDO URL"),
    "refused": ("REFUSED the request", "nobody: what came was not the device's"),
    "claimed": ("its user approved; it holds the claim", "companion: the claim"),
    "claim-lost": ("another companion was faster; nothing was opened", ""),
    "gone": ("the request is gone", ""),
    "phone-advertising": ("phone: tunnel open, advertising over Bluetooth", "phone: the pre-shared key"),
    "phone-asked": ("phone: verifies its user", "phone: the challenge"),
    "phone-answered": ("phone: signed the challenge", "device: the signed response"),
    "declined": ("its user declined", ""),
    "failed": ("gave up", ""),
}


@dataclass
class Timeline:
    """What happened when, on the screen or as JSON lines."""

    as_json: bool
    console: Console
    waiting: str = "starting"
    title: str = ""
    took: float = 0.0  # seconds from sign_in() to session
    rows: list[tuple[float, str, str, str]] = field(default_factory=list)
    _seen: dict[str, asyncio.Event] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def chapter(self, title: str) -> None:
        """A new act: the rows so far stay on the screen."""
        self.flush()
        self.title = title
        self._began = time.monotonic()
        self._emit(event="chapter", title=title)

    def add(self, who: str, what: str, holds: str = "", **more: Any) -> None:
        elapsed = max(0.0, time.monotonic() - self._began)
        self.rows.append((elapsed, who, what, holds))
        self._emit(event="step", elapsed=round(elapsed, 4), who=who, what=what, holds=holds, **more)

    def heard(self, program: str, line: str) -> None:
        """A line from a program's stderr."""
        said = event(line)
        if said is None:
            return
        stage = str(said.get("stage"))
        if program == DEVICE and stage in STAGES:
            who, what, holds = STAGES[stage]
            self.waiting = what
            if stage == "prepared":
                self._began = time.monotonic() - said["elapsed"]  # from here on time counts from sign_in()
            self.seen(stage).set()
            if stage == "completed":
                self.took = said["elapsed"]
            self.add(who, what, holds, stage=stage)
        elif stage in COMPANION_STAGES:
            what, holds = COMPANION_STAGES[stage]
            reason = said.get("reason")
            self.add(program, f"{what}: {reason}" if reason else what, holds, stage=stage)
        elif "error" in said:
            self.add(program, said["message"], "", reason=said["reason"], status=said["status"])

    def seen(self, stage: str) -> asyncio.Event:
        """Set once a program has told of `stage`."""
        return self._seen.setdefault(stage, asyncio.Event())

    def conclude(self, status: int, session: dict[str, Any] | None) -> None:
        """The end of the story: the session, or why there is none."""
        name = None if session is None else session["user"]["name"]
        self._emit(event="end", status=status, user=name, seconds=self.took if session else None)
        self.flush()
        if self.as_json:
            return
        if session is None:
            text = f"No session: the device ended with status {status}."
        else:
            until = time.strftime("%Y-%m-%d %H:%M", time.localtime(session["ends_at"]))
            text = (
                f"{name} is signed in on the device until {until}.\n"
                f"{self.took:.3f} s from sign_in() to the session, which is bound to the device's key."
            )
        self.console.print(Panel(Text(text), border_style="green" if session else "red", expand=False))

    def flush(self) -> None:
        if self.rows and not self.as_json:
            self.console.print(self._table())
        self.rows.clear()

    def __rich__(self) -> Group:
        return Group(self._table(), Spinner("dots", text=Text(f" {self.waiting} …", style="dim")))

    def _table(self) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("s", justify="right", style="cyan", no_wrap=True)
        table.add_column("who", no_wrap=True)
        table.add_column("what happens")
        table.add_column("who holds what now")
        for elapsed, who, what, holds in self.rows:
            table.add_row(f"{elapsed:.3f}", Text(who, "bold"), Text(what), Text(holds, "green"))
        return table

    def _emit(self, **values: Any) -> None:
        if self.as_json:
            print(json.dumps(values), flush=True)


async def demo(args: argparse.Namespace, timeline: Timeline, folder: Path) -> int:
    """The whole story; the exit status of the device's last ceremony."""
    relay: tuple[str | Path, ...] = ("companion-push", "relay")
    if args.rogue_relay:
        relay = (sys.executable, Path(__file__).with_name("rogue_relay.py"))
    async with World.start(folder, on_line=timeline.heard, relay=relay) as world:
        timeline.chapter("Joining an account: keys are handed over outside the relay")
        timeline.waiting = "the programs start"
        timeline.add("relay", "waits for requests", "relay: nothing that opens anything")
        await world.found_account(PHONE)
        timeline.add(PHONE, "founded the account with a one-time code", f"{PHONE}: the ring, version 1")
        await world.invite(PHONE, "device", DEVICE)
        timeline.add("device", f"joined as {DEVICE!r} by invitation", "device: a ring that the phone signed")
        if args.race:
            await world.invite(PHONE, "companion", TABLET)
            timeline.add(TABLET, "joined as a second companion", f"{TABLET}: the same ring")
            await world.companion(TABLET, "--uv", "accept")

        if not args.rogue_relay:  # a rogue relay lets no registration through either
            timeline.chapter(
                "Registering a passkey (seconds from sign_in(); before it, from the start of this part)"
            )
            companion = await world.companion(PHONE, "--uv", "accept")
            status, account = await world.ceremony(DEVICE, "register", "--user", USER)
            if status != 0 or account is None:
                return status
            timeline.add(
                "relying party", f"registered {account['user']['name']}", "relying party: a public key"
            )
            if not args.race:
                await companion.stop()

        timeline.chapter("Signing in")
        if args.expire:
            timeline.add(PHONE, f"is switched off; the device waits {EXPIRE_AFTER} s", "")
            status, session = await world.ceremony(DEVICE, "sign-in", "--timeout", EXPIRE_AFTER)
        elif args.notifications_off:
            timeline.add(PHONE, "has notifications off: no connection is held", "")
            timeline.seen("submitted").clear()
            signing_in = asyncio.create_task(world.ceremony(DEVICE, "sign-in"))
            await timeline.seen("submitted").wait()
            timeline.add(PHONE, "is opened only now, and asks what is pending", "relay: the request, queued")
            await world.companion(PHONE, "--uv", "accept", "--pending")
            status, session = await signing_in
        else:
            if not args.race:
                await world.companion(PHONE, "--uv", "decline" if args.decline else "accept")
            timeline.add(PHONE, "holds a connection to the relay", "nobody: anything yet")
            status, session = await world.ceremony(DEVICE, "sign-in")
        timeline.conclude(status, session)
        return status


async def _until_terminated(story: Coroutine[Any, Any, int]) -> int:
    """The story; SIGTERM ends it as Ctrl-C does, and every program with it."""
    task = asyncio.ensure_future(story)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> int:
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
    story.add_argument("--rogue-relay", action="store_true", help="the relay swaps the FIDO URL")
    parser.add_argument("--json", action="store_true", help="events as JSON, one a line")
    args = parser.parse_args()
    console = Console()
    timeline = Timeline(args.json, console)
    try:
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
