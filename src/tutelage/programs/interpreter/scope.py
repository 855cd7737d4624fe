"""Names of restricted Python: which function binds which, where each lives, and which functions ask no module."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

FIRST_SLOT = 3
"""Slots 0 to 2 of a frame hold the enclosing frame, the meter and the returned value."""

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def bound_names(body: Iterable[ast.stmt], walrus: bool) -> tuple[set[str], set[str]]:
    """Names that ``body`` binds in its own function, and those it declares ``nonlocal``.

    Expressions are looked through only where ``walrus``: nothing else in them binds.
    """
    bound: set[str] = set()
    outer: set[str] = set()
    for node in _statements(body):
        match node:
            case ast.FunctionDef(name=name):
                bound.add(name)
            case ast.Nonlocal(names=names):
                outer.update(names)
            case ast.Assign(targets=targets):
                for target in targets:
                    bound.update(_stored(target))
            case ast.For(target=target) | ast.AugAssign(target=target) | ast.AnnAssign(target=target):
                bound.update(_stored(target))
        if walrus:
            for value in ast.iter_child_nodes(node):
                if isinstance(value, ast.expr):
                    bound.update(walrus_names(value))
    return bound - outer, outer


def walrus_names(value: ast.AST) -> set[str]:
    """Names that an expression binds by ``:=`` in the function it stands in."""
    if isinstance(value, ast.Lambda):
        return set()
    names = {value.target.id} if isinstance(value, ast.NamedExpr) and isinstance(value.target, ast.Name) else set()
    for part in ast.iter_child_nodes(value):
        names |= walrus_names(part)
    return names


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a function, those within ``if`` and loops too; not those of functions within."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.For, ast.While)):
            yield from _statements(node.body)
            yield from _statements(node.orelse)


def _functions(body: Iterable[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Every function in ``body``, at any depth."""
    for node in _statements(body):
        if isinstance(node, ast.FunctionDef):
            yield node
            yield from _functions(node.body)


def _stored(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Name):
        return [target.id]
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def target_names(targets: Iterable[ast.expr]) -> list[str]:
    """Names that the targets of a comprehension bind."""
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


class Scope:
    """The variables of one function: a slot of its frame for each."""

    def __init__(self, parent: Scope | None, names: Iterable[str]):
        self.parent = parent
        self.slots = {name: FIRST_SLOT + at for at, name in enumerate(names)}
        self.size = FIRST_SLOT + len(self.slots)
        self._inner: list[dict[str, int]] = []

    def slot(self) -> int:
        """A new slot without a name."""
        self.size += 1
        return self.size - 1

    def push(self, names: Iterable[str]) -> None:
        """Names that hide others until :meth:`pop`: the variables of a comprehension."""
        self._inner.append({name: self.slot() for name in names})

    def pop(self) -> None:
        """End the innermost :meth:`push`."""
        self._inner.pop()

    def find(self, name: str) -> tuple[int, int] | None:
        """(how many functions outward, slot) of a variable, or None."""
        scope: Scope | None = self
        hops = 0
        while scope is not None:
            for names in reversed(scope._inner):
                if name in names:
                    return hops, names[name]
            if name in scope.slots:
                return hops, scope.slots[name]
            scope, hops = scope.parent, hops + 1
        return None

    def visible(self) -> Iterator[str]:
        """Every name that can be read here."""
        scope: Scope | None = self
        while scope is not None:
            for names in (scope.slots, *scope._inner):
                yield from names
            scope = scope.parent


def quiet_functions(tree: ast.Module, yielding_method: Callable[[str], bool], quiet_names: Sequence[str]) -> set[str]:
    """Names of functions that surely ask no module, so that calling them needs no generator.

    A candidate's name is bound once in the whole program. It is quiet where all it calls is a quiet built-in
    function, a method that never asks, or another quiet candidate.
    """
    found = list(_functions(tree.body))
    if len(found) < 2:  # nobody calls execute_command
        return set()
    functions = {function.name: function for function in found}
    bindings = Counter(function.name for function in found)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            bindings[node.arg] += 1
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bindings[node.id] += 1
    built_in = {name for name in quiet_names if name not in bindings}
    calls: dict[str, set[str]] = {}
    for name, function in functions.items():
        called = _called(function, yielding_method) if bindings[name] == 1 else None
        if called is not None:
            calls[name] = called - built_in
    while loud := [name for name, called in calls.items() if not called <= calls.keys()]:
        for name in loud:
            del calls[name]
    return set(calls)


def _called(function: ast.FunctionDef, yielding_method: Callable[[str], bool]) -> set[str] | None:
    """Names that a function calls, or None where it may call anything."""
    names: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=name):
                    names.add(name)
                case ast.Attribute(attr=name) if not yielding_method(name):
                    pass
                case _:
                    return None
    return names
