"""How long shards take a fleet of workers that fail now and then: a formula, and the simulation that it is checked by.

Time is virtual: the stub modules and the fleet move clocks of their own, and nothing sleeps.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import stream
from tutelage.programs.types import Call, Module, ModuleOutputs, Signature
from tutelage.sdvp.questions import ProgramParser, Question
from tutelage.sdvp.stages import QUESTIONS_PER_SHARD
from tutelage.seeds import numpy_rng

MARGIN = 0.05
"""How far the formula may be from the simulation, as a share of the simulated time (our choice)."""


@dataclass(frozen=True)
class WorkerFleet:
    """``workers`` alike; each is lost after an exponential time with the mean ``seconds_to_failure``, and is back
    ``restart_seconds`` later. Its shard is then done again from the start."""

    workers: int
    seconds_to_failure: float = math.inf
    restart_seconds: float = 0.0


def expected_seconds(shard: float, fleet: WorkerFleet) -> float:
    """Worker seconds until a shard of ``shard`` seconds is done, failures and restarts counted.

    Attempts with memoryless failures at the rate r take ``(exp(r s) - 1) (1/r + R)`` on average, R the restart.
    """
    rate = 1 / fleet.seconds_to_failure
    return shard if rate == 0 else math.expm1(rate * shard) * (1 / rate + fleet.restart_seconds)


def predicted_seconds(shards: int, shard: float, fleet: WorkerFleet) -> float:
    """Seconds until ``shards`` shards of ``shard`` seconds on average are done: an even split, and half a shard's time more,
    for the last ones end apart; without failures equal shards end in step."""
    each = expected_seconds(shard, fleet)
    if math.isinf(fleet.seconds_to_failure):
        return math.ceil(shards / fleet.workers) * each
    return shards * each / fleet.workers + each / 2


def simulate(shards: Sequence[float], fleet: WorkerFleet, seed: int) -> tuple[float, int]:
    """(seconds until all ``shards`` are done, how many were lost on the way), each given to the worker that is free first."""
    rng = numpy_rng(seed, "fleet")
    free = [0.0] * fleet.workers
    waiting, end, lost = list(reversed(shards)), 0.0, 0
    while waiting:
        now, shard = heapq.heappop(free), waiting.pop()
        alive = float(rng.exponential(fleet.seconds_to_failure)) if math.isfinite(fleet.seconds_to_failure) else math.inf
        if alive < shard:
            waiting.append(shard)
            lost += 1
            heapq.heappush(free, now + alive + fleet.restart_seconds)
        else:
            end = max(end, now + shard)
            heapq.heappush(free, now + shard)
    return end, lost


class TimedStub:
    """A module in another's place: it gives what that one gives, and moves the clock by ``batch`` + ``call`` a call.

    An accelerator's shape: so much for any batch, so much for each call in it.
    """

    symbolic = False

    def __init__(self, module: Module, clock: list[float], batch: float, call: float):
        self._module, self._clock, self._batch, self._call = module, clock, batch, call
        self.name, self.version, self.batch_size = module.name, module.version, module.batch_size

    @property
    def signature(self) -> Signature:
        """The other's."""
        return self._module.signature

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """The other's answers, on the clock."""
        self._clock[0] += self._batch + self._call * len(calls)
        return self._module.run(calls)


def stub_shards(
    questions: Sequence[Question], modules: Mapping[str, Module], shard_size: int, batch: float, call: float
) -> tuple[list[float], dict[str, float]]:
    """The virtual seconds of each shard of ``shard_size`` questions, its programs run over timed stubs, and the calls a question
    by module, each counted once where the scheduler asks it once."""
    clock = [0.0]
    stubs = {name: module if module.symbolic else TimedStub(module, clock, batch, call) for name, module in modules.items()}
    parser = ProgramParser("visprog", modules)
    shards, calls = [], dict.fromkeys((name for name, module in modules.items() if not module.symbolic), 0)
    for first in range(0, len(questions) - shard_size + 1, shard_size):
        before = clock[0]
        jobs = [Job(q.id, parser.parse(q), dict(q.images), q.text, q.task) for q in questions[first : first + shard_size]]
        seen_calls: dict[str, set[str]] = {name: set() for name in calls}
        for trace in stream(jobs, RunContext(stubs)):
            for record in trace.steps:
                if record.module in seen_calls:
                    seen_calls[record.module].add(record.input_hash)
        for name, found in seen_calls.items():
            calls[name] += len(found)
        shards.append(clock[0] - before)
    total = max(1, len(shards) * shard_size)
    return shards, {name: count / total for name, count in calls.items()}


def stub_seconds(shard_size: int, calls: Mapping[str, float], modules: Mapping[str, Any], batch: float, call: float) -> float:
    """What a shard of ``shard_size`` questions should take over timed stubs, from the calls a question
    alone: each module's calls in
    batches that are full but for the last."""
    call_counts = {name: shard_size * each for name, each in calls.items()}
    return sum(count * call + math.ceil(count / modules[name].batch_size) * batch for name, count in call_counts.items())


def check(
    questions: Sequence[Question],
    modules: Mapping[str, Module],
    *,
    shard_size: int = QUESTIONS_PER_SHARD,
    rounds: int = 60,
    workers: int = 32,
    batch: float = 0.020,
    call: float = 0.001,
    seed: int = 0,
) -> dict[str, Any]:
    """Predicted and simulated time of ``rounds`` shards a worker over timed stubs, workers failing every fifth shard or so.

    The prediction knows the first half of the questions, the simulation draws its shards from the second.
    """
    half = len(questions) // 2
    _, known = stub_shards(questions[:half], modules, shard_size, batch, call)
    shards, _ = stub_shards(questions[half:], modules, shard_size, batch, call)
    shard = stub_seconds(shard_size, known, modules, batch, call)
    fleet = WorkerFleet(workers, 5 * shard, shard / 2)
    drawn = numpy_rng(seed, "shards").choice(shards, workers * rounds).tolist()
    seconds, lost = simulate(drawn, fleet, seed)
    formula = predicted_seconds(len(drawn), shard, fleet)
    apart = formula / seconds - 1
    return {
        "clock": "virtual",
        "workers": workers,
        "shards": len(drawn),
        "questions_a_shard": shard_size,
        "stub_seconds_a_batch": batch,
        "stub_seconds_a_call": call,
        "seconds_to_failure": fleet.seconds_to_failure,
        "restart_seconds": fleet.restart_seconds,
        "shards_lost": lost,
        "shard_seconds": {"predicted": shard, "simulated": fmean(shards)},
        "seconds": {"predicted": formula, "simulated": seconds},
        "difference": apart,
        "margin": MARGIN,
        "within": abs(apart) <= MARGIN,
    }
