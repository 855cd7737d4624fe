"""The process we run in: how its collector is set, and the stamp every result carries (command, versions, machine)."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import resource
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tune_garbage_collector() -> None:
    """Have the garbage collector look after every 200,000 new objects instead of 700.

    Traces and records are many, long-lived and free of cycles: sweeping them finds nothing. For
    the owner of the process to decide: the command line and its workers do; a program that imports tutelage may.
    """
    gc.set_threshold(200_000)


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


def run_metadata(seeds: Sequence[int] = ()) -> dict[str, Any]:
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


class PeakMemory:
    """The most memory that this process and its children have held together, in MiB, while the block runs.

    Pages that processes share are counted once (proportional set size); looked at twice a second. On systems without
    ``/proc`` it is this process's own peak.
    """

    def __init__(self) -> None:
        self.mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self.mib:
            self.mib = process_memory()

    def _watch(self) -> None:
        while True:
            self.mib = max(self.mib, sum(map(_proportional_memory, _family(os.getpid()))))
            if self._stop.wait(0.5):
                return


def process_memory(field: str = "VmHWM") -> float:
    """VmRSS (now) or VmHWM (the most) of this process in MiB; without ``/proc`` the most either way, which on Linux would
    count what the parent held when it started us."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _family(pid: int) -> list[int]:
    """A process and everything below it."""
    try:
        children = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(p for child in children for p in _family(child))]


def _proportional_memory(pid: int) -> float:
    """The proportional set size of one process in MiB; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
