"""Plans: several training jobs as one, each with students of earlier ones as its start, its teacher or its data.

A plan is a mapping from names to functions that build a job, in order; a function is given the students made so far::

    plan = {
        "assistant": lambda made: TrainingJob(Medium(), teacher, KD(), data, settings),
        "student": lambda made: TrainingJob(Small(), made["assistant"], KD(), data, settings),
    }
    done = train_plan(plan, "runs/two-steps")
    done.student  # of the last job
    done.provenance  # which job made which teacher, start and data, with fingerprints

It runs, resumes and is kept as one: each job has a folder inside the plan's, and the same call goes on where it was
stopped, with the same bits.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import storage
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.parallel import SingleProcess
from tutelage.distillation.result import TrainingResult
from tutelage.distillation.teacher import network_fingerprint
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, did_you_mean
from tutelage.seeds import derive

RESULT_FILE = "result.json"
"""The plan's provenance and figures, in its folder."""


class Students(Mapping[str, nn.Module]):
    """The students of the jobs that are done, by the name of the job.

    Each look-up gives a copy of its own, in eval mode, so that one student may be a start here and a teacher there.

    Raises:
        InputError: no earlier job has this name.
    """

    def __init__(self, networks: Mapping[str, nn.Module]):
        self._networks = networks
        self.given: list[tuple[str, nn.Module]] = []
        """Each copy that was given out, with its job's name."""

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._networks:
            known = list(self._networks)
            remedy = did_you_mean(name, known) if known else "it is the first job of the plan"
            raise InputError(f"no earlier job {name!r}", where="plan", remedy=remedy)
        network = copy.deepcopy(self._networks[name]).eval()
        self.given.append((name, network))
        return network

    def __iter__(self) -> Iterator[str]:
        return iter(self._networks)

    def __len__(self) -> int:
        return len(self._networks)


TrainingPlan = Mapping[str, Callable[[Students], TrainingJob]]
"""Names of jobs, in order, and what builds each from the students of earlier ones."""


@dataclass
class PlanResult:
    """What :func:`train_plan` gives.

    ``results``: of each job by name. ``provenance``: an entry a job, in order: ``{job, uses: {earlier job: [start, teacher
    or data]}, start, teacher, data, student}``, the last four as fingerprints (``teacher`` None where there is none), and its
    ``figures`` and ``seconds``.
    """

    results: dict[str, TrainingResult] = field(default_factory=dict)
    provenance: list[dict[str, Any]] = field(default_factory=list)

    @property
    def student(self) -> nn.Module:
        """The plain student of the last job, in eval mode."""
        return self.results[list(self.results)[-1]].student


def train_plan(
    plan: TrainingPlan,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    check: bool = True,
    parallel: SingleProcess | None = None,
) -> PlanResult:
    """Run the jobs of ``plan`` one after the other.

    Args:
        plan: see :data:`TrainingPlan`. A function must build the same job whenever it is called with the same students;
            networks that it initialises at random are the same, for torch's generator is seeded before each call.
        folder: where each job's run is kept, as ``folder/NAME``, and ``result.json``; the same call goes on where it was
            stopped, and reads finished jobs back.
        seed: of those random starts.
        progress: called with (job, steps done, steps).
        check: look at each job's first batch before training.
        parallel: the processes that share the work; see :func:`trainer.train`.

    Raises:
        InputError: no job, a name that is no file name, or an earlier student that does not exist.
        StaleError: ``folder`` holds another plan, or a job of other settings, data or teacher.
    """
    if not plan:
        raise InputError("no job to run", where="plan", remedy="give at least one")
    for name in plan:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise InputError(f"{name!r} is no name of a job", where="plan", remedy="letters, digits, - and _: it names a folder")
    together = parallel or SingleProcess()
    if folder is not None:
        with together.main_first():
            storage.RunFolder(folder, {"kind": "plan", "jobs": list(plan), "seed": seed})
    done = PlanResult()
    for name, build in plan.items():
        made = Students({earlier: result.student for earlier, result in done.results.items()})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "plan", name))
            job = build(made)
        entry: dict[str, Any] = {
            "job": name,
            "uses": _uses(job, made),
            "start": network_fingerprint(job.student),
            "teacher": job.teacher.fingerprint if job.teacher is not None else None,
            "data": job.data.fingerprint,
        }
        place = Path(folder) / name if folder is not None else None
        tell = None if progress is None else _named(progress, name)
        result = train(job, place, tell, check, parallel=parallel)
        done.results[name] = result
        entry |= {"student": network_fingerprint(result.student), "figures": result.metrics, "seconds": result.seconds}
        done.provenance.append(entry)
    if folder is not None and together.main:
        storage.write_json(Path(folder) / RESULT_FILE, {"format": "tutelage-plan", "version": 1, "jobs": done.provenance})
    return done


def _uses(job: TrainingJob, made: Students) -> dict[str, list[str]]:
    """What each earlier student that the job was built from is to it."""
    roles: dict[str, list[str]] = {}
    teachers = job.teacher.networks if job.teacher is not None else ()
    for name, network in made.given:
        starts = any(part is network for part in job.student.modules())
        teaches = any(part is network for one in teachers for part in one.modules())
        found = [role for role, holds in (("start", starts), ("teacher", teaches)) if holds] or ["data"]
        roles[name] = sorted({*roles.get(name, []), *found})
    return roles


def _named(progress: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda done, steps: progress(name, done, steps)
