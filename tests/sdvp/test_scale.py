"""Collecting and labelling by several workers, one of them killed: the same files as one process writes, byte for byte."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage import workers
from tutelage.cli.main import app
from tutelage.datasets.synthetic.export import write_gqa
from tutelage.errors import InputError, StorageError
from tutelage.modules.function_module import module
from tutelage.programs.types import Call
from tutelage.programs.values import Box, Image
from tutelage.sdvp import stages
from tutelage.sdvp.collect import Records, load_records
from tutelage.sdvp.stages import collect_to_folder, label_to_folder
from tutelage.sdvp.teachers import ModuleTeacher, from_callable
from tutelage.workers import WorkerLost, WorkerPool

from . import small

MARKS = "TUTELAGE_TEST_MARKS"
"""The environment's name of a folder where the first worker that is killed over a stage leaves its mark; unset: none is."""


def fatal(image: Image, stage: str) -> None:
    """Kill this process over one of the pictures, once."""
    if MARKS in os.environ and image.root_key == small.picture(7, "green").root_key:
        mark = Path(os.environ[MARKS]) / stage
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@module
def MIDDLE(image: Image) -> list[Box]:
    """As in :mod:`small`, in a process that may be killed."""
    fatal(image, "collecting")
    return small.MIDDLE(image)


def brightest(calls: Sequence[Call]) -> list[dict[str, float]]:
    """The right colour, with shares that no decimal fraction holds; kills its process over one of the pictures, once."""
    for call in calls:
        fatal(call.args["image"], "labelling")
    light = [call.args["image"].bytes.mean((1, 2)) for call in calls]
    return [{color: float(share) for color, share in zip(small.COLORS, one / one.sum())} for one in light]


def hungry(calls: Sequence[Call]) -> list[str]:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        if any(call.args["image"].root_key == small.picture(7, "green").root_key for call in calls):
            resource.setrlimit(resource.RLIMIT_AS, (held + 2**28, before[1]))
            bytearray(2**30)
        return small.brightest(calls)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def teachers() -> dict[str, ModuleTeacher]:
    return {"COLOR": from_callable(brightest)}


def run(folder: Path, pool: WorkerPool | int) -> Records:
    modules = small.modules(MIDDLE=MIDDLE)
    records = collect_to_folder(folder / "records", small.questions(24), modules, shard_size=4, pool=pool)
    return label_to_folder(folder / "labelled", records, modules, teachers(), shard_size=5, pool=pool)


def written(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, 1)
    return folder


@pytest.fixture(scope="module")
def ray(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An instance of Ray that all tests here use, and where its workers leave their marks."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARKS, str(tmp_path_factory.mktemp("marks")))  # before its workers are started
        with workers._Ray(os.getpid, (), WorkerPool("ray", 2), 1):
            yield Path(os.environ[MARKS])


def marks(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.slow
def test_two_processes_killed_once_a_stage_write_what_one_writes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "marks").mkdir()
    monkeypatch.setenv(MARKS, str(tmp_path / "marks"))
    run(tmp_path / "out", WorkerPool("local", 2))
    assert marks(tmp_path / "marks") == ["collecting", "labelling"], "a worker was killed in each stage"
    assert written(tmp_path / "out") == written(whole)


@pytest.mark.slow
def test_two_workers_of_ray_killed_once_a_stage_write_what_one_process_writes(whole: Path, tmp_path: Path, ray: Path) -> None:
    run(tmp_path / "out", WorkerPool("ray", 2))
    assert marks(ray) == ["collecting", "labelling"], "a worker was killed in each stage"
    assert written(tmp_path / "out") == written(whole)


def test_labels_come_back_bit_for_bit(whole: Path) -> None:
    said = load_records(whole / "labelled")["COLOR"]
    assert len(said) == 24
    for record, shares in zip(said, brightest([Call("COLOR", record.args) for record in said])):
        assert record.teacher is not None and record.teacher["dist"] == shares and record.teacher["hard"] in small.COLORS


def test_a_worker_without_memory_names_its_shard_and_loses_no_other(whole: Path, tmp_path: Path) -> None:
    records, modules = load_records(whole / "records"), small.modules()
    with pytest.raises(WorkerLost, match="ran out of memory") as caught:
        label_to_folder(tmp_path, records, modules, {"COLOR": from_callable(hungry, version="1")}, shard_size=5)
    assert str(caught.value.where).startswith("shard 2 of 5, ") and "smaller parts" in caught.value.remedy
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "parts").glob("*.jsonl")}
    assert kept and Path(str(caught.value.where).partition(", ")[2]).name not in kept
    redone: list[int] = []
    with_room = {"COLOR": from_callable(small.brightest, "hungry", version="1")}
    label_to_folder(tmp_path, records, modules, with_room, shard_size=5, progress=lambda done, _: redone.append(done))
    assert redone == list(range(len(kept) + 1, 6))


def test_a_shard_that_cannot_be_seen_from_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "collect_shard", lambda *given: None)
    with pytest.raises(StorageError, match="cannot be seen") as caught:
        collect_to_folder(tmp_path, small.questions(3), small.modules())
    assert "shares" in caught.value.remedy


def test_a_shard_cut_short_is_told(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "label_shard", lambda teachers, shard, name, calls: shard.write_text("null\n"))
    (tmp_path / "parts").mkdir()
    with pytest.raises(InputError, match="its digest, the last line, is missing"):
        label_to_folder(tmp_path, load_records(whole / "records"), small.modules(), teachers())


@pytest.mark.slow
def test_the_commands_take_an_engine(tmp_path: Path, ray: Path) -> None:
    write_gqa(tmp_path / "gqa", seed=1, images=4)

    def sdvp(*words: object) -> None:
        done = CliRunner().invoke(app, ["sdvp", *map(str, words), "--quick"])
        assert done.exit_code == 0, done.output

    for name, extra in (("one", []), ("ray", ["--engine", "ray", "--workers", 2])):
        out = tmp_path / name
        sdvp("collect", tmp_path / "gqa", out / "records", "--split", "val", "--shard-size", 6, *extra)
        sdvp("label", out / "records", out / "labelled", "--teacher=VQA=color", "--teacher=LOC=loc", "--shard-size", 50, *extra)
    assert written(tmp_path / "one") == written(tmp_path / "ray")


def test_an_engine_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["sdvp", "collect", str(tmp_path), str(tmp_path / "out"), "--address", "auto", "--quick"])
    assert done.exit_code == 2 and "no address" in done.stderr
