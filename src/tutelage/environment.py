"""The stamp every result carries: which command made it, with which versions, on which machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def command_line() -> str:
    """The command of this process, as a person would type it again."""
    program = Path(sys.argv[0]).name
    shown = "tutelage" if program in ("tutelage", "__main__.py", "") else program
    return shlex.join([shown, *sys.argv[1:]])


def machine() -> str:
    """System, processor and memory, in words."""
    processor = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.system()} {platform.machine()}, {processor}, {gib:.0f} GiB"


def environment(seeds: Sequence[int] = ()) -> dict[str, Any]:
    """``{command, seeds, versions, machine, cores}``; ``cores`` are those this process may use."""
    from tutelage import __version__

    versions = {"tutelage": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy"):
        versions[name] = importlib.metadata.version(name)
    return {
        "command": command_line(),
        "seeds": list(seeds),
        "versions": versions,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
    }
