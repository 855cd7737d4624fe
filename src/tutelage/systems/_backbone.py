"""What every image backbone offers: logits, named stages, published sizes, and checks at the door."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tutelage import registry
from tutelage.distillation.export import load_weights
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.supervised import Supervised
from tutelage.errors import InputError, did_you_mean
from tutelage.systems._toy import build_with_seed, toy_images


class StageInfo(NamedTuple):
    """What is known of a stage before any forward pass."""

    name: str
    stride: int
    channels: int


class StageOutput(NamedTuple):
    """A stage's output: ``forward_stages`` [B, channels, H / stride, W / stride]; video and 3-D forms: [B, channels, T, H, W]."""

    name: str
    stride: int
    maps: Tensor


@dataclass(frozen=True)
class Variant:
    """One size of a network: what to give its class, and what must come out (1000 classes, 3 channels).

    Attributes:
        config: the keyword arguments.
        parameters: their exact number, None where it was never published as an integer.
        macs: multiply-accumulates of one image of ``size`` x ``size``; None: not published.
        size: the side of the images it is made for.
    """

    config: Mapping[str, Any]
    parameters: int | None = None
    macs: float | None = None
    size: int = 224


class Backbone(nn.Module):
    """The base of every backbone: a subclass gives :meth:`forward_stages` and :meth:`forward_head`, or overrides what these serve.

    ``forward(images)`` gives logits [B, num_classes] of images [B, in_chans, H, W]; ``forward_features(images)`` the
    stages, finest first. ``feature_info`` names the stages with strides and channels. ``VARIANTS`` are the sizes by
    their names; a subclass takes ``(num_classes, in_chans, **config)``.

    Raises:
        InputError: fewer than one class or channel; at the forward pass: images of another shape than the network takes.
    """

    VARIANTS: ClassVar[Mapping[str, Variant]] = {}
    KEY_PATTERNS: ClassVar[Mapping[str, Sequence[tuple[str, str]]]] = {}
    """By library (``hf``, ``timm``): regular expressions that turn its names of weights into ours, all tried in turn."""

    def __init__(self, num_classes: int, in_chans: int, feature_info: Sequence[tuple[str, int, int]], *, spatial: int = 2):
        super().__init__()
        for name, value in (("num_classes", num_classes), ("in_chans", in_chans)):
            if value < 1:
                raise InputError(f"{value} is too few", where=name, remedy="1 or more")
        self.num_classes, self.in_chans, self.spatial = num_classes, in_chans, spatial
        self.feature_info = [StageInfo(*stage) for stage in feature_info]

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """One map a stage, in the order of ``feature_info``."""
        raise NotImplementedError

    def forward_head(self, maps: Tensor) -> Tensor:
        """Logits from the last stage's map."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        self.check(images)
        return self.forward_head(self.forward_stages(images)[-1])

    def forward_features(self, images: Tensor) -> list[StageOutput]:
        """The stages, finest first."""
        self.check(images)
        return [
            StageOutput(stage.name, stage.stride, maps)
            for stage, maps in zip(self.feature_info, self.forward_stages(images), strict=True)
        ]

    def check(self, images: Tensor) -> None:
        """Refuse images that the stages cannot divide, or of other channels.

        Raises:
            InputError: with what fits.
        """
        if torch.jit.is_tracing():  # sizes are tensors there; the example was checked before
            return
        if images.ndim != 2 + self.spatial:
            wanted = "[B, C, H, W]" if self.spatial == 2 else "[B, C, T, H, W]"
            raise InputError(f"images have shape {list(images.shape)}", where="images", remedy=f"give {wanted}")
        if images.shape[1] != self.in_chans:
            raise InputError(
                f"images have {images.shape[1]} channels, the network takes {self.in_chans}",
                where="images",
                remedy=f"build it with in_chans={images.shape[1]}, or give {self.in_chans} channels",
            )
        self.check_sides(images.shape[-2:])

    def check_sides(self, sides: Sequence[int]) -> None:
        """Height and width must be multiples of the coarsest stride; a network that takes others overrides this.

        Raises:
            InputError: with the nearest size that fits.
        """
        stride = self.feature_info[-1].stride
        if any(side < stride or side % stride for side in sides):
            height, width = (max(stride, round(side / stride) * stride) for side in sides)
            raise InputError(
                f"no stage of stride {stride} divides {sides[0]}x{sides[1]}",
                where="images",
                remedy=f"resize or pad to multiples of {stride}: {height}x{width} fits",
            )

    @classmethod
    def options(cls, variant: str) -> dict[str, Any]:
        """The keyword arguments of a published size.

        Raises:
            InputError: no such size; the message offers the nearest.
        """
        if variant not in cls.VARIANTS:
            raise InputError(f"{cls.__name__} has no size {variant!r}", remedy=did_you_mean(variant, list(cls.VARIANTS)))
        return dict(cls.VARIANTS[variant].config)

    @classmethod
    def references(cls, variant: str) -> dict[str, Callable[[int], nn.Module]]:
        """What other libraries build for a published size: by library, a function of the number of classes.

        ``bench backbones`` times them beside ours, with the same weights where ``KEY_PATTERNS`` knows the library.
        """
        return {}

    def example(self, count: int, size: int, rng: torch.Generator | None = None) -> Tensor:
        """Random inputs [count, in_chans, size, size]; video and 3-D forms: 8 frames or slices of them."""
        depth = (8,) if self.spatial == 3 else ()
        return torch.randn(count, self.in_chans, *depth, size, size, generator=rng)

    @classmethod
    def toy_job(cls, seed: int, in_chans: int = 3, image_size: int = 32, **config: Any) -> TrainingJob:
        """A training job of seconds: a small network of this class learns toy images of 4 classes from their labels."""
        network = build_with_seed(lambda: cls(4, in_chans, **config), seed, "student")
        settings = TrainingSettings(steps=8, batch_size=16, lr=2e-3, seed=seed)
        return TrainingJob(
            network, None, Supervised(), toy_images(seed, 32, channels=in_chans, image_size=image_size), settings, cls.__name__
        )

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a few seconds, for tests and the doctor."""
        raise NotImplementedError

    def load(self, file: str | Path) -> Self:
        """The weights of a local safetensors file: see :func:`load`."""
        return load(self, file)

    def load_converted(self, state: Mapping[str, Tensor], library: str) -> Self:
        """The weights of the same network in ``library`` (a key of ``KEY_PATTERNS``), in eval mode.

        Raises:
            InputError: the library is not known, or its network is another: the message names the first difference.
        """
        if library not in self.KEY_PATTERNS:
            raise InputError(f"no weights from {library!r}", remedy=f"known: {', '.join(self.KEY_PATTERNS) or 'none'}")
        named = {}
        for name, value in state.items():
            for pattern, name_here in self.KEY_PATTERNS[library]:
                name = re.sub(pattern, name_here, name)
            named[name] = value
        own = self.state_dict()
        for name in sorted(own.keys() | named.keys()):
            given_shape, own_shape = (tuple(weights[name].shape) if name in weights else None for weights in (named, own))
            if given_shape != own_shape:
                raise InputError(
                    f"{name}: {library} has {given_shape}, this network {own_shape}", remedy="build the same size of both"
                )
        self.load_state_dict(named)
        return self.eval()

    def pretrained(self, name: str) -> Self:
        """The weights of ``hf:NAME`` (``hf:facebook/convnext-tiny_job-224``) or ``timm:NAME``, downloaded by that library.

        Raises:
            InputError: as :meth:`load_converted`.
            MissingExtra: the library is not installed.
        """
        from tutelage.distillation.recipe import ModelSpec
        from tutelage.distillation.resolve import build_model

        library = name.partition(":")[0]
        options = {"pretrained": True} if library == "timm" else {}
        return self.load_converted(build_model(ModelSpec(name, options)).state_dict(), library)


def network_of(system: str) -> type[Backbone]:
    """The network class of a registered system: the system itself, or what a training method offers as ``Network``.

    Raises:
        InputError: no such system, or one without a network.
    """
    target = registry.find(system).target
    target = getattr(target, "Network", target)
    if not (isinstance(target, type) and issubclass(target, Backbone)):
        raise InputError(f"{system} is no backbone", where="name", remedy="tutelage systems lists the backbones")
    return target


def create(name: str, num_classes: int = 1000, in_chans: int = 3, **config: Any) -> Any:
    """The backbone ``name``: ``"hornet"``, or a published size of it, ``"hornet:tiny_job-gf"``; ``config`` overrides.

    Raises:
        InputError: no such system, size or option.
    """
    system, _, variant = name.partition(":")
    network = network_of(system)
    options = (network.options(variant) if variant else {}) | config
    known = [name for name in inspect.signature(network).parameters if name not in ("num_classes", "in_chans")]
    for option in options:
        if option not in known:
            raise InputError(f"{system} has no option {option!r}", where="options", remedy=did_you_mean(option, known))
    return network(num_classes, in_chans, **options)


def published(name: str) -> Mapping[str, Variant]:
    """The published sizes of a system, by name.

    Raises:
        InputError: no such system, or one without a network.
    """
    return network_of(name).VARIANTS


def create_on_meta(name: str, num_classes: int = 1000, in_chans: int = 3, **config: Any) -> Any:
    """:func:`create` without memory: parameters have shapes and no values."""
    with torch.device("meta"):
        return create(name, num_classes, in_chans, **config)


def count_parameters(network: nn.Module) -> int:
    """Trainable and frozen parameters, without buffers."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, size: int | Sequence[int] = 224, in_chans: int = 3) -> float:
    """Multiply-accumulates of one image [1, in_chans, *size], counted on the meta device: those of convolutions and
    matrix products (Linears and attention among them), not of norms, activations and FFTs. ``size``: H and W, or all.
    A network of volumes looks at which voxels are empty, so it computes where it is, on a grid that has none."""
    shape = (size, size) if isinstance(size, int) else tuple(size)
    # a network that was built on the meta device stays usable: counting looks at a copy
    shadow, place = copy.deepcopy(network).eval(), torch.device("meta")
    if getattr(network, "spatial", 2) == 3 and not any(weight.is_meta for weight in network.parameters()):
        place = next(network.parameters()).device
    with place, torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow.to(place)(torch.ones(1, in_chans, *shape, device=place))
    return counter.get_total_flops() / 2


def load(backbone: Any, file: str | Path) -> Any:
    """Load a local safetensors file into ``backbone`` and return it in eval mode. Never unpickles.

    Raises:
        InputError: not readable, or weights of another network: the message names the first key that differs, and the
            published size that the weights are of, where there is one.
    """
    try:
        return load_weights(backbone, file)
    except InputError as error:
        fitting = _variant_of(backbone, file)
        if fitting is None:
            raise
        raise InputError(
            error.message, where=error.where, remedy=f"these are weights of the size {fitting!r}: build that"
        ) from error


def _variant_of(backbone: Backbone, file: str | Path) -> str | None:
    """The published size whose keys and shapes, but those of the classifier, are those of ``file``; None: none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as found:
            shapes = {name: tuple(found.get_slice(name).get_shape()) for name in found.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    for variant in backbone.VARIANTS:
        with torch.device("meta"):
            other = type(backbone)(backbone.num_classes, backbone.in_chans, **backbone.options(variant))
        own = {name: tuple(value.shape) for name, value in other.state_dict().items()}
        if own.keys() == shapes.keys() and all(own[name][1:] == shapes[name][1:] for name in own if own[name]):
            if sum(own[name] != shapes[name] for name in own) <= 2:  # weight and bias of a classifier of other classes
                return variant
    return None
