"""Fuzz the targets: `make fuzz`, or one of them, or one input again.

    python -m tests.fuzz.run                         every target, FUZZ_SECONDS each (60)
    python -m tests.fuzz.run --total 40              every target, 40 s in all
    python -m tests.fuzz.run cbor ring               those targets
    python -m tests.fuzz.run --again cbor FILE       one input, plainly: the traceback of a finding

Each target runs in a process of its own under atheris (libFuzzer). What it learns is kept in
.fuzz/corpus/TARGET and what it finds in .fuzz/crashes/TARGET; git ignores both.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
WORK: Final = ROOT / ".fuzz"
MAX_SIZE: Final = 4096  # bytes of an input: above every bound of the parsers but two, which are only compared
ONE_INPUT: Final = 10  # seconds that one input may take; they take microseconds
GRACE: Final = 60  # seconds for starting and for the inputs kept from earlier runs


@dataclass(frozen=True)
class Outcome:
    """What came of one target."""

    name: str
    executions: int
    rate: int  # executions per second
    seconds: float  # with starting
    coverage: int  # edges of our code
    failure: str | None  # what libFuzzer and Python said, when there is a finding

    @property
    def row(self) -> str:
        verdict = "ok" if self.failure is None else "FAILED"
        return f"{self.name:28} {self.executions:>12,} {self.rate:>10,} {self.coverage:>8} {self.seconds:>8.0f}  {verdict}"


def main(words: list[str]) -> int:
    if words[:1] == ["--child"]:
        return _fuzz_here(words[1], words[2:])
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description="Fuzz the parsers.")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], metavar="TARGET", help="default: all")
    parser.add_argument(
        "--seconds", type=float, default=60, metavar="S", help="for each target (default: 60)"
    )
    parser.add_argument("--total", type=float, metavar="S", help="for all targets together, instead")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="targets at a time (default: processors)",
    )
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "FILE"), help="run one input, without fuzzing")
    parser.add_argument("--if-available", action="store_true", help="do nothing where there is no atheris")
    args = parser.parse_args(words)
    if args.again is not None:
        return _run_again(*args.again)
    if find_spec("atheris") is None:
        print("there is no atheris for this platform (x86-64 Linux, Python 3.11 to 3.14): nothing was fuzzed")
        return 0 if args.if_available else 2
    return _fuzz_all(args.targets or list(TARGETS), args)


def _fuzz_all(names: list[str], args: argparse.Namespace) -> int:
    seconds = args.seconds if args.total is None else args.total * args.jobs / len(names)
    _write_seeds()
    print(f"{'target':28} {'executions':>12} {'per second':>10} {'edges':>8} {'seconds':>8}", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = []
        for outcome in pool.map(lambda name: _fuzz(name, max(1, round(seconds))), names):
            outcomes.append(outcome)
            print(outcome.row, flush=True)
    executions = sum(outcome.executions for outcome in outcomes)
    print(f"{len(outcomes)} targets, {executions:,} executions")
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        print(f"\n{outcome.name}:\n{outcome.failure}\n{_where(outcome.name)}")
    return 1 if failed else 0


def _where(name: str) -> str:
    found = sorted((WORK / "crashes" / name).glob("*"), key=lambda file: file.stat().st_mtime)
    if not found:
        return "No input was kept: the target failed before its first one, or was killed."
    file = found[-1].relative_to(ROOT)
    return (
        f"The input is kept in {file}. To see it fail again, without the fuzzer:\n"
        f"    python -m tests.fuzz.run --again {name} {file}\n"
        "Mend the parser, or the rule in tests/fuzz/targets.py if that is wrong, and keep the input as a test."
    )


def _fuzz(name: str, seconds: int) -> Outcome:
    """Run one target in a process of its own."""
    crashes = WORK / "crashes" / name
    crashes.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "tests.fuzz.run", "--child", name),
        *(f"-max_total_time={seconds}", f"-max_len={MAX_SIZE}", f"-timeout={ONE_INPUT}"),
        *("-print_final_stats=1", "-rss_limit_mb=1024", f"-artifact_prefix={crashes}/"),
        str(WORK / "corpus" / name),
    ]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + GRACE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(name, 0, 0, time.monotonic() - began, 0, "it did not end")
    said = done.stdout + done.stderr

    def last(pattern: str) -> int:
        return int((re.findall(pattern, said) or ["0"])[-1])

    executions = last(r"stat::number_of_executed_units: (\d+)")
    failure = None
    if done.returncode != 0 or not executions:
        start = said.find("=== Uncaught Python exception")
        failure = said[start:] if start >= 0 else said[-4000:]
    return Outcome(
        name=name,
        executions=executions,
        rate=last(r"stat::average_exec_per_sec:\s+(\d+)"),
        seconds=time.monotonic() - began,
        coverage=last(r"cov: (\d+)"),
        failure=failure,
    )


def _fuzz_here(name: str, flags: list[str]) -> int:
    """In the child: libFuzzer takes the process over and does not come back."""
    import atheris

    with atheris.instrument_imports(include=["headless_passkey", "companion_push", "relying_party"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *flags], TARGETS[name])
    atheris.Fuzz()
    return 0


def _write_seeds() -> None:
    from tests.fuzz.corpus import seeds

    for name, inputs in seeds().items():
        folder = WORK / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            (folder / f"seed-{sha256(data).hexdigest()[:16]}").write_bytes(data)


def _run_again(name: str, file: str) -> int:
    from tests.fuzz.targets import TARGETS

    TARGETS[name](Path(file).read_bytes())
    print(f"{name} takes this input now")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
