"""Perception modules from transformers models, one file a skill. Needs the extra ``hf``.

``open_module("VQA", "hf:Salesforce/blip-vqa-base@REVISION")`` is a module that both program languages can
call and that a training job can train. Code that comes with a model is never run, and weights are read from safetensors alone.
"""

from __future__ import annotations

from typing import Any

from tutelage.errors import InputError, did_you_mean
from tutelage.modules.hf.base import HfModule
from tutelage.modules.hf.loading import PREFIX, Source, architecture, read_settings

__all__ = ["PREFIX", "HfModule", "Source", "resolve", "classes", "open_module"]


def classes() -> list[type[HfModule]]:
    """Every class of module that wraps a transformers model, those for particular families first."""
    from tutelage.modules.hf.depth import HfDepth
    from tutelage.modules.hf.generative_vqa import Blip2, ChatVqa
    from tutelage.modules.hf.image_text import HfMatch, HfScore, HfVerify
    from tutelage.modules.hf.loc import GroundingDino, HfLoc, Owl, Owlv2
    from tutelage.modules.hf.seg import ClipSeg, HfSeg, Sam
    from tutelage.modules.hf.vqa import Blip, HfVqa, Vilt

    particular = [HfDepth, Vilt, Blip, Blip2, HfMatch, HfVerify, HfScore, Owl, Owlv2, GroundingDino, ClipSeg, Sam]
    return [*particular, HfVqa, ChatVqa, HfLoc, HfSeg]


def open_module(name: str, text: str, **settings: Any) -> HfModule:
    """The module ``name`` (VQA, LOC, MATCH …) from the model that ``text`` names: ``hf:OWNER/NAME@REVISION``, or
    ``hf:FOLDER``. ``settings`` are those of the class's ``Config``: ``answers``, ``threshold``, ``dtype`` …; in words they
    may follow the name, ``?answers=red,green&tokens=5``, and ``answers=@FILE`` reads a line an answer.

    Raises:
        MissingExtra: transformers is not installed.
        InputError: no such model or folder, a family that serves no module of this name, a setting that its class does
            not have, or weights that are absent, unsafe or incomplete.
    """
    kind, config, source = resolve(name, text, **settings)
    return kind.open(config, source)


def resolve(name: str, text: str, **settings: Any) -> tuple[type[HfModule], Any, Source]:
    """The class, the settings and the source of what :func:`open_module` opens, without its weights.

    Raises:
        MissingExtra, InputError: as :func:`open_module`.
    """
    place, _, words = text.partition("?")
    source = Source.read(place)
    names = sorted({kind.name for kind in classes()})
    if name not in names:
        raise InputError(f"no module {name!r} is made from a transformers model", where=text, remedy=did_you_mean(name, names))
    family = architecture(source).model_type
    able = {kind.name: kind for kind in reversed(classes()) if kind.supports(family)}
    if name not in able:
        known = sorted({family for kind in classes() if kind.name == name for family in kind.families})
        remedy = f"it serves {', '.join(sorted(able))}" if able else f"families for {name}: {', '.join(known)}"
        raise InputError(f"a {family} model serves no {name}", where=text, remedy=remedy)
    kind = able[name]
    try:
        given = {**read_settings(words, kind.Config), **settings}
        return kind, kind.Config(source=source.name, revision=source.revision, **given), source
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind.__name__}: {error}", where=text, remedy="check the settings' names and values") from error
