from __future__ import annotations

import pytest

from tutelage.experiments import tinyvit


@pytest.mark.slow
def test_the_contraction_reports_a_smaller_network() -> None:
    arms = tinyvit.contracted(100, smoke=True)
    whole, found, narrowed = (arms[f"network, {name}"] for name in ("whole", "contracted", "narrowed"))
    assert found[tinyvit.SIZE] < whole[tinyvit.SIZE] > narrowed[tinyvit.SIZE]
    assert all(arm[tinyvit.RATE] > 0 and 0 <= arm[tinyvit.SHRUNK] <= 100 for arm in (whole, found, narrowed))
    assert {metric.label for metric in tinyvit.experiment.further_metrics} >= set(found)
