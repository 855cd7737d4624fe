"""Writes a checked ViperGPT program in the subset that the sandbox has; every line keeps its number.

Generator expressions under ``any``, ``all`` and ``next`` stay lazy: the sandbox would make whole lists of them, and ask about
every patch. Other ones become iterators over such a list. Imports of modules that the sandbox lacks become stand-ins.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from tutelage.programs.types import ForbiddenSyntax

NATIVE = frozenset({"math", "re", "typing", "itertools", "random", "json", "copy", "dataclasses", "__future__"})
"""Modules of the sandbox that programs may import."""
STAND_INS = frozenset({"numpy", "statistics", "string", "operator", "collections", "functools"})
"""Modules that the prelude stands in for."""
IGNORED = frozenset({"image_patch", "video_segment", "vision_functions", "vision_processes", "nlp_functions", "PIL", "viper"})
"""Modules that published prompts import their library from: the names are there anyway."""


METHODS_AS_VALUES = frozenset(
    "get keys values items pop append extend insert remove count index sort add update discard strip lstrip rstrip"
    " title capitalize split join replace startswith endswith isdigit isalpha".split()
)
"""Methods of texts, lists, dicts and sets: the sandbox calls them, but has no value for ``counts.get`` itself."""
TYPES = frozenset({"str", "list", "dict", "set"})
"""Nor for ``str.lower``. (Patches have fields ``lower`` and ``upper``, so those are told by what they are taken from.)"""


@cache
def all_names(module: str) -> tuple[str, ...]:
    """What ``from module import *`` gives."""
    if module == "math":
        return tuple(name for name in dir(math) if not name.startswith("_") and name not in ("cbrt", "exp2", "sumprod", "fma"))
    if module == "typing":
        return ("List", "Dict", "Optional", "Union", "Tuple", "Any", "Callable", "Set", "Sequence", "Iterable", "Iterator")
    return ()


def targets(target: ast.expr) -> str | None:
    """The arguments of a lambda for the target of a loop; None where it has none."""
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, ast.Tuple) and all(isinstance(part, ast.Name) for part in target.elts):
        return ", ".join(part.id for part in target.elts if isinstance(part, ast.Name))
    return None


class Rewriter:
    """Replaces pieces of a program's text; every line keeps its number."""

    def __init__(self, text: str, lazy: Callable[[ast.Call], bool], as_value: Callable[[ast.Attribute], bool]):
        self._lazy, self._as_value = lazy, as_value
        self._bytes = text.encode()
        self._starts = [0]
        for line in self._bytes.split(b"\n"):
            self._starts.append(self._starts[-1] + len(line) + 1)

    def module(self, tree: ast.Module) -> str:
        """The whole text, rewritten."""
        return self._spliced(0, len(self._bytes), tree)

    def _span(self, node: Any) -> tuple[int, int]:
        return self._starts[node.lineno - 1] + node.col_offset, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.AST) -> str:
        return self._spliced(*self._span(node), node)

    def _spliced(self, start: int, end: int, root: ast.AST) -> str:
        pieces, at = [], start
        for (first, last), text in sorted(self._replacements(root)):
            pieces += [self._bytes[at:first].decode(), text]
            at = last
        return "".join([*pieces, self._bytes[at:end].decode()])

    def _replacements(self, root: ast.AST) -> Iterator[tuple[tuple[int, int], str]]:
        for child in ast.iter_child_nodes(root):
            text = self._replacement(child)
            if text is None:
                yield from self._replacements(child)
                if isinstance(child, ast.ClassDef) and child.bases:
                    yield self._without_bases(child)
            else:
                span = self._span(child)
                lost = self._bytes[slice(*span)].count(b"\n") - text.count("\n")
                if isinstance(child, ast.expr):
                    text = text[:-1] + "\n" * lost + text[-1]  # inside the last bracket
                else:
                    text += "\n" * lost
                yield span, text

    def _replacement(self, node: ast.AST) -> str | None:
        if hasattr(node, "left_out"):
            return "pass"
        if isinstance(node, ast.Import):
            return self._import(node)
        if isinstance(node, ast.ImportFrom):
            return self._import_from(node)
        if isinstance(node, ast.Delete):
            return "; ".join(self._deleted(target) for target in node.targets)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.GeneratorExp):
            return self._listed(node)
        if isinstance(node, ast.Attribute) and self._as_value(node):
            if isinstance(node.value, ast.Name) and node.value.id in TYPES:
                return f"(lambda _, *others: _.{node.attr}(*others))"
            return f"(lambda *_: ({self._text(node.value)}).{node.attr}(*_))"
        return None

    def _call(self, node: ast.Call) -> str | None:
        if self._lazy(node):
            assert isinstance(node.func, ast.Name) and isinstance(node.args[0], ast.GeneratorExp)
            inner = node.args[0]
            value = self._text(inner.elt)
            if node.func.id == "any":
                return f"bool({self._first(inner, f'([1] if ({value}) else [])')})"
            if node.func.id == "all":
                return f"(not {self._first(inner, f'([] if ({value}) else [1])')})"
            others = "".join(f", ({self._text(other)})" for other in node.args[1:])
            return f"_next({self._first(inner, f'[({value})]')}{others})"
        if isinstance(node.func, ast.Name) and node.func.id == "next" and node.args and isinstance(node.args[0], ast.Call):
            others = "".join(f", ({self._text(other)})" for other in node.args[1:])
            return f"next(iter({self._text(node.args[0])}){others})"
        return None

    def _first(self, node: ast.GeneratorExp, found: str) -> str:
        """Nested loops that end with the first list that is not empty."""
        for part in reversed(node.generators):
            names = targets(part.target)
            unpacked = isinstance(part.target, ast.Tuple)
            conditions = " and ".join(f"({self._text(test)})" for test in part.ifs) or "True"
            values = self._text(part.iter)
            if unpacked:
                wanted, result = f"(lambda {names}: ({conditions}))(*_)", f"(lambda {names}: {found})(*_)"
                found = f"_first(({values}), lambda _: {wanted}, lambda _: {result})"
            else:
                found = f"_first(({values}), lambda {names}: ({conditions}), lambda {names}: {found})"
        return found

    def _listed(self, node: ast.GeneratorExp) -> str:
        """A generator expression as an iterator over the list that the sandbox makes of it anyway."""
        start, end = self._span(node)
        inside = self._spliced(start, end, node)
        return f"(iter([{inside[1:-1]}]))"

    def _deleted(self, target: ast.expr) -> str:
        if isinstance(target, ast.Subscript) and not isinstance(target.slice, ast.Slice):
            return f"({self._text(target.value)}).pop({self._text(target.slice)})"
        if isinstance(target, ast.Name):
            return f"{target.id} = None"
        raise ForbiddenSyntax("this cannot be deleted", where=f"line {target.lineno}", remedy="make a list without it")

    def _import(self, node: ast.Import) -> str | None:
        if all(alias.name in NATIVE for alias in node.names):
            return None
        return "; ".join(self._imported(alias) for alias in node.names)

    @staticmethod
    def _imported(alias: ast.alias) -> str:
        module = alias.name.partition(".")[0]
        if module in IGNORED:
            return "pass"
        if module in NATIVE:
            return f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        value = f"_modules['{module}']" + (".linalg" if alias.name == "numpy.linalg" and alias.asname else "")
        return f"{alias.asname or module} = {value}"

    def _import_from(self, node: ast.ImportFrom) -> str | None:
        module = (node.module or "").partition(".")[0]
        if module in IGNORED:
            return "pass"
        if any(alias.name == "*" for alias in node.names):
            names = all_names(module)
            return f"from {module} import {', '.join(names)}" if names else "pass"
        if module in NATIVE:
            return None
        owner = f"_modules['{module}']" + "".join(f".{part}" for part in (node.module or "").split(".")[1:])
        return "; ".join(f"{alias.asname or alias.name} = {owner}.{alias.name}" for alias in node.names)

    def _without_bases(self, node: ast.ClassDef) -> tuple[tuple[int, int], str]:
        first, _ = self._span(node.bases[0])
        _, last = self._span(node.bases[-1])
        return (first, last), ""
