"""Train with small, easy images first, whatever the method::

    from tutelage import distill

    result = distill(
        student, teacher, data, "kd", curriculum="efficienttrain", curriculum_options={"sizes": (160, 160, 160, 192, 224)}
    )

or ``method=EfficientTrain(inner=KD(tau=2.0), sizes=(20, 20, 20, 24, 28))``. ``data``: square images, whose side is the last
size; the student takes images of every size, as convolutional networks do. A vision transformer with a learned position table
of one size names it: ``positions="pos_embed", patch=16, prefix=1``. As a recipe, for ``tutelage distill``::

    method = "kd"
    curriculum = "efficienttrain"

    [curriculum_options]
    sizes = [20, 20, 20, 24, 28]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Phase, ResizeParameter, TrainingProgress, Turn
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.tasks import Task
from tutelage.distillation.teacher import NetworkTeacher, Teacher
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.efficienttrain.crop import check_square, freq_crop, lanczos_resize, resize_table
from tutelage.systems.efficienttrain.sizes import check_stages, equal_compute, stage_at

_INNER = "method.inner."


@system("efficienttrain", kind="curriculum")
class EfficientTrain(Method):
    """A curriculum of image sizes round any method: low frequencies and weak augmentation first, in cheap steps.

    Of images [B, C, H, H] stage i shows the ``b_i x b_i`` block of lowest frequencies, as an image of that size:
    ``x_b = Re IFFT2((b / H)^2 crop(FFT2(x)))``. With cost ~ b^2 the published sizes 160, 160, 160, 192, 224 in equal stages
    need 0.653 of the operations at 224: 1 / 1.53. The learning rate has one schedule over all stages, and the samples of a
    step stay as many; student and live teacher see the same images.

    ``magnitudes`` add RandAugment of that magnitude (0..10) in each stage, on images in 0..1, at full size. (The paper: two
    operations, magnitudes 1, 3, 5, 7, 9, with a random spread of 0.5, which is left out here.)

    EfficientTrain++ (Wang et al., 2024): ``crop="lanczos"``, ten stages, ``shares="compute"``; :meth:`preset`. Its replay
    buffer for slow loaders is not here.

    In SDVP it shortens the training of a convolutional module on images.

    Limits: a cached teacher is refused, as it would be asked about images of several sizes; labels that are maps of the
    image stay at full size, so tasks with such labels are refused; an inner method with phases of its own cannot have
    ``positions``. Relative position tables (Swin) are not resized. The batch does not grow at small sizes.

    Source: "EfficientTrain: Exploring Generalized Curriculum Learning for Training Visual Backbones" (Yulin Wang, Yang Yue,
    Rui Lu, Tianjiao Liu, Zhao Zhong, Shiji Song, Gao Huang, 2023, arXiv 2211.09703).

    Raises:
        InputError: sizes or shares that are no stages, an inner method that is none, images that are not square or not
            of the last size, or a position table that is not there.
    """

    @dataclass(frozen=True)
    class Config:
        """``sizes``: one a stage, the last the images' own. ``shares``: of the steps; empty: equal; ``"compute"``: stages of
        equal cost. ``crop``: how images become smaller. ``magnitudes``: of ``operations`` of RandAugment, one a stage; empty:
        none. ``positions``: the student's learned table, ``patch``: the side of its patches in pixels, ``prefix``: its
        rows that are no patches; None: nothing to resize. ``field``: the entry of a dict of inputs that holds the images.
        ``inner``: set by the method that is inside."""

        sizes: tuple[int, ...] = (160, 160, 160, 192, 224)
        shares: tuple[float, ...] | Literal["compute"] = ()
        crop: Literal["fourier", "lanczos"] = "fourier"
        magnitudes: tuple[float, ...] = ()
        operations: int = 2
        positions: str | None = None
        patch: int = 16
        prefix: int = 1
        field: str | None = None
        inner: Any = None

        def __post_init__(self) -> None:
            for name in ("sizes", "magnitudes") if self.shares == "compute" else ("sizes", "magnitudes", "shares"):
                if not isinstance(getattr(self, name), Sequence) or isinstance(getattr(self, name), str):
                    raise InputError(f"{getattr(self, name)!r} is no list", where=name, remedy="one number a stage")
                object.__setattr__(self, name, tuple(getattr(self, name)))
            check_stages(self.sizes, () if isinstance(self.shares, str) else self.shares)
            if self.crop not in ("fourier", "lanczos"):
                raise InputError(f"unknown crop {self.crop!r}", where="crop", remedy="fourier or lanczos")
            if self.magnitudes and len(self.magnitudes) != len(self.sizes):
                found = f"{len(self.magnitudes)} magnitudes for {len(self.sizes)} stages"
                raise InputError(found, where="magnitudes", remedy="one a stage")
            for magnitude in self.magnitudes:
                Augmentation(randaugment=(self.operations, magnitude))  # it checks both
            if self.positions is not None and any(size % self.patch for size in self.sizes):
                raise InputError(
                    f"patches of {self.patch} do not divide {list(self.sizes)}", where="sizes", remedy="multiples of patch"
                )

    def __init__(self, config: Config | None = None, *, inner: Method | None = None, **options: object):
        super().__init__(config, **options)
        inner = Supervised() if inner is None else inner
        if not isinstance(inner, Method) or isinstance(inner, EfficientTrain):
            raise InputError(f"{inner!r} is no method to put inside", where="inner", remedy="a Method such as KD()")
        own = self.config
        self.shares = equal_compute(own.sizes) if own.shares == "compute" else tuple(own.shares) or (1.0,) * len(own.sizes)
        self.config = replace(own, inner=(type(inner).__qualname__, inner.config))  # two runs that share it are the same run
        self.inner = inner
        self.inner.progress = self._progress
        self._copy_demands()
        if own.positions is not None and len(inner.phases()) > 1:
            raise InputError(
                f"{type(inner).__name__} has phases of its own", where="positions", remedy="a student without a fixed table"
            )

    @classmethod
    def preset(cls, name: Literal["efficienttrain", "efficienttrain++"], **options: Any) -> EfficientTrain:
        """The published schedules for images of 224; RandAugment's magnitudes with them.

        Raises:
            InputError: another name.
        """
        if name == "efficienttrain":
            return cls(**{"magnitudes": (1, 3, 5, 7, 9), **options})
        if name != "efficienttrain++":
            raise InputError(f"no preset {name!r}", where="preset", remedy="efficienttrain or efficienttrain++")
        sizes = (96,) * 2 + (160,) * 4 + (192,) * 2 + (224,) * 2
        extended = {"sizes": sizes, "shares": "compute", "crop": "lanczos", "magnitudes": tuple(range(10))}
        return cls(**{**extended, **options})

    # -- the curriculum ------------------------------------------------------------------------------------------------

    @property
    def stage(self) -> int:
        """The stage of ``progress``, from 0; with ``positions``, outside of training, the last one."""
        if self.config.positions is None:
            return stage_at(self.progress.fraction, self.shares)
        names = [phase.name for phase in self.phases()]
        return names.index(self.progress.phase.name) if self.progress.phase.name in names else len(names) - 1

    def transform(self, batch: Batch) -> Batch:
        """The images augmented and cropped as the stage says; then what the inner method makes of them."""
        config, stage = self.config, self.stage
        images = self._images(batch)
        if config.magnitudes and config.magnitudes[stage]:
            if batch.seeds is None:
                raise InputError("the batch has no view seeds", where="magnitudes", remedy="give data by number, or no magnitudes")
            images = Augmentation(randaugment=(config.operations, config.magnitudes[stage])).recolour(images, batch.seeds)
        crop = freq_crop if config.crop == "fourier" else lanczos_resize
        images = crop(images, config.sizes[stage])
        inputs = images if config.field is None else {**batch.inputs, config.field: images}
        return self.inner.transform(replace(batch, inputs=inputs))

    def _images(self, batch: Batch) -> Tensor:
        field, inputs = self.config.field, batch.inputs
        if field is not None:
            if not isinstance(inputs, Mapping) or field not in inputs:
                raise InputError(f"the inputs have no entry {field!r}", where="field", remedy="name the entry of the images")
            inputs = inputs[field]
        last = self.config.sizes[-1]
        side = check_square(inputs, 2)
        if side != last:
            raise InputError(
                f"the last stage shows {last} pixels, the images have {side}", where="sizes", remedy=f"sizes that end in {side}"
            )
        return inputs

    def phases(self) -> Sequence[Phase]:
        """The inner method's; with ``positions``, one a stage, at whose begin the table is resized."""
        if self.config.positions is None:
            return [replace(phase, trains=_renamed(phase.trains)) for phase in self.inner.phases()]
        only = self.inner.phases()[0]
        trains = _renamed(only.trains)
        return [
            replace(only, name=f"stage {number}: {size} pixels", share=share, trains=trains)
            for number, (size, share) in enumerate(zip(self.config.sizes, self.shares, strict=True), 1)
        ]

    def enter_phase(self, phase: Phase, student: nn.Module, resize: ResizeParameter) -> None:
        """Resize the position table for the phase's images."""
        config = self.config
        if config.positions is None:
            self.inner.enter_phase(phase, student, resize)
            return
        size = config.sizes[[one.name for one in self.phases()].index(phase.name)]
        resize(self._table(student), partial(resize_table, size=size // config.patch, prefix=config.prefix))
        self.inner.enter_phase(phase, student, resize)

    def _table(self, student: nn.Module) -> nn.Parameter:
        known = dict(student.named_parameters())
        if self.config.positions not in known:
            raise InputError(
                f"the student has no parameter {self.config.positions!r}", where="positions", remedy="a name of named_parameters()"
            )
        return known[self.config.positions]

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Check that images and student go with the sizes; then the inner method prepares."""
        self._images(example)
        if isinstance(example.labels, Tensor) and example.labels.ndim > 2:
            raise InputError(
                f"labels {list(example.labels.shape)} are maps of the images, which change their size",
                where="labels",
                remedy="use the curriculum for tasks whose labels are numbers a sample",
            )
        if self.config.positions is not None:
            resize_table(self._table(student).detach(), self.config.sizes[-1] // self.config.patch, self.config.prefix)
        self.inner.prepare(student, teacher, example, data)
        self._copy_demands()

    # -- what the inner method says --------------------------------------------------------------------------------------

    def _copy_demands(self) -> None:
        inner = self.inner
        self.unused_parameters = tuple(_outer(pattern) for pattern in inner.unused_parameters)
        self.no_weight_decay = tuple(_outer(pattern) for pattern in inner.no_weight_decay)
        self.needs_labels, self.needs_teacher, self.tasks = inner.needs_labels, inner.needs_teacher, inner.tasks
        self.student_heads, self.matched_heads = inner.student_heads, inner.matched_heads
        self.deterministic_teacher = False  # it is asked about images that the data did not supply

    @property
    def progress(self) -> TrainingProgress:
        """The trainer's, for both."""
        return self._progress

    @progress.setter
    def progress(self, progress: TrainingProgress) -> None:
        self._progress = progress
        if "inner" in self._modules:
            self.inner.progress = progress

    @property
    def task(self) -> Task:
        """The inner method's."""
        return self.inner.task

    @task.setter
    def task(self, task: Task) -> None:
        self.inner.task = task

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The inner method's."""
        return self.inner(batch, student, teacher)

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """The inner method's."""
        return self.inner.loss_terms(batch, student, teacher)

    def loss_weights(self) -> Mapping[str, float]:
        """The inner method's."""
        return self.inner.loss_weights()

    def turns(self) -> Sequence[Turn]:
        """The inner method's."""
        return [replace(turn, trains=_renamed(turn.trains)) for turn in self.inner.turns()]

    def groups(self, student: nn.Module) -> Sequence[Mapping[str, Any]] | None:
        """The inner method's."""
        return self.inner.groups(student)

    def backward(self, loss: Callable[[], Tensor]) -> None:
        """The inner method's."""
        self.inner.backward(loss)

    def before_update(self, student: nn.Module) -> None:
        """The inner method's."""
        self.inner.before_update(student)

    def after_step(self, student: nn.Module) -> None:
        """The inner method's."""
        self.inner.after_step(student)

    def export(self, student: nn.Module) -> nn.Module:
        """The inner method's."""
        return self.inner.export(student)

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second, with classic distillation inside."""
        from tutelage.distillation.api import make_method

        student = build_with_seed(lambda: SmallCNN(4, 4 * width, 8 * width), seed, "student")
        teacher = NetworkTeacher(build_with_seed(lambda: SmallCNN(4, 8 * width, 16 * width), seed, "teacher"))
        method = cls(inner=make_method("kd"), sizes=(4, 6, 8))
        return TrainingJob(
            student, teacher, method, toy_images(seed), TrainingSettings(steps=9, batch_size=16, seed=seed), "efficienttrain"
        )


def _outer(pattern: str) -> str:
    """A pattern of the inner method's parameters as the trainer names them."""
    return _INNER + pattern.removeprefix("method.") if pattern.startswith("method.") else pattern


def _renamed(trains: Callable[[str], bool] | None) -> Callable[[str], bool] | None:
    """A choice of the inner method's parameters, asked with the trainer's names."""
    if trains is None:
        return None
    return lambda name: trains("method." + name.removeprefix(_INNER) if name.startswith(_INNER) else name)
