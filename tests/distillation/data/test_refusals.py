"""Data that cannot be learned from is refused with the field and the remedy, never with an error of torch or NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tutelage.distillation.api import distill
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import TensorData
from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.images import ImageTransform
from tutelage.distillation.data.sources import as_data, image_folder
from tutelage.errors import InputError

X, Y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
IMAGES = torch.rand(8, 3, 8, 8)


def run(data: object, **settings: object) -> None:
    torch.manual_seed(0)
    distill(nn.Linear(4, 3), nn.Linear(4, 3), data, "kd", **({"steps": 2, "batch_size": 4} | settings))


def images(data: object, size: int = 4) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    distill(network, network, data, "kd", steps=2, batch_size=size)


def view(labels: object = None, **settings: object) -> None:
    images(TensorData(IMAGES, torch.arange(8) % 3 if labels is None else labels, views=Augmentation(**settings)))


CASES = {
    "labels are texts": (lambda: TensorData(X, [str(one) for one in Y.tolist()]), "labels: texts"),
    "labels are an array of texts": (lambda: TensorData(X, np.array(["a"] * 20)), "number the classes"),
    "inputs are lists": (lambda: TensorData(X.tolist(), Y), "torch.tensor"),
    "no inputs": (lambda: TensorData(None, Y), "no inputs"),
    "no axis": (lambda: TensorData(torch.tensor(1.0)), "inputs"),
    "no sample": (lambda: TensorData(X[:0], Y[:0]), "holds no sample"),
    "too few labels": (lambda: TensorData(X, Y[:5]), "labels holds 5"),
    "negative weights": (lambda: TensorData(X, Y, -torch.ones(20)), "weights"),
    "weights in two columns": (lambda: TensorData(X, Y, torch.ones(20, 2)), "weights"),
    "views that are no function": (lambda: TensorData(X, Y, views=3), "views"),
    "one label of all is wrong": (lambda: run(TensorData(X, torch.where(torch.arange(20) == 15, -7, Y))), "sample 15 is -7"),
    "no such sample": (lambda: TensorData(X, Y).batch(torch.tensor([99]), None), "no such sample"),
    "triples": (lambda: run([(x, y, 1) for x, y in zip(X, Y, strict=True)]), "tuple of 3"),
    "a dict of tensors": (lambda: run({"inputs": X, "labels": Y}), "TensorData(inputs, labels)"),
    "a pair of tensors": (lambda: run((X, Y)), "TensorData(inputs, labels)"),
    "no data": (lambda: as_data(None), "Prior(shape)"),
    "a length that is none": (lambda: DatasetData(type("D", (), {"__len__": lambda s: "8", "__getitem__": 0})()), "the length"),
    "reseed": (lambda: DatasetData([1.0], reseed=3), "reseed"),
    "workers": (lambda: Loading(workers=1.5), "workers"),
    "image size": (lambda: ImageTransform("a"), "image_size"),
    "crop area": (lambda: ImageTransform(8, (0.5,)), "crop_area: (0.5,) is no pair"),
    "mixing beyond the classes": (lambda: view(mixup=0.3, classes=2), "labels are 0 to 2, of 2 classes"),
    "mixing maps": (lambda: view(torch.zeros(8, 8, 8).long(), mixup=0.3, classes=2), "cannot mix such labels"),
    "no such field": (lambda: view(flip=0.5, field="image"), "inputs.image"),
    "half a pixel": (lambda: Augmentation(crop=1.5), "views.crop"),
    "randaugment without magnitude": (lambda: Augmentation(randaugment=2), "views.randaugment"),
    "randaugment": (lambda: Augmentation(randaugment=(2,)), "views.randaugment"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    make, words = CASES[name]
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value) and caught.value.remedy


def test_a_limit_below_one(tmp_path) -> None:
    with pytest.raises(InputError, match="-3 images"):
        image_folder(tmp_path, 8, limit=-3)


def test_arrays_and_small_integers_are_taken() -> None:
    run(TensorData(X.numpy(), Y.numpy().astype(np.uint8)))
    assert isinstance(TensorData(X.numpy()).inputs, torch.Tensor)
