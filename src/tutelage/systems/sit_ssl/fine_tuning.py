"""A pre-trained SiT as a classifier, and how it is fine-tuned."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.errors import InputError
from tutelage.networks.layers import init_weights
from tutelage.networks.vit import VisionTransformer


class SiTClassifier(nn.Module):
    """Classes from a copy of a pre-trained ViT; images [B, C, H, W] -> ``logits`` [B, classes] and those of each head.

    With a rotation and a contrast token each has a linear head, and the prediction is the mean of their logits; with a class token,
    as in the later revision, an MLP reads it beside the mean of the patches (hidden width and GELU: our choice).

    Raises:
        InputError: a network with neither.
    """

    def __init__(self, vit: VisionTransformer, classes: int):
        super().__init__()
        names = tuple(getattr(vit, "tokens", ()))
        if not isinstance(vit, VisionTransformer) or not ({"rotation", "contrast"} <= set(names) or "class" in names):
            raise InputError(f"{type(vit).__name__} has no tokens to read", where="vit", remedy="take an export of SiT: sit_vit()")
        if classes < 2:
            raise InputError(f"{classes} classes", where="classes", remedy="2 or more")
        self.vit = copy.deepcopy(vit)
        if "class" in names:
            self.heads = nn.ModuleDict(
                {"mlp": nn.Sequential(nn.Linear(2 * vit.dim, vit.dim), nn.GELU(), nn.Linear(vit.dim, classes))}
            )
        else:
            self.heads = nn.ModuleDict({name: nn.Linear(vit.dim, classes) for name in ("rotation", "contrast")})
        init_weights(self.heads)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The logits."""
        states = self.vit.forward_features(images)
        if "mlp" in self.heads:
            read = torch.cat([states["class"][:, 0], states["patches"].mean(1)], 1)
            return {"logits": self.heads["mlp"](read)}
        found = {name: head(states[name][:, 0]) for name, head in self.heads.items()}
        return {"logits": torch.stack(list(found.values())).mean(0), **found}


class SiTFineTuning(Method):
    """Cross-entropy of each head of a :class:`SiTClassifier`, summed; of the logits where there is one head."""

    needs_teacher = False
    needs_labels = True

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """A term for each head."""
        named = {name: value for name, value in student.items() if name != "logits"} or {"logits": student["logits"]}
        return {name: losses.cross_entropy(value, batch.labels, batch.weights) for name, value in named.items()}
