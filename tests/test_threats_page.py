"""The page of threats: each has a test, and each mark is of a threat that is listed."""

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "threats_page.py"))
page: Callable[[str, Mapping[str, str]], str] = SCRIPT["page"]
SECURITY = "| T1 | **Injection**: a [URL](adr/1.md) | Checked |\n| T2 | **Replay** | Once |\n"
ONE = '@pytest.mark.threat("T1")\ndef test_a_url_of_others_is_refused():\n    pass\n'
TWO = 'pytestmark = [pytest.mark.slow, pytest.mark.threat("T2")]\nclass Case:\n    async def test_it_counts_once(self):\n        pass\ndef helper():\n    pass\n'


def test_every_threat_of_the_security_page_has_a_test_and_every_mark_is_listed() -> None:
    security = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    made = page(security, SCRIPT["sources"](ROOT))
    assert [line for line in made.splitlines() if line.startswith("## ")] == [
        f"## T{n}" for n in range(1, 19)
    ]


def test_a_page_lists_the_tests_of_each_threat_by_module() -> None:
    made = page(SECURITY, {"tests/test_b.py": TWO, "tests/test_a.py": ONE + TWO})
    assert (
        made.splitlines()[4:]
        == [
            "## T1",
            "",
            "**Injection**: a [URL](../adr/1.md)",
            "",
            "Checked.",
            "",
            "- [`tests/test_a.py`](../../tests/test_a.py)",
            "",
            "    - a url of others is refused",
            "",
            "## T2",
            "",
            "**Replay**",
            "",
            "Once.",
            "",
            "- [`tests/test_a.py`](../../tests/test_a.py)",
            "",
            "    - a url of others is refused",
            "    - it counts once",
            "",
            "- [`tests/test_b.py`](../../tests/test_b.py)",
            "",
            "    - it counts once",
            "",
        ][: len(made.splitlines()) - 4]
    )


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ({"tests/test_a.py": ONE}, r"without a test: \['T2'\]"),
        ({"tests/test_a.py": ONE + TWO, "tests/test_b.py": ONE.replace("T1", "T9")}, r"not listed: \['T9'\]"),
    ],
    ids=["no test", "no threat"],
)
def test_threats_and_tests_that_do_not_fit_make_no_page(tests: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        page(SECURITY, tests)
