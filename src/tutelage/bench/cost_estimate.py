"""What collecting and labelling cost a question, measured here, and what that makes of all of GQA and of a billion images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from tutelage.bench.worker_simulation import WorkerFleet, check, predicted_seconds
from tutelage.programs.values import Image
from tutelage.sdvp.collect import to_png
from tutelage.sdvp.stages import QUESTIONS_PER_SHARD
from tutelage.workers import single_threaded

if TYPE_CHECKING:
    from tutelage.modules.visual_module import VisualModule

HOUR = 3600.0


@dataclass(frozen=True)
class CostAssumptions:
    """What the extrapolation takes for granted. All but the sizes of GQA are our choice.

    ``seconds_a_call``: of every module, in place of what was measured; None: as measured with the toy modules.
    ``failures_a_worker_hour``: lost workers; ``restart_seconds`` until one is back. ``jobs``: folders that are filled side by
    side, each by a driver of its own, for a driver reads and merges in one process; the workers are shared out evenly.
    ``pixels``: width and height of a photograph.
    """

    name: str
    questions: int
    images: int
    workers: int = 64
    jobs: int = 16
    seconds_a_call: float | None = None
    failures_a_worker_hour: float = 0.01
    restart_seconds: float = 30.0
    pixels: tuple[int, int] = (640, 480)


GQA = CostAssumptions("all of GQA's training questions", 14_000_000, 72_000)
BILLION = CostAssumptions("a billion images, a question each", 10**9, 10**9, workers=1024, jobs=256)
SCENARIOS = (GQA, replace(GQA, name="the same, 20 ms a call", seconds_a_call=0.020), BILLION)


def bench(
    *,
    seed: int = 0,
    images: int = 200,
    smoke: bool = False,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, Any]:
    """``{measured, scenarios, simulation}``: see :func:`measure`, :func:`extrapolate` and
    :func:`tutelage.bench.worker_simulation.check`.

    ``images``: of synthetic scenes in GQA's layout, about ten questions each. ``smoke``: few of them, and networks that know
    nothing.
    """
    from tutelage import storage
    from tutelage.modules.symbolic import symbolic_modules
    from tutelage.sdvp import toy_modules
    from tutelage.sdvp.study.questions import questions_of

    store = storage.ContentStore(storage.cache_home() / "modules")
    with single_threaded():
        networks = toy_modules.generalists(seed, store, smoke)
        teachers = {
            "VQA": toy_modules.load_or_train(seed, "color", store, smoke),
            "LOC": toy_modules.load_or_train(seed, "loc", store, smoke),
        }
        progress(1, 4)
        measured = measure(networks, teachers, 12 if smoke else images, seed)
        progress(2, 4)
        questions = questions_of(
            "b_gqa", seed, "report", 4 * QUESTIONS_PER_SHARD if smoke else 8 * QUESTIONS_PER_SHARD, ("visprog",)
        )
        simulation = check(questions, {**symbolic_modules(), **networks}, seed=seed)
        progress(3, 4)
    scenarios = [extrapolate(measured, assumed) for assumed in SCENARIOS]
    progress(4, 4)
    return {"measured": measured, "scenarios": scenarios, "simulation": simulation, "smoke": smoke}


def measure(networks: Mapping[str, VisualModule], teachers: Mapping[str, VisualModule], images: int, seed: int) -> dict[str, Any]:
    """CPU seconds a question of each part of collecting and labelling, in this process with one thread, through the same
    functions as ``tutelage sdvp collect`` and ``label``; and what a photograph costs to read and to keep.

    A worker's part ends when the last shard stands; the driver's is reading the questions, and merging and saving the records.
    """
    from tutelage.datasets.synthetic.export import write_gqa
    from tutelage.modules.symbolic import symbolic_modules
    from tutelage.sdvp.label import Filters
    from tutelage.sdvp.sources import QuestionSource
    from tutelage.sdvp.stages import collect_to_folder, label_to_folder
    from tutelage.sdvp.teachers import teacher_from_module

    modules = {**symbolic_modules(), **networks}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_gqa(root / "gqa", seed, images)
        clock = CostParts()
        questions = QuestionSource("gqa", root / "gqa", "train").questions()
        clock("read")
        records = collect_to_folder(root / "records", questions, modules, progress=lambda done, total: clock("collect"))
        clock("merge records")
        labellers = {name: teacher_from_module(specialist) for name, specialist in teachers.items()}
        called = label_to_folder(
            root / "labelled", records, modules, labellers, Filters(), progress=lambda done, total: clock("label")
        )
        clock("merge labels")
        kept = sum(file.stat().st_size for file in root.glob("*/**/*.jsonl"))
    count = len(questions)
    calls = {name: len(found) / count for name, found in records.items()}
    labels = {name: len(found) / count for name, found in called.items()}
    return {
        "questions": count,
        "images": images,
        "calls_a_question": calls,
        "labels_a_question": labels,
        "seconds_a_question": {name: spent / count for name, spent in clock.spent.items()},
        "seconds_a_call": {name: call_seconds(networks[name], found) for name, found in records.items()},
        "bytes_a_question": kept / count,
        "photograph": photograph(GQA.pixels),
        "clock": "process_time",
        "threads": 1,
    }


class CostParts:
    """A stopwatch over CPU seconds: each mark gives the time since the last to the part it names."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._since = time.process_time()

    def __call__(self, part: str) -> None:
        """Count what was spent since the last mark to ``part``."""
        now = time.process_time()
        self.spent[part] = self.spent.get(part, 0.0) + now - self._since
        self._since = now


def call_seconds(module: VisualModule, records: list[Any], rounds: int = 3) -> float:
    """CPU seconds a call of a module, over at most 2,048 of the collected calls in its own batches; median of ``rounds``."""
    from tutelage.sdvp.collect import call_of

    calls = [call_of(record) for record in records[:2048]]
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        for first in range(0, len(calls), module.batch_size):
            module.run(calls[first : first + module.batch_size])
        taken.append((time.process_time() - began) / max(1, len(calls)))
    return median(taken)


def photograph(pixels: tuple[int, int], rounds: int = 5) -> dict[str, float]:
    """CPU seconds to read a JPEG of that size and to keep it as PNG, and the PNG's bytes: smooth shapes with a little noise, as
    in a photograph."""
    width, height = pixels
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), PIL.Image.BICUBIC)
    picture = np.clip(np.asarray(coarse) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    read, keep, kept = [], [], b""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photograph.jpg"
        PIL.Image.fromarray(picture).save(file, quality=90)
        for _ in range(rounds):
            clock = CostParts()
            image = Image.from_file(file)
            clock("read")
            kept = to_png(image)
            clock("keep")
            read.append(clock.spent["read"])
            keep.append(clock.spent["keep"])
    return {"read_seconds": median(read), "keep_seconds": median(keep), "png_bytes": len(kept)}


def extrapolate(measured: Mapping[str, Any], assumptions: CostAssumptions) -> dict[str, Any]:
    """Hours and bytes of a scenario from what a question, a call and a photograph were measured to cost.

    Workers: collecting and labelling, and keeping each picture once. Driver: reading each picture once, merging. A job first
    reads, then its workers fill the shards (:func:`tutelage.bench.worker_simulation.predicted`), then it merges.
    """
    each, photo = measured["seconds_a_question"], measured["photograph"]
    worker = each["collect"] + each["label"]
    if assumptions.seconds_a_call is not None:
        calls, labels = measured["calls_a_question"], measured["labels_a_question"]
        own = each["collect"] - sum(count * measured["seconds_a_call"][name] for name, count in calls.items())
        worker = max(0.0, own) + (sum(calls.values()) + sum(labels.values())) * assumptions.seconds_a_call
    seen = assumptions.images / assumptions.questions
    worker += seen * photo["keep_seconds"]
    driver = each["read"] + each["merge records"] + each["merge labels"] + seen * photo["read_seconds"]
    questions = assumptions.questions / assumptions.jobs
    fleet = WorkerFleet(
        max(1, assumptions.workers // assumptions.jobs), HOUR / assumptions.failures_a_worker_hour, assumptions.restart_seconds
    )
    shards = max(1, round(questions / QUESTIONS_PER_SHARD))
    filling = predicted_seconds(shards, worker * QUESTIONS_PER_SHARD, fleet)
    return {
        "name": assumptions.name,
        "assumptions": asdict(assumptions),
        "worker_core_hours": assumptions.questions * worker / HOUR,
        "driver_core_hours": assumptions.questions * driver / HOUR,
        "hours": (questions * driver + filling) / HOUR,
        "share_of_workers": filling / (questions * driver + filling),
        "shards": shards * assumptions.jobs,
        "records_gib": assumptions.questions * measured["bytes_a_question"] / 2**30,
        "pictures_gib": assumptions.images * photo["png_bytes"] / 2**30,
    }
