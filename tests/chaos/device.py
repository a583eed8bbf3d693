"""A device that stays: a program with the SDK in it, which signs in each time that a line comes.

    python tests/chaos/device.py --state DIR --rp URL --radio R --tunnel 300=wss://… --ca FILE

A line on stdin is the seconds that a sign-in may take. What the device's own program tells on stderr with ``--json``, this one tells
too; each sign-in ends with a line ``{"stage": "ended", "status": …, "tasks": …}``, the number of tasks that are left.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from headless_passkey.device import Device
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.net.tls import tls_context
from headless_passkey.stages import StageEvent


def tell(**what: object) -> None:
    print(json.dumps(what), file=sys.stderr, flush=True)


def stage(event: StageEvent) -> None:
    tell(stage=event.stage, elapsed=event.elapsed, **event.detail)


async def sign_in(device: Device, relying_party: str, seconds: float) -> int:
    """Sign in once; returns the status with which the device's own program would end."""
    try:
        await device.sign_in(relying_party, timeout=seconds, on_stage=stage)
    except HeadlessPasskeyError as error:
        status = int(error.exit_status)
        kind = type(error).__name__
        tell(error=kind, reason=error.reason, status=status, message=str(error), advice=error.advice)
        return status
    return 0


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("state", "rp", "radio", "tunnel", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.getLogger("bumble").setLevel(logging.CRITICAL)  # as the device's own program: ours is one line
    number, _, base = args.tunnel.partition("=")
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lines.feed_eof)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with Device.open(
        Path(args.state), radio=args.radio, tunnels={int(number): base}, tls=tls_context(Path(args.ca))
    ) as device:
        tell(stage="waiting")
        while line := await lines.readline():
            status = await sign_in(device, args.rp, float(line))
            tell(stage="ended", status=status, tasks=len(asyncio.all_tasks()) - 1)


if __name__ == "__main__":
    asyncio.run(main())
