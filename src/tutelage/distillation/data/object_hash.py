"""A hash of a Python object: of its class, its code and its state. It names what a dataset or a teacher does without
running it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import random
import socket
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.errors import InputError

LARGE = 1 << 20
"""Arrays of more bytes are hashed when the hash is asked for, not when the object is looked at."""

_LIBRARIES = {"builtins", "torch", "numpy", "PIL", "typing", "abc", "collections", "functools"}
"""Modules whose classes and functions are named, not hashed."""

_RANDOM = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator)
_STATELESS = (*_RANDOM, types.ModuleType, logging.Logger, type(threading.Lock()), type(threading.RLock()))
"""Objects whose state decides no answer, or must not: named by their class."""

_OPAQUE = (io.IOBase, socket.socket)
"""Objects that answer from outside this process."""


class ObjectHash:
    """The hash of an object as it is now.

    Covered: plain values, tensors and arrays (their bytes), containers, functions (code, defaults, closure, and what
    they use of their module and of the user's other modules), networks (code, settings and weights), and other objects
    (the methods of their class, their attributes). An object with an attribute ``fingerprint`` that is text is named by
    it. Installed packages are named, not hashed. Not covered, and named by their class alone: random generators, locks
    and what ``cached_property`` keeps; and those that ``opaque`` lists: open files, sockets, handles of C libraries.

    Everything but large arrays is read at once, so that what an object caches later does not change its hash.

    Args:
        value: the object.
        weights: whether the parameters and buffers of networks count.

    Examples:
        >>> ObjectHash([1, 2]).hexdigest() == ObjectHash([1, 2]).hexdigest()
        True
    """

    def __init__(self, value: Any, weights: bool = True):
        walk = _Walk(value, weights)
        self.opaque = tuple(walk.opaque)
        """The types of what could not be looked into."""
        self._looked_at = walk.digest.hexdigest()
        self._large = walk.large

    def hexdigest(self) -> str:
        """16 hex digits."""
        digest = hashlib.blake2b(self._looked_at.encode(), digest_size=8)
        for array in self._large:
            digest.update(_bytes(array))
        return digest.hexdigest()


def callable_fingerprint(function: Any, where: str, version: str | None = None) -> str:
    """What names a callable's answers: its ``version`` if one is given, else the hash of its code and all it holds.

    Raises:
        InputError: without a version, it holds what cannot be looked into: an open connection, a handle of a C library.
    """
    if version is not None:
        return version
    found = ObjectHash(function)
    if found.opaque:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise InputError(
            f"cannot tell when the answers of {name} change: it holds {', '.join(dict.fromkeys(found.opaque))}",
            where=where,
            remedy='give version="…", a name that you change whenever its answers may change',
        )
    return found.hexdigest()


class _Walk:
    """One walk through an object: ``digest`` takes in everything but ``large``, the arrays left for later."""

    def __init__(self, value: Any, weights: bool):
        self.weights = weights
        self.opaque: list[str] = []
        self.digest = hashlib.blake2b(digest_size=8)
        self.large: list[Tensor | np.ndarray] = []
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # keeps every object alive, so that no two have one id
        self._feed(value)

    # -- one method a kind ---------------------------------------------------------------------------------------

    def _add(self, *parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            self.digest.update(len(data).to_bytes(8, "little") + data)

    def _feed(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, PurePath, type(...))):
            self._add(type(value).__name__, value if isinstance(value, bytes) else repr(value))
            return
        if isinstance(value, tuple):  # equal ones are one: a default, and the same value given
            self._sequence(value)
            return
        if id(value) in self._seen:
            self._add("again", self._seen[id(value)])
            return
        self._seen[id(value)] = len(self._seen)
        self._held.append(value)
        named = None if isinstance(value, type) else getattr(value, "fingerprint", None)
        if isinstance(named, str):
            self._add(type(value).__qualname__, named)
        elif isinstance(value, (Tensor, np.ndarray)):
            self._array(value)
        elif isinstance(value, Mapping):
            self._add("mapping", len(value))
            for key in sorted(value, key=lambda key: (type(key).__name__, repr(key) if _is_plain(key) else "")):
                self._feed(key)
                self._feed(value[key])
        elif isinstance(value, list):
            self._sequence(value)
        elif isinstance(value, (set, frozenset)):
            self._add("set", *sorted(ObjectHash(item).hexdigest() for item in value))
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._feed(value.__func__)
            self._feed(value.__self__)
        elif isinstance(value, functools.partial):
            self._feed((value.func, value.args, value.keywords))
        elif isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
            self._add("builtin", value.__qualname__)
            self._feed(None if isinstance(value.__self__, (types.ModuleType, type)) else value.__self__)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, nn.Module):
            self._network(value)
        else:
            self._object(value)

    def _array(self, value: Tensor | np.ndarray) -> None:
        self._add("array", value.dtype, list(value.shape))
        if isinstance(value, np.ndarray) and value.dtype == object:
            self._sequence(value.reshape(-1).tolist())
        elif value.nbytes > LARGE:
            self.large.append(value)
        else:
            self.digest.update(_bytes(value))

    def _sequence(self, value: list[Any] | tuple[Any, ...]) -> None:
        self._add("sequence", len(value))
        for start in range(0, len(value), 4096):
            chunk = value[start : start + 4096]
            try:
                self._add(json.dumps(chunk, sort_keys=True).encode())
            except (TypeError, ValueError):
                for item in chunk:
                    self._feed(item)

    def _code(self, code: types.CodeType) -> None:
        self._add("code", code.co_code, code.co_names)
        for constant in code.co_consts:
            self._feed(constant)

    def _function(self, function: types.FunctionType) -> None:
        self._add("function", function.__qualname__)
        if _library(function.__module__):
            self._add(function.__module__)
            return
        self._feed(function.__code__)
        self._feed(function.__defaults__)
        self._feed(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self._feed(cell.cell_contents)
            except ValueError:  # a name that is not bound yet
                self._add("empty cell")
        for name, used in _used(function):
            self._add(name)
            self._feed(used)

    def _class(self, kind: type) -> None:
        self._add("class", kind.__qualname__)
        for base in kind.__mro__:
            if _library(base.__module__):
                self._add(base.__module__, base.__qualname__)
            else:
                for _, member in sorted(vars(base).items()):
                    inner = getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", member)
                    if isinstance(inner, types.FunctionType):
                        self._feed(inner)

    def _network(self, network: nn.Module) -> None:
        """Code, settings and weights, part by part; not the mode it is in, nor hooks."""
        for name, part in network.named_modules():
            self._add("part", name)
            kind = type(part)
            self._feed(kind)
            state = {key: item for key, item in vars(part).items() if not key.startswith("_") and key != "training"}
            if _library(kind.__module__) or _installed(kind.__module__):  # what a package keeps beside may change as it runs
                state = {key: item for key, item in state.items() if _is_plain(item) or isinstance(item, types.FunctionType)}
            self._feed(state)
            if self.weights:
                self._feed({**part._parameters, **part._buffers})

    def _object(self, value: Any) -> None:
        self._feed(type(value))
        self._add(getattr(value, "__name__", ""))
        if isinstance(value, _STATELESS):
            return
        if isinstance(value, _OPAQUE):
            self.opaque.append(type(value).__qualname__)
            return
        if not hasattr(value, "__dict__"):
            if " at 0x" not in (text := repr(value)):
                self._add(text)
            elif not any("__slots__" in vars(base) for base in type(value).__mro__):
                self.opaque.append(type(value).__qualname__)
        state = dict(getattr(value, "__dict__", {}))
        for base in type(value).__mro__:
            names = vars(base).get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                if hasattr(value, name):
                    state[name] = getattr(value, name)
            for name, member in vars(base).items():
                if isinstance(member, functools.cached_property):
                    state.pop(name, None)
        self._feed(state)


def _used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What the code of ``function``, inner functions included, takes from its module and from the user's other modules."""
    names: dict[str, None] = {}
    codes = [function.__code__]
    for code in codes:
        names |= dict.fromkeys(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    for name in names:
        used = function.__globals__.get(name)
        if isinstance(used, types.ModuleType):
            if _users(used.__name__):
                inside = ((f"{name}.{inner}", vars(used).get(inner)) for inner in names)
                yield from ((inner, item) for inner, item in inside if _followed(item, function))
        elif _followed(used, function):
            yield name, used


def _followed(used: Any, function: types.FunctionType) -> bool:
    """Whether an object that ``function`` names is part of what it does: plain values, and whatever the user wrote."""
    if isinstance(used, (bool, int, float, str, tuple)):
        return True
    if isinstance(used, (types.FunctionType, type)):
        return used.__module__ == function.__module__ or _users(used.__module__)
    if not _users(function.__module__):  # what a package keeps in its modules may change as it runs
        return False
    held = (Mapping, list, set, Tensor, np.ndarray, nn.Module, functools.partial, *_OPAQUE)
    return isinstance(used, held) or _users(type(used).__module__)


def _users(module: str | None) -> bool:
    """Whether the user wrote it: no installed package, nor this one."""
    return not (_library(module) or _installed(module) or (module or "").partition(".")[0] == "tutelage")


@functools.lru_cache(maxsize=4096)
def _installed(module: str | None) -> bool:
    top = (module or "builtins").partition(".")[0]
    file = str(getattr(sys.modules.get(top), "__file__", None) or "")
    return top in sys.stdlib_module_names or "site-packages" in file or "dist-packages" in file


def _bytes(array: Tensor | np.ndarray) -> memoryview:
    if isinstance(array, Tensor):
        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _is_plain(key: object) -> bool:
    return isinstance(key, (bool, int, float, str, bytes, tuple))


def _library(module: str | None) -> bool:
    return (module or "builtins").partition(".")[0] in _LIBRARIES
