"""What the documentation site does beyond mkdocs: links into the repository, the headings' names, made pages, the ADRs, the numbers."""

import re
import sys
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import threats_page  # noqa: E402  beside this file

THREATS = "reference/threats.md"
NUMBERS = "reference/numbers.md"  # followed by the text of benchmarks/RESULTS.md
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def heading_name(heading: str, _separator: str) -> str:
    """The anchor of a heading, as GitHub makes it: the pages are read there too."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.mdx_configs["toc"] = {"slugify": heading_name, "permalink": True}
    decisions = sorted((ROOT / "docs" / "adr").glob("*.md"))
    nav: list[Any] = config.nav or []
    nav.append({"Decisions": [f"adr/{each.name}" for each in decisions]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    security = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    try:
        made = threats_page.page(security, threats_page.sources(ROOT))
    except ValueError as error:
        raise PluginError(str(error)) from error
    files.append(File.generated(config, THREATS, content=made))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links to files that are no pages lead into the repository."""
    if page.file.src_uri == NUMBERS:
        results = (
            (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").replace("](../docs/", "](../")
        )
        markdown += "\n" + re.sub(r"^#", "##", results, flags=re.MULTILINE)
    folder = PurePosixPath(page.file.src_uri).parent

    def led(found: re.Match[str]) -> str:
        before, target, after = found.groups()
        if re.match(r"\w+:|#", target):
            return found[0]
        path = normpath(str(PurePosixPath("docs") / folder / target.partition("#")[0]))
        if path.startswith("docs/") and not (ROOT / path).is_dir():
            return found[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: {target} leads nowhere")
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{before}{config.extra['repository']}/{kind}/main/{path}{after}"

    parts = _CODE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(led, part) for part in parts)
