"""CNN Explainer: networks as chains of layers, the page's engine, the page as a file, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from tutelage import registry
from tutelage.cli import main
from tutelage.distillation.export import save_weights
from tutelage.distillation.recipe import ModelSpec
from tutelage.distillation.resolve import build_model
from tutelage.distillation.small_models import ResNet, SmallCNN, TinyVGG
from tutelage.errors import InputError
from tutelage.systems.cnn_explainer import CNNExplainer, export_explainer, load_explained, read_layers, to_network
from tutelage.systems.cnn_explainer.explainer import parse_page
from tutelage.systems.cnn_explainer.layers import layer_shapes, parameter_count
from tutelage.systems.cnn_explainer.pictures import to_pixels
from tutelage.systems.cnn_explainer.script import FORWARD, NODE, find_program, page_file, run_script, script_host
from tutelage.systems.cnn_explainer.shapes import CLASS_NAMES, fold_normalization, shape_pictures
from tutelage.systems.cnn_explainer.weights import tiny_vgg_from_weights

needs_script = pytest.mark.skipif(script_host() is None, reason="neither node nor chromium: apt-get install nodejs")
needs_node = pytest.mark.skipif(find_program(NODE) is None, reason="no node, and a browser is slow: apt-get install nodejs")
NAMES = ["cat", "dog", "car"]


def tiny(**options: Any) -> TinyVGG:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyVGG(**{"classes": 3, "channels": 4, "image_size": 16} | options)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def plain(*layers: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*layers)


def hidden_layers() -> list[nn.Module]:
    return [nn.Linear(16, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3), nn.Softmax(1)]


class Functional(nn.Module):
    """A class of a user: functions in place of modules, a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 2, stride=2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        return {"logits": self.head(torch.relu(self.second(x)).mean((2, 3)))}


# -- the network ---------------------------------------------------------------------------------------------------------


def test_tiny_vgg_is_the_published_network() -> None:
    layers = read_layers(TinyVGG())
    assert parameter_count(layers) == 19_920 == 280 + 3 * 910 + 16_910
    sides = [shape[1] for shape in layer_shapes(layers, 64) if len(shape) == 3]
    assert sides == [62, 62, 60, 60, 30, 28, 28, 26, 26, 13]
    assert layer_shapes(layers, 64)[-2:] == [(1690,), (10,)]
    assert build_model(ModelSpec("tiny-vgg", {"classes": 7, "image_size": 28, "inputs": 1}))(torch.zeros(1, 1, 28, 28)).shape == (
        1,
        7,
    )
    with pytest.raises(InputError, match="at least 16 pixels"):
        TinyVGG(image_size=15)
    assert TinyVGG(image_size=16)(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


@pytest.mark.parametrize(
    ("network", "shape", "kinds"),
    [
        (Functional(), (1, 8, 8), "conv relu pool conv relu mean linear"),
        (SmallCNN(3, 4, 8), (1, 12, 12), "conv relu conv relu conv relu mean linear"),
        (tiny(), (3, 16, 16), "conv relu conv relu pool conv relu conv relu pool flatten linear"),
        (plain(nn.Conv2d(3, 4, 3), nn.Flatten(), *hidden_layers()), (3, 4, 4), "conv flatten linear relu linear"),
    ],
)
def test_a_chain_is_read_whatever_its_class(network: nn.Module, shape: tuple[int, ...], kinds: str) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that are not 0 and 1
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    layers, x = read_layers(network), torch.rand(4, *shape)
    assert " ".join(layer.type for layer in layers) == kinds
    with torch.no_grad():
        expected = network.eval()(x)
        expected = expected["logits"] if isinstance(expected, dict) else expected
        found = to_network(layers)(x)
        found = found.softmax(1) if isinstance(list(network.children())[-1], nn.Softmax) else found
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# -- the engine ----------------------------------------------------------------------------------------------------------


def engine_outputs(page: CNNExplainer) -> list[list[Tensor]]:
    found = run_script(FORWARD, {"model": page.model_json(), "pixels": page.pixels.flatten(1).tolist()})
    return [[torch.tensor(values) for values in one] for one in found]


@needs_script
@pytest.mark.parametrize(
    ("network", "shape"), [(tiny(), (3, 16, 16)), (Functional(), (1, 8, 8)), (tiny(inputs=1, image_size=28), (1, 28, 28))]
)
def test_every_layer_of_the_engine_is_pytorchs(network: nn.Module, shape: tuple[int, ...]) -> None:
    page = CNNExplainer(network, noise(3, *shape), NAMES, image_size=shape[1], mean=0.4, std=0.3)
    x, found = page.inputs(), engine_outputs(page)
    with torch.no_grad():
        for number, layer in enumerate(page.network()):
            x = layer(x)
            outputs = torch.stack([one[number] for one in found]).reshape(x.shape)
            assert (outputs - x).abs().max() <= 1e-5, number
            assert number < len(page.layers) - 1 or torch.equal(outputs.argmax(1), x.argmax(1))


@needs_node
def test_the_engine_on_numbers_made_by_hand() -> None:
    code = """
    const conv = (size, k, stride, pad, weight, output) => ({
      type: "conv", inputShape: [1, size, size], outputShape: [1, output, output], shape: [1, 1, k, k],
      weight: Float32Array.from(weight), bias: Float32Array.of(0), stride, pad,
    });
    const count = (n) => Float32Array.from({ length: n }, (_, i) => i + 1);
    const run = (layer, x) => Array.from(Engine.forward({ layers: [layer] }, x)[0]);
    const main = () => ({
      conv: run(conv(3, 2, 1, 0, [1, 1, 1, 1], 2), count(9)),
      padded: run(conv(2, 3, 1, 1, Array(9).fill(1), 2), count(4)),
      stride: run(conv(4, 2, 2, 0, [1, 0, 0, 0], 2), count(16)),
      pool: run({ type: "pool", size: 2, stride: 2, inputShape: [1, 5, 5], outputShape: [1, 2, 2] }, count(25)),
      mean: run({ type: "mean", inputShape: [2, 2, 2], outputShape: [2] }, count(8)),
      sizes: [[5, 2, 0, 1], [5, 2, 0, 2], [6, 2, 0, 2], [5, 3, 1, 2]].map((sizes) => Engine.outputSize(...sizes)),
      softmax: Engine.softmax([1000, 1001, 999]).probabilities,
    });"""
    found = run_script(code, {})
    assert found["conv"] == [12, 16, 24, 28]
    assert found["padded"] == [10, 10, 10, 10], "padding really pads"
    assert found["stride"] == [1, 3, 9, 11]
    assert found["pool"] == [7, 9, 17, 19], "the odd edge is dropped"
    assert found["mean"] == [2.5, 6.5]
    assert found["sizes"] == [4, 2.5, 3, 3]
    assert sum(found["softmax"]) == pytest.approx(1, abs=1e-6) and max(found["softmax"]) == found["softmax"][1]


@needs_node
def test_the_product_maps_and_the_bias_sum_to_the_map() -> None:
    network = plain(nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(32, 3))
    page = CNNExplainer(network, noise(1, 3, 8, 8), NAMES, image_size=8)
    code = """const main = ({ model, pixels }) => {
      const ready = Engine.prepare(model), input = Engine.normalize(pixels, ready.input), layer = ready.layers[0];
      return [0, 1].map((o) => Engine.products(input, layer, o).map((map) => Array.from(map)));
    };"""
    found = torch.tensor(run_script(code, {"model": page.model_json(), "pixels": page.pixels[0].flatten().tolist()}))
    conv = page.network()[0]
    with torch.no_grad():
        expected = conv(page.inputs())[0].flatten(1)
    assert found.shape == (2, 3, 16)
    torch.testing.assert_close(found.sum(1) + conv.bias[:, None], expected, rtol=0, atol=1e-5)


@needs_node
@settings(max_examples=5, deadline=None)
@given(k=st.integers(1, 4), stride=st.integers(1, 3), pad=st.integers(0, 2), size=st.integers(5, 9))
def test_any_window_is_computed_as_pytorch_does(k: int, stride: int, pad: int, size: int) -> None:
    side = (size + 2 * pad - k) // stride + 1
    network = plain(nn.Conv2d(1, 2, k, stride, pad), nn.Flatten(), nn.Linear(2 * side * side, 3))
    page = CNNExplainer(network, noise(1, 1, size, size), NAMES, image_size=size)
    with torch.no_grad():
        assert (engine_outputs(page)[0][0] - page.network()[0](page.inputs()).flatten()).abs().max() <= 1e-5


# -- the page as a file --------------------------------------------------------------------------------------------------


def test_the_network_reads_back_from_the_page_to_the_bit(tmp_path: Path) -> None:
    network = tiny()
    page = export_explainer(network, tmp_path / "page.html", noise(2, 3, 16, 16), NAMES)
    again = load_explained(page)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), network.state_dict().values(), strict=True))
    assert torch.equal(again(torch.ones(1, 3, 16, 16)), network.eval()(torch.ones(1, 3, 16, 16)))


def test_a_page_asks_nothing_of_the_network_and_escapes_names() -> None:
    html = CNNExplainer(tiny(), noise(1, 3, 16, 16), ["</script><b>", "dog & cat", "car"], title="<i>T</i>").html()
    assert not re.findall(r"https?:|//cdn|@import|url\(|src=", html)
    assert "<b>" not in re.sub(r"<b>(tutelage|kernel|bias|logit|padding|stride)</b>", "", html) and "<i>T" not in html
    assert "default-src 'none'" in html and "worker-src blob:" in html


def test_the_published_size_is_well_below_a_mebibyte() -> None:
    html = CNNExplainer(TinyVGG(), noise(10, 3, 64, 64), [f"class {n}" for n in range(10)]).html()
    assert len(html.encode()) < 2**19


def test_tiny_run_and_registry() -> None:
    entry = registry.find("cnn-explainer")
    assert entry.is_tool and entry.kind == "education"
    figures = entry.target.tiny_run(0)
    assert figures["difference"] == 0 and figures["requests"] == 0


@pytest.mark.parametrize(
    ("html", "message"),
    [
        ("<html></html>", "no network in it"),
        ('<script type="application/json" id="model">{"version": 9}</script>', "version 9"),
        ('<script type="application/json" id="model">{"version": 1</script>', "damaged"),
        ('<script type="application/json" id="model">{"version": 1, "layers": [{"name": "a", "type": "exec"}]}</script>', "type"),
        (
            '<script type="application/json" id="model">{"version": 1, "layers": [{"name": "a", "type": "linear", "shape": [2, 2], '
            '"weight": "AAAA", "bias": "AAAAAAAAAAA="}]}</script>',
            "damaged",
        ),
    ],
)
def test_a_damaged_page_is_refused(html: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_page(html, "page.html")


# -- pictures ------------------------------------------------------------------------------------------------------------


def test_pictures_are_cropped_resized_and_laid_over_white(tmp_path: Path) -> None:
    wide = PIL.Image.new("RGB", (90, 30), "blue")
    wide.paste("red", (30, 0, 60, 30))
    wide.paste("lime", (30, 0, 45, 15))  # top left of the middle square
    clear = PIL.Image.new("RGBA", (20, 40), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    pixels = to_pixels([wide, tmp_path / "clear.png", PIL.Image.new("L", (7, 7), 100)], 3, 10)
    assert pixels.shape == (3, 3, 10, 10)
    assert pixels[0, :, 1, 1].tolist() == [0, 255, 0] and pixels[0, :, 8, 8].tolist() == [255, 0, 0], "neither turned nor mirrored"
    assert int(pixels[0, 2].max()) == 0, "the sides are cut off"
    assert (pixels[1] == 255).all() and (pixels[2] == 100).all()
    assert to_pixels(wide, 1, 10).shape == (1, 1, 10, 10)
    assert to_pixels([np.full((3, 4, 4), 0.5, np.float32)], 3, 4)[0, 0, 0, 0] == 128


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "there is no picture"),
        ([torch.zeros(3, 9, 9)], r"shape \[3, 9, 9\], the network takes \[3, 8, 8\]"),
        ([torch.zeros(1, 8, 8)], "resize it"),
        ([torch.full((3, 8, 8), 1.5)], "before any normalisation"),
        ([torch.full((3, 8, 8), torch.nan)], "values from nan"),
        (["no-such.png"], "no such image"),
        ([5], "a int"),
        (torch.zeros(51, 3, 8, 8), "at most 50"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(pictures: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_pixels(pictures, 3, 8)


# -- refusals ------------------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.relu()


class Choice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


HEAD = (nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize(
    ("network", "where", "message"),
    [
        (plain(nn.Conv2d(1, 1, 3), nn.Sigmoid(), *HEAD), "1", "Sigmoid"),
        (plain(nn.Conv2d(1, 1, 3), nn.AvgPool2d(2), *HEAD), "1", "AvgPool2d"),
        (plain(nn.Conv2d(2, 2, 3, groups=2), *HEAD), "0", "grouped"),
        (plain(nn.Conv2d(1, 1, (3, 1)), *HEAD), "0", "3x1, which is not square"),
        (plain(nn.Conv2d(1, 1, 3, dilation=2), *HEAD), "0", "dilated"),
        (plain(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2, padding=1), *HEAD), "1", "pooling with padding"),
        (plain(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 3), *HEAD), "BatchNorm2d", "does not follow a convolution"),
        (plain(nn.Conv2d(1, 1, 3), Branch(), *HEAD), None, "shortcut"),
        (plain(nn.Conv2d(1, 1, 3), Choice(), *HEAD), None, "cannot be read as a chain"),
        (ResNet(8), None, "shortcut"),
        (plain(nn.Linear(4, 2)), "network", "no convolution"),
        (plain(nn.Conv2d(1, 1, 3), nn.ReLU()), "network", "gives no logits"),
        (plain(nn.Conv2d(1, 65, 3), *HEAD), "0", "a page shows 64"),
        (plain(nn.Conv2d(1, 64, 3), nn.Flatten(), nn.Linear(20_000, 60)), "network", "a page holds 1,000,000"),
    ],
)
def test_what_cannot_be_drawn_is_named(network: nn.Module, where: str | None, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_layers(network)
    assert where is None or caught.value.where == where
    assert caught.value.remedy


def test_weights_that_are_not_finite_are_refused_by_layer() -> None:
    network = tiny()
    network.conv_2_1.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="1 of 144 values of the weight are NaN") as caught:
        CNNExplainer(network, noise(1, 3, 16, 16), NAMES)
    assert caught.value.where == "conv_2_1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, "2 class names for 3 outputs"),
        ({"class_names": ["a", "b", " "]}, "not empty"),
        ({"image_size": 32}, "the layer takes 4 values, it is given"),
        ({"image_size": 3}, "does not fit"),
        ({"image_size": 1000}, "1 to 256"),
        ({"std": 0}, "above 0"),
        ({"mean": [0.1, 0.2]}, "or 3 of them"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CNNExplainer(tiny(), noise(1, 3, 16, 16), **{"class_names": NAMES} | options)


def test_an_image_size_that_layers_leave_open_must_be_given() -> None:
    network = plain(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3))  # 8 and 9 pixels fit
    with pytest.raises(InputError, match="8 to 9 pixels all fit"):
        CNNExplainer(network, noise(1, 1, 8, 8), NAMES)
    assert CNNExplainer(plain(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)), noise(1, 1, 8, 8), NAMES).image_size == 8
    with pytest.raises(InputError, match="2 input channels"):
        CNNExplainer(plain(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(72, 3)), [], NAMES, image_size=8)


# -- weights, shapes, command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"classes": 2, "channels": 3, "inputs": 1, "image_size": 28}, {"blocks": 1}, {"image_size": 64}]
)
def test_a_tiny_vgg_is_built_from_its_weights_alone(options: dict[str, Any], tmp_path: Path) -> None:
    network = tiny(**options)
    again = tiny_vgg_from_weights(save_weights(network, tmp_path / "student.safetensors"))
    assert again.image_size == network.image_size
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), network.state_dict().values(), strict=True))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the weights of a TinyVGG"):
        tiny_vgg_from_weights(save_weights(SmallCNN(), tmp_path / "other.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not readable"):
        tiny_vgg_from_weights(tmp_path / "broken.safetensors")


def test_shapes_are_drawn_in_turn_and_a_normalization_folds_in() -> None:
    drawn = shape_pictures(0, 20)
    assert drawn.inputs.shape == (20, 3, 64, 64) and drawn.labels.tolist() == [*range(10), *range(10)]
    assert torch.equal(shape_pictures(0, 20).inputs, drawn.inputs) and len(CLASS_NAMES) == 10
    conv, x = nn.Conv2d(3, 4, 3), drawn.inputs[:2].float() / 255
    with torch.no_grad():
        expected = conv((x - 0.5) / 0.25)
        fold_normalization(conv, 0.5, 0.25)
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-5)


OWN_NETWORK = """
from torch import nn

def make(width=2):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.Linear(width * 36, 3))
"""


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    weights, photo, out = tmp_path / "student.safetensors", tmp_path / "photo.png", tmp_path / "page.html"
    save_weights(tiny(), weights)
    PIL.Image.new("RGB", (40, 30), "red").save(photo)
    words = ["explain", str(weights), "--image", str(photo), "--classes", "cat,dog,car", "--out", str(out)]
    done = CliRunner().invoke(main.app, words)
    assert done.exit_code == 0, done.output
    assert "12 layers, 571 parameters, 1 pictures" in done.output and len(load_explained(out)) == 12

    own = tmp_path / "own_network_of_a_test.py"
    own.write_text(OWN_NETWORK)
    words = ["explain", "--network", f"{own}:make", "--set", "width=3", "--image", str(tmp_path), "--out", str(out)]
    done = CliRunner().invoke(main.app, words)
    assert done.exit_code == 0, done.output
    assert load_explained(out)[0].out_channels == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "tiny-vgg"], "there is no picture"),
        (["--network", "resnet"], "shortcut"),
        (["--network", "tiny-vgg", "--set", "channels"], "no NAME=VALUE"),
        (["--network", "tiny-vgg", "--mean", "a"], "is no number"),
        (["no-such.safetensors"], "no-such.safetensors"),
        (["--image", "{folder}"], "no picture in the folder"),
    ],
)
def test_the_command_refuses_with_a_remedy(words: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    filled = [word.replace("{folder}", str(tmp_path)) for word in words]
    done = CliRunner().invoke(main.app, ["explain", *filled, "--out", str(out)])
    assert done.exit_code == 2 and message in done.output and "remedy" in done.output
    assert not out.exists()


def test_every_file_of_the_page_is_in_the_package() -> None:
    page = page_file("page.html")
    for name in re.findall(r'include "([\w.]+)"', page):
        assert page_file(name)
