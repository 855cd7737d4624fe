import itertools

import pytest
import torch

from tutelage.distillation.policy_gradient import (
    MovingBaseline,
    advantages,
    discounted_returns,
    policy_gradient_loss,
)
from tutelage.errors import InputError


def test_returns_by_hand_stop_at_the_end():
    rewards = torch.tensor([[1.0, 0, 1], [1, 1, 9]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = discounted_returns(rewards, mask, 0.95)
    assert torch.allclose(found, torch.tensor([[1.9025, 0.95, 1.0], [1.95, 1, 0]]))
    with pytest.raises(InputError, match="gamma"):
        discounted_returns(rewards, mask, 1.5)


def test_baselines_by_hand():
    returns = torch.tensor([[4.0, 2, 0, 7], [3, 3, 3, 3]])
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    assert advantages(returns, mask).tolist() == [[4, 2, 0, 0], [3, 3, 3, 3]]
    assert advantages(returns, mask, "episode").tolist() == [[2, 0, -2, 0], [0, 0, 0, 0]]
    assert torch.allclose(advantages(returns, mask, "standardized"), torch.tensor([[1.0, 0, -1, 0], [0, 0, 0, 0]]))
    assert advantages(returns, mask, "batch").tolist() == [[1, -1, -3, 0], [-1, -1, -1, -1]]
    one = advantages(torch.tensor([[5.0]]), torch.tensor([[True]]), "standardized")
    assert one.isfinite().all() and not one.any()
    for bad, match in (("median", "unknown"), ("batch", "two sequences")):
        with pytest.raises(InputError, match=match):
            advantages(returns[:1], mask[:1], bad)


def test_loss_by_hand_and_no_gradient_through_rewards_or_behind_the_end():
    log_probs = torch.tensor([[-0.5, -1.0, -2.0]], requires_grad=True)
    advantage = torch.tensor([[2.0, 1.0, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    loss = policy_gradient_loss(log_probs, advantage, mask)
    assert loss.tolist() == [2.0] and policy_gradient_loss(log_probs, advantage, mask, per_step=True).tolist() == [1.0]
    loss.sum().backward()
    assert log_probs.grad.tolist() == [[-2, -1, 0]] and advantage.grad is None
    whole = policy_gradient_loss(log_probs, torch.tensor([3.0]), mask)
    assert whole.tolist() == [4.5]


@pytest.mark.parametrize("baseline", ["none", "batch"])
def test_the_estimate_is_unbiased_on_a_two_step_choice(baseline):
    """Exact gradient of E[reward] over all four action pairs, against the mean of many sampled estimates."""
    logits = torch.tensor([[0.3, -0.2], [0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    table = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=torch.float64)
    logs = logits.log_softmax(-1)
    expected = sum(table[a, b] * (logs[0, a] + logs[1, b]).exp() for a, b in itertools.product((0, 1), repeat=2))
    exact = torch.autograd.grad(expected, logits)[0]
    rng = torch.Generator().manual_seed(0)
    count = 40_000
    first, second = (torch.multinomial(logs[i].exp().detach(), count, True, generator=rng) for i in (0, 1))
    rewards = torch.stack([torch.zeros(count, dtype=torch.float64), table[first, second]], 1)
    mask = torch.ones(count, 2, dtype=torch.bool)
    logs = logits.log_softmax(-1)
    chosen = torch.stack([logs[0, first], logs[1, second]], 1)
    advantage = advantages(discounted_returns(rewards, mask), mask, baseline)
    estimate = torch.autograd.grad(-policy_gradient_loss(chosen, advantage, mask).mean(), logits)[0]
    assert torch.allclose(estimate, exact, atol=0.01)


def test_the_moving_baseline_looks_back_and_resumes():
    baseline = MovingBaseline(0.5)
    assert baseline(torch.tensor([2.0, 4.0])).tolist() == [-1, 1] and float(baseline.value) == 3
    assert baseline(torch.tensor([5.0])).tolist() == [2] and float(baseline.value) == 4
    again = MovingBaseline(0.5)
    again.load_state_dict(baseline.state_dict())
    assert again(torch.tensor([4.0])).tolist() == [0]
    with pytest.raises(InputError, match="decay"):
        MovingBaseline(1.0)
