"""Known values for tests: the JSON files in tests/vectors, see the README there."""

import json
from pathlib import Path
from typing import Any

Vector = dict[str, Any]

_FOLDER = Path(__file__).parent / "vectors"


def vectors(topic: str, *, op: str | None = None) -> list[Vector]:
    """The vectors of a file, or only those that are to be run as `op` says."""
    found: list[Vector] = json.loads((_FOLDER / f"{topic}.json").read_text(encoding="utf-8"))["vectors"]
    wanted = [vector for vector in found if op is None or vector["op"] == op]
    if not wanted:
        raise LookupError(f"no vectors in {topic} for {op}")
    return wanted


def vector(topic: str, name: str) -> Vector:
    """The one vector of that name."""
    (found,) = (vector for vector in vectors(topic) if vector["name"] == name)
    return found


def name(case: Vector) -> str:
    """A test's ID."""
    return str(case["name"])
