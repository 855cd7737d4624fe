"""LoRA as the package peft makes it: for transformers models, whose layers and habits it knows."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar

import torch
from torch import nn

from tutelage.errors import InputError, MissingExtra
from tutelage.modules.visual_module import VisualModule
from tutelage.networks.lora import untied_layers
from tutelage.sdvp.continual.base import ContinualStrategy
from tutelage.seeds import derive

ADAPTER_PREFIX = "lora_"


@dataclass(frozen=True)
class PeftLoRA(ContinualStrategy):
    """Low-rank updates beside the linear layers and convolutions whose names match ``targets`` (patterns as in file names;
    the default is every one), trained alone and merged at the end: the taught module is a plain one.

    ``lora`` does the same without a package, by torch's parametrisations. This one leaves the frozen weights alone in the
    forward pass (``W x + (alpha / rank) B A x``), which saves the memory of a merged weight a step; ``variant`` is one of
    peft's: ``plain``, ``rslora`` (scale alpha / sqrt(rank)), ``dora`` (magnitudes apart).
    """

    name: ClassVar[str] = "peft"
    hides_weights: ClassVar[bool] = True
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("*",)
    variant: str = "plain"

    def prepare(self, student: nn.Module, module: VisualModule) -> nn.Module:
        """The student with peft's parts in it; everything else is frozen.

        Raises:
            MissingExtra: peft is not installed.
            InputError: no layer matches, or an unknown variant.
        """
        try:
            import peft
        except ImportError:
            raise MissingExtra("peft", "hf") from None
        if self.variant not in ("plain", "rslora", "dora"):
            raise InputError(f"unknown variant {self.variant!r}", where="retain.peft", remedy="plain, rslora or dora")
        known = [name for name, layer in untied_layers(student) if getattr(layer, "groups", 1) == 1]
        layers = [name for name in known if any(fnmatch(name, pattern) for pattern in self.targets)]
        if not layers:
            message = f"no layer of {module.name} matches {', '.join(self.targets)}"
            raise InputError(message, where="retain.peft", remedy=f"its layers: {', '.join(known[:5]) or 'none'} …")
        student.requires_grad_(False)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=layers,
            use_rslora=self.variant == "rslora",
            use_dora=self.variant == "dora",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "peft", module.name) % 2**31)
            peft.inject_adapter_in_model(config, student)
        return student

    def is_trainable(self, name: str) -> bool:
        """The added parts alone."""
        return ADAPTER_PREFIX in name

    def finish(self, student: nn.Module) -> nn.Module:
        """The student with the parts merged into its weights, under its own names."""
        for name, layer in [(n, m) for n, m in student.named_modules() if hasattr(m, "get_base_layer")]:
            layer.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(student.get_submodule(parent), last, layer.get_base_layer())
        return student.requires_grad_(True)
