"""The check of numeric settings: a wrong one is an error at construction, which names the setting."""

from relying_party.errors import UsageError


def check_whole(settings: object, *names: str, most: int | None = None) -> None:
    """Refuse settings that are not whole numbers of 1 or more, with `UsageError`.

    names: of attributes of `settings`. most: the largest number that each may be.
    """
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name}: expected a whole number of 1 or more, got {value!r:.40}")
        if most is not None and value > most:
            raise UsageError(f"{name}: expected at most {most}")
