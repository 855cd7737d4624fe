"""The registry: a thing is registered where it is defined, and found by listing its folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.errors import InputError, did_you_mean

KINDS: Mapping[str, str] = {
    "distillation": "a student learns from a teacher's outputs or features",
    "compression": "a network becomes smaller or cheaper",
    "backbone": "a published network, to be used as a student or a teacher",
    "pretraining": "a network learns without labels",
    "curriculum": "the order or the difficulty of training data changes",
    "adaptation": "a trained network is fitted to another domain or task",
    "multimodal": "networks of images and text",
    "language": "language models",
    "education": "methods from the study of human learning",
    "task": "a task with its own data and networks",
    "programs": "modules that visual programs call are trained",
}
"""The kinds of systems, and what each means."""


@dataclass(frozen=True)
class SystemEntry:
    """One registered system: its name, kind, card, and the class or function that is it."""

    name: str
    kind: str
    card: str
    target: Any

    @property
    def is_tool(self) -> bool:
        """Whether the system trains no student (a search, a scorer, an exporter, an analysis).

        A tool has ``tiny_run(seed) -> {name: number or text}``, its figures on a small input. Any other system has
        ``tiny_job(seed) -> TrainingJob``.
        """
        return not hasattr(self.target, "tiny_job")

    @property
    def summary(self) -> str:
        """The first line of the system's docstring."""
        return (self.target.__doc__ or "").strip().partition("\n")[0]


def system(name: str, *, kind: str, card: str | None = None) -> Callable[[Any], Any]:
    """Mark a class or function as the system ``name``; the mark is all: listing the folder finds it.

    Raises:
        InputError: ``kind`` is not one of :data:`KINDS`.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r} of system {name!r}", remedy=did_you_mean(kind, list(KINDS)))

    def mark(target: Any) -> Any:
        target.system_entry = SystemEntry(name, kind, card or name, target)
        return target

    return mark


def _modules(package: str) -> Iterator[Any]:
    root = importlib.import_module(package)
    for found in pkgutil.iter_modules(root.__path__):
        if not found.name.startswith("_"):
            yield found.name, package


def systems(package: str = "tutelage.systems") -> dict[str, SystemEntry]:
    """Every system in ``package``, by name, in the order of the folder."""
    entries: dict[str, SystemEntry] = {}
    for module_name, home in _modules(package):
        module = importlib.import_module(f"{home}.{module_name}")
        for target in vars(module).values():
            entry = vars(target).get("system_entry") if hasattr(target, "__dict__") else None
            if isinstance(entry, SystemEntry) and f"{target.__module__}.".startswith(f"{module.__name__}."):
                entries[entry.name] = entry
    return entries


def find(name: str, package: str = "tutelage.systems") -> SystemEntry:
    """The system ``name``.

    Raises:
        InputError: no such system; the message offers the nearest names.
    """
    known = systems(package)
    if name not in known:
        raise InputError(f"unknown system {name!r}", remedy=did_you_mean(name, list(known)))
    return known[name]
