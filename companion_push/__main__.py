"""``python -m companion_push``: the same as ``companion-push``."""

import sys

from companion_push.cli import main

if __name__ == "__main__":
    sys.exit(main())
