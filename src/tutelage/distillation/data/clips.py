"""Clips as a dataset: folders of frames, of which each view takes some, all cut and mirrored alike."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.images import SUFFIXES, ImageTransform, read_image, read_manifest, sizes_and_sample
from tutelage.distillation.data.items import as_tensors
from tutelage.distillation.data.object_hash import ObjectHash
from tutelage.distillation.data.seeding import generator_seeds, seed_generators
from tutelage.errors import InputError, did_you_mean
from tutelage.storage import fingerprint


def sample_frames(length: int, count: int, jitter: bool) -> list[int]:
    """``count`` of ``length`` frames: one of each of ``count`` equal segments (Wang et al., TSN, 2016).

    The frames rise strictly; of a clip that is shorter than ``count`` some come several times.

    Args:
        length: of the clip.
        count: frames to take.
        jitter: a random frame of each segment, drawn from Python's global generator; else the middle one.

    Examples:
        >>> sample_frames(9, 3, jitter=False), sample_frames(2, 4, jitter=False)
        ([1, 4, 7], [0, 0, 1, 1])

    Raises:
        InputError: a count or length below 1.
    """
    if count < 1 or length < 1:
        raise InputError(f"{count} of {length} frames", where="frames", remedy="at least 1 of at least 1")
    found = []
    for number in range(count):
        first = number * length // count
        last = max(first, (number + 1) * length // count - 1)
        found.append(random.randint(first, last) if jitter else (first + last) // 2)
    return found


class ClipFolder:
    """Clips below ``root`` as a map-style dataset of (clip [T, C, H, W], class id), or of clips alone without labels.

    A clip is a folder of image files, its frames, in the order of the numbers in their names. ``root/CLASS/CLIP/FRAME``
    gives labels, ``root/CLIP/FRAME`` none; or a manifest lists clip folders and labels, as for :class:`ImageFolder`.

    Random numbers come from the global generators, which ``DatasetData`` seeds for each item: the view seed decides which
    frames are taken and how they are cut, and every frame of a clip is cut alike.

    Args:
        root: the folder.
        frames: how many frames of each clip, see :func:`sample_frames`.
        transform: from the PIL image of a frame to a tensor [C, H, W].
        jitter: take a random frame of each segment; else the middle one.
        manifest, classes: as in :class:`ImageFolder`.
        short: what becomes of a clip with fewer frames than asked: ``refuse``, or ``repeat`` some.

    Raises:
        InputError: no clips, a class without one, or clips that are too short; the folder is named.
    """

    def __init__(
        self,
        root: str | Path,
        frames: int,
        transform: Callable[[PIL.Image.Image], Any],
        *,
        jitter: bool = False,
        manifest: str | Path | None = None,
        classes: Sequence[str] | None = None,
        short: Literal["refuse", "repeat"] = "refuse",
    ):
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError("no such folder", where=self.root, remedy="check the path")
        if frames < 1:
            raise InputError(f"{frames} frames", where="frames", remedy="at least 1")
        if short not in ("refuse", "repeat"):
            raise InputError(f"unknown value {short!r}", where="short", remedy="refuse or repeat")
        self.frames, self.transform, self.jitter = frames, transform, jitter
        if manifest is not None:
            self.names, self.targets, self.classes = read_manifest(self.root, Path(manifest), classes)
        else:
            self.names, self.targets, self.classes = _clips(self.root, classes)
        self.files = [_frames(self.root / name) for name in self.names]
        for name, files in zip(self.names, self.files, strict=True):
            if len(files) < frames and (short == "refuse" or not files):
                count = "one frame" if len(files) == 1 else f"{len(files)} frames"
                raise InputError(
                    f"a clip of {count}, where {frames} are taken",
                    where=self.root / name,
                    remedy='take fewer frames, remove the clip, or repeat frames: short="repeat"',
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Any:
        files = self.files[number]
        taken = sample_frames(len(files), self.frames, self.jitter)
        seeds = generator_seeds(np.array([random.getrandbits(31)]))[0] if self.jitter else [0, 0, 0]
        shown: list[Tensor] = []
        for frame in taken:
            seed_generators(seeds)  # each frame meets the same random numbers
            shown.append(as_tensors(self.transform(read_image(self.root / self.names[number] / files[frame])), f"clip {number}"))
        if any(one.shape != shown[0].shape for one in shown):
            sizes = sorted({str(list(one.shape)) for one in shown})
            where, remedy = self.root / self.names[number], "bring them to one size by the transform"
            raise InputError(f"frames of several sizes: {', '.join(sizes)}", where=where, remedy=remedy)
        clip = torch.stack(shown)
        return clip if self.targets is None else (clip, self.targets[number])

    def plain(self, transform: Callable[[PIL.Image.Image], Any]) -> ClipFolder:
        """The same clips by their middle frames, with another transform."""
        other = object.__new__(ClipFolder)
        other.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "fingerprint"}
        other.transform, other.jitter = transform, False
        return other

    @cached_property
    def fingerprint(self) -> str:
        """Names the frames by name and size, 32 of them by their bytes too, the labels and how frames are taken."""
        paths = [self.root / name / file for name, files in zip(self.names, self.files, strict=True) for file in files]
        sizes, content = sizes_and_sample(paths)
        state = ObjectHash((self.transform, self.classes, self.targets)).hexdigest()
        return fingerprint("clip-folder-1", self.names, self.files, sizes, state, self.frames, self.jitter, *content)


def _folders(place: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))


def _frames(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError("no such clip", where=folder, remedy="a clip is a folder of frames")
    found = (name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."))
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _clips(root: Path, classes: Sequence[str] | None) -> tuple[list[str], np.ndarray | None, list[str]]:
    first = _folders(root)
    inner = {name: _folders(root / name) for name in first}
    if not first:
        raise InputError("holds no clip", where=root, remedy="a folder of frames for each clip")
    if not any(inner.values()):
        return first, None, []
    known = list(classes) if classes is not None else first
    names, labels = [], []
    for name in first:
        if name not in known:
            raise InputError(f"no class {name!r}", where=root, remedy=did_you_mean(name, known))
        if not inner[name]:
            raise InputError("a class without a clip", where=root / name, remedy="CLASS/CLIP/FRAME for every class, or for none")
        names += [os.path.join(name, clip) for clip in inner[name]]
        labels += [known.index(name)] * len(inner[name])
    return names, np.array(labels, dtype=np.int64), known


def clip_folder(
    root: str | Path,
    frames: int,
    image_size: int,
    *,
    crop_area: tuple[float, float] | None = None,
    flip: float = 0.0,
    jitter: bool = False,
    manifest: str | Path | None = None,
    classes: Sequence[str] | None = None,
    short: Literal["refuse", "repeat"] = "refuse",
    workers: int = 0,
) -> DatasetData:
    """A folder of clips as data: inputs [B, T, 3, H, W]; see :class:`ClipFolder` and :class:`ImageTransform`.

    Args:
        root, frames, jitter, manifest, classes, short: as in :class:`ClipFolder`. Plain samples take the middle frames.
        image_size, crop_area, flip: as in :class:`ImageTransform`. A mirrored clip moves the other way: leave ``flip``
            at 0 where the direction matters.
        workers: processes that decode.

    Examples:
        >>> data = clip_folder("clips/train", 4, 112, crop_area=(0.5, 1.0), jitter=True)  # doctest: +SKIP

    Raises:
        InputError: no clips, clips that are too short, or a value out of range.
    """
    transform = ImageTransform(image_size, crop_area, flip)
    random_ = jitter or crop_area is not None or flip > 0
    clips = ClipFolder(root, frames, transform, jitter=random_, manifest=manifest, classes=classes, short=short)
    return DatasetData(clips, plain=clips.plain(transform.plain), loading=Loading(workers=workers), random=random_)
