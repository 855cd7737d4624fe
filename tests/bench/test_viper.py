from __future__ import annotations

import ast

import pytest

from tutelage.bench import viper as bench
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Signature

from ..programs.stubs import Stub, by_name, loc, picture, vqa

TEXT = """def execute_command(image):
    patch = ImagePatch(image)
    found = patch.find('red star')
    return bool_to_yesno(any(each.verify_property('star', "big") for each in found) and patch.exists('sign'))
"""


def modules() -> dict:
    verify = Stub("VERIFY", Signature({"image": "image", "object": "text", "property": "text"}, "bool"), lambda call: True)
    return symbolic_modules() | by_name(loc(), vqa(), verify)


def test_fresh_texts_are_other_programs_of_the_same_shape() -> None:
    one, two = bench.fresh(TEXT, 1), bench.fresh(TEXT, 2)
    assert one != two and one == bench.fresh(TEXT, 1) and "red star" not in one and "found_1" in one
    assert [type(node) for node in ast.walk(ast.parse(one))] == [type(node) for node in ast.walk(ast.parse(TEXT))]


def test_the_figures_are_there() -> None:
    items = [(TEXT, {"IMAGE": picture(number)}) for number in range(6)]
    own = bench.overhead(items, modules(), 1)
    assert set(own) == {f"{way}_{kind}_us" for way in ("batched", "one_at_a_time") for kind in ("repeated", "fresh")}
    assert min(own.values()) > 0


def test_both_executors_run_the_same_programs() -> None:
    pytest.importorskip("smolagents")
    items = [(TEXT, {"IMAGE": picture(number)}) for number in range(4)]
    found = bench.beside_smolagents(items, modules())
    assert (found["programs"], found["smolagents_refused"], found["refused"]) == (4, 0, 0)
