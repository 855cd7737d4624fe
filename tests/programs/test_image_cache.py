"""Picture files as images: nothing opened before it is looked at, decoded once within the budget, resized by policy."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from tutelage.errors import InputError
from tutelage.programs.image_cache import FileImage, ImageCache, LazyImages, ResizePolicy
from tutelage.programs.serialization import input_hash
from tutelage.programs.types import RuntimeFailure
from tutelage.programs.values import Image


def drawn(folder: Path, name: str, width: int = 20, height: int = 12, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (3, height, width), dtype=np.uint8)
    Image(pixels).to_pil().save(folder / name)
    return folder / name


def test_a_picture_is_opened_when_it_is_looked_at_and_once(tmp_path: Path) -> None:
    pictures, path = ImageCache(), drawn(tmp_path, "a.png")
    image = pictures.image(path)
    part = pictures.image(path)
    assert pictures.opened == 0
    assert (image.width, image.height) == (20, 12) and pictures.opened == 1
    assert np.array_equal(image.crop(2, 3, 9, 8).bytes, Image.from_file(path).crop(2, 3, 9, 8).bytes)
    assert part.key == image.key and pictures.opened == 1


def test_it_is_named_as_the_same_picture_in_memory(tmp_path: Path) -> None:
    path = drawn(tmp_path, "a.png")
    lazy, plain = ImageCache().image(path), Image.from_file(path)
    assert lazy.key == plain.key and lazy.crop(1, 1, 5, 5).key == plain.crop(1, 1, 5, 5).key
    assert input_hash("VQA", {"image": lazy}) == input_hash("VQA", {"image": plain})
    with pytest.raises(RuntimeFailure, match="zero area"):
        lazy.crop(5, 5, 5, 9)


def test_only_so_many_bytes_are_held_and_names_are_kept(tmp_path: Path) -> None:
    paths = [drawn(tmp_path, f"{n}.png", seed=n) for n in range(4)]
    pictures = ImageCache(budget=2 * 3 * 20 * 12)
    for path in paths:
        assert pictures.image(path).root.shape == (3, 12, 20)
    assert pictures.opened == 4
    keys = [pictures.image(path).crop(0, 0, 4, 4).width for path in paths[2:]]
    assert keys == [4, 4] and pictures.opened == 4, "the last two are still held"
    assert pictures.image(paths[0]).key and pictures.opened == 4, "its name is known without its pixels"
    assert pictures.image(paths[0]).bytes.any() and pictures.opened == 5


def test_a_picture_larger_than_the_budget_is_still_shown(tmp_path: Path) -> None:
    pictures = ImageCache(budget=1)
    assert pictures.image(drawn(tmp_path, "a.png")).bytes.shape == (3, 12, 20)


def test_a_picture_that_changes_under_way_is_told(tmp_path: Path) -> None:
    pictures = ImageCache(budget=1)
    path, other = drawn(tmp_path, "a.png"), drawn(tmp_path, "b.png", seed=1)
    assert pictures.image(path).key and pictures.image(other).key
    drawn(tmp_path, "a.png", seed=2)
    with pytest.raises(InputError, match=r"a\.png: the picture has changed"):
        _ = pictures.image(path).root


@pytest.mark.parametrize(
    ("text", "size"), [("none", (20, 12)), ("longest=10", (10, 6)), ("longest=20", (20, 12)), ("longest=1", (1, 1))]
)
def test_the_policy_of_size(tmp_path: Path, text: str, size: tuple[int, int]) -> None:
    policy = ResizePolicy.parse(text)
    image = ImageCache(policy).image(drawn(tmp_path, "a.png"))
    assert (image.width, image.height) == size and str(policy) == text
    assert (image.root_key == Image.from_file(image.path).root_key) == (size == (20, 12)), "a resized picture has another name"


@pytest.mark.parametrize("text", ["", "longest", "longest=0", "longest=-4", "longest=x", "shortest=3", "longest=²"])
def test_an_unknown_policy_is_named(text: str) -> None:
    with pytest.raises(InputError, match="longest=640"):
        ResizePolicy.parse(text)


def test_it_travels_to_another_process_as_a_plain_image(tmp_path: Path) -> None:
    lazy = ImageCache().image(drawn(tmp_path, "a.png")).crop(2, 2, 9, 9)
    there = pickle.loads(pickle.dumps(lazy))
    assert type(there) is Image and there.key == lazy.key and np.array_equal(there.bytes, lazy.bytes)


def test_questions_travel_without_pixels_and_share_their_album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(tmp_path, "a.png", 200, 150)
    monkeypatch.chdir(tmp_path)
    album = ImageCache(ResizePolicy(100))
    ours = [LazyImages(album, {"IMAGE": Path("a.png")}) for _ in range(3)]
    key = ours[0]["IMAGE"].key
    sent = pickle.dumps(ours)
    monkeypatch.chdir("/")
    theirs = pickle.loads(sent)
    assert len(sent) < 2_000 and theirs[0].album is theirs[2].album is not album
    assert [views["IMAGE"].key for views in theirs] == [key] * 3 and theirs[0].album.opened == 0
    assert theirs[0]["IMAGE"].bytes.shape == (3, 75, 100) and theirs[0].album.opened == 1
    drawn(tmp_path, "a.png", 200, 150, seed=1)
    with pytest.raises(InputError, match=r"a\.png: the picture has changed"):
        _ = pickle.loads(sent)[0]["IMAGE"].bytes


def test_a_named_picture_is_opened_for_its_pixels_alone(tmp_path: Path) -> None:
    album = ImageCache()
    image = FileImage(album, drawn(tmp_path, "a.png"), "name", (2, 1, 12, 11))
    part = image.crop(3, 3, 99, 99)
    assert (image.key, part.key) == (("name", (2, 1, 12, 11)), ("name", (5, 4, 12, 11))) and album.opened == 0
    assert np.array_equal(part.bytes, Image.from_file(image.path).part((5, 4, 12, 11)).bytes) and album.opened == 1


def test_views_open_what_is_taken_and_name_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(drawn(tmp_path, "a.png").read_bytes()[:60])
    views = LazyImages(ImageCache(), {"LEFT": tmp_path / "a.png", "RIGHT": tmp_path / "bad.jpg", "IMAGE": tmp_path / "none.jpg"})
    assert len(views) == 3 and list(views) == ["LEFT", "RIGHT", "IMAGE"] and views.album.opened == 0
    assert isinstance(views["LEFT"], FileImage) and views.album.opened == 1
    with pytest.raises(InputError, match=r"bad\.jpg"):
        _ = views["RIGHT"]
    with pytest.raises(InputError, match=r"none\.jpg: no such image"):
        _ = views["IMAGE"]
