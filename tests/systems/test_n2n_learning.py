"""N2N learning: layer lists, policies, rewards and the search."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.small_models import ResNet, SmallCNN
from tutelage.errors import InputError, StaleError
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.n2n_learning import (
    InvalidArchitecture,
    Layer,
    N2NLearning,
    PolicySettings,
    RemovalPolicy,
    ShrinkagePolicy,
    build,
    compression_reward,
    layers_of,
    load_policy,
    make_policy,
    optimize_policy,
    parameters,
    penalty_share,
    removable,
    remove,
    reward,
    save_policy,
    search,
    shrink,
    shrinkable,
    states,
)

SHAPE = (3, 8, 8)
NETWORKS = {"plain": lambda: SmallCNN(4, 12, 24, inputs=3), "residual": lambda: ResNet(14, 4)}


def test_rewards_by_hand() -> None:
    assert [compression_reward(c) for c in (0.0, 0.5)] == [0.0, 0.75]
    assert compression_reward(0.9) == pytest.approx(0.99)
    assert [penalty_share(e) for e in (0, 5, 10, 15, 40)] == pytest.approx([1, 0.19753, 0.012346, 0, 0], rel=1e-4)
    assert reward(0.6, 0.9) > reward(0.5, 0.9) and reward(0.5, 0.95) > reward(0.5, 0.9)
    for iteration in range(20):
        assert -1 <= reward(0.5, 0.9, iteration, violated=True) <= reward(0.5, 0.9)
    assert reward(0.5, 0.9, 15, violated=True) == -1


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_all_rebuilds_the_teacher(name: str) -> None:
    network = build_with_seed(NETWORKS[name], 0)
    layers = layers_of(network)
    again = build(remove(layers, [1] * len(layers)), SHAPE)
    assert again.layers == layers == shrink(layers, [10] * 4 * len(layers))
    assert parameters(again) == parameters(network) == sum(p.numel() for p in network.parameters())
    assert sorted(p.shape for p in again.parameters()) == sorted(p.shape for p in network.parameters())


@torch.no_grad()
def test_a_rebuilt_network_computes_what_the_original_does() -> None:
    network = build_with_seed(NETWORKS["residual"], 0).eval()
    again = build(layers_of(network), SHAPE).eval()
    inner = [m for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in n]
    for mine, theirs in zip([m for m in again.leaves if isinstance(m, (nn.Conv2d, nn.Linear))], inner, strict=True):
        mine.load_state_dict(theirs.state_dict())
    outer = [m.shortcut for m in network.modules() if hasattr(m, "shortcut") and isinstance(m.shortcut, nn.Sequential)]
    for mine, theirs in zip(again.shortcuts.values(), outer, strict=True):
        mine.load_state_dict(theirs.state_dict())
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(images), network(images))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_child_runs_or_is_reported(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    layers = layers_of(build_with_seed(NETWORKS[name], 0))
    free, runs = removable(layers), 0
    assert not free[0] and not free[-1]
    assert not any(may for may, layer in zip(free, layers, strict=True) if layer.kind == "conv" and layer.stride > 1)
    for _ in range(250):
        keep = torch.where(free, torch.rand(len(layers), generator=rng) < 0.7, True)
        child = remove(layers, keep.int().tolist())
        may = shrinkable(child).flatten()
        actions = torch.where(may, torch.randint(11, may.shape, generator=rng), 10)
        child = shrink(child, actions.tolist())
        try:
            network = build(child, SHAPE).eval()
        except InvalidArchitecture:
            continue
        runs += 1
        assert network(torch.zeros(1, *SHAPE)).shape == (1, 4)
        assert all(layer.channels >= 10 for layer in network.layers if layer.kind == "conv")
    assert runs > 125


def test_networks_that_are_none_are_refused() -> None:
    head = Layer("linear", channels=4, bias=True)
    with pytest.raises(InvalidArchitecture, match="does not fit"):
        build([Layer("conv", 9, 1, 12, 0), head], SHAPE)
    with pytest.raises(InvalidArchitecture, match="features"):
        build([Layer("conv", 3, 1, 1000, 1), head], SHAPE)
    with pytest.raises(InputError, match="cannot hold"):
        layers_of(nn.Sequential(nn.Conv2d(3, 12, 3, groups=3), nn.Linear(4, 4)))
    with pytest.raises(InputError, match="linear layer"):
        layers_of(nn.Sequential(nn.ReLU()))


def toy_states(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(3))


def test_log_probabilities_and_the_exact_gradient() -> None:
    policy, free = make_policy(RemovalPolicy, 0, 5), torch.ones(4, dtype=torch.bool)
    every = torch.tensor(list(itertools.product((0, 1), repeat=4)))
    values = torch.linspace(-1, 2, 16) ** 2
    log_probs = policy.log_probs(toy_states(), free, every).sum(1)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    exact = torch.autograd.grad((log_probs.exp() * values).sum(), policy.head.bias, retain_graph=True)[0]
    drawn = policy.sample(toy_states(), free, 40_000, torch.Generator().manual_seed(1))
    rows = (drawn * torch.tensor([8, 4, 2, 1])).sum(1)
    shares = rows.bincount(minlength=16) / len(rows)
    estimate = torch.autograd.grad((shares * (values - 0.7) * log_probs).sum(), policy.head.bias)[0]
    torch.testing.assert_close(estimate, exact, atol=0.02, rtol=0)


def test_the_second_policy_gives_the_probability_of_what_it_draws() -> None:
    policy, free = make_policy(ShrinkagePolicy, 0, 5), torch.zeros(2, 4, dtype=torch.bool)
    free[0, 2] = free[1, 0] = True
    every = torch.full((121, 8), 10)
    every[:, [2, 4]] = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    chances = policy.log_probs(toy_states(2), free, every).sum(1).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = policy.sample(toy_states(2), free, 40_000, torch.Generator().manual_seed(1))
    assert (drawn[:, [0, 1, 3, 5, 6, 7]] == 10).all()
    shares = (drawn[:, 2] * 11 + drawn[:, 4]).bincount(minlength=121) / len(drawn)
    torch.testing.assert_close(shares, chances.detach(), atol=0.005, rtol=0)


@pytest.mark.parametrize("kind", [RemovalPolicy, ShrinkagePolicy])
def test_fixed_layers_add_nothing_and_the_lstm_learns(kind: type[RemovalPolicy] | type[ShrinkagePolicy]) -> None:
    policy = make_policy(kind, 0, 5)
    free = torch.tensor([False, True, True, False])
    free = free if kind is RemovalPolicy else free[:, None].expand(4, 4)
    before = {name: value.clone() for name, value in policy.named_parameters()}
    actions = policy.sample(toy_states(), free, 3, torch.Generator().manual_seed(0))
    assert (policy.log_probs(toy_states(), free, actions)[:, ~free.flatten()] == 0).all()
    optimize_policy(policy, toy_states(), free, lambda _, rows: [float(sum(row)) for row in rows], PolicySettings(iterations=3), 0)
    assert all(not torch.equal(before[name], value) for name, value in policy.named_parameters())


def test_the_removal_policy_finds_the_best_sequence() -> None:
    policy, free, best = make_policy(RemovalPolicy, 0, 5), torch.ones(4, dtype=torch.bool), (1, 0, 0, 1)

    def score(iteration: int, rows: list[tuple[int, ...]]) -> list[float]:
        return [sum(a == b for a, b in zip(row, best, strict=True)) / 4 for row in rows]

    optimize_policy(policy, toy_states(), free, score, PolicySettings(iterations=200, lr=0.02), 0)
    assert policy.log_probs(toy_states(), free, torch.tensor([best])).sum().exp().item() > 0.9


def test_rollouts_push_in_their_own_directions() -> None:
    """The better of two rollouts becomes likelier and the worse one less likely; with the mean for all, neither is told apart."""
    free = torch.tensor([True])
    chances = {}
    for advantage in ("rollout", "batch_mean"):
        policy = make_policy(RemovalPolicy, 0, 5)
        settings = PolicySettings(iterations=1, rollouts=8, lr=0.01, advantage=advantage)  # type: ignore[arg-type]
        one, before = torch.tensor([[1]]), policy.log_probs(toy_states(1), free, torch.tensor([[1]])).item()
        optimize_policy(policy, toy_states(1), free, lambda _, rows: [float(row[0]) for row in rows], settings, 0)
        chances[advantage] = policy.log_probs(toy_states(1), free, one).item() - before
    assert chances["rollout"] > 0.001
    assert abs(chances["batch_mean"]) < 1e-6


def tiny_search(**options: object) -> N2NLearning:
    policy = PolicySettings(iterations=2, rollouts=3)
    return N2NLearning(removal=policy, shrinkage=policy, training=TrainingSettings(steps=2, batch_size=32), **options)


@pytest.fixture
def teacher() -> nn.Module:
    return build_with_seed(lambda: SmallCNN(4, 12, 24), 0)


def test_candidates_are_trained_once_and_a_stopped_search_goes_on(
    teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[Layer, ...]] = []
    whole = search.candidate_accuracy

    def counted(*args: object) -> float:
        trained.append(args[4])  # type: ignore[arg-type]
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "candidate_accuracy", counted)
    data, held_out = toy_images(0), toy_images(1)
    first = tiny_search().search(teacher, data, held_out, folder=tmp_path)
    assert len(trained) == len(set(trained)) == len(first.candidates) > 1
    assert {one.stage for one in first.candidates} == {"removal", "shrinkage"}
    assert first.best.parameters == parameters(build(first.best.layers, (1, 8, 8))) < first.teacher_parameters
    again = tiny_search().search(teacher, data, held_out, folder=tmp_path)
    assert (again.rewards, again.candidates, len(trained)) == (first.rewards, first.candidates, len(first.candidates))
    with pytest.raises(StaleError):
        tiny_search().search(teacher, data, held_out, seed=1, folder=tmp_path)


def test_policies_move_to_another_teacher(teacher: nn.Module, tmp_path: Path) -> None:
    found = tiny_search().search(teacher, toy_images(0), toy_images(1))
    file = save_policy(found.policies["removal"], tmp_path / "removal.safetensors")
    other = make_policy(RemovalPolicy, 7)
    load_policy(other, file)
    layers = layers_of(build_with_seed(NETWORKS["residual"], 0))
    drawn = other.sample(states(layers), removable(layers), 2, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, len(layers))
    with pytest.raises(InputError, match="ShrinkagePolicy"):
        load_policy(make_policy(ShrinkagePolicy, 0), file)


def test_bad_input_is_named(teacher: nn.Module) -> None:
    data, held_out = toy_images(0), toy_images(1)
    with pytest.raises(InputError, match="within the constraints"):
        tiny_search(size=1).search(teacher, data, held_out)
    with pytest.raises(InputError, match="all alike"):
        tiny_search().search(teacher, data, TensorData(held_out.inputs, torch.zeros_like(held_out.labels)))
    with pytest.raises(InputError, match="accuracy"):
        tiny_search(accuracy=2.0)
    with pytest.raises(InputError, match="at least 1"):
        replace(PolicySettings(), rollouts=0)
