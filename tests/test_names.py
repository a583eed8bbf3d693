"""Names: one rule at every door, and a terminal that shows them and obeys nothing."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import relying_party.names
from headless_passkey.errors import UsageError
from headless_passkey.process.streams import talk
from headless_passkey.text.names import name_of
from program_parts import names
from program_parts.names import MAX_LABEL, is_plain, plain, printable, quoted, shown_line, why_not_plain
from relying_party.errors import InvalidRequest
from tests.programs import ROOT
from tests.vectors_loader import Vector, name, vectors

# what people write, what hides in it, and what is between the two
TEXTS = st.text(
    st.one_of(
        st.sampled_from(
            "aé \u200b\u200c\u200d\ufe0e\ufe0f\u0301\u0338\u1112\u1161\u0958\U0001f469\u202e\x1b"
        ),
        st.characters(categories=["C", "Z", "L", "M", "S"]),
    ),
    max_size=100,
)


def test_the_page_lists_the_code_points_of_the_rule() -> None:
    page = (ROOT / "docs/protocol/trust.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\n(U\+.*?)^```", page, re.MULTILINE | re.DOTALL)
    listed = [each.removeprefix("U+").split("\N{EN DASH}") for each in block.split()]
    ranges = [range(int(each[0], 16), int(each[-1], 16) + 1) for each in listed]
    everything = "".join(map(chr, range(0x110000)))
    refused = re.findall(names._NOT_IN_A_NAME, everything)
    assert refused == sorted(chr(point) for each in ranges for point in each)


@pytest.mark.threat("T4")
@pytest.mark.parametrize("case", vectors("names"), ids=name)
def test_a_name_is_judged_as_it_stands(case: Vector) -> None:
    assert is_plain(case["text"]) is case["valid"]


@pytest.mark.threat("T4")
@pytest.mark.parametrize("case", vectors("names"), ids=name)
def test_a_name_that_comes_in_is_its_normal_form_and_then_judged(case: Vector) -> None:
    if case["name_of"] is not None:
        assert name_of(case["text"]) == case["name_of"]
    else:
        with pytest.raises(UsageError) as caught:
            name_of(case["text"])
        assert str(caught.value).isascii()  # says what is wrong without the text itself


@pytest.mark.threat("T4")
@pytest.mark.parametrize("case", vectors("names"), ids=name)
def test_any_text_is_made_to_fit(case: Vector) -> None:
    assert plain(case["text"]) == case["plain"]


@pytest.mark.threat("T4")
@pytest.mark.parametrize("case", vectors("names"), ids=name)
def test_a_terminal_shows_what_is_there_and_obeys_nothing(case: Vector) -> None:
    assert printable(case["text"]) == case["shown"]


@given(TEXTS)
def test_what_one_door_lets_in_every_door_takes_unchanged(text: str) -> None:
    try:
        come_in = name_of(text)
    except UsageError:
        with pytest.raises(InvalidRequest):
            relying_party.names.name_of(text)
        return
    assert is_plain(come_in)
    assert name_of(come_in) == come_in
    assert relying_party.names.name_of(text) == relying_party.names.name_of(come_in) == come_in


@given(TEXTS, st.integers(1, 80))
def test_what_is_made_to_fit_is_a_name_and_stays_so(text: str, longest: int) -> None:
    fitted = plain(text, longest)
    if fitted is not None:
        assert is_plain(fitted, longest)
        assert plain(fitted, longest) == fitted


@pytest.mark.threat("T4")
@given(TEXTS)
def test_nothing_that_is_shown_moves_the_cursor_or_the_reading_order(text: str) -> None:
    for character in printable(text, 40):
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in (
            "LRE",
            "LRO",
            "RLE",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )
        assert not character.isspace() or character == " "


def test_what_is_shown_is_bounded() -> None:
    assert printable("\U000e0001" * 200, 20) == "<U+E0001>" * 20 + "\N{HORIZONTAL ELLIPSIS}"
    assert printable("a" * 20, 20) == "a" * 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has 0 characters; 1 to 64 are expected"),
        ("a" * 65, "has 65 characters; 1 to 64 are expected"),
        ("hub ", "has a space at an end"),
        ("hub\u202e", "has U+202E as character 4, which does not show as itself"),
        ("hub\u200d", "has U+200D as character 4, where it joins nothing"),
    ],
    ids=["nothing", "too long", "space", "hidden", "joiner"],
)
def test_a_refusal_says_what_to_change(text: str, reason: str) -> None:
    assert why_not_plain(text) == reason


@pytest.mark.threat("T12")
def test_a_long_run_of_marks_is_refused_before_it_is_put_in_order() -> None:
    """Normalising takes time that grows with the square of such a run."""
    marks = "a" + "\u0301\u0323" * 5_000_000
    with pytest.raises(UsageError, match="has 10000001 characters"):
        name_of(marks)
    assert plain(marks) is not None


def test_nothing_grows_beyond_what_is_looked_at() -> None:
    """Four code points become one at the most, so nothing that is longer than that could be a name."""
    decompositions = (unicodedata.normalize("NFD", chr(code)) for code in range(0x110000))
    assert max(map(len, decompositions)) == 4
    assert name_of("\u03b1\u0313\u0300\u0345" * MAX_LABEL) == "\u1f82" * MAX_LABEL


# Whole lines, as they reach a terminal

HOSTILE = [
    ("\x1b[2J\x1b[HSign in", "<U+001B>[2J<U+001B>[HSign in"),
    ("hub\nApprove? y or n:", "hub<U+000A>Approve? y or n:"),
    ("hub\r\b\x9b31m", "hub<U+000D><U+0008><U+009B>31m"),
    ("frame\u202ekcats", "frame<U+202E>kcats"),
    ("a\u2066b\u2069", "a<U+2066>b<U+2069>"),
    ("\u200bhub\ufeff", "<U+200B>hub<U+FEFF>"),
]


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    ("text", "shown"), HOSTILE, ids=["escape", "line", "cr", "bidi", "isolate", "invisible"]
)
def test_a_line_that_nobody_escaped_moves_no_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(f"says {text}", "and a second line")
    assert capsys.readouterr().err == f"says {shown}\nand a second line\n"


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("Kitchen hub", '"Kitchen hub"'),
        ('hub" asks to sign in at "b', '"hub<U+0022> asks to sign in at <U+0022>b"'),
        ("\u05de\u05d8\u05d1\u05d7", '"\u2068\u05de\u05d8\u05d1\u05d7\u2069"'),
        ("\u0645\u0637\u0628\u062e 1", '"\u2068\u0645\u0637\u0628\u062e 1\u2069"'),
        ("a\u2069\u05d0", '"\u2068a<U+2069>\u05d0\u2069"'),
        ("\x1b[2J", '"<U+001B>[2J"'),
    ],
    ids=["plain", "marks", "hebrew", "arabic", "leaving its isolate", "escape"],
)
def test_a_label_is_quoted_and_isolated(label: str, shown: str) -> None:
    assert quoted(label) == shown
    assert shown_line(f"{shown} asks") == f"{shown} asks"


@given(TEXTS)
def test_a_line_leaves_alone_what_has_been_escaped(text: str) -> None:
    assert shown_line(f"{quoted(text)}: {printable(text)}") == f"{quoted(text)}: {printable(text)}"
