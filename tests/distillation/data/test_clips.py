"""Clips as data: which frames are taken, all cut alike, exact with workers; folders that are not as they should be."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tutelage.datasets.synthetic.moving_shapes import moving_shapes
from tutelage.distillation.data import SampleOrder
from tutelage.distillation.data.clips import ClipFolder, clip_folder, sample_frames
from tutelage.distillation.data.images import ImageTransform
from tutelage.distillation.data.loader import BatchLoader
from tutelage.errors import InputError


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_one_frame_of_each_segment(length: int, count: int, seed: int) -> None:
    random.seed(seed)
    for jitter in (False, True):
        found = sample_frames(length, count, jitter)
        assert len(found) == count and 0 <= found[0] and found[-1] < length
        steps = np.diff(found)
        assert (steps > 0).all() if length >= count else (steps >= 0).all()


def test_every_frame_is_taken_at_times() -> None:
    random.seed(0)
    seen = {frame for _ in range(200) for frame in sample_frames(10, 3, jitter=True)}
    assert seen == set(range(10))


def write(root: Path, frames: int = 7, clips: int = 3, classes: tuple[str, ...] = ("left", "right")) -> Path:
    """Clips of moving shapes as PNG files; frame 10 comes behind frame 9 by number, not by letter."""
    for number, name in enumerate(classes):
        for clip in range(clips):
            folder = root / name / f"clip{clip}"
            folder.mkdir(parents=True)
            made = moving_shapes(number, clip, frames=frames, speed=1, motions=(name,), image_size=32)
            for frame, picture in enumerate(made.frames):
                Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"frame-{frame + 6}.png")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clips"))


def test_plain_clips_hold_the_middle_frames_in_order(root: Path) -> None:
    batch = clip_folder(root, 7, 32).batch(torch.arange(6), None)
    assert batch.inputs.shape == (6, 7, 3, 32, 32) and batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for number, name in enumerate(("left", "right")):
        frames = moving_shapes(number, 0, frames=7, speed=1, motions=(name,), image_size=32).frames
        assert torch.equal((batch.inputs[3 * number] * 255).round().byte(), torch.from_numpy(frames))
    middle = clip_folder(root, 1, 32).batch(torch.arange(6), None).inputs
    assert torch.equal(middle[:, 0], batch.inputs[:, 3])


def test_all_frames_of_a_view_are_cut_and_mirrored_alike(tmp_path: Path) -> None:
    (tmp_path / "still").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    for frame in range(5):
        picture.save(tmp_path / "still" / f"{frame}.png")
    data = clip_folder(tmp_path, 4, 8, crop_area=(0.3, 0.8), flip=0.5)
    views = [data.batch(torch.tensor([0]), torch.tensor([seed])).inputs[0] for seed in range(8)]
    for view in views:
        assert all(torch.equal(view[0], frame) for frame in view)
    assert len({view.numpy().tobytes() for view in views}) == 8
    assert torch.equal(views[3], data.batch(torch.tensor([0]), torch.tensor([3])).inputs[0])


def test_workers_read_the_same_frames(root: Path) -> None:
    batches = []
    for workers in (0, 2):
        data = clip_folder(root, 3, 16, crop_area=(0.5, 1.0), jitter=True, workers=workers)
        loader = BatchLoader(data, SampleOrder(len(data), 4, 0), 3)
        batches.append([loader.take(number).inputs for number in range(3)])
        loader.close()
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert not torch.equal(batches[0][0], batches[0][1])


def test_a_manifest_and_folders_without_classes(root: Path) -> None:
    (root / "list.csv").write_text("file,label\nright/clip1,b\nleft/clip0,a\n")
    listed = clip_folder(root, 2, 16, manifest="list.csv")
    assert len(listed) == 2 and listed.batch(torch.arange(2), None).labels.tolist() == [1, 0]
    bare = clip_folder(root / "left", 2, 16)
    assert len(bare) == 3 and bare.batch(torch.arange(2), None).labels is None


def test_the_fingerprint_names_content_and_sampling(root: Path, tmp_path: Path) -> None:
    def made(place: Path, **options: object) -> str:
        return ClipFolder(place, 2, ImageTransform(16), **options).fingerprint

    other = write(tmp_path, frames=6)
    found = [made(root), made(root, jitter=True), made(other), ClipFolder(root, 3, ImageTransform(16)).fingerprint]
    assert len(set(found)) == 4 and made(root) == found[0]


def test_short_clips_are_refused_or_repeat_frames(root: Path, tmp_path: Path) -> None:
    place = write(tmp_path, frames=3, clips=1)
    for left in (place / "left" / "clip0").glob("frame-[78].png"):
        left.unlink()
    with pytest.raises(InputError, match="a clip of one frame, where 2 are taken") as caught:
        clip_folder(place, 2, 16)
    assert "left/clip0" in str(caught.value)
    batch = clip_folder(place, 2, 16, short="repeat").batch(torch.arange(2), None)
    assert torch.equal(batch.inputs[0, 0], batch.inputs[0, 1]) and not torch.equal(batch.inputs[1, 0], batch.inputs[1, 1])


def test_refusals(root: Path, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes"
    (sizes / "a").mkdir(parents=True)
    (tmp_path / "bare" / "clip").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "x" / "clip").mkdir(parents=True)
    (tmp_path / "half" / "y").mkdir()
    Image.new("RGB", (8, 8)).save(sizes / "a" / "0.png")
    Image.new("RGB", (9, 8)).save(sizes / "a" / "1.png")
    cases = [
        (lambda: clip_folder(tmp_path / "none", 2, 16), "no such folder"),
        (lambda: clip_folder(tmp_path / "empty", 2, 16), "holds no clip"),
        (lambda: clip_folder(tmp_path / "half", 2, 16), "class without a clip"),
        (lambda: clip_folder(root, 0, 16), "0 frames"),
        (lambda: clip_folder(root, 2, 0), "image_size"),
        (lambda: clip_folder(root, 2, 16, short="pad"), "refuse or repeat"),
        (lambda: clip_folder(root, 2, 16, classes=["left"]), "no class 'right'"),
        (lambda: clip_folder(tmp_path / "bare", 2, 16, short="repeat"), "a clip of 0 frames"),
        (lambda: ClipFolder(sizes, 2, np.array)[0], "several sizes"),
    ]
    for make, words in cases:
        with pytest.raises(InputError) as caught:
            make()
        assert words in str(caught.value)
