from __future__ import annotations

import pickle
from typing import Any

import pytest

from tutelage.errors import InputError
from tutelage.modules.function_module import module
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.types import Call, Module, RuntimeFailure
from tutelage.programs.values import Box, Image, Object
from tutelage.programs.visprog import Parser

from ..programs.stubs import picture


@module
def brightness(image: Image, channel: str = "red") -> float:
    """The mean of a channel, in 0..1."""
    return float(image.pixels["red green blue".split().index(channel)].mean())


def test_ten_lines_make_a_module_that_programs_call() -> None:
    modules = symbolic_modules() | {brightness.name: brightness}
    where = RunContext(modules)
    text = "X=BRIGHTNESS(image=IMAGE)\nY=EVAL(expr='{X} < 2')\nFINAL_RESULT=RESULT(var=Y)"
    program = Parser(where.signatures).parse(text)
    (trace,) = run([Job("a", program, {"IMAGE": picture(0)})], where)
    assert (trace.status, trace.answer) == ("ok", True)
    assert trace.steps[0].output == brightness(picture(0))
    assert isinstance(brightness, Module)
    assert not brightness.symbolic
    assert brightness.__doc__ == "The mean of a channel, in 0..1."


def test_the_signature_comes_from_the_hints() -> None:
    @module
    def every(
        image: Image,
        box: list[Box],
        object: list[Object],
        text: str,
        whole: int,
        real: float,
        either: int | float,
        truth: bool,
        free: Any,
        words: list[str],
        maybe: str | None = None,
    ) -> list[Box]:
        return box

    kinds = "image boxes objects text number number number bool any any text".split()
    assert list(every.signature.args.values()) == kinds
    assert every.signature.returns == "boxes"
    assert every.signature.optional == {"maybe"}
    assert every.name == "EVERY"


def test_a_batched_function_sees_the_batch() -> None:
    seen = []

    @module(name="LOUD", batched=True, batch_size=3)
    def shout(text: list[str], mark: list[str] = ()) -> list[str]:
        seen.append(list(text))
        return [word.upper() + (end or "!") for word, end in zip(text, mark, strict=True)]

    assert (shout.name, shout.batch_size, shout.signature.args["text"], shout.signature.returns) == (
        "LOUD",
        3,
        "text",
        "text",
    )
    answers = shout.run([Call("LOUD", {"text": "a"}), Call("LOUD", {"text": "b", "mark": "?"})])
    assert answers.values == ["A!", "B?"]
    assert seen == [["a", "b"]]


def test_one_bad_call_of_a_batch_fails_alone() -> None:
    @module
    def half(number: int) -> float:
        if number == 13:
            raise RuntimeFailure("unlucky")
        return 1 / number

    values = half.run([Call("HALF", {"number": number}) for number in (1, 0, 13, 2)]).values
    assert (values[0], values[3]) == (1, 0.5)
    assert isinstance(values[1], RuntimeFailure)
    assert "HALF raised ZeroDivisionError" in str(values[1])
    assert str(values[2]) == "unlucky"


def make(body: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(f"def double(x: int) -> int:\n    return {body}\n", "<made>", "exec"), namespace)
    return namespace["double"]


def test_the_version_follows_the_code_and_the_name() -> None:
    def first() -> Any:
        def double(x: int) -> int:
            return 2 * x

        return double

    def second() -> Any:
        def double(x: int) -> int:
            return x + x

        return double

    assert module(first()).version == module(first()).version
    assert module(first()).version != module(second()).version
    assert module(first()).version != module(name="OTHER")(first()).version
    assert module(version="7")(first()).version == "7"
    assert module(make("2 * x")).version == module(make("2 * x")).version  # no source to read: the code counts
    assert module(make("2 * x")).version != module(make("3 * x")).version


def test_an_object_with_a_call_is_a_module_too() -> None:
    class Scale:
        def __init__(self, factor: int):
            self.factor = factor

        def __call__(self, number: int) -> int:
            return self.factor * number

    scale = module(name="SCALE", version="3")(Scale(3))
    assert scale.run([Call("SCALE", {"number": 2})]).values == [6]
    assert scale.signature.args == {"number": "number"}
    with pytest.raises(InputError, match="name="):
        module(Scale(3))


def no_hint(image) -> str:  # noqa: ANN001
    return ""


def by_position(image: Image, /) -> str:
    return ""


def anything(*images: Image) -> str:
    return ""


def one_box(box: Box) -> str:
    return ""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_hint, "NO_HINT(image): no type hint"),
        (by_position, "by name"),
        (anything, "by name"),
        (one_box, "list[Box]"),
        (lambda image: image, "name="),
    ],
)
def test_what_cannot_be_a_module_is_refused(function: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        module(function)
    assert says in str(caught.value)


def test_a_batched_function_needs_lists() -> None:
    with pytest.raises(InputError, match="lists"):
        module(batched=True)(brightness.function)


def test_a_module_is_sent_to_another_process_by_its_functions_name() -> None:
    sent = {**symbolic_modules(), "BRIGHTNESS": brightness}
    received = pickle.loads(pickle.dumps(sent))
    assert {name: (made.version, made.signature) for name, made in received.items()} == {
        name: (made.version, made.signature) for name, made in sent.items()
    }
    image = picture(0)
    assert received["CROP_BEHIND"](image, []).key == image.key and received["BRIGHTNESS"](image) == brightness(image)

    @module
    def local(image: Image) -> int:
        return image.width

    with pytest.raises(pickle.PicklingError, match="LOCAL is not defined at the top of a file"):
        pickle.dumps(local)
