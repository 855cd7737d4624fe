"""UniFormer: convolution in shallow stages, attention in deep ones, for images and video (Li et al., 2022, arXiv 2201.09450)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.distillation.job import TrainingJob
from tutelage.errors import InputError
from tutelage.networks.layers import LayerNorm2d, drop_path_rates, init_weights
from tutelage.registry import system
from tutelage.systems._backbone import Backbone, Variant
from tutelage.systems.uniformer.blocks import IMAGE, VIDEO, BlockState, ConvForms, GlobalBlock, LocalBlock, pooled_scores, pruned

START = 1e-6
"""Of layer scale."""
WIDTHS = (64, 128, 320, 512)
LIGHT = {"stem": "light", "ratio": 3.0, "light": True}
VARIANTS = {
    "xxs": Variant({"depths": (2, 5, 8, 2), "dims": (56, 112, 224, 448), "head": 28} | LIGHT, 10_215_280, 1.31e9),
    "xs": Variant({"depths": (3, 5, 9, 3), "dims": (64, 128, 256, 512), "head": 32, "drop_path": 0.1} | LIGHT, 16_509_264, 1.94e9),
    "s": Variant({"depths": (3, 4, 8, 3), "drop_path": 0.1}, 21_545_256, 3.64e9),
    "s-plus": Variant({"depths": (3, 5, 9, 3), "head": 32, "stem": "conv", "drop_path": 0.1}, 24_032_552, 4.21e9),
    "b": Variant({"depths": (5, 8, 20, 7), "drop_path": 0.3}, 49_776_552, 8.27e9),
    "b-ls": Variant({"depths": (5, 8, 20, 7), "drop_path": 0.3, "layer_scale": "global"}, 49_796_520, 8.27e9),
    "l": Variant(
        {"depths": (5, 10, 24, 7), "dims": (128, 192, 448, 640), "drop_path": 0.4, "layer_scale": "all"}, 99_462_888, 19.7e9
    ),
}


@system("uniformer", kind="backbone")
class UniFormer(Backbone):
    """UniFormer: one block whose token mixing is a learned local affinity in stages 1 and 2 and attention in 3 and 4.

    Four stages of strides 4, 8, 16 and 32, batch norm, mean over places, linear head. Height and width are any multiples
    of 32. ``video=True``: clips [B, in_chans, T, H, W], kernels in time too (3 and 5), T halved once at the start;
    attention over all tokens, or first over time, then over places (``attention="split"``); :meth:`inflate` takes the
    weights of an image network.

    ``light``: a class token joins the patches in stage 3, and blocks after the first attend with half of the patches and
    one merged from the others (:func:`pruned`). ``token_labels``: a head on every last place, whose maximum is added by half
    at test time. ``all_heads``: the network gives these heads beside its logits, and :class:`TokenLabels` trains them:
    ``distill(create("uniformer:l", token_labels=True, all_heads=True), DenseLabeler(teacher), data, TokenLabels)``.

    Published: ImageNet-1k top-1 80.6 (XXS), 82.0 (XS), 82.9 (S), 83.4 (S+), 83.8 (B), 83.9 (B with layer scale), 85.6 %
    (L, token labels). The published 12.6 GMACs of L do not fit its depths and widths: counted, they are 19.7.
    """

    VARIANTS = VARIANTS

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = (3, 4, 8, 3),
        dims: Sequence[int] = WIDTHS,
        head: int = 64,
        ratio: float = 4.0,
        stem: Literal["patch", "conv", "light"] = "patch",
        layer_scale: Literal["none", "global", "all"] = "none",
        layout: str = "llgg",
        light: bool = False,
        keep: float = 0.5,
        token_labels: bool = False,
        all_heads: bool = False,
        video: bool = False,
        attention: Literal["joint", "split"] = "joint",
        drop_path: float = 0.0,
    ):
        """``layout``: ``l`` or ``g`` a stage, local or global; ``head``: the width of an attention head.

        Raises:
            InputError: options that do not go together; the message says what fits.
        """
        _fit(depths, dims, head, layout, light, keep, video, attention, stem)
        super().__init__(
            num_classes,
            in_chans,
            [(f"stages.{i}", 4 * 2**i, width) for i, width in enumerate(dims)],
            spatial=3 if video else 2,
        )
        self.light, self.keep, self.dims, self.all_heads = light, keep, tuple(dims), all_heads
        forms = VIDEO if video else IMAGE
        before = [in_chans, *dims]
        self.embeddings = nn.ModuleList(_embedding(forms, before[i], before[i + 1], i == 0, stem) for i in range(len(dims)))
        self.stages = nn.ModuleList()
        for kind, width, rates in zip(layout, dims, drop_path_rates(drop_path, depths)):
            scale = START if layer_scale == "all" or (layer_scale == "global" and kind == "g") else None
            self.stages.append(
                nn.Sequential(
                    *(
                        LocalBlock(forms, width, ratio, rate, scale)
                        if kind == "l"
                        else GlobalBlock(forms, width, head, ratio, rate, scale, attention == "split")
                        for rate in rates
                    )
                )
            )
        self.norm, self.head = forms.norm(dims[-1]), nn.Linear(dims[-1], num_classes)
        self.patch_head = nn.Linear(dims[-1], num_classes) if token_labels else None
        if light:
            self.token, self.widen = nn.Parameter(torch.zeros(1, 1, dims[2])), nn.Linear(dims[2], dims[3])
            self.token_norm, self.token_head = nn.LayerNorm(dims[3]), nn.Linear(dims[3], num_classes)
        init_weights(self, convolutions=False)
        for module in self.modules():
            if isinstance(module, GlobalBlock) and module.split:  # the time branch adds nothing at the start
                nn.init.zeros_(module.time.out.weight)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """The maps of all stages, the finest first."""
        return self._run(images)[0]

    def forward_head(self, maps: Tensor) -> Tensor:
        """Batch norm, mean over places, linear head; with ``token_labels``, half of the largest place's logits at test."""
        maps = self.norm(maps)
        logits = self.head(maps.flatten(2).mean(2))
        if self.patch_head is None or self.training:
            return logits
        return logits + 0.5 * self.patch_head(maps.flatten(2).transpose(1, 2)).amax(1)

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:  # type: ignore[override]
        """Logits [B, num_classes]; with ``all_heads`` those of :meth:`heads`, whose ``logits`` at test are the same."""
        if not self.all_heads:
            return super().forward(images)
        found = self.heads(images)
        if "patches" in found and not self.training:
            found["logits"] = found["logits"] + 0.5 * found["patches"].amax(1)
        return found

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """``logits`` [B, K] of the mean alone; ``token`` [B, K] of the light form's class token; ``patches`` [B, places, K]."""
        self.check(images)
        maps, token = self._run(images)
        last = self.norm(maps[-1]).flatten(2)
        found = {"logits": self.head(last.mean(2))}
        if token is not None:
            found["token"] = self.token_head(self.token_norm(token[:, 0]))
        if self.patch_head is not None:
            found["patches"] = self.patch_head(last.transpose(1, 2))
        return found

    def _run(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The stages' maps and the light form's class token; the scores live in this call alone."""
        maps, token, scores = [], None, None
        for i, (embed, stage) in enumerate(zip(self.embeddings, self.stages)):
            x = embed(x)
            if self.light and i >= 2:
                token = self.token.expand(len(x), -1, -1) if token is None else self.widen(token)
                if scores is not None:
                    scores = pooled_scores(scores, maps[-1].shape[2:])
                carried = BlockState(x, token, scores)
                for block in stage:
                    carried = pruned(block, carried, self.keep)
                x, token, scores = carried
            else:
                x = stage(x)
            maps.append(x)
        return maps, token

    @torch.no_grad()
    def inflate(self, image: UniFormer) -> UniFormer:
        """Take the weights of an image network: kernels are copied along time and divided by its length there.

        What only the video form has (attention over time) is left as it is. Returns this network.

        Raises:
            InputError: this is no video network, or the other is not its image form; the message names the weight.
        """
        own, other = self.state_dict(), image.state_dict()
        if self.spatial != 3 or image.spatial != 2:
            raise InputError("weights go from an image network to a video network", where="inflate")
        for name, value in own.items():
            if name not in other and ".time" in name:
                continue
            if name not in other or not _inflated_shape(other[name], value):
                raise InputError(f"{name} does not fit", where="inflate", remedy="give the image form of this network")
            value.copy_(other[name] if value.ndim < 5 else other[name][:, :, None].expand_as(value) / value.shape[2])
        return self

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of two seconds."""
        return cls.toy_job(seed, 1, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), head=8, ratio=2.0)


def _inflated_shape(flat: Tensor, deep: Tensor) -> bool:
    return flat.shape == (deep.shape if deep.ndim < 5 else deep.shape[:2] + deep.shape[3:])


def _embedding(forms: ConvForms, in_chans: int, out_chans: int, first: bool, stem: str) -> nn.Sequential:
    """What leads into a stage. The strides in time of a convolutional stem are our choice: 2 at its first convolution."""
    if first and stem != "patch":
        begin, end = forms.down(in_chans, out_chans // 2, 3, 2, 3, 2), forms.down(out_chans // 2, out_chans, 3, 2, 3)
        return nn.Sequential(begin, forms.norm(out_chans // 2), nn.GELU(), end, forms.norm(out_chans))
    if stem == "conv":
        return nn.Sequential(forms.down(in_chans, out_chans, 3, 2, 3), forms.norm(out_chans))
    down = forms.down(in_chans, out_chans, 4, 4, 3, 2) if first else forms.down(in_chans, out_chans, 2, 2)
    return nn.Sequential(down, LayerNorm2d(out_chans, 1e-5))


def _fit(
    depths: Sequence[int],
    dims: Sequence[int],
    head: int,
    layout: str,
    light: bool,
    keep: float,
    video: bool,
    attention: str,
    stem: str,
) -> None:
    """Raise an InputError for options that do not go together."""
    whole = [width for width, kind in zip(dims, layout) if kind == "g"]
    known = {
        "attention": (attention, ("joint", "split")),
        "stem": (stem, ("patch", "conv", "light")),
    }
    for where, (value, allowed) in known.items():
        if value not in allowed:
            raise InputError(f"unknown {where} {value!r}", where=where, remedy=f"one of {', '.join(allowed)}")
    if not (len(depths) == len(dims) == len(layout) == 4 and set(layout) <= {"l", "g"}):
        raise InputError(f"layout {layout!r}, {len(depths)} depths, {len(dims)} widths", where="layout", remedy="four of each")
    if any(width % head for width in whole):
        raise InputError(f"heads of {head} do not divide {whole}", where="head", remedy="choose a divisor of all of them")
    if light and (layout[2:] != "gg" or video):
        raise InputError("the light form is for images, with global stages 3 and 4", where="light", remedy="layout 'llgg'")
    if not 0 < keep <= 1:
        raise InputError(f"cannot keep {keep} of the patches", where="keep", remedy="above 0, at most 1")
    if attention == "split" and not video:
        raise InputError("only clips have times to attend to", where="attention", remedy="video=True, or attention='joint'")
