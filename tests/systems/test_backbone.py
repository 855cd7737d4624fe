from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tutelage import registry
from tutelage.distillation.export import save_onnx, save_torchscript, save_weights
from tutelage.distillation.recipe import ModelSpec
from tutelage.distillation.resolve import build_model
from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, LayerNorm2d, LayerScale, drop_path_rates, init_weights
from tutelage.registry import SystemEntry
from tutelage.systems import _backbone
from tutelage.systems._backbone import Backbone, Variant, count_macs, count_parameters, create, create_on_meta, load, published


class Pair(Backbone):
    """Two strided convolutions and a linear classifier."""

    VARIANTS = {
        "small": Variant({"widths": (4, 8)}, 4 * 3 * 4 + 4 + 8 * 4 * 4 + 8 + 8 * 1000 + 1000, size=8),
        "large": Variant({"widths": (8, 16)}, size=8),
    }

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, *, widths: tuple[int, int] = (4, 8)):
        super().__init__(num_classes, in_chans, [("first", 2, widths[0]), ("second", 4, widths[1])])
        self.first, self.second = nn.Conv2d(in_chans, widths[0], 2, 2), nn.Conv2d(*widths, 2, 2)
        self.head = nn.Linear(widths[1], num_classes)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        first = self.first(images)
        return [first, self.second(first)]

    def forward_head(self, maps: Tensor) -> Tensor:
        return self.head(maps.mean((2, 3)))


class Teaching:
    """A training method with a network of its own."""

    Network = Pair


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made = {"pair": Pair, "teaching": Teaching, "bare": object}
    entries = {name: SystemEntry(name, "backbone", name, target) for name, target in made.items()}

    def find(name: str) -> SystemEntry:
        if name not in entries:
            raise InputError(f"unknown system {name!r}")
        return entries[name]

    monkeypatch.setattr(registry, "find", find)
    yield


@pytest.mark.usefixtures("pair")
def test_a_network_is_found_by_system_and_size() -> None:
    assert create("pair").head.out_features == 1000
    large = create("pair:large", 5, 1)
    assert (large.second.out_channels, large.head.out_features, large.first.in_channels) == (16, 5, 1)
    assert create("pair:large", widths=(2, 3)).second.out_channels == 3
    assert isinstance(create("teaching:small", 2), Pair) and published("teaching") is Pair.VARIANTS
    with pytest.raises(InputError, match="small") as told:
        create("pair:smal")
    assert "'smal'" in str(told.value)
    with pytest.raises(InputError, match="did you mean widths"):
        create("pair", width=(1, 2))
    with pytest.raises(InputError, match="bare is no backbone"):
        create("bare")
    with pytest.raises(InputError, match="0 is too few"):
        create("pair", 0)


@pytest.mark.usefixtures("pair")
def test_a_recipe_names_a_backbone_or_a_size_of_it() -> None:
    options = {"num_classes": 3, "in_chans": 1}
    assert build_model(ModelSpec("pair", options)).second.out_channels == 8
    large = build_model(ModelSpec("pair:large", options))
    assert large.second.out_channels == 16 and large(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert isinstance(build_model(ModelSpec("teaching:large", options)), Pair)
    with pytest.raises(InputError, match="no size 'huge'"):
        build_model(ModelSpec("pair:huge"))
    with pytest.raises(InputError, match="unknown source 'pear'"):
        build_model(ModelSpec("pear:large"))
    with pytest.raises(InputError, match="bare has no sizes"):
        build_model(ModelSpec("bare:large"))


@pytest.mark.usefixtures("pair")
def test_the_stages_are_named_with_strides_and_channels() -> None:
    network, images = create("pair", 5), torch.randn(2, 3, 8, 12)
    features = network.forward_features(images)
    assert [feature[:2] for feature in features] == [("first", 2), ("second", 4)]
    for feature, told in zip(features, network.feature_info, strict=True):
        assert feature.maps.shape == (2, told.channels, 8 // told.stride, 12 // told.stride)
    assert torch.equal(network(images), network.head(features[-1].maps.mean((2, 3))))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 10), "8x8 fits"),
        ((1, 3, 2, 8), "4x8 fits"),
        ((1, 1, 8, 8), "in_chans=1"),
        ((3, 8, 8), "B, C, H, W"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_what_fits(shape: tuple[int, ...], message: str) -> None:
    for forward in (Pair(2), Pair(2).forward_features):
        with pytest.raises(InputError, match=message):
            forward(torch.zeros(shape))


@pytest.mark.usefixtures("pair")
def test_parameters_and_operations_are_counted_without_memory() -> None:
    network = create_on_meta("pair:small")
    assert network.head.weight.is_meta
    assert count_parameters(network) == published("pair")["small"].parameters
    # 4x4 positions of 2x2x3x4, 2x2 of 2x2x4x8, one classifier
    assert count_macs(network, 8) == 16 * 48 + 4 * 128 + 8000
    assert count_macs(create("pair:small", 10), (8, 16)) == 2 * (16 * 48 + 4 * 128) + 80


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    small, large = Pair(5, widths=(4, 8)), Pair(7, widths=(8, 16))
    file = save_weights(small, tmp_path / "small.safetensors")
    other = load(Pair(5), file)
    assert not other.training and torch.equal(other.first.weight, small.first.weight)
    with pytest.raises(InputError, match=r"first.bias.*\n.*size 'small'"):
        large.load(file)
    with pytest.raises(InputError, match="build the network these weights are of"):
        load(Pair(5), save_weights(Pair(5, widths=(3, 3)), tmp_path / "own.safetensors"))
    with pytest.raises(InputError, match="no such file"):
        load(small, tmp_path / "none.safetensors")


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = drop(x)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert DropPath(1.0)(x).count_nonzero() == 0 and drop.eval()(x) is x
    assert drop_path_rates(0.5, (1, 3, 2)) == [[0], pytest.approx([0.1, 0.2, 0.3]), pytest.approx([0.4, 0.5])]
    assert drop_path_rates(0.5, (1,)) == [[0]]


def test_a_norm_of_channels_is_a_layer_norm_at_every_position() -> None:
    norm = LayerNorm2d(6)
    with torch.no_grad():
        norm.weight.normal_(), norm.bias.normal_()
    for shape in ((2, 6, 4, 5), (2, 6, 3, 4, 5)):
        x = torch.randn(shape)
        plain = nn.functional.layer_norm(x.movedim(1, -1), (6,), norm.weight, norm.bias, 1e-6).movedim(-1, 1)
        assert torch.equal(norm(x), plain)
    scale = LayerScale(6, 0.5, axis=1)
    assert torch.equal(scale(x), x / 2) and torch.equal(LayerScale(5, 2.0)(x), 2 * x)


def test_weights_start_truncated_normal() -> None:
    network = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Linear(64, 64))
    before = network[0].weight.clone()
    init_weights(network, convolutions=False)
    assert torch.equal(network[0].weight, before) and network[1].bias.count_nonzero() == 0
    init_weights(network)
    assert network[0].weight.std().item() == pytest.approx(0.02, rel=0.1) and network[1].bias.count_nonzero() == 0


def backbones() -> list[str]:
    names = []
    for entry in registry.systems().values():
        network = getattr(entry.target, "Network", entry.target)
        if isinstance(network, type) and issubclass(network, Backbone):
            names.append(entry.name)
    return names


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name in backbones() for size in _backbone.published(name)], ids=lambda it: str(it)
)
def test_published_sizes_have_exactly_their_parameters(name: str, size: str) -> None:
    network, told = create_on_meta(f"{name}:{size}"), published(name)[size]
    if told.parameters is not None:
        assert count_parameters(network) == told.parameters
    if told.macs is not None and network.spatial == 2:
        assert count_macs(network, told.size) == pytest.approx(told.macs, rel=0.02)


def test_the_package_offers_what_builds_networks() -> None:
    from tutelage import systems

    assert systems.create is create and systems.published is published
    with pytest.raises(AttributeError):
        systems.build  # noqa: B018


@pytest.mark.parametrize("name", ["convnext:mini", "cvt:mini", "hornet:mini", "generalized-convolution:mini"])
def test_an_exported_network_takes_any_number_of_images(name: str, tmp_path: Path) -> None:
    network = create(name, 5).eval()
    side = published(name.partition(":")[0])["mini"].size
    images = torch.randn(3, network.in_chans, side, side)
    file = save_torchscript(network, images[:2], tmp_path / "net.pt")
    assert torch.allclose(torch.jit.load(file)(images), network(images), atol=1e-5)
    onnx = pytest.importorskip("onnxruntime")
    written = save_onnx(network, images[:2], tmp_path / "net.onnx")
    said = onnx.InferenceSession(written).run(None, {"input": images.numpy()})[0]
    assert torch.allclose(torch.from_numpy(said), network(images), atol=1e-4)
