"""Curriculum designer: the score by hand, searches, distances, the online run and its learners, agreement, files."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tutelage.errors import InputError, TrainingError
from tutelage.systems._toy import toy_images
from tutelage.systems.curriculum_designer import (
    EWC,
    LEARNERS,
    SI,
    ClassData,
    CurriculumDesigner,
    EncoderSettings,
    Learner,
    LwF,
    Naive,
    OnlineSettings,
    Replay,
    all_orders,
    beam_orders,
    binned_distance,
    centrality,
    class_distances,
    encoded,
    merit_of,
    merits,
    normalized_rows,
    online_run,
    read_distances,
    read_orders,
    score_orders,
    stable_share,
    write_distances,
    write_orders,
)


def distances(count: int, seed: int) -> np.ndarray:
    return normalized_rows(np.random.default_rng(seed).uniform(0.1, 1, (count, count)))


# -- the score -------------------------------------------------------------------------------------------------------


def test_the_score_by_hand() -> None:
    d, v = distances(5, 0), np.arange(5) / 10
    c = [3, 1, 4, 0, 2]
    by_hand = 1 - v[3] + (1 - d[3, 2]) + d[3, 1] + (1 - d[1, 0]) + d[1, 4]
    assert score_orders([c], d, v)[0] == pytest.approx(by_hand)
    d4 = distances(4, 1)
    assert score_orders([[2, 0, 3, 1]], d4, v[:4])[0] == pytest.approx(1 - v[2] + (1 - d4[2, 1]) + d4[2, 0] + 1)
    assert score_orders([[1, 0]], distances(2, 0), v[:2])[0] == pytest.approx(1 - v[1] + 1)


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_rows_and_centralities_sum_to_1(count: int, seed: int) -> None:
    d = distances(count, seed)
    assert d.sum(1) == pytest.approx(1) and not d.diagonal().any()
    assert centrality(d).sum() == pytest.approx(1)


@given(st.integers(0, 10**6), st.floats(0.1, 100))
def test_scale_and_names_of_classes_change_nothing(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    features, labels = rng.standard_normal((20, 6)), np.arange(20) % 5
    designer = CurriculumDesigner.from_features(features, labels)
    orders = all_orders(5)
    assert CurriculumDesigner.from_features(scale * features, labels).score(orders) == pytest.approx(designer.score(orders))
    moved = rng.permutation(5)  # class i is now number moved[i]
    other = CurriculumDesigner.from_features(features, moved[labels])
    assert other.score(moved[orders]) == pytest.approx(designer.score(orders))


@settings(max_examples=25)
@given(st.integers(2, 7), st.integers(1, 6), st.integers(0, 10**6))
def test_no_search_beats_all_orders(count: int, beam: int, seed: int) -> None:
    d = distances(count, seed)
    v = centrality(d)
    best = score_orders(all_orders(count), d, v).max()
    found = beam_orders(d, v, beam)
    assert 1 <= len(found) <= beam
    for order, score in found:
        assert sorted(order) == list(range(count)), "a permutation"
        assert score == pytest.approx(score_orders([order], d, v)[0]) and score <= best + 1e-9
    assert beam_orders(d, v, 10**4)[0].score == pytest.approx(best), "wide enough, it is exhaustive"


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_greedy_follows_the_current_class(count: int) -> None:
    d = distances(count, 3)
    v = centrality(d)
    ((order, _),) = beam_orders(d, v, 1)
    free, front, back = set(range(count)), [int(v.argmin())], []
    free.remove(front[0])
    while free:
        now = front[-1]
        far = max(sorted(free), key=lambda one: d[now, one])
        front.append(far)
        free.remove(far)
        if free:
            near = min(sorted(free), key=lambda one: d[now, one])
            back.insert(0, near)
            free.remove(near)
    assert list(order) == front + back


def test_the_designer_ranks_all_or_searches() -> None:
    small = CurriculumDesigner(distances(4, 0), names=list("abcd"))
    ranked = small.rank()
    assert len(ranked) == 24 and all(a.score >= b.score for a, b in itertools.pairwise(ranked))
    assert small.named(ranked[0].order) == [list("abcd")[i] for i in ranked[0].order]
    large = CurriculumDesigner(distances(9, 0))
    assert len(large.rank(top=5, beam=20)) == 5 and large.rank(beam=20)[0].score >= large.rank(beam=1)[0].score - 1e-9


def test_given_distances_and_centralities_stay_as_they_are() -> None:
    d = distances(3, 0) * 1.001
    v = np.array([0.2, 0.5, 0.3])
    designer = CurriculumDesigner(d, v=v, normalized=True)
    assert (designer.distances == d).all() and (designer.v == v).all()


# -- distances -------------------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    features = [[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 4.0]]
    labels = [0, 0, 1, 1]
    assert class_distances(features, labels)[0, 1] == pytest.approx(1)
    assert class_distances(features, labels, "euclidean")[0, 1] == pytest.approx(math.hypot(2, 3))
    # covariances diag(1, 0) and diag(0, 1): 4 + 9 + 1 + 1
    assert class_distances(features, labels, "transport")[0, 1] == pytest.approx(math.sqrt(15))


def test_transport_is_that_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.standard_normal((9, 3)) @ rng.standard_normal((3, 3)) + i for i in range(3)]
    found = class_distances(np.concatenate(groups), np.arange(3).repeat(9), "transport")

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T

    for i, j in itertools.combinations(range(3), 2):
        a, b = (np.cov(groups[k].T, bias=True) for k in (i, j))
        squared = ((groups[i].mean(0) - groups[j].mean(0)) ** 2).sum() + np.trace(a + b - 2 * root(root(a) @ b @ root(a)))
        assert found[i, j] == pytest.approx(math.sqrt(squared)) and found[j, i] == found[i, j]


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: class_distances(np.ones((4, 2)), np.zeros(4)), "1 classes"),
        (lambda: class_distances(np.zeros((4, 2)), [0, 0, 1, 1]), "mean of class 0 is 0"),
        (lambda: class_distances(np.full((4, 2), np.nan), [0, 0, 1, 1]), "features"),
        (lambda: class_distances(np.ones((4, 2)), [0, 0, 1, 1], "cosin"), "cosin"),
        (lambda: normalized_rows([[0, 0], [1, 0]]), "class 0"),
        (lambda: normalized_rows([[0, -1], [1, 0]]), "negative"),
        (lambda: normalized_rows([[0, 1, 2], [1, 0, 1]]), "shape"),
        (lambda: score_orders([[0, 0, 1]], distances(3, 0), [0, 0, 0]), "orders"),
        (lambda: all_orders(8), "8 classes"),
        (lambda: beam_orders(distances(3, 0), [0, 0, 0], 0), "beam"),
        (lambda: CurriculumDesigner(distances(3, 0), names=["a", "a", "b"]), "names"),
        (lambda: CurriculumDesigner(distances(3, 0), v=[0.5, 0.5]), "centralities"),
    ],
)
def test_what_has_no_order_is_refused(call: object, fault: str) -> None:
    with pytest.raises(InputError, match=fault) as refused:
        call()  # type: ignore[operator]
    assert refused.value.remedy


# -- the online run --------------------------------------------------------------------------------------------------

QUICK = OnlineSettings(lr=0.05, batch_size=4, optimizer="sgd")


def classes(seed: int = 0, count: int = 3, train: int = 8, test: int = 4) -> ClassData:
    images = toy_images(seed, count=count * (train + test), classes=count, image_size=4)
    assert images.labels is not None
    return ClassData.split(images.inputs.flatten(1), images.labels, train, test, seed)


def network(outputs: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, outputs))


def test_the_split_shares_no_sample() -> None:
    data = ClassData.split(torch.arange(24.0)[:, None], torch.arange(24) % 3, 5, 3, 0)
    assert sorted(torch.cat([data.train.flatten(), data.test.flatten()]).tolist()) == list(range(24))
    assert all((data.train[k].flatten().long() % 3 == k).all() for k in range(3))
    with pytest.raises(InputError, match="class 0 has 8 samples"):
        ClassData.split(torch.arange(24.0)[:, None], torch.arange(24) % 3, 6, 3, 0)


class Recorder(Learner):
    """Naive, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[torch.Tensor, torch.Tensor]] = []

    def extend(self, inputs: torch.Tensor, labels: torch.Tensor, stage: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.shown.append((inputs, labels))
        return inputs, labels


def test_every_sample_is_seen_once_in_order_and_unseen_classes_are_not_tested() -> None:
    data, recorder = classes(), Recorder()
    orders = [(2, 0, 1), (0, 1, 2)]
    found = online_run(network(), data, orders, lambda: recorder, QUICK)
    for place, order in enumerate(orders):
        labels = torch.cat([labels[place] for _, labels in recorder.shown])
        assert labels.tolist() == [one for one in order for _ in range(8)]
        seen = torch.cat([inputs[place] for inputs, _ in recorder.shown])
        for stage, one in enumerate(order):
            own = seen[8 * stage : 8 * stage + 8]
            assert sorted(map(tuple, own.tolist())) == sorted(map(tuple, data.train[one].tolist()))
    assert np.isnan(found[:, 0, 1:]).all() and np.isnan(found[:, 1, 2]).all()
    assert not np.isnan(found[:, 2]).any() and ((found >= 0) | np.isnan(found)).all()


@pytest.mark.parametrize("kind", LEARNERS.values(), ids=LEARNERS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_orders_side_by_side_are_those_learned_alone(kind: type[Learner], optimizer: str) -> None:
    data, orders = classes(), [(0, 1, 2), (2, 1, 0), (1, 0, 2)]
    together = online_run(network(), data, orders, kind, OnlineSettings(0.02, 4, optimizer))  # type: ignore[arg-type]
    alone = online_run(network(), data, orders, kind, OnlineSettings(0.02, 4, optimizer, side_by_side=1))  # type: ignore[arg-type]
    assert np.allclose(together, alone, equal_nan=True)


def weights_after(learner: Learner, strength: float = 0.05) -> list[torch.Tensor]:
    """The weights of one order after all three classes."""
    kept = list[torch.Tensor]()

    class Watched(type(learner)):  # type: ignore[misc]
        def after_class(self, params: dict[str, torch.Tensor], *rest: object) -> None:
            kept[:] = [value.detach().clone() for value in params.values()]
            super().after_class(params, *rest)

    learner.__class__ = Watched
    online_run(network(), classes(), [(0, 1, 2)], lambda: learner, OnlineSettings(strength, 4, "sgd"))
    return kept


@pytest.mark.parametrize("learner", [EWC(0.0), LwF(0.0), SI(0.0), Replay(share=0.0), Replay(per_class=0)])
def test_at_weight_0_every_learner_is_naive_step_for_step(learner: Learner) -> None:
    for one, other in zip(weights_after(learner), weights_after(Naive()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("learner", [EWC(5.0), LwF(3.0), SI(1.0), Replay(0.5)])
def test_with_a_weight_none_is(learner: Learner) -> None:
    assert any(not torch.equal(one, other) for one, other in zip(weights_after(learner), weights_after(Naive())))


def test_naive_is_plain_training() -> None:
    data, own = classes(), network()
    recorder = Recorder()
    online_run(own, data, [(1, 2, 0)], lambda: recorder, QUICK)
    plain = network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=QUICK.lr)
    for inputs, labels in recorder.shown:
        optimizer.zero_grad()
        F.cross_entropy(plain(inputs[0]), labels[0]).backward()
        optimizer.step()
    found = online_run(own, data, [(1, 2, 0)], Naive, QUICK)[0, -1]
    right = [(plain(data.test[one]).argmax(1) == one).float().mean().item() for one in (1, 2, 0)]
    assert found.tolist() == pytest.approx(right)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), network().parameters())), "the network stays as it is"


def test_the_fisher_information_is_that_of_single_samples() -> None:
    data, learner, net = classes(), EWC(1.0), network()
    online_run(net, data, [(0, 1, 2)], lambda: learner, OnlineSettings(lr=0.0, batch_size=8, optimizer="sgd"))
    old, fisher = learner.anchors[0]
    squares = [torch.zeros_like(value) for value in net.parameters()]
    for sample in data.train[0]:
        slopes = torch.autograd.grad(F.cross_entropy(net(sample[None]), torch.tensor([0])), list(net.parameters()))
        squares = [total + slope**2 / len(data.train[0]) for total, slope in zip(squares, slopes)]
    for name, expected in zip(fisher, squares, strict=True):
        assert torch.allclose(fisher[name][0], expected, atol=1e-6)
    assert len(learner.anchors) == 3 and torch.equal(old["0.weight"][0], net[0].weight)


def test_importance_is_the_path_integral() -> None:
    learner = SI(1.0, damping=1e-3)
    online_run(network(), classes(train=4), [(0, 1, 2)], lambda: learner, OnlineSettings(lr=0.1, batch_size=4, optimizer="sgd"))
    assert all(bool((value >= 0).all()) for value in learner.importance.values())
    # one step a class of plain descent: -g delta = delta^2 / lr, so that the first class adds delta^2 / lr / (delta^2 + damping)
    first = SI(0.0, damping=1e-3)
    weights = {name: value.detach()[None] for name, value in network().named_parameters()}
    moved = {name: value + 0.1 for name, value in weights.items()}
    first.after_step(moved, {name: torch.full_like(value, -1.0) for name, value in weights.items()}, weights)
    first.after_class(moved, torch.zeros(1), torch.zeros(1), 0)
    assert torch.allclose(first.importance["0.bias"], torch.tensor(0.1 / (0.01 + 1e-3)))


def test_replay_shows_stored_samples_of_earlier_classes_alone() -> None:
    class Kept(Replay):
        def extend(self, inputs: torch.Tensor, labels: torch.Tensor, stage: int) -> tuple[torch.Tensor, torch.Tensor]:
            more, names = super().extend(inputs, labels, stage)
            old, own = more[0, inputs.shape[1] :], names[0, labels.shape[1] :]
            assert own.tolist() == [one for one in (2, 0, 1)[:stage] for _ in range(3)]
            for sample, label in zip(old, own.tolist()):
                assert any(torch.equal(sample, stored) for stored in self.memory[label])
            return more, names

    learner = Kept(share=0.25, per_class=3)
    online_run(network(), classes(), [(2, 0, 1)], lambda: learner, QUICK)
    assert learner.memory.shape[:2] == (3, 2)


@pytest.mark.parametrize(
    ("net", "orders", "fault"),
    [
        (network(), [], "orders"),
        (network(), [(0, 1)], "orders"),
        (network(), [(0, 1, 1)], "orders"),
        (network(outputs=2), [(0, 1, 2)], "outputs"),
        (nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), [(0, 1, 2)], "batch norm"),
    ],
)
def test_bad_runs_are_refused(net: nn.Module, orders: list[tuple[int, ...]], fault: str) -> None:
    with pytest.raises(InputError, match=fault) as refused:
        online_run(net, classes(), orders)
    assert refused.value.remedy


def test_a_run_that_diverges_is_an_error() -> None:
    with pytest.raises(TrainingError, match="finite"):
        online_run(network(), classes(), [(0, 1, 2)], lambda: EWC(1e30), OnlineSettings(lr=1.0, batch_size=1, optimizer="sgd"))


@pytest.mark.parametrize("make", [lambda: EWC(-1), lambda: LwF(1, 0), lambda: SI(1, 0), lambda: Replay(2), lambda: Replay(0.1, -1),
                                  lambda: OnlineSettings(batch_size=0), lambda: OnlineSettings(optimizer="adamw")])  # fmt: skip
def test_bad_settings_are_refused(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]


def test_alpha_of_lwf_is_the_published_list() -> None:
    assert [t**2 / (t + 1) for t in range(5)] == pytest.approx([0, 0.5, 1.333, 2.25, 3.2], abs=1e-3)


# -- agreement -------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.5))
def test_merit_rises_with_accuracy_and_falls_with_forgetting(a: float, g: float, step: float) -> None:
    assert merit_of(0, g) == 0 and merit_of(a, 0) == pytest.approx(2 * a)
    assert merit_of(a + step, g) > merit_of(a, g)
    if a > 0.01:
        assert merit_of(a, g + step) < merit_of(a, g)


def test_merits_of_a_matrix() -> None:
    matrix = np.array([[0.9, np.nan], [0.5, 0.7]])
    found = merits(matrix[None])
    assert found.accuracy[0] == pytest.approx(0.6) and found.forgetting[0] == pytest.approx(0.4)
    assert found.merit[0] == pytest.approx(1.2 / 1.24)


def test_what_is_stable() -> None:
    effect = np.arange(20.0)
    rng = np.random.default_rng(0)
    assert stable_share([effect, effect + 5, effect - 3]) == pytest.approx(1)
    assert abs(stable_share(rng.standard_normal((4, 400)))) < 0.1
    half = effect[None] / effect.std() + rng.standard_normal((50, 20))
    assert stable_share(half) == pytest.approx(0.5, abs=0.1)
    assert stable_share(np.ones((3, 4))) == 0
    with pytest.raises(InputError):
        stable_share([[1, 2, 3]])


def test_binned_distance() -> None:
    orders, merit = all_orders(3), np.arange(6.0)
    assert binned_distance(merit, merit, orders, 2) == 0
    assert 0 < binned_distance(-merit, merit, orders, 2) <= 1
    assert binned_distance(-merit, merit, orders, 6) == 0, "one order a bin has no ranking"
    with pytest.raises(InputError):
        binned_distance(merit, merit, orders, 7)


# -- files and features ----------------------------------------------------------------------------------------------


def test_files_read_back(tmp_path: Path) -> None:
    designer = CurriculumDesigner(distances(3, 0), names=["a", "b, c", "d"])
    found, names = read_distances(write_distances(tmp_path / "d.csv", designer))
    assert (found == designer.distances).all() and names == designer.names
    ranked = designer.rank()
    assert read_orders(write_orders(tmp_path / "o.jsonl", ranked, designer), names) == [one.order for one in ranked]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "0 classes"),
        ("class,a,a\n", "1 classes"),
        ("class,a,b\na,0,1\n", "1 rows for 2 classes"),
        ("class,a,b\na,0,\nb,1,0\n", ":2: b: a missing value"),
        ("class,a,b\na,0,x\nb,1,0\n", ":2: b: 'x' is no number"),
        ("class,a,b\nb,0,1\na,1,0\n", ":2: the row of 'b'"),
        ("class,a,b\na,0,1\nb,1\n", ":3: the row of 'b' with 1 values"),
    ],
)
def test_bad_distances_are_refused(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(InputError, match=fault) as refused:
        read_distances(tmp_path / "d.csv")
    assert refused.value.remedy


@pytest.mark.parametrize("line", ['{"order": ["a"]}', '{"order": ["a", "x"]}', '{"order": ["a", "a"]}', '{"order": 3}', "[]", ""])
def test_bad_orders_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text(f"{line}\n" if line else "")
    with pytest.raises(InputError) as refused:
        read_orders(tmp_path / "o.jsonl", ["a", "b"])
    assert refused.value.remedy


def test_features_of_an_encoder_by_name() -> None:
    data = toy_images(0, count=10, image_size=8)
    plain, labels = encoded(data, batch_size=4)
    assert torch.equal(plain, data.inputs.flatten(1)) and torch.equal(labels, data.labels)
    options = {"classes": 3, "channels": 8, "embedding": 12}
    whole, _ = encoded(data, EncoderSettings("small-cnn", options).build(), batch_size=4)
    assert encoded(data, EncoderSettings("small-cnn", options, layer="body").build())[0].shape == (10, 12)
    assert whole.shape == (10, 3) and torch.allclose(
        whole, encoded(data, EncoderSettings("small-cnn", options).build())[0], atol=1e-6
    )
    with pytest.raises(InputError, match="no layer"):
        EncoderSettings("small-cnn", options, layer="nowhere").build()
