"""From a recipe to what it names: networks, packaged data, the method, and lessons of any seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from tutelage.distill.data import TensorData
    from tutelage.distill.datasource.dataset import DatasetData
    from tutelage.distill.lesson import Lesson
    from tutelage.distill.method import Method
    from tutelage.distill.recipe import DataPart, Recipe
    from tutelage.distill.views import Views

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What is taught, by whom, how.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="Change a key of the recipe; may be repeated.")
]


def _fashion() -> Any:
    from tutelage.tasks import fashion

    return (*fashion.load("train"), *fashion.load("test"))


def _split(images: Any, labels: Any, tests: int) -> Any:
    """The last ``tests`` of a fixed random order are the test images."""
    from tutelage.seeds import numpy_rng

    order = numpy_rng(0, "packaged data", len(images)).permutation(len(images))
    train, test = order[:-tests], order[-tests:]
    return images[train], labels[train], images[test], labels[test]


def _digits() -> Any:
    from tutelage.tasks import digits

    images, labels = digits.load_8x8()
    return _split(images * 15, labels, 397)  # 0..16 becomes 0..240, of 255


def _mnist() -> Any:
    from tutelage.tasks import digits

    return _split(*digits.load_mnist_5k(), 1000)


PACKAGED: Mapping[str, Callable[[], Any]] = {"fashion-mnist": _fashion, "digits": _digits, "mnist-5k": _mnist}
"""The data sets a recipe may name: each gives uint8 images and labels to train on, and to test on."""


@dataclass(frozen=True)
class Prepared:
    """What a recipe names, loaded. ``test`` has class labels, or is None."""

    recipe: Recipe
    data: TensorData | DatasetData
    test: TensorData | DatasetData | None
    labelled: TensorData | DatasetData | None
    teacher: nn.Module | None

    @property
    def seeds(self) -> list[int]:
        """Of all runs."""
        first = self.recipe.settings.seed
        return list(range(first, first + self.recipe.seeds))

    @property
    def method(self) -> str | type[Method]:
        """Its name; or, for ``supervised``, which is no system, its class."""
        from tutelage.distill.supervised import Supervised

        return Supervised if self.recipe.method == "supervised" else self.recipe.method

    def student(self) -> nn.Module:
        """A student from torch's generator as it was seeded."""
        import torch

        from tutelage.distill.models import build_model

        return build_model(self.recipe.student, torch.initial_seed())

    def score(self, network: nn.Module) -> Mapping[str, float]:
        """Accuracy on the test data, %."""
        from tutelage.distill.compare import accuracy

        assert self.test is not None
        return accuracy(network, self.test)

    def lesson(self, seed: int) -> Lesson:
        """The lesson of ``seed``, with its live teacher."""
        from tutelage.distill.api import make_method, make_student
        from tutelage.distill.lesson import Lesson
        from tutelage.distill.teacher import as_teacher

        settings = replace(self.recipe.settings, seed=seed)
        if self.recipe.cache is not None and settings.view_seed is None:
            settings = replace(settings, view_seed=self.seeds[0])
        method = make_method(self.method, self.recipe.options)
        return Lesson(make_student(self.student, seed), as_teacher(self.teacher), method, self.data, settings, self.recipe.method)


def prepare(recipe: Recipe) -> Prepared:
    """Load everything ``recipe`` names.

    Raises:
        InputError: an unknown name, or files that cannot be read; the message names the field.
    """
    from tutelage.distill.models import build_model

    data, test = load(recipe.data, "data", recipe.views)
    if recipe.test is not None:
        test, _ = load(recipe.test, "test", None, classes_of(data))
    if test is not None and test.labels is None:
        raise InputError("the test data has no labels", where="test", remedy="give a file with an array labels")
    labelled = load(recipe.labelled, "labelled", recipe.views, classes_of(data))[0] if recipe.labelled is not None else None
    teacher = build_model(recipe.teacher) if recipe.teacher is not None else None
    return Prepared(recipe, data, test, labelled, teacher)


def classes_of(data: TensorData | DatasetData) -> list[str] | None:
    """The class names by number, where ``data`` are images in folders."""
    return getattr(getattr(data, "dataset", None), "classes", None) or None


def load(
    part: DataPart, where: str, views: Views | None, classes: list[str] | None = None
) -> tuple[TensorData | DatasetData, TensorData | None]:
    """The data to train on, in ``views``, and the test data that a packaged data set brings, pixels in 0..1.

    ``classes``: class names by number, for a folder of images whose numbers must be those of another.

    Raises:
        InputError: an unknown name; the message offers the nearest.
    """
    import torch

    from tutelage.distill.data import TensorData
    from tutelage.distill.models import load_data

    if part.name is None or part.kind is not None:
        return load_data(part, views, classes), None
    if part.name not in PACKAGED:
        raise InputError(f"no data set {part.name!r}", where=f"{where}.name", remedy=did_you_mean(part.name, list(PACKAGED)))
    images, labels, tests, answers = PACKAGED[part.name]()

    def pixels(array: Any) -> torch.Tensor:
        return torch.from_numpy(array.copy()).float()[:, None] / 255

    kept = slice(part.limit)
    own = torch.from_numpy(labels[kept].copy()) if part.labels else None
    return TensorData(pixels(images[kept]), own, views=views), TensorData(pixels(tests), torch.from_numpy(answers.copy()))
