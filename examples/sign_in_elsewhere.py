r"""Sign-ins through a relay, a tunnel service and a relying party that run elsewhere.

    python examples/sign_in_elsewhere.py --relay https://push.example --relying-party https://login.example \
        --tunnel 300=wss://cable.example --code code.txt

A companion founds an account with the code of `companion-push account add`, lets a device in, and answers with the software
phone; device and phone meet over emulated Bluetooth on this machine. Each sign-in is a line of JSON on stdout. The exit
status is 0 when the passkey was registered and every sign-in ended with a session.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from certificates import Certificate
from programs import ProgramFailed, running
from world import World

DEVICE: Final = "Kitchen hub"
PHONE: Final = "Ada's phone"


async def sign_in(args: argparse.Namespace, folder: Path) -> int:
    """Found an account, register, and sign in as often as asked. Returns the exit status."""
    trusted = Certificate(args.ca, args.ca, args.ca)  # only the first is used: nothing is served here
    world = World(folder, lambda _name, _line: None, trusted, tunnel=args.tunnel)
    world.relay, world.relying_party = args.relay, args.relying_party
    async with running(world.programs):
        world.radio = f"bumble:{await world.serve('radio', 'companion-push', 'ether', tls=False)}"
        await world.join_companion(PHONE, await _code(args, world))
        await world.invite(PHONE, "device", DEVICE)
        await world.companion(PHONE)
        failed = 0
        for number in range(args.sign_ins + 1):
            ceremony = ("sign-in",) if number else ("register", "--user", args.user)
            began = time.monotonic()
            device = await world.device(DEVICE, *ceremony)
            output = await device.output()
            status = await device.wait()
            told = {
                "ceremony": ceremony[0],
                "number": number,
                "status": status,
                "seconds": round(time.monotonic() - began, 3),
                "user": json.loads(output)["user"]["name"] if output else None,
            }
            if status:
                told["failure"] = device.failure
            print(json.dumps(told), flush=True)
            failed += status != 0
    return 1 if failed else 0


async def _code(args: argparse.Namespace, world: World) -> str:
    """The account code: from a file, or made in the relay's own store, as who runs the relay does."""
    if args.store is None:
        return sys.stdin.read() if args.code == Path("-") else str(args.code.read_text(encoding="utf-8"))
    name = f"demo-{time.time_ns()}"
    command = ("companion-push", "account", "add", name, "--store", args.store, "--relay", args.relay)
    return await world.run_to_end("account system", *command)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--relay", metavar="URL", required=True)
    add("--relying-party", metavar="URL", required=True)
    add(
        "--tunnel", metavar="N=wss://HOST:PORT", required=True, help="the tunnel service, and a number for it"
    )
    add("--ca", metavar="FILE", type=Path, required=True, help="PEM file of roots to believe")
    code = parser.add_mutually_exclusive_group(required=True)
    code.add_argument("--code", metavar="FILE", type=Path, help="file with an account code, or - for stdin")
    code.add_argument("--store", metavar="PLACE", help="the relay's store, to make an account code in")
    add("--user", metavar="NAME", default=f"ada-{time.time_ns()}", help="a new user name")
    add("--sign-ins", metavar="N", type=int, default=1, help="default: 1")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(words)
    try:
        with tempfile.TemporaryDirectory(prefix="headless-passkey-demo-") as folder:
            return asyncio.run(sign_in(args, Path(folder)))
    except (ProgramFailed, OSError) as error:
        print(f"sign_in_elsewhere: {error}", file=sys.stderr)
        return 70


if __name__ == "__main__":
    sys.exit(main())
