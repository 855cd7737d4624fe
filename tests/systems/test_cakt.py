"""Clips, causality and padding on hand-made inputs; logs from files; a tracer from a log to a prediction."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.datasets.student_logs import hashed_name
from tutelage.distillation.tasks import make_task
from tutelage.errors import InputError
from tutelage.systems import cakt
from tutelage.systems.cakt import CAKT, DKT, Answers, Tracer, answer_data, clip_steps, decode, encode, pieces, read_answers
from tutelage.systems.cakt.network import CurveBlock

COUNT = 5


def network(seed: int = 0, **options: object) -> CAKT:
    torch.manual_seed(seed)
    made = CAKT(COUNT, **({"side": 3, "frames": 2, "decay_start": 0.1} | options))  # type: ignore[arg-type]
    for module in made.modules():  # running statistics as after some training
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return made.eval()


def sequence(seed: int, rows: int = 3, length: int = 9) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    concepts = torch.randint(1, COUNT + 1, (rows, length + 1), generator=rng)
    right = torch.randint(0, 2, (rows, length), generator=rng)
    return {"interactions": encode(concepts[:, :-1], right, COUNT), "next_concept": concepts[:, 1:]}


# -- interactions and clips ------------------------------------------------------------------------------------------


def test_interactions_are_numbered_by_concept_and_answer() -> None:
    assert encode(torch.tensor(2), torch.tensor(1), 3) == 5 and encode(torch.tensor(2), torch.tensor(0), 3) == 2
    assert decode(torch.tensor([5, 2, 6, 0]), 3).tolist() == [2, 2, 3, 0]


def test_the_clips_of_four_answers() -> None:
    interactions, following = torch.tensor([[1, 2, 1, 1]]), torch.tensor([[2, 1, 1, 2]])
    steps, back = clip_steps(interactions, following, 3, 2, "current")
    assert steps[0, 3].tolist() == [2, 3] and back[0, 3].tolist() == [1, 0]
    assert steps[0, 1].tolist() == [-1, 1] and back[0, 1, 1] == 0
    steps, back = clip_steps(interactions, following, 3, 2, "next")
    assert steps[0, 3].tolist() == [-1, 1] and back[0, 3, 1] == 3
    assert steps[0, 2].tolist() == [0, 2] and back[0, 2].tolist() == [3, 1]
    assert steps[0, 0].tolist() == [-1, -1]
    assert clip_steps(interactions, following, 3, 9)[0].shape == (1, 4, 9)


def test_frames_fade_by_their_distance() -> None:
    made, clips = network(decay_start=1.0, curve="lstm", history_key="current"), []
    made.curve_lstm.register_forward_pre_hook(lambda module, given: clips.append(given[0]))  # type: ignore[union-attr]
    made({"interactions": torch.tensor([[1, 2, 1, 1]]), "next_concept": torch.tensor([[2, 1, 1, 2]])})
    first = made.embed.weight[1]
    assert torch.allclose(clips[0][3], torch.stack([first * math.exp(-1), first]))
    assert torch.allclose(clips[0][1], torch.stack([torch.zeros(9), made.embed.weight[2]]))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), frames=st.integers(1, 4), key=st.sampled_from(["next", "current"]))
def test_clips_hold_earlier_answers_on_the_concept_oldest_first(seed: int, frames: int, key: str) -> None:
    inputs = sequence(seed, 2, 12)
    steps, back = clip_steps(*inputs.values(), COUNT, frames, key)  # type: ignore[arg-type]
    own = decode(inputs["interactions"], COUNT)
    wanted = inputs["next_concept"] if key == "next" else own
    for row in range(2):
        for step in range(12):
            same = [i for i in range(step + 1) if own[row, i] == wanted[row, step]][-frames:]
            assert steps[row, step].tolist() == [-1] * (frames - len(same)) + same
            for place, i in enumerate(same, frames - len(same)):
                assert back[row, step, place] == step - i + (key == "next")


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["next", "current"])
@pytest.mark.parametrize("curve", ["cnn", "lstm"])
def test_a_logit_sees_nothing_of_what_comes_later(key: str, curve: str) -> None:
    made, inputs, other = network(history_key=key, curve=curve), sequence(1), sequence(2)
    for step in (0, 3, 7):
        changed = {name: value.clone() for name, value in inputs.items()}
        changed["interactions"][:, step + 1 :] = other["interactions"][:, step + 1 :]
        changed["next_concept"][:, step + 1 :] = other["next_concept"][:, step + 1 :]
        assert torch.allclose(made(inputs)[:, : step + 1], made(changed)[:, : step + 1], atol=1e-6)
    # the answer to the next question, with the question left as it is
    step = 4
    changed = {name: value.clone() for name, value in inputs.items()}
    concept = decode(inputs["interactions"][:, step + 1], COUNT)
    changed["interactions"][:, step + 1] = 2 * concept + COUNT - inputs["interactions"][:, step + 1]
    assert torch.equal(made(inputs)[:, : step + 1], made(changed)[:, : step + 1])
    assert not torch.allclose(made(inputs)[:, step + 1], made(changed)[:, step + 1])


def test_the_next_concept_alone_decides_whose_curve_is_seen() -> None:
    inputs = sequence(3)
    changed = {**inputs, "next_concept": inputs["next_concept"] % COUNT + 1}
    both = [network(history_key=key) for key in ("next", "current")]
    same = [torch.allclose(made.concept_logits(inputs), made.concept_logits(changed)) for made in both]
    assert same == [False, True]


def test_padding_changes_no_real_logit_and_no_statistic() -> None:
    inputs = sequence(4)
    padded = {name: torch.nn.functional.pad(value, (0, 6)) for name, value in inputs.items()}
    made = network()
    assert torch.allclose(made(inputs), made(padded)[:, :9], atol=1e-6)
    means = []
    for given_inputs in (inputs, padded):
        made = network().train()
        made(given_inputs)
        means.append(made.blocks[0].layers[1].running_mean)  # type: ignore[index,union-attr]
    assert torch.allclose(*means)
    nothing = {name: torch.zeros(2, 4, dtype=torch.int64) for name in inputs}
    assert network().train()(nothing).isfinite().all()


def test_a_row_alone_is_the_row_in_a_batch_and_eval_repeats() -> None:
    made, inputs = network(), sequence(5)
    assert torch.equal(made(inputs), made(inputs))
    assert torch.allclose(made({name: value[1:2] for name, value in inputs.items()}), made(inputs)[1:2], atol=1e-6)


def test_no_decay_is_a_decay_of_zero_and_one_frame_works() -> None:
    inputs = sequence(6)
    without, zero = network(decay_start=None), network(decay_start=0.0)
    assert without.decay is None and torch.equal(without(inputs), zero(inputs))
    assert network(frames=1)(inputs).shape == (3, 9)
    frozen = network()
    frozen.decay.requires_grad_(False)  # type: ignore[union-attr]
    frozen.train()(inputs).sum().backward()
    assert frozen.decay.grad is None and frozen.embed.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{"curve": "lstm"}, {"pooling": "linear"}, {"fusion": "half"}, {"rear": False}])
def test_every_ablation_learns_all_its_weights(options: dict[str, object]) -> None:
    made = network(**options).train()
    made(sequence(7)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_the_published_size() -> None:
    made = CAKT(10)
    dim, lstm = 225, 4 * (225 * 225 * 2 + 2 * 225)
    widths = [(1, 4), (4, 8), (8, 4), (4, 1)]
    convolutions = sum(27 * (a * b + b * b) + 4 * b + a * b + 2 * b + 2 * 4 * 2 for a, b in widths)
    expected = 21 * dim + 1 + 2 * lstm + convolutions + 2 * (2 * dim * dim + dim) + 10 * dim + 10
    assert sum(one.numel() for one in made.parameters()) == expected
    assert made.decay == 1 and not made.embed.weight[0].any()


def test_a_block_of_zero_convolutions_is_its_rectified_shortcut() -> None:
    block = CurveBlock(2, 2, 3).eval()
    for parameter in block.layers.parameters():
        torch.nn.init.zeros_(parameter)
    clips = torch.randn(2, 2, 3, 4, 4)
    assert torch.equal(block(clips), clips.relu())


@pytest.mark.parametrize(
    "options",
    [
        {"concepts": 0},
        {"side": 0},
        {"frames": 0},
        {"decay_start": math.nan},
        {"history_key": "last"},
        {"curve": "gru"},
        {"side": 1000},
    ],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        CAKT(**({"concepts": 3, "side": 2} | options))  # type: ignore[arg-type]


# -- data ------------------------------------------------------------------------------------------------------------

ANN = Answers("ann", ("a", "b", "a"), (0, 1, 1))


def test_training_data_by_hand_and_its_loss_is_the_mean_over_steps() -> None:
    data = answer_data([ANN, Answers("bob", ("b", "b"), (1, 0))], ["a", "b"])
    assert data.inputs["interactions"].tolist() == [[1, 4], [4, 0]]
    assert data.inputs["next_concept"].tolist() == [[2, 1], [2, 0]]
    assert data.labels.tolist() == [[1, 1], [0, -1]] and data.weights.tolist() == [2, 1]
    logits = torch.tensor([[0.5, -1.0], [2.0, 9.0]])
    loss = make_task("multi-label").label_loss({"logits": logits}, data.labels, data.weights)
    real = data.labels >= 0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[real], data.labels[real])
    assert torch.allclose(loss, expected)


def test_wrong_answers_are_refused() -> None:
    with pytest.raises(InputError, match="no student has two answers"):
        answer_data([Answers("ann", ("a",), (1,))], ["a"])
    with pytest.raises(InputError, match="unknown concept 'b'"):
        answer_data([ANN], ["a"])
    with pytest.raises(InputError, match="neither 0 nor 1"):
        answer_data([Answers("ann", ("a", "a"), (1, 2))], ["a"])


def test_long_rows_are_cut_and_single_answers_left_out() -> None:
    cut = pieces([Answers("ann", ("a",) * 5, (1, 0, 1, 0, 1)), ANN], 2)
    assert [(one.student, one.right) for one in cut] == [("ann", (1, 0)), ("ann", (1, 0)), ("ann", (0, 1))]


LINES = [
    "order_id,user_id,skill_id,correct,hint",
    "3,ann,add,1,x",
    "1,ann,carry,0,x",
    "2,bob,add,1,x",
    "4,ann,,1,x",
    "5,bob,carry,0,x",
]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_log_is_sorted_and_no_name_of_a_student_is_kept(tmp_path: Path) -> None:
    ann, bob = read_answers(write(tmp_path / "a.csv", LINES))
    assert ann == Answers(hashed_name("ann"), ("carry", "add"), (0, 1)) and bob.right == (1, 0)
    assert read_answers(tmp_path / "a.csv", order=None)[0].concepts == ("add", "carry")
    assert read_answers(tmp_path / "a.csv", salt="pepper")[0].student != ann.student
    (tmp_path / "b.csv").write_bytes("user_id,skill_id,correct\nann,Größe,1\n".encode("latin-1"))
    assert read_answers(tmp_path / "b.csv", order=None, encoding="latin-1")[0].concepts == ("Größe",)


def test_an_answer_on_two_concepts_is_one_answer(tmp_path: Path) -> None:
    lines = [LINES[0], "1,ann,carry,1,x", "1,ann,add,1,x", "2,ann,add,0,x"]
    assert read_answers(write(tmp_path / "a.csv", lines))[0].concepts == ("add + carry", "add")
    lines[2] = "1,ann,add,0,x"
    with pytest.raises(InputError, match=r"a.csv:3: two answers of the order 1 disagree"):
        read_answers(write(tmp_path / "a.csv", lines))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "a.csv:1: no column 'user_id'"),
        (LINES[:1], "no answer with a concept"),
        ([LINES[0], LINES[4]], "no answer with a concept"),
        ([LINES[0], "1,ann,add,2,x"], "a.csv:2: '2' is no answer"),
        ([LINES[0], "1,ann,add,,x"], "a.csv:2: '' is no answer"),
        ([LINES[0], "1,,add,1,x"], "a.csv:2: a row without a student"),
        ([LINES[0], ",ann,add,1,x"], "a.csv:2: '' is no place in an order"),
        ([LINES[0], "nan,ann,add,1,x"], "a.csv:2: 'nan' is no place in an order"),
        ([LINES[0], "1,ann,add"], "a.csv:2: 3 fields under 5 columns"),
        ([LINES[0].replace("skill_id", "skill")], "no column 'skill_id'"),
        ([LINES[0], '1,ann,"' + "x" * 200_000 + '",1,x'], "a.csv:.: no table"),
    ],
)
def test_a_wrong_log_is_refused_by_its_line(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_answers(write(tmp_path / "a.csv", lines))


def test_a_log_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("user_id,skill_id,correct\nann,Größe,1\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_answers(tmp_path / "a.csv", order=None)
    with pytest.raises(InputError, match="not readable as klingon"):
        read_answers(tmp_path / "a.csv", encoding="klingon")


def test_the_layout_of_three_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", ["3", "7,8,7", "0,1,1,", "1", "8", "1", ""])
    assert [(one.concepts, one.right) for one in cakt.read_three_lines(file)] == [(("7", "8", "7"), (0, 1, 1)), (("8",), (1,))]
    for lines, words in [
        (["3", "7,8,7"], "not three a student"),
        (["2", "7", "1"], "a.txt:1: a length of '2'"),
        (["1", "7", "9"], "a.txt:3: '9'"),
    ]:
        with pytest.raises(InputError, match=words):
            cakt.read_three_lines(write(tmp_path / "a.txt", lines))


def test_the_simulated_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    world = cakt.simulated_answers(3, students=4, each=30, concepts=7)
    found = read_answers(cakt.write_answers(tmp_path / "a.csv", world.students))
    assert [(one.concepts, one.right) for one in found] == [(one.concepts, one.right) for one in world.students]
    assert found[1].student == hashed_name("student 1")
    other = cakt.simulated_answers(3, students=4, each=30, concepts=7, world="ability")
    assert [one.concepts for one in other.students] == [one.concepts for one in world.students]
    assert [one.right for one in other.students] != [one.right for one in world.students]
    assert set(np.concatenate(world.truth)) == {0.15, 0.9}
    for one in world.students:  # a concept is left after eight answers, so a ninth comes only after all others had their turn
        assert max(one.concepts.count(name) for name in world.concepts) <= 16
    with pytest.raises(InputError, match="did you mean learning"):
        cakt.simulated_answers(0, world="learnin")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no name for a table"):
        cakt.write_answers(tmp_path / "b.csv", [Answers("ann, bob", ("a",), (1,))])


# -- the tracer ------------------------------------------------------------------------------------------------------

FAST = {"options": {"side": 2, "frames": 2}, "epochs": 1}


def test_the_page_s_first_lines_run(tmp_path: Path) -> None:
    file = cakt.write_answers(tmp_path / "answers.csv", cakt.simulated_answers(0, students=20, each=12, concepts=4).students)
    tracer = cakt.fit(file, **FAST)  # type: ignore[arg-type]
    assert tracer.report["low"] <= tracer.report["auc"] <= tracer.report["high"]
    assert tracer.report["students"] == {"training": 14, "validation": 2, "test": 4} and tracer.report["validation_auc"] is not None
    history = [("concept 00", 0), ("concept 00", 1), ("concept 03", 1)]
    chance = tracer.predict(history, "concept 00")
    assert 0 < chance < 1 and chance == pytest.approx(tracer.chances(history)[0], abs=1e-6)
    again = cakt.fit(read_answers(file), **FAST)  # type: ignore[arg-type]
    assert again.predict(history, "concept 00") == chance
    loaded = Tracer.load(tracer.save(tmp_path / "tracer"))
    assert loaded.predict(history, "concept 00") == chance and loaded.report == tracer.report
    assert "student" not in "".join(loaded.concepts)
    data = answer_data(pieces(read_answers(file)), tracer.concepts)
    teacher_logits = DKT(4, 8)(data.inputs)
    assert make_task("multi-label").distance({"logits": tracer.network(data.inputs)}, {"logits": teacher_logits}) > 0


def test_a_prediction_is_the_logit_of_the_last_step() -> None:
    made = network()
    tracer = Tracer(made, list("abcde"))
    data = answer_data([ANN], list("abcde"))
    expected = made(data.inputs)[0, -1].sigmoid().item()
    assert tracer.predict([("a", 0), ("b", 1)], "a") == pytest.approx(expected, abs=1e-6)
    long = [("a", 1), ("b", 0)] * 150
    assert tracer.predict(long, "c") == pytest.approx(tracer.predict(long[-200:], "c"))
    for history, concept, words in [
        ([], "a", "no history"),
        ([("a", 1)], "z", "unknown concept 'z'"),
        ([("z", 1)], "a", "unknown concept 'z'"),
        ([("a", 2)], "a", r"history\[0\]"),
        ([("a", 0.5)], "a", r"history\[0\]"),
    ]:
        with pytest.raises(InputError, match=words):
            tracer.predict(history, concept)  # type: ignore[arg-type]


def test_logs_of_too_few_students_are_refused() -> None:
    with pytest.raises(InputError, match="1 student with two answers"):
        cakt.fit([ANN])
    with pytest.raises(InputError, match="0 students with two answers"):
        cakt.fit([])
    with pytest.raises(InputError, match="columns of no file"):
        cakt.fit([ANN], columns={"order": None})
    with pytest.raises(InputError, match="test"):
        cakt.fit([ANN] * 9, test=0.9)
    with pytest.raises(InputError, match="options of another network"):
        cakt.fit([ANN] * 3, options={"sides": 3})


def test_answers_of_one_kind_have_no_auc_and_no_crash() -> None:
    same = [Answers(f"s{i}", ("a", "b", "a"), (1, 1, 1)) for i in range(4)]
    tracer = cakt.fit(same, **FAST)  # type: ignore[arg-type]
    assert tracer.report["auc"] is None and tracer.report["validation_auc"] is None
    assert 0 < tracer.predict([("a", 1)], "b") < 1


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Tracer.load(tmp_path)
    Tracer(network(), list("abcde"), {"side": 3, "frames": 2}).save(tmp_path / "t")
    (tmp_path / "t" / "weights.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError):
        Tracer.load(tmp_path / "t")
