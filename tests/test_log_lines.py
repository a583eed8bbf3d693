"""Lines of log on a terminal: what peers, hosts and Bluetooth devices wrote in them is spelled out."""

import json
import logging
import sys
from typing import Any, Final

import pytest

from program_parts.command_line import JsonRecords, PlainLines
from tests.vectors_loader import Vector, name, vectors

PLAIN: Final = PlainLines("%(levelname)s %(message)s")
RECORDS: Final = JsonRecords()


def exc_info(error: Exception | None) -> Any:
    """What a record holds of an error that was caught."""
    if error is None:
        return None
    try:
        raise error
    except type(error):
        return sys.exc_info()


def logged(message: str, *args: object, error: Exception | None = None) -> str:
    return PLAIN.format(logging.LogRecord("a", logging.INFO, "a.py", 1, message, args, exc_info(error)))


@pytest.mark.threat("T11")
@pytest.mark.parametrize("case", [one for one in vectors("names") if len(one["text"]) <= 128], ids=name)
def test_what_others_wrote_is_shown_in_a_log_as_it_is_elsewhere(case: Vector) -> None:
    assert logged("from %s", f"<{case['text']}>").startswith("INFO from <")
    assert logged(case["text"] or "%s", *([] if case["text"] else [""])) == f"INFO {case['shown']}"


@pytest.mark.threat("T11")
def test_a_line_of_log_cannot_begin_another() -> None:
    said = logged("device %s", "x\nINFO all is well\x1b[2J\u202e\u3164")
    assert said == "INFO device x<U+000A>INFO all is well<U+001B>[2J<U+202E><U+3164>"


@pytest.mark.threat("T11")
def test_a_traceback_keeps_its_lines_and_hides_nothing() -> None:
    said = logged("failed", error=ValueError("a\x1b[2Jb\u3164"))
    assert said.startswith("INFO failed\nTraceback (most recent call last):\n")
    assert said.endswith("\nValueError: a<U+001B>[2Jb<U+3164>")


def record(
    message: str,
    *args: object,
    fields: object = None,
    error: Exception | None = None,
) -> str:
    """A line of ``--log-format json``."""
    made = logging.LogRecord("a.b", logging.WARNING, "a.py", 1, message, args, exc_info(error))
    made.created = 1_700_000_000.0625
    if fields is not None:
        made.fields = fields
    return RECORDS.format(made)


def test_a_record_has_time_level_logger_message_and_fields() -> None:
    assert json.loads(record("%s came", 3, fields={"status": 201, "outcome": "ok"})) == {
        "time": "2023-11-14T22:13:20.062Z",
        "level": "warning",
        "logger": "a.b",
        "message": "3 came",
        "fields": {"status": 201, "outcome": "ok"},
    }
    assert "fields" not in json.loads(record("none"))


@pytest.mark.threat("T11")
@pytest.mark.parametrize("text", ["x\ny", "x\x1b[2Jy", "x\x7fy", "x\u2028y", "x\u202ey", "x\x00y"], ids=ascii)
def test_a_record_is_one_line_whatever_is_in_it(text: str) -> None:
    for line in (
        record(text),
        record("%s", text, fields={"said": text}),
        record("x", error=ValueError(text)),
    ):
        assert len(line.splitlines()) == 1
        assert line.isascii()
        assert "\x1b" not in line
        said = json.loads(line)
        assert text not in said["message"]
        assert (
            text not in said.get("exception", "") or "\n" in text
        )  # a traceback has lines, as a JSON string


@pytest.mark.threat("T11")
def test_a_record_repeats_no_secret_of_a_known_form() -> None:
    code = "hpk-account:g3hVaGVhZGxlc3MtcGFzc2tleSBhY2NvdW50IHYx"
    assert json.loads(record("found %s", code))["message"] == "found hpk-account:…"
    assert code not in record("x", error=ValueError(code))


@pytest.mark.threat("T12")
def test_a_record_has_an_end() -> None:
    assert len(record("%s", "x" * 1_000_000)) < 2200


@pytest.mark.threat("T12")
def test_a_line_of_log_has_an_end() -> None:
    assert len(logged("%s", "x" * 1_000_000)) < 2100
