"""Two companions claim each of many requests at two nodes at a time, on every engine: one claim stands of each.

    make races                      10^5 requests on each engine: for the night
    make races RECORD=--write       and the table comes into benchmarks/RESULTS.md

The races are `test_of_many_claims_in_a_race_over_nodes_one_stands` in `tests/relay/test_store_contract.py`, which fails where two
claims of a request stand, or none does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import core
from measure import table

COMMAND: Final = "make races"
HEADING: Final = "# Claims in a race"
HEADINGS: Final = ("engine", "requests", "claims of each", "where two stood, or none", "minutes")
TEST: Final = "tests/relay/test_store_contract.py"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--races", type=int, default=100_000, metavar="N", help="requests (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/RESULTS.md")
    parser.add_argument("words", nargs="*", help="options of pytest, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "races")
        file.touch()
        status = run(args.races, file, args.words)
        races = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    print(page(races))
    if status == 0 and args.write:
        core.put_section(HEADING, page(races))
    return status


def run(races: int, file: Path, words: list[str]) -> int:
    """Run the races; the exit status. file: gets an object for each engine on which one claim stood of each request."""
    environment = {**os.environ, "RELAY_TEST_RACES": str(races), "RELAY_TEST_RACES_FILE": str(file)}
    options = ["-v", "--timeout", "36000", "-k", "claims_in_a_race", *words]
    command = [sys.executable, "-m", "pytest", TEST, *options]
    return subprocess.run(command, cwd=core.ROOT, env=environment, check=False).returncode


def page(races: list[dict[str, Any]]) -> str:
    """The section of the results."""
    rows: list[tuple[str, ...]] = [
        (
            each["engine"],
            f"{each['requests']:,}".replace(",", " "),
            str(each["claims"]),
            "0",
            f"{each['seconds'] / 60:.1f}",
        )
        for each in sorted(races, key=lambda each: str(each["engine"]))
    ]
    return "\n".join(
        [
            HEADING,
            "",
            core.made(COMMAND),
            "",
            table(HEADINGS, rows),
            "",
            "Claims by the relay's rules over the store's contract, from two nodes with a cache each, without HTTP.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
