"""What a program raises that cannot serve."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """What a program raises, made of what is wrong."""

    usage: Callable[[str], Exception]  # the words that it was started with
    certificate: Callable[[Path, str], Exception]  # the certificate or key in a file
    address: Callable[[str, int, OSError], Exception]  # host and port, which cannot be listened on
