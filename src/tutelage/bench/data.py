"""Data side by side: the loader beside a plain torch ``DataLoader`` over the same files and the same transform, memory over
ten times the items, and a run with a cached teacher beside the student alone.

The files are JPEGs made here. Variants take turns; a figure is the median over rounds, a ratio the median of the rounds' own
ratios. Two workers and the training process share the machine's cores, so times are wall time.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, RandomSampler

from tutelage import storage, workers
from tutelage.bench.data_memory import BATCH as MADE_BATCH
from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build
from tutelage.distillation.data import SampleOrder
from tutelage.distillation.data.images import ImageFolder, ImageTransform
from tutelage.distillation.data.loader import BatchLoader
from tutelage.distillation.data.sources import image_folder
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.small_models import ResNet, SmallCNN
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.environment import run_metadata
from tutelage.errors import InputError
from tutelage.systems.kd import KD

FILES, CLASSES, SIDE = 20_000, 10, 256
"""How many JPEG files, in how many folders, of how many pixels a side."""

CROP, AREA, FLIP = 64, (0.35, 1.0), 0.5
BATCH, WORKERS = 64, 2
ITEMS = 1_280_000
"""Items made on the fly whose memory is measured, beside a tenth of them."""

MIB_LIMIT = 1024.0


def bench(
    rounds: int = 6,
    *,
    smoke: bool = False,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Make the files, then measure loading, memory and a cached teacher.

    Returns:
        ``{loading, memory, cached, verdicts, …}`` and the stamp of the environment.

    Raises:
        InputError: no round.
        StorageError: no room for the storage.
    """
    if rounds < 1:
        raise InputError("nothing to measure", where="--rounds", remedy="at least 1")
    rounds, count, items = (1, 256, 64 * MADE_BATCH) if smoke else (rounds, FILES, ITEMS)
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_files(folder / "images", count, SIDE)
            progress(1, 10)
            loading = measure_loading(folder / "images", rounds, 2 if smoke else 60)
            progress(4, 10)
            cached = measure_cached(folder, rounds, 4 if smoke else 25)
            progress(6, 10)
    finally:
        torch.set_num_threads(threads)
    memory = measure_memory(items)
    progress(10, 10)
    result = {"loading": loading, "memory": memory, "cached": cached}
    return result | {
        "verdicts": verdicts(result),
        "files": count,
        "file_pixels": SIDE,
        "rounds": rounds,
        "smoke": smoke,
        "clock": "wall time, one thread a process",
        "seconds": time.perf_counter() - began,
        **run_metadata([0]),
    }


# -- files -------------------------------------------------------------------------------------------------------------


def make_files(folder: Path, count: int, side: int) -> None:
    """``count`` JPEG files of smooth noise, ``side`` pixels square, in :data:`CLASSES` sub-folders, by two processes."""
    for label in range(CLASSES):
        (folder / f"class-{label}").mkdir(parents=True)
    shares = [(numbers.tolist(),) for numbers in np.array_split(np.arange(count), max(1, count // 500))]
    for _ in workers.map_tasks(_write, shares, WORKERS, common=(folder, side)):
        pass


def _write(folder: Path, side: int, numbers: Sequence[int]) -> None:
    for number in numbers:
        rng = np.random.default_rng(number)
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), PIL.Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"class-{number % CLASSES}" / f"{number}.jpg", quality=90)


# -- loading -----------------------------------------------------------------------------------------------------------


def plain_seconds(folder: Path, batches: int) -> float:
    """A loop over a plain ``DataLoader`` with the same files, transform, batch and workers."""
    dataset = ImageFolder(folder, ImageTransform(CROP, AREA, FLIP))
    sampler = RandomSampler(dataset, num_samples=batches * BATCH, replacement=len(dataset) < batches * BATCH)
    began = time.perf_counter()
    for images, labels in DataLoader(dataset, BATCH, sampler=sampler, num_workers=WORKERS):
        assert images.shape == (BATCH, 3, CROP, CROP) and len(labels) == BATCH
    return time.perf_counter() - began


def loader_seconds(folder: Path, batches: int) -> float:
    """The same by :class:`BatchLoader`, each item in a view that can be replayed."""
    data = image_folder(folder, CROP, crop_area=AREA, flip=FLIP, workers=WORKERS)
    began = time.perf_counter()
    with contextlib.closing(BatchLoader(data, SampleOrder(len(data), BATCH, 0), batches)) as loader:
        for number in range(batches):
            assert loader.take(number).inputs.shape == (BATCH, 3, CROP, CROP)
    return time.perf_counter() - began


def measure_loading(folder: Path, rounds: int, batches: int) -> dict[str, Any]:
    """``{plain, loader: [images a second of each round], ratio}``: the loader's speed over the plain loop's."""
    plain_seconds(folder, 2), loader_seconds(folder, 2)  # what is loaded on first use
    plain, loader = [], []
    for number in range(rounds):
        for speeds, measure in ((plain, plain_seconds), (loader, loader_seconds))[:: 1 if number % 2 else -1]:
            speeds.append(batches * BATCH / measure(folder, batches))
    return {
        "plain_images_per_s": median(plain),
        "loader_images_per_s": median(loader),
        "plain": plain,
        "loader": loader,
        "ratio": median(b / a for a, b in zip(plain, loader)),
    }


# -- memory ------------------------------------------------------------------------------------------------------------


def measure_memory(items: int) -> dict[str, Any]:
    """The peak of a process that fetches items made on the fly with two workers: all of ``items``, and half as many
    batches of a data set a tenth as large (allocators settle over the first thousand batches, whatever the items).

    Raises:
        InputError: such a process failed; the message ends with its last words.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count, passes in ((items // 10, items // MADE_BATCH // 2), (items, items // MADE_BATCH)):
            out = Path(folder) / f"{count}.json"
            words = [sys.executable, "-m", "tutelage.bench.data_memory", str(out), "--items", str(count), "--passes", str(passes)]
            variables = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            done = subprocess.run([*words, "--workers", str(WORKERS)], env=variables, capture_output=True, text=True, check=False)
            if done.returncode:
                raise InputError(f"the measured process failed: {done.stderr.strip()[-2000:]}", where="bench data")
            rows.append(storage.read_json(out))
    return {"rows": rows, "ratio": rows[-1]["peak_mib"] / rows[0]["peak_mib"], "peak_mib": rows[-1]["peak_mib"]}


# -- a cached teacher --------------------------------------------------------------------------------------------------


def measure_cached(folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """``{alone, cached: [ms a step of each round], ratio}``: a student that reads its teacher's outputs from a cache, and the
    same student on labels alone, both on the folder of images with two workers."""
    data = image_folder(folder / "images", CROP, crop_area=AREA, flip=FLIP, workers=WORKERS)
    settings = TrainingSettings(steps=steps, batch_size=BATCH, lr=1e-3, log_every=0)

    def job(teacher: Any) -> TrainingJob:
        student = SmallCNN(CLASSES, 16, 32, inputs=3, stride=2)
        return TrainingJob(student, teacher, Supervised() if teacher is None else KD(), data, settings, "bench data")

    live = job(ResNet(20, CLASSES))
    teacher = CachedTeacher(build(live, folder / "cache", "fp16"), live.teacher)
    train(job(None)), train(job(teacher))  # what is loaded on first use
    alone, cached = [], []
    for number in range(rounds):
        for times, who in ((alone, None), (cached, teacher))[:: 1 if number % 2 else -1]:
            times.append(1000 * train(job(who)).seconds / steps)
    return {
        "alone_ms_per_step": median(alone),
        "cached_ms_per_step": median(cached),
        "alone": alone,
        "cached": cached,
        "ratio": median(b / a for a, b in zip(alone, cached)),
    }


# -- what is promised --------------------------------------------------------------------------------------------------


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each figure beside its target."""
    loading, memory, cached = (result[name] for name in ("loading", "memory", "cached"))
    last = memory["rows"][-1]["items"]
    rows = [
        ("images a second over a plain DataLoader loop", loading["ratio"], "at least 0.95", loading["ratio"] >= 0.95),
        ("peak memory over ten times the items", memory["ratio"], "at most 1.05", memory["ratio"] <= 1.05),
        (f"peak MiB over {last:,} items", memory["peak_mib"], f"below {MIB_LIMIT:.0f}", memory["peak_mib"] < MIB_LIMIT),
        ("a cached step over the student alone", cached["ratio"], "at most 1.05", cached["ratio"] <= 1.05),
    ]
    return [{"claim": claim, "value": value, "target": target, "met": met} for claim, value, target, met in rows]


def table(result: dict[str, Any]) -> str:
    """The figures and verdicts as plain text."""
    loading, cached = result["loading"], result["cached"]
    lines = [
        f"{result['files']:,} JPEG files of {result['file_pixels']} x {result['file_pixels']}, {WORKERS} workers: "
        f"{loading['loader_images_per_s']:.0f} images/s, plain DataLoader {loading['plain_images_per_s']:.0f}",
        *(f"{row['items']:>9,} items made on the fly: peak {row['peak_mib']:.0f} MiB" for row in result["memory"]["rows"]),
        f"a step: student alone {cached['alone_ms_per_step']:.1f} ms, cached teacher {cached['cached_ms_per_step']:.1f} ms",
    ]
    for verdict in result["verdicts"]:
        mark = "met   " if verdict["met"] else "missed"
        lines.append(f"{mark} {verdict['claim']}: {verdict['value']:.3f} ({verdict['target']})")
    if result["smoke"]:
        lines.append("a smoke test: the figures mean nothing")
    return "\n".join(lines)
