"""``companion-push completion SHELL``: the script that lets a shell complete the words of ``companion-push``."""

from typing import Any

from headless_passkey.command.command_line import add_completion


def add_parser(subparsers: Any) -> None:
    """Add ``completion`` to the program's commands."""
    add_completion(subparsers, package="companion_push", program="companion-push")
