"""From the names of retain options to the options of a stage."""

from __future__ import annotations

from dataclasses import replace

from tutelage.sdvp.compile import SdvpOptions
from tutelage.sdvp.continual.base import Examples
from tutelage.sdvp.continual.registry import parse


def with_strategy(text: str, options: SdvpOptions = SdvpOptions(), examples: Examples | None = None) -> SdvpOptions:  # noqa: B008  (frozen)
    """``options`` with the retain options that ``text`` names: ``self_distill``, ``none``, ``ewc+lora`` …

    Without ``self_distill``, lambda is 0. ``examples``: gold-labelled calls of old tasks by module, for ``labelled``.

    Raises:
        InputError: an unknown name.
    """
    retain = parse(text, examples)
    loss = options.loss if retain.uses_self_distillation else replace(options.loss, self_weight=0.0)
    return replace(options, strategy=retain, replay=retain.reads_inputs, loss=loss)
