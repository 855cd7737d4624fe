"""From the names of retain options to the options of a stage."""

from __future__ import annotations

from dataclasses import replace

from tutelage.sdvp.compile import Options
from tutelage.sdvp.continual.base import Examples, parse


def retaining(text: str, options: Options = Options(), examples: Examples | None = None) -> Options:  # noqa: B008  (frozen)
    """``options`` with the retain options that ``text`` names: ``self_distill``, ``none``, ``ewc+lora`` …

    Without ``self_distill``, lambda is 0. ``examples``: gold-labelled calls of old tasks by module, for ``labelled``.

    Raises:
        InputError: an unknown name.
    """
    retain = parse(text, examples)
    loss = options.loss if retain.distils else replace(options.loss, keep=0.0)
    return replace(options, retain=retain, replay=retain.reads_inputs, loss=loss)
