from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tutelage.modules.pretrained.coco_classes import CLASSES
from tutelage.modules.pretrained.nanodet import BINS, NanoDet, NanoDetConfig
from tutelage.modules.pretrained.segmentation import PersonSegmenter
from tutelage.programs.types import Call, RuntimeFailure
from tutelage.programs.values import Image


class Seen(nn.Module):
    """Heads that hold a person in the first picture's cell 600 and a cup in every picture's cell 100."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        count = len(batch["pixels"])
        presence, bins = torch.full((count, 3549, len(CLASSES)), -12.0), torch.zeros(count, 3549, 4, BINS)
        presence[0, 26 * 52 + 26, CLASSES.index("person")] = 3.0
        presence[:, 100, CLASSES.index("cup")] = 1.0
        return {"presence": presence, "bins": bins}


def calls(count: int) -> list[Call]:
    rng = np.random.default_rng(0)
    return [Call("SEG", {"image": Image.from_array(rng.integers(0, 256, (3, 416, 416), dtype=np.uint8))}) for _ in range(count)]


def test_people_have_masks_inside_their_boxes_and_other_things_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    module, looked = PersonSegmenter(NanoDet(NanoDetConfig(), Seen())), list[int]()

    def people(images: list[Image]) -> list[np.ndarray]:
        looked.append(len(images))
        return [np.ones((416, 416), np.float32) for _ in images]

    monkeypatch.setattr(module, "people", people)
    first, second = module.run(calls(2)).values
    assert looked == [1]  # only pictures with people are looked at for their pixels
    assert [thing.category for thing in first] == ["person", "cup"] and [thing.category for thing in second] == ["cup"]
    person, cup = first
    box, (rows, columns) = person.box, np.nonzero(person.mask)
    assert cup.mask is None and (rows.min(), columns.min()) == (int(box.y1), int(box.x1))
    assert (rows.max() + 1, columns.max() + 1) == (int(np.ceil(box.y2)), int(np.ceil(box.x2)))


def test_without_the_second_network_pictures_with_people_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path))
    refused, things = PersonSegmenter(NanoDet(NanoDetConfig(), Seen())).run(calls(2)).values
    assert isinstance(refused, RuntimeFailure) and "tutelage assets fetch selfie" in str(refused.remedy)
    assert [thing.category for thing in things] == ["cup"]
