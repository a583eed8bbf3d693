"""The program ``relying-party``: read the settings, listen, serve until told to end.

Every long option is also a key of a TOML file (``--config``, table ``[serve]``, ``[store.check]``, …) and an environment
variable (``RELYING_PARTY_…``); the command line wins, then the environment, then the file. A failure is one line on
stderr and an exit status, never a traceback.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tomllib
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from http_serving.addresses import Network, network
from http_serving.connections import (
    CONNECTIONS,
    CONNECTIONS_PER_ADDRESS,
    IDLE_SECONDS,
    MAX_SECONDS,
)
from program_parts import early_signals
from program_parts.command_line import (
    DISTRIBUTION,
    LOG_LINE,
    MAX_MESSAGE,
    SHELLS,
    HelpFormatter,
    JsonRecords,
    PlainLines,
    add_version,
    failure_line,
    forget_stdout,
    host_port,
)
from program_parts.log_thread import to_stderr, written_by_a_thread
from program_parts.memory import forbid_core_dumps
from program_parts.names import printable
from program_parts.secret_words import without_keys
from relying_party.core.credentials import BackupEligibility
from relying_party.core.sessions import SIGNED_TOKEN_SECONDS, Lifetimes
from relying_party.errors import ExitStatus, RelyingPartyError, UsageError
from relying_party.output import out
from relying_party.place import StorePlace, store_place

Command: TypeAlias = tuple[str, ...]  # its words
SERVE: Final[Command] = ("serve",)
DEFAULT_STORE: Final = "relying-party.sqlite"
ENVIRONMENT: Final = "RELYING_PARTY_"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = tuple(words)
    parser, settable = _parsers()
    for command in settable:
        start = len(command)
        if tuple(words[:start]) == command:
            words[start:start] = _settings(settable, command, words[start:], os.environ)
            break
    args = parser.parse_args(words)
    args.words = given  # for the workers, which read file and environment themselves
    forbid_core_dumps()
    logging.basicConfig(level=args.log_level.upper(), force=True)
    as_records = args.log_format == "json"  # then for failures too
    args.json = args.json or as_records
    logging.getLogger().handlers[0].setFormatter(JsonRecords() if as_records else PlainLines(LOG_LINE))
    logging.getLogger("fido2").setLevel(logging.WARNING)  # it names credentials at INFO
    serves = tuple(words[:1]) == SERVE
    with written_by_a_thread() if serves else contextlib.nullcontext():
        return _run(args, serves=serves)


def _run(args: argparse.Namespace, *, serves: bool) -> int:
    try:
        with asyncio.Runner() as runner:
            runner.get_loop()
            work = _work(args)
            early_signals.leave_interrupt_to_runner()  # until here signals are noted
            return runner.run(_until_terminated_or_done(work))
    except RelyingPartyError as error:
        return _fail(error.exit_status, type(error).__name__, str(error), as_json=args.json)
    except (KeyboardInterrupt, asyncio.CancelledError):
        if serves:  # told to end in the midst of its start: as when it serves
            return ExitStatus.DONE
        return _interrupted(as_json=args.json)
    except BrokenPipeError:
        # whoever read our output has gone: say nothing more, not even when the interpreter flushes stdout
        forget_stdout()
        return ExitStatus.TRANSPORT
    except Exception as error:  # noqa: BLE001  the edge of the program
        if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("relying_party"):
            message = f"this needs {error.name}: pip install '.[rp]' in the clone of {DISTRIBUTION}"
            return _fail(ExitStatus.SETUP, "SetupError", message, as_json=args.json)
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        message = f"unexpected {type(error).__name__} at {where}; please report it"
        return _fail(ExitStatus.OUR_FAULT, type(error).__name__, message, as_json=args.json)


async def _until_terminated_or_done(work: Coroutine[Any, Any, ExitStatus]) -> ExitStatus:
    """Do `work`, and cancel it at SIGTERM and SIGHUP; SIGINT is the runner's. A server has handlers of its own as soon as it begins."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, task.cancel)
    if early_signals.noted():
        task.cancel()
    return await task


def _work(args: argparse.Namespace) -> Coroutine[Any, Any, ExitStatus]:
    """Load what the command needs, and return its coroutine, of which nothing is run when a signal has come meanwhile."""
    if "shell" in args:
        return _show_completion(args.shell)
    if "action" in args:
        from relying_party.store_command import run  # noqa: PLC0415  as below

        return run(args, lambda line: _say(line, args), interrupted=lambda: _interrupted(as_json=args.json))
    from relying_party.serving import serve  # noqa: PLC0415  --help needs nothing that it is built on

    return serve(args, lambda line: _say(line, args))


async def _show_completion(shell: str) -> ExitStatus:
    from importlib.resources import files  # noqa: PLC0415  slow, and needed here alone

    script = files("relying_party").joinpath("completions", f"relying-party.{shell}").read_text("utf-8")
    out(script)
    return ExitStatus.DONE


def make_parser() -> argparse.ArgumentParser:
    """The command line; also what docs/cli.md is made from."""
    return _parsers()[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """A long option, which a TOML file and the environment can set too."""

    switch: bool  # without a value
    repeated: bool  # whether each occurrence adds a value


class _Parser(argparse.ArgumentParser):
    """An argument parser that keeps which long options it has: argparse has no public list of them (docs/adr/0014)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.settings: dict[str, _Setting] = {}  # by TOML key; before argparse adds --help
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})

    def add_argument(self, *names: Any, **how: Any) -> argparse.Action:
        action = super().add_argument(*names, **how)
        setting = _Setting(switch=action.nargs == 0, repeated=how.get("action") == "append")
        for name in action.option_strings:
            if name.startswith("--") and name not in ("--help", "--config"):
                self.settings[name.removeprefix("--")] = setting
        return action

    def error(self, message: str) -> NoReturn:
        """One line and status 2; argparse would print the whole usage first."""
        as_json = "--json" in sys.argv[1:]
        raise SystemExit(
            _fail(ExitStatus.USAGE, "UsageError", f"{without_keys(message)} (see --help)", as_json=as_json)
        )


def _parsers() -> tuple[_Parser, dict[Command, _Parser]]:
    """The program's parser, and those of the commands whose options a file and the environment can set too."""
    parser = _Parser(prog="relying-party", description="A small WebAuthn relying party.", allow_abbrev=False)
    add_version(parser)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve: _Parser = commands.add_parser(
        "serve",
        help="serve registration, sign-in and a page that shows both",
        description="Serve registration and sign-in with passkeys, and a page that shows who is there. "
        "The first line on stdout is the base URL.",
        epilog="Example:\n  relying-party serve --listen 127.0.0.1:8443 --rp-id localhost \\\n"
        "      --cert cert.pem --key key.pem\n\n"
        f"Every option can be set as {ENVIRONMENT}OPTION too.",
        allow_abbrev=False,
    )
    add, defaults = serve.add_argument, Lifetimes()
    add(
        "--listen",
        metavar="HOST:PORT",
        type=host_port,
        default=("127.0.0.1", 8443),
        help="default: 127.0.0.1:8443; port 0 takes a free one",
    )
    add(
        "--public-url",
        metavar="URL",
        help="what clients call it by; default: the first --origin, else the base URL it listens on",
    )
    add("--rp-id", metavar="ID", default="localhost", help="the domain passkeys are for; default: localhost")
    add("--rp-name", metavar="TEXT", help="shown to people; default: the RP ID")
    add(
        "--origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="where our pages are, exactly; may be given again; port 0 means the one we listen on; default: that of --public-url",
    )
    add(
        "--device-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="what devices may name as their origin; may be given again; default: as --origin",
    )
    add(
        "--store",
        metavar="PLACE",
        type=_place,
        default=Path(DEFAULT_STORE),
        help=f"a file (default: {DEFAULT_STORE}), or postgresql://[USER@]HOST/DATABASE, whose password is in PGPASSWORD or"
        " PGPASSFILE, for any number of processes and machines",
    )
    add(
        "--shared-store",
        action="store_true",
        help="several processes serve with this file, each with this option: they share used proofs in it",
    )
    add(
        "--workers",
        metavar="N",
        type=_workers,
        default=1,
        help="processes that serve together, with all limits shared out among them and metrics at a port of each from"
        " that of --metrics on; SIGUSR1 replaces them one by one; default: 1",
    )
    add(
        "--cert",
        metavar="FILE",
        type=Path,
        help="certificate chain, PEM; without it plain HTTP on loopback, or for --trusted-proxy",
    )
    add("--key", metavar="FILE", type=Path, help="its private key, PEM")
    add(
        "--trusted-proxy",
        metavar="NETWORK",
        type=_network,
        action="append",
        default=[],
        help="a proxy in front, whose X-Forwarded-For tells a client's address; may be given again",
    )
    add(
        "--connections",
        metavar="N",
        type=_positive,
        default=CONNECTIONS,
        help="connections at a time, and fewer where the system allows fewer open files; beyond them the longest"
        f" idle one of the busiest address is closed; default: {CONNECTIONS}",
    )
    add(
        "--connections-per-address",
        metavar="N",
        type=_positive,
        default=CONNECTIONS_PER_ADDRESS,
        help="of those from one address, or requests at a time of one address behind a trusted proxy;"
        f" default: {CONNECTIONS_PER_ADDRESS}",
    )
    add(
        "--idle-seconds",
        metavar="N",
        type=_day,
        default=int(IDLE_SECONDS),
        help=f"until a connection without a request is closed; default: {IDLE_SECONDS:.0f}",
    )
    add(
        "--page",
        choices=("everyone", "own"),
        help="whom the page shows: everyone (default on localhost) or only those who look at it",
    )
    add(
        "--requests-per-minute",
        metavar="N",
        type=_positive,
        default=600,
        help="from one address, and four times as many that only read; default: 600",
    )
    add(
        "--registrations-per-day",
        metavar="N",
        type=_positive,
        default=100,
        help="new accounts from one address; default: 100",
    )
    add(
        "--related-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="pages of another domain that use the same passkeys; may be given again",
    )
    add(
        "--android-app",
        metavar="CERTIFICATE",
        action="append",
        default=[],
        help="an app, by its certificate's SHA-256 fingerprint or android:apk-key-hash; may be given again",
    )
    add(
        "--top-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="a page of others that may embed ours; may be given again; default: nobody",
    )
    add("--ml-dsa", action="store_true", help="offer the ML-DSA algorithms after the others")
    add("--prf", action="store_true", help="ask passkeys for the prf extension")
    add(
        "--backup-eligibility",
        choices=[str(one) for one in BackupEligibility],
        default=BackupEligibility.FIXED,
        help="whether a passkey that could not be synced may say later that it can (may-begin), or the "
        "reverse too (may-change); default: fixed, the specification's rule",
    )
    add(
        "--resource",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="a service that takes a device's access tokens; may be given again",
    )
    add(
        "--resource-secrets",
        metavar="FILE",
        type=Path,
        help='services that ask what a token stands for: TOML lines "ORIGIN" = "SECRET", mode 0600',
    )
    add(
        "--token-key",
        metavar="FILE",
        action="append",
        default=[],
        help="make access tokens that services verify with /jwks.json, signed with the P-256 key in this PEM file,"
        " made where there is none; may be given again: the first signs",
    )
    for name, seconds, about in (
        ("cookie", defaults.cookie, "a browser's session lasts"),
        ("session", defaults.session, "a device's session lasts, however often it is refreshed"),
    ):
        add(
            f"--{name}-seconds",
            metavar="N",
            type=_seconds,
            default=seconds,
            help=f"how long {about}; default: {seconds}",
        )
    add(
        "--token-seconds",
        metavar="N",
        type=_seconds,
        help="how long a device's token lasts before it must be refreshed;"
        f" default: {defaults.token}, with --token-key {SIGNED_TOKEN_SECONDS}",
    )
    add(
        "--metrics",
        metavar="HOST:PORT",
        type=host_port,
        help="serve /metrics there, for Prometheus, over plain HTTP; without it nowhere",
    )
    add("--config", metavar="FILE", help="TOML file with these options in table [serve]")
    add("--json", action="store_true", help="failures as JSON, one object a line")
    add(
        "--log-format",
        choices=("text", "json"),
        default="text",
        metavar="FORMAT",
        help="text (default), or json: log and failures as JSON, one object a line, with time, level and fields",
    )
    add(
        "--log-level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="default: warning",
    )
    actions = _add_store(commands)
    completion = commands.add_parser(
        "completion",
        help="print the script that lets a shell complete this command line",
        description="Print the script that lets a shell complete this command line.",
        epilog="Example:\n  relying-party completion bash \\\n"
        "      > ~/.local/share/bash-completion/completions/relying-party",
        allow_abbrev=False,
    )
    completion.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    completion.set_defaults(json=False, log_level="warning", log_format="text")
    return parser, {SERVE: serve, **{("store", name): action for name, action in actions.items()}}


def _add_store(commands: Any) -> dict[str, _Parser]:
    """Add ``store`` and its commands; returns their parsers by name."""
    store = commands.add_parser("store", help="check, migrate or copy a store", allow_abbrev=False)
    actions = store.add_subparsers(metavar="COMMAND", required=True)
    check: _Parser = actions.add_parser(
        "check",
        help="check a store, and count what is in it",
        description="Check a store: whether it can be read, and whether what it acknowledges is on a disk. Prints how many rows"
        " each table has. The relying party may be running, also an older version of it.",
        epilog="Example:\n  relying-party store check \\\n      --store postgresql://passkeys@db.example/passkeys\n\n"
        f"Every option can be set as {ENVIRONMENT}STORE_CHECK_OPTION too.",
        allow_abbrev=False,
    )
    migrate: _Parser = actions.add_parser(
        "migrate",
        help="bring a store to the newest schema",
        description="Bring a store to the newest schema, as the first start of a newer version does; no relying party may be"
        " running on it. With --dry-run, print the statements that are missing, and change nothing.",
        epilog="Example:\n  relying-party store migrate --dry-run \\\n      --store postgresql://passkeys@db.example/passkeys\n\n"
        f"Every option can be set as {ENVIRONMENT}STORE_MIGRATE_OPTION too.",
        allow_abbrev=False,
    )
    migrate.add_argument("--dry-run", action="store_true", help="only print what would be done")
    copy: _Parser = actions.add_parser(
        "copy",
        help="copy a store into an empty one",
        description="Copy all of a store into an empty one, or nothing: a copy that is broken off can be begun again. No relying"
        " party may be running on either. The old store stays as it was: start none with it any more.",
        epilog="Example:\n  relying-party store copy --store relying-party.sqlite \\\n"
        "      --to postgresql://passkeys@db.example/passkeys\n\n"
        f"Every option can be set as {ENVIRONMENT}STORE_COPY_OPTION too.",
        allow_abbrev=False,
    )
    found = {"check": check, "migrate": migrate, "copy": copy}
    for action, parser in found.items():
        what = "the store to copy" if parser is copy else "the store"
        parser.add_argument(
            "--store",
            metavar="PLACE",
            type=_place,
            default=Path(DEFAULT_STORE),
            help=f"{what}: a file (default: {DEFAULT_STORE}), or postgresql://[USER@]HOST/DATABASE, whose password is in"
            " PGPASSWORD or PGPASSFILE",
        )
        parser.add_argument(
            "--config", metavar="FILE", help=f"TOML file with these options in table [store.{action}]"
        )
        parser.add_argument("--json", action="store_true", help="failures as JSON, one object a line")
        parser.set_defaults(action=action, log_level="warning", log_format="text")
    copy.add_argument("--to", metavar="PLACE", type=_place, required=True, help="an empty or new one")
    return found


def _place(text: str) -> StorePlace:
    """Read where a store is. Nothing of a text that is none is repeated: it may hold a password."""
    try:
        return store_place(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("store: ")) from error


def _network(text: str) -> Network:
    try:
        return network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("expected an address or a network, such as 10.0.0.0/8") from error


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 0 < int(text) <= 64):
        raise argparse.ArgumentTypeError("expected a number from 1 to 64")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError("expected a number from 1 to 1000000")
    return int(text)


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 400 * 86400):
        raise argparse.ArgumentTypeError("expected a number of seconds, at most 400 days")
    return int(text)


def _day(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= MAX_SECONDS):
        raise argparse.ArgumentTypeError("expected a number of seconds, at most a day")
    return int(text)


def _settings(
    settable: Mapping[Command, _Parser],
    command: Command,
    words: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """What file and environment say, in the words of the command line, less what that says itself."""
    parser = settable[command]
    said = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    found = _from_file(parser, command, words)
    for name, setting in parser.settings.items():
        value = environment.get(_environment(command) + name.replace("-", "_").upper())
        if value is not None:
            found[name] = value.split() if setting.repeated else value
    settled: list[str] = []
    for name, value in found.items():
        if name not in said:
            settled += _words(parser, name, value)
    return settled


def _environment(command: Command) -> str:
    """What the names of a command's environment variables begin with."""
    return ENVIRONMENT + "".join(f"{word.upper()}_" for word in command if command != SERVE)


def _from_file(parser: _Parser, command: Command, words: Sequence[str]) -> dict[str, Any]:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        path = finder.parse_known_args(list(words))[0].config
    except argparse.ArgumentError:
        return {}  # --config without a value: the real parser says so
    if path is None:
        return {}
    try:
        with early_signals.broken_off():  # it may be a pipe
            table: Any = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        parser.error(f"cannot read {path}: {error}")
    except KeyboardInterrupt:
        raise SystemExit(int(_interrupted(as_json="--json" in words))) from None
    for word in command:
        table = table.get(word, {}) if isinstance(table, dict) else table
    if not isinstance(table, dict):
        parser.error(f"[{'.'.join(command)}] in {path} is not a table")
    for name in table:
        if name not in parser.settings:
            parser.error(f"unknown setting {name!r} in {path}")
    return dict(table)


def _words(parser: _Parser, name: str, value: Any) -> list[str]:
    if parser.settings[name].switch:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        on = known.get(str(value).lower())
        if on is None:
            parser.error(f"setting {name!r} is neither true nor false")
        return [f"--{name}"] if on else []
    values = value if isinstance(value, list) and parser.settings[name].repeated else [value]
    if not all(isinstance(one, str | int) for one in values):
        parser.error(f"setting {name!r} is not text")
    return [f"--{name}={one}" for one in values]


def _say(message: str, args: argparse.Namespace) -> None:
    if args.log_format == "json":  # at any log level
        root = logging.getLogger()
        root.handle(root.makeRecord("relying_party", logging.INFO, "", 0, message, (), None))
        return
    line = json.dumps({"message": message}) if args.json else printable(message, MAX_MESSAGE)
    to_stderr(f"{line}\n")


def _interrupted(*, as_json: bool) -> ExitStatus:
    return _fail(ExitStatus.INTERRUPTED, "Interrupted", "interrupted", as_json=as_json)


def _fail(status: ExitStatus, kind: str, message: str, *, as_json: bool) -> ExitStatus:
    # it has no finer kinds than these classes, and no advice
    line = failure_line("relying-party", status, kind, message, as_json=as_json)
    to_stderr(f"{line}\n")
    return status
