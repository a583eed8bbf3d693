"""``relying-party``, and ``python -m relying_party``: says what to install where that is missing."""

import json
import sys


def main() -> int:
    """The program's exit status."""
    try:
        from relying_party.cli import main as run  # noqa: PLC0415  what it is built on may be missing
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("relying_party"):
            raise
        message = f"this needs {error.name}: install headless-passkey[rp]"
        failure = {"error": "MissingDependency", "reason": None, "status": 2, "message": message}
        line = json.dumps(failure) if "--json" in sys.argv[1:] else f"relying-party: {message}"
        print(line, file=sys.stderr)  # noqa: T201
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
