from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call, Module, ProgramFailure, RuntimeFailure
from tutelage.programs.values import Box, Image

MODULES = symbolic_modules()
IMAGE = Image(np.arange(3 * 40 * 60, dtype=np.uint32).astype(np.uint8).reshape(3, 40, 60))


def ask(name: str, **args: object) -> object:
    return MODULES[name].run([Call(name, args)]).values[0]


def test_every_module_of_the_language_is_found() -> None:
    assert set(MODULES) == set(
        "COUNT CROP CROP_LEFTOF CROP_RIGHTOF CROP_ABOVE CROP_BELOW CROP_FRONTOF CROP_INFRONT CROP_INFRONTOF CROP_BEHIND"
        " CROP_AHEAD EVAL RESULT SEG FACEDET SELECT CLASSIFY LIST TAG COLORPOP BGBLUR REPLACE EMOJI".split()
    )
    for name, made in MODULES.items():
        assert isinstance(made, Module)
        assert made.symbolic
        assert made.name == name
        assert made.version
    assert len({made.version for made in MODULES.values()}) == len(MODULES)


def test_count() -> None:
    assert ask("COUNT", box=[]) == 0
    assert ask("COUNT", box=[Box(0, 0, 1, 1), Box(0, 0, 2, 2)]) == 2


@pytest.mark.parametrize("name", ["CROP", "CROP_FRONTOF", "CROP_INFRONT", "CROP_INFRONTOF", "CROP_BEHIND", "CROP_AHEAD"])
def test_crop_takes_the_first_box_enlarged(name: str) -> None:
    box = [Box(20, 10, 30, 20), Box(0, 0, 1, 1)]
    assert ask(name, image=IMAGE, box=box).region == (17, 7, 33, 23)  # 10 wide -> 15, about (25, 15), rounded outwards
    assert ask(name, image=IMAGE, box=[]).region == (0, 0, 60, 40)
    assert ask(name, image=IMAGE, box=[Box(50, 30, 60, 40)]).region == (47, 27, 60, 40)


@pytest.mark.parametrize(
    ("name", "beyond", "half"),
    [
        ("CROP_LEFTOF", (0, 0, 25, 40), (0, 0, 30, 40)),
        ("CROP_RIGHTOF", (25, 0, 60, 40), (30, 0, 60, 40)),
        ("CROP_ABOVE", (0, 0, 60, 15), (0, 0, 60, 20)),
        ("CROP_BELOW", (0, 15, 60, 40), (0, 20, 60, 40)),
    ],
)
def test_directional_crops(name: str, beyond: tuple[int, ...], half: tuple[int, ...]) -> None:
    assert ask(name, image=IMAGE, box=[Box(20, 10, 31, 21)]).region == beyond
    assert ask(name, image=IMAGE, box=[]).region == half


def test_a_crop_of_a_crop_keeps_its_place_in_the_picture() -> None:
    part = IMAGE.crop(10, 5, 50, 35)
    assert ask("CROP_RIGHTOF", image=part, box=[Box(0, 0, 20, 10)]).region == (20, 5, 50, 35)


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("CROP", Box(70, 50, 80, 60)),
        ("CROP", Box(5, 5, 5, 5)),
        ("CROP_LEFTOF", Box(0, 0, 0, 0)),
        ("CROP_RIGHTOF", Box(60, 0, 60, 9)),
        ("CROP_ABOVE", Box(0, 0, 9, 0)),
        ("CROP_BELOW", Box(0, 80, 9, 90)),
    ],
)
def test_nothing_to_cut_is_a_runtime_failure(name: str, box: Box) -> None:
    with pytest.raises(RuntimeFailure, match="zero area"):
        ask(name, image=IMAGE, box=[box])


@given(st.lists(st.tuples(*[st.floats(-10, 70)] * 4), max_size=2), st.sampled_from(sorted(MODULES)[2:13]))
def test_a_batch_is_as_one_by_one(edges: list[tuple[float, ...]], name: str) -> None:
    if not name.startswith("CROP"):
        name = "CROP"
    calls = [Call(name, {"image": IMAGE, "box": [Box(*edge) for edge in edges[:number]]}) for number in range(3)]
    together = MODULES[name].run(calls).values
    for call, value in zip(calls, together, strict=True):
        try:
            alone = MODULES[name].run([call]).values[0]
        except ProgramFailure as failure:
            assert type(value) is type(failure)
            assert str(value) == str(failure)
        else:
            assert value.key == alone.key


def test_eval_and_result() -> None:
    assert ask("EVAL", expr="{A} > 1", values={"A": "2"}) is True
    assert ask("EVAL", expr="1 + 1") == 2
    with pytest.raises(RuntimeFailure, match="zero"):
        ask("EVAL", expr="1 / 0")
    assert ask("RESULT", var=[1]) == [1]
