"""Refuse words that are no terms of the field, in names and in prose. ``make lint`` runs it.

Names: local variables and arguments of ``src``, where such a word hides what a value is. Prose: comments, docstrings and
messages of ``src`` and ``scripts``, and the documentation. Keys of files on disk and names of random streams are strings
without a blank; they are formats, so they may stay.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = {
    "lesson": "job, training_job",
    "lessons": "jobs, training_jobs, reports",
    "demonstration": "experiment",
    "exercise": "examples",
    "ours": "the noun: student_logits, own_rows",
    "theirs": "the noun: teacher_logits, expected",
    "mine": "the noun: own_rows, indices",
    "said": "the noun: outputs, labels, predictions",
    "told": "the noun: message, settings",
    "asked": "the noun: questions, calls, requests",
    "taught": "the noun: distilled, teacher_outputs",
    "blame": "attribution",
}
PROSE = {
    r"\blessons?\b": "training job",
    r"\bdemonstrations?\b": "experiment",
    r"\bembedded (?:world|modules?|networks?|specialists?|generalists?|set|ones|LOC|VQA|VERIFY)\b": "synthetic scenes; toy modules",
    r"\bpackaged (?:modules?|networks?|set|detector|classifier)\b": "pretrained modules",
    r"\(ours\)|\b(?:is|are) ours\b": "(our choice)",
    r"\bsomebody\b|\bwhoever\b": "the noun: the client, the caller",
    r"\bpupils?\b": "student",
}
QUOTED = re.compile(r"`[^`]*`|\"[^\" ]*\"|'[^' ]*'|\blessons\s+\[|[{,] *lessons\b|\blessons:|#\w+|\.lessons\b")
"""What may hold a key by its name: code, quoted words, a JSON format in a docstring."""


def wrong_names(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, word, remedy) of each forbidden variable or argument."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    fields = {id(target) for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) for target in _fields(kind)}
    for node in ast.walk(tree):
        if id(node) in fields:  # which may be keys of files
            continue
        word = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
        if word in NAMES:
            yield node.lineno, word, NAMES[word]


def _fields(kind: ast.ClassDef) -> Iterator[ast.expr]:
    """The names that the body of a class assigns."""
    for node in kind.body:
        if isinstance(node, ast.AnnAssign):
            yield node.target
        elif isinstance(node, ast.Assign):
            yield from node.targets


def wrong_prose(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, word, remedy) of each forbidden word in prose."""
    text = path.read_text(encoding="utf-8")
    parts = enumerate(text.splitlines(), 1)
    if path.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        prose = (t for t in tokens if t.type == tokenize.COMMENT or (t.type == tokenize.STRING and " " in t.string))
        parts = ((t.start[0] + n, line) for t in prose for n, line in enumerate(t.string.splitlines()))
    for number, line in parts:
        bare = QUOTED.sub(" ", line)
        for pattern, remedy in PROSE.items():
            if (found := re.search(pattern, bare, re.IGNORECASE)) is not None:
                yield number, found[0], remedy


def main() -> None:
    """Print every finding as FILE:LINE and leave with 1 if there is one."""
    code = [path for path in sorted((ROOT / "src").rglob("*.py")) if path.name != "_renamed.py"]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    findings = [(path, *finding) for path in code for finding in wrong_names(path)]
    findings += [(path, *finding) for path in [*code, *pages] for finding in wrong_prose(path)]
    for path, line, word, remedy in sorted(set(findings)):
        print(f"{path.relative_to(ROOT)}:{line}: {word!r}: say {remedy}")
    if findings:
        sys.exit(f"{len(findings)} words that are no terms of the field; scripts/check_words.py lists them")


if __name__ == "__main__":
    main()
