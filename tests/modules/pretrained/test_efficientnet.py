from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tutelage import assets
from tutelage.errors import InputError
from tutelage.modules.pretrained.efficientnet import (
    EfficientNetLite0,
    ImageNetClassifier,
    InvertedBottleneck,
    SamePadConv2d,
    class_names,
)
from tutelage.programs.types import Call
from tutelage.programs.values import Image

from .needed import needs_networks


@pytest.mark.parametrize(("side", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (9, 5, 2), (8, 5, 1), (6, 1, 1)])
def test_padding_is_the_same_as_tensorflows(side: int, kernel: int, stride: int) -> None:
    conv, x = SamePadConv2d(2, 3, kernel, stride), torch.randn(1, 2, side, side)
    y = conv(x)
    assert y.shape[2] == -(-side // stride)
    missing = max(0, (y.shape[2] - 1) * stride + kernel - side)
    before = missing // 2  # what is left over goes after
    padded = F.pad(x, (before, missing - before) * 2)
    torch.testing.assert_close(y, F.conv2d(padded, conv.weight, stride=stride))


def test_a_block_has_a_short_cut_where_the_shape_stays() -> None:
    x = torch.randn(1, 8, 6, 6)
    block = InvertedBottleneck(8, 8, 6, 1, 3).eval()
    torch.nn.init.zeros_(block._bn2.weight)
    assert torch.equal(block(x), x)
    assert InvertedBottleneck(8, 8, 6, 2, 5).eval()(x).shape == (1, 8, 3, 3)
    assert not hasattr(InvertedBottleneck(8, 4, 1, 1, 3), "_expand_conv")


def test_the_network_has_the_published_size() -> None:
    network = EfficientNetLite0()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008  # 4.65 M: the table of the Lite models
    assert len(network._blocks) == 16


def test_classes_that_begin_alike_get_names_of_their_own() -> None:
    names = class_names([("tench", "Tinca tinca"), ("crane",), ("crane",), ("maillot",), ("maillot", "tank suit")])
    assert names == ("tench", "crane", "crane (2)", "maillot", "maillot, tank suit")


def test_the_middle_of_a_picture_is_what_is_looked_at() -> None:
    module = ImageNetClassifier.with_classes("a", "b", pixels=224)
    pixels = np.zeros((3, 256, 512), np.uint8)
    pixels[:, 16:240, 144:368] = 255  # the middle square, 224 of 256 wide
    batch = module.encode([Call("CATEGORY", {"image": Image.from_array(pixels)})])["pixels"]
    assert batch.shape == (1, 3, 224, 224) and float(batch.min()) == 1.0


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "efficientnet-lite0.pth")
    data = (tmp_path / "efficientnet-lite0.pth").read_bytes()
    monkeypatch.setattr(assets, "read", lambda name, file: data)
    with pytest.raises(InputError, match="weights of another network"):
        ImageNetClassifier.pretrained()


def test_weights_that_carry_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(class_names, tmp_path / "bad.pth")
    data = (tmp_path / "bad.pth").read_bytes()
    monkeypatch.setattr(assets, "read", lambda name, file: data)
    with pytest.raises(InputError):
        ImageNetClassifier.pretrained()


@needs_networks
def test_the_published_network_has_a_name_for_every_class() -> None:
    module = ImageNetClassifier.pretrained()
    assert len(set(module.config.answers)) == 1000 and module.config.answers[0] == "tench" and "espresso" in module.config.answers
    answers = module.run([Call("CATEGORY", {"image": Image.from_array(np.zeros((3, 64, 64), np.uint8))})])
    assert answers.values[0] in module.config.answers
