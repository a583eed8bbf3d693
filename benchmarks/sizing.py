"""The plan for many accounts: what the figures of benchmarks/RESULTS.md make of it, with assumptions that are yours to change.

    python benchmarks/sizing.py
    python benchmarks/sizing.py --accounts 1e6 --sign-ins-per-day 0.2 --price-core-hour 0.06

It measures nothing. docs/how-to/sizing.md explains it, and has its table.
"""

import argparse
import math
import re
from dataclasses import dataclass
from typing import Final

from measure import table
from plots import RESULTS, Section, sections

DAY: Final = 86400.0  # seconds
_UNITS: Final = {"": 1.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "KiB": 1024.0, "MiB": 1024.0**2}

# the assumptions, with what is taken when nothing else is said
ASSUMED: Final = {
    "accounts": (1e8, "accounts, each with one companion and one device"),
    "cell": (1e6, "accounts of one cell: relays, their database, their host name"),
    "sign-ins-per-day": (1.0, "sign-ins of an account in a day"),
    "peak": (4.0, "times the mean, in the busiest minute"),
    "busy": (0.6, "part of a processor that is planned for"),
    "postgresql": (2.0, "times the relay's processor time on SQLite, on PostgreSQL, the database's own included"),
    "slower": (1.0, "times the processor time here, on the processors that you buy"),
    "wait": (30.0, "seconds that a request waits for a person, and that companion and device are connected for it"),
    "price-core-hour": (0.04, "price of a core for an hour, in any currency"),
    "price-gib-month": (0.10, "price of a GiB of database storage for a month, with its replica and backups"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is taken from the results: seconds of processor time, and bytes."""

    relay: float  # of one sign-in
    relying_party: float
    tunnel_service: float
    held: float  # of a held call under TLS
    pending: float  # of a request that waits, in Redis
    account: float  # at rest, in PostgreSQL
    tunnel: float  # that is idle, under TLS
    requests: float  # of the device in one sign-in, nearly all with a proof

    @classmethod
    def of(cls, page: str) -> "Measured":
        parts = {each.title: each for each in sections(page)}
        device = parts["What a sign-in costs the device"]
        waiting = parts["What a waiting companion costs the relay"]
        tunnels = parts["What a tunnel costs the tunnel service"]
        redis = parts["What a change of an account's state costs in Redis"]
        nodes = parts["What several relays on one database cost"]
        return cls(
            relay=_cell(device, "relay"),
            relying_party=_cell(device, "relying party"),
            tunnel_service=_cell(device, "tunnel service"),
            held=_cell(waiting, "memory for each of 500 held polls under TLS, uvloop"),
            pending=_said(redis, r"(\d+) bytes of memory"),
            account=1024 * _said(nodes, r"takes ([\d.]+) KiB of the database"),
            tunnel=_cell(tunnels, "memory of an idle tunnel under TLS, on uvloop"),
            requests=_cell(device, "request, answered at once"),
        )


def _cell(section: Section, row: str) -> float:
    """The value in the second column of a row."""
    for _, *rows in section.tables():
        for cells in rows:
            if cells[0] == row:
                number, _, unit = cells[1].partition(" ")
                return float(number) * _UNITS[unit]
    raise LookupError(f"{section.title}: there is no row {row!r}")


def _said(section: Section, pattern: str) -> float:
    found = re.search(pattern, section.body)
    if found is None:
        raise LookupError(f"{section.title}: nothing says {pattern}")
    return float(found[1])


def plan(measured: Measured, assumed: dict[str, float]) -> list[tuple[str, ...]]:
    """Rows: what, how much, and how it is reckoned."""
    peak = assumed["accounts"] * assumed["sign-ins-per-day"] / DAY * assumed["peak"]
    slower = assumed["slower"] / assumed["busy"]
    relay = measured.relay * assumed["postgresql"]
    cores = {
        "relays and their databases": peak * relay * slower,
        "relying party": peak * measured.relying_party * slower,
        "tunnel service": peak * measured.tunnel_service * slower,
    }
    cells = math.ceil(assumed["accounts"] / assumed["cell"])
    at_once = peak * assumed["wait"]
    processes = max(2, math.ceil(cores["relays and their databases"] / cells))
    hours = 1e6 / 3600 * (relay + measured.relying_party + measured.tunnel_service) * slower
    storage = assumed["accounts"] * measured.account
    return [
        ("sign-ins a second at the peak", f"{peak:.0f}", "accounts * sign-ins-per-day / 86 400 s * peak"),
        *(
            (f"cores, {name}", f"{count:.0f}", f"peak * {1e3 * cost:.1f} ms{also} * slower / busy")
            for (name, count), cost, also in zip(
                cores.items(),
                (measured.relay, measured.relying_party, measured.tunnel_service),
                (" * postgresql", "", ""),
                strict=True,
            )
        ),
        ("proofs of devices a second at the peak", f"{peak * measured.requests:.0f}", f"peak * {measured.requests:.0f} requests"),
        ("requests that wait at once", f"{at_once:.0f}", "peak * wait"),
        ("memory for these, in Redis", _size(at_once * measured.pending), f"* {measured.pending:.0f} B"),
        ("held calls of companions and devices at once", f"{2 * at_once:.0f}", "2 * peak * wait"),
        ("memory for these, in the relays, under TLS", _size(2 * at_once * measured.held), f"* {measured.held / 1024:.1f} KiB"),
        ("memory for tunnels at once, if each lasted as long", _size(at_once * measured.tunnel), f"peak * wait * {measured.tunnel / 1024:.1f} KiB"),
        ("the accounts at rest, in PostgreSQL", _size(storage), f"accounts * {measured.account / 1024:.1f} KiB"),
        ("cells", f"{cells}", "accounts / cell"),
        ("a cell: sign-ins a second at the peak", f"{peak / cells:.1f}", "peak / cells"),
        ("a cell: cores of relays and database", f"{cores['relays and their databases'] / cells:.1f}", ""),
        ("a cell: relay processes", f"{processes}", "one for each of these cores, and two at least"),
        ("a cell: connections of a relay process at once", f"{2 * at_once / cells / processes:.0f}", "held calls / cells / relay processes"),
        ("a cell: its database", _size(storage / cells), ""),
        ("core hours of a million sign-ins", f"{hours:.1f}", "10^6 / 3600 s * (relay * postgresql + relying party + tunnel service) * slower / busy"),
        ("price of a million sign-ins, processors", f"{hours * assumed['price-core-hour']:.2f}", "* price-core-hour"),
        ("price of storage, a month", f"{storage / 2**30 * assumed['price-gib-month']:.0f}", "* price-gib-month"),
    ]  # fmt: skip


def _size(size: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1024:.1f} KiB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (value, what) in ASSUMED.items():
        parser.add_argument(
            f"--{name}", type=float, default=value, metavar="N", help=f"{what}; {value:g} by default"
        )
    assumed = {name: getattr(parser.parse_args(), name.replace("-", "_")) for name in ASSUMED}
    measured = Measured.of(RESULTS.read_text(encoding="utf-8"))
    print(table(("what", "how much", "how"), plan(measured, assumed)))


if __name__ == "__main__":
    main()
