"""Labelling by two workers, killed without warning, goes on where it was and ends with the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tutelage.sdvp.collect import collect
from tutelage.sdvp.stages import label_to_folder
from tutelage.sdvp.teachers import from_callable

from . import small

SHARD = 4


def slowly(call: object) -> object:
    time.sleep(0.01)
    return small.brightest(call)


def label(folder: Path, pool: int = 2) -> None:
    modules = small.modules()
    records = collect(small.questions(60), modules)
    label_to_folder(folder, records, modules, {"COLOR": from_callable(slowly)}, shard_size=SHARD, pool=pool)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def children(pid: int) -> list[int]:
    found = [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()]
    return [*found, *(inner for child in found for inner in children(child))]


def ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for workers in /proc")
def test_labelling_killed_with_two_workers_goes_on_and_leaves_no_worker(tmp_path: Path) -> None:
    label(tmp_path / "whole", pool=1)
    parts = tmp_path / "cut" / "parts"
    child = multiprocessing.get_context("fork").Process(target=label, args=(tmp_path / "cut",))
    child.start()
    assert child.pid is not None
    while child.is_alive() and len(list(parts.glob("*.jsonl"))) < 3:
        time.sleep(0.001)
    workers = children(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (tmp_path / "cut" / "finished.json").exists()
    until = time.monotonic() + 20
    while not all(map(ended, workers)) and time.monotonic() < until:
        time.sleep(0.01)
    assert workers and all(map(ended, workers))
    label(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
