"""The one worker pool: independent tasks in separate processes, one thread each, results in the order of the tasks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tutelage.environment import collect_rarely
from tutelage.errors import TutelageError

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


class WorkerLost(TutelageError):
    """A worker process died before its task was done."""


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started in the block see; this process gets its own back."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start() -> None:
    """A worker computes with one thread: two threads on a busy two-core machine are slower than one."""
    import torch

    collect_rarely()

    torch.set_num_threads(1)


def processes(asked: int | None = None) -> int:
    """How many workers to use: ``asked``, else the cores this process may use."""
    return asked if asked else len(os.sched_getaffinity(0))


def map_tasks(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], workers: int | None = None) -> Iterator[Any]:
    """Yield ``function(*task)`` for each task, in order, computed by ``workers`` spawned processes.

    One worker (or one task) runs in this process. An error in a task is raised here, and the others are stopped.

    Raises:
        WorkerLost: a worker was killed from outside.
    """
    count = min(processes(workers), len(tasks))
    if count <= 1:
        for task in tasks:
            yield function(*task)
        return
    context = multiprocessing.get_context("spawn")
    with _environment(_ONE_THREAD), ProcessPoolExecutor(count, mp_context=context, initializer=_start) as pool:
        pending = [pool.submit(function, *task) for task in tasks]
        try:
            for result in pending:
                yield result.result()
        except BrokenProcessPool as error:
            raise WorkerLost(
                "a worker process was killed", remedy="was memory short? run the same command again: finished parts are kept"
            ) from error
        finally:
            for result in pending:
                result.cancel()
