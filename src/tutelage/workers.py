"""The one worker pool: independent tasks, one thread each, results in the order of the tasks.

Local processes by default; through Ray where the pool says so. A task is sent once more (Ray: twice) when its worker is
killed under it, so tasks must be such that doing one again does no harm: ours write one file under a name that says what is in it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from tutelage.environment import tune_garbage_collector
from tutelage.errors import InputError, MissingExtra, TutelageError, did_you_mean

ENGINES = ("local", "ray")
RETRIES = 2
"""How often Ray sends a task again whose worker or node was lost."""
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(RETRIES)}  # by default it reports home, and retries for ever


class WorkerLost(TutelageError):
    """A task could not be done: its worker was killed each time it was sent, or had no memory left."""


@dataclass(frozen=True)
class WorkerPool:
    """Where tasks are computed, and how many at once.

    ``backend``: ``local``, processes of this machine; or ``ray`` (extra ``ray``), this machine, or the cluster at ``address``
    (``auto``, or the HOST:PORT of its head), where files must lie on storage that every node sees. ``workers`` None: one a
    core.

    Raises:
        InputError: an unknown engine, or an address without Ray.
    """

    engine: str = "local"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(f"no engine {self.engine!r}", where="engine", remedy=did_you_mean(self.engine, list(ENGINES)))
        if self.address is not None and self.engine != "ray":
            raise InputError("local processes have no address", where="address", remedy="engine ray, or leave it out")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"{self.workers} workers", where="workers", remedy="at least 1")


def processes(requested: int | None = None) -> int:
    """How many workers to use: ``requested``, else the cores this process may use."""
    return requested if requested else len(os.sched_getaffinity(0))


def map_tasks(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    pool: WorkerPool | int | None = None,
    *,
    common: tuple[Any, ...] = (),
    names: Sequence[str] = (),
) -> Iterator[Any]:
    """Yield ``function(*common, *task)`` for each task, in order, from the workers of ``pool`` (a number: local processes).

    ``common`` is sent to each worker once. ``names``: what to call each task in a message. One local worker (or one task) is
    this process. An error in a task is raised here, the first in order, and tasks not yet begun are left.

    Raises:
        WorkerLost: a task's worker was killed again when it was sent again, or had no memory left.
        InputError: what the workers need cannot be sent to them; no Ray cluster at the address.
        MissingExtra: Ray is asked for and not installed.
    """
    pool = pool if isinstance(pool, WorkerPool) else WorkerPool(workers=pool)
    titles = names or [f"task {number} of {len(tasks)}" for number in range(1, len(tasks) + 1)]
    if pool.engine == "local" and min(processes(pool.workers), len(tasks)) <= 1:
        for task, title in zip(tasks, titles, strict=True):
            yield _do(function, (*common, *task), title)
        return
    with (_Ray if pool.engine == "ray" else _Local)(function, common, pool, len(tasks)) as engine:
        yield from _in_order(engine, tasks, titles)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Have this process compute as a worker does; afterwards with as many threads as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Backend(Protocol):
    ahead: int  # tasks sent and not yet done; more than there are workers, so that none waits for its next one

    def start(self, task: tuple[Any, ...], title: str) -> Any: ...

    def first(self, handles: list[Any]) -> Any: ...

    def result(self, handle: Any, task: tuple[Any, ...], title: str) -> Any: ...


def _in_order(backend: _Backend, tasks: Sequence[tuple[Any, ...]], titles: Sequence[str]) -> Iterator[Any]:
    """Keep workers supplied, and give results in the order of the tasks."""
    flying: dict[Any, int] = {}
    finished: dict[int, Any] = {}
    last, sent, given = len(tasks), 0, 0
    while given < last:
        while sent < last and len(flying) < backend.ahead:
            flying[backend.start(tasks[sent], titles[sent])] = sent
            sent += 1
        handle = backend.first(list(flying))
        number = flying.pop(handle)
        try:
            finished[number] = backend.result(handle, tasks[number], titles[number])
        except Exception as error:  # raised when its turn comes: the tasks before it are under way
            finished[number], last = _Failed(error), min(last, number + 1)
        while given in finished:
            result = finished.pop(given)
            if isinstance(result, _Failed):
                raise result.error
            yield result
            given += 1


@dataclass(frozen=True)
class _Failed:
    error: Exception


def _do(function: Callable[..., Any], args: tuple[Any, ...], title: str) -> Any:
    """The task's result; memory that runs out is named."""
    try:
        return function(*args)
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise a RuntimeError
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
            raise _lost(title, "ran out of memory") from error
        raise


def _lost(title: str, how: str) -> WorkerLost:
    remedy = "more memory or fewer workers: the same command goes on from what was finished; smaller parts want a new folder"
    return WorkerLost(f"the worker {how}", where=title, remedy=remedy)


def _unsendable(function: Callable[..., Any], error: Exception) -> InputError:
    return InputError(
        f"cannot be sent to a worker process: {error}",
        where=getattr(function, "__name__", "task"),
        remedy="define functions and classes at the top of a file that can be imported, or use one worker",
    )


# -- local processes -------------------------------------------------------------------------------------------------------

_SHARED: ContextVar[tuple[Callable[..., Any], tuple[Any, ...]]] = ContextVar("what all tasks of this worker share")


def _start(packed: bytes) -> None:
    """A worker computes with one thread: two threads on a busy two-core machine are slower than one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _settle()
    _SHARED.set(pickle.loads(packed))


def _end_with_parent() -> None:
    """A worker would wait for ever for tasks of a parent that was killed: it holds the other end of that queue itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _settle() -> None:
    import torch

    tune_garbage_collector()
    torch.set_num_threads(1)


def _local_task(task: tuple[Any, ...], title: str) -> Any:
    function, common = _SHARED.get()
    return _do(function, (*common, *task), title)


class _Local:
    """Processes of this machine. Where one is killed, Python ends them all: each task that was sent is then done again, alone
    in a process, so that the one to blame is known."""

    def __init__(self, function: Callable[..., Any], common: tuple[Any, ...], pool: WorkerPool, tasks: int):
        self.count = min(processes(pool.workers), tasks)
        self.ahead = 2 * self.count
        try:
            self._packed = pickle.dumps((function, common))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise _unsendable(function, error) from error

    def __enter__(self) -> _Local:
        self._executor = self._processes(self.count)
        self._alone: ProcessPoolExecutor | None = None
        return self

    def __exit__(self, *error: object) -> None:
        for executor in (self._executor, self._alone):
            if executor is not None:
                executor.shutdown(cancel_futures=True)

    def _processes(self, count: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(self._packed,))

    def start(self, task: tuple[Any, ...], title: str) -> Future[Any]:
        with _environment(_ONE_THREAD):  # a process is started when it is first needed
            try:
                return self._executor.submit(_local_task, task, title)
            except BrokenProcessPool:
                self._executor = self._processes(self.count)
                return self._executor.submit(_local_task, task, title)

    def first(self, handles: list[Future[Any]]) -> Future[Any]:
        done = wait(handles, return_when=FIRST_COMPLETED).done
        return next(handle for handle in handles if handle in done)

    def result(self, handle: Future[Any], task: tuple[Any, ...], title: str) -> Any:
        try:
            return handle.result()
        except BrokenProcessPool:
            self._alone = self._alone or self._processes(1)
            try:
                with _environment(_ONE_THREAD):
                    return self._alone.submit(_local_task, task, title).result()
            except BrokenProcessPool as error:
                raise _lost(title, "was killed, and again when it was sent the task alone: was memory short?") from error


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


# -- Ray -------------------------------------------------------------------------------------------------------------------


def _ray_task(shared: tuple[Callable[..., Any], tuple[Any, ...]], task: tuple[Any, ...], title: str) -> Any:
    _settle()
    function, common = shared
    return _do(function, (*common, *task), title)


class _Ray:
    """Ray tasks. Ray itself sends a task again whose worker or node died. An instance that is up already is used, and left up."""

    def __init__(self, function: Callable[..., Any], common: tuple[Any, ...], pool: WorkerPool, tasks: int):
        try:
            import ray
        except ImportError:
            raise MissingExtra("ray", "ray") from None
        self._ray, self._shared, self._pool = ray, (function, common), pool
        self._flying: set[Any] = set()

    def __enter__(self) -> _Ray:
        self._began = not self._ray.is_initialized()
        if self._began:
            self._connect()
        cores = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        count = self._pool.workers or cores
        self.ahead = count if count < cores else 2 * cores  # a bigger cluster would begin all that it is sent
        self._task = self._ray.remote(num_cpus=1, max_retries=RETRIES)(_ray_task)
        try:
            self._common = self._ray.put(self._shared)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.__exit__(None)
            raise _unsendable(self._shared[0], error) from error
        return self

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._pool.address is not None:
            try:
                self._ray.init(address=self._pool.address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"no Ray cluster answers: {error}",
                    where=self._pool.address,
                    remedy="start one with `ray start --head`, or leave the address out to use this machine",
                ) from error
            return
        with _environment(_RAY):
            self._ray.init(address="local", num_cpus=processes(self._pool.workers), include_dashboard=False, **quiet)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            for handle in self._flying:  # what is under way is finished, and kept; an error that nobody takes is printed
                with contextlib.suppress(Exception):
                    self._ray.get(handle)
        if self._began:
            self._ray.shutdown()

    def start(self, task: tuple[Any, ...], title: str) -> Any:
        handle = self._task.remote(self._common, task, title)
        self._flying.add(handle)
        return handle

    def first(self, handles: list[Any]) -> Any:
        return self._ray.wait(handles, num_returns=1)[0][0]

    def result(self, handle: Any, task: tuple[Any, ...], title: str) -> Any:
        errors = self._ray.exceptions
        self._flying.discard(handle)
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.OutOfMemoryError as error:
            raise _lost(title, "was stopped by Ray, for its machine ran out of memory") from error
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
            raise _lost(title, f"was killed, {RETRIES + 1} times: was memory short?") from error
