"""GQA at full size: a million questions of its layout read and scored, with the memory of a process that does nothing else."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tutelage import storage
from tutelage.datasets import gqa, gqa_metrics
from tutelage.datasets.json_records import size_of
from tutelage.datasets.synthetic import export
from tutelage.environment import process_memory
from tutelage.seeds import numpy_rng

SCENES = 200
"""Scenes of which every question is written; their questions are repeated under new ids."""
RIGHT = 0.6
"""How many predictions are right."""
Progress = Callable[[float, float | None], None]


def bench(folder: str | Path, questions: int = 1_000_000, *, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Write files of ``questions`` questions into ``folder`` (those already there are used), then read and score them, each
    in a process of its own.

    Returns:
        {"questions", "bytes", "reading": {"seconds", "questions_per_s", "peak_rss_mib", "rss_mib": [at each tenth]},
        "scoring": {"seconds", "questions_per_s", "peak_rss_mib"}, "scores", "limit_mib", "within_limit"}: reading parses and
        checks every field; scoring reads questions, predictions and choices, and computes every official metric but
        grounding.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = Path(folder)
    names = [folder / f"bench_{part}.json" for part in ("all_questions", "predictions", "choices")]
    head = {"bench": "gqa", "questions": questions, "seed": seed, "scenes": SCENES, "right": RIGHT}
    run = storage.RunFolder(folder, head)
    if not run.done("written.json"):
        _write(names, questions, seed, progress)
        storage.write_json(folder / "written.json", head)
    reading = _alone(_read, str(names[0]), questions)
    scoring = _alone(_score, *map(str, names))
    scores = scoring.pop("scores")
    limit = 1024.0
    return {
        "questions": questions,
        "bytes": size_of(names[0]),
        "reading": reading,
        "scoring": scoring,
        "scores": {name: scores[name] for name in (*gqa_metrics.METRICS, "questions", "balancedQuestions")},
        "limit_mib": limit,
        "within_limit": scoring["peak_rss_mib"] <= limit,
        "seed": seed,
    }


def records(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], dict[str, list[str]]]]:
    """``count`` questions about synthetic scenes as GQA writes them, with their choices: a few scenes' again and again, the
    ids of questions, images and what is entailed renumbered."""
    scenes = [list(found) for found in export.gqa_records(seed, SCENES)]
    written = 0
    for turn in itertools.count():
        for found in scenes:
            if written + len(found) > count:
                found = found[: count - written]
            here = {question_id for question_id, _, _ in found}
            for question_id, record, choices in found:
                new = record | {"imageId": f"{turn}n{record['imageId']}"}
                for field in ("entailed", "equivalent"):
                    new[field] = [f"{turn}q{name}" for name in record[field] if name in here]
                yield f"{turn}q{question_id}", new, choices
            written += len(found)
            if written == count:
                return


def _write(names: list[Path], count: int, seed: int, progress: Progress | None) -> None:
    rng = numpy_rng(seed, "bench", "gqa")
    pool = [answer for _, record, _ in itertools.islice(records(count, seed), 500) if (answer := record["answer"])]
    with (
        export.JsonMemberWriter(names[0]) as questions,
        export.JsonMemberWriter(names[2]) as choices,
        storage.atomic_write(names[1]) as predictions,
    ):
        for number, (question_id, record, choice) in enumerate(records(count, seed)):
            right, other = rng.random() < RIGHT, pool[int(rng.integers(len(pool)))]
            prediction = {"questionId": question_id, "prediction": record["answer"] if right else other}
            questions.add(question_id, record)
            choices.add(question_id, choice)
            predictions.write((b"[" if number == 0 else b",\n") + json.dumps(prediction).encode())
            if progress is not None and number % 1000 == 0:
                progress(number, count)
        predictions.write(b"]\n")


def _alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What ``function`` finds in a new process, with the most memory that process held."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found: dict[str, Any] = pool.submit(function, *arguments).result()
    return found


def _read(questions: str, count: int) -> dict[str, Any]:
    started, marks, done = time.perf_counter(), [], 0
    for done, _ in enumerate(gqa.read_questions(questions), 1):
        if done % max(1, count // 10) == 0:
            marks.append(process_memory("VmRSS"))
    return _figures(started, done) | {"rss_mib": marks}


def _score(questions: str, predictions: str, choices: str) -> dict[str, Any]:
    started = time.perf_counter()
    scores = gqa_metrics.evaluate(questions, predictions, choices=choices, consistency=True)
    return _figures(started, scores["questions"]) | {"scores": scores}


def _figures(started: float, questions: int) -> dict[str, Any]:
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "questions_per_s": questions / seconds, "peak_rss_mib": process_memory("VmHWM")}
