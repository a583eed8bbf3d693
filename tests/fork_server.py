"""A fork server: starts our programs as forks of a process that has loaded them.

To load its modules takes nearly all of the processor time of a program that a test starts, and tests start some thousand.
A program that comes from here has arguments, environment, descriptors and session of its own, is a child of the test's
process, and shows its arguments and environment in ``/proc`` as an executed one does. It has not loaded its modules
itself; tests of what happens meanwhile, or of what is loaded, carry `@pytest.mark.executed`.

`install` puts it below `subprocess` and `asyncio`. Everything that is not one of our programs, or is started in a way in which
Python itself would begin otherwise, is executed.
"""

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.ports import RESERVED

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = {
    "companion-push": "companion_push",
    "headless-passkey": "headless_passkey",
    "relying-party": "relying_party",
}
# what the programs load when they run
LOADED: Final = (
    *("companion_push.cli", "companion_push.relay.app", "companion_push.relay.command"),
    *("companion_push.relay.account_command", "companion_push.companion.command"),
    *("companion_push.tunnel_service.command", "companion_push.tunnel_service.app"),
    *("companion_push.emulation.ether", "companion_push.emulation.controllers"),
    *("companion_push.companion.advertiser.bumble", "headless_passkey.radio.bumble"),
    *("headless_passkey.command.cli", "headless_passkey.command.sign_in", "headless_passkey.command.joining"),
    *("headless_passkey.device", "relying_party.cli", "relying_party.serving", "uvloop"),
)
# a program with others of these than the server has is executed: Python or its libraries read them when they are loaded
AT_START: Final = ("PYTHON", "LD_", "SSL_", "OPENSSL_", "LANG", "LC_", "TZ", "MALLOC_", "COV_")
_BUT_FOR: Final = ("PYTHONUNBUFFERED",)
# room in which a program shows its own arguments and environment
_PADDING: Final = "HEADLESS_PASSKEY_TEST_PADDING"
_ROOM: Final = 64 * 1024
_CLONE: Final = {"x86_64": 56, "aarch64": 220}  # the number of the system call
_CLONE_PARENT: Final = 0x8000

executed = False  # whether the programs of the test that runs are executed


class ForkServer:
    """The process with the modules, as long as this one lives."""

    def __init__(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        RESERVED.add(str(Path("/proc/self/fd", str(ours.fileno())).readlink()))
        self._channel, self._asking = ours, threading.Lock()
        command = [sys.executable, "-m", "tests.fork_server", str(its.fileno()), "x" * _ROOM]
        # without what marks a test's programs
        self.at_start = _at_start(os.environ)
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**self.at_start, _PADDING: "x" * _ROOM},
            pass_fds=(its.fileno(),), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        its.close()
        atexit.register(self._close)

    def start(
        self,
        package: str,
        words: Sequence[str],
        *,
        shown: Sequence[str],
        environment: Mapping[str, str],
        folder: str,
        descriptors: Sequence[int],
        session: bool,
    ) -> int:
        """Start a program; return its process id. descriptors: its stdin, stdout and stderr."""
        request = {
            "package": package, "words": words, "shown": shown, "environment": environment, "folder": folder,
            "session": session,
        }  # fmt: skip
        with self._asking:
            socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
            answer = self._channel.recv(64)
        if not answer:
            raise OSError("the fork server could not start a program; see above")
        return int(answer)

    def _close(self) -> None:
        self._channel.close()
        self.process.wait()


_server: ForkServer | None = None
_lock: Final = threading.Lock()


def install() -> None:
    """From now on `subprocess` and `asyncio` start our programs here."""
    here = sys.platform == "linux" and platform.machine() in _CLONE and sys.implementation.name == "cpython"
    if not here or os.environ.get("EXECUTED"):
        return
    execute: Any = subprocess._fork_exec  # type: ignore[attr-defined]

    def start(*given: Any) -> int:
        args, _, close_fds, kept, folder, environment, stdin, _, _, stdout, _, stderr, _, errpipe = given[:14]
        _, session, group, gid, gids, uid, umask, before = given[14:22]
        plain = close_fds and kept == (errpipe,) and group == -1 and umask == -1
        package, words, shown = _program(args)
        if (
            executed
            or package is None
            or not plain
            or any(each is not None for each in (gid, gids, uid, before))
        ):
            return int(execute(*given))
        mapping = _mapping(environment)
        server = running_server()
        too_long = max(len("".join(shown)), len("".join(mapping) + "".join(mapping.values()))) > _ROOM // 4
        if too_long or _at_start(mapping) != server.at_start:
            return int(execute(*given))
        return server.start(
            package,
            words,
            shown=shown,
            environment=mapping,
            folder=os.fsdecode(folder) if folder is not None else str(Path.cwd()),
            descriptors=[own if own != -1 else number for number, own in enumerate((stdin, stdout, stderr))],
            session=session,
        )

    subprocess._fork_exec = start  # type: ignore[attr-defined]


def running_server() -> ForkServer:
    """The server of this process. It loads for a second or more, and only its first program waits for that."""
    global _server  # noqa: PLW0603  one for this process
    with _lock:
        if _server is None:
            _server = ForkServer()
        return _server


def _program(args: Sequence[Any]) -> tuple[str | None, list[str], list[str]]:
    """The package of a command, its words as `sys.argv` and as the system has them; no package: it is no program of ours."""
    words = [os.fsdecode(each) for each in args]
    path = Path(words[0])
    if path.parent == Path(sys.executable).parent and path.name in PACKAGES:
        return PACKAGES[path.name], words, [sys.executable, *words]
    if words[0] == sys.executable and words[1:2] == ["-m"] and words[2] in PACKAGES.values():
        return words[2], [str(ROOT / words[2] / "__main__.py"), *words[3:]], words
    return None, [], []


def _mapping(environment: Sequence[bytes] | None) -> dict[str, str]:
    if environment is None:
        return dict(os.environ)
    return dict(os.fsdecode(each).split("=", 1) for each in environment)


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(AT_START) and name not in _BUT_FOR
    }


def serve(channel: socket.socket) -> None:
    """Fork a program for each request; return, in the program, when its main function is to be called."""
    for module in LOADED:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork takes one thread along"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # which lies where `_show` writes
    _show([sys.executable, "-m", "tests.fork_server"], {})
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            os._exit(0)
        if _fork() == 0:
            with channel:
                try:
                    become(json.loads(message), descriptors)
                except BaseException:
                    channel.send(b"")
                    raise
                channel.send(str(os.getpid()).encode())
            return
        for each in descriptors:
            os.close(each)


def _fork() -> int:
    """`os.fork`, but the new process is a child of this one's parent, which can wait for it."""
    python, system = ctypes.pythonapi, ctypes.PyDLL(None)
    python.PyOS_BeforeFork()
    process = int(system.syscall(_CLONE[platform.machine()], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    if process == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if process < 0:
        raise OSError("no further process")
    return process


def become(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Be the program in everything that Python gets from its start."""
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    _show(request["shown"], request["environment"])
    unbuffered = bool(request["environment"].get("PYTHONUNBUFFERED"))
    sys.stdin = io.TextIOWrapper(
        open(0, "rb", closefd=False),  # noqa: SIM115  until it ends
        encoding=sys.stdin.encoding,
        errors=sys.stdin.errors,
    )
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        raw: Any = open(number, "wb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115  until it ends
        new = io.TextIOWrapper(
            raw, encoding=old.encoding, errors=old.errors, write_through=unbuffered,
            line_buffering=number == 2 or os.isatty(number),
        )  # fmt: skip
        setattr(sys, name, new)
    sys.argv = request["words"]
    program.append(request["package"])


program: Final[list[str]] = []  # the package that this process has become


def _show(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Put arguments and environment where the kernel looks for those of this process."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    places = [int(each) for each in fields[45:49]]  # arg_start, arg_end, env_start, env_end
    pairs = [f"{name}={value}" for name, value in environment.items()]
    for (start, end), texts in zip((places[:2], places[2:]), (words, pairs), strict=True):
        block = b"".join(os.fsencode(text) + b"\0" for text in texts)
        assert len(block) < end - start
        ctypes.memmove(start, block.ljust(end - start, b"\0"), end - start)


def main() -> NoReturn:
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(importlib.import_module(f"{program[0]}.__main__").main())


if __name__ == "__main__":
    main()
