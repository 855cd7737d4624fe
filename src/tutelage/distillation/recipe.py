"""Recipes: a distillation as a TOML file, read into typed dataclasses. A file names no callable.

::

    method = "kd"
    task = "classification"  # what is predicted; it may be left out where labels and outputs leave no doubt
    seeds = 3
    out = "runs/fashion"

    [student]
    model = "…"              # a registered backbone, or timm:NAME, hf:NAME where the extra is installed
    options = { classes = 10 }

    [teacher]
    model = "…"
    weights = "teacher.safetensors"
    # preprocessing = { image_size = 224, mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }
    # classes = [3, 5, [7, 8]] # the student's classes among the teacher's

    [data]
    name = "fashion-mnist"   # a built-in data set, or: file = "data.npz" with arrays inputs and labels; or
    # kind = "folder"        # images, a sub-folder for each class, or manifest = "list.csv" with columns file and label
    # path = "photos/train"
    # image_size = 64
    # crop_area = [0.35, 1.0]
    # flip = 0.5
    # workers = 2

    [validation]             # what the best student is chosen by, like [data]; or above: validation = 0.1, a share of [data]
    file = "held-out.npz"

    [options]                # of the method
    tau = 4.0

    [settings]
    steps = 2000

    [views]
    crop = 2

    [cache]
    folder = "runs/cache"
    store = "fp16"
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tutelage import reading
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.preprocessing import Preprocessing
from tutelage.errors import InputError, did_you_mean

T = TypeVar("T")
Plain = bool | int | float | str


@dataclass(frozen=True)
class ModelSpec:
    """A network by name, with its options and, if trained already, a safetensors file of weights."""

    model: str
    options: dict[str, Plain] = field(default_factory=dict)
    weights: str | None = None


_GIVEN: dict[str | None, tuple[str, ...]] = {
    None: ("name", "file"), "folder": ("path",), "hf": ("name",), "clips": ("path",), "prior": ("shape",), "combined": ("sources",)
}  # fmt: skip
_EXAMPLES: dict[str | None, str] = {
    None: 'name = "…" or file = "data.npz"',
    "folder": 'path = "photos"',
    "hf": 'name = "…"',
    "clips": 'path = "clips"',
    "prior": "shape = [3, 32, 32]",
    "combined": "[data.sources.photos], and [data.sources.drawings]",
}


@dataclass(frozen=True)
class TeacherSpec(ModelSpec):
    """A teacher by name; beside the network, what it is shown and what of its answer counts.

    ``preprocessing``: its own. ``views``: names of :data:`teacher_wrappers.VIEWS`, whose answers are averaged. ``classes``:
    for each class of the student the teacher's, or several; or a number: the first so many; ``class_axis``: where they are.
    """

    preprocessing: Preprocessing | None = None
    views: tuple[str, ...] = ()
    classes: int | tuple[int | tuple[int, ...], ...] | None = None
    class_axis: int = -1


@dataclass(frozen=True)
class DataSpec:
    """What data to read.

    Attributes:
        name: a built-in data set; with ``kind = "hf"`` a data set of Hugging Face's ``datasets``.
        file: .npz or .safetensors with ``inputs`` and, if any, ``labels``, or ``labels.NAME`` for each of several.
        labels: use them.
        limit: only so many samples: the first ones; of an image folder, ones spread evenly.
        kind: ``folder`` (image storage), ``hf``, ``clips``, ``prior`` (noise, no data) or ``combined`` (several sources);
            None: what ``name`` or ``file`` says.
        path: the folder of ``folder`` and ``clips``.
        manifest: a .csv or .jsonl file that lists images and labels; None: each sub-folder is a class.
        split: which part of an ``hf`` data set. ``config``: which configuration of it.
        image: the entry of an ``hf`` row that is the image; None: its only image.
        image_size: height and width to which images are brought, in pixels; ``folder`` needs it.
        crop_area: (least, most) share of a random crop's area; None: the middle. ``flip``: probability of a mirror image.
        workers: processes that read and decode; they change the time a run takes, not its result.
        frames: of each clip (``clips``: a folder of clips, each a folder of frames).
        shape: of one sample of noise (``prior``); ``length``: samples an epoch; ``classes``: labels are classes below it.
        sources: of ``combined``: a table like this one by name. ``mixing``: how they are read; ``weights``: their rows
            (``together``) or how long they are read (``in-sequence``), relative to each other; ``pattern``: names
            (``in-turn``); ``field``: the name under which a batch numbers the sources.
    """

    name: str | None = None
    file: str | None = None
    labels: bool = True
    limit: int | None = None
    kind: Literal["folder", "hf", "clips", "prior", "combined"] | None = None
    path: str | None = None
    manifest: str | None = None
    split: str = "train"
    config: str | None = None
    image: str | None = None
    image_size: int | None = None
    crop_area: tuple[float, float] | None = None
    flip: float = 0.0
    workers: int = 0
    frames: int | None = None
    shape: tuple[int, ...] = ()
    length: int = 65_536
    classes: int | None = None
    sources: dict[str, DataSpec] = dataclasses.field(default_factory=dict)
    mixing: Literal["together", "in-turn", "in-sequence"] = "together"
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    pattern: tuple[str, ...] = ()
    field: str = "source"

    def __post_init__(self) -> None:
        given = [key for key in ("name", "file", "path", "shape", "sources") if getattr(self, key)]
        wanted = _GIVEN[self.kind]
        if len(given) != 1 or given[0] not in wanted:
            remedy = _EXAMPLES[self.kind]
            expected = f'{" or ".join(wanted)} with kind = "{self.kind}"' if self.kind else "either a name or a file"
            raise InputError(f"give {expected}", where="data", remedy=remedy)
        if self.kind in ("folder", "clips") and self.image_size is None:
            raise InputError("image_size is missing", where="data.image_size", remedy="image_size = 64, in pixels")
        if self.kind == "clips" and self.frames is None:
            raise InputError("frames is missing", where="data.frames", remedy="frames = 4, of each clip")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"{self.limit} samples", where="data.limit", remedy="at least 1, or leave it out")


@dataclass(frozen=True)
class CacheSpec:
    """Where the teacher's answers are kept, and how: one word for all heads, or one a head."""

    folder: str
    store: str | dict[str, str] = "fp32"


@dataclass(frozen=True)
class Recipe:
    """A whole distillation; see the module's example.

    ``curriculum``: a system of that kind round the method, with ``curriculum_options``.
    ``task_options``: of the task named by ``task``. ``test``: labelled data to score on (a packaged data set brings its
    own). ``validation``: data that the best student is chosen by, or the share of ``data`` to hold out for that.
    ``labelled``: what the student alone learns from in a comparison, by default ``data``. ``tensorboard``: write the logs
    as its events too."""

    student: ModelSpec
    data: DataSpec
    test: DataSpec | None = None
    validation: DataSpec | float | None = None
    labelled: DataSpec | None = None
    teacher: TeacherSpec | None = None
    method: str = "kd"
    options: dict[str, Plain] = field(default_factory=dict)
    curriculum: str | None = None
    curriculum_options: dict[str, Plain | list[Any]] = field(default_factory=dict)
    task: str | None = None
    task_options: dict[str, Plain] = field(default_factory=dict)
    settings: TrainingSettings = TrainingSettings()
    views: Augmentation | None = None
    cache: CacheSpec | None = None
    seeds: int = 1
    out: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.task_options and self.task is None:
            raise InputError("options of no task", where="task_options", remedy='name it: task = "segmentation"')
        if self.curriculum_options and self.curriculum is None:
            remedy = 'name it: curriculum = "efficienttrain"'
            raise InputError("options of no curriculum", where="curriculum_options", remedy=remedy)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, with ``a.b=value`` overrides (a value is TOML; bare words are text).

    Raises:
        InputError: no such file, not TOML (with the line), an unknown key (with the nearest names), or a value of the
            wrong type; the message names the key.
    """
    return read_file(Recipe, Path(path), overrides)


def read_file(kind: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """A dataclass from a TOML file (None: from nothing), with ``a.b=value`` overrides; see :func:`read`.

    Raises:
        InputError: as :func:`read_recipe`.
    """
    plain = reading.read_toml(path) if path is not None else {}
    for override in overrides:
        _override(plain, override)
    return read(kind, plain, str(path) if path is not None else "--set")


def _override(plain: dict[str, Any], text: str) -> None:
    name, separator, value = text.partition("=")
    keys = name.strip().split(".")
    if not separator or not all(keys):
        raise InputError(f"not an override: {text!r}", where="--set", remedy="--set settings.steps=100")
    try:
        parsed = reading.parse_toml(f"value = {value}", f"--set {name}")["value"]
    except InputError:
        parsed = value
    for key in keys[:-1]:
        plain = plain.setdefault(key, {})
        if not isinstance(plain, dict):
            raise InputError(f"{key} is no table", where=f"--set {name}")
    plain[keys[-1]] = parsed


def read(kind: type[T], plain: Mapping[str, Any], where: str) -> T:
    """A dataclass from plain values, checked field by field; nested dataclasses, optional fields, tuples, dicts and
    literals are understood.

    Raises:
        InputError: an unknown, missing or mistyped key; ``where`` and the key's dotted path are named.
    """
    return _value(kind, plain, where, "")


def _value(kind: Any, value: Any, where: str, path: str) -> Any:
    place = f"{where}: {path}" if path else where
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, value, where, path)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _union([one for one in inner if one is not type(None)], value, where, path)
    if origin is Literal:
        if value not in inner:
            raise InputError(f"unknown value {value!r}", where=place, remedy=did_you_mean(str(value), [str(i) for i in inner]))
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(value):
            raise InputError(f"{len(value)} values, not {len(kinds)}", where=place)
        return tuple(_value(one, item, where, f"{path}[{i}]") for i, (one, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(inner[1], item, where, f"{path}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain_kind = origin or kind
    if isinstance(value, plain_kind) and not (isinstance(value, bool) and plain_kind is not bool):
        return value
    raise InputError(f"{value!r} is no {getattr(plain_kind, '__name__', plain_kind)}", where=place, remedy="see the example")


def _union(kinds: list[Any], value: Any, where: str, path: str) -> Any:
    """The first kind that takes the value; of one kind alone its own error is raised."""
    if len(kinds) == 1:
        return _value(kinds[0], value, where, path)
    if type(value) in kinds:
        return value
    table = next((kind for kind in kinds if is_dataclass(kind)), None)
    if table is not None and isinstance(value, Mapping):
        return _value(table, value, where, path)
    for kind in kinds:
        try:
            return _value(kind, value, where, path)
        except InputError:
            continue
    names = " or ".join(getattr(get_origin(kind) or kind, "__name__", str(kind)) for kind in kinds)
    raise InputError(f"{value!r} is no {names}", where=f"{where}: {path}", remedy="see the example")


def _record(kind: type[T], value: Any, where: str, path: str) -> T:
    if isinstance(value, kind):
        return value
    place = f"{where}: {path}" if path else where
    if not isinstance(value, Mapping):
        raise InputError(f"{value!r} is no table", where=place, remedy=f"write [{path}] and its keys below")
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, item in value.items():
        inside = f"{path}.{key}" if path else key
        if key not in known:
            raise InputError("unknown key", where=f"{where}: {inside}", remedy=did_you_mean(key, list(known)))
        given[key] = _value(hints[key], item, where, inside)
    for name, item in known.items():
        if name not in given and item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{name!r} is missing", where=place, remedy=f"add {name}")
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(error.message, where=f"{where}: {error.where}", remedy=error.remedy) from error
