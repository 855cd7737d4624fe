"""Checks a ViperGPT program before it runs.

The check finds what would harm other programs of a session, what the sandbox lacks, and names that nothing defines.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from tutelage.errors import did_you_mean
from tutelage.programs.types import ForbiddenSyntax, ProgramFailure, TypeFailure, UndefinedVariable, UnknownModule
from tutelage.programs.viper_api import ASKING, Api, Arguments
from tutelage.programs.viper_rewrite import IGNORED, METHODS_AS_VALUES, NATIVE, STAND_INS, TYPES, Rewriter, all_names, targets
from tutelage.programs.viper_source import ENTRY, role_of_name

BUILTINS = frozenset(
    "abs all any bool chr dict divmod enumerate filter float format frozenset hex bin oct int isinstance "
    "iter len list map max min next ord pow print range repr reversed round set slice sorted str sum "
    "tuple type zip True False None NotImplemented Ellipsis Exception BaseException ArithmeticError "
    "LookupError IndexError KeyError RuntimeError NotImplementedError RecursionError AttributeError "
    "NameError UnboundLocalError ValueError TypeError ZeroDivisionError OverflowError StopIteration "
    "AssertionError ImportError ModuleNotFoundError OSError FileNotFoundError TimeoutError MemoryError".split()
)
EAGER = frozenset("sum max min list tuple set dict sorted join any all len frozenset".split())
"""What walks through all that it is given at once."""
METHODS = frozenset("__init__ __repr__ __str__ __eq__ __call__ __iter__ __getitem__ __contains__ __hash__".split())
"""Methods with a meaning that classes may define."""

_REFUSED: dict[type, tuple[str, str]] = {
    ast.AsyncFunctionDef: ("async is not allowed", "write a plain function"),
    ast.AsyncFor: ("async is not allowed", "write a plain loop"),
    ast.AsyncWith: ("async is not allowed", "leave it out"),
    ast.Await: ("await is not allowed", "call the function"),
    ast.Yield: ("yield is not allowed", "collect the values in a list and return it"),
    ast.YieldFrom: ("yield is not allowed", "collect the values in a list and return it"),
    ast.With: ("with is not allowed", "there are no files and no locks here"),
}


class Checked(NamedTuple):
    """What a check found: the text to run, names that the run must set, and how careful the sandbox must be."""

    text: str
    reads: tuple[str, ...]
    once: bool
    seeded: bool
    private: bool


def check(tree: ast.Module, text: str, api: Api) -> Checked:
    """The program of ``tree`` and ``text``, found harmless and ready to run.

    Raises:
        ForbiddenSyntax: a construct, module, name or attribute that programs may not use.
        UndefinedVariable: a name that nothing defines.
        UnknownModule: it needs a module that is not registered.
    """
    _leave_out_script(tree, api)
    walk = _Walk(api)
    walk.visit(tree)
    reads = walk.finish()
    if walk.special or walk.left_out(tree):
        text = Rewriter(text, walk.lazy, walk.as_value).module(tree)
    once = not walk.changing and not reads and all(map(_is_fixed, tree.body))
    return Checked(text, tuple(reads), once, walk.seeded, walk.private)


def _leave_out_script(tree: ast.Module, api: Api) -> None:
    """Mark what a script does round its function: it calls it, or opens the image that the function is given."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
            continue
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
        opens = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and role_of_name(node.targets[0].id)
        if (ENTRY in names and not _sets_entry(node)) or "__name__" in names or (opens and names - api.names - BUILTINS):
            node.left_out = True  # type: ignore[attr-defined]


def _sets_entry(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Name) and part.id == ENTRY and isinstance(part.ctx, ast.Store) for part in ast.walk(node))


_NO_FIELDS = frozenset({"ctx", "op", "ops", "annotation", "returns", "type_comment", "kind", "type_params", "bases", "level"})


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    """The fields of a kind of node that are walked: annotations are not run."""
    return tuple(name for name in kind._fields if name not in _NO_FIELDS)


@dataclass
class _Walk:
    """One walk over a tree: what it binds, reads, imports and stores to."""

    api: Api
    bound: set[str] = field(default_factory=set)
    read: dict[str, int] = field(default_factory=dict)
    special: bool = False
    seeded: bool = False
    private: bool = False
    changing: bool = False
    _stores: list[ast.Attribute] = field(default_factory=list)
    _attributes: list[ast.Attribute] = field(default_factory=list)
    _methods: set[str] = field(default_factory=set)
    _eager: set[int] = field(default_factory=set)
    _called: set[int] = field(default_factory=set)
    _fields: set[str] = field(default_factory=set)
    _prelude_calls: list[ast.Call] = field(default_factory=list)

    def visit(self, tree: ast.Module) -> None:
        """Walk all nodes, in no order that matters."""
        waiting: list[Any] = [node for node in tree.body if not hasattr(node, "left_out")]
        bound, read = self.bound, self.read
        while waiting:
            node = waiting.pop()
            kind = type(node)
            if kind is ast.Name:
                name = node.id
                if type(node.ctx) is ast.Load:
                    line = read.get(name)
                    if line is None or node.lineno < line:
                        read[name] = node.lineno
                else:
                    bound.add(name)
                continue
            if kind is ast.Constant:
                if type(node.value) is str and "__" in node.value and "{" in node.value:
                    raise _refused("a text that formats private attributes", node.lineno, "leave the underscores out")
                continue
            handler = _HANDLERS.get(kind)
            if handler is not None:
                handler(self, node)
            for name in _fields(kind):  # type: ignore[arg-type]
                value = getattr(node, name, None)
                if type(value) is list:
                    waiting.extend(part for part in value if isinstance(part, ast.AST))
                elif isinstance(value, ast.AST):
                    waiting.append(value)

    def finish(self) -> list[str]:
        """Names that the run must set; failures are raised in the order of the lines."""
        faults: list[tuple[int, ProgramFailure]] = []
        for node in self._attributes:
            self._attribute_fault(node, faults)
        reads = []
        for name, line in self.read.items():
            if name in self.bound:
                continue
            if name in self.api.absent:
                faults.append((line, _absent(name, self.api.absent[name], line)))
            elif name not in self.api.names and name not in BUILTINS:
                if role_of_name(name) is not None:
                    reads.append(name)
                else:
                    remedy = did_you_mean(name, [*self.bound, *self.api.names, *BUILTINS])
                    faults.append((line, UndefinedVariable(f"{name!r} is not defined", where=f"line {line}", remedy=remedy)))
        for name in self.bound:
            if name.startswith("__") and name not in METHODS:
                line = self.read.get(name, 1)
                faults.append((line, _refused(f"the name {name} is not allowed", line, "use another name")))
        for call in self._prelude_calls:
            self._call_fault(call, faults)
        for store in self._stores:
            self._store_fault(store, faults)
        if faults:
            raise min(faults, key=lambda fault: fault[0])[1]
        return sorted(reads)

    def left_out(self, tree: ast.Module) -> bool:
        """Whether some statement of the top level is not to be run."""
        return any(hasattr(node, "left_out") for node in tree.body)

    def lazy(self, node: ast.Call) -> bool:
        """Whether the call is ``any``, ``all`` or ``next`` of a generator expression that can stay lazy."""
        if not (isinstance(node.func, ast.Name) and node.func.id in ("any", "all", "next") and node.func.id not in self.bound):
            return False
        if not node.args or not isinstance(node.args[0], ast.GeneratorExp) or node.keywords:
            return False
        generator = node.args[0]
        plain = all(targets(part.target) is not None and not part.is_async for part in generator.generators)
        return plain and not any(isinstance(part, ast.NamedExpr) for part in ast.walk(generator))

    def as_value(self, node: ast.Attribute) -> bool:
        """Whether it is a method of a text, list, dict or set that is not called but passed on."""
        if isinstance(node.value, ast.Name) and node.value.id in TYPES and node.value.id not in self.bound:
            return node.attr not in ("fromkeys", "maketrans")
        return node.attr in METHODS_AS_VALUES and node.attr not in self._fields and id(node) not in self._called

    def _attribute_fault(self, node: ast.Attribute, faults: list[tuple[int, ProgramFailure]]) -> None:
        name, line = node.attr, node.lineno
        if name.startswith("_") and (not self.private or name.startswith("__")):
            remedy = "attributes with an underscore are private"
            faults.append((line, _refused(f"the attribute {name} is not allowed", line, remedy)))
        elif name in self.api.absent and name not in self._methods:
            faults.append((line, _absent(name, self.api.absent[name], line)))

    def _call_fault(self, node: ast.Call, faults: list[tuple[int, ProgramFailure]]) -> None:
        if isinstance(node.func, ast.Attribute):
            name, known = node.func.attr, None if node.func.attr in self._methods else self.api.methods[node.func.attr]
        else:
            assert isinstance(node.func, ast.Name)
            name, known = node.func.id, None if node.func.id in self.bound else self.api.functions[node.func.id]
        unpacked = any(isinstance(arg, ast.Starred) for arg in node.args) or any(word.arg is None for word in node.keywords)
        if known is None or unpacked:
            return
        message = _misfit(name, known, len(node.args), [str(word.arg) for word in node.keywords])
        if message:
            remedy = f"write {name}({', '.join(known.names)})"
            faults.append((node.lineno, TypeFailure(message, where=f"line {node.lineno}", remedy=remedy)))

    def _store_fault(self, node: ast.Attribute, faults: list[tuple[int, ProgramFailure]]) -> None:
        owner = node.value
        if not self.private or (isinstance(owner, ast.Name) and owner.id in self.api.names):
            message = f"the attribute {node.attr} cannot be assigned to"
            faults.append((node.lineno, _refused(message, node.lineno, "assign to a variable")))

    def _refuse(self, node: Any) -> None:
        message, remedy = _REFUSED[type(node)]
        raise _refused(message, node.lineno, remedy)

    def _function(self, node: Any) -> None:
        args = node.args
        for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
            if arg is not None:
                self.bound.add(arg.arg)
        if isinstance(node, ast.FunctionDef):
            self.bound.add(node.name)

    def _class(self, node: ast.ClassDef) -> None:
        self.private = True
        self.bound.add(node.name)
        for base in node.bases:
            if not (isinstance(base, ast.Name) and base.id == "object"):
                raise _refused("classes cannot inherit", node.lineno, "write a class without bases")
            self.special = True
        if node.keywords:
            raise _refused("metaclasses are not allowed", node.lineno, "write a plain class")
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                self._methods.add(part.name)
                if part.decorator_list:
                    raise _refused("methods cannot have decorators", part.lineno, "write a plain method, and call it with ()")
                if part.name.startswith("__") and part.name not in METHODS:
                    raise _refused(f"the method {part.name} is not allowed", part.lineno, "give it another name")

    def _attribute(self, node: ast.Attribute) -> None:
        self._attributes.append(node)
        if not isinstance(node.ctx, ast.Load):
            self._stores.append(node)
            self._fields.add(node.attr)
        elif self.as_value(node):
            self.special = True

    def _handler(self, node: ast.ExceptHandler) -> None:
        if node.name is not None:
            self.bound.add(node.name)

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            module = alias.name.partition(".")[0]
            self._check_module(module, node.lineno)
            if "." in alias.name and alias.name != "numpy.linalg":
                raise _refused(f"{alias.name} cannot be imported", node.lineno, f"import {module}")
            self.special |= module not in NATIVE
            if module not in IGNORED:
                self.bound.add(alias.asname or module)

    def _import_from(self, node: ast.ImportFrom) -> None:
        module = (node.module or "").partition(".")[0]
        self._check_module(module, node.lineno)
        self.special |= module not in NATIVE or any(alias.name == "*" for alias in node.names)
        for alias in node.names:
            if alias.name == "*":
                self.bound.update(all_names(module))
            elif alias.name.startswith("_"):
                raise _refused(f"{alias.name} cannot be imported", node.lineno, "leave it out")
            elif module not in IGNORED and module != "__future__":
                self.bound.add(alias.asname or alias.name)

    def _check_module(self, module: str, line: int) -> None:
        self.seeded |= module == "random"
        if module not in NATIVE and module not in STAND_INS and module not in IGNORED:
            known = sorted((NATIVE | STAND_INS) - {"__future__"})
            raise _refused(f"{module or '.'} cannot be imported", line, f"programs may import {', '.join(known)}")

    def _call(self, node: ast.Call) -> None:
        """Note calls of the prelude, and what is rewritten: where a generator expression is walked to its end at once, the list
        that the sandbox makes of it will do."""
        if isinstance(node.func, ast.Attribute):
            self._called.add(id(node.func))
            if node.func.attr in self.api.methods:
                self._prelude_calls.append(node)
        elif isinstance(node.func, ast.Name) and node.func.id in self.api.functions:
            self._prelude_calls.append(node)
        if isinstance(node.func, ast.Name) and node.func.id == "next":
            self.special = True
        elif node.args and isinstance(node.args[0], ast.GeneratorExp):
            name = node.func.id if isinstance(node.func, ast.Name) else "join" if isinstance(node.func, ast.Attribute) else ""
            if name not in EAGER or (name in ("any", "all") and _calls(node.args[0])):
                self.special = True
            else:
                self._eager.add(id(node.args[0]))

    def _special(self, node: Any) -> None:
        self.special |= id(node) not in self._eager

    def _scope(self, node: ast.Global) -> None:
        self.changing = True
        self.bound.update(node.names)

    def _match(self, node: Any) -> None:
        if node.name is not None:
            self.bound.add(node.name)


_HANDLERS: dict[type, Callable[[_Walk, Any], None]] = {
    **dict.fromkeys(_REFUSED, _Walk._refuse),
    **{ast.FunctionDef: _Walk._function, ast.Lambda: _Walk._function, ast.ClassDef: _Walk._class},
    **{ast.Attribute: _Walk._attribute, ast.ExceptHandler: _Walk._handler, ast.Call: _Walk._call},
    **{ast.Import: _Walk._import, ast.ImportFrom: _Walk._import_from, ast.Global: _Walk._scope},
    **{ast.GeneratorExp: _Walk._special, ast.Delete: _Walk._special, ast.MatchAs: _Walk._match, ast.MatchStar: _Walk._match},
}


def _misfit(name: str, known: Arguments, count: int, words: list[str]) -> str:
    """What is wrong with a call of ``count`` plain arguments and these ``words``; empty where it fits."""
    if count > len(known.names):
        return f"{name}() takes {len(known.names)} arguments, not {count}"
    given = [*known.names[:count], *words]
    for word in words:
        if word not in known.names:
            return f"{name}() has no argument {word!r}"
    missing = [word for word in known.names[: known.fewest] if word not in given]
    return f"{name}() lacks {', '.join(missing)}" if missing else ""


def _calls(node: ast.AST) -> bool:
    """Whether it calls a function that may call a module."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            function = part.func
            if isinstance(function, ast.Attribute) and function.attr in ASKING:
                return True
            if not isinstance(function, ast.Attribute) and not (isinstance(function, ast.Name) and function.id in BUILTINS):
                return True
    return False


def _refused(message: str, line: int, remedy: str) -> ForbiddenSyntax:
    return ForbiddenSyntax(message, where=f"line {line}", remedy=remedy)


def _absent(name: str, module: str, line: int) -> UnknownModule:
    message = f"{name} needs the module {module}, which is not registered"
    return UnknownModule(message, where=f"line {line}", remedy=f"register {module}")


def _is_fixed(node: ast.stmt) -> bool:
    """Whether a statement of the top level leaves nothing behind that a run could change."""
    if isinstance(node, ast.FunctionDef):
        defaults = [*node.args.defaults, *[default for default in node.args.kw_defaults if default is not None]]
        return not node.decorator_list and all(isinstance(default, ast.Constant) for default in defaults)
    if isinstance(node, (ast.Import, ast.ImportFrom)) or hasattr(node, "left_out"):
        return True
    return isinstance(node, (ast.Expr, ast.Assign)) and isinstance(node.value, ast.Constant)
