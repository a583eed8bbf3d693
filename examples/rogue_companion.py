"""A companion that cheats, for the demo and the tests: its phone gets the FIDO URL, and the request is not claimed.

    python examples/rogue_companion.py companion-push companion run --state …

It is the real companion without its calls that claim and report. The device must send its phone no command.
"""

import argparse
import sys
from typing import Any
from unittest.mock import patch

from companion_push.cli import main as companion_push
from companion_push.companion.inbox import CheckedRequest, Inbox, _Claim
from companion_push.companion.openers import Opener
from companion_push.companion.relay_client import CompanionRelay


async def _unclaimed(inbox: Inbox, request: CheckedRequest, opener: Opener) -> _Claim:
    """Go on as if the relay had granted the claim."""
    claim = inbox._claims[request.key] = _Claim(stays=opener.stays)  # noqa: SLF001  it is the companion that cheats
    return claim


async def _unsaid(_relay: CompanionRelay, *_arguments: Any, **_more: Any) -> None:
    """Tell the relay nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="WORD", help="companion-push, its command and options"
    )
    words = parser.parse_args().words
    with (
        patch.object(Inbox, "_claim", _unclaimed),
        patch.object(CompanionRelay, "opened", _unsaid),
        patch.object(CompanionRelay, "report", _unsaid),
        patch.object(CompanionRelay, "release", _unsaid),
    ):
        return companion_push(words[1:])


if __name__ == "__main__":
    sys.exit(main())
