"""The program ``relying-party``, also as ``python -m relying_party``: signals are noted, then it is loaded."""

import sys

from program_parts import early_signals


def main() -> int:
    """Run the program; returns its exit status."""
    early_signals.note()
    from relying_party import cli  # noqa: PLC0415  after the line before

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
