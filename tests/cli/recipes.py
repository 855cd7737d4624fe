"""A recipe on a small file of toy images, and its teacher's weights, in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from tutelage.cli import main
from tutelage.distillation.data import TensorData
from tutelage.distillation.export import save_weights
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.small_models import SmallCNN
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.systems._toy import build_with_seed, toy_images

RECIPE = """
out = "{folder}/run"
seeds = 2
[student]
model = "small-cnn"
options = {{ classes = 4, channels = 4, embedding = 8 }}
[teacher]
model = "small-cnn"
options = {{ classes = 4, channels = 8, embedding = 16 }}
weights = "{folder}/teacher.safetensors"
[data]
file = "{folder}/data.npz"
[test]
file = "{folder}/test.npz"
[settings]
steps = 20
batch_size = 16
lr = 1e-2
"""

CACHE = """
[cache]
folder = "{folder}/cache"
store = "fp16"
"""


def written(folder: Path, more: str = "") -> Path:
    """The recipe's file; ``more`` is added to it."""
    data = toy_images(0, 96)
    for name, part in (("data", slice(0, 64)), ("test", slice(64, 96))):
        np.savez(folder / f"{name}.npz", inputs=data.inputs[part].numpy(), labels=data.labels[part].numpy())
    teacher = build_with_seed(lambda: SmallCNN(4, 8, 16), 0, "teacher")
    settings = TrainingSettings(steps=40, batch_size=16, lr=1e-2)
    train(TrainingJob(teacher, None, Supervised(), TensorData(data.inputs[:64], data.labels[:64]), settings))
    save_weights(teacher, folder / "teacher.safetensors")
    file = folder / "recipe.toml"
    file.write_text((RECIPE + more).format(folder=folder))
    return file


def tutelage(*words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    done = CliRunner().invoke(main.app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr
