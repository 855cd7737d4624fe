"""Recipes whose data are several sources, noise, or clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.cli._recipe import load
from tutelage.datasets.synthetic.moving_shapes import moving_shapes
from tutelage.distillation.recipe import DataSpec, read_recipe
from tutelage.distillation.resolve import load_data
from tutelage.errors import InputError

from .recipes import tutelage

RECIPE = """
out = "{folder}/run"
[student]
model = "small-cnn"
options = {{ classes = 10, channels = 4, embedding = 8 }}
[teacher]
model = "small-cnn"
options = {{ classes = 10, channels = 4, embedding = 8 }}
[data]
kind = "combined"
weights = {{ known = 3, unknown = 1 }}
field = "domain"
[data.sources.known]
name = "digits"
limit = 90
[data.sources.unknown]
file = "{folder}/unknown.npz"
[settings]
steps = 4
batch_size = 8
"""


def test_two_sources_are_distilled_from_a_recipe(tmp_path: Path) -> None:
    np.savez(tmp_path / "unknown.npz", inputs=np.random.default_rng(0).random((30, 1, 8, 8), dtype=np.float32))
    file = tmp_path / "two.toml"
    file.write_text(RECIPE.format(folder=tmp_path))
    code, _, err = tutelage("distill", file, "--json", tmp_path / "result.json")
    assert code == 0, err
    assert json.loads((tmp_path / "result.json").read_text())["runs"]
    data, _ = load(read_recipe(file).data, "data", None)
    batch = data.batch(*data.sample_order(8, 0).step(0))
    assert batch.extra["domain"].bincount().tolist() == [6, 2] and (batch.labels[6:] == -100).all()
    code, out, err = tutelage("doctor", file, "--steps", 1)
    assert "class order" in out or "teacher score" in out, err
    code, out, err = tutelage("distill", file, "--set", "data.weights.knwn=1")
    assert code == 2 and "did you mean known" in out + err


def test_noise_and_clips_have_their_kinds(tmp_path: Path) -> None:
    noise = load_data(DataSpec(kind="prior", shape=(2, 3), length=10**9, classes=4))
    assert noise.batch(torch.arange(5), None).inputs.shape == (5, 2, 3)
    for clip in range(2):
        (tmp_path / f"clip{clip}").mkdir()
        for number, frame in enumerate(moving_shapes(0, clip, frames=3, image_size=32).frames):
            Image.fromarray(frame.transpose(1, 2, 0)).save(tmp_path / f"clip{clip}" / f"{number}.png")
    clips = load_data(DataSpec(kind="clips", path=str(tmp_path), frames=2, image_size=16, crop_area=(0.5, 1.0)))
    assert clips.batch(torch.arange(2), torch.arange(2)).inputs.shape == (2, 2, 3, 16, 16)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "prior"}, "shape = [3, 32, 32]"),
        ({"kind": "clips", "path": "x", "image_size": 8}, "frames is missing"),
        ({"kind": "clips", "path": "x", "frames": 2}, "image_size is missing"),
        ({"kind": "combined"}, "data.sources"),
        ({"kind": "combined", "name": "digits"}, "data.sources"),
    ],
)
def test_what_is_missing_is_named(table: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        DataSpec(**table)
    assert words in str(caught.value)
