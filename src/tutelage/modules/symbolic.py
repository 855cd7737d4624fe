"""Modules without a network, as VisProg defines them: counting, cropping, expressions, the result.

Source: Gupta and Kembhavi, "Visual Programming", CVPR 2023. The editing and tagging set is in ``editing.py``.
"""

from __future__ import annotations

from typing import Any

from tutelage.modules.function_module import FunctionModule, module
from tutelage.programs.eval_expression import Expression
from tutelage.programs.values import Box, Image

GROWTH = 1.5
"""How much CROP enlarges a box about its centre."""

FRONT_OR_BEHIND = ("CROP_FRONTOF", "CROP_INFRONT", "CROP_INFRONTOF", "CROP_BEHIND", "CROP_AHEAD")
"""Depth is not known to a flat crop: these cut what CROP cuts."""

symbolic = module(symbolic=True)


@symbolic
def COUNT(box: list[Box]) -> int:
    """The number of boxes."""
    return len(box)


@symbolic
def CROP(image: Image, box: list[Box]) -> Image:
    """The first box, enlarged 1.5 times about its centre and clipped; the whole image where there is no box.

    Raises:
        RuntimeFailure: nothing of the box lies inside the image.
    """
    return image.crop(*box[0].scaled(GROWTH)[:4]) if box else image


@symbolic
def CROP_LEFTOF(image: Image, box: list[Box]) -> Image:
    """The image left of the first box's centre; its left half where there is no box.

    Raises:
        RuntimeFailure: nothing lies there.
    """
    return image.crop(0, 0, _center(image, box)[0], image.height)


@symbolic
def CROP_RIGHTOF(image: Image, box: list[Box]) -> Image:
    """The image right of the first box's centre; its right half where there is no box.

    Raises:
        RuntimeFailure: nothing lies there.
    """
    return image.crop(_center(image, box)[0], 0, image.width, image.height)


@symbolic
def CROP_ABOVE(image: Image, box: list[Box]) -> Image:
    """The image above the first box's centre; its upper half where there is no box.

    Raises:
        RuntimeFailure: nothing lies there.
    """
    return image.crop(0, 0, image.width, _center(image, box)[1])


@symbolic
def CROP_BELOW(image: Image, box: list[Box]) -> Image:
    """The image below the first box's centre; its lower half where there is no box.

    Raises:
        RuntimeFailure: nothing lies there.
    """
    return image.crop(0, _center(image, box)[1], image.width, image.height)


@symbolic
def EVAL(expr: str, values: Any = None) -> Any:
    """The value of an expression such as ``{ANSWER0} > {ANSWER1}``; ``values`` holds the variables it reads.

    In VisProg programs the variables come from the program itself.

    Raises:
        ParseFailure, Refused: not an expression of the language (see ``programs/eval_expression.py``).
        RuntimeFailure, TypeFailure, LimitExceeded: it fails on these values.
    """
    expression = expr if isinstance(expr, Expression) else Expression(expr)
    return expression.evaluate(values or {})


@symbolic
def RESULT(var: Any) -> Any:
    """The program's answer."""
    return var


def symbolic_modules() -> dict[str, FunctionModule]:
    """Every module without a network, by name, found by listing what this file and the editing set define."""
    from tutelage.modules import editing

    crops = [module(name=name, symbolic=True)(CROP.function) for name in FRONT_OR_BEHIND]
    defined = [value for value in (*globals().values(), *vars(editing).values()) if isinstance(value, FunctionModule)]
    return {made.name: made for made in (*defined, *crops)}


def _center(image: Image, box: list[Box]) -> tuple[int, int]:
    """Whole pixels, so that what lies left of the centre and what lies right of it do not overlap."""
    x, y = box[0].center if box else (image.width / 2, image.height / 2)
    return int(x), int(y)
