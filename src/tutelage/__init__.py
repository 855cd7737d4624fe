"""Tutelage teaches models with models.

The public names are loaded when they are first used, so that ``import tutelage`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "TutelageError": "tutelage.errors",
    "Image": "tutelage.programs.values",
    "Box": "tutelage.programs.values",
    "module": "tutelage.modules.function_module",
    "load": "tutelage.modules.loading",
    "distill": "tutelage.distillation.api",
    "image_folder": "tutelage.distillation.data.sources",
    "Preprocessing": "tutelage.distillation.preprocessing",
    "PreprocessedTeacher": "tutelage.distillation.teacher_wrappers",
    "VisualAgent": "tutelage.agent",
}
_PACKAGES = ("sdvp", "distillation", "programs", "modules", "datasets", "systems")

__all__ = ["__version__", *_HOMES, *_PACKAGES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"tutelage.{name}")
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
