"""Boolean functions in context: classes by hand, teaching sequences, learners, networks, probes, language models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tutelage
from tutelage.distillation.data import Batch
from tutelage.distillation.data.generated import RowStream
from tutelage.errors import InputError
from tutelage.systems import icl_discrete_functions
from tutelage.systems.icl_discrete_functions import (
    CLASSES,
    KINDS,
    OPTIMAL,
    FunctionData,
    InContextLearning,
    InContextModel,
    PretrainedDecoder,
    attention_maps,
    averaging,
    baselines_of,
    compare,
    correct,
    cosine_nearest,
    curve_of,
    disjunction_elimination,
    draw_curves,
    elimination,
    induction_scores,
    nearest,
    neighbour_scores,
    null,
    parity_elimination,
    probe_attention,
    teaching_decoder,
    teaching_sequence,
    write_curves,
)
from tutelage.systems.icl_discrete_functions.classes import clause_labels, clause_thresholds, nearest_labels, parity_labels
from tutelage.systems.icl_discrete_functions.networks import interleave

POINTS = np.array([[1.0 if number >> place & 1 else -1.0 for place in range(4)] for number in range(16)])


def labels(weights: list[list[float]], xs: np.ndarray, rule: str) -> list[float]:
    w = np.array([weights], dtype=float)
    return clause_labels(xs[None], w, clause_thresholds(w, rule), rule)[0].tolist()  # type: ignore[arg-type]


# -- classes ---------------------------------------------------------------------------------------------------------


def test_labels_by_hand() -> None:
    for x, label in zip(POINTS, labels([[1, 0, -1, 0]], POINTS, "all"), strict=True):
        assert label == (1 if x[0] == 1 and x[2] == -1 else -1)
    for x, label in zip(POINTS, labels([[1, 0, -1, 0]], POINTS, "any"), strict=True):
        assert label == (1 if x[0] == 1 or x[2] == -1 else -1)
    two = [[1.0, 1, 0, 0], [0, 0, 1, 1]]
    for x, dnf, cnf in zip(POINTS, labels(two, POINTS, "all"), labels(two, POINTS, "any"), strict=True):
        assert dnf == (1 if x[:2].min() > 0 or x[2:].min() > 0 else -1)
        assert cnf == (1 if x[:2].max() > 0 and x[2:].max() > 0 else -1)
    assert set(labels([[0, 0, 0, 0]], POINTS, "all")) == {1.0} and set(labels([[0, 0, 0, 0]], POINTS, "any")) == {-1.0}
    odd = parity_labels(POINTS[None], np.array([[[1.0, 0, 0, 1]]]))[0]
    assert all(label == (1 if x[0] != x[3] else -1) for x, label in zip(POINTS, odd, strict=True))


def test_nearest_labels_by_hand() -> None:
    xs = np.array([[[1.0, 1, 1], [-1, -1, -1], [1.0, 1, 1], [1, 1, -1], [-1, -1, 1], [1, -1, 1]]])
    first = np.array([[1.0, -1, -1]])
    # the third repeats the first input; the last is as near to the first as to the fifth: the first counts
    assert nearest_labels(xs, first)[0].tolist() == [1, -1, 1, 1, -1, 1]


def test_a_teaching_sequence_identifies_its_function() -> None:
    sequence = teaching_sequence(np.array([[1.0, 0, 1, 0]]), "monotone")
    assert sequence.tolist() == [[1, -1, 1, -1], [-1, -1, 1, -1], [1, -1, -1, -1]]
    assert labels([[1, 0, 1, 0]], sequence, "all") == [1, -1, -1]
    signed = teaching_sequence(np.array([[0.0, 1, -1, 0]]))
    assert signed.tolist() == [[-1, 1, -1, -1], [1, 1, -1, 1], [-1, -1, -1, -1], [-1, 1, 1, -1]]
    assert labels([[0, 1, -1, 0]], signed, "all") == [1, 1, -1, -1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=4, max_size=4))
def test_elimination_is_right_everywhere_after_a_teaching_sequence(weights: list[float]) -> None:
    w = np.array([weights])
    sequence = teaching_sequence(w)
    assert len(sequence) == np.count_nonzero(w) + 2
    for point in POINTS:
        xs = np.concatenate([sequence, point[None]])
        ys = np.array(labels([weights], xs, "all"))
        assert elimination(xs[None], ys[None])[0, -1] == ys[-1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=3, max_size=3))
def test_the_decoder_is_right_after_three_taught_terms(weights: list[list[float]]) -> None:
    sequence = teaching_sequence(np.array(weights), "monotone")
    xs = np.concatenate([sequence, POINTS])
    ys = np.array(labels(weights, xs, "all"))
    assert (teaching_decoder(xs[None], ys[None])[0, len(sequence) :] == ys[len(sequence) :]).all()


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_pure_and_never_undecided(name: str) -> None:
    data = FunctionData(name, 6, 12, seed=1)
    whole, part = data.batch(torch.arange(8), torch.arange(8)), data.batch(torch.tensor([5]), torch.tensor([5]))
    assert torch.equal(whole.inputs[0][5], part.inputs[0][0]) and torch.equal(whole.inputs[1][5], part.inputs[1][0])
    assert set(whole.inputs[0].unique().tolist()) == {-1, 1} and set(whole.inputs[1].unique().tolist()) == {-1, 1}
    assert not torch.equal(whole.inputs[0], data.batch(torch.arange(8), torch.arange(8) + 1).inputs[0])
    counted = whole.labels != 0
    assert torch.equal(whole.labels[counted], whole.inputs[1][counted])
    assert counted.all() or name == "nearest-neighbour" and (counted.sum(1) == 6).all()
    assert data.fingerprint != FunctionData(name, 6, 12, seed=2).fingerprint


@pytest.mark.parametrize("size", [6, 10, 28])
def test_labels_are_balanced_as_forcing_says(size: int) -> None:
    expected = 0.3 + 0.7 * 0.85**size
    for name, share in (("conjunction", expected), ("disjunction", 1 - expected), ("parity", 0.5)):
        if name == "parity":
            expected = 0.5 * (1 - 0.5**size)  # without variables the parity is always even
            share = expected
        ys = FunctionData(name, size, 40).sequences(1500).ys
        by_function = (ys > 0).mean(1)
        assert abs(by_function.mean() - share) < 4 * by_function.std() / 1500**0.5 + 1e-9


def test_weights_of_the_classes() -> None:
    weights = {name: FunctionData(name, 10, 2).sequences(2000).weights for name in CLASSES}
    for name, (plus, minus) in {"conjunction": (0.15, 0.15), "dnf": (0.1, 0.1), "majority": (0.3, 0), "parity": (0.5, 0)}.items():
        assert abs((weights[name] == 1).mean() - plus) < 0.02 and abs((weights[name] == -1).mean() - minus) < 0.02
    assert (weights["sparse-disjunction"].sum((1, 2)) == 4).all() and (weights["sparse-parity"].sum((1, 2)) == 2).all()
    assert set(np.unique(weights["integer-halfspace"])) == set(range(-3, 4)) and weights["cnf"].shape == (2000, 3, 10)
    assert abs((FunctionData("conjunction", 10, 2, density=0.5).sequences(2000).weights != 0).mean() - 0.5) < 0.02
    assert len(CLASSES) == 14


def test_taught_and_plain_sequences_are_mixed() -> None:
    made = FunctionData("conjunction", 6, 16, teaching=0.5).sequences(400)
    assert 0.4 < (made.teaching_lengths > 0).mean() < 0.6
    for row in np.flatnonzero(made.teaching_lengths)[:50]:
        sequence = teaching_sequence(made.weights[row])
        assert made.teaching_lengths[row] == made.literals[row] + 2 and (made.xs[row, : len(sequence)] == sequence).all()
    short = FunctionData("monotone-dnf", 28, 5, teaching=1.0).sequences(20)
    assert (short.teaching_lengths <= 5).all() and short.teaching_lengths.max() == 5


def test_noise_turns_a_share_of_the_labels() -> None:
    plain, noisy = (FunctionData("parity", 6, 40, noise=share).sequences(500) for share in (0.0, 0.2))
    assert (plain.xs == noisy.xs).all() and abs((plain.ys != noisy.ys).mean() - 0.2) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function": "conjuntion"}, "did you mean conjunction"),
        ({"function": "parity", "teaching": 0.5}, "one of conjunction"),
        ({"noise": 1.5}, "at most 1"),
        ({"nose": 0.1}, "did you mean noise"),
        ({"function": "sparse-disjunction", "size": 3}, "at least 4"),
        ({"function": "nearest-neighbour", "start": 0}, "start"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FunctionData(**({"size": 6, "examples": 8} | options))  # type: ignore[arg-type]


# -- learners --------------------------------------------------------------------------------------------------------


def test_learners_by_hand() -> None:
    xs = np.array([[[1.0, 1, 1], [-1, -1, 1], [1, 1, 1], [1, -1, 1]]])
    ys = np.array([[1.0, -1, 1, -1]])
    assert null(xs, ys).tolist() == [[-1, -1, -1, -1]]
    # w = mean of y x: 0, then (1, 1, 1), (2, 2, 0), (3, 3, 1): x_t w = 0, -1, 4, 1
    assert averaging(xs, ys).tolist() == [[0, -1, 1, 1]]
    assert nearest(xs, ys).tolist() == [[0, 1, 1, 1]]  # the last is as near to the first as to the second
    assert nearest(xs, ys, 3).tolist() == [[0, 1, 1, 1]]
    assert cosine_nearest(xs, ys).tolist() == nearest(xs, ys).tolist()
    # after the first positive, the literals are x1 x2 x3
    assert elimination(xs, ys).tolist() == [[-1, -1, 1, -1]]


def test_nearest_neighbours_repeat_labels_and_cosine_solves_its_task() -> None:
    made = FunctionData("nearest-neighbour", 4, 40, start=10).sequences(50)
    right = correct(cosine_nearest(made.xs, made.ys), made)
    assert right[made.counted].all() and not made.counted[:, :10].any()
    again = nearest_labels(made.xs, made.ys[:, :10])
    assert (again == made.ys).all() and (correct(nearest(made.xs, made.ys), made)[made.counted]).all()


def test_class_learners_are_right_once_they_know() -> None:
    for name in ("conjunction", "monotone-conjunction", "disjunction", "sparse-disjunction", "parity", "sparse-parity"):
        made = FunctionData(name, 6, 60).sequences(60)
        right = correct(OPTIMAL[name](made.xs, made.ys), made)
        assert right[:, 50:].mean() > 0.97, name
    # a conjunction's learner never errs on the positive side
    made = FunctionData("conjunction", 6, 30).sequences(100)
    found = elimination(made.xs, made.ys)
    assert (made.ys[found > 0] > 0).all()
    turned = FunctionData("disjunction", 6, 30).sequences(100)
    assert (turned.ys[disjunction_elimination(turned.xs, turned.ys) < 0] < 0).all()


def test_parity_is_known_after_the_inputs_span_it() -> None:
    made = FunctionData("parity", 5, 40).sequences(40)
    found = parity_elimination(made.xs, made.ys)
    for row in range(40):
        ones = (made.xs[row] > 0).astype(int)
        for place in range(1, 40):
            seen = {tuple(one) for one in ones[:place]}
            if tuple(ones[place]) in seen:
                assert found[row, place] == made.ys[row, place]
    assert (found[:, 30:] == made.ys[:, 30:]).mean() > 0.99


# -- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_is_causal_and_takes_a_batch_of_one(kind: str) -> None:
    torch.manual_seed(0)
    model = InContextModel(4, 8, kind, dim=16, depth=2, num_heads=2).eval()  # type: ignore[arg-type]
    xs, ys = FunctionData("parity", 4, 8).batch(torch.arange(1), None).inputs
    logits = model(xs, ys)
    assert logits.shape == (1, 8) and model(xs[:, :5], ys[:, :5]).shape == (1, 5)
    for place in range(8):
        other_xs, other_ys = xs.clone(), ys.clone()
        other_ys[:, place:] *= -1
        other_xs[:, place + 1 :] *= -1
        changed = model(other_xs, other_ys)
        torch.testing.assert_close(changed[:, : place + 1], logits[:, : place + 1], rtol=1e-4, atol=1e-5)
        assert place == 7 or (changed[:, place + 1 :] != logits[:, place + 1 :]).any()


def test_tokens_alternate() -> None:
    assert interleave(torch.ones(1, 2, 3), torch.tensor([[-1.0, 1.0]])).tolist() == [[[1, 1, 1], [-1, 0, 0], [1, 1, 1]]]


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = InContextModel(4, 8, dim=16, depth=1, num_heads=2)
    with pytest.raises(InputError, match="P at most 8"):
        model(torch.ones(2, 9, 4), torch.ones(2, 9))
    with pytest.raises(InputError, match="did you mean"):
        InContextModel(4, 8, "transfomer")  # type: ignore[arg-type]
    batch = Batch(None, torch.ones(2, 3))
    with pytest.raises(InputError, match="give one logit a position"):
        InContextLearning().loss_terms(batch, {"logits": torch.ones(2, 4)}, {})


def test_the_loss_counts_only_labelled_positions() -> None:
    logits, labels_ = torch.tensor([[0.0, 5.0, -9.0]]), torch.tensor([[1.0, -1.0, 0.0]])
    loss = InContextLearning().loss_terms(Batch(None, labels_), {"logits": logits}, {})["label"]
    assert loss.item() == pytest.approx((np.log(2) + np.log1p(np.exp(5))) / 2, rel=1e-6)


def test_a_pretrained_decoder_stays_frozen_but_for_its_norms() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=8)
    body = PretrainedDecoder(transformers.GPT2Model(config), "norms")
    model = InContextModel(4, 8, body, dim=16, mlp=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = FunctionData("conjunction", 4, 8, length=64)
    student = tutelage.distill(model, None, data, "icl-discrete-functions", steps=3, batch_size=8).student
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert any("ln_1" in name for name in changed) and any("read_in" in name for name in changed)
    assert not any("attn" in name or "mlp.c_" in name or "wte" in name for name in changed)


# -- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("repeats", "most"), [(2, 1.0), (4, 0.5)])
def test_a_perfect_induction_head_reaches_the_largest_score(repeats: int, most: float) -> None:
    prompt = 3
    attention = torch.zeros(2, 2, 2 * prompt * repeats - 1, 2 * prompt * repeats - 1)
    for copy in range(1, repeats):
        for item in range(prompt):
            for earlier in range(copy):
                attention[:, 0, 2 * (copy * prompt + item), 2 * (earlier * prompt + item) + 1] = 1 / copy
    scores = induction_scores(attention, prompt, repeats)
    assert scores[0].item() == pytest.approx(most) and scores[1].item() == 0


def test_a_perfect_neighbour_head_reaches_one() -> None:
    xs = torch.from_numpy(FunctionData("parity", 4, 6).sequences(3).xs).float()
    attention = torch.zeros(3, 1, 11, 11)
    similar = (xs @ xs.transpose(1, 2)).round()
    for row in range(3):
        for place in range(1, 6):
            best = max(range(place), key=lambda j: (similar[row, place, j].item(), -j))
            attention[row, 0, 2 * place, 2 * best + 1] = 1
    assert neighbour_scores(attention, xs).item() == pytest.approx(1)
    with pytest.raises(InputError, match="start"):
        neighbour_scores(attention, xs, 6)


def test_attention_of_a_model_is_causal_and_sums_to_one() -> None:
    model, data = InContextModel(4, 8, dim=16, depth=2, num_heads=2), FunctionData("conjunction", 4, 8)
    xs, ys = data.batch(torch.arange(2), None).inputs
    maps = attention_maps(model, xs, ys)
    assert len(maps) == 2 and maps[0].shape == (2, 2, 15, 15)
    assert torch.allclose(maps[1].sum(-1), torch.ones(())) and not maps[1].triu(1).any()
    scores = probe_attention(model, data, 8)
    assert scores.induction.shape == (2, 2) and scores.count(0.0) == {"induction": 4, "neighbour": 4}
    with pytest.raises(InputError, match="no attention"):
        probe_attention(InContextModel(4, 8, "gru", dim=16), data, 8)


# -- curves ----------------------------------------------------------------------------------------------------------


def test_curves_hold_mean_and_interval(tmp_path: Path) -> None:
    right = np.array([[1.0, 0], [1, 1], [1, 0], [1, 1]])
    curve = curve_of("one", right, [3, 5])
    assert curve.mean.tolist() == [100, 50] and curve.low[0] == curve.high[0] == 100 and curve.low[1] < 50 < curve.high[1]
    model, data = InContextModel(4, 8, dim=16, depth=1, num_heads=2), FunctionData("conjunction", 4, 8)
    curves = compare({"model": model}, data, 50)
    assert [one.name for one in curves] == ["model", "null", "averaging", "1-NN", "3-NN", "class learner"]
    write_curves(tmp_path / "curves.csv", curves)
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert rows[0] == "learner,examples,accuracy,low,high" and len(rows) == 1 + 6 * 8
    picture = draw_curves(curves, "A <title>")
    assert picture.startswith("<svg") and picture.count("<polyline") == 6 and "A &lt;title&gt;" in picture
    with pytest.raises(InputError, match="nothing to draw"):
        draw_curves([], "none")
    with pytest.raises(InputError, match="unknown baseline"):
        baselines_of("parity", ["2-NN"])


# -- as a user types it ----------------------------------------------------------------------------------------------


def test_the_first_lines_of_the_page_run() -> None:
    source = icl_discrete_functions.tool.__doc__ or ""
    block = source.split("::\n\n", 1)[1].split("\n\nA language model", 1)[0]
    code = "\n".join(line.removeprefix("    ") for line in block.splitlines()).replace("steps=1000", "steps=2")
    code = code.replace("compare({", "compare(functions=20, data=data, models={").replace("}, data)", "})")
    names: dict[str, object] = {}
    exec(compile(code, "page", "exec"), names)  # noqa: S102
    assert str(names["picture"]).startswith("<svg")


def test_a_row_draws_the_same_in_any_batch() -> None:
    whole, one = RowStream(torch.arange(5), None, 3), RowStream(torch.tensor([2]), None, 3)
    for _ in range(2):
        assert (whole.uniform(4)[2] == one.uniform(4)[0]).all()
    values = RowStream(torch.arange(1000), None).uniform(20)
    assert 0 < values.min() and values.max() < 1 and abs(values.mean() - 0.5) < 0.01
    stream = RowStream(torch.arange(1000), None)
    first, second = stream.uniform(1)[:, 0], stream.uniform(1)[:, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
