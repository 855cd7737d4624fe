"""Wrappers: each takes a teacher and is one. They change what it is shown, or what it says, and compose in any order.

::

    teacher = PreprocessedTeacher(network, Preprocessing(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    teacher = AveragedViewsTeacher(teacher, ("identity", "flip"))
    teacher = MappedClassesTeacher(teacher, classes=[3, 5, [7, 8]])

Around a cached teacher, a wrapper that changes what is said works on the stored answers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, flatten_tree, map_tree
from tutelage.distillation.data.object_hash import callable_fingerprint
from tutelage.distillation.outputs import Output
from tutelage.distillation.preprocessing import Preprocessing
from tutelage.distillation.teacher import BlackBoxTeacher, Teacher, as_teacher
from tutelage.errors import InputError, did_you_mean
from tutelage.storage import fingerprint

Classes = int | Sequence[int | Sequence[int]]


class WrappedTeacher(Teacher):
    """The base of wrappers: another teacher, whose inputs or outputs a subclass changes.

    A subclass overrides :meth:`inputs` or :meth:`outputs`, and gives ``parts``, the plain values that decide what it does.

    Raises:
        InputError: no teacher, or a cached one where other inputs would be shown.
    """

    changes_inputs = False
    """Whether it shows the teacher other inputs: then stored answers to those of the data are not what it would say."""

    def __init__(self, teacher: Teacher | nn.Module | Callable[[Any], Any], *parts: Any):
        found = as_teacher(teacher)
        if found is None:
            raise InputError("there is no teacher to wrap", where="teacher", remedy="give a network or a Teacher")
        if found.cached and self.changes_inputs:
            raise InputError(
                "a cached teacher answers the views of its data alone, not other inputs",
                where=type(self).__name__,
                remedy="wrap the live teacher, and cache the wrapper",
            )
        self.teacher, self.parts, self.frozen, self.cached = found, parts, found.frozen, found.cached

    def inputs(self, batch: Batch) -> Batch:
        """What the teacher is shown."""
        return batch

    def outputs(self, heads: Output) -> Output:
        """What is made of its answer."""
        return heads

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        return self.outputs(self.teacher(self.inputs(batch)))

    @property
    def fingerprint(self) -> str:
        """See :class:`Teacher`."""
        return fingerprint(type(self).__qualname__, list(self.parts), self.teacher.fingerprint)

    def request_features(self, *taps: str) -> None:
        """See :class:`Teacher`."""
        self.teacher.request_features(*taps)

    @property
    def uncached(self) -> Self:
        """See :class:`Teacher`."""
        live = copy.copy(self)
        live.teacher = self.teacher.uncached
        return live

    @property
    def black_boxes(self) -> Sequence[BlackBoxTeacher]:
        """See :class:`Teacher`."""
        return self.teacher.black_boxes

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See :class:`Teacher`."""
        return self.teacher.networks

    def to(self, device: torch.device | str) -> Self:
        """See :class:`Teacher`."""
        self.teacher.to(device)
        return self

    def after_step(self, student: nn.Module) -> None:
        """See :class:`Teacher`."""
        self.teacher.after_step(student)

    def state_dict(self) -> dict[str, Tensor]:
        """See :class:`Teacher`."""
        return self.teacher.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`Teacher`."""
        self.teacher.load_state_dict(state)


# -- what it is shown ------------------------------------------------------------------------------------------------


def _images(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """``batch`` with ``function`` applied to its images, the tensors [B, C, H, W] among the inputs."""
    if not any(leaf.ndim == 4 for _, leaf in flatten_tree(batch.inputs)):
        shapes = ", ".join(str(list(leaf.shape)) for _, leaf in flatten_tree(batch.inputs))
        raise InputError(f"no images [B, C, H, W] among the inputs: {shapes}", where="teacher", remedy="give it other inputs")
    return replace(batch, inputs=map_tree(lambda leaf: function(leaf) if leaf.ndim == 4 else leaf, batch.inputs))


class PreprocessedTeacher(WrappedTeacher):
    """A teacher with preprocessing of its own: it sees ``preprocessing(images)`` where the student sees the images.

    Args:
        teacher: the teacher.
        preprocessing: a :class:`Preprocessing`, or any function of images [B, C, H, W].
        version: names a function that cannot be looked into.
    """

    changes_inputs = True

    def __init__(
        self, teacher: Teacher | nn.Module, preprocessing: Preprocessing | Callable[[Tensor], Tensor], version: str | None = None
    ):
        super().__init__(teacher, callable_fingerprint(preprocessing, "preprocessing", version))
        self.preprocessing = preprocessing

    def inputs(self, batch: Batch) -> Batch:
        """See :class:`WrappedTeacher`."""
        return _images(self.preprocessing, batch)


class ExtraChannelsTeacher(WrappedTeacher):
    """A teacher that sees further channels behind those of the images: label maps, depth, coordinates.

    Args:
        teacher: takes images [B, C + K, H, W].
        channels: the field of ``batch.extra`` that holds them, or a function of the batch: [B, K, H, W], or [B, K], which
            is spread over the image.
        version: names a function that cannot be looked into.
    """

    changes_inputs = True

    def __init__(self, teacher: Teacher | nn.Module, channels: str | Callable[[Batch], Tensor], version: str | None = None):
        super().__init__(teacher, callable_fingerprint(channels, "channels", version))
        self.channels = channels

    def inputs(self, batch: Batch) -> Batch:
        """See :class:`WrappedTeacher`.

        Raises:
            InputError: the batch lacks the field, or the channels do not fit the images.
        """
        if isinstance(self.channels, str):
            extra = batch.extra.get(self.channels)
            if not isinstance(extra, Tensor):
                known = ", ".join(batch.extra) or "none"
                raise InputError(f"the batch has no field {self.channels!r}", where="channels", remedy=f"its fields: {known}")
        else:
            extra = self.channels(batch)

        def widened(images: Tensor) -> Tensor:
            more = extra[:, :, None, None].expand(-1, -1, *images.shape[2:]) if extra.ndim == 2 else extra
            if more.ndim != 4 or (len(more), *more.shape[2:]) != (len(images), *images.shape[2:]):
                shapes = f"{list(extra.shape)} beside images {list(images.shape)}"
                raise InputError(shapes, where="channels", remedy="give [B, K, H, W] of the images' size, or [B, K]")
            return torch.cat([images, more.to(images)], 1)

        return _images(widened, batch)


# -- what it says ----------------------------------------------------------------------------------------------------


class MappedClassesTeacher(WrappedTeacher):
    """A teacher of other classes than the student's.

    Class i of the student is ``classes[i]`` of the teacher, or several of them: their probabilities are added (the log of
    the sum of exponentials of their logits). The student's softmax renormalises over the classes that are kept.

    Args:
        teacher: the teacher.
        classes: one entry a class of the student: a class number of the teacher, or a list of them; or a number: the first
            so many (a vocabulary padded by 128 rows).
        heads: the heads that are mapped; others pass.
        axis: the class axis: -1 for [B, C] and [B, N, C], 1 for maps [B, C, H, W].

    Raises:
        InputError: no class, a negative one, or one that the teacher does not have.
    """

    def __init__(self, teacher: Teacher | nn.Module, classes: Classes, heads: Sequence[str] = ("logits",), axis: int = -1):
        groups = range(classes) if isinstance(classes, int) else classes
        self.groups = [[one] if isinstance(one, int) else list(one) for one in groups]
        if not self.groups or not all(group and min(group) >= 0 for group in self.groups):
            raise InputError(
                f"{str(classes)[:100]} is no map of classes", where="classes", remedy="one class number, or a list, a class"
            )
        super().__init__(teacher, self.groups, list(heads), axis)
        self.heads, self.axis = tuple(heads), axis

    def outputs(self, heads: Output) -> Output:
        """See :class:`WrappedTeacher`."""
        return {name: self._mapped(value) if name in self.heads else value for name, value in heads.items()}

    def _mapped(self, logits: Tensor) -> Tensor:
        largest, known = max(max(group) for group in self.groups), logits.shape[self.axis]
        if largest >= known:
            raise InputError(f"class {largest} of a teacher that has {known}", where="classes", remedy="numbers begin at 0")
        if all(len(group) == 1 for group in self.groups):
            return logits.index_select(self.axis, torch.tensor([group[0] for group in self.groups], device=logits.device))
        merged = [logits.index_select(self.axis, torch.tensor(group, device=logits.device)) for group in self.groups]
        return torch.stack([group.logsumexp(self.axis) for group in merged], self.axis)


@dataclass(frozen=True)
class View:
    """One way to look at images: ``show`` moves them [B, C, H, W]; ``undo`` moves a map [.., H, W] back."""

    show: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor]


def _same(images: Tensor) -> Tensor:
    return images


def _flip(images: Tensor) -> Tensor:
    return images.flip(-1)


def _flip_rows(images: Tensor) -> Tensor:
    return images.flip(-2)


def _quarter(images: Tensor) -> Tensor:
    return images.rot90(1, (-2, -1))


def _quarter_back(images: Tensor) -> Tensor:
    return images.rot90(-1, (-2, -1))


VIEWS = {
    "identity": View(_same, _same),
    "flip": View(_flip, _flip),
    "flip_rows": View(_flip_rows, _flip_rows),
    "quarter_turn": View(_quarter, _quarter_back),
}
"""The views known by name: as it is, mirrored left to right or top to bottom, and turned by 90 degrees."""


class AveragedViewsTeacher(WrappedTeacher):
    """The average of a teacher's answers to several views of each image: test-time augmentation.

    Args:
        teacher: the teacher.
        views: names of :data:`VIEWS`, or :class:`View`.
        maps: heads whose two last axes are those of the image; they are moved back before they are averaged.
        probabilities: heads whose probabilities are averaged, over ``axis``, rather than their values.
        axis: their class axis.
        version: names views that cannot be looked into.

    Raises:
        InputError: no view, or an unknown name.
    """

    changes_inputs = True

    def __init__(
        self,
        teacher: Teacher | nn.Module,
        views: Sequence[str | View] = ("identity", "flip"),
        maps: Sequence[str] = (),
        probabilities: Sequence[str] = (),
        axis: int = -1,
        version: str | None = None,
    ):
        if not views:
            raise InputError("no view", where="views", remedy=f"some of {', '.join(VIEWS)}")
        for name in views:
            if isinstance(name, str) and name not in VIEWS:
                raise InputError(f"unknown view {name!r}", where="views", remedy=did_you_mean(name, list(VIEWS)))
        self.views = [VIEWS[one] if isinstance(one, str) else one for one in views]
        named = [one if isinstance(one, str) else callable_fingerprint(one, "views", version) for one in views]
        super().__init__(teacher, named, list(maps), list(probabilities), axis)
        self.maps, self.probabilities, self.axis = tuple(maps), tuple(probabilities), axis

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        total: Output = {}
        for view in self.views:
            for name, value in self.teacher(_images(view.show, batch)).items():
                value = view.undo(value) if name in self.maps else value
                value = value.softmax(self.axis) if name in self.probabilities else value
                total[name] = total[name] + value if name in total else value
        means = {name: value / len(self.views) for name, value in total.items()}
        return {name: value.clamp_min(1e-30).log() if name in self.probabilities else value for name, value in means.items()}
