"""The program ``headless-passkey``, also as ``python -m headless_passkey``: signals are noted, then it is loaded."""

import gc
import sys
from typing import Final

from program_parts import early_signals

# objects until the first collection, instead of Python's 700: what is loaded is no garbage
_YOUNG: Final = 10_000


def main() -> int:
    """Run the program; returns its exit status."""
    early_signals.note()
    gc.set_threshold(_YOUNG)
    from headless_passkey.command import cli  # noqa: PLC0415  after the line before

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
