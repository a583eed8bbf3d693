"""``python -m headless_passkey`` is ``headless-passkey``."""

import sys

from headless_passkey.command.cli import main

sys.exit(main())
