from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage import workers
from tutelage.errors import InputError, MissingExtra
from tutelage.workers import WorkerLost, WorkerPool, map_tasks


def square(x: int) -> tuple[int, int]:
    return x * x, os.getpid()


def threads() -> int:
    import torch

    return torch.get_num_threads()


def fail(x: int) -> None:
    raise InputError(f"task {x}", where="file:3", remedy="mend it")


def joined(*words: object) -> str:
    return " ".join(map(str, words))


def killed_once(folder: Path, x: int) -> int:
    """Task 1 takes its worker with it, the first time."""
    if x == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    with (folder / "done").open("a") as file:
        file.write(f"{x}\n")
    return 10 * x


def always_killed(x: int) -> int:
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def hungry(x: int) -> int:
    """Task 1 has 256 MiB more than it holds, and wants 1 GiB."""
    if x == 1:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + 2**28, limits[1]))
        try:
            return len(bytearray(2**30))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    return x


def hungry_torch(x: int) -> int:
    import torch

    return torch.empty(2**60, dtype=torch.uint8).numel()


class Deaf:
    def __reduce__(self) -> str:
        raise TypeError("cannot pickle a Deaf")


@pytest.fixture(scope="module")
def ray() -> Iterator[WorkerPool]:
    found = pytest.importorskip("ray")
    engine = workers._Ray(square, (), WorkerPool("ray", 2), 1)
    with engine:  # an instance that is up is used by every test, and started once
        yield WorkerPool("ray", 2)
    assert not found.is_initialized()


def test_one_worker_runs_here_and_in_order() -> None:
    results = list(map_tasks(square, [(i,) for i in range(5)], 1))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16]
    assert {pid for _, pid in results} == {os.getpid()}


def test_no_task_gives_no_result() -> None:
    assert list(map_tasks(square, [], 2)) == []


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_error_in_order_is_raised_here(count: int) -> None:
    with pytest.raises(InputError) as caught:
        list(map_tasks(fail, [(1,), (2,)], count))
    assert (caught.value.message, caught.value.where, caught.value.remedy) == ("task 1", "file:3", "mend it")


def test_processes_keep_the_order_and_one_thread_each() -> None:
    results = list(map_tasks(square, [(i,) for i in range(6)], 2))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {pid for _, pid in results}
    assert list(map_tasks(threads, [(), ()], 2)) == [1, 1]


def test_what_tasks_share_comes_first() -> None:
    assert list(map_tasks(joined, [(1,), (2,)], 1, common=("a", Path("b")))) == ["a b 1", "a b 2"]


def test_the_default_is_the_cores_this_process_may_use() -> None:
    assert workers.processes() == len(os.sched_getaffinity(0))
    assert workers.processes(3) == 3


def test_a_lost_workers_tasks_are_done_again_and_nothing_else(tmp_path: Path) -> None:
    results = map_tasks(killed_once, [(x,) for x in range(6)], 2, common=(tmp_path,))
    assert list(results) == [0, 10, 20, 30, 40, 50]
    done = [int(line) for line in (tmp_path / "done").read_text().split()]
    assert set(done) == set(range(6)) and all(done.count(x) == 1 for x in (1, 3, 4, 5))


def test_a_task_that_kills_its_workers_is_named_after_the_results_before_it() -> None:
    results = map_tasks(always_killed, [(x,) for x in range(6)], 2, names=[f"shard {x}" for x in range(6)])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(WorkerLost, match="killed") as caught:
        next(results)
    assert caught.value.where == "shard 2" and "fewer workers" in caught.value.remedy


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_worker_without_memory_names_its_task(count: int) -> None:
    results = map_tasks(hungry, [(0,), (1,), (2,)], count, names=["shard 0", "shard 1", "shard 2"])
    assert next(results) == 0
    with pytest.raises(WorkerLost, match="ran out of memory") as caught:
        next(results)
    assert caught.value.where == "shard 1"


def test_the_memory_of_tensors_counts_too() -> None:
    with pytest.raises(WorkerLost, match="ran out of memory"):
        list(map_tasks(hungry_torch, [(0,)], 1))


def test_what_cannot_be_sent_is_told_before_anything_runs() -> None:
    for function, common in ((lambda x: x, ()), (joined, (Deaf(),))):
        with pytest.raises(InputError, match="cannot be sent") as caught:
            list(map_tasks(function, [(1,), (2,)], 2, common=common))
        assert "one worker" in caught.value.remedy


def test_a_pool_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="no engine 'rya'") as caught:
        WorkerPool("rya")
    assert "ray" in caught.value.remedy
    with pytest.raises(InputError, match="no address"):
        WorkerPool("local", 2, "auto")
    with pytest.raises(InputError, match="0 workers"):
        WorkerPool("ray", 0)


def test_ray_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra) as caught:
        list(map_tasks(square, [(1,)], WorkerPool("ray")))
    assert "tutelage[ray]" in caught.value.remedy


@pytest.mark.slow
def test_no_cluster_at_the_address_is_told() -> None:
    pytest.importorskip("ray")
    deadline = time.monotonic() + 180
    while any("gcs_server" in path.read_text() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()):
        assert time.monotonic() < deadline, "an instance of other tests does not end"
        time.sleep(0.5)
    program = (
        "from tutelage.workers import WorkerPool, map_tasks\nfrom tutelage.errors import InputError\n"
        "try:\n    list(map_tasks(abs, [(1,)], WorkerPool('ray', address='auto')))\n"
        "except InputError as error:\n    assert error.where == 'auto', error.where\n    print(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "no Ray cluster" in done.stdout


@pytest.mark.slow
def test_ray_gives_the_same_in_the_same_order(ray: WorkerPool) -> None:
    results = list(map_tasks(square, [(i,) for i in range(6)], ray))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {pid for _, pid in results}
    assert list(map_tasks(threads, [()], ray)) == [1]
    assert list(map_tasks(joined, [(1,)], ray, common=("a",))) == ["a 1"]


@pytest.mark.slow
def test_ray_does_a_lost_workers_task_again(ray: WorkerPool, tmp_path: Path) -> None:
    assert list(map_tasks(killed_once, [(x,) for x in range(6)], ray, common=(tmp_path,))) == [0, 10, 20, 30, 40, 50]
    assert sorted((tmp_path / "done").read_text().split()) == list("012345")


@pytest.mark.slow
def test_rays_errors_are_ours(ray: WorkerPool) -> None:
    with pytest.raises(InputError, match="task 1") as told:
        list(map_tasks(fail, [(1,), (2,)], ray))
    assert (told.value.where, told.value.remedy) == ("file:3", "mend it")
    with pytest.raises(WorkerLost, match="ran out of memory") as caught:
        list(map_tasks(hungry, [(0,), (1,)], ray, names=["shard 0", "shard 1"]))
    assert caught.value.where == "shard 1"
    with pytest.raises(InputError, match="cannot be sent"):
        list(map_tasks(joined, [(1,)], ray, common=(Deaf(),)))
    with pytest.raises(WorkerLost, match="killed, 3 times") as caught:
        list(map_tasks(always_killed, [(2,)], ray, names=["shard 2"]))
    assert caught.value.where == "shard 2"
