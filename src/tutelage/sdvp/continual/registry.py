"""The continual-learning strategies by name."""

from __future__ import annotations

from tutelage.errors import InputError, did_you_mean
from tutelage.sdvp.continual.base import (
    L2SP,
    CombinedStrategy,
    ContinualStrategy,
    Examples,
    Freeze,
    LabelledReplay,
    SelfDistill,
)
from tutelage.sdvp.continual.ewc import EWC
from tutelage.sdvp.continual.low_rank import Adapter, LoRA
from tutelage.sdvp.continual.peft_lora import PeftLoRA


def strategies() -> dict[str, type[ContinualStrategy]]:
    """Every strategy by the name that options use."""
    known = (ContinualStrategy, SelfDistill, L2SP, Freeze, LabelledReplay, EWC, LoRA, Adapter, PeftLoRA)
    return {kind.name: kind for kind in known}


def parse(text: str, examples: Examples | None = None) -> ContinualStrategy:
    """The options that ``text`` names, joined by ``+``: ``none``, ``self_distill``, ``ewc+lora`` …

    Raises:
        InputError: an unknown name; the message offers the nearest.
    """
    kinds = strategies()
    names = [word.strip() for word in text.split("+")]
    for name in names:
        if name not in kinds:
            raise InputError(f"unknown retain option {name!r}", where="retain", remedy=did_you_mean(name, list(kinds)))
    options = tuple(kinds[name].build(examples or {}) for name in names)
    return options[0] if len(options) == 1 else CombinedStrategy(options)
