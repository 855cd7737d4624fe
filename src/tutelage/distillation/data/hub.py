"""Data sets of Hugging Face's ``datasets`` (extra ``hf``), by name or from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.distillation.data.items import split_item
from tutelage.errors import InputError, MissingExtra, did_you_mean


def load_hub(name: str, split: str = "train", config: str | None = None) -> Any:
    """One split of a data set: a map-style dataset whose items are dicts.

    Args:
        name: a name on the hub, a folder that ``save_to_disk`` wrote, or a folder of images, CSV, JSON or Parquet storage.
        split: which part of it.
        config: which configuration, where the data set has several.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InputError: it cannot be loaded, or has no such split.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "hf") from None
    saved = Path(name).is_dir() and any((Path(name) / mark).exists() for mark in ("state.json", "dataset_dict.json"))
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # the library raises many kinds, some of its own and some of the network's
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot load: {text}",
            where=name,
            remedy="check the name, or give a folder that holds the data set",
        ) from error
    if isinstance(found, dict):
        if split not in found:
            raise InputError(f"no split {split!r}", where=name, remedy=did_you_mean(split, list(found)))
        found = found[split]
    return found


class ImageRows:
    """Rows with an image, as a map-style dataset of (image, label), or of images alone.

    Args:
        rows: map-style; each row is a dict with a PIL image and, under ``labels``, ``label`` or ``target``, its label.
        transform: from the RGB image to what stands in its place.
        image: the entry that holds the image; None: the first row's only PIL image.
        labels: whether to give the labels.

    Raises:
        InputError: no entry is an image, or several are.
    """

    def __init__(self, rows: Any, transform: Callable[[Any], Any], image: str | None = None, labels: bool = True):
        self.rows = rows
        self.transform = transform
        self.image = image if image is not None else _image_field(rows[0])
        self.with_labels = labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        image, label = split_item(self.rows[number], inputs=self.image)
        found = self.transform(image.convert("RGB"))
        return found if label is None or not self.with_labels else (found, label)


def _image_field(item: Any) -> str:
    import PIL.Image

    images = [key for key, value in item.items() if isinstance(value, PIL.Image.Image)]
    if len(images) != 1:
        raise InputError(
            f"{len(images)} entries are images",
            where="data",
            remedy=f'name one: image = "…", of {", ".join(map(str, item))}',
        )
    return images[0]
