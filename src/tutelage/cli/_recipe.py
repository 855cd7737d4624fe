"""From a recipe to what it names: networks, built-in data, the method, and training jobs of any seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from tutelage.distillation.augmentation import Augmentation
    from tutelage.distillation.data import TensorData
    from tutelage.distillation.data.combined import CombinedData
    from tutelage.distillation.data.dataset import DatasetData
    from tutelage.distillation.job import TrainingJob
    from tutelage.distillation.recipe import DataSpec, Recipe
    from tutelage.distillation.tasks import Task
    from tutelage.distillation.teacher import Teacher

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What is taught, by whom, how.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="Change a key of the recipe; may be repeated.")
]


def _fashion() -> Any:
    from tutelage.datasets import fashion_mnist

    return (*fashion_mnist.load("train"), *fashion_mnist.load("test"))


def _split(images: Any, labels: Any, tests: int) -> Any:
    """The last ``tests`` of a fixed random order are the test images."""
    from tutelage.seeds import numpy_rng

    order = numpy_rng(0, "packaged data", len(images)).permutation(len(images))
    train, test = order[:-tests], order[-tests:]
    return images[train], labels[train], images[test], labels[test]


def _digits() -> Any:
    from tutelage.datasets import digits

    images, labels = digits.load_8x8()
    return _split(images * 15, labels, 397)  # 0..16 becomes 0..240, of 255


def _mnist() -> Any:
    from tutelage.datasets import digits

    return _split(*digits.load_mnist_5k(), 1000)


PACKAGED: Mapping[str, Callable[[], Any]] = {"fashion-mnist": _fashion, "digits": _digits, "mnist-5k": _mnist}
"""The data sets a recipe may name: each gives uint8 images and labels to train on, and to test on."""


@dataclass(frozen=True)
class LoadedRecipe:
    """What a recipe names, loaded. ``test`` has labels, or is None. ``validation``: data or a share of ``data``, or None."""

    recipe: Recipe
    data: TensorData | DatasetData
    test: TensorData | DatasetData | None
    labelled: TensorData | DatasetData | None
    teacher: Teacher | nn.Module | None
    validation: TensorData | DatasetData | float | None = None

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """What is learned from, and what the best student is chosen by (None: nothing chooses)."""
        from tutelage.distillation.data.subset import split_data

        if isinstance(self.validation, (int, float)):
            return split_data(self.data, self.validation)
        return self.data, self.validation

    @property
    def seeds(self) -> list[int]:
        """Of all runs."""
        first = self.recipe.settings.seed
        return list(range(first, first + self.recipe.seeds))

    @property
    def method(self) -> str:
        """Its name."""
        return self.recipe.method

    def student(self) -> nn.Module:
        """A student from torch's generator as it was seeded."""
        import torch

        from tutelage.distillation.resolve import build_model

        return build_model(self.recipe.student, torch.initial_seed())

    @cached_property
    def task(self) -> Task | None:
        """The task by name, or the only one of the method; else the one that labelled test data leaves possible."""
        from tutelage.distillation.api import make_method
        from tutelage.distillation.evaluate import task_of
        from tutelage.distillation.tasks import make_task

        if self.recipe.task is not None:
            return make_task(self.recipe.task, self.recipe.task_options)
        supported = make_method(self.method, self.recipe.options).tasks
        if len(supported) == 1:
            return make_task(supported[0])
        return None if self.test is None else task_of(self.student(), self.test)

    def score(self, network: nn.Module) -> Mapping[str, float]:
        """The task's metrics on the test data."""
        from tutelage.distillation.evaluate import evaluate

        assert self.test is not None
        return evaluate(network, self.test, self.task)

    def training_job(self, seed: int) -> TrainingJob:
        """The training job of ``seed``, with its live teacher."""
        from tutelage.distillation.api import make_method, make_student, with_curriculum
        from tutelage.distillation.job import TrainingJob
        from tutelage.distillation.teacher import as_teacher

        settings = replace(self.recipe.settings, seed=seed)
        if self.recipe.cache is not None and settings.view_seed is None:
            settings = replace(settings, view_seed=self.seeds[0])
        recipe = self.recipe
        method = with_curriculum(make_method(self.method, recipe.options), recipe.curriculum, recipe.curriculum_options)
        return TrainingJob(
            make_student(self.student, seed),
            as_teacher(self.teacher),
            method,
            self.parts[0],
            settings,
            self.recipe.method,
            task=self.task,
            validation=self.parts[1],
        )


def prepare(recipe: Recipe) -> LoadedRecipe:
    """Load everything ``recipe`` names.

    Raises:
        InputError: an unknown name, or files that cannot be read; the message names the field.
    """
    from tutelage.distillation.resolve import build_teacher

    data, test = load(recipe.data, "data", recipe.views)
    if recipe.test is not None:
        test, _ = load(recipe.test, "test", None, classes_of(data))
    if test is not None and test.labels is None:
        raise InputError("the test data has no labels", where="test", remedy="give a file with an array labels")
    labelled = load(recipe.labelled, "labelled", recipe.views, classes_of(data))[0] if recipe.labelled is not None else None
    teacher = build_teacher(recipe.teacher) if recipe.teacher is not None else None
    return LoadedRecipe(recipe, data, test, labelled, teacher, _validation(recipe, data))


def _validation(recipe: Recipe, data: TensorData | DatasetData) -> TensorData | DatasetData | float | None:
    spec = recipe.validation
    if spec is None or isinstance(spec, (int, float)):
        return spec
    found, _ = load(spec, "validation", None, classes_of(data))
    if found.labels is None:
        raise InputError("the validation data has no labels", where="validation", remedy="give labelled data")
    return found


def classes_of(data: TensorData | DatasetData) -> list[str] | None:
    """The class names by number, where ``data`` are images in folders."""
    return getattr(getattr(data, "dataset", None), "classes", None) or None


def _combined(spec: DataSpec, where: str, views: Augmentation | None, classes: list[str] | None) -> CombinedData:
    """Several sources; classes of image folders are numbered as in the first of them."""
    from tutelage.distillation.data.combined import CombinedData
    from tutelage.distillation.resolve import mixing_of

    sources: dict[str, Any] = {}
    for name, source in spec.sources.items():
        sources[name], _ = load(source, f"{where}.sources.{name}", views, classes)
        classes = classes or classes_of(sources[name])
    return CombinedData(sources, mixing_of(spec), field=spec.field)


def load(spec: DataSpec, where: str, views: Augmentation | None, classes: list[str] | None = None) -> tuple[Any, TensorData | None]:
    """The data to train on, in ``views``, and the test data that a packaged data set brings, pixels in 0..1.

    ``classes``: class names by number, for a folder of images whose numbers must be those of another.

    Raises:
        InputError: an unknown name; the message offers the nearest.
    """
    import torch

    from tutelage.distillation.data import TensorData
    from tutelage.distillation.resolve import load_data

    if spec.kind == "combined":
        return _combined(spec, where, views, classes), None
    if spec.name is None or spec.kind is not None:
        return load_data(spec, views, classes), None
    if spec.name not in PACKAGED:
        raise InputError(f"no data set {spec.name!r}", where=f"{where}.name", remedy=did_you_mean(spec.name, list(PACKAGED)))
    images, labels, tests, answers = PACKAGED[spec.name]()

    def pixels(array: Any) -> torch.Tensor:
        return torch.from_numpy(array.copy()).float()[:, None] / 255

    kept = slice(spec.limit)
    own = torch.from_numpy(labels[kept].copy()) if spec.labels else None
    return TensorData(pixels(images[kept]), own, views=views), TensorData(pixels(tests), torch.from_numpy(answers.copy()))
