"""The modules, parsers and teachers that options name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.cli._options import PRETRAINED, TOY, Dsl
from tutelage.cli._renamed import RENAMED
from tutelage.cli._user_code import is_user_code, user_module, user_object
from tutelage.errors import InputError, did_you_mean
from tutelage.terminal import progress

if TYPE_CHECKING:
    from tutelage.programs.types import Module, Signature
    from tutelage.programs.values import Image
    from tutelage.programs.viper import Parser as ViperParser
    from tutelage.programs.visprog import Parser as VisProgParser

TOY_MODULES = ("LOC", "VQA", "VERIFY")
MIN_PHOTO_SIDE = 96
"""An image whose shorter side has at least this many pixels is taken for a photograph: synthetic scenes have 48, easy-VQA 64."""


def load_module(text: str) -> Any:
    """The module that ``--module`` names.

    Raises:
        MissingExtra, InputError, StaleError: it cannot be loaded.
    """
    from tutelage.modules import hf
    from tutelage.modules.loading import load

    name, _, model = text.partition("=")
    if model.startswith(hf.PREFIX):
        return hf.open_module(name, model)
    return user_module(text) if is_user_code(text) else load(text)


def signature_of(text: str) -> tuple[str, Signature]:
    """The name and the signature of the module that ``--module`` names; no weights of a transformers model are read."""
    from tutelage.modules import hf

    name, _, model = text.partition("=")
    module = hf.resolve(name, model)[0] if model.startswith(hf.PREFIX) else load_module(text)
    return module.name, module.signature


def saved_modules(folder: Path, named: Iterable[Any] = ()) -> list[Any]:
    """The modules in the subfolders of ``folder``; some may be of the classes of the modules ``named``.

    Raises:
        InputError: no such folder, or no module in it.
    """
    from tutelage.modules.loading import load
    from tutelage.modules.visual_module import VisualModule

    if not folder.is_dir():
        new = RENAMED.get(str(folder))
        remedy = f"{str(folder)!r} is now {new!r}" if new else did_you_mean(str(folder), [TOY, PRETRAINED])
        raise InputError("no such folder", where=f"--modules {folder}", remedy=remedy)
    classes = [type(module) for module in named if isinstance(module, VisualModule)]
    found = [load(file.parent, *classes) for file in sorted(folder.glob("*/config.json"))]
    if not found:
        raise InputError("no saved module here", where=folder, remedy="a module is a folder NAME with config.json and weights")
    return found


def load_modules(choice: str | None, seed: int, names: Sequence[str] = (), quick: bool = False) -> dict[str, Module]:
    """Modules without a network, those of ``--modules`` (toy, pretrained or a folder), and those of ``--module``.

    Args:
        choice: The value of ``--modules``; None is toy.
        seed: Of the toy modules, which also replace what a folder lacks.
        names: The values of ``--module``; these modules replace others of their names.
        quick: Untrained toy modules.

    Raises:
        MissingExtra, InputError, StaleError: as :func:`load_module` and :func:`saved_modules`.
        AssetNotFound, HashMismatch: a pretrained network is not here, or not the published one.
    """
    import torch

    from tutelage.modules.hf import HfModule
    from tutelage.modules.symbolic import symbolic_modules

    named = [load_module(name) for name in names]
    if not any(isinstance(module, HfModule) for module in named):
        torch.set_num_threads(1)  # a second thread does not pay for networks of this size
    saved = saved_modules(Path(choice), named) if choice not in (None, TOY, PRETRAINED) else []
    networks: dict[str, Module] = {module.name: module for module in (*saved, *named)}
    if choice == PRETRAINED:
        from tutelage.modules.pretrained import pretrained_modules

        return {**symbolic_modules(), **pretrained_modules(), **networks}
    return {**symbolic_modules(), **_with_toy_modules(networks, seed, quick)}


def _with_toy_modules(networks: Mapping[str, Module], seed: int, quick: bool) -> dict[str, Module]:
    from tutelage import storage
    from tutelage.sdvp import toy_modules

    store, modules = storage.ContentStore(storage.cache_home() / "modules"), dict(networks)
    missing = [name for name in TOY_MODULES if name not in networks]
    with progress("toy modules (trained at the first use)", len(missing)) as bar:
        for name in missing:
            modules[name] = toy_modules.load_or_train(seed, name, store, quick)
            bar.advance()
    return modules


def choose_modules(choice: str | None, images: Iterable[Image]) -> tuple[str, str]:
    """The value of ``--modules`` for these images, and a line that says why."""
    if choice is not None:
        return choice, f"modules: {choice}"
    if all(min(image.width, image.height) < MIN_PHOTO_SIDE for image in images):
        return TOY, "modules: toy (a small, synthetic scene)"
    from tutelage import assets
    from tutelage.modules.pretrained import REQUIRED

    absent = [name for name in REQUIRED if assets.asset(name).find() is None]
    if absent:
        remedy = f"tutelage assets fetch {' '.join(absent)}"
        return TOY, f"modules: toy, made for synthetic scenes; this looks like a photograph, for which: {remedy}"
    return PRETRAINED, "modules: pretrained (a photograph)"


def parser_of(dsl: Dsl, modules: Mapping[str, Module]) -> VisProgParser | ViperParser:
    """The parser of programs that call ``modules``."""
    from tutelage.programs.languages import parser_for

    return parser_for(dsl, {name: module.signature for name, module in modules.items()})


def parse_teacher(text: str, seed: int, quick: bool) -> tuple[str, Any]:
    """The module's name and its teacher, from MODULE=TEACHER.

    A teacher is a toy specialist (color, loc, easy), the folder of a saved module, ``hf:MODEL``, or ``FILE.py:NAME``: a
    module, or a function from a list of calls to a list of labels.

    Raises:
        InputError: not of this form, or a module of another name.
    """
    from tutelage import storage
    from tutelage.modules.hf import PREFIX
    from tutelage.modules.visual_module import VisualModule
    from tutelage.modules.vqa import Vqa
    from tutelage.sdvp import toy_modules
    from tutelage.sdvp.teachers import ModuleTeacher, from_callable, teacher_from_module, verify_teacher_from_vqa

    name, _, source = text.partition("=")
    if not name or not source:
        raise InputError(f"not MODULE=TEACHER: {text!r}", where="--teacher", remedy="VQA=color, or VQA=folder/of/a/module")
    if source in ("color", "loc", "easy"):
        specialist = toy_modules.load_or_train(seed, source, storage.ContentStore(storage.cache_home() / "modules"), quick)
    elif is_user_code(source):
        specialist = user_object(source)
        if not isinstance(specialist, VisualModule):
            if isinstance(specialist, ModuleTeacher):
                return name, specialist
            version = storage.fingerprint(source, Path(source.rpartition(":")[0]).read_text(encoding="utf-8"))
            return name, replace(from_callable(specialist, source), version=version)
    else:
        specialist = load_module(text if source.startswith(PREFIX) else source)
    if name == "VERIFY" and isinstance(specialist, Vqa):
        return name, verify_teacher_from_vqa(specialist)
    if specialist.name != name:
        raise InputError(f"{source} is a {specialist.name}, not a {name}", where="--teacher", remedy=f"{specialist.name}={source}")
    return name, teacher_from_module(specialist)
