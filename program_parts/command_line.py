"""What the command lines of all programs do alike: help, version, lines of log, the line of a failure."""

import argparse
import contextlib
import json
import logging
import os
import sys
import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from program_parts.names import printable
from program_parts.secret_words import without_secrets

DISTRIBUTION: Final = "headless-passkey"
SHELLS: Final = ("bash", "zsh", "fish")  # that complete command lines
MAX_MESSAGE: Final = 2000  # characters of a failure, or of a line of log
LOG_LINE: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class HelpFormatter(argparse.HelpFormatter):
    """Wraps each line of a description or epilog on its own; indented lines, such as examples, are not wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for line in text.splitlines():
            lines += textwrap.wrap(line, width) if line.strip() and not line.startswith(" ") else [line]
        return "\n".join(indent + line for line in lines)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version: the distribution's, behind the program's name."""
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and end")


class _Version(argparse.Action):
    """Looks the version up at its use, and not at every start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata  # noqa: PLC0415

        try:
            version = metadata.version(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            version = "of a version that is not installed"
        with contextlib.suppress(OSError):  # a closed pipe, as with --help
            print(f"{parser.prog} {version}", flush=True)  # noqa: T201
        parser.exit()


def host_port(text: str) -> tuple[str, int]:
    """An argparse type: HOST:PORT, with [..] around an IPv6 address."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise argparse.ArgumentTypeError("expected HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def failure_line(
    program: str,
    status: int,
    kind: str,
    message: str,
    *,
    reason: str | None = None,
    advice: str | None = None,
    as_json: bool,
) -> str:
    """The line that says what went wrong, without its end. It has no secret of a known form.

    status: the exit status. kind: the error's class. reason: a stable word. advice: what to do about it.
    """
    # it may hold text of others
    message, advice = _in_one_line(without_secrets(message)), advice and _in_one_line(advice)
    if as_json:
        return json.dumps(
            {"error": kind, "reason": reason, "status": int(status), "message": message, "advice": advice}
        )
    return ": ".join(filter(None, (program, message, advice))) + (f" [{reason}]" if reason else "")


def _in_one_line(text: str) -> str:
    return printable(" ".join(text.split()), MAX_MESSAGE)


def forget_stdout() -> None:
    """Give up what is still in the buffer of stdout: it must not fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class PlainLines(logging.Formatter):
    """A log line in which what others wrote (hosts, peers, Bluetooth devices) moves no terminal and begins no other line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        record.message = printable(record.message, MAX_MESSAGE)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        return "\n".join(printable(line, MAX_MESSAGE) for line in super().formatException(ei).split("\n"))


class JsonRecords(logging.Formatter):
    """Formats a log record as one JSON object on one line, for programs that collect logs: ``--log-format json``.

    time: RFC 3339, UTC. fields: what the caller gave as ``extra={"fields": {…}}``, numbers and words of our own.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(without_secrets(record.getMessage()), MAX_MESSAGE),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            said["fields"] = dict(fields)
        if record.exc_info:
            lines = without_secrets(self.formatException(record.exc_info)).split("\n")
            said["exception"] = "\n".join(printable(line, MAX_MESSAGE) for line in lines)
        return json.dumps(said, default=str)
