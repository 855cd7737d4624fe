"""Recipes as the pages of systems show them, with small networks and files that a user could have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tutelage.cli import main
from tutelage.systems._toy import toy_images
from tutelage.systems.dsclora.method import smooth_pairs
from tutelage.systems.feds.method import waves

DSCLORA = """
method = "dsclora"
student = { model = "dsclora:tiny" }
teacher = { model = "dsclora:tiny-wide" }
data = { file = "pairs.npz" }
settings = { steps = 2, batch_size = 4, lr = 5e-4 }
"""

FEDS = """
method = "feds"
options = { trade_off = 0.0483 }
student = { model = "feds:small-student" }
teacher = { model = "feds:small-teacher" }
data = { kind = "folder", path = "photos", image_size = 32, crop_area = [0.35, 1.0], flip = 0.5 }
settings = { steps = 3, batch_size = 4, lr = 1e-4, clip = 1.0, schedule = "constant" }
"""

EFFICIENT_TRAIN = """
method = "kd"
curriculum = "efficienttrain"
student = { model = "small-cnn", options = { classes = 4, channels = 4 } }
teacher = { model = "small-cnn", options = { classes = 4, channels = 8 } }
data = { file = "images.npz" }
settings = { steps = 3, batch_size = 8 }

[curriculum_options]
sizes = [4, 6, 8]
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pairs, images = smooth_pairs(0), toy_images(0)
    np.savez("pairs.npz", inputs=pairs.inputs.numpy(), labels=pairs.labels.numpy())
    np.savez("images.npz", inputs=images.inputs.numpy(), labels=images.labels.numpy())
    (tmp_path / "photos/all").mkdir(parents=True)
    for number, photo in enumerate(waves(0).inputs):
        Image.fromarray((photo.permute(1, 2, 0).numpy() * 255).astype("uint8")).save(tmp_path / f"photos/all/{number}.png")
    return tmp_path


@pytest.mark.parametrize("recipe", [DSCLORA, FEDS, EFFICIENT_TRAIN], ids=["dsclora", "feds", "efficienttrain"])
def test_a_recipe_trains_and_exports(files: Path, recipe: str) -> None:
    (files / "recipe.toml").write_text('out = "run"\n' + recipe)
    ran = CliRunner().invoke(main.app, ["distill", "recipe.toml"])
    assert ran.exit_code == 0, ran.output
    assert (files / "run/seed-0/student.safetensors").exists()
