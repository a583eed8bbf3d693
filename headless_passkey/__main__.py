"""The program ``headless-passkey``, also as ``python -m headless_passkey``: signals are noted, then it is loaded."""

import sys

from headless_passkey.process import early_signals


def main() -> int:
    """Run the program; returns its exit status."""
    early_signals.note()
    from headless_passkey.command import cli  # noqa: PLC0415  after the line before

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
