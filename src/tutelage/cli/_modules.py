"""What is taught and who teaches, on the command line: modules from a folder or embedded ones, teachers by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.programs.types import Module


def load_modules(folder: Path | None, seed: int, quick: bool, module_names: Sequence[str] = ()) -> dict[str, Module]:
    """Symbolic modules, those saved in ``folder``, those that ``module_names`` names, and embedded ones in
    place of what is missing."""
    from tutelage.cli._programs import load_module, with_toy_modules
    from tutelage.errors import InputError
    from tutelage.modules.loading import load
    from tutelage.modules.symbolic import symbolic_modules

    if folder is not None and not folder.is_dir():
        raise InputError("no such folder", where=folder, remedy="give the folder that `tutelage sdvp train` wrote")
    saved = [load(place.parent) for place in sorted(folder.glob("*/config.json"))] if folder is not None else []
    if folder is not None and not saved:
        raise InputError("no saved module here", where=folder, remedy="a module is a folder NAME with config.json and weights")
    networks: dict[str, Module] = {module.name: module for module in (*saved, *map(load_module, module_names))}
    return {**symbolic_modules(), **with_toy_modules(networks, seed, quick)}


def parse_teacher(text: str, seed: int, quick: bool) -> tuple[str, Any]:
    """MODULE=TEACHER as a module's name and its teacher."""
    from tutelage import storage
    from tutelage.cli._programs import load_module
    from tutelage.errors import InputError
    from tutelage.modules.hf import PREFIX
    from tutelage.modules.vqa import Vqa
    from tutelage.sdvp import toy_modules
    from tutelage.sdvp.teachers import teacher_from_module, verify_teacher_from_vqa

    name, _, who = text.partition("=")
    if not name or not who:
        raise InputError(f"not MODULE=TEACHER: {text!r}", where="--teacher", remedy="VQA=color, or VQA=folder/of/a/module")
    if who in ("color", "loc", "easy"):
        specialist = toy_modules.load_or_train(seed, who, storage.ContentStore(storage.cache_home() / "modules"), quick)
    else:
        specialist = load_module(text if who.startswith(PREFIX) else who)
    if name == "VERIFY" and isinstance(specialist, Vqa):
        return name, verify_teacher_from_vqa(specialist)
    if specialist.name != name:
        raise InputError(f"{who} is a {specialist.name}, not a {name}", where="--teacher", remedy=f"{specialist.name}={who}")
    return name, teacher_from_module(specialist)
