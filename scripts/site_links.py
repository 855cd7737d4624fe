"""Hooks of mkdocs: a link from a page to a file outside docs/ leads to a copy of that file in the site.

So the same links hold in the repository and in the site. CONTRIBUTING.md and CHANGELOG.md become pages. A link to a file
that does not exist is left as it is, and the strict build refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):<code>~?([^<]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to."""
    wanted = set(PAGES)
    for source in [*DOCS.rglob("*.md"), *(ROOT / name for name in PAGES)]:
        for match in LINK.finditer(source.read_text(encoding="utf-8")):
            target = _repository_path(source, match[2])
            if target is not None and not target.startswith("docs/") and (ROOT / target).is_file():
                wanted.add(target)
    for name in sorted(wanted):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links for the layout of the site, in which docs/ is the root."""
    source = ROOT / page.file.src_uri if page.file.src_uri in PAGES else DOCS / page.file.src_uri
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = _repository_path(source, match[2])
        if target is None or not (ROOT / target).is_file():
            return match[0]
        link = posixpath.relpath(target.removeprefix("docs/"), here or ".")
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    return LINK.sub(rewritten, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Sphinx roles in docstrings become plain code."""
    return ROLE.sub(r"<code>\1</code>", html)


def _repository_path(source: Path, link: str) -> str | None:
    """The path from the root of the repository of the file that ``source`` links to; None: it lies outside."""
    path = posixpath.normpath(posixpath.join(source.parent.relative_to(ROOT).as_posix(), link))
    return None if path.startswith("..") else path
