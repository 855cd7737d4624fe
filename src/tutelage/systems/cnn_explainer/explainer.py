"""A page on your own network:

```python
from tutelage.systems.cnn_explainer import export_explainer

export_explainer(network, "page.html", images=["cat.jpg", "dog.jpg"], class_names=["cat", "dog"])
```

```sh
tutelage explain student.safetensors --image cat.jpg --image dog.jpg --classes cat,dog  # a TinyVGG of any size
tutelage explain student.safetensors --network small-cnn --set classes=2 --set inputs=3 --image-size 32 --image photos/
tutelage explain student.safetensors --network mine.py:Net --image photos/ --classes names.txt --out page.html
tutelage explain  # no network at hand: one is trained on drawn shapes first, in about a minute
```

The student of a recipe is such a network: ``student = {model = "tiny-vgg", options = {classes = 2}}``, then
``tutelage explain runs/mine/student.safetensors``.

![The page: every layer of a small network, from the picture to the probabilities](../images/cnn-explainer.png)

The page is one file that loads nothing: it opens from a disk, without a network, and runs the convolutional network in
the reader's browser. It shows three levels of one computation, with a transition between them:

1. **All layers**, each map coloured by its values. Pointing at a map shows where it comes from; the last column holds the
   probabilities. Pictures are chosen above, or uploaded; nothing leaves the browser.
2. **One map** (click it) as the sum that it is, ``y_o = b_o + sum_c k_oc * x_c``: for each input map ``x_c`` its kernel and
   the product map; for a class ``logit_o = b_o + sum_i w_oi x_i``, split by the maps that the flattened values come from.
3. **One number** (click a row, or choose a cell): the window slides over the map, with the patch, the kernel, their
   products and the sum; ``max(0, x)`` of a ReLU; the largest of a window of pooling; the index, the value and the weight
   of a flattened cell; ``exp(l_i) / sum_j exp(l_j)`` of the softmax.

Below stand a playground for input size, kernel, padding and stride, with the output size ``(n + 2p - k) / s + 1``, and an
article that the views link to. Every click path has a key (arrows, Enter, Escape, space); values stand beside colours;
``prefers-reduced-motion`` stops the animations; there are a dark and a light page, and a phone shows the layers from top
to bottom.

**Which networks.** Any ``nn.Module`` whose ``forward`` is one chain of Conv2d, ReLU, MaxPool2d, a mean over all positions,
Flatten and Linear, ending in a Linear: ``nn.Sequential``, or a class of your own (it is traced). A BatchNorm2d behind a
convolution is folded into it; Dropout, Identity and a last softmax are left out. Anything else is refused by name.
``TinyVGG`` is the paper's network: 64x64x3, two blocks of two 3x3 convolutions of 10 channels, 19,920 parameters
(``model = "tiny-vgg"`` in a recipe).

**How it computes.** The page's own engine, plain loops over typed arrays in a worker thread, sums in double precision; a
test in a real browser compares each layer with PyTorch to 1e-5. ``tutelage bench explain`` times it. Flattened values stand in
PyTorch's order (channel, row, column). TensorFlow's is row, column, channel: weights from there must be permuted first, and
the experiment shows what happens otherwise.

**Colours.** Zero is the middle colour. The ends are the largest absolute value of a convolution and of the ReLU and pooling
behind it (or of the block, or of the network), which the reader chooses. The reference adds 0.1 to that; without it
small values stay visible (our choice).

Use inside SDVP: a page for the small CLASSIFY or VERIFY network that a program calls, once it was distilled.

Limits: networks with shortcuts, groups, dilation or oblong kernels are refused; a page shows at most 64 maps a layer and a
million weights. The paper's findings, that it helps understanding and is enjoyable, come from a study with people; none was
made here.

Source: "CNN Explainer: Learning Convolutional Neural Networks with Interactive Visualization" (Wang, Turko, Shaikh, Park,
Das, Hohman, Kahng, Chau, IEEE TVCG 2020, arXiv 2004.15004).
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor, nn

from tutelage import reading
from tutelage.distillation.small_models import TinyVGG
from tutelage.environment import run_metadata
from tutelage.errors import InputError
from tutelage.fields import check_field
from tutelage.registry import system
from tutelage.reports.page import environment as report_environment
from tutelage.seeds import torch_rng
from tutelage.storage import write_text
from tutelage.systems._toy import build_with_seed
from tutelage.systems.cnn_explainer.layers import layer_shapes, parameter_count, read_layers, to_network
from tutelage.systems.cnn_explainer.layers_json import from_json, to_json
from tutelage.systems.cnn_explainer.pictures import to_pixels

VERSION = 1
LARGEST_IMAGE = 256


@system("cnn-explainer", kind="education")
class CNNExplainer:
    """A web page that runs a small convolutional network in the browser and explains every number of it.

    Args:
        network: a chain of the layers named above; it is copied, and read in eval mode.
        images: sample pictures: paths, PIL images, or uint8 or 0..1 arrays [C, H, W] of the network's size.
        class_names: one name for each output of the network.
        title: the page's heading.
        image_size: side of the network's input in pixels. None: the network's own ``image_size``, or the only size that
            fits its layers.
        mean: subtracted from pixels in 0..1, by channel or one for all.
        std: what that is divided by.

    Raises:
        InputError: the network, a picture or the names cannot be shown; the message says which, why, and the remedy.
    """

    Network = TinyVGG

    def __init__(
        self,
        network: nn.Module,
        images: Iterable[Any],
        class_names: Sequence[str],
        *,
        title: str | None = None,
        image_size: int | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ):
        self.layers = read_layers(network)
        first, last = self.layers[0].weight, self.layers[-1].weight
        assert first is not None and last is not None
        self.channels: int = first.shape[1]
        if self.channels not in (1, 3):
            raise InputError(f"{self.channels} input channels", where=self.layers[0].name, remedy="a picture has 1 or 3")
        self.image_size = self._image_size(network, image_size)
        self.shapes = layer_shapes(self.layers, self.image_size)
        self.class_names = [str(name).strip() for name in class_names]
        if len(self.class_names) != len(last) or not all(self.class_names):
            raise InputError(
                f"{len(self.class_names)} class names for {len(last)} outputs of the network",
                where="class_names",
                remedy=f"give {len(last)} names that are not empty, in the order of the outputs",
            )
        self.mean, self.std = self._channel_values("mean", mean), self._channel_values("std", std)
        if min(self.std) <= 0:
            raise InputError(f"std {self.std}", where="std", remedy="give numbers above 0")
        self.pixels = to_pixels(images, self.channels, self.image_size)
        kind = type(network).__name__
        self.title = title or f"How {'this network' if type(network) is nn.Sequential else kind} sees a picture"

    def _image_size(self, network: nn.Module, given: int | None) -> int:
        size = given if given is not None else getattr(network, "image_size", None)
        if isinstance(size, int):
            if not 1 <= size <= LARGEST_IMAGE:
                raise InputError(f"{size} pixels", where="image_size", remedy=f"1 to {LARGEST_IMAGE}")
            layer_shapes(self.layers, size)
            return size
        fitting = [side for side in range(1, LARGEST_IMAGE + 1) if self._fits(side)]
        if len(fitting) == 1:
            return fitting[0]
        which = (
            f"{fitting[0]} to {fitting[-1]} pixels all fit the layers" if fitting else f"no size to {LARGEST_IMAGE} fits the layers"
        )
        raise InputError(which, where="image_size", remedy="give the image_size that the network was trained on")

    def _fits(self, size: int) -> bool:
        try:
            layer_shapes(self.layers, size)
        except InputError:
            return False
        return True

    def _channel_values(self, name: str, value: float | Sequence[float]) -> list[float]:
        values = [float(value)] * self.channels if isinstance(value, (int, float)) else [float(item) for item in value]
        if len(values) != self.channels or not all(map(math.isfinite, values)):
            raise InputError(f"{name} {values}", where=name, remedy=f"one finite number, or {self.channels} of them")
        return values

    def inputs(self) -> Tensor:
        """What the network is given for the sample pictures: float32 [N, C, H, W]."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (self.pixels.float() / 255 - mean) / std

    def network(self) -> nn.Sequential:
        """The network that the page shows, batch norms folded in."""
        return to_network(self.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return parameter_count(self.layers)

    def model_json(self) -> dict[str, Any]:
        """What the page knows of the network: ``{version, input, classes, layers}``. Flattened values stand in the order
        channel, row, column."""
        picture = {"size": self.image_size, "channels": self.channels, "mean": self.mean, "std": self.std}
        return {
            "version": VERSION,
            "input": picture,
            "classes": self.class_names,
            "layers": [to_json(layer) | {"output": list(shape)} for layer, shape in zip(self.layers, self.shapes)],
        }

    def html(self) -> str:
        """The page."""
        samples = [base64.b64encode(one.numpy().tobytes()).decode("ascii") for one in self.pixels]
        return (
            _templates()
            .get_template("page.html")
            .render(
                title=self.title,
                model=self.model_json(),
                samples=samples,
                parameters=self.parameters,
                kinds={layer.type for layer in self.layers},
                data=run_metadata([]),
            )
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, atomically.

        Raises:
            StorageError: the path cannot be written.
        """
        return write_text(path, self.html())

    @staticmethod
    def tiny_run(seed: int) -> dict[str, float | str]:
        """A page of an untrained network of 12x12 pixels: its size, its parameters, and how exactly it reads back."""
        network = build_with_seed(lambda: TinyVGG(3, 2, image_size=12, blocks=1), seed, "tiny page")
        pixels = torch.randint(0, 256, (2, 3, 12, 12), generator=torch_rng(seed, "tiny page"), dtype=torch.uint8)
        page = CNNExplainer(network, pixels, ["a", "b", "c"])
        with torch.no_grad():
            again = parse_page(page.html(), "the page")(page.inputs())
            difference = (again - network(page.inputs())).abs().max().item()
        requests = len(re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page.html()))
        return {"parameters": page.parameters, "layers": len(page.layers), "difference": difference, "requests": requests}


def export_explainer(model: nn.Module, path: str | Path, images: Iterable[Any], class_names: Sequence[str], **options: Any) -> Path:
    """Write a page that explains ``model``; the options are those of :class:`CNNExplainer`.

    Raises:
        InputError: the network, a picture or the names cannot be shown; the message says which, why, and the remedy.
        StorageError: the path cannot be written.

    Examples:
        >>> from tutelage.distillation.small_models import TinyVGG
        >>> page = export_explainer(TinyVGG(2, image_size=16), "page.html", torch.rand(1, 3, 16, 16), ["cat", "dog"])
        >>> page.name
        'page.html'
    """
    return CNNExplainer(model, images, class_names, **options).write(path)


def load_explained(path: str | Path) -> nn.Sequential:
    """The network inside a page that :func:`export_explainer` wrote, with the same weights to the bit.

    Raises:
        InputError: no such file, or no page of this kind.
    """
    return parse_page(reading.read_bytes(path, 64 << 20).decode("utf-8", "replace"), path)


def parse_page(html: str, where: object) -> nn.Sequential:
    """The network inside the text of a page.

    Raises:
        InputError: no page of this kind.
    """
    found = re.search(r'<script type="application/json" id="model">(.*?)</script>', html, re.DOTALL)
    if found is None:
        raise InputError("there is no network in it", where=where, remedy="give a page that tutelage explain wrote")
    try:
        model = json.loads(found[1])
    except ValueError as error:
        raise InputError(f"damaged: {error}", where=where, remedy="write the page again") from error
    version = check_field(model, "version", int, where=where)
    if version != VERSION:
        raise InputError(f"a page of version {version}, this reads {VERSION}", where=where, remedy="write the page again")
    layers = check_field(model, "layers", list, least=1, where=where)
    return to_network([from_json(layer, f"{where}: layers[{number}]") for number, layer in enumerate(layers)])


@cache
def _templates() -> jinja2.Environment:
    """The templates of this folder, above those of all reports."""
    base = report_environment()
    own = jinja2.PackageLoader("tutelage.systems.cnn_explainer", "page")
    return base.overlay(loader=jinja2.ChoiceLoader([own, base.loader] if base.loader is not None else [own]))
