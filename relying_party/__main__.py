"""``python -m relying_party``: the same as ``relying-party``."""

import sys

from relying_party.cli import main

if __name__ == "__main__":
    sys.exit(main())
