"""Hugging Face's datasets, where the package is installed; and the message where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.hub import ImageRows, load_hub
from tutelage.distillation.data.images import ImageTransform
from tutelage.distillation.data.loader import in_order
from tutelage.errors import InputError, MissingExtra


def images(count: int = 6) -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    return [PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(count)]


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="datasets is not installed") as caught:
        load_hub("some/name")
    assert "tutelage[hf]" in caught.value.remedy


def test_the_image_of_a_row_passes_through_the_transform() -> None:
    rows = [{"image": image, "label": number % 2, "id": "x"} for number, image in enumerate(images())]
    data = DatasetData(ImageRows(rows, ImageTransform(8)))
    batch = data.batch(torch.tensor([1, 2]), None)
    assert batch.inputs.shape == (2, 3, 8, 8) and batch.labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="0 entries are images"):
        ImageRows([{"x": 1}], ImageTransform(8))
    with pytest.raises(InputError, match="2 entries are images"):
        ImageRows([{"a": images(1)[0], "b": images(1)[0]}], ImageTransform(8))


def test_a_saved_data_set_is_read_lazily_and_by_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["a", "b"])})
    columns = {"image": images(), "label": [0, 1] * 3}
    saved = hub.DatasetDict({"train": hub.Dataset.from_dict(columns, features=features)})
    saved.save_to_disk(tmp_path / "set")
    found = load_hub(str(tmp_path / "set"))
    data = DatasetData(ImageRows(found, ImageTransform(8)), loading=Loading(1))
    parts = list(in_order(data, 4))
    assert [len(part) for part in parts] == [4, 2] and parts[0].labels.tolist() == [0, 1, 0, 1]
    assert DatasetData(ImageRows(load_hub(str(tmp_path / "set")), ImageTransform(8))).fingerprint == data.fingerprint
    with pytest.raises(InputError, match="no split 'tset'"):
        load_hub(str(tmp_path / "set"), split="tset")
    with pytest.raises(InputError, match="cannot load"):
        load_hub(str(tmp_path / "absent"))


def test_rows_of_numbers_are_read_many_at_once(tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets")
    rows = hub.Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [1, 0]}).with_format("torch")
    data = DatasetData(rows)
    batch = data.batch(torch.tensor([1, 0]), torch.tensor([5, 5]))
    assert batch.inputs.tolist() == [[3, 4], [1, 2]] and batch.labels.tolist() == [0, 1] and not data.random
