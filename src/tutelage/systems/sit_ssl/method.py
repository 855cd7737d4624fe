"""Pre-train a vision transformer on a few thousand images without labels, then read it, or fine-tune it::

    import tutelage
    from tutelage.systems.sit_ssl import SiTClassifier, SiTFineTuning, sit_vit

    vit = sit_vit("small", image_size=224)
    vit = tutelage.distill(vit, None, images, method="sit-ssl", epochs=500, lr=5e-4, weight_decay=0.05).student
    vit.forward_features(images[:8])["patches"]  # what it learned; tutelage.distillation.probes reads it
    network = tutelage.distill(SiTClassifier(vit, 10), None, labelled, method=SiTFineTuning(), epochs=50).student

In a recipe the method is ``method: sit-ssl``, with the options below. Images are float [N, C, H, W], square where they are turned.

Each step makes two crops of every image, turns each by a random quarter (counter-clockwise, label k = k quarters), corrupts both
(a grey and a blurred rectangle, blocks of noise and of other images), and runs the network once over all 2B. Three
heads on its last states give three losses, against the clean, turned crops::

    reconstruction  mean |painted - clean| over all pixels; each patch token paints its own patch
    rotation        cross-entropy of the turn, from the rotation token
    contrast        NT-Xent of the two views among 2B, cosine, temperature 0.5, from the contrast token
    L = sum_k a_k exp(-s_k) L_k + s_k / 2,  a = 0.5, 1, 1,  s_k learned from 1: at rest s_k = log(2 a_k L_k)

``variant="gmml"`` is the later revision: groups of pixels are masked, the L1 error counts masked pixels alone, there is no
rotation, and the contrast compares a projection of the class token with that of a moving average of network and head on the
clean other view; ``L = contrast + reconstruction_weight * L1``. It is what the published repository holds today.

Inside SDVP: start weights for a ViT module from a few thousand unlabelled crops, before its stepwise distillation.

Limits: networks are ``tutelage.networks.vit.VisionTransformer`` (of any size) with the tokens named below. A token's place in the
position table is part of the token itself. Views are made on the CPU, in the training process. In short runs on small images the
rotation loss may stay at chance: warm up, and leave out mirror images (``flip=0``) and softened rectangles (``soften=False``). The
published tables (224 pixels, 500 epochs) are not reproduced.

Source: "SiT: Self-supervised vIsion Transformer" (Atito, Awais, Kittler, 2021, arXiv 2104.03602). The paper leaves the strength of
augmentation to its code; the defaults of ``crop`` and ``flip`` are common ones (our choice).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import schedule
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Output, Terms
from tutelage.distillation.multi_view import View
from tutelage.distillation.outputs import unwrap_model
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_pair, check_range
from tutelage.networks.layers import init_weights
from tutelage.networks.vit import VisionTransformer
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.sit_ssl.corruption import corrupt, mask_groups, replace_blocks
from tutelage.systems.sit_ssl.losses import TaskWeights, masked_l1, momentum_contrast, nt_xent

SIZES: Mapping[str, tuple[int, int, int]] = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
TOKENS: Mapping[str, tuple[str, ...]] = {"sit": ("rotation", "contrast"), "gmml": ("class",)}


def sit_vit(
    size: str = "small",
    image_size: int = 224,
    patch_size: int | None = None,
    in_chans: int = 3,
    variant: str = "sit",
    drop_path: float = 0.1,
) -> VisionTransformer:
    """A network for :class:`SiT`: a plain ViT with the variant's tokens before its patches, and no head.

    Args:
        size: ``tiny``, ``small`` or ``base`` (widths 192, 384, 768; 12 blocks).
        image_size: side in pixels.
        patch_size: side; None: 16, below 96 pixels 4.
        in_chans: channels.
        variant: ``sit`` (a rotation token and a contrast token) or ``gmml`` (a class token).
        drop_path: rate of stochastic depth of the last block.

    Raises:
        InputError: an unknown size or variant.
    """
    for value, known, where in ((size, SIZES, "size"), (variant, TOKENS, "variant")):
        if value not in known:
            raise InputError(f"no {where} {value!r}", where=where, remedy=did_you_mean(value, list(known)))
    dim, depth, heads = SIZES[size]
    patch = patch_size or (16 if image_size >= 96 else 4)
    tokens = dict.fromkeys(TOKENS[variant], 1)
    return VisionTransformer(
        image_size, patch, dim, depth, heads, in_chans, tokens=tokens, pool=TOKENS[variant][-1], drop_path=drop_path
    )


class PatchPainter(nn.Module):
    """Each token paints its own patch: patch states [B, N, dim] -> images [B, channels, H, W].

    ``hidden``: so many layers of Linear and GELU before (the later revision: 3).
    """

    def __init__(self, dim: int, channels: int, patch_size: Sequence[int], hidden: int = 0):
        super().__init__()
        layers = [layer for _ in range(hidden) for layer in (nn.Linear(dim, dim), nn.GELU())]
        self.before = nn.Sequential(*layers)
        size = (patch_size[0], patch_size[1])
        self.paint = nn.ConvTranspose2d(dim, channels, size, size)
        init_weights(self)

    def forward(self, patches: Tensor, grid: Sequence[int]) -> Tensor:
        """The images; ``grid``: rows and columns of patches."""
        return self.paint(self.before(patches).transpose(1, 2).unflatten(2, tuple(grid)))


def contrast_head(dim: int, hidden: int, embedding: int) -> nn.Sequential:
    """The later revision's: Linear, BN, ReLU, Linear, BN, GELU, Linear, BN without scale and shift (hidden 4096, out 256)."""
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.GELU(),
        nn.Linear(hidden, embedding),
        nn.BatchNorm1d(embedding, affine=False),
    )


@system("sit-ssl", kind="pretraining")
class SiT(Method):
    """Self-supervised vision transformer: reconstruct corrupted crops, tell their turns, find the other view.

    Published training: AdamW, lr 5e-4 (1e-3 for STL-10), decay 0.05, cosine to 5e-6, 5 epochs of warm-up, batch 72, 501 epochs,
    drop path 0.1, average of weights 0.99996. Later: lr 5e-4 batch / 256, decay 0.04 to 0.1, clip 3, 800 epochs, 10 of warm-up.

    Raises:
        InputError: a network without the variant's tokens, images that patches do not cover or that cannot be turned, batches
            of one, or options out of range.
    """

    needs_teacher = False

    @dataclass(frozen=True)
    class Config:
        """``rotation``, ``contrast``: off for reconstruction alone (``sit``; with one task, its weight is learned too).
        ``crop``: least and most area of a view. ``soften``: the grey and the blurred rectangle, which at a few dozen pixels leave
        little to see. ``embedding``, ``temperature``: None: 512 and 0.5, ``gmml`` 256 and 0.2.
        ``weighting``: how ``sit`` adds its losses. ``weights_lr``: the rate of the s_k over that of the network; Adam moves each
        by at most its rate a step, so that short runs need 20 to 60 (our choice). For ``gmml``: ``mask``, the share of
        pixels; ``align``, the step of blocks, None: a pixel; ``reconstruction_weight`` (5 on small sets); ``hidden``, of the
        contrast head; ``momentum``, of the teacher, rising to 1 along half a cosine."""

        variant: Literal["sit", "gmml"] = "sit"
        rotation: bool = True
        contrast: bool = True
        crop: tuple[float, float] = (0.4, 1.0)
        flip: float = 0.5
        colour: float = 0.0
        grey: float = 0.0
        soften: bool = True
        embedding: int | None = None
        temperature: float | None = None
        weighting: Literal["exponential", "squared"] = "exponential"
        weights_lr: float = 1.0
        mask: float = 0.5
        align: int | None = None
        reconstruction_weight: float = 1.0
        hidden: int = 4096
        momentum: float = 0.996

        def __post_init__(self) -> None:
            if self.variant not in TOKENS:
                raise InputError(f"no variant {self.variant!r}", where="variant", remedy="sit or gmml")
            if self.weighting not in ("exponential", "squared"):
                raise InputError(f"no weighting {self.weighting!r}", where="weighting", remedy="exponential or squared")
            check_pair("crop", self.crop, 1e-6, 1)
            for name in ("flip", "colour", "grey", "momentum"):
                check_range(name, getattr(self, name), 0, 1)
            check_range("mask", self.mask, 1e-6, 0.95)
            check_range("weights_lr", self.weights_lr, 1e-6, 1e6)
            check_range("reconstruction_weight", self.reconstruction_weight, 0, 1e6)
            check_range("hidden", self.hidden, 1, 10**6, whole=True)
            if self.temperature is not None:
                check_range("temperature", self.temperature, 1e-6, 1e6)
            if self.embedding is not None:
                check_range("embedding", self.embedding, 1, 10**6, whole=True)

    @property
    def later(self) -> bool:
        """Whether this is the later revision."""
        return self.config.variant == "gmml"

    @property
    def view(self) -> View:
        """How each of the two views is made."""
        c = self.config
        turn = c.rotation and not self.later
        return View(2, None, Augmentation(resize=tuple(c.crop), flip=c.flip, colour=c.colour, turn=turn), grey=c.grey)

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Makes the heads, and in the later revision the teacher; see :class:`Method`."""
        c, vit = self.config, self._network(student)
        images = example.inputs
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise InputError("the views need images, float [B, C, H, W]", where="inputs", remedy="give them as one tensor")
        height, width = images.shape[2:]
        patch = vit.patch_embed.patch_size
        if len(patch) != 2 or height % patch[0] or width % patch[1]:
            raise InputError(
                f"images of {height} x {width} pixels are not covered by patches of {patch}",
                where="inputs",
                remedy="resize them, or take a network with another patch_size",
            )
        if len(example) < 2:
            raise InputError("a batch of one has nothing to contrast", where="batch_size", remedy="at least 2")
        channels = images.shape[1]
        if self.later:
            self.painter = PatchPainter(vit.dim, channels, patch, hidden=3)
            if c.contrast:
                self.projection = contrast_head(vit.dim, c.hidden, c.embedding or 256)
                self.momentum_network = nn.ModuleDict({"vit": copy.deepcopy(vit), "head": copy.deepcopy(self.projection)})
                self.momentum_network.requires_grad_(False)
            return
        if c.rotation and height != width:
            raise InputError(
                f"{height} x {width} pixels cannot be turned", where="inputs", remedy="square images, or rotation=False"
            )
        self.painter = PatchPainter(vit.dim, channels, patch)
        factors = {"reconstruction": 0.5}
        if c.rotation:
            self.turn_head, factors["rotation"] = nn.Linear(vit.dim, 4), 1.0
            init_weights(self.turn_head)
        if c.contrast:
            self.projection, factors["contrast"] = nn.Sequential(nn.Linear(vit.dim, c.embedding or 512)), 1.0
            init_weights(self.projection)
        self.task_weights = TaskWeights(factors, c.weighting)

    def _network(self, student: nn.Module) -> VisionTransformer:
        vit, wanted = unwrap_model(student), TOKENS[self.config.variant]
        if not isinstance(vit, VisionTransformer) or any(len(vit.tokens.get(name, ())) != 1 for name in wanted):
            raise InputError(
                f"{type(vit).__name__} is no vision transformer with the tokens {', '.join(wanted)}",
                where="student",
                remedy=f'sit_vit(variant="{self.config.variant}"), or VisionTransformer(tokens={dict.fromkeys(wanted, 1)})',
            )
        return vit

    def two_views(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(clean, corrupted) views [2B, C, H, W], first views before second, the mask [2B, H, W], and the turns [2B]."""
        seeds = torch.randint(2**31, (len(images),), generator=generator)
        made, facts = self.view.make(images.cpu(), seeds, 0)
        clean = made.to(images.device).transpose(0, 1)
        corrupted, masks = (torch.cat(parts) for parts in zip(*(self._corrupt(view, generator) for view in clean)))
        return clean.flatten(0, 1), corrupted, masks, facts["turns"].T.flatten().to(images.device)

    def _corrupt(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.later:
            return mask_groups(images, generator, self.config.mask, self.config.align or 1)
        return corrupt(images, generator) if self.config.soften else replace_blocks(images, generator)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """What the heads say of the corrupted views; and what is right, in place of a teacher's answer."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        clean, corrupted, mask, turns = self.two_views(batch.inputs, generator)
        target = {"images": clean, "mask": mask, "turns": turns}
        if self.later and self.config.contrast:
            with torch.no_grad():
                network = self.momentum_network.train()
                states = self._network(network["vit"]).forward_features(clean)
                target["contrast"] = network["head"](states["class"][:, 0])
        return self.heads(student, corrupted), target

    def heads(self, student: nn.Module, images: Tensor) -> Output:
        """``reconstruction`` [B, C, H, W], ``rotation`` [B, 4] and ``contrast`` [B, D], those that the options name."""
        vit = self._network(student)
        states = vit.forward_features(images)
        patch = vit.patch_embed.patch_size
        grid = [side // part for side, part in zip(images.shape[2:], patch)]
        found = {"reconstruction": self.painter(states["patches"], grid)}
        if hasattr(self, "turn_head"):
            found["rotation"] = self.turn_head(states["rotation"][:, 0])
        if hasattr(self, "projection"):
            found["contrast"] = self.projection(states["class" if self.later else "contrast"][:, 0])
        return found

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``total``; beside it, not added, the losses of the tasks."""
        c = self.config
        terms = {"reconstruction": masked_l1(student["reconstruction"], teacher["images"], teacher["mask"] if self.later else None)}
        if "rotation" in student:
            terms["rotation"] = F.cross_entropy(student["rotation"], teacher["turns"])
        if self.later:
            total = c.reconstruction_weight * terms["reconstruction"]
            if "contrast" in student:
                terms["contrast"] = momentum_contrast(student["contrast"], teacher["contrast"], c.temperature or 0.2)
                total = total + terms["contrast"]
            return {**terms, "total": total}
        if "contrast" in student:
            terms["contrast"] = nt_xent(student["contrast"], c.temperature or 0.5)
        return {**terms, "total": self.task_weights(terms)}

    def loss_weights(self) -> Mapping[str, float]:
        """``total`` alone is descended."""
        there = {"rotation": hasattr(self, "turn_head"), "contrast": hasattr(self, "projection")}
        return {"reconstruction": 0.0} | {name: 0.0 for name, found in there.items() if found}

    def groups(self, student: nn.Module) -> Sequence[Mapping[str, Any]] | None:
        """The learned weights of the tasks at a rate of their own, without decay."""
        if self.later:
            return None
        weights = list(self.task_weights.parameters())
        rest = [p for name, p in self.named_parameters() if not name.startswith("task_weights.") and p.requires_grad]
        return [
            {"params": [*student.parameters(), *rest]},
            {"params": weights, "lr_scale": self.config.weights_lr, "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def after_step(self, student: nn.Module) -> None:
        """The later revision's teacher follows, parameters alone: its batch norm keeps statistics of its own."""
        if not hasattr(self, "momentum_network"):
            return
        momentum = schedule.cosine(self.config.momentum, 1.0)(self.progress.fraction)
        current = [*unwrap_model(student).parameters(), *self.projection.parameters()]
        torch._foreach_lerp_(list(self.momentum_network.parameters()), [p.detach() for p in current], 1 - momentum)

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: a ViT of two blocks on 8x8 images."""
        tokens = {"rotation": 1, "contrast": 1}
        vit = build_with_seed(lambda: VisionTransformer(8, 4, 16, 2, 2, 1, tokens=tokens, pool="contrast"), seed, "vit")
        images = toy_images(seed).inputs
        settings = TrainingSettings(steps=8, batch_size=8, seed=seed)
        return TrainingJob(vit, None, cls(embedding=16, weights_lr=20.0), images, settings, "sit-ssl")
