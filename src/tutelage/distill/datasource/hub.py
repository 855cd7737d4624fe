"""Data sets of Hugging Face's ``datasets`` (extra ``hf``), by name or from a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.errors import InputError, MissingExtra, did_you_mean


def load_hub(name: str, split: str = "train", config: str | None = None) -> Any:
    """One split of a data set: a map-style dataset whose items are dicts.

    Args:
        name: a name on the hub, a folder that ``save_to_disk`` wrote, or a folder of images, CSV, JSON or Parquet files.
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
    saved = Path(name).is_dir() and any(
        (Path(name) / mark).exists() for mark in ("state.json", "dataset_dict.json")
    )
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


class WithTransform:
    """A dataset of dicts whose images pass through ``transform``.

    Args:
        dataset: map-style; each item is a dict.
        transform: from a PIL image to what stands in its place.
        field: the entry that holds the image; None: the first item's only PIL image.

    Raises:
        InputError: no entry is an image, or several are.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], Any], field: str | None = None):
        self.dataset = dataset
        self.transform = transform
        self.field = field if field is not None else _image_field(dataset[0])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        item = self.dataset[number]
        return {**item, self.field: self.transform(item[self.field].convert("RGB"))}


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
