"""Finds a VisProg program in what a language model wrote."""

from __future__ import annotations

import re

# A quoted argument ends at the quote that the next argument or the closing bracket follows: so it may hold apostrophes.
# What is possessive and bounded in it keeps the search short on a long line of quotes or of one word.
_QUOTED = re.compile(
    r"""(?P<name>\b\w++\s*+=\s*+)(?P<quote>['"])(?P<text>.{0,2000}?)(?P=quote)(?=\s*+(?:,\s*+\w++\s*+=|\)\s*+(?:\#.*)?$))"""
)
_STEP = re.compile(r"\s*(?:\d+[.)]\s+)?([A-Za-z_]\w*\s*=\s*[A-Za-z_]\w*\s*\(.*)")
_LAST = re.compile(r"\s*FINAL_(?:RESULT|ANSWER)\s*=\s*RESULT\s*\([^)]*\)")
_LABEL = re.compile(r"\s*(?:Program|Answer)\s*:\s*", re.IGNORECASE)
_SIGNS = re.compile(
    r"^[ \t]*+(?:(?:Program|Question|Statement|Instruction)\s*:|```|1[.)]\s|.*[^)]:[ \t]*+$)", re.IGNORECASE | re.MULTILINE
)
_NEXT = re.compile(r"\s*(?:Question|Statement|Instruction|Program)\s*:", re.IGNORECASE)


def program_lines(text: str) -> str:
    """The lines of ``text`` from the first step to the one that gives the result, at their places; empty where it has no more.

    Signs of such a text are a label, a fence, numbered lines, or a line that ends with a colon; where there is none, the text is
    taken as it stands. A label ``Program:``, fences and prose before the first step go, and whatever follows the result, as a
    next question.
    """
    if not _SIGNS.search(text):
        return ""
    lines = text.splitlines()
    kept = [""] * len(lines)
    begun = False
    for number, line in enumerate(lines):
        begun = begun or (number > 0 and bool(kept[number - 1]))
        label = _LABEL.match(line)
        if begun and _NEXT.match(line):
            break
        if label is not None:
            line = line[label.end() :]
        step = _STEP.match(line)
        if step is not None:
            kept[number] = step[1]
        elif begun and not line.strip().startswith("```"):
            kept[number] = line  # a call over several lines
        if (last := _LAST.match(kept[number])) is not None:
            kept[number] = last[0].strip()
            break
    found = "\n".join(kept)
    return found if found.strip() and found != text else ""


def requoted(line: str) -> str:
    """A line whose quoted arguments may hold bare apostrophes, as Python writes it."""
    return _QUOTED.sub(_requote, line)


def _requote(match: re.Match[str]) -> str:
    text = match["text"].replace("\\" + match["quote"], match["quote"])
    return match["name"] + repr(text)
