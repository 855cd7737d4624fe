"""Networks and data by the names a recipe gives: registered backbones (``hornet``, or a size of one: ``hornet:mini``),
``timm:…``, ``hf:…``, and files of arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from tutelage import reading, registry
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import TensorData, Tree, map_tree
from tutelage.distillation.data.clips import clip_folder
from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.generated import Prior
from tutelage.distillation.data.hub import ImageRows, load_hub
from tutelage.distillation.data.images import ImageTransform
from tutelage.distillation.data.mixing import InSequence, InTurn, Mixing, Together
from tutelage.distillation.data.sources import image_folder
from tutelage.distillation.export import load_weights
from tutelage.distillation.method import Method
from tutelage.distillation.recipe import DataSpec, ModelSpec, TeacherSpec
from tutelage.distillation.small_models import small_models
from tutelage.distillation.teacher import Teacher
from tutelage.distillation.teacher_wrappers import AveragedViewsTeacher, MappedClassesTeacher, PreprocessedTeacher
from tutelage.errors import InputError, MissingExtra, did_you_mean
from tutelage.fields import check_memory
from tutelage.seeds import derive


def build_model(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """The network a recipe names, with its weights, or freshly initialised from ``seed``.

    Raises:
        InputError: an unknown name or option, or weights that do not fit.
        MissingExtra: ``timm:`` or ``hf:`` without that package.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model", spec.model))
        network = _named(spec)
    return network if spec.weights is None else load_weights(network, spec.weights)


def build_teacher(spec: TeacherSpec, seed: int = 0) -> Teacher | nn.Module:
    """The teacher a recipe names: its network, inside the wrappers that the recipe asks for.

    Raises:
        InputError, MissingExtra: as :func:`build_model`; InputError also for views or classes that cannot be.
    """
    made: Teacher | nn.Module = build_model(spec, seed)
    try:
        if spec.preprocessing is not None:
            made = PreprocessedTeacher(made, spec.preprocessing)
        if spec.views:
            made = AveragedViewsTeacher(made, spec.views, axis=spec.class_axis)
        if spec.classes is not None:
            made = MappedClassesTeacher(made, spec.classes, axis=spec.class_axis)
    except InputError as error:
        raise InputError(error.message, where=f"teacher.{error.where}", remedy=error.remedy) from error
    return made


def _named(spec: ModelSpec) -> nn.Module:
    source, separator, name = spec.model.partition(":")
    if not separator:
        plain = small_models()
        made = _made(plain[spec.model] if spec.model in plain else _registered(spec.model), spec)
        if not isinstance(made, nn.Module) or isinstance(made, Method):
            raise InputError(f"{spec.model} is no network", where="model", remedy="name a backbone: tutelage systems")
        return made
    if source == "timm":
        try:
            import timm
        except ImportError:
            raise MissingExtra("timm", "timm") from None
        return _made(timm.create_model, ModelSpec(spec.model, {"model_name": name, **spec.options}))
    if source == "hf":
        try:
            from transformers import AutoModelForImageClassification
        except ImportError:
            raise MissingExtra("transformers", "hf") from None
        try:
            return AutoModelForImageClassification.from_pretrained(name, **spec.options)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load: {error}", where=spec.model, remedy="give a folder that holds the model, or its name"
            ) from error
    sized = _registered(source, "source")
    if not hasattr(sized, "options"):
        raise InputError(f"{source} has no sizes", where="model", remedy="a backbone's size, timm:NAME or hf:NAME")
    return _made(sized, ModelSpec(spec.model, sized.options(name) | spec.options))


def _registered(name: str, what: str = "system or network") -> Any:
    """The class of a system's network: the system itself, or what a training method offers as ``Network``."""
    try:
        target = registry.find(name).target
        return getattr(target, "Network", target)
    except InputError as error:
        known = [*small_models(), *(e.name for e in registry.systems().values() if e.kind == "backbone"), "timm:…", "hf:…"]
        raise InputError(f"unknown {what} {name!r}", where="model", remedy=did_you_mean(name, known)) from error


def _made(build: Any, spec: ModelSpec) -> Any:
    try:
        _check_size(build, spec)
        return build(**spec.options)
    except (TypeError, ValueError, RuntimeError, OverflowError, ArithmeticError, LookupError) as error:
        raise InputError(f"{spec.model}: {error}"[:500], where="options", remedy="check its options: names and sizes") from error


def _check_size(build: Any, spec: ModelSpec) -> None:
    """Multiply out the weights of the network, which is built without memory for them, and compare them with the memory."""
    try:
        with torch.device("meta"):
            network = build(**spec.options)
    except NotImplementedError:  # it looks at its own weights while it is built
        return
    if isinstance(network, nn.Module):
        size = sum(value.nbytes for value in network.state_dict().values() if isinstance(value, Tensor))
        check_memory(size, f"{spec.model} with these options", "options", "choose smaller sizes")


def mixing_of(spec: DataSpec) -> Mixing:
    """How the sources of a recipe's data are read."""
    if spec.mixing == "in-turn":
        return InTurn(spec.pattern)
    return Together(spec.weights) if spec.mixing == "together" else InSequence(spec.weights)


def load_data(
    spec: DataSpec, views: Augmentation | None = None, classes: list[str] | None = None
) -> TensorData | DatasetData | Prior:
    """The arrays of a file (``.npz`` is read without pickle; ``labels.NAME``: one of several labels), a folder of images, or a
    data set of Hugging Face.

    Args:
        spec: what to read.
        views: augmentation of batches of tensors.
        classes: class names by number for a folder of images; None: those found there.

    Raises:
        InputError: no such file, another format, or no array ``inputs``; or as ``image_folder`` and ``load_hub``.
        MissingExtra: ``kind = "hf"`` without the package ``datasets``.
    """
    if spec.kind == "folder":
        return image_folder(
            spec.path or "", spec.image_size or 0, crop_area=spec.crop_area, flip=spec.flip, manifest=spec.manifest,
            classes=classes, limit=spec.limit, views=views, workers=spec.workers, labels=spec.labels,
        )  # fmt: skip
    if spec.kind == "hf":
        return _from_hub(spec, views)
    if spec.kind == "prior":
        return Prior(spec.shape, spec.length, classes=spec.classes)
    if spec.kind == "clips":
        return clip_folder(
            spec.path or "", spec.frames or 0, spec.image_size or 0, crop_area=spec.crop_area, flip=spec.flip,
            jitter=spec.crop_area is not None, manifest=spec.manifest, classes=classes, workers=spec.workers,
        )  # fmt: skip
    path = Path(spec.file or "")
    arrays = _arrays(path)
    if "inputs" not in arrays:
        raise InputError("no array 'inputs'", where=path, remedy=f"it holds {', '.join(sorted(arrays)) or 'nothing'}")
    inputs, labels = arrays["inputs"], _labels(arrays) if spec.labels else None
    if inputs.dtype == torch.uint8:
        inputs = inputs.float() / 255
    labels = map_tree(lambda leaf: leaf if leaf.is_floating_point() else leaf.long(), labels)
    if spec.limit is not None:
        inputs, labels = inputs[: spec.limit], map_tree(lambda leaf: leaf[: spec.limit], labels)
    return TensorData(inputs, labels, views=views)


def _labels(arrays: dict[str, Tensor]) -> Tree:
    """The array ``labels``; or arrays ``labels.NAME`` as a dict by name, for tasks whose labels are several; None: neither."""
    named = {name.removeprefix("labels."): array for name, array in arrays.items() if name.startswith("labels.")}
    return arrays.get("labels", named or None)


def _from_hub(spec: DataSpec, views: Augmentation | None) -> DatasetData:
    rows = load_hub(spec.name or "", spec.split, spec.config)
    if spec.limit is not None and spec.limit < len(rows):
        rows = rows.select(range(spec.limit))
    loading = Loading(workers=spec.workers)
    if spec.image_size is None:
        return DatasetData(rows, views=views, loading=loading)
    transform = ImageTransform(spec.image_size, spec.crop_area, spec.flip)
    images = ImageRows(rows, transform, spec.image, labels=spec.labels)
    plain = ImageRows(rows, transform.plain, spec.image, labels=spec.labels)
    return DatasetData(images, plain=plain, views=views, loading=loading, random=transform != transform.plain)


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with reading.open_regular(path) as file, zipfile.ZipFile(file) as members:
                size = sum(member.file_size for member in members.infolist())
            check_memory(size, "its arrays", path, "give fewer samples, or smaller ones")
            with np.load(path, allow_pickle=False) as found:
                return {name: torch.from_numpy(found[name]) for name in found.files}
        if path.suffix == ".safetensors":
            return load_tensors(reading.read_bytes(path, 64 << 30))
    except InputError:
        raise
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise InputError(f"cannot read: {error}", where=path, remedy="the file may be cut; make it again") from error
    except Exception as error:  # a damaged zip raises several kinds
        raise InputError(f"not a readable .npz: {error}", where=path, remedy="make it again") from error
    raise InputError(f"unknown format {path.suffix!r}", where=path, remedy="give .npz or .safetensors")
