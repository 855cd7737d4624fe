"""Load a saved module of any class.

module = tutelage.load("folder")
module = tutelage.load("folder", Color)  # a class of your own
"""

from __future__ import annotations

from pathlib import Path

from tutelage.errors import InputError, did_you_mean
from tutelage.modules import hf
from tutelage.modules.detection import Loc
from tutelage.modules.pretrained.efficientnet import ImageNetClassifier
from tutelage.modules.pretrained.nanodet import NanoDet
from tutelage.modules.visual_module import VisualModule, read_metadata
from tutelage.modules.vqa import Verify, Vqa


def module_classes() -> list[type[VisualModule]]:
    """Every class of module of this library that can be saved."""
    return [Loc, Vqa, Verify, ImageNetClassifier, NanoDet, *hf.classes()]


def load(folder: str | Path, *classes: type[VisualModule]) -> VisualModule:
    """Load a module that :meth:`VisualModule.save` or :meth:`VisualModule.save_pretrained` wrote.

    Args:
        folder: The module's folder.
        classes: Your own classes of modules, besides those of this library.

    Raises:
        InputError: ``folder`` is no module folder, its class is not known, or its weights are absent or broken.
        StaleError: the weights are not those it was saved with.
    """
    file, metadata = read_metadata(folder)
    known = {kind.__name__: kind for kind in (*module_classes(), *classes)}
    if metadata["class"] not in known:
        name = metadata["class"]
        remedy = f"if it is your own, give its class: load(folder, {name}); {did_you_mean(name, list(known))}"
        raise InputError(f"unknown class of module {name!r}", where=file, remedy=remedy)
    return known[metadata["class"]].from_metadata(file, metadata)
