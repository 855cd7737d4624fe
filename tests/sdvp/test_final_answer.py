"""The likelihood of an answer through a program equals the sum over everything that its modules could say."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.modules.detection import Loc, LocConfig
from tutelage.modules.symbolic import symbolic_modules
from tutelage.modules.visual_module import CallLabel
from tutelage.modules.vocabulary import Vocabulary
from tutelage.modules.vqa import FiLMConfig, Verify, Vqa
from tutelage.programs.eval_expression import Expression
from tutelage.programs.types import Call, LimitExceeded, ProgramFailure
from tutelage.programs.values import Box, Image
from tutelage.programs.visprog import parse
from tutelage.sdvp.final_answer import StepwiseWithFinalAnswer, build_graph, make_final_answer_job, prepare, train_jointly
from tutelage.sdvp.final_answer.factors import Factor, box_distribution, box_outcomes, elimination_order, marginal, poisson_binomial
from tutelage.sdvp.final_answer.program_graph import GraphCall
from tutelage.sdvp.questions import Question, score_answer

SYMBOLIC = symbolic_modules()
SIGNATURES = {name: module.signature for name, module in SYMBOLIC.items()} | {
    "LOC": Loc.signature,
    "VQA": Vqa.signature,
    "VERIFY": Verify.signature,
}
IMAGE = Image(np.zeros((3, 32, 32), np.uint8), "black")
PARTS = {
    "count": ["A=LOC(image=IMAGE,object='star')", "X=COUNT(box=A)"],
    "crop": ["A=LOC(image=IMAGE,object='star')", "C=CROP(image=IMAGE,box=A)", "X=VQA(image=C,question='What color?')"],
    "both": [
        "A=LOC(image=IMAGE,object='star')",
        "C=CROP_LEFTOF(image=IMAGE,box=A)",
        "N=COUNT(box=A)",
        "V=VERIFY(image=C,object='star',property='red')",
        'X=EVAL(expr="{V} and {N} > 1")',
    ],
    "nested": [
        "A=LOC(image=IMAGE,object='star')",
        "C=CROP_RIGHTOF(image=IMAGE,box=A)",
        "B=LOC(image=C,object='object')",
        "X=COUNT(box=B)",
    ],
    "verify": ["X=VERIFY(image=IMAGE,object='star',property='red')"],
    "other": ["B=LOC(image=IMAGE,object='circle')", "D=CROP(image=IMAGE,box=B)", "X=VQA(image=D,question='What size?')"],
}
ENDS = ["{P} == {Q}", "'yes' if {P} == {Q} else 'no'", "{P} and {Q}", "{P} != 'red' xor {Q} == 'red'", "{P} > {Q}"]
ANSWERS = ("red", "blue", "2")


def program_of(left: str, right: str, end: str) -> str:
    lines = []
    for letter, part in (("P", PARTS[left]), ("Q", PARTS[right])):
        names = {line.split("=")[0]: f"{letter}{line.split('=')[0]}" for line in part}
        for line in part:
            for name, new in names.items():
                line = line.replace("{" + name + "}", "{" + new + "}").replace(f"box={name}", f"box={new}")
                line = line.replace(f"image={name},", f"image={new},")
            target, call = line.split("=", 1)
            lines.append(f"{names[target]}={call}")
    text = end.replace("{P}", "{PX}").replace("{Q}", "{QX}")
    return "\n".join([*lines, f'Z=EVAL(expr="{text}")', "FINAL_RESULT=RESULT(var=Z)"])


def candidates(call: Call, count: int) -> tuple[list[Box], list[float]]:
    """Some boxes and their probabilities, drawn from the call's image and phrase."""
    rng = np.random.default_rng([*call.args["image"].region, len(call.args["object"])])
    w, h = call.args["image"].width, call.args["image"].height
    found = []
    for _ in range(count):
        x, y = (rng.uniform(0.1, 0.6, 2) * [w, h]).tolist()
        found.append(Box(x, y, x + w / 4, y + h / 4))
    return found, rng.uniform(0.05, 0.95, count).tolist()


def answers(call: Call) -> tuple[list, list[float]]:
    options = [True, False] if call.module == "VERIFY" else list(ANSWERS)
    rng = np.random.default_rng([*call.args["image"].region, len(str(call.args.get("question", "")))])
    return options, rng.dirichlet(np.ones(len(options))).tolist()


def by_graph(text: str, count: int) -> dict[str, float]:
    dists: list[Tensor] = []

    def ask(call: Call, use) -> GraphCall:  # noqa: ANN001
        if call.module == "LOC":
            boxes, p = candidates(call, count)
            dists.append(box_distribution(use, torch.tensor(p, dtype=torch.float64)))
            return GraphCall(call, use, [[boxes[i] for i in chosen] for chosen in box_outcomes(use, count)])
        options, p = answers(call)
        dists.append(torch.tensor(p, dtype=torch.float64))
        return GraphCall(call, use, options)

    question = Question("q", "t", {"IMAGE": IMAGE}, "?", {"visprog": text}, "yes")
    modules = {**SYMBOLIC, **{name: type("Net", (), {"symbolic": False})() for name in ("LOC", "VQA", "VERIFY")}}
    graph = build_graph(question, parse(text, SIGNATURES), modules, ask)
    found: dict[str, float] = {}
    for value, p in zip(graph.answers, graph.distribution(dists).tolist(), strict=True):
        name = "failure" if isinstance(value, ProgramFailure) else repr(value)
        found[name] = found.get(name, 0.0) + p
    right = sum(
        p
        for value, p in zip(graph.answers, graph.distribution(dists).tolist())
        if not isinstance(value, ProgramFailure) and score_answer(question, value)
    )
    assert float(graph.likelihood(dists)) == pytest.approx(right)
    return found


def by_enumeration(text: str, count: int) -> dict[str, float]:
    """Run the program on every combination of answers, one step after the other; steps spelled alike answer alike."""
    steps, found = parse(text, SIGNATURES).steps, {}

    def walk(number: int, values: dict, spelled: dict, said: dict, p: float) -> None:
        if number == len(steps):
            name = values["FINAL_RESULT"]
            name = "failure" if isinstance(name, ProgramFailure) else repr(name)
            found[name] = found.get(name, 0.0) + p
            return
        step = steps[number]
        args = {name: values[value] if variable else value for name, variable, value in step.arguments}
        spelling = step.module + repr([(n, spelled.get(v, v) if variable else v) for n, variable, v in step.arguments])
        read = list(args.values())
        if step.module == "EVAL":
            names = Expression(args["expr"]).names
            args["values"] = {name: values[name] for name in names}
            read += args["values"].values()
            spelling += repr([spelled[name] for name in names])

        def go(value: object, share: float) -> None:
            walk(number + 1, values | {step.target: value}, spelled | {step.target: spelling}, said | {spelling: value}, p * share)

        failed = [value for value in read if isinstance(value, ProgramFailure)]
        if failed:
            go(failed[0], 1)
        elif spelling in said:
            go(said[spelling], 1)
        elif step.module in SYMBOLIC:
            try:
                go_to = SYMBOLIC[step.module].function(**args)
            except ProgramFailure as failure:
                go_to = failure
            go(go_to, 1)
        elif step.module == "LOC":
            boxes, shares = candidates(Call("LOC", args), count)
            for there in product([False, True], repeat=count):
                chosen = [box for box, yes in zip(boxes, there) if yes]
                go(chosen, float(np.prod([q if yes else 1 - q for q, yes in zip(shares, there)])))
        else:
            for value, share in zip(*answers(Call(step.module, args))):
                go(value, share)

    walk(0, {"IMAGE": IMAGE}, {"IMAGE": "IMAGE"}, {}, 1.0)
    return found


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(PARTS)), st.sampled_from(sorted(PARTS)), st.sampled_from(ENDS), st.integers(0, 3))
def test_message_passing_equals_enumeration(left: str, right: str, end: str, count: int):
    if "nested" in (left, right):
        count = min(count, 2)
    text = program_of(left, right, end)
    graph, brute = by_graph(text, count), by_enumeration(text, count)
    assert sum(graph.values()) == pytest.approx(1, abs=1e-9)
    for name in {*graph, *brute}:
        assert graph.get(name, 0.0) == pytest.approx(brute.get(name, 0.0), abs=1e-9)


def test_a_result_of_boxes_is_summed_over_all_subsets():
    text = "A=LOC(image=IMAGE,object='star')\nN=COUNT(box=A)\nFINAL_RESULT=RESULT(var=A)"
    assert by_graph(text, 4) == pytest.approx(by_enumeration(text, 4))
    assert len(by_graph(text, 4)) == 16


def test_where_a_box_is_the_answer_only_the_first_matters():
    modules = networks()
    with torch.no_grad():
        modules["LOC"].network.out.bias[:2] = -0.4
    text = "A=LOC(image=IMAGE,object='star')\nFINAL_RESULT=RESULT(var=A)"
    asked = question(5, text, "red")
    best = modules["LOC"].scored_boxes([Call("LOC", {"image": asked.images["IMAGE"], "object": "star"})])[0]
    data = prepare([replace(asked, answer=best[1])], modules, [])
    (graph,) = data.graphs
    assert [len(value) for value in graph.answers] == [0] + [1] * min(8, len(best))
    assert 0 < data.likelihoods([graph], {}).item() < 1


def test_equal_steps_are_one_variable():
    text = program_of("crop", "crop", "{P} == {Q}")
    assert by_graph(text, 2) == {"True": pytest.approx(1.0)}


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=6), st.sampled_from(["first", "count", "both", "all"]))
def test_box_distributions_are_sums_over_subsets(p: list[float], use) -> None:  # noqa: ANN001
    expected = dict.fromkeys(box_outcomes(use, len(p)), 0.0)
    for there in product([False, True], repeat=len(p)):
        chosen = tuple(i for i, yes in enumerate(there) if yes)
        k = len(chosen)
        alike = {"first": chosen[:1], "count": tuple(range(k)), "all": chosen}
        name = alike.get(use, tuple(range(chosen[0], chosen[0] + k)) if chosen else ())
        expected[name] += float(np.prod([q if yes else 1 - q for q, yes in zip(p, there)]))
    found = box_distribution(use, torch.tensor(p, dtype=torch.float64)).tolist()
    assert found == pytest.approx(list(expected.values()), abs=1e-9)


def test_poisson_binomial_of_fair_coins_is_binomial():
    assert poisson_binomial(torch.full((2, 4), 0.5)).tolist() == [pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16])] * 2


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_elimination_of_a_loopy_graph_equals_the_whole_table(data: st.DataObject):
    sizes = dict(enumerate(data.draw(st.lists(st.integers(1, 3), min_size=4, max_size=4))))
    scopes = [(0, 1), (1, 2), (2, 3), (3, 0), (3,)]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    factors = [Factor(scope, torch.tensor(rng.random([sizes[v] for v in scope]))) for scope in scopes]
    whole = torch.einsum("ab,bc,cd,da,d->abcd", *(factor.table for factor in factors))
    for keep in range(4):
        others = [v for v in range(4) if v != keep]
        found = marginal(factors, keep, elimination_order(scopes, sizes, keep))
        torch.testing.assert_close(found, whole.sum(others))


def test_too_many_combinations_are_refused():
    lines = [f"A{i}=VQA(image=IMAGE,question='{'x' * i}')" for i in range(8)]
    text = "\n".join([*lines, 'Z=EVAL(expr="' + " == ".join(f"{{A{i}}}" for i in range(8)) + '")', "FINAL_RESULT=RESULT(var=Z)"])
    with pytest.raises(LimitExceeded, match="6,561"):
        by_graph(text, 1)


# -- with networks ------------------------------------------------------------------------------------------------------

WORDS = Vocabulary((("color", ("red", "blue", "green")), ("yes/no", ("yes", "no"))), ("star", "circle"))


def networks() -> dict:
    return {
        **SYMBOLIC,
        "LOC": Loc.build(LocConfig(("star", "circle"), width=4, pixels=32), 0),
        "VQA": Vqa.build(FiLMConfig(WORDS, width=4, pixels=16), 1),
        "VERIFY": Verify.build(FiLMConfig(WORDS, width=4, pixels=16), 2),
    }


def question(number: int, text: str, answer: str | None) -> Question:
    """A picture in one of two colours: what the answer depends on."""
    pixels = np.full((3, 32, 32), 128, np.uint8)
    pixels[0 if answer in ("red", "yes") else 2, 8:24, 8:24] = 255
    pixels[1, number % 32] = number
    return Question(str(number), "t", {"IMAGE": Image(pixels)}, "?", {"visprog": text}, answer, "k", str(number))


WHOLE = "X=VQA(image=IMAGE,question='What color is the star?')\nFINAL_RESULT=RESULT(var=X)"
CROPPED = "\n".join([*PARTS["crop"][:2], "X=VQA(image=C,question='What color is the star?')", "FINAL_RESULT=RESULT(var=X)"])
LOGIC = "X=VERIFY(image=IMAGE,object='star',property='red')\nY=EVAL(expr=\"not {X}\")\nFINAL_RESULT=RESULT(var=Y)"
STEPS = TrainingSettings(steps=30, batch_size=8, lr=1e-2, checkpoint_every=0)


def test_one_step_has_the_likelihood_that_the_module_states():
    modules = networks()
    asked = question(3, WHOLE, "red")
    data = prepare([asked], modules, ["VQA"])
    batch = data.batch(torch.tensor([0]), None)
    found = data.likelihoods(batch.extra["graphs"], {"VQA": modules["VQA"].forward(batch.inputs["VQA"])})
    said = modules["VQA"].run([Call("VQA", {"image": asked.images["IMAGE"], "question": "What color is the star?"})])
    assert found.item() == pytest.approx(said.distributions[0]["red"], abs=1e-6)
    frozen = prepare([asked], modules, [])
    assert float(frozen.likelihoods(frozen.graphs, {})) == pytest.approx(found.item(), abs=1e-6)


def test_boxes_are_read_where_the_heat_map_has_its_peaks():
    modules = networks()
    with torch.no_grad():  # heat near the threshold, different everywhere
        modules["LOC"].network.out.bias[:2] = -0.4
    asked = question(5, "A=LOC(image=IMAGE,object='star')\nX=COUNT(box=A)\nFINAL_RESULT=RESULT(var=X)", "1")
    data = prepare([asked], modules, ["LOC"])
    (one,) = data.graphs[0].calls
    call = Call("LOC", {"image": asked.images["IMAGE"], "object": "star"})
    boxes = modules["LOC"].scored_boxes([call], 0.05)[0][:8]
    assert one.outcomes[-1] == boxes and len(boxes) > 1
    heads = modules["LOC"].forward(modules["LOC"].encode([call]))
    classes, rows, columns = one.detail
    scores = heads["heat"][0, classes].amax(0)[rows, columns].sigmoid()
    assert scores.tolist() == pytest.approx([box.score for box in boxes], abs=1e-6)
    exists = torch.tensor([box.score for box in boxes], dtype=torch.float64).logit() - np.log(0.4 / 0.6)
    (read,) = data.readers["LOC"].distributions(heads, [one])
    torch.testing.assert_close(read, poisson_binomial(exists.sigmoid()), atol=1e-5, rtol=0)
    read[1].log().backward()
    assert modules["LOC"].network.out.weight.grad.abs().sum() > 0


def test_final_labels_alone_teach_several_modules_through_the_program():
    modules = networks()
    asked = [question(n, WHOLE, ("red", "blue")[n % 2]) for n in range(8)]
    asked += [question(8 + n, LOGIC, ("no", "yes")[n % 2]) for n in range(8)]
    before = prepare(asked, modules, [])
    taught = train_jointly(asked, modules, ["VQA", "VERIFY"], STEPS)
    after = prepare(asked, {**modules, **taught}, [])
    assert set(taught) == {"VQA", "VERIFY"} and taught["VQA"].version != modules["VQA"].version
    assert after.likelihoods(after.graphs, {}).mean() > before.likelihoods(before.graphs, {}).mean() + 0.1


def test_final_labels_beside_stepwise_distillation():
    modules = networks()
    vqa = modules["VQA"]
    asked = [question(n, CROPPED, ("red", "blue")[n % 2]) for n in range(8)]
    data = prepare(asked, modules, ["VQA"])
    calls = [Call("VQA", {"image": q.images["IMAGE"], "question": "What color is the star?"}) for q in asked]
    task = vqa.training_examples(calls, [CallLabel(q.answer) for q in asked])
    replay = vqa.training_examples(calls, None)
    given = make_final_answer_job(vqa, task, replay, data, STEPS, StepwiseWithFinalAnswer.Config(mu=2.0))
    history = train(given, None).history
    assert set(history[-1]["terms"]) == {"step", "self", "final"}
    weights = given.method.loss_weights()
    assert weights == {"final": 2.0, "step": 1.0, "self": given.method.config.self_weight}
    start = prepare(asked, modules, [])
    assert history[-1]["terms"]["final"] < -start.likelihoods(start.graphs, {}).log().mean().item()


def test_questions_that_cannot_teach_are_counted():
    modules = networks()
    asked = [
        question(0, WHOLE, "red"),
        question(1, WHOLE, "purple"),
        question(2, "X=NO(image=IMAGE)\nFINAL_RESULT=RESULT(var=X)", "red"),
    ]
    data = prepare(asked, modules, ["VQA"])
    assert len(data) == 1 and data.dropped == {"unreachable": 1, "unknown_module": 1}
    with pytest.raises(InputError, match="no question"):
        prepare(asked[1:], modules, ["VQA"])
    with pytest.raises(InputError, match="COUNT"):
        prepare(asked, modules, ["COUNT"])
    with pytest.raises(InputError, match="no answer"):
        prepare([question(0, WHOLE, None)], modules, ["VQA"])


def test_a_function_has_one_answer():
    from tutelage.modules.function_module import module

    @module(name="SHADE")
    def shade(image: Image) -> str:
        return "red"

    @module(name="BREAK")
    def fails(image: Image) -> str:
        raise ValueError("no light")

    said = {**networks(), "SHADE": shade, "BREAK": fails}
    text = (
        "X=SHADE(image=IMAGE)\nY=VQA(image=IMAGE,question='What color?')\nZ=EVAL(expr=\"{X} == {Y}\")\nFINAL_RESULT=RESULT(var=Z)"
    )
    (graph,) = prepare([question(0, text, "yes")], said, ["VQA"]).graphs
    assert [one.call.module for one in graph.calls if len(one.outcomes) > 1] == ["VQA"]
    assert graph.likelihood([torch.tensor([1.0]).double(), *_at(graph, "red")]) == pytest.approx(1.0)
    broken = text.replace("SHADE", "BREAK")
    with pytest.raises(InputError, match="unreachable"):
        prepare([question(0, broken, "yes")], said, ["VQA"])


def _at(graph, answer: str) -> list[Tensor]:  # noqa: ANN001
    (asked,) = (one for one in graph.calls if one.call.module == "VQA")
    return [torch.tensor([float(value == answer) for value in asked.outcomes]).double()]
