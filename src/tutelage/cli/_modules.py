"""What is taught and who teaches, on the command line: modules from a folder or embedded ones, teachers by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.programs.types import Module


def modules_in(folder: Path | None, seed: int, quick: bool, taught: Sequence[str] = ()) -> dict[str, Module]:
    """Symbolic modules, those saved in ``folder``, those that ``taught`` names, and embedded ones in place of what is missing."""
    from tutelage.cli._programs import named, with_embedded
    from tutelage.errors import InputError
    from tutelage.modules.symbolic import symbolic_modules
    from tutelage.modules.visual_module import load

    if folder is not None and not folder.is_dir():
        raise InputError("no such folder", where=folder, remedy="give the folder that `tutelage sdvp train` wrote")
    saved = [load(place.parent) for place in sorted(folder.glob("*/config.json"))] if folder is not None else []
    if folder is not None and not saved:
        raise InputError("no saved module here", where=folder, remedy="a module is a folder NAME with config.json and weights")
    networks: dict[str, Module] = {module.name: module for module in (*saved, *map(named, taught))}
    return {**symbolic_modules(), **with_embedded(networks, seed, quick)}


def teacher_of(text: str, seed: int, quick: bool) -> tuple[str, Any]:
    """MODULE=TEACHER as a module's name and its teacher."""
    from tutelage import storage
    from tutelage.cli._programs import named
    from tutelage.errors import InputError
    from tutelage.modules.vqa import Vqa
    from tutelage.modules.hf import PREFIX
    from tutelage.sdvp import toy_modules
    from tutelage.sdvp.teachers import as_judge, same_skill

    name, _, who = text.partition("=")
    if not name or not who:
        raise InputError(f"not MODULE=TEACHER: {text!r}", where="--teacher", remedy="VQA=color, or VQA=folder/of/a/module")
    if who in ("color", "loc", "easy"):
        specialist = toy_modules.one(seed, who, storage.Store(storage.cache_home() / "modules"), quick)
    else:
        specialist = named(text if who.startswith(PREFIX) else who)
    if name == "VERIFY" and isinstance(specialist, Vqa):
        return name, as_judge(specialist)
    if specialist.name != name:
        raise InputError(f"{who} is a {specialist.name}, not a {name}", where="--teacher", remedy=f"{specialist.name}={who}")
    return name, same_skill(specialist)
