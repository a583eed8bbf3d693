"""The last lines of a run: what was left out, and why."""

from collections import Counter
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)  # so that they come after pytest's own summary
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Name each reason for which tests were left out, and how many were."""
    yield
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple | list)
    )
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"left out: {reason} ({count})")
