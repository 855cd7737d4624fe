"""Whatever a caller has, as data: a dataset, a loader, a stream, tensors, a folder of images, a file of arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from tutelage.distillation.data import ReplayableData, TensorData
from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.images import ImageFolder, ImageTransform
from tutelage.distillation.data.stream import StreamData
from tutelage.errors import InputError


def as_data(source: Any, **options: Any) -> ReplayableData:
    """``source`` as data.

    Args:
        source: data already; a map-style ``Dataset`` (read lazily; a ``TensorDataset`` of one or two tensors becomes
            :class:`TensorData`); a ``DataLoader``, for its dataset, workers and ``collate_fn``; an ``IterableDataset``,
            with a warning; the path of a folder of images that are all of one size.
        options: of :class:`DatasetData` or :class:`StreamData`.

    Raises:
        InputError: none of these.
    """
    if callable(getattr(source, "batch", None)):
        return source
    if isinstance(source, (str, Path)):
        return DatasetData(ImageFolder(source), **options)
    if source is None or isinstance(source, Mapping) or (isinstance(source, tuple) and any(isinstance(x, Tensor) for x in source)):
        raise InputError(
            "there is no data" if source is None else f"a {type(source).__name__} of tensors is no data set",
            where="data",
            remedy="TensorData(inputs, labels); several sources: CombinedData({name: data}); noise: Prior(shape)",
        )
    if isinstance(source, DataLoader):
        return _from_loader(source, options)
    if type(source) is TensorDataset and len(source.tensors) <= 2 and not options:
        inputs, *labels = source.tensors
        return TensorData(inputs, labels[0] if labels else None)
    if isinstance(source, IterableDataset) or (hasattr(source, "__iter__") and not hasattr(source, "__getitem__")):
        return StreamData(source, **options)
    return DatasetData(source, **options)


def _from_loader(loader: DataLoader[Any], options: dict[str, Any]) -> ReplayableData:
    context = loader.multiprocessing_context
    loading = Loading(
        workers=loader.num_workers,
        prefetch=loader.prefetch_factor or 2,
        pin_memory=loader.pin_memory or None,
        worker_init_fn=loader.worker_init_fn,
        context=context if context is None or isinstance(context, str) else context.get_start_method(),
    )
    own = {"loading": loading} | options
    if loader.batch_size is not None and loader.collate_fn is not default_collate:
        own = {"collate_fn": loader.collate_fn} | own
    if isinstance(loader.dataset, IterableDataset):
        return StreamData(loader.dataset, **own)
    plain = type(loader.sampler) in (SequentialSampler, RandomSampler) and not getattr(loader.sampler, "replacement", False)
    if not plain or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        sampler = loader.sampler if not plain else loader.batch_sampler
        warnings.warn(
            f"{type(sampler).__name__} of the loader is not used: every sample is shown once an epoch, in a seeded order",
            UserWarning,
            stacklevel=3,
        )
    return as_data(loader.dataset, **own)


def batch_size_of(source: Any) -> int | None:
    """The batch size that a ``DataLoader`` states; None for everything else."""
    return source.batch_size if isinstance(source, DataLoader) else None


def image_folder(
    root: str | Path,
    image_size: int,
    *,
    crop_area: tuple[float, float] | None = None,
    flip: float = 0.0,
    manifest: str | Path | None = None,
    classes: list[str] | None = None,
    limit: int | None = None,
    views: Any = None,
    workers: int = 0,
    labels: bool = True,
) -> DatasetData:
    """A folder of image files as data; see :class:`ImageFolder` and :class:`ImageTransform`.

    Args:
        root: a folder with a sub-folder for each class, or with the files that ``manifest`` lists.
        image_size: height and width in pixels.
        crop_area: (least, most) share of the area of a random crop; None: the middle.
        flip: probability of a mirror image.
        manifest, classes, limit: as in :class:`ImageFolder`.
        views: augmentation of batches of tensors on top.
        workers: processes that decode.
        labels: whether to give the labels.

    Examples:
        >>> data = image_folder("photos/train", 64, crop_area=(0.35, 1.0), flip=0.5, workers=2)  # doctest: +SKIP

    Raises:
        InputError: no images, a wrong manifest, or a value out of range.
    """
    transform = ImageTransform(image_size, crop_area, flip)
    folder = ImageFolder(root, transform, manifest, classes, limit)
    if not labels:
        folder.targets = None
    return DatasetData(
        folder,
        plain=folder.with_transform(transform.plain),
        views=views,
        loading=Loading(workers=workers),
        random=crop_area is not None or flip > 0,
    )
