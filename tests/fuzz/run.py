"""Fuzz the targets: `make fuzz`, or one of them, or one input again.

    python -m tests.fuzz.run                         every target, 60 s each
    python -m tests.fuzz.run --total 40              every target, 40 s in all
    python -m tests.fuzz.run cbor ring               those targets
    python -m tests.fuzz.run --again cbor FILE       one input, plainly: the traceback of a finding

Our code is loaded once, with atheris' counters in it, and each target runs in a fork of that process under
libFuzzer, which never comes back. What a target learns is kept in .fuzz/corpus/TARGET, what it finds in
.fuzz/crashes/TARGET, what it says in .fuzz/logs/TARGET; git ignores them all.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tests.programs import PACKAGES, ROOT

WORK: Final = ROOT / ".fuzz"
MAX_SIZE: Final = 4096  # bytes of an input: above every bound of the parsers but two, which are only compared
ONE_INPUT: Final = 10  # seconds that one input may take; they take microseconds


@dataclass(frozen=True)
class Outcome:
    """What came of one target."""

    name: str
    executions: int
    rate: int  # executions per second
    edges: int  # of our code, covered
    seconds: float
    failure: str | None  # what Python or libFuzzer said, when there is a finding

    @property
    def row(self) -> str:
        verdict = "ok" if self.failure is None else "FAILED"
        return f"{self.name:28} {self.executions:>12,} {self.rate:>10,} {self.edges:>8} {self.seconds:>8.0f}  {verdict}"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Fuzz the parsers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
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
    targets = _load()
    unknown = sorted(set(args.targets) - targets.keys())
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(targets)}")
    names = args.targets or list(targets)
    seconds = args.seconds if args.total is None else args.total * args.jobs / len(names)
    return _report(_fuzz({name: targets[name] for name in names}, max(1, int(seconds)), args.jobs))


def _load() -> dict[str, Any]:
    """The targets, with counters in all of our code that they reach, and the seeds on disk."""
    import atheris

    with atheris.instrument_imports(include=[*PACKAGES]), _quiet():
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.corpus import seeds

    for name, inputs in seeds().items():
        folder = WORK / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            (folder / f"seed-{sha256(data).hexdigest()[:16]}").write_bytes(data)
    return TARGETS


def _fuzz(targets: dict[str, Any], seconds: int, jobs: int) -> Iterator[Outcome]:
    """Each target in a process of its own, `jobs` at a time; outcomes as they come."""
    waiting, running = list(targets), dict[int, tuple[str, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            running[_start(name, targets[name], seconds)] = name, time.monotonic()
        process, status = os.wait()
        name, began = running.pop(process)
        yield _outcome(name, os.waitstatus_to_exitcode(status), time.monotonic() - began)


def _start(name: str, target: Any, seconds: int) -> int:
    """The process that fuzzes `target`."""
    for folder in ("corpus", "crashes", "logs"):
        (WORK / folder / name).parent.mkdir(parents=True, exist_ok=True)
    (WORK / "crashes" / name).mkdir(exist_ok=True)
    flags = [
        *(
            f"-max_total_time={seconds}",
            f"-max_len={MAX_SIZE}",
            f"-timeout={ONE_INPUT}",
            "-rss_limit_mb=1024",
        ),
        *("-print_final_stats=1", f"-artifact_prefix={WORK}/crashes/{name}/", f"{WORK}/corpus/{name}"),
    ]
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        import atheris

        log = os.open(WORK / "logs" / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        atheris.Setup([name, *flags], target)
        atheris.Fuzz()
        os._exit(70)  # it does not come back
    return process


def _outcome(name: str, status: int, seconds: float) -> Outcome:
    said = (WORK / "logs" / name).read_text(encoding="utf-8", errors="replace")

    def last(pattern: str) -> int:
        return int((re.findall(pattern, said) or ["0"])[-1])

    executions = last(r"stat::number_of_executed_units: (\d+)")
    failure = None
    if status != 0 or executions == 0:
        start = said.find("=== Uncaught Python exception")
        failure = said[start:] if start >= 0 else said[-4000:]
    return Outcome(
        name=name,
        executions=executions,
        rate=last(r"stat::average_exec_per_sec:\s+(\d+)"),
        edges=last(r"cov: (\d+)"),
        seconds=seconds,
        failure=failure,
    )


def _report(outcomes: Iterator[Outcome]) -> int:
    print(f"{'target':28} {'executions':>12} {'per second':>10} {'edges':>8} {'seconds':>8}", flush=True)
    done = []
    for outcome in outcomes:
        done.append(outcome)
        print(outcome.row, flush=True)
    print(f"{len(done)} targets, {sum(outcome.executions for outcome in done):,} executions")
    failed = [outcome for outcome in done if outcome.failure is not None]
    for outcome in failed:
        print(f"\n{outcome.name}:\n{outcome.failure}\n{_where(outcome.name)}")
    return 1 if failed else 0


def _where(name: str) -> str:
    found = sorted((WORK / "crashes" / name).glob("*"), key=lambda file: file.stat().st_mtime)
    if not found:
        return "No input was kept: the target failed before its first one, or was killed."
    file = os.path.relpath(found[-1], ROOT)
    return (
        f"The input is kept in {file}. To see it fail again, without the fuzzer:\n"
        f"    python -m tests.fuzz.run --again {name} {file}\n"
        "Mend the parser, or the rule in tests/fuzz/targets.py if that is wrong, and keep the input as a test."
    )


def _run_again(name: str, file: str) -> int:
    from tests.fuzz.targets import TARGETS

    TARGETS[name](Path(file).read_bytes())
    print(f"{name} takes this input now")
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Without atheris' line for each module."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
