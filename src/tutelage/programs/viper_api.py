"""What ViperGPT programs find beside their own names, read from the prelude: for the check, and for prompts."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tutelage.programs import viper_prelude
from tutelage.programs.sandbox_run import Modules
from tutelage.programs.types import Signature

NEEDS = {
    **{"exists": "LOC", "simple_query": "VQA", "verify_property": "VERIFY", "best_text_match": "MATCH"},
    **{"compute_depth": "DEPTH", "llm_query": "LLM", "best_image_match": "SCORE", "process_guesses": "LLM"},
    **{"select_answer": "LLM"},
}
"""The module that a method or function of the prelude needs. ``find`` is not here: texts have a method of that name too."""
ASKING = frozenset({*NEEDS, "find"})
_HIDDEN = frozenset({"call_module", "call_modules", "has_module", "Image"})


class Arguments(NamedTuple):
    """How many arguments a function takes at least, and the names of all, in order."""

    fewest: int
    names: tuple[str, ...]


class Api(NamedTuple):
    """What programs find: names, the arguments of functions and methods, and which of both need a module that is absent."""

    names: frozenset[str]
    functions: Mapping[str, Arguments]
    methods: Mapping[str, Arguments]
    absent: Mapping[str, str]


def api_of(signatures: Mapping[str, Signature]) -> Api:
    """What programs find where modules of these ``signatures`` are registered."""
    absent = {name: module for name, module in NEEDS.items() if module not in signatures}
    if "LOC" in signatures and not signatures.keys() & {"VQA", "VERIFY"}:
        absent["exists"] = "VQA or VERIFY"
    called = {alias for _, aliases, _, _ in Modules.of(signatures).described for alias in aliases}
    return Api(prelude_names() | called | {"math", "re"}, *_arguments(), absent)


@cache
def prelude_names() -> frozenset[str]:
    """Functions and classes of the prelude that programs see."""
    return frozenset(node.name for node in _public(_prelude()) if node.name not in _HIDDEN)


def stub(signatures: Mapping[str, Signature], without: Collection[str] = ()) -> str:
    """The prelude in words, for language models: a line a method or function, but for names in ``without`` and what needs a
    module that is absent."""
    absent = {*api_of(signatures).absent, *without, *_HIDDEN}
    lines = []
    for node in _public(_prelude()):
        if node.name in absent:
            continue
        if isinstance(node, ast.ClassDef):
            start = next(part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
            lines.append(f"{node.name}({_shown(start)})  {ast.get_docstring(node)}")
            methods = [part for part in _public(node) if part.name not in absent and isinstance(part, ast.FunctionDef)]
            lines += [f"  {_line(part)}" for part in methods if part.name != "find" or "LOC" in signatures]
        else:
            lines.append(_line(node))
    return "\n".join(lines)


def _line(node: ast.FunctionDef) -> str:
    head, _, words = (ast.get_docstring(node) or "").partition("\n")[0].partition(": ")
    return f"{node.name}({_shown(node)}) {head}" + (f"  {words.rstrip('.')}" if words else "")


def _shown(node: ast.FunctionDef) -> str:
    args = node.args
    defaults = [None] * (len(args.args) - len(args.defaults)) + list(args.defaults)
    named = zip([arg.arg for arg in args.args], defaults)
    return ", ".join(name if default is None else f"{name}={ast.unparse(default)}" for name, default in named if name != "self")


@cache
def _prelude() -> ast.Module:
    return ast.parse(Path(viper_prelude.__file__).read_text(encoding="utf-8"))


def _public(node: ast.Module | ast.ClassDef) -> list[ast.FunctionDef | ast.ClassDef]:
    found = [part for part in node.body if isinstance(part, (ast.FunctionDef, ast.ClassDef))]
    return [part for part in found if not part.name.startswith("_")]


@cache
def _arguments() -> tuple[dict[str, Arguments], dict[str, Arguments]]:
    functions: dict[str, Arguments] = {}
    methods: dict[str, Arguments] = {}
    for node in _public(_prelude()):
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = _arguments_of(node)
            continue
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                functions[node.name] = _arguments_of(part)
            elif isinstance(part, ast.FunctionDef) and part.name != "find" and not part.name.startswith("_"):
                if part.name not in methods or _arguments_of(part).fewest < methods[part.name].fewest:
                    methods[part.name] = _arguments_of(part)
    return functions, methods


def _arguments_of(node: ast.FunctionDef) -> Arguments:
    names = tuple(arg.arg for arg in node.args.args if arg.arg != "self")
    return Arguments(len(names) - len(node.args.defaults), names)
