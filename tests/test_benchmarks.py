"""The benchmarks measure what they say."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import core
import device
import limited
import linked
import log
import measure
import plots
import pytest
import races
import radio
import relay
import simulated_relays
import sizing
import soak
import tunnels
import whole_sign_in
from certificates import Certificate
from measure import Row, compare, shown, table

PRIMITIVES = (
    "AESGCM.decrypt",
    "AESGCM.encrypt",
    "ECPrivateKey.exchange",
    "ECPrivateKey.public_key",
    "ECPublicKey.public_bytes",
    "HKDF.derive",
    "from_public_bytes",
    "generate_private_key",
)
DIGESTS = ("HASH.digest", "Hash.finalize")  # hashlib's, cryptography's


def primitives(function: Callable[[], object]) -> dict[str, int]:
    """The calls of `function` into cryptography, by what the interpreter sees."""
    calls: Counter[str] = Counter()

    def see(_frame: Any, event: str, called: Any) -> None:
        if event == "c_call":
            calls[getattr(called, "__qualname__", "")] += 1

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(before)
    return {name: calls[name] for name in PRIMITIVES} | {"SHA-256": sum(calls[name] for name in DIGESTS)}


@pytest.mark.parametrize("handshake", [core.kn_handshake(), core.nk_handshake()], ids=["KN", "NK"])
def test_the_calls_a_handshake_is_compared_with_are_those_it_makes(handshake: Callable[[], object]) -> None:
    assert primitives(handshake) == primitives(core.in_a_row(core.handshake_calls()))


def test_turns_give_medians_and_their_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def takes(seconds: float) -> Callable[[], None]:
        def function() -> None:
            nonlocal now
            now += seconds

        return function

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now))
    row = compare("twice", takes(0.25), "once", takes(0.125), aim=9, rounds=5)
    assert (row.seconds, row.baseline, row.ratio) == (0.25, 0.125, 2.0)


def test_a_missed_aim_shows() -> None:
    row = Row(what="this", seconds=0.2, against="that", baseline=0.1, ratio=2.0, aim=1.5)
    assert row.cells == ("this", "200 ms", "that", "100 ms", "2.00", "at most 1.5: **no**")


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.34, "12.3 s"), (0.00123, "1.23 ms"), (0.0000456, "45.6 µs"), (1e-8, "0.01 µs")]
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert shown(seconds) == text


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_importing_the_client_platform_loads_nothing_unwanted() -> None:
    _, _, unwanted = core.fresh_import(rounds=1)
    assert unwanted == []


async def test_a_whole_sign_in_is_measured() -> None:
    times = await whole_sign_in.sign_ins(2)
    assert len(times) == 2
    assert all(seconds > 0 for seconds in times)


async def test_a_whole_sign_in_over_the_direct_channel_is_measured() -> None:
    ((took, floor),) = await whole_sign_in.direct_sign_ins(lambda: None, 1)
    assert took > 0
    assert floor > 0


async def test_every_kind_of_foreign_advert_costs_more_than_its_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(radio, "TURNS", 1)
    monkeypatch.setattr(radio, "SIGNALS", 50)
    rows = await radio.costs()
    assert len(rows) == 3
    assert all(row.seconds > 0 and row.baseline for row in rows)


async def test_both_ways_to_wait_are_measured(tmp_path: Path) -> None:
    async with relay.placed(tmp_path, 2) as place:
        (pair,) = await relay.times(place, number=2, rounds=1)
    assert min(pair) > 0


async def test_the_relay_and_the_bare_server_bring_each_request_to_who_waits(tmp_path: Path) -> None:
    async with relay.placed(tmp_path, 2) as place:
        ours, theirs = await relay.submits(place, number=2, blocks=1, in_block=2)
    assert (len(ours), len(theirs)) == (2, 2)
    assert min(*ours, *theirs) > 0


async def test_every_submit_of_two_versions_at_once_is_taken(tmp_path: Path) -> None:
    async with relay.placed(tmp_path, 8) as place:
        pairs = await relay.durable_submits(place, core.ROOT, at_once=2, each=2, blocks=2)
    assert len(pairs) == 2
    assert min(min(pair) for pair in pairs) > 0


async def test_each_cost_of_a_tunnel_is_measured(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SESSIONS", "CARRIERS", "MESSAGES"):
        monkeypatch.setattr(tunnels, name, 2)
    (found,) = await tunnels.measured([tunnels.ours("asyncio")], loopback_certificate, idle=8, turns=1)
    assert found.encrypted > 8 * 1024
    assert min(*found.session, *found.message) > 0


async def test_the_cost_of_a_line_of_log_is_measured(tmp_path: Path) -> None:
    found = await log.turns(tmp_path, blocks=2, in_block=2)
    assert len(found) == 2
    assert all(turn.took > 0 and turn.processor > 0 for each in found for turn in each)
    assert len(log.rows(found)) == 6


def test_a_tunnel_service_without_another_one_beside_it_is_compared_with_none() -> None:
    found = tunnels.Found(encrypted=102400, plain=65536, session=[0.004], message=[0.00005])
    assert [line[1:] for line in tunnels.rows(["on uvloop"], [found])] == [
        ("100.0 KiB", "", "", "", ""),
        ("32.0 KiB", "", "", "", "at most 16 KiB: **no**"),
        ("4.00 ms", "", "", "", ""),
        ("50.0 µs", "", "", "", ""),
    ]


def test_a_tunnel_service_is_compared_with_the_other_one_in_turns() -> None:
    found = tunnels.Found(encrypted=102400, plain=32768, session=[0.004, 0.003], message=[0.00006, 0.00005])
    theirs = tunnels.Found(encrypted=51200, plain=32768, session=[0.002, 0.002], message=[0.00003, 0.00005])
    assert [line[1:] for line in tunnels.rows(["on uvloop", tunnels.OTHER], [found, theirs])] == [
        ("100.0 KiB", tunnels.OTHER, "50.0 KiB", "2.00", "at most 1.5: **no**"),
        ("16.0 KiB", tunnels.OTHER, "16.0 KiB", "1.00", "at most 16 KiB: yes"),
        ("3.50 ms", tunnels.OTHER, "2.00 ms", "1.75", "at most 1.5: **no**"),
        ("55.0 µs", tunnels.OTHER, "40.0 µs", "1.50", "at most 2: yes"),
    ]


def test_where_the_other_service_cannot_be_installed_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tunnels.installed() == "cargo is not installed"
    cargo = tmp_path / "cargo"
    cargo.write_text("#!/bin/sh\necho '  a network' >&2\necho '  could not connect ' >&2\nexit 101\n")
    cargo.chmod(0o755)
    assert tunnels.installed() == "cargo install ended with 101: could not connect"


def test_a_section_of_the_results_is_put_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# One\n\nfirst\n\n# Two\n\nsecond\n\n# Three\n\nthird\n")
    monkeypatch.setattr(core, "RESULTS", results)
    core.put_section("# Two", "# Two\n\nanew\n")
    core.put_section("# Four", "# Four\n\nfourth\n")
    assert results.read_text() == "# One\n\nfirst\n\n# Two\n\nanew\n\n# Three\n\nthird\n\n# Four\n\nfourth\n"


async def test_linked_sign_ins_are_compared_with_what_they_need() -> None:
    row = await linked.in_one_process(2)
    assert row.baseline is not None
    assert row.ratio is not None
    assert 0 < row.baseline < 20
    assert 0 < row.seconds < 20  # the time after which a request, which nobody answers here, has failed


def test_a_command_is_measured_until_its_end() -> None:
    seconds, peak, _ = device.process(sys.executable, "-c", "bytearray(64 << 20)")
    assert 0 < seconds < 20
    assert 64 << 20 < peak < 256 << 20


async def test_a_command_is_measured_until_its_first_request() -> None:
    seconds, peak, passed = await device.until_first_request(sys.executable, "-c", device.FIRST_REQUEST)
    assert 0 < seconds < 20
    assert 0 < passed < 60
    assert 20 << 20 < peak < 256 << 20


def test_a_row_of_memory_is_compared_too() -> None:
    rows = device.rows_of("this", "that", [(device.Used(0.2, 3 << 20, 0), device.Used(0.1, 2 << 20, 0))])
    assert rows == [
        ("this: processor time", "200 ms", "that", "100 ms", "2.00", "at most 1.15: **no**"),
        ("this: memory at its peak", "3.0 MiB", "that", "2.0 MiB", "1.50", "at most 1.15: **no**"),
    ]


def test_a_small_board_has_one_processor_and_its_command_ends_as_it_does(tmp_path: Path) -> None:
    code = "import os, sys; sys.exit(40 + len(os.sched_getaffinity(0)))"
    words = [sys.executable, limited.__file__, str(tmp_path / "used"), "--board", sys.executable, "-c", code]
    assert subprocess.run(words, check=False).returncode == 41
    assert set(json.loads((tmp_path / "used").read_text())) == {"seconds", "peak"}


def test_a_small_board_has_512_mib(tmp_path: Path) -> None:
    if limited.limits().startswith("nothing"):
        pytest.skip(limited.limits())
    words = [sys.executable, limited.__file__, str(tmp_path / "used"), "--board", sys.executable, "-c"]
    assert subprocess.run([*words, "bytearray(64 << 20)"], check=False).returncode == 0
    assert subprocess.run([*words, "bytearray(640 << 20)"], check=False).returncode != 0


PAGE = """# How fast <it> is

Made by nobody.

| what | median | against | median | ratio | aim |
| --- | --- | --- | --- | --- | --- |
| this | 2.00 ms | that | 1.00 ms | 2.00 | at most 1.5: **no** |
| `other` | 1.00 ms | that | 1.00 ms | 1.00 | at most 1.5: yes |
| alone | 1.00 ms |  |  |  |  |

| stage | at, here | at, there |
| --- | --- | --- |
| begun | 1.00 ms | 2.00 ms |
| from begin to end | 1.00 s | 2.00 s |

# Without ratios

nothing
"""


def test_each_ratio_and_each_stage_is_drawn_and_the_page_shows_the_picture() -> None:
    page, files = plots.drawn(PAGE)
    assert list(files) == ["how-fast-it-is.svg"]
    assert page.count("![") == 1
    assert page.index("![") < page.index("| what |")
    picture = ET.fromstring(files["how-fast-it-is.svg"])  # noqa: S314  made above
    bars = [each for each in picture.iter("{http://www.w3.org/2000/svg}rect") if each.get("y")]
    assert [each.get("fill") for each in bars[:2]] == [plots.MISSED, plots.MET]
    assert float(bars[0].get("width", 0)) == pytest.approx(2 * float(bars[1].get("width", 0)), abs=0.1)
    assert len(bars) == 2 + 2 + 2  # ratios, the stage on each machine, the legend
    texts = [each.text for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "How fast <it> is" in texts
    assert "other: 1.00 ms" in texts


def test_drawing_again_changes_nothing() -> None:
    once = plots.drawn(PAGE)
    assert plots.drawn(once[0]) == once


def test_a_soak_is_drawn_with_its_latencies_and_the_memory_of_each_server() -> None:
    page = (
        "# A soak\n\nMade by hand.\n\n| sign-ins | failed | median | longest |\n| --- | --- | --- | --- |\n| 60 | none | 100 ms | 2.00 s |\n\n"
        "| server | PSS the same |\n| --- | --- |\n| relay | 40.0 / 20.0 MiB |\n"
    )
    shown, files = plots.drawn(page)
    assert "![A soak: what was measured](../docs/images/numbers/a-soak.svg)\n\n| sign-ins |" in shown
    widths = [
        float(bar.get("width", ""))
        for bar in ET.fromstring(files["a-soak.svg"]).iter("{http://www.w3.org/2000/svg}rect")  # noqa: S314  made above
        if bar.get("height") == "12"
    ]
    median, longest, first, last = widths
    assert longest / median == pytest.approx(20, rel=0.01)
    assert first / last == pytest.approx(2, rel=0.01)


RESULTS_OF_A_PLAN = """# What a sign-in costs the device

| server | processor time of one sign-in | sign-ins a second for each core |
| --- | --- | --- |
| tunnel service | 5.00 ms | 200 |
| relay | 20.0 ms | 50 |
| relying party | 10.0 ms | 100 |

| what | number | each | together |
| --- | --- | --- | --- |
| request, answered at once | 12 | 320 µs | 3.83 ms |

# What a waiting companion costs the relay

| what | median | against | median | ratio | aim |
| --- | --- | --- | --- | --- | --- |
| memory for each of 500 held polls under TLS, uvloop | 64.0 KiB |  |  |  | at most 60 KiB: **no** |

# What a tunnel costs the tunnel service

| what | median | against | median | ratio | aim |
| --- | --- | --- | --- | --- | --- |
| memory of an idle tunnel under TLS, on uvloop | 128.0 KiB |  |  |  |  |

# What a change of an account's state costs in Redis

An account with one request that waits takes 2048 bytes of memory (Redis 7.0.15).

# What several relays on one database cost

An account with one companion and one device takes 4.0 KiB of the database at rest.
"""


def test_a_plan_follows_from_the_results_and_the_assumptions() -> None:
    assumed = {name: value for name, (value, _) in sizing.ASSUMED.items()}
    assumed |= {
        "accounts": 2.0**20,
        "cell": 2.0**19,
        "sign-ins-per-day": 86400 / 2**20,
        "peak": 8.0,
        "busy": 0.5,
    }
    planned = {what: much for what, much, _ in sizing.plan(sizing.Measured.of(RESULTS_OF_A_PLAN), assumed)}
    assert planned["sign-ins a second at the peak"] == "8"
    assert planned["cores, relays and their databases"] == f"{8 * 0.020 * 2 / 0.5:.0f}"
    assert planned["requests that wait at once"] == "240"
    assert planned["proofs of devices a second at the peak"] == "96"
    assert planned["a cell: relay processes"] == "2"
    assert planned["a cell: connections of a relay process at once"] == f"{2 * 240 / 2 / 2:.0f}"
    assert planned["memory for these, in Redis"] == "480.0 KiB"
    assert planned["memory for these, in the relays, under TLS"] == "30.0 MiB"
    assert planned["the accounts at rest, in PostgreSQL"] == "4.0 GiB"
    assert planned["cells"] == "2"
    assert planned["core hours of a million sign-ins"] == f"{1e6 / 3600 * 0.055 / 0.5:.1f}"


def test_a_plan_needs_all_results() -> None:
    with pytest.raises(LookupError, match="no row 'relay'"):
        sizing.Measured.of(RESULTS_OF_A_PLAN.replace("| relay |", "| relais |"))


def test_a_growth_is_the_slope_with_its_error() -> None:
    growth, error = soak.slope([(hour / 10, 50.0 + 3 * hour / 10) for hour in range(10)])
    assert growth == pytest.approx(3)
    assert error == pytest.approx(0, abs=1e-9)
    growth, error = soak.slope([(0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (3.0, 0.0)])
    assert growth - 2 * error < 0 < growth + 2 * error, "noise is no growth"


def test_a_percentile_is_a_value_that_was_measured() -> None:
    latencies = [float(number) for number in range(100, 0, -1)]
    assert [soak.percentile(latencies, part) for part in (0.5, 0.99, 0.999)] == [51.0, 100.0, 100.0]
    assert soak.percentile([7.0], 0.5) == 7.0


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "x"])
def test_a_soak_without_a_length_is_refused(minutes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["soak.py", "--minutes", minutes])
    with pytest.raises(SystemExit) as refused:
        soak.main()
    assert refused.value.code == 2


def test_a_simulation_has_as_many_submits_a_second_as_its_narrowest_part_lets_through() -> None:
    parts = simulated_relays.Parts(caller=0.0, relay=0.002, database=0.001, redis=0.0, waiting=0.004)

    def each(relays: int, devices: int, processors: int | None = None) -> float:
        return simulated_relays.seconds_each(parts, relays=relays, devices=devices, processors=processors)

    assert each(1, 1) == pytest.approx(0.007, rel=0.1)  # a device alone waits for all parts
    assert each(1, 24) == pytest.approx(0.002, rel=0.1)  # the relay is always busy
    assert each(2, 24) == pytest.approx(0.001, rel=0.1)
    assert each(2, 24, processors=2) == pytest.approx(
        0.0015, rel=0.1
    )  # and the database shares its processors


RACE: dict[str, Any] = {"engine": "SQLite 3.40.1", "requests": 100_000, "claims": 2, "seconds": 90.0}


def test_races_are_recorded_with_engine_version_and_number() -> None:
    page = races.page([RACE, RACE | {"engine": "PostgreSQL 15.18", "requests": 1000}])
    assert "Made by `make races` on " in page
    assert [line for line in page.splitlines() if "QL" in line] == [
        "| PostgreSQL 15.18 | 1 000 | 2 | 0 | 1.5 |",
        "| SQLite 3.40.1 | 100 000 | 2 | 0 | 1.5 |",
    ]


@pytest.mark.parametrize("status", [0, 1])
def test_races_that_fail_are_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    def run(number: int, file: Path, words: list[str]) -> int:
        assert (number, words) == (10, ["-q"])
        file.write_text(json.dumps(RACE) + "\n")
        return status

    results = tmp_path / "RESULTS.md"
    results.write_text("# One\n\nkept\n")
    monkeypatch.setattr(core, "RESULTS", results)
    monkeypatch.setattr(races, "run", run)
    monkeypatch.setattr(sys, "argv", ["races.py", "--races", "10", "--write", "--", "-q"])
    assert races.main() == status
    assert RACE["engine"] in capsys.readouterr().out
    assert (RACE["engine"] in results.read_text()) is (status == 0)
