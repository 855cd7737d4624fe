"""Networks of other libraries by name; none is fetched, and an absent library names its extra."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tutelage.distillation.api import distill
from tutelage.distillation.data import TensorData
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.recipe import ModelSpec
from tutelage.distillation.resolve import build_model
from tutelage.errors import InputError, MissingExtra


@pytest.mark.parametrize(("name", "package", "extra"), [("timm:resnet18", "timm", "timm"), ("hf:x/y", "transformers", "hf")])
def test_an_absent_library_names_its_extra(name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"{package} is not installed") as caught:
        build_model(ModelSpec(name))
    assert f"tutelage[{extra}]" in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny vision transformer as transformers keeps one: config.json and model.safetensors."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_a_transformers_folder_teaches(folder: Path) -> None:
    teacher = build_model(ModelSpec(f"hf:{folder}"))
    images = torch.rand(12, 1, 8, 8)
    assert forward_heads(teacher.eval(), images)["logits"].shape == (12, 3)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    done = distill(student, teacher, TensorData(images), "kd", options={"alpha": 1.0}, task="classification", steps=3, batch_size=4)
    assert done.results[0].history[-1]["terms"]["kd"] > 0


def test_a_transformers_model_that_is_not_there_is_typed(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="cannot load"):
        build_model(ModelSpec(f"hf:{tmp_path / 'none'}"))


def test_a_timm_network_is_built_by_name() -> None:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit breaks its import
        pytest.skip(f"timm cannot be imported: {error}")
    network = build_model(ModelSpec("timm:resnet10t", {"num_classes": 3}))
    assert isinstance(network, type(timm.create_model("resnet10t"))) and network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(InputError):
        build_model(ModelSpec("timm:no_such_network"))
