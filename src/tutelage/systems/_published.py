"""The training settings that papers publish, ready for :func:`tutelage.distill`, at any batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage import registry
from tutelage.distillation.settings import TrainingSettings, make_settings
from tutelage.errors import InputError, did_you_mean


def trainings(system: str) -> Mapping[str, TrainingSettings]:
    """The published settings of a system by name, ``TRAINING`` of its class; none where the paper's are not given here."""
    return getattr(registry.find(system).target, "TRAINING", {})


def published_settings(name: str, batch_size: int | None = None, **changes: Any) -> TrainingSettings:
    """The settings with which a paper trained: ``"convnext"``, or one of several by name, ``"tinyvit:fine-tuning"``.

    Augmentation is no setting: it belongs to the data. Published cosines that end a little above 0 end at 0 here. What decay
    spares is what the network names in ``no_weight_decay()``.

    Args:
        name: of the system; after a colon, of its settings, by default the first.
        batch_size: another than the published one; the learning rate is scaled with it, linearly.
        changes: single settings in place of the published ones, such as ``epochs=20``.

    Raises:
        InputError: no such system or settings; the message offers the nearest.

    Examples:
        >>> settings = published_settings("convnext", batch_size=256, epochs=20)
        >>> settings.lr, settings.warmup_epochs, settings.ema
        (0.00025, 20.0, 0.9999)
    """
    system, _, which = name.partition(":")
    known = trainings(system)
    if not known or (which and which not in known):
        remedy = did_you_mean(which, list(known)) if known else "write TrainingSettings"
        raise InputError(f"{system} has no settings {which!r}" if known else f"{system} has no settings", where=name, remedy=remedy)
    chosen = known[which or next(iter(known))]
    if batch_size is not None:
        changes = {"batch_size": batch_size, "lr": chosen.lr * batch_size / chosen.batch_size} | changes
    return make_settings(chosen, changes)
