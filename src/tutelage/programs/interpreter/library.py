"""The tables of ViperGPT programs: which names, methods and fields exist where which modules are registered."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import Any

from tutelage.programs.interpreter.meter import Meter
from tutelage.programs.interpreter.patches import (
    Asking,
    Found,
    Patch,
    Segment,
    View,
    ask,
    best_image_match,
    best_text_match,
    bool_to_yesno,
    coerce_to_numeric,
    compute_depth,
    crop,
    cut,
    distance,
    exists,
    find,
    frame_from_index,
    frame_iterator,
    llm_query,
    make_patch,
    make_segment,
    overlaps_with,
    patch_llm_query,
    simple_query,
    trim,
    verify_property,
)
from tutelage.programs.interpreter.pieces import Library
from tutelage.programs.interpreter.values import Builtin, name_of
from tutelage.programs.types import Signature, TypeFailure, UnknownModule

_FIELDS: dict[type, dict[str, Callable[[Any], Any]]] = {
    Patch: {
        "cropped_image": lambda patch: patch.view,
        "left": lambda patch: patch.left,
        "lower": lambda patch: patch.lower,
        "right": lambda patch: patch.right,
        "upper": lambda patch: patch.upper,
        "width": lambda patch: patch.right - patch.left,
        "height": lambda patch: patch.upper - patch.lower,
        "horizontal_center": lambda patch: (patch.left + patch.right) / 2,
        "vertical_center": lambda patch: (patch.lower + patch.upper) / 2,
    },
    Segment: {
        "num_frames": lambda segment: segment.end - segment.start,
        "start": lambda segment: segment.start,
        "end": lambda segment: segment.end,
    },
}
_SEGMENT_METHODS: dict[str, Callable[..., Any]] = {
    "frame_from_index": frame_from_index,
    "trim": trim,
    "frame_iterator": frame_iterator,
}
_SEVERAL = {"exists", "best_image_match"}
"""What may ask more than once, or not at all."""
_SIDES = ("left", "lower", "right", "upper")
_ARGUMENTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "exists": (1, ("object_name",)),
    "verify_property": (2, ("object_name", "property")),
    "best_text_match": (1, ("option_list", "prefix")),
    "simple_query": (0, ("question",)),
    "compute_depth": (0, ()),
    "crop": (4, _SIDES),
    "overlaps_with": (4, _SIDES),
    "llm_query": (1, ("question", "long_answer")),
    "frame_from_index": (1, ("index",)),
    "trim": (0, ("start", "end")),
    "frame_iterator": (0, ()),
}


def viper_library(signatures: Mapping[str, Signature]) -> Library:
    """What a ViperGPT program finds, where modules of these ``signatures`` are registered.

    A patch's questions go to LOC, VQA, VERIFY, MATCH, DEPTH and LLM, ``best_image_match`` to SCORE; every registered
    module can also be called by its own name, or by that name in lower case where Python has no function of that name.
    """
    asking: dict[str, tuple[Callable[..., Any], str]] = {
        "exists": (exists("VQA" in signatures), "LOC"),
        "verify_property": (verify_property, "VERIFY"),
        "best_text_match": (best_text_match, "MATCH"),
        "simple_query": (simple_query, "VQA"),
        "compute_depth": (compute_depth, "DEPTH"),
        "llm_query": (patch_llm_query, "LLM"),
    }
    methods: dict[str, Callable[..., Any]] = {"crop": crop, "overlaps_with": overlaps_with}
    methods.update({name: method for name, (method, module) in asking.items() if module in signatures})
    absent = {name: module for name, (_, module) in asking.items() if module not in signatures}
    methods["find"] = find if "LOC" in signatures else _no_find  # texts have a find too: known only when it runs
    if not signatures.keys() & {"VQA", "VERIFY"} and "exists" in methods:
        del methods["exists"]
        absent["exists"] = "VQA or VERIFY"
    functions = [
        Builtin("ImagePatch", make_patch, python=Patch),
        Builtin("VideoSegment", make_segment, python=Segment),
        Builtin("distance", distance),
        Builtin("bool_to_yesno", bool_to_yesno),
        Builtin("coerce_to_numeric", coerce_to_numeric),
        Builtin("best_image_match", best_image_match, yields=True, module="SCORE"),
        Builtin("llm_query", llm_query, yields=True, module="LLM"),
    ]
    names = {f.name: f for f in functions if f.module is None or f.module in signatures}
    absent |= {f.name: f.module for f in functions if f.module is not None and f.name not in names}
    for name, signature in signatures.items():
        builtin = Builtin(name, _module_function(name, signature), yields=True, module=name)
        names.setdefault(name, builtin)
        if not hasattr(builtins, name.lower()):  # a module LIST does not hide list(), nor EVAL stand in for eval()
            names.setdefault(name.lower(), builtin)
    return Library(
        names=names,
        methods={Patch: methods, Segment: dict(_SEGMENT_METHODS)},
        fields=_FIELDS,
        yielding=frozenset({"find", *asking} & methods.keys()),
        absent=absent,
        arguments=_ARGUMENTS,
        once=frozenset({"find", *asking} & methods.keys() | {name for name, f in names.items() if f.yields}) - _SEVERAL,
    )


def _no_find(meter: Meter, patch: Patch, object_name: Any) -> Asking:
    raise UnknownModule("find needs the module LOC, which is not registered", remedy="register a module LOC")
    yield


def _module_function(name: str, signature: Signature) -> Callable[..., Asking]:
    """A registered module as a function: patches stand for their images, boxes come back as patches."""

    def call(meter: Meter, *values: Any, **named: Any) -> Asking:
        args = dict(zip(signature.args, values))
        if len(values) > len(signature.args) or named.keys() & args.keys() or named.keys() - signature.args.keys():
            raise TypeFailure(f"{name}() takes {', '.join(signature.args)}")
        args |= named
        if missing := [arg for arg in signature.args if arg not in args and arg not in signature.optional]:
            raise TypeFailure(f"{name}() lacks {', '.join(missing)}")
        for arg, value in args.items():
            args[arg] = _argument(meter, f"{name}({arg}=…)", signature.args[arg], value)
        view = next((value for value in args.values() if type(value) is View), None)
        if view is not None:
            args = {arg: _within(value, view) for arg, value in args.items()}
        return _answered((yield from ask(meter, name, **args)), view)

    return call


_KINDS: dict[str, tuple[type, ...]] = {"text": (str,), "number": (int, float, bool), "bool": (bool,), "image": (View,)}


def _argument(meter: Meter, where: str, kind: str, value: Any) -> Any:
    if type(value) is Patch:
        value = [value.box] if kind in ("boxes", "objects") else value.view
    elif type(value) in (list, tuple):
        value = [_argument(meter, where, "boxes" if kind == "boxes" else "any", part) for part in value]
        if kind == "boxes":
            value = [box for part in value for box in (part if type(part) is list else [part])]
    if kind in _KINDS and type(value) not in _KINDS[kind]:
        raise TypeFailure(f"{where} takes {kind}, not {name_of(value)}")
    return value


def _within(value: Any, view: View) -> Any:
    """Boxes of patches, in the pixels of the image that goes with them."""
    if type(value) is Found:
        x1, y1, x2, y2, score = value
        return Found(x1 - view.x1, y1 - view.y1, x2 - view.x1, y2 - view.y1, score)
    return [_within(part, view) for part in value] if type(value) is list else value


def _answered(answer: Any, view: View | None) -> Any:
    if type(answer) is Found:
        return list(answer[:4]) if view is None else cut(view, answer)
    if type(answer) is list:
        return [_answered(part, view) for part in answer]
    return answer
