"""A recipe on a folder of image files: trained, cached, looked at by the doctor, and scored on another folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tutelage.distillation.recipe import DataSpec, read_recipe
from tutelage.distillation.resolve import load_data
from tutelage.errors import InputError

from .recipes import tutelage

RECIPE = """
out = "{folder}/run"
[student]
model = "small-cnn"
options = {{ classes = 2, channels = 4, embedding = 8, inputs = 3 }}
[teacher]
model = "small-cnn"
options = {{ classes = 2, channels = 4, embedding = 8, inputs = 3 }}
[data]
kind = "folder"
path = "{folder}/train"
image_size = 8
crop_area = [0.5, 1.0]
flip = 0.5
workers = 1
[test]
kind = "folder"
path = "{folder}/test"
image_size = 8
[settings]
steps = 6
batch_size = 8
views = 2
[cache]
folder = "{folder}/cache"
"""


def images(folder: Path, classes: tuple[str, ...], count: int = 12) -> Path:
    rng = np.random.default_rng(len(classes))
    for number in range(count):
        name = classes[number % len(classes)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (10, 12, 3), dtype=np.uint8) + np.uint8(100 * (name == "dog"))
        PIL.Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
    return folder


def test_a_folder_of_images_is_distilled_from_a_recipe(tmp_path: Path) -> None:
    images(tmp_path / "train", ("cat", "dog"))
    images(tmp_path / "test", ("dog",), 4)  # classes are numbered as in the training folder
    file = tmp_path / "photos.toml"
    file.write_text(RECIPE.format(folder=tmp_path))
    code, out, err = tutelage("distill", file, "--json", tmp_path / "result.json")
    assert code == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["cache"]["rows"] == 24 and set(result["figures"]) == {"accuracy", "F1"}
    code, out, err = tutelage("doctor", file, "--steps", 1)
    assert "views replay: samples read again" in out
    code, out, err = tutelage("cache", "verify", file)
    assert code == 0 and "24 rows are whole" in out, err


def test_test_labels_are_numbered_as_in_training(tmp_path: Path) -> None:
    images(tmp_path, ("dog",), 4)
    part = DataSpec(kind="folder", path=str(tmp_path), image_size=8)
    assert load_data(part, classes=["cat", "dog"]).labels.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('kind = "folder"\npath = "x"', "image_size is missing"),
        ('kind = "folder"\nname = "x"\nimage_size = 8', 'give path with kind = "folder"'),
        ('kind = "hf"', 'give name with kind = "hf"'),
        ('kind = "tar"\npath = "x"', "unknown value 'tar'"),
        ('name = "digits"\nfile = "x.npz"', "either a name or a file"),
        ('name = "digits"\nlimit = -3', "-3 samples"),
        ('kind = "folder"\npath = "absent"\nimage_size = 8', "no such folder"),
        ('kind = "folder"\npath = "absent"\nimage_size = -8', "-8 is no whole number"),
    ],
)
def test_wrong_data_tables_are_refused(tmp_path: Path, data: str, words: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(f'[student]\nmodel = "small-cnn"\n[data]\n{data}\n')
    with pytest.raises(InputError) as caught:
        load_data(read_recipe(file).data)
    assert words in str(caught.value)
