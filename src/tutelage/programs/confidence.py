"""How sure a run is of its answer, from what its modules say."""

from __future__ import annotations

from tutelage.programs.trace import StepRecord, Trace


def probability(record: StepRecord) -> float | None:
    """How probable the module thinks its own answer; None where it does not say."""
    dist, output = record.output_dist, record.output
    if dist is None:
        return None
    if isinstance(output, bool):
        return dist.get("yes" if output else "no")
    return dist.get(output if isinstance(output, str) else "found")


def confidence(trace: Trace) -> float | None:
    """The product of the steps' probabilities, as if they erred independently (ours); None where no module says one."""
    product, known = 1.0, False
    for record in trace.steps:
        own = probability(record)
        if own is not None:
            product, known = product * own, True
    return product if known else None
