"""An image encoder is trained without labels: it predicts which visual words a slower copy of itself sees::

    from tutelage import distill

    result = distill(network, None, images, "obow", options={"levels": ("layer3", "layer4")}, epochs=200, lr=0.03)
    encoder = result.student

``network``: any network with maps. ``levels`` names its last stages; ``images``: a folder of images of one size,
``TensorData(pixels)`` with pixels [N, C, H, W] in 0..1, or a dataset; labels are not read. Layers above the last level get no
gradient. As a recipe, for ``tutelage distill``::

    method = "obow"
    out = "runs/encoder"

    [student]
    model = "resnet"
    options = { depth = 8, inputs = 1 }

    [data]
    name = "fashion-mnist"
    labels = false

    [options]
    levels = "layer3"
    words = 256
    kappa = 5.0
    crop_size = 20
    patches = 0

``tutelage probe runs/encoder --layer layer3`` then says what simple classifiers read from the encoder: nearest neighbours, a linear
probe on all labels, and one on a few labels a class.

Source: "OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised Learning" (Gidaris, Bursuc, Puy, Komodakis, Cord, Pérez,
2020, arXiv 2012.11552).

**Targets.** The teacher, a moving average of the student, reads the clean image. Each place u of its map has distances d to the K
words V; its soft code is ``q(u) = softmax_k(-(inv_delta / m) d_k)``, with m a running mean of the nearest word's distance, so
that no scale of the features matters. The bag y is the largest code over places, divided by its sum. Then one local mean of each
image is written over the oldest word: the vocabulary is as young as the teacher.

**Prediction.** The student sees crops and patches, changed in colour. As words come and go, their weights are made from the words:
``G(v) = norm(W2 relu(BN(W1 norm(v))))``, ``p = softmax(kappa z G(V_k))``, z the mean of its last map. The loss is ``KL(y || p)``,
averaged over levels, summed over kinds of views. The vocabulary of the prediction is that of the target.

**Use in SDVP**: the backbone of a module such as CLASSIFY or VERIFY can be trained on a user's images without labels before the
modules are distilled.

**What differs from the reference implementation, and why.** KL in place of cross-entropy: the same gradient, and 0 where the bag is
predicted. The queue takes any batch size. Colours are jittered always and without a change of hue (this library's augmentation).
The teacher is updated at the end of a step with the share of the next, which is the same as at its beginning.

**Limits.** Maps of at least 5 x 5 places are needed. No detection, and no Pascal VOC, ImageNet or Places figure, is measured
here; the release reports 73.8 % linear accuracy on ImageNet (ResNet-50, 200 epochs). The exported network keeps the layers above
the last level, which learned nothing: read it by ``--layer``, or put a new head on it.

![Accuracy of a linear probe on encoders of Fashion-MNIST](../images/obow.svg)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.distillation import losses
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.multi_view import MultiView, View
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError, did_you_mean
from tutelage.registry import system
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.obow.bag_of_words import (
    DynamicHead,
    LinearHead,
    Vocabulary,
    bag_divergence,
    perplexity,
    teacher_share,
    without_border,
)

CLEAN = "clean"
"""The view that the teacher sees; all others are the student's."""


@system("obow", kind="pretraining")
class OBoW(Method):
    """Online bags of visual words: a student encoder, its moving average as teacher, and a vocabulary that follows; no labels.

    Data may bring their views themselves: a dict with ``clean`` [B, C, H, W] and any other kinds [B, n, C, h, w], such as
    :class:`~tutelage.distillation.multi_view.MultiView` makes. Plain images [B, C, H, W] in 0..1 get those of the options, drawn
    anew in each step. ``method.teacher_network`` is the teacher: its weights are averages, its batch norms run in train mode and
    keep statistics of their own.

    Terms: one a kind of view, such as ``crops``; and, of weight 0, ``image_perplexity`` and ``batch_perplexity`` of the targets:
    about how many words an image and a batch use; and ``information``, the mean divergence of a target from the batch's mean:
    what a prediction loses that knows the batch's word counts alone. Means over levels.
    """

    needs_teacher = False
    deterministic_teacher = False
    teacher_network: nn.Module
    vocabularies: nn.ModuleList
    heads: nn.ModuleList

    @dataclass(frozen=True)
    class Config:
        """The options; defaults as published for ResNet-50 on ImageNet.

        Attributes:
            levels: layers with maps, the last one last; a text names several with commas.
            words: K, of each level.
            inv_delta: sharpness of the codes; None: the nearest word alone.
            kappa: factor of the logits; it is not learned.
            head: ``dynamic``; ``linear`` is an ordinary layer with a weight a word, for comparison.
            pooling: of codes: ``max`` or ``average``.
            source: of new words: ``local`` (mean of 3 x 3 places), ``point`` or ``global``.
            scale_decay: of m.
            teacher_decay: the share of itself that the teacher keeps at first; it rises to 1 as half a cosine.
            clean_size, crops, crop_size, crop_area: the teacher's image (None: as it is), and the student's crops, in pixels
                and shares of the area.
            patches, patch_size: cells of a 3 x 3 grid over 0.6 to 1 of the area, each 0.375 of its side, moved by up to 0.094.
            flip, colour, grey, blur: probability of a mirror image; strength of jitter; probabilities of grey, and of a blur of
                0.1 to 2 pixels in crops.
        """

        levels: str | tuple[str, ...] = ("layer3", "layer4")
        words: int = 8192
        inv_delta: float | None = 15.0
        kappa: float = 8.0
        head: Literal["dynamic", "linear"] = "dynamic"
        pooling: Literal["max", "average"] = "max"
        source: Literal["local", "point", "global"] = "local"
        scale_decay: float = 0.99
        teacher_decay: float = 0.99
        clean_size: int | None = None
        crops: int = 2
        crop_size: int = 160
        crop_area: tuple[float, float] = (0.08, 0.6)
        patches: int = 5
        patch_size: int = 96
        flip: float = 0.5
        colour: float = 0.4
        grey: float = 0.2
        blur: float = 0.5

        def __post_init__(self) -> None:
            if not self.layers:
                raise InputError("no level", where="levels", remedy='such as ("layer3", "layer4")')
            if self.words < 2:
                raise InputError(f"{self.words} words", where="words", remedy="2 or more: a batch norm runs over them")
            if self.inv_delta is not None and not self.inv_delta > 0:
                raise InputError(f"a sharpness of {self.inv_delta}", where="inv_delta", remedy="above 0, or None for hard codes")
            for name in ("scale_decay", "teacher_decay"):
                if not 0 <= getattr(self, name) <= 1:
                    raise InputError(f"{name} lies in 0..1, this is {getattr(self, name)}", where=name, remedy="such as 0.99")
            known = {"head": ("dynamic", "linear"), "pooling": ("max", "average"), "source": ("local", "point", "global")}
            for name, values in known.items():
                if getattr(self, name) not in values:
                    raise InputError(f"unknown {name} {getattr(self, name)!r}", where=name, remedy=", ".join(values))
            if self.crops < 0 or self.patches < 0 or not self.crops + self.patches:
                raise InputError("the student sees nothing", where="crops", remedy="crops or patches above 0")
            self.views  # noqa: B018  (refuses sizes and shares that cannot be)

        @property
        def layers(self) -> tuple[str, ...]:
            """The names of the levels."""
            names: Iterable[str] = self.levels.split(",") if isinstance(self.levels, str) else self.levels
            return tuple(name.strip() for name in names if name.strip())

        @property
        def views(self) -> MultiView:
            """The views of plain images."""
            kinds = {CLEAN: View(None, self.clean_size, Augmentation(flip=self.flip))}
            if self.crops:
                area = (self.crop_area[0], self.crop_area[1])
                change = Augmentation(resize=area, flip=self.flip, colour=self.colour)
                kinds["crops"] = View(
                    self.crops,
                    self.crop_size,
                    change,
                    grey=self.grey,
                    blur=(0.1, 2.0) if self.blur else None,
                    blur_probability=self.blur,
                )
            if self.patches:
                change = Augmentation(resize=(0.6, 1.0), flip=self.flip, colour=self.colour)
                kinds["patches"] = View(
                    self.patches, self.patch_size, change, grey=self.grey, grid=(3, 3), patch=0.375, jitter=0.094
                )
            return MultiView(kinds)

    @classmethod
    def preset(cls, name: str, **options: Any) -> OBoW:
        """The published options ``name`` of :data:`PRESETS`, with ``options`` in place of some.

        Raises:
            InputError: an unknown preset; the message offers the nearest.
        """
        if name not in PRESETS:
            raise InputError(f"no preset {name!r}", where="preset", remedy=did_you_mean(name, list(PRESETS)))
        return cls(replace(PRESETS[name], **options))

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Makes the teacher, the vocabularies and the heads, and finds the parameters above the last level; see
        :class:`Method`.

        Raises:
            InputError: a vocabulary larger than the data, an unknown layer, or maps below 5 x 5.
        """
        config, network = self.config, unwrap_model(student)
        if config.words > len(data):  # it would hold an image several times, as teachers of different ages saw it
            raise InputError(
                f"{config.words} words of {len(data)} images", where="words", remedy="at most one word an image, or more images"
            )
        shown = self.transform(example).inputs
        parameters = {name: value for name, value in student.named_parameters() if value.requires_grad}
        with torch.enable_grad():
            maps = self._maps(student, shown[CLEAN][:2])
            slopes = torch.autograd.grad(maps[-1].sum(), list(parameters.values()), allow_unused=True)
        self.unused_parameters = tuple(f"student.{name}" for name, slope in zip(parameters, slopes) if slope is None)
        dims = [without_border(one).shape[1] for one in maps]
        self.teacher_network = copy.deepcopy(network).requires_grad_(False)
        options = (config.inv_delta, config.pooling, config.source, config.scale_decay)
        self.vocabularies = nn.ModuleList(Vocabulary(config.words, dim, *options) for dim in dims)
        self.heads = nn.ModuleList(
            DynamicHead(dim, dims[-1], config.kappa) if config.head == "dynamic" else LinearHead(config.words, dims[-1])
            for dim in dims
        )

    def transform(self, batch: Batch) -> Batch:
        """Plain images in the views of the options; views that the data bring stay.

        Raises:
            InputError: a dict of inputs without ``clean``, or with it alone.
        """
        if isinstance(batch.inputs, Mapping):
            if CLEAN not in batch.inputs or len(batch.inputs) < 2:
                raise InputError(
                    f"inputs are {', '.join(batch.inputs)}",
                    where="inputs",
                    remedy=f"plain images, or {CLEAN!r} [B, C, H, W] and views of other names [B, n, C, h, w]",
                )
            return batch
        seeds = torch.randint(2**31, (len(batch),))  # the trainer seeds torch's generator anew in each pass
        views: MultiView = self.config.views
        shown = views(replace(batch, inputs=batch.inputs.cpu(), seeds=seeds)).to(batch.inputs.device)
        return replace(shown, seeds=batch.seeds)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """Logits ``KIND.LEVEL`` [B n, K] of the student, image by image; ``bags.LEVEL`` [B, K] of the teacher."""
        vocabularies = [cast(Vocabulary, one) for one in self.vocabularies]
        # a copy, for the words are overwritten before the gradient is taken
        words = [vocabulary.words.clone() for vocabulary in vocabularies]
        logits: Output = {}
        for kind, views in batch.inputs.items():
            if kind != CLEAN:
                features = self._maps(student, views.flatten(0, 1))[-1].mean((2, 3))
                logits |= {f"{kind}.{i}": head(features, words[i]) for i, head in enumerate(self.heads)}
        self.teacher_network.eval()
        for module in self.teacher_network.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        with torch.no_grad():
            maps = self._maps(self.teacher_network, batch.inputs[CLEAN])
            bags = {f"bags.{i}": vocabularies[i].bags(one) for i, one in enumerate(maps)}
        return logits, bags

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """See the class."""
        terms: Terms = {}
        bags = [teacher[f"bags.{i}"] for i in range(len(self.heads))]
        for kind in batch.inputs:
            if kind == CLEAN:
                continue
            levels = []
            for i, bag in enumerate(bags):
                apart = bag_divergence(bag.repeat_interleave(len(student[f"{kind}.{i}"]) // len(bag), 0), student[f"{kind}.{i}"])
                levels.append(losses.average(apart.unflatten(0, (len(bag), -1)).mean(1), batch.weights))
            terms[kind] = torch.stack(levels).mean()
        terms["image_perplexity"] = torch.stack([perplexity(bag).mean() for bag in bags]).mean()
        terms["batch_perplexity"] = torch.stack([perplexity(bag.mean(0)) for bag in bags]).mean()
        counts = [bag.mean(0).clamp_min(1e-30).log() for bag in bags]
        terms["information"] = torch.stack([bag_divergence(bag, count).mean() for bag, count in zip(bags, counts)]).mean()
        return terms

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"image_perplexity": 0.0, "batch_perplexity": 0.0, "information": 0.0}

    def after_step(self, student: nn.Module) -> None:
        """``theta_T <- a theta_T + (1 - a) theta_S``, with the share a of the next step."""
        share = teacher_share(self.progress.step + 1, self.progress.steps, self.config.teacher_decay)
        pairs = zip(self.teacher_network.parameters(), unwrap_model(student).parameters(), strict=True)
        own, new = zip(*((one, other.detach()) for one, other in pairs), strict=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(own), list(new), 1 - share)

    def _maps(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        """The maps of all levels; see ``Config.levels``."""
        names = self.config.layers
        with FeatureHooks(network, names) as taken:
            forward_heads(network, images)
        for name in names:
            if taken[name].ndim != 4:
                raise InputError(
                    f"{name} gives {list(taken[name].shape)}, no map", where="levels", remedy="name layers with [B, C, h, w]"
                )
        return [taken[name] for name in names]

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second: a small convolutional network on toy images."""
        student = build_with_seed(lambda: SmallCNN(4, 4 * width, 8 * width), seed, "student")
        data = TensorData(toy_images(seed, 32, image_size=20).inputs)
        method = cls(levels="body.1,body.2", words=16, crop_size=12, patches=2, patch_size=12, colour=0.0, grey=0.0, blur=0.0)
        return TrainingJob(student, None, method, data, TrainingSettings(steps=8, batch_size=8, seed=seed), "obow")


_FULL = OBoW.Config()
PRESETS: Mapping[str, OBoW.Config] = MappingProxyType(
    {
        "resnet50": _FULL,
        "resnet50 vanilla": replace(_FULL, crops=1, patches=0),
        "resnet18": replace(_FULL, inv_delta=10.0, kappa=5.0),
    }
)
"""The published options, for images of 224 pixels: the full recipe, one crop alone, and ResNet-18 on a fifth of ImageNet."""
