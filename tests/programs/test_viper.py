"""ViperGPT programs: patches, videos and functions, and the scheduler that runs them beside VisProg's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.function_module import module
from tutelage.programs import viper, visprog
from tutelage.programs import viper_prelude as prelude
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.sandbox_process import Limits
from tutelage.programs.scheduler import run
from tutelage.programs.types import (
    Call,
    LimitExceeded,
    ModuleOutputs,
    ProgramFailure,
    RuntimeFailure,
    Signature,
    TypeFailure,
    UnknownModule,
)
from tutelage.programs.values import Box, Image

SIGNATURES = {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
    "MATCH": Signature({"image": "image", "options": "any"}, "text"),
    "DEPTH": Signature({"image": "image"}, "number"),
    "SCORE": Signature({"image": "image", "content": "text"}, "number"),
    "LLM": Signature({"question": "text", "long_answer": "bool"}, "text", frozenset({"long_answer"})),
}
Answer = Callable[[Call], Any]


def picture(width: int = 48, height: int = 48, seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def source(*lines: str, head: str = "image") -> str:
    return f"def execute_command({head}):\n" + "\n".join("    " + line for line in lines)


def execute(
    text: str,
    answer: Answer = lambda call: None,
    state: Mapping[str, Any] | None = None,
    signatures: Mapping[str, Signature] | None = None,
) -> tuple[Any, list[Call]]:
    """The program's answer, and the calls it made."""
    program = viper.parse(text, SIGNATURES if signatures is None else signatures)
    steps, value, calls = program.start(state or {"IMAGE": picture()}), None, []
    while True:
        try:
            asked = steps.send(value)
        except StopIteration as stop:
            return stop.value, calls
        calls += asked if isinstance(asked, list) else [asked]
        value = [answer(call) for call in asked] if isinstance(asked, list) else answer(asked)


def by_module(**answers: Any) -> Answer:
    return lambda call: answers[call.module](call) if callable(answers[call.module]) else answers[call.module]


def test_find_asks_loc_and_cuts_patches_with_a_margin() -> None:
    text = source(
        "found = ImagePatch(image).find('circle')",
        "p = found[0]",
        "return [len(found), p.left, p.lower, p.right, p.upper, p.width, p.height, p.horizontal_center, p.vertical_center]",
    )
    answer, calls = execute(text, by_module(LOC=[Box(10, 5, 20, 17, 0.9), Box(30, 30, 40, 40)]))
    # 48 pixels: the margin is ceil(10 * 48 / 375) = 2; rows 3..19 from the top are 29..45 from the bottom
    assert answer == [2, 8, 29, 22, 45, 14, 16, 15.0, 37.0]
    assert [(call.module, call.args["object"], call.step) for call in calls] == [("LOC", "circle", 0)]


def test_a_found_patch_is_answered_as_its_box_without_margin() -> None:
    answer, _ = execute(source("return ImagePatch(image).find('star')"), by_module(LOC=[Box(1.5, 2, 9, 8, 0.7)]))
    assert answer == [Box(1.5, 2.0, 9.0, 8.0, 0.7)]


def test_what_is_found_in_a_crop_has_coordinates_of_the_whole_image() -> None:
    text = source("p = ImagePatch(image).crop(10, 0, 48, 38)", "q = p.find('dot')[0]", "return [q, q.left, q.lower]")
    answer, calls = execute(text, by_module(LOC=[Box(2, 3, 8, 9)]))
    assert calls[0].args["image"].region == (8, 8, 48, 48)  # 2 pixels of margin
    assert answer == [Box(10.0, 11.0, 16.0, 17.0, 1.0), 8, 29]


def test_exists_finds_then_checks_each_patch() -> None:
    boxes = [Box(0, 0, 9, 9), Box(20, 20, 30, 30), Box(35, 35, 45, 45)]
    answers = iter(["no", "Yes.", "no"])
    answer, calls = execute(
        source("return ImagePatch(image).exists('apple')"), by_module(LOC=boxes, VQA=lambda call: next(answers))
    )
    assert answer is True
    assert [call.module for call in calls] == ["LOC", "VQA", "VQA"]
    assert calls[1].args["question"] == "Is this an apple?"


def test_exists_is_false_where_nothing_is_found_or_nothing_is_confirmed() -> None:
    text = source("return ImagePatch(image).exists('star')")
    assert execute(text, by_module(LOC=[]))[0] is False
    assert execute(text, by_module(LOC=[Box(0, 0, 9, 9)], VQA="no"))[0] is False


def test_exists_checks_by_verify_where_there_is_no_vqa() -> None:
    signatures = {name: SIGNATURES[name] for name in ("LOC", "VERIFY")}
    text = source("return ImagePatch(image).exists('star')")
    answer, calls = execute(text, by_module(LOC=[Box(0, 0, 9, 9)], VERIFY=True), signatures=signatures)
    assert answer is True and calls[1].args["object"] == calls[1].args["property"] == "star"


def test_questions_go_to_their_modules() -> None:
    text = source(
        "p = ImagePatch(image)",
        "return [p.simple_query(), p.simple_query('Why?'), p.verify_property('dog', property='red'),",
        "        p.best_text_match(['cat', 'dog'], prefix='a'), p.compute_depth(), p.llm_query('Who?'),",
        "        llm_query('When?', context='Then.', long_answer=False)]",
    )
    said = {"VQA": "q", "VERIFY": "yes", "MATCH": "a dog", "DEPTH": 2.5, "LLM": "l"}
    answer, calls = execute(text, lambda call: said[call.module])
    assert answer == ["q", "q", True, "dog", 2.5, "l", "l"]
    assert [{k: v for k, v in call.args.items() if k != "image"} for call in calls] == [
        {"question": "What is this?"},
        {"question": "Why?"},
        {"object": "dog", "property": "red"},
        {"options": ["a cat", "a dog"]},
        {},
        {"question": "Who?", "long_answer": True},
        {"question": "Then.\nWhen?", "long_answer": False},
    ]
    assert [call.step for call in calls] == list(range(7))


def test_best_image_match_takes_the_best_on_average() -> None:
    scores = iter([0.1, 0.9, 0.8, 0.6, 0.2, 0.2])
    text = source(
        "p = ImagePatch(image)",
        "xs = [p.crop(0, 0, 9, 9), p.crop(9, 9, 20, 20), p]",
        "i = best_image_match(xs, ['a', 'b'], return_index=True)",
        "return [i, best_image_match([], 'a')]",
    )
    assert execute(text, lambda call: next(scores))[0] == [1, None]


def test_overlap_and_distance_are_measured_from_the_edges() -> None:
    text = source(
        "p = ImagePatch(image)",
        "a, b = ImagePatch(image, 0, 0, 10, 10), ImagePatch(image, 13, 14, 20, 20)",
        "c = ImagePatch(image, 5, 0, 15, 10)",
        "return [distance(a, b), distance(a, c), distance(b, a), distance(3, 5.5),",
        "        a.overlaps_with(b.left, b.lower, b.right, b.upper), a.overlaps_with(c.left, c.lower, c.right, c.upper)]",
    )
    assert execute(text)[0] == [5.0, -50 / 150, 5.0, 2.5, False, True]


def test_words_and_numbers() -> None:
    text = source(
        "return [bool_to_yesno(True), bool_to_yesno(0), bool_to_yesno('No'), coerce_to_numeric('10-15 kg'),",
        "        coerce_to_numeric('about 1,200.5'), coerce_to_numeric('Three.'), coerce_to_numeric('-2'), coerce_to_numeric(4)]",
    )
    assert execute(text)[0] == ["yes", "no", "no", 10.0, 1200.5, 3, -2.0, 4]
    with pytest.raises(RuntimeFailure, match="no number"):
        execute(source("return coerce_to_numeric('none')"))


@pytest.mark.parametrize("sides", ["5, 5, 5, 10", "10, 0, 5, 10", "60, 0, 70, 10", "-9, -9, 0, 5"])
def test_a_crop_of_zero_area_is_a_typed_failure(sides: str) -> None:
    with pytest.raises(RuntimeFailure, match="zero area") as caught:
        execute(source("p = ImagePatch(image)", f"return p.crop({sides})"))
    assert caught.value.where == "line 3"


@given(
    st.tuples(*[st.floats(-60, 60)] * 4),
    st.integers(0, 9),
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)),
)
def test_a_region_lies_inside_and_covers_what_was_asked(sides: Any, margin: int, at: Any) -> None:
    view = prelude.Image(0, (at[0], at[1], at[0] + at[2], at[1] + at[3]), (48, 48))
    left, lower, right, upper = sides
    try:
        part = prelude._region(view, sides, margin)
    except ValueError:
        width, height = max(0, min(right, at[2]) - max(left, 0)), max(0, min(upper, at[3]) - max(lower, 0))
        assert width <= 0 or height <= 0
        return
    (x1, y1, x2, y2), (a1, b1, a2, b2) = part._region, view._region
    assert a1 <= x1 < x2 <= a2 and b1 <= y1 < y2 <= b2
    assert x1 - a1 <= max(0, left) and b2 - y2 <= max(0, lower)
    assert x2 - a1 >= min(at[2], right) and b2 - y1 >= min(at[3], upper)


def test_the_margin_is_ten_pixels_of_a_photo() -> None:
    def margin(width: int, height: int) -> int:
        return prelude._margin(prelude.Image(0, (0, 0, 9, 9), (width, height)))

    assert margin(500, 375) == prelude.MARGIN == margin(2000, 1000)
    assert margin(48, 48) == 2


def test_pairs_and_optional_arguments() -> None:
    text = source(
        "left, right = ImagePatch(image_dict['left']), ImagePatch(image_dict['right'])",
        "return [left.width, right.width, left.simple_query(query), possible_answers]",
        head="image_dict, possible_answers, query",
    )
    program = viper.parse(text, SIGNATURES)
    assert program.inputs == ("LEFT", "RIGHT")
    state = {"LEFT": picture(40), "RIGHT": picture(50), "query": "Q?", "possible_answers": ["a", "b"]}
    answer, calls = execute(text, lambda call: call.args["image"].width, state)
    assert answer == [40, 50, 40, ["a", "b"]] and calls[0].args["question"] == "Q?"
    with pytest.raises(ProgramFailure, match="LEFT"):
        program.start({"IMAGE": picture()})


def test_videos() -> None:
    frames = [picture(10 + n, 20) for n in range(5)]
    text = source(
        "v = VideoSegment(video)",
        "t = v.trim(1, 4)",
        "u = VideoSegment(video, 3)",
        "return [v.num_frames, t.num_frames, t.frame_from_index(-1).width, [f.width for f in t.frame_iterator()],",
        "        u.num_frames, t.trim(1).frame_from_index(0).width, t.start, t.end]",
        head="video",
    )
    assert execute(text, state={"VIDEO": frames})[0] == [5, 3, 13, [11, 12, 13], 2, 12, 1, 4]


@pytest.mark.parametrize(
    ("line", "frames", "message"),
    [
        ("return VideoSegment(video).num_frames", 0, "without a frame"),
        ("return VideoSegment(video).trim(2, 2)", 3, "without a frame"),
        ("return VideoSegment(video).frame_from_index(3)", 3, "no frame 3"),
    ],
)
def test_a_video_without_the_frame_is_a_typed_failure(line: str, frames: int, message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        execute(source(line, head="video"), state={"VIDEO": [picture(seed=n) for n in range(frames)]})


@pytest.mark.parametrize(
    ("lines", "module"),
    [
        (["return ImagePatch(image).simple_query('a')"], "VQA"),
        (["return ImagePatch(image).exists('a')"], "LOC"),
        (["return ImagePatch(image).compute_depth()"], "DEPTH"),
        (["return llm_query('a')"], "LLM"),
        (["return best_image_match([], 'a')"], "SCORE"),
    ],
)
def test_an_unregistered_module_is_known_before_running(lines: list[str], module: str) -> None:
    with pytest.raises(UnknownModule, match=module):
        viper.parse(source(*lines), {})


def test_find_without_loc_is_known_when_it_runs() -> None:
    with pytest.raises(UnknownModule, match="LOC"):
        execute(source("return ImagePatch(image).find('a')"), signatures={})
    assert execute(source("return 'abc'.find('c')"), signatures={})[0] == 2


@pytest.mark.parametrize(
    "line",
    [
        "ImagePatch(image).simple_query(3)",
        "ImagePatch(image).find(None)",
        "ImagePatch(image).crop('a', 1, 2, 3)",
        "ImagePatch('image')",
        "distance(image, 3)",
        "ImagePatch(image).verify_property('a')",
        "ImagePatch(image).simple_query(text='a')",
    ],
)
def test_wrong_arguments_are_typed_failures(line: str) -> None:
    with pytest.raises(TypeFailure) as caught:
        execute(source(f"return {line}"))
    assert caught.value.where == "line 2"


def test_a_patch_cannot_be_changed() -> None:
    with pytest.raises(ProgramFailure) as caught:
        execute(source("p = ImagePatch(image)", "p.left = 3"))
    assert caught.value.kind == "refused"


def test_a_registered_function_is_a_function_of_programs() -> None:
    @module
    def legs(image: Image, animal: str) -> int:
        return len(animal)

    @module
    def halves(image: Image) -> list[Box]:
        return [Box(0, 0, image.width / 2, image.height), Box(image.width / 2, 0, image.width, image.height)]

    modules = {m.name: m for m in (legs, halves)}
    context = RunContext(modules)
    text = source(
        "p = ImagePatch(image)",
        "first, second = HALVES(p)",
        "return [LEGS(first, animal='bird'), legs(image, 'cow'), first.left, second.right]",
    )
    program = viper.parse(text, context.signatures)
    (trace,) = run([Job("a", program, {"IMAGE": picture()})], context)
    assert (trace.status, trace.answer) == ("ok", [4, 3, 0, 48])
    with pytest.raises(TypeFailure, match="LEGS"):
        execute(source("return LEGS(image)"), signatures=context.signatures)
    with pytest.raises(TypeFailure, match="text"):
        execute(source("return LEGS(image, 3)"), signatures=context.signatures)


def test_a_module_with_the_name_of_a_python_function_hides_nothing() -> None:
    signatures = {
        "LIST": Signature({"query": "text"}, "text"),
        "EVAL": Signature({"expr": "text"}, "any"),
        "COUNT": Signature({"box": "boxes"}, "number"),
    }
    answer, calls = execute(source("return [list('ab'), LIST('q')]"), lambda call: "l", signatures=signatures)
    assert answer == [["a", "b"], "l"] and calls[0].args == {"query": "q"}
    with pytest.raises(ProgramFailure) as caught:
        execute(source("return eval('1')"), signatures=signatures)
    assert caught.value.kind == "undefined_var"


def test_boxes_go_to_a_function_in_the_pixels_of_its_image() -> None:
    signatures = SIGNATURES | {
        "MARK": Signature({"image": "image", "box": "boxes"}, "boxes"),
        "COUNT": Signature({"box": "boxes"}, "number"),
    }
    text = source(
        "p = ImagePatch(image).crop(10, 10, 40, 40)",
        "found = p.find('dot')",
        "again = MARK(p, found)",
        "return [again[0], count(found), count(found[0])]",
    )
    answers = by_module(LOC=[Box(3, 4, 9, 10)], MARK=lambda call: call.args["box"], COUNT=lambda c: len(c.args["box"]))
    answer, calls = execute(text, answers, signatures=signatures)
    assert calls[1].args["box"] == [Box(3.0, 4.0, 9.0, 10.0)]
    assert calls[1].args["image"].region == (8, 6, 42, 40)
    assert answer == [Box(11.0, 10.0, 17.0, 16.0), 1, 1]


class Recorder:
    """A batched module that answers by a function of the call and keeps the sizes of its batches."""

    symbolic = False
    version = "1"
    batch_size = 32

    def __init__(self, name: str, answer: Answer):
        self.name, self.signature, self._answer = name, SIGNATURES[name], answer
        self.sizes: list[int] = []

    def run(self, calls: Any) -> ModuleOutputs:
        self.sizes.append(len(calls))
        return ModuleOutputs([self._answer(call) for call in calls])


def boxes(call: Call) -> list[Box]:
    x = int(call.args["image"].bytes[0, 0, 0]) % 20
    return [Box(x, 4, x + 10, 16), Box(x, 20, x + 9, 30)][: 1 + x % 2]


def word(call: Call) -> str:
    return "red" if int(call.args["image"].bytes.sum()) % 2 else "blue"


def test_many_programs_share_batches_and_traces_are_equal_each_time() -> None:
    texts = [
        source(
            "p = ImagePatch(image)",
            "found = p.find('circle')",
            "words = [q.simple_query('What color is it?') for q in found]",
            "if any(w == 'red' for w in words):",
            "    return 'red'",
            "return p.simple_query('What color?')",
        ),
        source("return bool_to_yesno(ImagePatch(image).find('star')[0].simple_query('Color?') == 'red')"),
    ]
    results = []
    for batch_size in (None, 1, None):
        loc, vqa = Recorder("LOC", boxes), Recorder("VQA", word)
        context = RunContext({"LOC": loc, "VQA": vqa}, batch_size=batch_size)  # type: ignore[dict-item]
        parser = viper.Parser(context.signatures)
        jobs = [Job(str(n), parser.try_parse(texts[n % 2]), {"IMAGE": picture(seed=n)}) for n in range(64)]
        results.append([trace.to_json(timing=False) for trace in run(jobs, context)])
        assert batch_size or (max(loc.sizes) == 32 and max(vqa.sizes) >= 16)
        assert {trace["status"] for trace in results[-1]} == {"ok"}
    assert results[0] == results[1] == results[2]


def test_both_languages_ask_the_same_modules() -> None:
    seen: dict[str, list[tuple[str, Any]]] = {}
    for dsl in ("visprog", "viper"):
        seen[dsl] = []

        def keep(call: Call, kept: list[tuple[str, Any]] = seen[dsl]) -> Any:
            kept.append((call.module, call.args.get("object") or call.args.get("question")))
            return [Box(5, 5, 20, 20)] if call.module == "LOC" else "red"

        modules = {name: Recorder(name, keep) for name in ("LOC", "VQA")}
        context = RunContext(modules)  # type: ignore[arg-type]
        if dsl == "visprog":
            text = "B=LOC(image=IMAGE,object='circle')\nA=VQA(image=IMAGE,question='What?')\nFINAL_RESULT=RESULT(var=A)"
            signatures = context.signatures | {"RESULT": Signature({"var": "any"}, "any")}
            program: Any = visprog.parse(text, signatures)
        else:
            text = source("p = ImagePatch(image)", "p.find('circle')", "return p.simple_query('What?')")
            program = viper.parse(text, context.signatures)
        run([Job("a", program, {"IMAGE": picture()})], context)
    assert seen["visprog"] == seen["viper"] == [("LOC", "circle"), ("VQA", "What?")]


def test_a_failing_module_fails_its_program_alone() -> None:
    def fail(call: Call) -> Any:
        return RuntimeFailure("blind") if call.args["question"] == "Q0" else "seen"

    context = RunContext({"VQA": Recorder("VQA", fail)})  # type: ignore[dict-item]
    parser = viper.Parser(context.signatures)
    jobs = [
        Job(str(n), parser.parse(source(f"return ImagePatch(image).simple_query('Q{n}')")), {"IMAGE": picture()}) for n in range(3)
    ]
    assert [(trace.status, trace.answer) for trace in run(jobs, context)] == [
        ("runtime", None),
        ("ok", "seen"),
        ("ok", "seen"),
    ]


def test_the_parser_remembers_texts_and_failures() -> None:
    parser = viper.Parser(SIGNATURES, keep=2)
    good, bad = source("return 1"), source("return missing")
    assert parser.parse(good) is parser.parse(good)
    assert parser.try_parse(bad) is parser.try_parse(bad)
    with pytest.raises(ProgramFailure):
        parser.parse(bad)
    assert isinstance(parser.try_parse(good, inputs=("LEFT", "RIGHT")), ProgramFailure)
    assert len({parser.parse(source(f"return {n}")).hash for n in range(5)}) == 5


def test_limits_are_the_parsers() -> None:
    with pytest.raises(LimitExceeded):
        viper.parse(source("return 1"), SIGNATURES, limits=Limits(source=10))


def test_answers_that_cannot_leave() -> None:
    for line in ("return len", "return lambda: 1", "return ImagePatch"):
        with pytest.raises(TypeFailure, match="an answer is"):
            execute(source(line))
    assert execute(source("return (1, {'a': [None]}, {2, 1}, range(2))"))[0] == [1, {"a": [None]}, [2, 1], [0, 1]]


def test_an_image_goes_out_as_it_came_in() -> None:
    image = picture()
    assert execute(source("return image"), state={"IMAGE": image})[0] is image
    part = execute(source("return ImagePatch(image).crop(0, 0, 10, 10).cropped_image"), state={"IMAGE": image})[0]
    assert part.key == image.crop(0, 36, 12, 48).key
