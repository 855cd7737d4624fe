"""Any callable with typed inputs as a module that programs can call."""

from __future__ import annotations

import importlib
import inspect
import marshal
import operator
import pickle
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, overload

from tutelage.errors import InputError
from tutelage.programs.types import Call, Capabilities, ModuleOutputs, ProgramFailure, RuntimeFailure, Signature
from tutelage.programs.values import Box, Image, Object
from tutelage.storage import fingerprint

_KINDS: dict[Any, str] = {
    Image: "image",
    list[Box]: "boxes",
    list[Object]: "objects",
    str: "text",
    bool: "bool",
    int: "number",
    float: "number",
}


class FunctionModule:
    """A function behind a typed call. Made by :func:`module`; still callable as the function that it was."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        signature: Signature,
        version: str,
        *,
        symbolic: bool,
        batch_size: int,
        batched: bool,
    ):
        self.function, self.name, self.signature, self.version = function, name, signature, version
        self.symbolic, self.batch_size, self.batched = symbolic, batch_size, batched
        self.capabilities = Capabilities()
        self.__doc__ = function.__doc__
        self.__module__ = getattr(function, "__module__", __name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function itself gives."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<module {self.name}({', '.join(self.signature.args)}) -> {self.signature.returns}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process by the function's name: under it stands the module itself, which the function became."""
        path = getattr(self.function, "__qualname__", "<>")
        if "<" in path:
            raise pickle.PicklingError(f"the module {self.name} is not defined at the top of a file")
        options = (self.name, self.version, self.symbolic, self.batch_size, self.batched)
        return _received, (self.function.__module__, path, *options)

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """Answer ``calls``. A call that raises fails alone; where the function takes lists, the whole batch raises."""
        if self.batched:
            names = list(self.signature.args)
            return ModuleOutputs(list(self.function(**{name: [call.args.get(name) for call in calls] for name in names})))
        if len(calls) == 1:  # an error of the only call passes: the caller knows what to do with it
            return ModuleOutputs([self.run_one(calls[0])])
        return ModuleOutputs([self._answer(call) for call in calls])

    def run_one(self, call: Call) -> Any:
        """The value alone that answers ``call``: what a scheduler asks of symbolic modules. The function's errors pass."""
        if self.batched:
            (value,) = self.run([call]).values
            return value
        return self.function(**call.args)

    def _answer(self, call: Call) -> Any:
        try:
            return self.function(**call.args)
        except ProgramFailure as error:
            return error
        except Exception as error:
            failure = RuntimeFailure(f"{self.name} raised {type(error).__name__}: {error}")
            failure.__cause__ = error
            return failure


def _received(file: str, path: str, name: str, version: str, symbolic: bool, batch_size: int, batched: bool) -> FunctionModule:
    """The module on the other side of a process boundary."""
    found = operator.attrgetter(path)(importlib.import_module(file))
    function = found.function if isinstance(found, FunctionModule) else found
    signature = _signature(function, name, batched)
    return FunctionModule(function, name, signature, version, symbolic=symbolic, batch_size=batch_size, batched=batched)


@overload
def module(function: Callable[..., Any], /) -> FunctionModule: ...
@overload
def module(
    *,
    name: str | None = None,
    version: str | None = None,
    batched: bool = False,
    symbolic: bool = False,
    batch_size: int = 64,
) -> Callable[[Callable[..., Any]], FunctionModule]: ...


def module(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: str | None = None,
    batched: bool = False,
    symbolic: bool = False,
    batch_size: int = 64,
) -> Any:
    """Make a function a module: ``@module``, or ``@module(name="FIND_LOGO", batched=True)``.

    The signature comes from the type hints (Image, list[Box], list[Object], str, bool, int, float, or Any), the name
    from the function's, in capitals. A ``batched`` function takes and returns lists, one entry a call (its hints are
    ``list[Image]`` and so on; an argument left out is None). A ``symbolic`` one is cheap: it is answered at once, never
    batched or cached. The ``version`` is a hash of the function's own source; give one where the answers depend on more
    than that (weights, a helper, a setting), or stored results outlive a change.

    Raises:
        InputError: an argument without a hint, or with one that is not the type of a value; no name to take.
    """

    def make(target: Callable[..., Any]) -> FunctionModule:
        own_name = name or getattr(target, "__name__", "").upper()
        if not own_name.isidentifier():
            raise InputError(f"no name for the module of {target!r}", remedy="give name=...")
        signature = _signature(target, own_name, batched)
        own_version = version or fingerprint(own_name, _source(target, own_name))
        return FunctionModule(target, own_name, signature, own_version, symbolic=symbolic, batch_size=batch_size, batched=batched)

    return make if function is None else make(function)


def _signature(function: Callable[..., Any], name: str, batched: bool) -> Signature:
    hinted = function if inspect.isroutine(function) else type(function).__call__
    hints = typing.get_type_hints(hinted)
    args, optional = {}, []
    for parameter in inspect.signature(function).parameters.values():
        where = f"{name}({parameter.name})"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InputError("arguments are passed by name", where=where, remedy="name each argument, with its type")
        if parameter.name not in hints:
            raise InputError("no type hint", where=where, remedy="Image, list[Box], list[Object], str, bool, int, Any")
        args[parameter.name] = _kind(hints[parameter.name], where, batched)
        if parameter.default is not parameter.empty:
            optional.append(parameter.name)
    returns = _kind(hints["return"], f"{name} ->", batched) if "return" in hints else "any"
    if _may_be_none(hints.get("return")) or (batched and any(map(_may_be_none, typing.get_args(hints.get("return"))))):
        returns = "any"  # no type of a signature holds None
    return Signature(types.MappingProxyType(args), returns, frozenset(optional))


def _kind(hint: Any, where: str, batched: bool) -> str:
    if batched and hint is not Any:
        if typing.get_origin(hint) not in (list, Sequence) or not typing.get_args(hint):
            raise InputError(f"batched functions take and give lists, not {hint}", where=where, remedy="list[...]")
        (hint,) = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = {_kind(option, where, False) for option in typing.get_args(hint) if option is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "any"
    if hint in (Box, Object):
        raise InputError("programs pass boxes and objects in lists", where=where, remedy=f"write list[{hint.__name__}]")
    return _KINDS.get(hint, "any")


def _may_be_none(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _source(function: Callable[..., Any], name: str) -> str:
    target = function if inspect.isroutine(function) else type(function)
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        if code is None:
            raise InputError("the source cannot be read", where=name, remedy='give version="..."') from None
        return marshal.dumps(code).hex()
