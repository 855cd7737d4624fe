"""A plan of two jobs that a test runs in a process of its own, and kills: FOLDER [JOB STEP]."""

from __future__ import annotations

import os
import signal
import sys

from torch import nn

from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.plan import PlanResult, train_plan

from .toy import Distil, Net, samples

SETTINGS = TrainingSettings(steps=12, batch_size=16, lr=0.01, checkpoint_every=4, log_every=5)


class Random(Net):
    """A network that starts at random, by torch's global generator."""

    def __init__(self, width: int):
        super().__init__(width)
        for part in (self.inner, self.head):
            nn.init.normal_(part.weight)


def run(folder: str | None, kill: tuple[str, int] | None = None) -> PlanResult:
    def progress(job: str, done: int, steps: int) -> None:
        if kill == (job, done):
            os.kill(os.getpid(), signal.SIGKILL)

    plan = {
        "assistant": lambda made: TrainingJob(Random(12), Net(16, seed=1), Distil(), samples(), SETTINGS),
        "student": lambda made: TrainingJob(Random(8), made["assistant"], Distil(), samples(), SETTINGS),
    }
    return train_plan(plan, folder, progress=progress)


if __name__ == "__main__":
    folder, *at = sys.argv[1:]
    run(folder, (at[0], int(at[1])) if at else None)
