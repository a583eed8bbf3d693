"""A page for each type of problem: what it means, and what to do. They are made from the one table of problems."""

from html import escape
from typing import Final

from companion_push.relay.problems import PROBLEM_TYPE, Slug, type_of

CONTENT_TYPE: Final = "text/html"
POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def page(slug: Slug) -> str:
    """Make the page of one type."""
    known = type_of(slug)
    return _document(
        known.title,
        f"<p><code>{PROBLEM_TYPE}{slug}</code>, HTTP {known.status}</p>\n"
        f"<h2>What it means</h2>\n<p>{escape(known.meaning)}</p>\n"
        f"<h2>What to do</h2>\n<p>{escape(known.advice)}</p>\n"
        '<p><a href="../problems">All problems</a></p>',
    )


def index() -> str:
    """Make the page that lists all types."""
    lines = [
        f'<li><a href="problems/{slug}">{slug}</a>: {escape(type_of(slug).title)}</li>'
        for slug in sorted(Slug)
    ]
    return _document("What the relay refuses", "\n".join(["<ul>", *lines, "</ul>"]))


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )
