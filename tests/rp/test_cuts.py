"""Cutting a piece out of a module finds it however the source is laid out, and only where it is meant."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.rp.cuts import Cut, without

SOURCES = {
    "in one line": """
def first(a, b): return {"kind": a, "sum": dict(left=a, right=b)}
def second(a, b):
    if a is None or a > b: raise ValueError("too much")
    return a
""",
    "in many lines": """
def first(a, b):
    return {
        'kind': (a),
        'sum': dict(
            left=a,  # of two
            right=b,
        ),
    }
def second(a, b):
    if (
        a is None
        or (a>b)
    ):
        raise ValueError(
            'too much'
        )
    return (a)
""",
}


@pytest.fixture(params=list(SOURCES.values()), ids=list(SOURCES))
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "laid_out.py").write_text(request.param)
    made = ModuleType("laid_out")
    monkeypatch.setattr("tests.rp.cuts.inspect.getsource", lambda _: (tmp_path / "laid_out.py").read_text())
    return made


def test_an_expression_a_statement_an_entry_and_an_argument_are_replaced(module: ModuleType) -> None:
    assert without(module, Cut("a > b", "False")).second(2, 1) == 2
    assert without(module, Cut('raise ValueError("too much")', "pass")).second(2, 1) == 2
    assert without(module, Cut('{"kind": a}', '{"kind": None}')).first(1, 2)["kind"] is None
    assert without(module, Cut("_(left=a)", "_(left=7)")).first(1, 2)["sum"] == {"left": 7, "right": 2}
    with pytest.raises(ValueError, match="too much"):
        without(module).second(2, 1)


def test_several_are_replaced_and_where_there_are_more_the_function_says_which(module: ModuleType) -> None:
    copy = without(module, Cut("a is None", "a == 2"), Cut("return a", "return b", within="second"))
    assert copy.second(1, 5) == 5
    with pytest.raises(ValueError, match="too much"):
        copy.second(2, 5)


@pytest.mark.parametrize(
    ("piece", "times"), [("a < b", 0), ("a", 5), ('{"sum": a}', 0), ("_(left=b)", 0), ("pass", 0)]
)
def test_what_is_not_there_once_is_not_cut(module: ModuleType, piece: str, times: int) -> None:
    with pytest.raises(AssertionError, match=f"is there {times} times"):
        without(module, Cut(piece, "c"))
