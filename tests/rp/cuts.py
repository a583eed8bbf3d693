"""Copies of modules with pieces of their source replaced, found by what they say and not by how they are laid out."""

import ast
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Cut:
    """One piece of source, and what stands there instead.

    piece: an expression, or a statement. An entry of a dictionary is written as a dictionary of that one entry, a
    keyword argument as a call of `_`. within: the function it is in, where others have the same.
    """

    piece: str
    instead: str
    within: str | None = None


def without(module: ModuleType, *cuts: Cut) -> Any:
    """A copy of a module with each of the pieces, which is there once, replaced."""
    tree = ast.parse(inspect.getsource(module))
    for cut in cuts:
        cutter = _Cutter(cut)
        for node in ast.walk(tree) if cut.within else (tree,):
            if cut.within is None or getattr(node, "name", None) == cut.within:
                cutter.visit(node)
        assert cutter.found == 1, f"{cut.piece!r} is there {cutter.found} times"
    copy = ModuleType(module.__name__)
    code = compile(ast.fix_missing_locations(tree), module.__name__, "exec")
    exec(code, copy.__dict__)  # noqa: S102  our own source
    return copy


def _parsed(text: str) -> ast.expr | ast.stmt:
    (statement,) = ast.parse(text).body
    return statement.value if isinstance(statement, ast.Expr) else statement


class _Cutter(ast.NodeTransformer):
    """Replaces what reads as the piece does, whatever its spaces, brackets and quotes."""

    def __init__(self, cut: Cut) -> None:
        self._piece, self._instead = _parsed(cut.piece), _parsed(cut.instead)
        self._text = ast.unparse(self._piece)
        self.found = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr | ast.stmt) and ast.unparse(node) == self._text:
            self.found += 1
            return self._replaced(node)
        if isinstance(node, ast.Call):
            node.keywords = [self._keyword(keyword) for keyword in node.keywords]
        if isinstance(node, ast.Dict) and isinstance(self._piece, ast.Dict):
            node.values = [self._entry(key, value) for key, value in zip(node.keys, node.values, strict=True)]
        return self.generic_visit(node)

    def _replaced(self, node: ast.AST) -> ast.AST:
        instead = self._instead
        if isinstance(node, ast.stmt) and isinstance(instead, ast.expr):
            return ast.Expr(instead)
        if isinstance(instead, ast.Name) and isinstance(context := getattr(node, "ctx", None), ast.Store):
            return ast.Name(instead.id, context)
        return instead

    def _keyword(self, keyword: ast.keyword) -> ast.keyword:
        if f"_({ast.unparse(keyword)})" != self._text:
            return keyword
        self.found += 1
        assert isinstance(self._instead, ast.Call)
        return self._instead.keywords[0]

    def _entry(self, key: ast.expr | None, value: ast.expr) -> ast.expr:
        if key is None or f"{{{ast.unparse(key)}: {ast.unparse(value)}}}" != self._text:
            return value
        self.found += 1
        assert isinstance(self._instead, ast.Dict)
        return self._instead.values[0]
