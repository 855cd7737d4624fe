"""Old names of commands, options and values: they are refused, and the error names the new one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "write": "generate",
    "world": "synthetic",
    "blame": "attribute",
    "writers": "generators",
    "--writer": "--generator",
    "--gate": "--min-confidence",
    "--part": "--shard-size",
    "--retain": "--continual",
    "--page": "--html",
    "--models": "--modules",
    "--again": "--force",
    "embedded": "toy",
    "packaged": "pretrained",
}


def name_the_new(error: Any) -> None:
    """Make a usage error about an old name (``No such option: --writer``) name the new one."""
    match = re.match(r"No such (?:option|command):? '?([\w-]+)", str(getattr(error, "message", "")))
    if match is not None and match[1] in RENAMED:
        error.message = f"{match[1]!r} is now {RENAMED[match[1]]!r}"
        if getattr(error, "possibilities", None):
            error.possibilities = None
