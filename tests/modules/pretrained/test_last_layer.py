"""The classifier of which only the last layer learns, over a small untrained network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutelage.modules.classification import ClassifierConfig
from tutelage.modules.pretrained import last_layer
from tutelage.modules.pretrained.efficientnet import ImageNetClassifier
from tutelage.modules.pretrained.last_layer import LastLayerClassifier
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call
from tutelage.programs.values import Image
from tutelage.sdvp.compile import compile as distil
from tutelage.sdvp.label import Filters
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import Question

WORDS = ("cat", "dog", "boat")


@pytest.fixture(scope="module")
def whole() -> ImageNetClassifier:
    return ImageNetClassifier.build(ClassifierConfig(WORDS, 32), 0)


def calls(count: int, start: int = 0) -> list[Call]:
    rng = np.random.default_rng(start)
    return [Call("CATEGORY", {"image": Image.from_array(rng.integers(0, 256, (3, 40, 50), np.uint8))}) for _ in range(count)]


def test_untrained_it_answers_as_the_whole_classifier(whole: ImageNetClassifier) -> None:
    module, batch = LastLayerClassifier.of(whole), calls(5)
    one, other = module.run(batch), whole.run(batch)
    assert one.values == other.values
    torch.testing.assert_close(one.heads["answer"], other.heads["answer"])


def test_an_image_is_looked_at_once_by_all_versions(whole: ImageNetClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = LastLayerClassifier.of(whole), calls(3)
    first = module.encode([batch[0], batch[1], batch[0]])["features"]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    asked: list[int] = []
    encode = whole.encode
    monkeypatch.setattr(whole, "encode", lambda found: asked.append(len(found)) or encode(found))
    later = module.with_network(module.copy_network()).encode(batch)["features"]
    assert asked == [1], "only the third image is new"
    torch.testing.assert_close(later[:2], first[:2])


def test_old_features_are_dropped(whole: ImageNetClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_layer, "MAX_IMAGES", 4)
    module, batch = LastLayerClassifier.of(whole), calls(6)
    kept = module.encode(batch)["features"]
    assert len(module._features) == 4
    torch.testing.assert_close(module.encode(batch)["features"], kept)


def test_only_the_last_layer_learns(whole: ImageNetClassifier) -> None:
    module = LastLayerClassifier.of(whole)
    before = {name: weight.clone() for name, weight in whole.network.state_dict().items()}
    program = "ANSWER0=CATEGORY(image=IMAGE)\nFINAL_RESULT=RESULT(var=ANSWER0)"
    images = [{"IMAGE": call.args["image"]} for call in calls(8)]
    questions = [Question(str(i), "t", image, "What?", {"visprog": program}) for i, image in enumerate(images)]
    options = SdvpOptions(filters=Filters(0.0), max_drop=None)
    with pytest.warns(match="accepted unseen"):
        modules = {**symbolic_modules(), "CATEGORY": module}
        result = distil(questions, modules, {"CATEGORY": lambda asked: ["boat"] * len(asked)}, options=options)
    distilled = result.modules["CATEGORY"]
    assert distilled.run(calls(8)).values == ["boat"] * 8
    assert {name for name, _ in distilled.network.named_parameters()} == {"layer.weight", "layer.bias"}
    assert all(torch.equal(weight, before[name]) for name, weight in whole.network.state_dict().items())
    assert distilled.version != module.version


def test_the_frozen_layers_count_in_the_version(whole: ImageNetClassifier) -> None:
    other = ImageNetClassifier.build(ClassifierConfig(WORDS, 32), 1)
    twin = LastLayerClassifier(whole.config, LastLayerClassifier.of(whole).network, other)
    assert twin.version != LastLayerClassifier.of(whole).version
    assert LastLayerClassifier.of(whole).version == LastLayerClassifier.of(whole).version


def test_it_is_saved_and_loaded(whole: ImageNetClassifier, tmp_path) -> None:  # noqa: ANN001
    module = LastLayerClassifier.of(whole)
    layer = module.copy_network()
    torch.nn.init.normal_(layer.layer.weight)
    changed = module.with_network(layer)
    changed.save(tmp_path)
    assert module.load_weights(tmp_path).version == changed.version != module.version
