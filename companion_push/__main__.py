"""The program ``companion-push``, also as ``python -m companion_push``: signals are noted, then it is loaded."""

import sys

from program_parts import early_signals


def main() -> int:
    """Run the program; returns its exit status."""
    early_signals.note()
    from companion_push import cli  # noqa: PLC0415  after the line before

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
