"""The parts that all command lines share: settings, one line for a failure, exit statuses.

Every long option is also a key of a TOML file (``--config FILE``, in a table named after the command) and
an environment variable; the command line wins, then the environment, then the file. ``run`` turns the error
tree of `headless_passkey.errors` into an exit status and one line on stderr; no error ends in a traceback.
"""

import argparse
import asyncio
import contextlib
import io
import json
import logging
import os
import re
import sys
import time
import traceback
from codecs import BOM_UTF8
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from headless_passkey.errors import (
    ExitStatus,
    HeadlessPasskeyError,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    UsageError,
)
from headless_passkey.mends import mend, setup_error, transport_error
from headless_passkey.process.private_file import cannot_write
from headless_passkey.process.signals import on_termination
from headless_passkey.process.streams import STDIN, read_some, talk
from program_parts import early_signals
from program_parts.command_line import (
    LOG_LINE,
    SHELLS,
    HelpFormatter,
    JsonRecords,
    PlainLines,
    failure_line,
    forget_stdout,
)
from program_parts.json_text import without_mark
from program_parts.log_thread import written_by_a_thread
from program_parts.memory import forbid_core_dumps
from program_parts.names import name_of
from program_parts.secret_words import looks_secret, without_keys

MAX_SECRET_LINE: Final = 16384  # bytes, by default
_VALUE: Final = re.compile(r"-(?!-)|--[\w-]*[A-Z0-9_]", re.ASCII)  # and no option
_OURS: Final = ("headless_passkey", "companion_push")

logger = logging.getLogger(__name__)


class _Setting(NamedTuple):
    """A long option, which a TOML file and the environment can set too."""

    action: argparse.Action
    repeated: bool  # whether each occurrence adds a value
    said_only: Container[object]  # values that only the command line can give


class Options(Protocol):
    """What options are added to: a `SettingsParser`, or a titled group of one."""

    def add_argument(self, *names: str, **how: Any) -> argparse.Action: ...


class _Words(argparse.ArgumentParser):
    """An argument parser that takes a base64url value which begins with a hyphen, as one of 64 identifiers does.

    Options have long names, of lower-case letters and hyphens, and there is ``-h``. Another word that begins with one hyphen,
    or has two and a character that no option's name has, is a value, wherever it stands.
    """

    def _parse_optional(self, arg_string: str) -> Any:
        # argparse asks here whether a word is an option; it has no public place for that
        is_option = arg_string.partition("=")[0] in self._option_string_actions
        return super()._parse_optional(arg_string) if is_option or not _VALUE.match(arg_string) else None


class SettingsParser(_Words):
    """An argument parser whose defaults may come from a TOML file and the environment (docs/adr/0014).

    It keeps the actions that `add_argument` returns. argparse has no public list of them.
    """

    section: str | None = None  # the TOML table, dotted
    environment: str | None = None  # the prefix of the variables, without the underscore that follows
    shares: bool = False  # whether the table is another program's too, whose settings are passed over

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.settings: dict[str, _Setting] = {}  # by TOML key; before argparse adds --help
        super().__init__(
            *args, **{"allow_abbrev": False, "formatter_class": HelpFormatter, **kwargs}
        )  # --config is looked for in full
        # values of file or environment for repeatable options; as a default, the command line would append to them
        self._repeated: dict[argparse.Action, list[Any]] = {}

    def add_argument(self, *names: Any, said_only: Container[object] = (), **how: Any) -> argparse.Action:
        """Add an option. said_only: values that file and environment cannot give: what gives up a question to a person."""
        return self._keep(super().add_argument(*names, **how), how, said_only)

    def titled_group(self, title: str) -> Options:
        """Make a group with a title in the help, whose options are settings too."""
        return _Group(self, self.add_argument_group(title))

    def exclusive_group(self) -> Options:
        """Make a group of which the command line gives one option at most; they are settings too."""
        return _Group(self, self.add_mutually_exclusive_group())

    def _keep(
        self, action: argparse.Action, how: Mapping[str, Any], said_only: Container[object] = ()
    ) -> argparse.Action:
        long = [name[2:] for name in action.option_strings if name.startswith("--")]
        if long and long[0] not in ("help", "config"):
            self.settings[long[0]] = _Setting(
                action=action, repeated=how.get("action") == "append", said_only=said_only
            )
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.section is not None and self.environment is not None:
            words = list(sys.argv[1:] if args is None else args)
            self._apply(_from_file(self, words, self.section), f"[{self.section}]")
            self._apply(_from_environment(self.settings, self.environment), "the environment")
        namespace, rest = super().parse_known_args(args, namespace)
        for action, values in self._repeated.items():
            if getattr(namespace, action.dest) is action.default:  # not on the command line
                setattr(namespace, action.dest, list(values))
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """End with one line and status 2, without argparse's usage text."""
        status = fail(
            ExitStatus.USAGE,
            "UsageError",
            None,
            f"{without_keys(message)} (see --help)",
            as_json="--json" in sys.argv[1:],
        )
        raise SystemExit(int(status))

    def _apply(self, values: dict[str, Any], where: str) -> None:
        for key, value in values.items():
            setting = self.settings.get(key)
            if setting is None:
                if self.shares:
                    continue
                self.error(f"unknown setting {key!r} in {where}")
            action, called = setting.action, f"{key} in {where}"
            action.required = False
            if setting.repeated:
                words = (
                    value.split() if isinstance(value, str) else value if isinstance(value, list) else [value]
                )
                self._repeated[action] = [self._converted(action, word, called) for word in words]
            else:
                converted = self._converted(action, value, called)
                if converted in setting.said_only:
                    self.error(
                        f"{called}: --{key} is for the command line only where it answers for a person"
                    )
                action.default = converted

    def _converted(self, action: argparse.Action, value: Any, called: str) -> Any:
        if action.nargs == 0:  # a switch
            if isinstance(value, bool):
                return value
            if str(value).lower() in ("1", "true", "yes", "0", "false", "no"):
                return str(value).lower() in ("1", "true", "yes")
            self.error(f"{called} is neither true nor false")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.error(f"{called} is neither text nor a number")
        try:
            converted = action.type(str(value)) if callable(action.type) else str(value)
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            self.error(f"{called}: {error}")
        if action.choices is not None and converted not in action.choices:
            self.error(f"{called}: choose from {', '.join(map(str, action.choices))}")
        return converted


class _Group:
    """A group of a parser's options."""

    def __init__(self, parser: SettingsParser, group: Options) -> None:
        self._parser, self._group = parser, group

    def add_argument(self, *names: str, said_only: Container[object] = (), **how: Any) -> argparse.Action:
        return self._parser._keep(self._group.add_argument(*names, **how), how, said_only)  # noqa: SLF001  both are of this module


def add_settings(
    parser: argparse.ArgumentParser, *, section: str, environment: str, shares: bool = False
) -> None:
    """Add --config, --json and --log-level, and let file and environment supply the other options.

    section: the TOML table, dotted. environment: the prefix of the variables, such as HEADLESS_PASSKEY. shares: both are
    those of another program, whose other settings are passed over.
    """
    if not isinstance(parser, SettingsParser):
        raise TypeError("settings need a SettingsParser")
    parser.section, parser.environment, parser.shares = section, environment, shares
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with these options in table [{section}]")
    parser.add_argument(
        "--json", action="store_true", help="failures and progress as JSON, one object a line"
    )
    parser.add_argument(
        "--log-level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        metavar="LEVEL",
        help="debug, info, warning (default) or error",
    )
    parser.epilog = (
        (parser.epilog or "") + f"\n\nEvery option can be set as {environment}_OPTION too."
    ).strip()


def example(*lines: str) -> str:
    """Make the part of an epilog that shows an example."""
    return "\n  ".join(("Example:", *lines))


def add_completion(commands: Any, *, package: str, program: str) -> argparse.ArgumentParser:
    """Add ``completion SHELL``: it prints the script with which a shell completes the words of `program`.

    commands: what `add_subparsers` returned. package: the one whose folder ``completions`` holds the scripts.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        "completion",
        help="print the script that lets a shell complete this command line",
        description="Print the script that lets a shell complete this command line.",
        epilog=example(
            f"{program} completion bash \\",
            f"    > ~/.local/share/bash-completion/completions/{program}",
        ),
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")

    async def show(args: argparse.Namespace) -> None:
        from importlib.resources import files  # noqa: PLC0415  slow, and needed here alone

        out(files(package).joinpath("completions", f"{program}.{args.shell}").read_text("utf-8").rstrip("\n"))

    parser.set_defaults(main=show, command=show, json=False, log_level="warning")
    return parser


def missing(error: ModuleNotFoundError, extra: str) -> SetupError | None:
    """The error for a package of `extra` that `error` says is not installed; None when it is our own module."""
    name = (error.name or "").partition(".")[0]
    if name in _OURS:
        return None
    return setup_error(f"this needs {name}", SetupReason.MISSING_PACKAGE, extra=extra)


def run(
    main: Callable[[argparse.Namespace], Coroutine[Any, Any, None]],
    args: argparse.Namespace,
    *,
    extra: str = "device",
) -> int:
    """Run what `main(args)` returns; returns the exit status. A failure is one line on stderr.

    main: loads what the command needs, and returns its coroutine, of which nothing is run when a signal has come meanwhile.
    extra: of the distribution, with the dependencies of `main`. A command that waits until it is told to end has set
    `args.waits`, which says of `args` whether this call does: a signal is then a good end, also in the midst of its start.
    """
    forbid_core_dumps()
    _replace_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # as on stderr, for names that the locale cannot encode
    logging.basicConfig(level=args.log_level.upper(), force=True)
    as_records = getattr(args, "log_format", "text") == "json"  # of the servers, then for failures too
    args.json = args.json or as_records
    formatter = JsonRecords() if as_records else _JsonLines() if args.json else PlainLines(LOG_LINE)
    logging.getLogger().handlers[0].setFormatter(formatter)
    if args.log_level in ("warning", "error"):
        # bumble logs failures with tracebacks; ours is one line
        logging.getLogger("bumble").setLevel(logging.CRITICAL)
    with written_by_a_thread() if _serves(args) else contextlib.nullcontext():
        return _run(main, args, extra=extra)


def _serves(args: argparse.Namespace) -> bool:
    """Whether this is a server, or waits for others: who reads its stderr, or stops its terminal, must keep nobody waiting."""
    return "log_format" in args or ("waits" in args and bool(args.waits(args)))


def _run(
    main: Callable[[argparse.Namespace], Coroutine[Any, Any, None]], args: argparse.Namespace, *, extra: str
) -> int:
    try:
        choose = getattr(args, "choose_loop", None)  # of the servers
        with asyncio.Runner(loop_factory=None if choose is None else choose(args)) as runner:
            runner.get_loop()
            work = main(args)
            early_signals.leave_interrupt_to_runner()  # until here signals are noted
            runner.run(_until_terminated_or_done(work))
    except HeadlessPasskeyError as error:
        return told(error, as_json=args.json)
    except (KeyboardInterrupt, asyncio.CancelledError):
        # who waits for this end need not have begun to
        good = "waits" in args and args.waits(args)
        return ExitStatus.DONE if good else _interrupted(as_json=args.json)
    except BrokenPipeError:
        forget_stdout()  # the reader of stdout is gone
        return ExitStatus.TRANSPORT
    except Exception as error:  # noqa: BLE001  the edge of the program
        if isinstance(error, ModuleNotFoundError) and (what := missing(error, extra)):
            return told(what, as_json=args.json)
        # type and place only: a foreign exception's message may hold anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}; please report it"
        return fail(ExitStatus.OUR_FAULT, type(error).__name__, None, message, as_json=args.json)
    return ExitStatus.DONE


def _interrupted(*, as_json: bool) -> ExitStatus:
    return fail(ExitStatus.INTERRUPTED, "Interrupted", None, "interrupted", as_json=as_json)


def told(error: HeadlessPasskeyError, *, as_json: bool) -> ExitStatus:
    """Say on stderr, in one line, what went wrong and what to do about it; returns the error's exit status."""
    return fail(
        error.exit_status,
        type(error).__name__,
        error.reason,
        str(error),
        advice=error.advice or (_retry(error) if isinstance(error, TransportError) else None),
        as_json=as_json,
    )


def _retry(error: TransportError) -> str:
    """Say what to do about what failed on the way, where whoever raised it said nothing."""
    return mend(error.reason) or "try again"


def fail(
    status: ExitStatus,
    kind: str,
    reason: str | None,
    message: str,
    *,
    advice: str | None = None,
    as_json: bool,
) -> ExitStatus:
    """Say on stderr, in one line, what went wrong; returns `status`. advice: what to do about it."""
    line = failure_line(_program(), status, kind, message, reason=reason, advice=advice, as_json=as_json)
    talk(line)
    return status


def _program() -> str:
    """The program's name; for ``python -m package`` that of the package."""
    path = Path(sys.argv[0])
    return path.parent.name.replace("_", "-") if path.name == "__main__.py" else path.name


def progress(**details: object) -> str:
    """Encode an event as JSON: its time (`at`, Unix seconds) and `details`."""
    return json.dumps({**details, "at": round(time.time(), 4)})


def say(args: argparse.Namespace, text: str, **details: object) -> None:
    """Print a line on stderr: text for people, or with --json an object of `details` for programs."""
    talk(progress(**details) if args.json else text)


def show_progress(message: str) -> None:
    """Print a line on stderr only if that is a terminal: pipes and journals get failures only."""
    if sys.stderr is not None and sys.stderr.isatty():
        talk(message)


def out(line: str) -> None:
    """Print one line of data on stdout, flushed, so that a pipe's reader gets it at once."""
    try:
        print(f"{line}\n", end="", flush=True)  # noqa: T201  one write, as in `talk`
    except BrokenPipeError:
        raise  # `run` knows what it means
    except OSError as error:
        forget_stdout()
        raise cannot_write("stdout", error) from error


def out_bytes(data: bytes) -> None:
    """Write bytes to stdout unchanged."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise  # `run` knows what it means
    except OSError as error:
        forget_stdout()
        raise cannot_write("stdout", error) from error


def expect_account_option(parser: Options) -> None:
    """Add ``--expect-account``, of the commands that join."""
    parser.add_argument(
        "--expect-account",
        metavar="ID",
        type=_account,
        help="the account to join, by its id: an invitation into another one is refused, and nothing is sent",
    )


def _account(text: str) -> str:
    from headless_passkey.trust.fields import is_account  # noqa: PLC0415  of those who join

    if not is_account(text):
        raise argparse.ArgumentTypeError("an account's id has 22 characters: letters, digits, - and _")
    return text


def label_or_name(text: str) -> str:
    """An argparse type: a name (`name_of`)."""
    try:
        return name_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def expand_home(path: str | Path) -> Path:
    """Expand ``~``; `UsageError` without a home directory, as in bare containers."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{path}: no home directory is known for it; set HOME, or name another place"
        ) from error


def refuse_secret(source: str) -> None:
    """Refuse a secret that stands where the file belongs that holds it; the message does not repeat it."""
    if looks_secret(source):
        raise UsageError(
            "a secret is no argument, which all users of this machine can read: give a file that holds it, or - for stdin",
            advice="take a new one if others use this machine",
        )


async def read_secret_line(source: str, *, limit: int = MAX_SECRET_LINE) -> str:
    """Read one line of ASCII from a file, or from stdin for ``-``, since secrets are never arguments.

    limit: bytes. `RemoteProtocolError` for a line that is longer, or not ASCII.
    `TransportError` when there is nothing at all, `UsageError` when `source` is the secret itself.
    """
    refuse_secret(source)
    text = without_mark(await read_input(source, limit=limit + 2 + len(BOM_UTF8), first_line=True))
    if not text:
        raise transport_error("the input ended before a line came", TransportReason.NO_INPUT)
    line = text.split(b"\n", 1)[0].rstrip(b"\r")
    if len(line) > limit:
        raise RemoteProtocolError(
            f"the line is too long, {limit} bytes are allowed", reason=ProtocolReason.TOO_LONG
        )
    try:
        return line.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("the line is not ASCII", reason=ProtocolReason.MALFORMED_INPUT) from error


async def read_input(source: str, *, limit: int, first_line: bool = False) -> bytes:
    """Read a file, or stdin for ``-``, in bounded size.

    It stops after `limit` bytes, or with `first_line` after the end of a line. Waiting for input can be cancelled.
    """
    text = b""
    try:
        descriptor = STDIN if source == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            logger.debug("reading %s", "stdin" if source == "-" else "a file")
            while len(text) < limit and not (first_line and b"\n" in text):
                more = await read_some(descriptor)
                if not more:
                    break
                text += more
        finally:
            if source != "-":
                os.close(descriptor)
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error
    return text


def _replace_closed_streams() -> None:
    """Open /dev/null for standard streams that were closed at the start, so that no other file gets their numbers.

    stdin is then empty, stdout fails on writes, and stderr discards them.
    """
    for name, flags, mode in (
        ("stdin", os.O_RDONLY, "r"),
        ("stdout", os.O_RDONLY, "w"),
        ("stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, flags), mode, encoding="utf-8"))  # noqa: PTH123, SIM115


class _JsonLines(logging.Formatter):
    """Formats a log line as JSON, so that with --json all of stderr is JSON."""

    def format(self, record: logging.LogRecord) -> str:
        said = {"log": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        return json.dumps(said)


def teller(args: argparse.Namespace) -> Callable[[str], None]:
    """What says a line to a server's operator at any log level: on stderr, in the format of the log."""
    if args.log_format != "json":
        return talk

    def tell(line: str) -> None:
        record = logger.makeRecord(_OURS[1], logging.INFO, "", 0, line, (), None)
        logging.getLogger().handle(record)

    return tell


async def _until_terminated_or_done(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    on_termination(task.cancel)
    if early_signals.noted():
        task.cancel()
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await task
        raise


def _from_file(parser: argparse.ArgumentParser, words: Sequence[str], section: str) -> dict[str, Any]:
    finder = _Words(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        path = finder.parse_known_args(words)[0].config
    except argparse.ArgumentError:
        return {}  # --config without a value: the real parser says so
    if path is None:
        return {}
    import tomllib  # noqa: PLC0415  most programs have no file of settings

    try:
        with early_signals.broken_off():  # it may be a pipe
            table: Any = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        _refuse(parser, f"cannot read {path}: {error}")
    except KeyboardInterrupt:
        raise SystemExit(int(_interrupted(as_json="--json" in words))) from None
    for name in section.split("."):
        table = table.get(name, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        _refuse(parser, f"[{section}] in {path} is not a table")
    return {key: value for key, value in table.items() if not isinstance(value, dict)}


def _from_environment(keys: Iterable[str], prefix: str) -> dict[str, Any]:
    names = {f"{prefix}_{key.replace('-', '_').upper()}": key for key in keys}
    return {key: os.environ[name] for name, key in names.items() if name in os.environ}


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.error(message)
