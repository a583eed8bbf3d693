"""scripts/ble-test says truly how it went: with a machine emulator that is played, because booting a real one takes a while."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "ble-test"
JOB = 'job=$(printf "%s\\n" "$@" | sed -n "s/^local,id=job,path=\\([^,]*\\).*/\\1/p")'


@dataclass
class Machine:
    """A host whose programs are the test's."""

    folder: Path

    def program(self, name: str, *lines: str) -> None:
        file = self.folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(("#!/bin/sh", *lines, "")))
        file.chmod(0o755)

    def ready_kernel(self) -> None:
        cache = self.folder / "cache" / "headless-passkey" / "ble-lab"
        cache.mkdir(parents=True)
        (cache / "kernel").touch()
        (cache / "initramfs").touch()
        later = SCRIPT.stat().st_mtime + 10**8
        os.utime(cache / "initramfs", (later, later))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, "--accel", "tcg", *words],
            env=os.environ
            | {
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "XDG_CACHE_HOME": str(self.folder / "cache"),
                "TMPDIR": str(self.folder),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def guest(self, *lines: str) -> None:
        """What the emulator does; $job is the folder that the guest answers in."""
        self.program("qemu-system-x86_64", JOB, *lines)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.program(
        "uname", 'case $1 in -s) echo Linux ;; -m) echo x86_64 ;; *) exec /bin/uname "$@" ;; esac'
    )
    machine.program("apt-get", "exit 100")
    machine.program("dpkg-query", "echo install ok installed")
    machine.ready_kernel()
    return machine


def not_run(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert done.returncode == 77, done.stderr
    assert done.stdout.splitlines()[-1].startswith("not run: ")
    assert why in done.stdout


def test_on_another_processor_it_is_not_run(machine: Machine) -> None:
    machine.program("uname", "case $1 in -s) echo Linux ;; *) echo aarch64 ;; esac")
    not_run(machine.run(), "aarch64")


def test_without_the_packages_it_is_not_run(machine: Machine) -> None:
    machine.program("dpkg-query", "exit 1")
    machine.program("sudo", "exit 1")
    not_run(machine.run(), "qemu-system-x86")


def test_without_a_kernel_it_is_not_run(machine: Machine) -> None:
    (machine.folder / "cache/headless-passkey/ble-lab/kernel").unlink()
    machine.program("apt-cache", "exit 0")
    machine.program("sudo", "exit 1")
    not_run(machine.run(), "kernel")


def test_a_guest_that_does_not_start_is_not_a_run(machine: Machine) -> None:
    machine.guest("echo no such machine >&2", "exit 1")
    not_run(machine.run(), f"(no such machine); if it has before, start afresh: rm -r {machine.folder}/cache")


def test_a_guest_that_cannot_do_it_is_not_a_run(machine: Machine) -> None:
    machine.guest('echo "the kernel has none" >"$job/unable"', 'echo 77 >"$job/status"')
    not_run(machine.run(), "the kernel has none")


def test_a_guest_that_never_comes_up_is_not_a_run(machine: Machine) -> None:
    machine.guest("exec sleep 60")
    not_run(machine.run("--boot", "1"), "not come up")


@pytest.mark.parametrize("status", [0, 1, 3])
def test_the_commands_status_is_handed_on(machine: Machine, status: int) -> None:
    machine.guest('touch "$job/ready"', f'echo {status} >"$job/status"')
    done = machine.run()
    assert (done.returncode, done.stdout) == (status, "")


def test_a_guest_that_dies_is_a_failure(machine: Machine) -> None:
    machine.guest('touch "$job/ready"')
    done = machine.run()
    assert done.returncode == 125
    assert "has died" in done.stderr


def test_a_command_that_does_not_end_is_a_failure(machine: Machine) -> None:
    machine.guest('touch "$job/ready"', "exec sleep 60")
    done = machine.run("--timeout", "1")
    assert done.returncode == 124
    assert "still not done" in done.stderr


def test_when_our_own_part_of_the_guest_fails_so_does_the_run(machine: Machine) -> None:
    machine.guest('echo "the controllers have ended" >"$job/failed"', 'echo 1 >"$job/status"')
    done = machine.run()
    assert done.returncode == 1
    assert "the controllers have ended" in done.stderr


def test_nothing_is_left_behind(machine: Machine) -> None:
    machine.guest('touch "$job/ready"', 'echo 0 >"$job/status"')
    assert machine.run().returncode == 0
    assert list(machine.folder.glob("ble-test.*")) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--timeout",),
        ("--timeout", "soon"),
        ("--boot", "1.5"),
        ("--adapters", "08"),
        ("--memory", "lots"),
        ("--",),
        ("--accel", "steam"),
    ],
)
def test_words_it_does_not_know_are_refused(machine: Machine, words: tuple[str, ...]) -> None:
    done = machine.run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("ble-test: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "tests/ble"),
        (("-m", "short"), "tests/ble -m short"),
        (("tests/ble/test_scan.py", "-x"), "tests/ble/test_scan.py -x"),
        (("tests/ble/test_scan.py::test_one",), "tests/ble/test_scan.py::test_one"),
    ],
)
def test_all_bluetooth_tests_are_run_unless_some_are_named(
    machine: Machine, words: tuple[str, ...], what: str
) -> None:
    machine.guest(f'cp "$job/command" {machine.folder}', 'touch "$job/ready"', 'echo 0 >"$job/status"')
    assert machine.run(*words).returncode == 0
    command = (machine.folder / "command").read_text().splitlines()[-1]
    assert command.endswith(f"timeout=600 {what}")
