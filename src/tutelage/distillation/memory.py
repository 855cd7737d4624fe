"""The peak of tensor memory in a step, from the allocator's own record."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tutelage.distillation.job import TrainingJob
from tutelage.distillation.trainer import Trainer


def step_peak(step: Callable[[], object], networks: tuple[nn.Module, ...] = (), device: str = "cpu") -> int:
    """Bytes of tensors that are alive at the worst moment of ``step()``, beyond what is there all the time.

    Counted are what the step allocates (activations, what autograd saves, temporaries) and the gradients that
    ``networks`` hold when it begins; not counted are weights and the optimiser's state, which have to exist before
    (run the step once beforehand), and scratch space that an operator takes from elsewhere.
    """
    held = sum(p.grad.nbytes for network in networks for p in network.parameters() if p.grad is not None)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return held + torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    results = record.profiler.kineto_results if record.profiler is not None else None
    assert results is not None
    events = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        alive += change
        peak = max(peak, alive)
    return held + peak


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library writes notes to file descriptor 2, which no Python stream can hold back."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def job_peak(job: TrainingJob) -> int:
    """:func:`step_peak` of the second step of ``job``, which is trained by two steps: give a copy."""
    trainer = Trainer(job, check=False)
    job.student.train(), job.method.train()
    trainer.advance()
    return step_peak(trainer.advance, (job.student, job.method), job.settings.device)
