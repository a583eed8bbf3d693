"""The command ``doctor``: the report goes to stdout, and its summary to stderr."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any, Final

from headless_passkey.command.command_line import expand_home, out, show_progress
from headless_passkey.doctor.examine import examine
from headless_passkey.doctor.finding import Finding, Status
from headless_passkey.doctor.versions import find_versions
from headless_passkey.errors import ExitStatus, HeadlessPasskeyError
from headless_passkey.net.tls import tls_context
from headless_passkey.process.streams import talk
from program_parts.names import printable

_MAX_LINE: Final = 4000  # characters of a line that is not wrapped

_LABELS: Final[Mapping[Status, str]] = {
    Status.OK: "ok",
    Status.WARNING: "WARNING",
    Status.PROBLEM: "PROBLEM",
    Status.NOT_CHECKED: "not checked",
}


class NotWell(HeadlessPasskeyError):  # noqa: N818  a diagnosis
    """The report holds problems. The exit status is that of a sign-in that fails with the first."""

    def __init__(self, problems: Sequence[Finding]) -> None:
        first = problems[0]
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems; the first"
        super().__init__(f"{count}: {first.check}")
        self.problems: Final = problems

    @property
    def reason(self) -> str | None:
        return self.problems[0].reason

    @property
    def exit_status(self) -> ExitStatus:  # type: ignore[override]  # finer than its class
        return self.problems[0].exit_status


async def diagnose(args: argparse.Namespace) -> None:
    """Print the report; `NotWell` when there is a problem in it."""
    show_progress("looking; this takes some seconds")
    findings = await examine(
        state=expand_home(args.state),
        radio=args.radio,
        passive=args.scan == "passive",
        tls=tls_context(args.ca),
        tunnels=dict(args.tunnel),
        rp=args.rp,
    )
    versions = await find_versions()
    problems = [finding for finding in findings if finding.status is Status.PROBLEM]
    status = problems[0].exit_status if problems else ExitStatus.DONE
    if args.json:
        out(
            json.dumps(
                {"status": int(status), "findings": list(map(_as_json, findings)), "versions": versions}
            )
        )
    else:
        width = get_terminal_size().columns if sys.stdout.isatty() else None
        for line in _report(findings, versions, width):
            out(printable(line, _MAX_LINE))
    if problems:
        raise NotWell(problems)
    if not args.json:
        warnings = sum(finding.status is Status.WARNING for finding in findings)
        talk("no problem found" + (f", {warnings} warnings" if warnings > 1 else ", 1 warning" * warnings))


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "subject": finding.subject,
        "status": finding.status,
        "reason": finding.reason,
        "message": finding.message,
        "mend": finding.mend,
    }


def _report(findings: Sequence[Finding], versions: Mapping[str, str | None], width: int | None) -> list[str]:
    """Make the report for people. width: of the terminal; None for one line each, for pipes."""
    lines = []
    for finding in findings:
        head = f"{_LABELS[finding.status]:<11}  {finding.check:<17}  "
        reason = f" [{finding.reason}]" if finding.reason else ""
        lines += _wrapped(head + finding.message + reason, " " * len(head), width)
        if finding.mend:
            lines += _wrapped(f"{'':<{len(head)}}-> {finding.mend}", " " * (len(head) + 3), width)
    known = [f"{name} {version}" for name, version in versions.items() if version]
    return [*lines, *_wrapped(f"{'versions':<32}{', '.join(known)}", " " * 32, width)]


def _wrapped(line: str, indent: str, width: int | None) -> list[str]:
    if width is None or width < 2 * len(indent):
        return [line]
    return wrap(
        line,
        width,
        subsequent_indent=indent,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
