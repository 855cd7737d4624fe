"""Recipes and data that ask for what cannot be are refused with the key named, before memory is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tutelage.cli import main

RECIPE = """
method = "kd"
out = "{folder}/run"
[student]
model = "small-cnn"
options = {{ {student} }}
[teacher]
model = "small-cnn"
[data]
file = "{folder}/{data}"
[options]
{options}
[settings]
steps = 2
{settings}
"""
WRONG = {
    "negative labels": ({"data": "negative.npz"}, "labels: a label is -7"),
    "large labels": ({"data": "large.npz"}, "labels: a label is"),
    "fewer labels": ({"data": "short.npz"}, "labels holds 3 samples"),
    "texts": ({"data": "texts.npz"}, "texts.npz"),
    "a device": ({"data": "device.npz"}, "not a regular file"),
    "half a zip": ({"data": "cut.npz"}, "cut.npz"),
    "alpha": ({"options": "alpha = 'x'"}, "alpha"),
    "alpha nan": ({"options": "alpha = nan"}, "alpha"),
    "tau": ({"options": "tau = -1"}, "tau"),
    "device": ({"settings": "device = '/etc'"}, "settings.device"),
    "meta": ({"settings": "device = 'meta'"}, "settings.device"),
    "batch": ({"settings": "batch_size = 1000000000000"}, "settings.batch_size"),
    "batch memory": ({"settings": "batch_size = 900000000"}, "of memory"),
    "accumulate": ({"settings": "accumulate = 1000000000000"}, "settings.accumulate"),
    "views": ({"settings": "views = -1"}, "settings.views"),
    "lr": ({"settings": "lr = nan"}, "settings.lr"),
    "betas": ({"settings": "betas = [2.0, 0.1]"}, "settings.betas"),
    "log": ({"settings": "log_every = -3"}, "settings.log_every"),
    "digits": ({"settings": "seed = " + "9" * 5_000}, "recipe.toml"),
    "nested": ({"settings": "milestones = " + "[" * 5_000 + "]" * 5_000}, "recipe.toml"),
    "classes": ({"student": "classes = 'x'"}, "options"),
    "classes memory": ({"student": "classes = 1000000000000"}, "of memory"),
    "classes negative": ({"student": "classes = -4"}, "options"),
    "nul": ({"data": "a\\u0000b.npz"}, "not a path"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_recipe_is_refused_by_name(change: dict[str, str], message: str, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=np.arange(16) % 3)
    np.savez(tmp_path / "negative.npz", inputs=inputs, labels=np.full(16, -7))
    np.savez(tmp_path / "large.npz", inputs=inputs, labels=np.full(16, 10**12))
    np.savez(tmp_path / "short.npz", inputs=inputs, labels=np.arange(3))
    np.savez(tmp_path / "texts.npz", inputs=np.array(["a"] * 16))
    (tmp_path / "device.npz").symlink_to("/dev/zero")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:100])
    filled = {"folder": tmp_path, "student": "", "data": "data.npz", "options": "", "settings": ""} | change
    (tmp_path / "recipe.toml").write_text(RECIPE.format(**filled))
    result = CliRunner().invoke(main.app, ["distill", str(tmp_path / "recipe.toml")])
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, result.exception
    assert message in result.output and "remedy" in result.output
