"""Plain image networks that a recipe can name, and that the experiments and benchmarks train."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tutelage.errors import InputError


def conv_norm(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, the last two of stride 2, the first of ``stride``; mean over positions, linear ``head``.

    [B, inputs, H, W] -> logits [B, classes]; the embedding [B, embedding] is what goes into ``head``.
    """

    def __init__(self, classes: int = 10, channels: int = 16, embedding: int = 32, inputs: int = 1, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(inputs, channels, stride),
            conv_norm(channels, 2 * channels, 2),
            conv_norm(2 * channels, embedding, 2),
        )
        self.head = nn.Linear(embedding, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(images).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; where the shape changes the shortcut is a 1x1 convolution."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.norm2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.act1, self.act2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        same = stride == 1 and inner == outer
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inner, H, W] -> [B, outer, H / stride, W / stride]."""
        inside = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(inside + self.shortcut(x))


class ResNet(nn.Module):
    """The residual network for small images (He, Zhang, Ren, Sun, 2016, section 4.2), shortcuts projected where the
    shape changes, as in most later implementations (option B of the paper).

    [B, inputs, H, W] -> logits [B, classes]; stages ``layer1`` to ``layer3`` of 16, 32 and 64 channels.

    Raises:
        InputError: ``depth`` is not 6n + 2.
    """

    def __init__(self, depth: int = 20, classes: int = 10, inputs: int = 3):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"a depth is 6n + 2, this is {depth}", where="depth", remedy="20, 32, 44, 56 or 110")
        self.stem = conv_norm(inputs, 16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(BasicBlock(outer if i else inner, outer, 1 if i else stride) for i in range((depth - 2) // 6)))
            for inner, outer, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.head = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        maps = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return self.head(maps.mean((2, 3)))


class TinyVGG(nn.Sequential):
    """The network of CNN Explainer (Wang et al., IEEE TVCG 2020, arXiv 2004.15004): 19,920 parameters by default.

    ``blocks`` times two 3x3 convolutions without padding, each with a ReLU, then a 2x2 max-pooling that drops an odd edge;
    then one linear layer on the flattened maps. Weights are Glorot-uniform, biases zero.

    [B, inputs, image_size, image_size] -> logits [B, classes].

    Raises:
        InputError: ``image_size`` is too small for so many blocks.
    """

    def __init__(self, classes: int = 10, channels: int = 10, inputs: int = 3, image_size: int = 64, blocks: int = 2):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        side, inner = image_size, inputs
        for block in range(1, blocks + 1):
            for number in (1, 2):
                layers[f"conv_{block}_{number}"] = nn.Conv2d(inner, channels, 3)
                layers[f"relu_{block}_{number}"] = nn.ReLU()
                inner = channels
            layers[f"max_pool_{block}"] = nn.MaxPool2d(2)
            side = (side - 4) // 2
        if side < 1:
            raise InputError(
                f"nothing is left of {image_size} pixels after {blocks} blocks",
                where="image_size",
                remedy=f"at least {5 * 2**blocks - 4} pixels, or fewer blocks",
            )
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(inner * side * side, classes)
        super().__init__(layers)
        self.image_size = image_size
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def small_models() -> dict[str, type[nn.Module]]:
    """The networks of this file by the names that recipes use."""
    return {"small-cnn": SmallCNN, "resnet": ResNet, "tiny-vgg": TinyVGG}
