from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.recipe import ModelSpec
from tutelage.distillation.resolve import build_model
from tutelage.distillation.small_models import ResNet, SmallCNN
from tutelage.errors import InputError, StaleError
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.n2n_learning import (
    Architecture,
    Block,
    Constraint,
    InvalidNetwork,
    Layer,
    N2NLearning,
    Policies,
    PolicySettings,
    RemovalPolicy,
    ShrinkagePolicy,
    build,
    candidates,
    compression_reward,
    flatten_network,
    inherit_weights,
    leniency,
    parameter_count,
    reward,
    train_policy,
)
from tutelage.systems.n2n_learning.layer_list import (
    FEATURES,
    FIELDS,
    always_kept,
    features,
    remove_layers,
    shrink_layers,
    shrinkable,
    slots,
)
from tutelage.systems.n2n_learning.policies import FACTORS


class VGG(nn.Module):
    """A plain chain with pooling, dropout and two linear layers, written with functions too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.pool, self.drop, self.act = nn.MaxPool2d(2), nn.Dropout(0.25), nn.ReLU()
        self.hidden, self.head = nn.Linear(32 * 16, 24), nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(self.act(self.first(images)))
        maps = self.pool(torch.relu(self.second(maps)))
        return self.head(self.drop(self.hidden(torch.flatten(maps, 1)).relu()))


class Bottleneck(nn.Module):
    """Wide outside, narrow inside, with a projecting and a plain shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow, self.wide, self.project = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 48, 1), nn.Conv2d(16, 48, 1)
        self.inner, self.outer, self.head = nn.Conv2d(48, 12, 3, padding=1), nn.Conv2d(12, 48, 1), nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        maps = torch.relu(self.project(maps) + self.wide(self.narrow(maps).relu()))
        maps = maps + self.outer(self.inner(maps).relu())
        return self.head(maps.mean((2, 3)))


TEACHERS = {
    "plain": (lambda: VGG(), (3, 16, 16)),
    "residual": (lambda: ResNet(14, 5, 3), (3, 16, 16)),
    "bottleneck": (lambda: Bottleneck(), (3, 8, 8)),
    "small": (lambda: SmallCNN(5, 16, 32), (1, 8, 8)),
}
ARCHITECTURES = {name: flatten_network(make(), shape) for name, (make, shape) in TEACHERS.items()}
each_teacher = pytest.mark.parametrize("name", list(TEACHERS))


# -- rewards ---------------------------------------------------------------------------------------------------------


def test_rewards_by_hand() -> None:
    assert [compression_reward(c) for c in (0.0, 0.5, 0.9)] == pytest.approx([0.0, 0.75, 0.99])
    assert reward(0.45, 0.9, 50, 100) == pytest.approx(0.5 * 0.75)
    assert [leniency(e) for e in (0, 5, 10, 15, 30)] == pytest.approx([1, 0.19753, 0.012346, 0, 0], abs=1e-5)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(1, 99), st.floats(1, 99))
def test_the_reward_rises_with_accuracy_and_compression(a: float, b: float, small: float, large: float) -> None:
    assert (reward(a, 0.9, small, 100) >= reward(b, 0.9, small, 100)) == (a >= b)
    low, high = sorted((small, large))
    assert reward(a, 0.9, low, 100) >= reward(a, 0.9, high, 100)


@given(st.floats(0, 1), st.integers(0, 40))
def test_a_violated_constraint_lies_between_minus_one_and_the_reward(plain: float, iteration: int) -> None:
    constraint = Constraint(max_params=10)
    assert constraint.applied(plain, 0.5, 10, iteration) == plain
    softened = constraint.applied(plain, 0.5, 11, iteration)
    assert -1 <= softened <= plain + 1e-12
    if iteration >= 15:
        assert softened == -1
    assert Constraint(min_accuracy=0.6).applied(plain, 0.59, 1, 15) == -1


@pytest.mark.parametrize("options", [{"max_params": 0}, {"min_accuracy": 1.2}])
def test_a_constraint_that_means_nothing_is_refused(options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Constraint(**options)


# -- the layer list --------------------------------------------------------------------------------------------------


@each_teacher
def test_keeping_all_rebuilds_the_teacher(name: str) -> None:
    make, shape = TEACHERS[name]
    teacher, architecture = make().eval(), ARCHITECTURES[name]
    whole = remove_layers(architecture, torch.ones(len(slots(architecture))))
    assert whole == architecture
    assert shrink_layers(architecture, torch.ones(len(slots(architecture)), len(FIELDS))) == architecture
    student = build(whole).eval()
    assert parameter_count(whole) == sum(p.numel() for p in teacher.parameters()) == sum(p.numel() for p in student.parameters())
    inherit_weights(student, whole, teacher)
    images = torch.randn(2, *shape)
    assert torch.allclose(student(images), teacher(images), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(TEACHERS)), st.integers(0, 2**31))
def test_every_child_runs_or_is_reported_invalid(name: str, seed: int) -> None:
    """Over random removals, then random factors: 8 children an example, 480 in all."""
    architecture, shape = ARCHITECTURES[name], TEACHERS[name][1]
    rng = torch.Generator().manual_seed(seed)
    for _ in range(8):
        keep = torch.rand(len(slots(architecture)), generator=rng) < 0.7
        left = remove_layers(architecture, keep)
        choice = torch.randint(len(FACTORS), (len(slots(left)), len(FIELDS)), generator=rng)
        child = shrink_layers(left, torch.tensor(FACTORS)[choice])
        try:
            student = build(child).eval()
        except InvalidNetwork:
            with pytest.raises(InvalidNetwork):
                parameter_count(child)
            continue
        assert student(torch.zeros(2, *shape)).shape == (2, 5)
        assert parameter_count(child) == sum(p.numel() for p in student.parameters())
        before, after = [s.layer for s in slots(architecture)], [s.layer for s in slots(child)]
        assert (after[0].kind, after[-1]) == (before[0].kind, before[-1])
        strided = [layer for layer in before if layer.kind == "conv" and layer.stride > 1]
        assert strided == [layer for layer in after if layer.kind == "conv" and layer.stride > 1]
        assert all(layer.channels >= 10 for layer in after if layer.kind == "conv")


@each_teacher
def test_inherited_weights_are_slices(name: str) -> None:
    make, _ = TEACHERS[name]
    teacher, architecture = build_with_seed(make, 0, "teacher"), ARCHITECTURES[name]
    child = shrink_layers(architecture, torch.full((len(slots(architecture)), len(FIELDS)), 0.7))
    try:
        student = build(child)
    except InvalidNetwork:
        pytest.skip("no child of this factor")
    inherit_weights(student, child, teacher)
    first, source = next(m for m in student.modules() if isinstance(m, nn.Conv2d)), slots(child)[0].layer.source
    given = teacher.get_submodule(source).weight
    low = (given.shape[2] - first.weight.shape[2]) // 2
    size = first.weight.shape[2]
    assert torch.equal(first.weight, given[: len(first.weight), :, low : low + size, low : low + size])


def test_blocks_by_hand() -> None:
    conv = Layer("conv", 3, 1, 20, 1)
    plain = Architecture(
        (20, 8, 8), (Layer("relu"), Block((conv, Layer("relu"), conv)), Layer("flatten"), Layer("linear", channels=4))
    )
    assert always_kept(plain).tolist() == [True, False, False, False, True, True]
    empty = remove_layers(plain, [True, False, False, False, True, True])
    assert [part.kind for part in empty.parts] == ["relu", "flatten", "linear"]
    assert shrinkable(plain)[1:4].tolist() == [[False, False, True, False], [False] * 4, [False] * 4]
    narrow = shrink_layers(plain, torch.full((6, 4), 0.6)).parts[1]
    assert [layer.channels for layer in narrow.body] == [12, 0, 20]
    projected = Architecture((20, 8, 8), (Layer("relu"), Block((conv, conv), (Layer("conv", 1, 1, 20),)), *plain.parts[2:]))
    shrunk = shrink_layers(projected, torch.full((5, 4), 0.6)).parts[1]
    assert [layer.channels for layer in (*shrunk.body, *shrunk.shortcut)] == [12, 12, 12]
    with pytest.raises(InvalidNetwork, match="features"):
        build(Architecture((1, 2, 2), (Layer("relu"), Layer("flatten"), Layer("linear", channels=4))))


class Nested(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.head = kind, nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "nested":
            inner = self.conv(x)
            x = x + (inner + self.conv(inner)).relu()
        elif self.kind == "joined":
            x = torch.cat([x, self.conv(x)], 1)[:, :1]
        elif self.kind == "branch" and x.sum() > 0:
            x = -x
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    "network",
    [
        Nested("nested"),
        Nested("joined"),
        Nested("branch"),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(144, 4)),
        nn.Sequential(nn.Conv2d(1, 4, (3, 1)), nn.Flatten(), nn.Linear(144, 4)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 4)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(6, 4)),
    ],
    ids=lambda network: getattr(network, "kind", None) or str(network[:2])[:20],
)
def test_a_network_of_another_kind_is_refused(network: nn.Module) -> None:
    channels = 4 if isinstance(network, nn.Sequential) and network[0].groups == 4 else 1
    with pytest.raises(InputError) as caught:
        flatten_network(network, (channels, 8, 8))
    assert caught.value.where and caught.value.remedy


# -- policies --------------------------------------------------------------------------------------------------------


def sequences(length: int, options: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(options), repeat=length)))


def test_the_removal_policys_log_probabilities_are_those_of_sequences() -> None:
    policy = build_with_seed(RemovalPolicy, 0, "policy")
    vectors, free, rng = torch.randn(4, FEATURES, generator=torch_rng(0)), torch.ones(4, dtype=torch.bool), torch_rng(0)
    every = policy(vectors, free, 0, rng, sequences(4, 2))
    assert every.log_probs.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)
    drawn = policy(vectors, free, 4000, rng)
    places = (drawn.actions * torch.tensor([8, 4, 2, 1])).sum(1)
    assert torch.equal(every.log_probs[places], drawn.log_probs)
    shares = torch.bincount(places, minlength=16) / 4000
    assert (shares - every.log_probs.sum(1).exp()).abs().max() < 0.03


def test_the_gradient_is_unbiased() -> None:
    """The estimator, weighted with each sequence's probability, is the exact gradient, whatever the baseline."""
    policy = build_with_seed(RemovalPolicy, 0, "policy")
    vectors, free = torch.randn(4, FEATURES, generator=torch_rng(0)), torch.ones(4, dtype=torch.bool)
    rewards = torch.randn(16, generator=torch_rng(1))
    parameters = list(policy.parameters())

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, parameters)])

    log_probs = policy(vectors, free, 0, torch_rng(0), sequences(4, 2)).log_probs.sum(1)
    exact = gradient((log_probs.exp() * rewards).sum())
    log_probs = policy(vectors, free, 0, torch_rng(0), sequences(4, 2)).log_probs.sum(1)
    estimated = gradient((log_probs.detach().exp() * (rewards - 0.7) * log_probs).sum())
    assert torch.allclose(exact, estimated, atol=1e-5)


def test_the_shrinkage_policy_is_autoregressive_and_normalised() -> None:
    policy = build_with_seed(ShrinkagePolicy, 0, "policy")
    vectors = torch.randn(3, FEATURES, generator=torch_rng(0))
    decided = torch.zeros(3, len(FIELDS), dtype=torch.bool)
    decided[0, 2] = decided[2, 0] = True
    actions = torch.full((121, 12), len(FACTORS) - 1)
    actions[:, [2, 8]] = sequences(2, 11)
    scored = policy(vectors, decided, 0, torch_rng(0), actions)
    assert scored.log_probs.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)
    second = scored.log_probs[:, 8].unflatten(0, (11, 11))
    assert (second.exp().sum(1) - 1).abs().max() < 1e-5
    assert (second[0] - second[-1]).abs().max() > 1e-6, "the second decision does not see the first"
    assert bool((scored.log_probs[:, [i for i in range(12) if i not in (2, 8)]] == 0).all())
    drawn = policy(vectors, decided, 7, torch_rng(0))
    assert torch.allclose(policy(vectors, decided, 0, torch_rng(0), drawn.actions).log_probs, drawn.log_probs)
    assert bool((drawn.actions[:, [i for i in range(12) if i not in (2, 8)]] == len(FACTORS) - 1).all())


def test_forced_layers_are_kept_and_add_no_log_probability() -> None:
    policy, vectors = RemovalPolicy(), torch.randn(6, FEATURES)
    free = torch.tensor([False, True, False, True, True, False])
    sample = policy(vectors, free, 50, torch_rng(0))
    assert bool((sample.actions[:, ~free] == 1).all()) and bool((sample.log_probs[:, ~free] == 0).all())
    assert set(sample.actions[:, free].flatten().tolist()) == {0, 1}


@pytest.mark.parametrize("critic", [False, True])
def test_a_bandit_is_solved(critic: bool) -> None:
    """4 free layers, a table of rewards: the best sequence gets more than 0.9 of the probability."""
    torch.manual_seed(0)
    policy, vectors, free = RemovalPolicy(critic=critic), torch.randn(4, FEATURES), torch.ones(4, dtype=torch.bool)
    table = torch.rand(16, generator=torch_rng(3))
    table[11] = 2.0

    def pay(actions: Tensor, iteration: int) -> list[float]:
        return table[(actions * torch.tensor([8, 4, 2, 1])).sum(1)].tolist()

    how = PolicySettings(iterations=200, rollouts=8, lr=1e-2, critic=critic)
    history = train_policy(policy, vectors, free, pay, how, torch_rng(0))
    assert history.shape == (200, 8)
    best = policy(vectors, free, 0, torch_rng(0), sequences(4, 2)[11:12]).log_probs.sum().exp()
    assert best > 0.9


@pytest.mark.parametrize(("advantage", "moved"), [("rollout", True), ("batch", False)])
def test_each_rollout_is_pushed_by_its_own_reward(advantage: str, moved: bool) -> None:
    """Rewards 1 and 0 around the baseline 0.5: with the batch's mean the advantage is 0, and nothing moves."""
    torch.manual_seed(0)
    policy, vectors, free = RemovalPolicy(), torch.randn(1, FEATURES), torch.ones(1, dtype=torch.bool)
    rows: list[Tensor] = []

    def pay(actions: Tensor, iteration: int) -> list[float]:
        rows.append(actions[:, 0])
        return actions[:, 0].float().tolist()

    before = policy(vectors, free, 0, torch_rng(0), torch.ones(1, 1, dtype=torch.int64)).log_probs.item()
    how = PolicySettings(iterations=1, rollouts=8, advantage=advantage)
    train_policy(policy, vectors, free, pay, how, torch_rng(0))
    assert set(rows[0].tolist()) == {0, 1}, "both actions were drawn"
    after = policy(vectors, free, 0, torch_rng(0), torch.ones(1, 1, dtype=torch.int64)).log_probs.item()
    assert (after > before) is moved


@pytest.mark.parametrize("kind", [RemovalPolicy, ShrinkagePolicy])
def test_the_recurrent_weights_learn(kind: type[nn.Module]) -> None:
    policy, vectors = build_with_seed(kind, 0, "policy"), torch.randn(3, FEATURES, generator=torch_rng(0))
    before = {name: value.clone() for name, value in policy.named_parameters()}
    shape = (3,) if kind is RemovalPolicy else (3, len(FIELDS))

    def pay(actions: Tensor, iteration: int) -> list[float]:
        return actions.float().mean(1).tolist()

    train_policy(policy, vectors, torch.ones(shape, dtype=torch.bool), pay, PolicySettings(2, 4, entropy=0.01), torch_rng(0))
    still = [name for name, value in policy.named_parameters() if torch.equal(before[name], value)]
    assert not still


def test_policies_are_saved_and_loaded(tmp_path: Path) -> None:
    policies = build_with_seed(lambda: Policies(8, critic=True), 0, "policies")
    loaded = Policies.load(policies.save(tmp_path / "p.safetensors"))
    assert loaded.critic and all(torch.equal(a, b) for a, b in zip(policies.parameters(), loaded.parameters(), strict=True))
    for name in ("plain", "residual"):  # layer lists of different lengths
        architecture = ARCHITECTURES[name]
        loaded.removal(features(architecture), ~always_kept(architecture), 2, torch_rng(0))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "p.safetensors").read_bytes()[:100])
    with pytest.raises(InputError, match="cut"):
        Policies.load(tmp_path / "cut.safetensors")


# -- the search ------------------------------------------------------------------------------------------------------

QUICK = {"removal_iterations": 3, "shrinkage_iterations": 3, "rollouts": 2, "epochs": 0.5, "batch_size": 16, "share": 0.5}


def searching(constraint: Constraint = Constraint(), **options: object) -> N2NLearning:  # noqa: B008
    teacher = build_with_seed(lambda: SmallCNN(4, 16, 32), 0, "teacher")
    return N2NLearning(teacher, toy_images(0), constraint=constraint, **(QUICK | options))


def test_the_same_seed_gives_the_same_log_and_scores_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[Architecture] = []
    score = candidates.score_candidate

    def counted(*args: object) -> float:
        scored.append(args[-1])
        return score(*args)

    monkeypatch.setattr(candidates, "score_candidate", counted)
    first = searching().search(0, out=tmp_path)
    assert len(scored) == len(set(scored)), "an architecture was trained twice"
    known = [one for one in first.history if one.architecture is not None]
    assert len(scored) == sum(not one.known for one in known) == len({one.architecture for one in known})
    for one in known:
        assert one.reward == pytest.approx(reward(one.accuracy, first.teacher_accuracy, one.size, first.teacher_size))
        assert one.size == parameter_count(one.architecture) < first.teacher_size
    assert first.size == sum(p.numel() for p in first.student().parameters()) and first.compression > 1
    scored.clear()
    again = searching().search(0, out=tmp_path)  # goes on from what is kept
    assert not scored and again.history == first.history
    assert searching().search(0).history == first.history
    assert searching().search(1).history != first.history
    with pytest.raises(StaleError):
        searching(rollouts=3).search(0, out=tmp_path)


def test_the_winner_is_a_student_for_a_recipe(tmp_path: Path) -> None:
    search = searching()
    found = search.search(0, out=tmp_path)
    network = build_model(ModelSpec("n2n-learning", {"architecture": str(tmp_path / "architecture.json")}))
    assert sum(p.numel() for p in network.parameters()) == found.size
    trained = search.train(network, steps=2)
    assert trained(torch.zeros(3, 1, 8, 8)).shape == (3, 4)
    plain = json.loads((tmp_path / "architecture.json").read_text())
    plain["parts"][0]["kind"] = "attention"
    (tmp_path / "bad.json").write_text(json.dumps(plain))
    with pytest.raises(InputError, match=r"parts\[0\]"):
        build_model(ModelSpec("n2n-learning", {"architecture": str(tmp_path / "bad.json")}))
    for row in json.loads((tmp_path / "history.json").read_text()):
        assert row["reward"] == -1 or math.isfinite(row["accuracy"])


def test_labels_inherited_weights_and_a_critic() -> None:
    found = searching(loss="labels", inherit=True, critic=True, removal_iterations=1, shrinkage_iterations=1).search(0)
    assert found.policies.removal.value is not None and found.size < found.teacher_size


def test_a_search_that_finds_nothing_says_what_was_nearest() -> None:
    with pytest.raises(InputError, match="the smallest has") as caught:
        searching(Constraint(max_params=5), removal_iterations=1).search(0)
    assert "soften" in caught.value.remedy


def test_bad_input_is_typed() -> None:
    data, teacher = toy_images(0), SmallCNN(4, 16, 32)
    for options, where in [({"rolouts": 3}, "options"), ({"share": 1.0}, "share"), ({"loss": "mse"}, "loss")]:
        with pytest.raises(InputError) as caught:
            N2NLearning(teacher, data, **options)
        assert caught.value.where == where
    with pytest.raises(InputError, match="one class"):
        N2NLearning(teacher, TensorData(data.inputs, torch.zeros(64, dtype=torch.int64)))
    with pytest.raises(InputError, match="labels"):
        N2NLearning(teacher, TensorData(data.inputs))
    with pytest.raises(InputError, match="held out"):
        N2NLearning(teacher, TensorData(data.inputs[:2], data.labels[:2]))
    wrong = SmallCNN(5, 16, 32)
    nn.init.zeros_(wrong.head.weight)
    wrong.head.bias.data = torch.tensor([0.0, 0, 0, 0, 1])  # always the class that is never there
    with pytest.raises(InputError, match="never right"):
        N2NLearning(wrong, data, share=0.5)
