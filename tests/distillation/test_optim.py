"""Curves of weights and temperatures over training, and stages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.distillation import losses, schedule
from tutelage.distillation.method import Phase
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

from .toy import Distil, lesson

fractions = st.floats(0, 1)


@given(fractions, st.floats(-5, 5), st.floats(-5, 5))
def test_curves_begin_and_end_where_they_say_and_stay_between(fraction: float, first: float, last: float) -> None:
    for curve in (schedule.linear(first, last), schedule.cosine(first, last), schedule.linear(first, last, 0.2, 0.7)):
        assert curve(0.0) == pytest.approx(first) and curve(1.0) == pytest.approx(last)
        assert min(first, last) - 1e-9 <= curve(fraction) <= max(first, last) + 1e-9
    assert schedule.constant(first)(fraction) == first


def test_curves_by_hand() -> None:
    rise = schedule.linear(1.0, 3.0, 0.25, 0.75)
    assert [rise(f) for f in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1, 1, 2, 3, 3]
    assert schedule.cosine(4.0, 0.0)(0.5) == pytest.approx(2.0)
    steps = schedule.piecewise_constant([1.0, 5.0, 2.0], [0.5, 0.8])
    assert [steps(f) for f in (0.0, 0.49, 0.5, 0.79, 0.8, 1.0)] == [1, 1, 5, 5, 2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: schedule.linear(0, 1, 0.5, 0.5),
        lambda: schedule.linear(0, 1, -0.1, 1),
        lambda: schedule.piecewise_constant([1.0], [0.5]),
        lambda: schedule.piecewise_constant([1.0, 2.0, 3.0], [0.5, 0.2]),
        lambda: schedule.boundaries([], 10),
        lambda: schedule.boundaries([Phase(share=0)], 10),
    ],
)
def test_impossible_schedules_are_refused(wrong) -> None:
    with pytest.raises(InputError):
        wrong()


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(0, 100))
def test_stages_fill_all_steps_in_order(shares: list[float], steps: int) -> None:
    found = schedule.boundaries([Phase(str(i), share) for i, share in enumerate(shares)], steps)
    assert [stage.name for stage, _, _ in found] == [str(i) for i in range(len(shares))]
    reached = 0
    for _, first, length in found:
        assert first == reached and length >= 0
        reached += length
    assert reached == steps


def test_a_method_follows_curves_of_its_weight_and_its_temperature() -> None:
    weight, tau = schedule.linear(0.0, 1.0), schedule.cosine(8.0, 1.0)
    seen: list[float] = []

    class Curved(Distil):
        def loss_weights(self):
            return {"soft": weight(self.progress.fraction)}

        def loss_terms(self, batch, student, teacher):
            seen.append(tau(self.progress.fraction))
            found = super().loss_terms(batch, student, teacher)
            return found | {"soft": losses.kd(student["logits"], teacher["logits"], seen[-1])}

    records = train(lesson(Curved(), steps=10, log_every=1)).history
    assert [record["weights"]["soft"] for record in records] == pytest.approx([step / 10 for step in range(10)])
    assert seen == sorted(seen, reverse=True) and seen[0] == 8.0 and len(seen) == 10
