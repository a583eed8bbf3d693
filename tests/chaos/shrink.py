"""A failing plan made shorter: the fewest faults found that still fail (delta debugging), within a number of tries."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


async def shrink(
    items: Sequence[_Item],
    fails: Callable[[Sequence[_Item]], Awaitable[bool]],
    *,
    may_try: Callable[[], bool] = lambda: True,
) -> Sequence[_Item]:
    """A shorter sequence of `items`, in their order, for which `fails` is true; `items` themselves are known to fail.

    may_try: whether one more try is allowed; the shortest sequence found until then is returned.
    """
    parts = 2
    while len(items) > 1:
        size = -(-len(items) // parts)
        pieces = [items[at : at + size] for at in range(0, len(items), size)]
        without = [
            [each for other, piece in enumerate(pieces) if other != number for each in piece]
            for number in range(len(pieces))
        ]
        # the last piece first: what came just before the failure is its cause more often than what came long before
        for candidate in [*reversed(pieces), *(without if len(pieces) > 2 else [])]:
            if not may_try():
                return items
            if await fails(candidate):
                # what fails without a piece is cut as finely as before, a piece of its own anew
                parts = 2 if candidate in pieces else max(2, len(pieces) - 1)
                items = candidate
                break
        else:
            if size == 1:
                return items
            parts = min(len(items), 2 * parts)
    return items
