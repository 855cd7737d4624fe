import pytest
import torch
from torch import nn

from tutelage.distillation.weight_penalties import L2Penalty, PenaltySum, diagonal_fisher, sampled_score
from tutelage.errors import InputError


def test_penalties_by_hand():
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0]]))
    old = torch.tensor([[0.0, 4.0]])
    plain, weighted = (L2Penalty({"weight": (old, w)}, 3.0) for w in (None, torch.tensor([[5.0, 0.5]])))
    assert float(plain(net).detach()) == pytest.approx(1.5 * (1 + 4))
    assert float(weighted(net).detach()) == pytest.approx(1.5 * (5 + 2))
    both = PenaltySum([plain, weighted])
    both(net).backward()
    assert net.weight.grad.tolist() == [[pytest.approx(3 * 1 * 6), pytest.approx(3 * -2 * 1.5)]]
    assert net.bias.grad is None and not list(both.parameters()) and len(both.state_dict()) == 3


def test_the_fisher_of_a_logit_is_exact_and_unused_parameters_are_left_out():
    net = nn.Linear(2, 1)
    net.idle = nn.Parameter(torch.ones(3))
    rows = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    rng = torch.Generator().manual_seed(0)
    found = diagonal_fisher(net, rows, lambda n, x: sampled_score("logit", n(x[None])[:, 0], torch.ones(1), rng))
    p = net(rows).sigmoid()
    assert torch.allclose(found["weight"][0], (p * (1 - p) * rows**2).mean(0).detach())
    assert set(found) == {"weight", "bias"}
    with pytest.raises(InputError, match="no row"):
        diagonal_fisher(net, [], lambda n, x: n(x).sum())


def test_the_fisher_of_classes_is_right_on_average_and_padding_has_none():
    net = nn.Linear(1, 3)
    rng = torch.Generator().manual_seed(0)
    rows = [torch.ones(1, 1)] * 4000
    found = diagonal_fisher(net, rows, lambda n, x: sampled_score("classes", n(x), torch.ones(1), rng))
    p = net(torch.ones(1, 1)).softmax(-1)[0].detach()
    assert torch.allclose(found["bias"], p * (1 - p), atol=0.02)
    assert not sampled_score("size", torch.randn(2, 3), torch.zeros(2), rng)
