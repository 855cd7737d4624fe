"""Perception modules from transformers models, one file a skill. Needs the extra ``hf``.

``opened("VQA", "hf:Salesforce/blip-vqa-base@REVISION")`` is a module that both program languages can call and that a lesson
can teach. Code that comes with a model is never run, and weights are read from safetensors alone.
"""

from __future__ import annotations

from typing import Any

from tutelage.errors import InputError, did_you_mean
from tutelage.modules.hf.base import HfModule
from tutelage.modules.hf.source import Source, architecture


def classes() -> list[type[HfModule]]:
    """Every class of module that wraps a transformers model, those for particular families first."""
    from tutelage.modules.hf import chat, depth, loc, match, seg, vqa  # noqa: F401  (they define the classes)

    found = [kind for kind in HfModule.kinds().values() if kind.name]
    return sorted(found, key=lambda kind: not kind.families)


def opened(name: str, text: str, **settings: Any) -> HfModule:
    """The module ``name`` (VQA, LOC, MATCH …) from the model that ``text`` names: ``hf:OWNER/NAME@REVISION``, or
    ``hf:FOLDER``. ``settings`` are those of the class's ``Config``: ``answers``, ``threshold``, ``dtype`` …

    Raises:
        MissingExtra: transformers is not installed.
        InputError: no such model or folder, a family that serves no module of this name, a setting that its class does
            not have, or weights that are absent, unsafe or incomplete.
    """
    source = Source.read(text)
    family = architecture(source).model_type
    able = [kind for kind in classes() if kind.name == name and kind.serves(family)]
    if not able:
        serving = sorted({kind.name for kind in classes() if kind.serves(family)})
        known = sorted({f for kind in classes() if kind.name == name for f in kind.families})
        if not known:
            names = sorted({kind.name for kind in classes() if kind.name})
            raise InputError(f"no module {name!r} is made from a transformers model", where=text, remedy=did_you_mean(name, names))
        raise InputError(
            f"a {family} model serves no {name}",
            where=text,
            remedy=f"it serves {', '.join(serving)}" if serving else f"families for {name}: {', '.join(known)}",
        )
    try:
        config = able[0].Config(source=source.name, revision=source.revision, **settings)
    except TypeError as error:
        raise InputError(f"{able[0].__name__}: {error}", where=text, remedy="check the names of the settings") from error
    return able[0].open(config, source)
