from __future__ import annotations

import pytest
import torch
from torch import nn

from tutelage.sdvp.weight_interpolation import STEPS, interpolate, interpolate_until_safe, interpolation_sweep

from . import small


def pair() -> tuple[small.Color, small.Color]:
    return small.color(0), small.color(1)


def flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_between_is_a_straight_line_and_changes_neither_end() -> None:
    old, new = pair()
    quarter = interpolate(old, new, 0.25)
    assert torch.allclose(flat(quarter.network), 0.75 * flat(old.network) + 0.25 * flat(new.network))
    assert interpolate(old, new, 1.0) is new
    assert small.equal(old.network, small.color(0).network) and small.equal(new.network, small.color(1).network)
    assert small.equal(interpolate(old, new, 0.0).network, old.network)
    assert len({old.version, new.version, quarter.version}) == 3


def by_share(old: small.Color, new: small.Color, scores: dict[float, float]):  # noqa: ANN201
    """A score that depends on the share of the new weights alone."""
    way = flat(new.network) - flat(old.network)

    def score(module: small.Color) -> float:
        share = float((flat(module.network) - flat(old.network)) @ way / (way @ way))
        return scores[min(scores, key=lambda known: abs(known - share))]

    return score


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        ({0.0: 0.8, 1.0: 0.9}, 1.0),
        ({0.0: 0.8, 1.0: 0.79}, 1.0),
        ({0.0: 0.8, 0.75: 0.795, 0.9: 0.7, 1.0: 0.5}, 0.75),
        ({0.0: 0.8, 0.1: 0.8, 0.25: 0.5, 0.5: 0.5, 0.75: 0.5, 0.9: 0.5, 1.0: 0.5}, 0.1),
        ({0.0: 0.8, 0.1: 0.3, 1.0: 0.3}, 0.0),
    ],
    ids=["better", "within what is allowed", "drawn back", "nearly all the way", "rolled back"],
)
def test_the_largest_step_that_keeps_the_score(scores: dict[float, float], share: float) -> None:
    old, new = pair()
    found = interpolate_until_safe(old, new, by_share(old, new, scores), max_drop=0.0101)
    assert found.share == share and found.before == 0.8 and found.after == scores[share]
    assert found.after >= found.before - 0.0101
    if share == 0:
        assert found.module is old


def test_a_sweep_is_a_table_of_every_score_at_every_share() -> None:
    old, new = pair()
    scores = {"old task": by_share(old, new, {0.0: 0.9, 1.0: 0.4}), "new task": by_share(old, new, {0.0: 0.2, 1.0: 0.7})}
    table = interpolation_sweep(old, new, scores, shares=(1.0, 0.25))
    assert table == [
        {"share": 0.0, "old task": 0.9, "new task": 0.2},
        {"share": 0.25, "old task": 0.9, "new task": 0.2},
        {"share": 1.0, "old task": 0.4, "new task": 0.7},
    ]
    assert [row["share"] for row in interpolation_sweep(old, new, {})] == sorted({0.0, *STEPS})
