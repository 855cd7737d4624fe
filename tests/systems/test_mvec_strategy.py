"""DP-means, alignment, corpus and samples on hand-made inputs; a log from a file; the network decodes what it learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tutelage
from tutelage.errors import InputError
from tutelage.systems.mvec_strategy import (
    Instance,
    MVecStrategy,
    StrategyPredictor,
    alignment_similarity,
    attention_similarity,
    blend,
    coarse_to_fine,
    component_counts,
    corpus_vectors,
    dp_means,
    edit_similarity,
    fairness,
    jaccard,
    mastery_attention,
    mastery_model,
    prune,
    purity,
    read_log,
    relation_corpus,
    sample_cells,
    simulated_log,
    strategy_data,
    symmetry,
)
from tutelage.systems.mvec_strategy.predictor import read_vectors

ONE = Instance("ann", "unit", "p1", (("a",), ("b", "c")), (1, 0))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- clusters --------------------------------------------------------------------------------------------------------


def test_clusters_of_three_points() -> None:
    points = np.array([[0.0], [0.1], [10.0]])
    labels = dp_means(points, 1.0, rng()).labels
    assert labels[0] == labels[1] != labels[2]
    assert len(dp_means(points, 20.0, rng()).centres) == 1
    assert len(set(dp_means(points, 1e-6, rng()).labels)) == 3


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), distance=st.floats(0.05, 5))
def test_the_objective_never_rises_and_a_seed_repeats(seed: int, distance: float) -> None:
    points = rng(seed).normal(size=(30, 3))
    found = dp_means(points, distance, rng(seed))
    assert all(after <= before + 1e-9 for before, after in zip(found.objective, found.objective[1:]))
    assert np.array_equal(found.labels, dp_means(points, distance, rng(seed)).labels)


@pytest.mark.parametrize(("points", "distance"), [(np.zeros((0, 2)), 1.0), (np.array([[np.nan]]), 1.0), (np.zeros((2, 1)), 0.0)])
def test_clusters_of_nothing_are_refused(points: np.ndarray, distance: float) -> None:
    with pytest.raises(InputError):
        dp_means(points, distance, rng())


def test_a_sequence_is_aligned_with_itself_and_against_its_reverse() -> None:
    vectors = 10 * np.eye(4, 8)
    itself = alignment_similarity(vectors, vectors)
    assert itself == pytest.approx(0.75, abs=1e-3)  # the maximum 1 minus the mean 1/4 of each row
    reverse = alignment_similarity(vectors, vectors[::-1])
    assert reverse == pytest.approx(itself * (1 - 3) / 4, abs=1e-3)
    assert alignment_similarity(vectors[:1], vectors) > 0


def test_attention_is_compared_from_the_start() -> None:
    assert attention_similarity(np.array([1.0, 2.0]), np.array([1.0, 2.0, 0.0])) == pytest.approx(1)
    assert attention_similarity(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0
    assert attention_similarity(np.zeros(2), np.ones(2)) == 0


def test_symmetry_is_a_mean_over_cells_of_neighbours() -> None:
    similar = {(0, 1): 1.0, (1, 2): 0.0, (5, 6): 1.0}
    assert symmetry([[0, 1, 2], [3], [5, 6]], lambda a, b: similar[a, b]) == pytest.approx(0.75)
    with pytest.raises(InputError, match="two instances"):
        symmetry([[0], [1]], lambda a, b: 1.0)


def test_the_search_stops_where_the_symmetry_stops_rising() -> None:
    scores = {9.0: 0.1, 8.0: 0.3, 7.0: 0.2, 6.0: 0.9}
    assert coarse_to_fine(scores.__getitem__) == (8.0, [(9, 0.1), (8.0, 0.3), (7.0, 0.2)])
    assert coarse_to_fine(lambda distance: -distance)[0] == 6


# -- samples ---------------------------------------------------------------------------------------------------------


def test_cells_give_equally_many_rows() -> None:
    rows = [(0, 0)] * 50 + [(0, 1)] * 5 + [(1, 0)] * 20
    chosen = sample_cells(rows, 12, rng())
    assert sorted([rows[i] for i in chosen]) == [(0, 0)] * 4 + [(0, 1)] * 4 + [(1, 0)] * 4
    assert len(set(chosen)) == 12
    assert sorted(sample_cells(rows, 1000, rng())) == list(range(75))
    with pytest.raises(InputError):
        sample_cells(rows, 0, rng())
    with pytest.raises(InputError):
        sample_cells([], 3, rng())


def test_a_rare_group_gets_a_third_of_the_sample() -> None:
    instances, groups = simulated_log(1, students=80, problems=30, each=20)
    made = MVecStrategy(instances, seed=1)
    names, clusters = made.students
    assert purity(clusters.labels, [groups[name] for name in names]) == 1
    chosen = [groups[instances[i].student] for i in made.sample(180)]
    assert chosen.count("rare") == pytest.approx(60, abs=6)
    with pytest.raises(InputError, match="no instances"):
        MVecStrategy([])


# -- logs and vectors ------------------------------------------------------------------------------------------------


def test_the_corpus_of_one_instance() -> None:
    a, b, c = "component:a", "component:b", "component:c"
    whole = ["student:ann", "hierarchy:unit", "problem:p1"]
    steps = [[[a]], [[b, c]]]
    for step, names in zip(steps, ([a], [b, c])):
        for name in names:
            step += [[*whole, name], ["student:ann", name], ["problem:p1", name]]
    assert relation_corpus([ONE]) == [*steps[0], *steps[1], [a, b, c]]


LINES = [
    "Row\tAnon Student Id\tProblem Hierarchy\tProblem Name\tCorrect First Attempt\tKC(Default)",
    "1\tann\tunit 1\tp1\t1\tadd",
    "2\tann\tunit 1\tp1\t0\tcarry~~ subtract",
    "3\tann\tunit 1\tp1\t1\t",
    "4\tbob\tunit 1\tp1\t1\tadd",
]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("separator", ["\t", ","])
def test_a_log_is_read_and_no_name_of_a_student_is_kept(tmp_path: Path, separator: str) -> None:
    file = write(tmp_path / "log.txt", [line.replace("\t", separator) for line in LINES])
    ann, bob = read_log(file)
    assert ann.steps == (("add",), ("carry", "subtract")) and ann.correct == (1, 0) and ann.mastery == (1, 0, 0)
    assert bob.strategy == ("add",) and {ann.student, bob.student}.isdisjoint({"ann", "bob"})
    assert read_log(file, salt="pepper")[0].student != ann.student


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((0, "KC(Default)", "KC(Other)"), r"log.txt:1: no column 'KC\(Default\)'"),
        ((2, "\t0\t", "\tno\t"), "log.txt:3: 'no' is no first attempt"),
        ((4, "bob\t", ""), "log.txt:5: 5 fields under 6 columns"),
    ],
)
def test_a_wrong_log_is_refused_by_its_line(tmp_path: Path, change: tuple[int, str, str], words: str) -> None:
    lines = list(LINES)
    lines[change[0]] = lines[change[0]].replace(*change[1:])
    with pytest.raises(InputError, match=words):
        read_log(write(tmp_path / "log.txt", lines))


def test_a_log_without_components_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no step has a knowledge component"):
        read_log(write(tmp_path / "log.txt", [LINES[0], LINES[3]]))


def test_counts_have_length_one_and_names_that_occur_alike_are_alike() -> None:
    counts = component_counts([ONE, Instance("bob", "unit", "p1", (("a",),))], "student")
    assert counts["ann"].tolist() == pytest.approx([3**-0.5] * 3) and counts["bob"].tolist() == [1, 0, 0]
    vectors = corpus_vectors([["x", "one"], ["y", "one"], ["z", "two"]], dim=2)
    assert np.allclose(vectors["x"], vectors["y"]) and not np.allclose(vectors["x"], vectors["z"])
    assert {len(vector) for vector in corpus_vectors([["x", "y"]], dim=7).values()} == {7}
    with pytest.raises(InputError):
        corpus_vectors([])


def test_pruning_keeps_the_highest_in_their_order() -> None:
    strategy = Instance("ann", "unit", "p", (("a",), ("b",), ("c",), ("d",)))
    assert prune(strategy, [0.1, 0.4, 0.2, 0.3]) == ("b", "c", "d")
    assert prune(strategy, [0.1, 0.4, 0.2, 0.3], 0.2) == ("b",)
    with pytest.raises(InputError):
        prune(strategy, [0.1])


def test_a_blend_of_share_one_is_what_was_there() -> None:
    before, pruned = {"x": np.ones(2), "y": np.ones(2)}, {"x": np.zeros(2)}
    assert blend(before, pruned, {"x": 1.0})["x"].tolist() == [1, 1]
    mixed = blend(before, pruned, {"x": 0.25, "y": 0.0})
    assert mixed["x"].tolist() == [0.25, 0.25] and mixed["y"].tolist() == [1, 1]
    with pytest.raises(InputError):
        blend(before, pruned, {"x": 2.0})


# -- networks and metrics --------------------------------------------------------------------------------------------


def test_the_predictor_writes_what_it_learned_and_an_unseen_student_is_the_mean() -> None:
    instances = simulated_log(0, students=10, problems=12, each=2)[0]
    components = sorted({name for one in instances for name in one.strategy})
    vectors = {f"student:{name}": vector for name, vector in component_counts(instances, "student").items()}
    vectors |= {f"problem:{name}": vector for name, vector in component_counts(instances, "problem").items()}
    torch.manual_seed(0)
    network = StrategyPredictor(len(components), len(components), 48, 0.0)
    data = strategy_data(instances, vectors, components)
    trained = tutelage.distill(
        network, None, data, "supervised", task="token-classification", steps=150, batch_size=20, lr=2e-2, progress=False
    ).student
    found = trained.predict(read_vectors(instances, vectors))
    scores = [edit_similarity([components[i] for i in ids], one.strategy) for ids, one in zip(found, instances)]
    assert np.mean(scores) > 0.95
    stranger = read_vectors([Instance("nobody", "unit", instances[0].problem, (("a",),))], vectors)
    means = np.mean([vector for name, vector in vectors.items() if name.startswith("student:")], 0)
    assert torch.allclose(stranger[0, 0], torch.tensor(means, dtype=torch.float32))
    with pytest.raises(InputError, match="unknown component"):
        strategy_data(instances, vectors, components[1:])


def test_attention_to_mastery_is_one_number_a_component() -> None:
    torch.manual_seed(0)
    model = mastery_model(5, dim=16, depth=2, num_heads=2)
    attention = mastery_attention(model, torch.tensor([1, 3, 4, 5, 2]), torch.tensor([4, 3, 4, 2]))
    assert attention.shape == (3,) and 0 < attention.sum() < 1
    assert np.array_equal(attention, mastery_attention(model.train(), torch.tensor([1, 3, 4, 5, 2]), torch.tensor([4, 3, 4, 2])))


def test_metrics() -> None:
    assert jaccard(["a", "b"], ["b", "a"]) == 1 and jaccard(["a"], ["b"]) == 0 and jaccard([], []) == 1
    assert edit_similarity(["a", "b"], ["b", "a"]) == 0 and edit_similarity("abc", "abd") == pytest.approx(2 / 3)
    found = fairness([1.0, 0.0, 0.5], ["x", "x", "y"])
    assert found == {"group x": 0.5, "group y": 0.5, "gap": 0.0, "ratio": 1.0}
    with pytest.raises(InputError):
        fairness([], [])
