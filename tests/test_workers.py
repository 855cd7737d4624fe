from __future__ import annotations

import os
import signal

import pytest

from tutelage import workers
from tutelage.errors import InputError


def square(x: int) -> tuple[int, int]:
    return x * x, os.getpid()


def threads() -> int:
    import torch

    return torch.get_num_threads()


def fail(x: int) -> None:
    raise InputError(f"task {x}", where="file:3", remedy="mend it")


def test_one_worker_runs_here_and_in_order() -> None:
    results = list(workers.map_tasks(square, [(i,) for i in range(5)], 1))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16]
    assert {pid for _, pid in results} == {os.getpid()}


def test_no_task_gives_no_result() -> None:
    assert list(workers.map_tasks(square, [], 2)) == []


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_in_a_task_is_raised_here(count: int) -> None:
    with pytest.raises(InputError) as caught:
        list(workers.map_tasks(fail, [(1,), (2,)], count))
    assert (caught.value.message, caught.value.where, caught.value.remedy) == ("task 1", "file:3", "mend it")


def test_processes_keep_the_order_and_one_thread_each() -> None:
    results = list(workers.map_tasks(square, [(i,) for i in range(6)], 2))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {pid for _, pid in results}
    assert list(workers.map_tasks(threads, [(), ()], 2)) == [1, 1]


def test_the_default_is_the_cores_this_process_may_use() -> None:
    assert workers.processes() == len(os.sched_getaffinity(0))
    assert workers.processes(3) == 3


def die(x: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_hang() -> None:
    with pytest.raises(workers.WorkerLost, match="killed"):
        list(workers.map_tasks(die, [(1,), (2,)], 2))
