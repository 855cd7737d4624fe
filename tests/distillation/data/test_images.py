"""Image folders and manifests, on files written here."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from tutelage.distillation.data.images import ImageFolder, ImageTransform, read_image
from tutelage.distillation.data.sources import as_data, image_folder
from tutelage.errors import InputError


def write(path: Path, number: int, size: tuple[int, int] = (12, 9), mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        write(tmp_path / ("cat", "dog")[number % 2] / f"{number}.png", number)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_sub_folders_are_classes(folder: Path) -> None:
    write(folder / "dog" / "deeper" / "x.jpg", 9)
    found = ImageFolder(folder)
    assert found.classes == ["cat", "dog"] and found.targets.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [str(found.path(i).relative_to(folder)) for i in (0, 5, 6)] == [
        "cat/0.png",
        "dog/5.png",
        "dog/deeper/x.jpg",
    ]
    image, label = found[3]
    assert image.size == (12, 9) and label == 1
    assert len(ImageFolder(folder, limit=2)) == 2 and ImageFolder(folder, limit=2).targets.tolist() == [0, 1]
    assert ImageFolder(folder, classes=["dog", "emu", "cat"]).targets.tolist() == [2, 2, 2, 0, 0, 0, 0]
    with pytest.raises(InputError, match="no class 'dog'"):
        ImageFolder(folder, classes=["cat"])


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "b.png", 1), write(tmp_path / "a.png", 0)
    found = ImageFolder(tmp_path)
    assert found.targets is None and found.path(0).name == "a.png" and found[0].size == (12, 9)
    data = as_data(str(tmp_path))
    assert data.labels is None and data.batch(torch.tensor([0, 1]), None).inputs.shape == (2, 3, 9, 12)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("column", ["file", "file_name", "path"])
def test_manifests_name_files_and_labels(folder: Path, kind: str, column: str) -> None:
    rows = [("dog/1.png", "dog"), ("cat/0.png", "cat"), ("dog/3.png", "dog")]
    if kind == "csv":
        text = f"{column},label\n" + "".join(f"{file},{label}\n" for file, label in rows)
    else:
        text = "".join(json.dumps({column: file, "label": label}) + "\n" for file, label in rows)
    (folder / f"list.{kind}").write_text(text)
    found = ImageFolder(folder, manifest=f"list.{kind}")
    assert found.classes == ["cat", "dog"] and found.targets.tolist() == [1, 0, 1] and found.path(1) == folder / "cat/0.png"
    assert ImageFolder(folder, manifest=folder / f"list.{kind}").targets.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([3, 1], [3, 1]), ([0.5, 1.0], [0.5, 1.0]), ([[1, 0], [0, 1]], [[1, 0], [0, 1]]), ([None, None], None)],
)
def test_labels_may_be_numbers_lists_or_absent(folder: Path, labels: list, expected: object) -> None:
    lines = [{"file": f"cat/{2 * n}.png"} | ({} if label is None else {"label": label}) for n, label in enumerate(labels)]
    (folder / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = ImageFolder(folder, manifest="l.jsonl").targets
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize(
    ("name", "text", "where", "words"),
    [
        ("l.csv", "name,label\ncat/0.png,1\n", "l.csv:2", "names no file"),
        ("l.csv", "file,label\ncat/0.png,1\ncat/2.png,\n", "l.csv:3", "others none"),
        ("l.csv", "file,label\ncat/0.png,1\ncat/2.png,two\n", "l.csv:3", "does not fit"),
        ("l.csv", "file,label\n../x.png,1\n", "l.csv:2", "outside the folder"),
        ("l.csv", 'file,label\n"cat', "l.csv", "not CSV"),
        ("l.csv", "file,label\n", "l.csv", "lists no file"),
        ("l.jsonl", '{"file": "cat/0.png", "label": 1}\n[3]\n', "l.jsonl:2", "not a JSON object"),
        ("l.jsonl", '{"file": "cat/0.png", "label": {"a": 1}}\n', "l.jsonl:1", "does not fit"),
        ("l.jsonl", "{", "l.jsonl:1", "not JSON"),
        ("l.txt", "cat/0.png", "l.txt", "unknown kind"),
        ("absent.csv", None, "absent.csv", "cannot read"),
    ],
)
def test_wrong_manifests_are_refused_by_line(folder: Path, name: str, text: str | None, where: str, words: str) -> None:
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        ImageFolder(folder, manifest=name)
    assert str(caught.value.where).endswith(where)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        ImageFolder(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no image"):
        ImageFolder(tmp_path)
    write(tmp_path / "a" / "0.png", 0)
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="a class without an image") as caught:
        ImageFolder(tmp_path)
    assert caught.value.where == tmp_path / "b"


def test_broken_files_are_named(folder: Path) -> None:
    whole = write(folder / "cat" / "0.jpg", 0, (64, 64), quality=95).read_bytes()
    (folder / "cat" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "2.png").write_bytes(b"no image at all")
    for name, words in (
        ("0.jpg", "cannot decode"),
        ("2.png", "no image of a known format"),
        ("x.png", "no such image"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read_image(folder / "cat" / name)
        assert name in str(caught.value.where)
    with pytest.raises(InputError, match="cannot decode") as caught:
        image_folder(folder, 8).batch(torch.arange(4), None)
    assert "0.jpg" in str(caught.value.where)


def test_images_come_upright_and_in_colour(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "turned.jpg", 0, (12, 9), exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (9, 12)
    for mode in ("L", "RGBA", "P", "1"):
        write(tmp_path / f"{mode}.png", 0, mode=mode)
        assert read_image(tmp_path / f"{mode}.png").mode == "RGB"


def test_the_transform_without_randomness_cuts_the_middle() -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = 255
    image = PIL.Image.fromarray(pixels)
    found = ImageTransform(8)(image)
    assert found.shape == (3, 8, 8) and found.dtype == torch.float32 and bool((found == 1).all())
    assert torch.equal(ImageTransform(8)(image), ImageTransform(8, (0.2, 0.9), 0.5).plain(image))


def test_random_crops_and_flips_are_views(folder: Path) -> None:
    data = image_folder(folder, 8, crop_area=(0.3, 1.0), flip=0.5)
    one = data.batch(torch.tensor([1, 1, 1]), torch.tensor([5, 6, 5]))
    assert torch.equal(one.inputs[0], one.inputs[2]) and not torch.equal(one.inputs[0], one.inputs[1])
    plain = image_folder(folder, 8)
    assert torch.equal(data.batch(torch.tensor([1]), None).inputs, plain.batch(torch.tensor([1]), torch.tensor([3])).inputs)
    assert plain.batch(torch.tensor([1]), torch.tensor([3])).seeds.tolist() == [0]
    assert image_folder(folder, 8, labels=False).labels is None and data.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"flip": 2.0}, {"crop_area": (0.5, 0.2)}, {"limit": 0}, {"workers": -1}])
def test_values_out_of_range_are_refused(folder: Path, wrong: dict) -> None:
    with pytest.raises(InputError):
        image_folder(folder, **{"image_size": 8} | wrong)


def test_the_fingerprint_names_files_labels_and_transform(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = image_folder(folder, 8).fingerprint
    assert image_folder(folder, 8).fingerprint == first
    assert len({first, image_folder(folder, 9).fingerprint, image_folder(folder, 8, labels=False).fingerprint}) == 3
    assert image_folder(folder, 8, flip=0.5).fingerprint != first != image_folder(folder, 8, limit=5).fingerprint
    other = tmp_path_factory.mktemp("copied") / "elsewhere"
    other.parent.mkdir(exist_ok=True)
    import shutil

    shutil.copytree(folder, other)
    assert image_folder(other, 8).fingerprint == first
    write(other / "dog" / "3.png", 77)
    assert image_folder(other, 8).fingerprint != first


def test_an_image_of_grey_values_keeps_them(tmp_path: Path) -> None:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 4), 128, dtype=np.uint8)).save(stream, "PNG")
    (tmp_path / "g.png").write_bytes(stream.getvalue())
    assert torch.allclose(ImageTransform(4)(read_image(tmp_path / "g.png")), torch.tensor(128 / 255))
