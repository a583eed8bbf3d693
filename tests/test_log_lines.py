"""Lines of log on a terminal: what peers, hosts and Bluetooth devices wrote in them is spelled out, in both packages with programs."""

import logging
import sys

import pytest

import headless_passkey.command.command_line
import relying_party.cli
from tests.vectors_loader import Vector, name, vectors

LINE = "%(levelname)s %(message)s"
BOTH = pytest.mark.parametrize(
    "formatter",
    [headless_passkey.command.command_line._PlainLines(LINE), relying_party.cli._PlainLines(LINE)],
    ids=["headless_passkey", "relying_party"],
)


def logged(formatter: logging.Formatter, message: str, *args: object, error: Exception | None = None) -> str:
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    return formatter.format(logging.LogRecord("a", logging.INFO, "a.py", 1, message, args, info))


@BOTH
@pytest.mark.threat("T11")
@pytest.mark.parametrize("case", [one for one in vectors("names") if len(one["text"]) <= 128], ids=name)
def test_what_others_wrote_is_shown_in_a_log_as_it_is_elsewhere(
    formatter: logging.Formatter, case: Vector
) -> None:
    assert logged(formatter, "from %s", f"<{case['text']}>").startswith("INFO from <")
    assert logged(formatter, case["text"] or "%s", *([] if case["text"] else [""])) == f"INFO {case['shown']}"


@BOTH
@pytest.mark.threat("T11")
def test_a_line_of_log_cannot_begin_another(formatter: logging.Formatter) -> None:
    said = logged(formatter, "device %s", "x\nINFO all is well\x1b[2J\u202e\u3164")
    assert said == "INFO device x<U+000A>INFO all is well<U+001B>[2J<U+202E><U+3164>"


@BOTH
@pytest.mark.threat("T11")
def test_a_traceback_keeps_its_lines_and_hides_nothing(formatter: logging.Formatter) -> None:
    said = logged(formatter, "failed", error=ValueError("a\x1b[2Jb\u3164"))
    assert said.startswith("INFO failed\nTraceback (most recent call last):\n")
    assert said.endswith("\nValueError: a<U+001B>[2Jb<U+3164>")


@BOTH
@pytest.mark.threat("T12")
def test_a_line_of_log_has_an_end(formatter: logging.Formatter) -> None:
    assert len(logged(formatter, "%s", "x" * 1_000_000)) < 2100
