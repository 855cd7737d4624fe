"""Teachers: anything that answers a batch with named heads, without a gradient.

A teacher is a value, held beside the student, never wrapped into it. Whatever the kind, ``teacher(batch) -> Output``
checks nothing and costs nothing but the answer; ``fingerprint`` names all that decides an answer, so that answers can be
kept. Wrappers take a teacher and are one (:mod:`tutelage.distillation.teacher_wrappers`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, map_tree
from tutelage.distillation.data.object_hash import ObjectHash, callable_fingerprint
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.outputs import Output, forward_heads
from tutelage.distillation.weight_averaging import Buffers, ExponentialAverage
from tutelage.errors import InputError
from tutelage.storage import fingerprint


def network_fingerprint(network: nn.Module) -> str:
    """A hash of a network's class, and of the name, shape and bytes of each weight and buffer."""
    parts: list[Any] = [type(network).__qualname__]
    for name, value in sorted(network.state_dict().items()):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        parts += [name, str(value.dtype), list(value.shape), data]
    return fingerprint(*parts)


class Teacher:
    """The protocol. Subclasses define :meth:`predict`; those that learn or count also the rest.

    ``network`` is the live network where there is one (a method may run parts of it), else None.
    """

    network: nn.Module | None = None
    frozen: bool = True
    """Whether its answers stay the same while it teaches: only then can they be cached."""
    cached: bool = False
    """Whether it reads stored answers to the views of the data, whatever inputs it is shown."""

    def __call__(self, batch: Batch) -> Output:
        """The heads for ``batch``, without gradients."""
        with torch.no_grad():
            return self.predict(batch)

    def predict(self, batch: Batch) -> Output:
        """The heads for ``batch``; runs under ``no_grad``."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Changes whenever an answer may change."""
        raise NotImplementedError

    def request_features(self, *taps: str) -> None:
        """Ask that every answer also hold the outputs of these named sub-modules, under their names.

        Raises:
            InputError: this teacher cannot show them.
        """
        if taps:
            raise InputError(f"{type(self).__name__} shows no inner outputs", where=taps[0], remedy="give the live network")

    @property
    def uncached(self) -> Teacher:
        """The teacher that can be asked about other inputs than the training views: itself, but for a cached one."""
        return self

    @property
    def black_boxes(self) -> Sequence[BlackBoxTeacher]:
        """The black boxes that an answer asks: their queries are counted, and may cost."""
        return ()

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The live networks that an answer runs."""
        return () if self.network is None else (self.network,)

    def to(self, device: torch.device | str) -> Teacher:
        """Move the teacher to ``device``."""
        return self

    def after_step(self, student: nn.Module) -> None:
        """Called after each step of the student: moving averages."""

    def state_dict(self) -> dict[str, Tensor]:
        """What must be saved to resume: nothing, unless the teacher changes or counts while it teaches."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` gave."""


class NetworkTeacher(Teacher):
    """A frozen network, always in eval mode, whatever the trainer does to the student.

    Args:
        network: the teacher; its parameters are marked as needing no gradient.
        taps: names of sub-modules whose outputs become heads too.
        heads: new names for its heads, ``{"head": "logits"}``.
        channels_last: weights and 4-D inputs in that layout.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[str] = (),
        heads: Mapping[str, str] | None = None,
        channels_last: bool = False,
    ):
        self.network: nn.Module = network.eval().requires_grad_(False)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.heads, self.channels_last = dict(heads or {}), channels_last
        self._definition = ObjectHash(network, weights=False)  # as it was given: a network may keep things as it runs
        self._taps = FeatureHooks(network, taps)

    def request_features(self, *taps: str) -> None:
        """See :class:`Teacher`."""
        self._taps = FeatureHooks(self.network, (*self._taps.names, *(name for name in taps if name not in self._taps.names)))

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        if self.network.training:
            self.network.eval()
        return self.answer(batch)

    def answer(self, batch: Batch) -> Output:
        """The heads for ``batch``, in whatever mode the network is."""
        inputs = batch.inputs
        if self.channels_last:
            inputs = map_tree(lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t, inputs)
        if not self._taps.names:
            outputs = forward_heads(self.network, inputs)
        else:
            with self._taps as taken:
                outputs = forward_heads(self.network, inputs)
                outputs |= taken
        return {self.heads.get(name, name): value for name, value in outputs.items()} if self.heads else outputs

    @property
    def fingerprint(self) -> str:
        """Of the weights as they are; of the code of its classes and of its settings as they were when it was given."""
        return fingerprint(network_fingerprint(self.network), self._definition.hexdigest(), self.heads)

    def to(self, device: torch.device | str) -> NetworkTeacher:
        """See :class:`Teacher`."""
        self.network.to(device)
        return self


class EMATeacher(NetworkTeacher):
    """The student's exponential moving average, updated after each step (Tarvainen, Valpola, 2017).

    Args:
        student: copied.
        decay: a number in 0..1, or a function of the number of updates so far.
        taps: names of sub-modules whose outputs become heads too.
        buffers: ``copy``, ``average`` or ``own``: see :class:`~tutelage.distillation.weight_averaging.ExponentialAverage`.
        train: it runs in train mode: batch statistics of its own batches, and dropout.
    """

    frozen = False

    def __init__(
        self,
        student: nn.Module,
        decay: float | Callable[[int], float] = 0.999,
        taps: Sequence[str] = (),
        buffers: Buffers = "copy",
        train: bool = False,
    ):
        self.average = ExponentialAverage(student, decay, buffers)
        super().__init__(self.average.network, taps)
        self.train_mode = train

    @property
    def updates(self) -> int:
        """How many steps of the student it has followed."""
        return self.average.updates

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        if not self.train_mode:
            return super().predict(batch)
        self.network.train()
        return self.answer(batch)

    def after_step(self, student: nn.Module) -> None:
        """See :class:`Teacher`."""
        self.average.update(student)

    @property
    def fingerprint(self) -> str:
        """Names the kind alone: the weights follow the student, and nothing this teacher says can be cached."""
        decay = self.average.decay
        more = [] if (self.average.buffers, self.train_mode) == ("copy", False) else [self.average.buffers, self.train_mode]
        return fingerprint("moving average", decay.__qualname__ if callable(decay) else float(decay), *more)

    def state_dict(self) -> dict[str, Tensor]:
        """See :class:`Teacher`."""
        return self.average.state()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`Teacher`."""
        self.average.load(state)


class SelfTeacher(NetworkTeacher):
    """The student as it was when the training job began: a frozen copy."""

    def __init__(self, student: nn.Module, taps: Sequence[str] = ()):
        super().__init__(copy.deepcopy(student), taps)


class BlackBoxTeacher(Teacher):
    """Any callable: it is given ``batch.inputs`` and returns a tensor (``logits``), an array, or a dict of these.

    ``queries`` counts the samples it was asked for; ``limit`` stops before more are. ``version`` names what answers (a
    model's name and date); without one, the code of the callable and all that it holds do.

    Raises:
        InputError: the limit would be passed; or no ``version``, and the callable holds what cannot be looked into.
    """

    def __init__(self, function: Callable[[Any], Any], version: str | None = None, limit: int | None = None):
        if version is None:
            name = getattr(function, "__name__", type(function).__name__)
            version = f"{name} {callable_fingerprint(function, 'teacher')}"
        self.function, self.version, self.limit, self.queries = function, version, limit, 0

    def predict(self, batch: Batch) -> Output:
        """See :class:`Teacher`."""
        if self.limit is not None and self.queries + len(batch) > self.limit:
            raise InputError(
                f"{self.queries + len(batch)} queries would pass the limit of {self.limit}",
                where=f"teacher {self.version}",
                remedy="raise the limit, take fewer steps, or cache the teacher: it is then asked once a view",
            )
        outputs = self.function(batch.inputs)
        self.queries += len(batch)
        named = outputs if isinstance(outputs, Mapping) else {"logits": outputs}
        return {name: torch.as_tensor(value).detach() for name, value in named.items()}

    @property
    def black_boxes(self) -> Sequence[BlackBoxTeacher]:
        """See :class:`Teacher`."""
        return (self,)

    @property
    def fingerprint(self) -> str:
        """See :class:`Teacher`."""
        return fingerprint("black box", self.version)

    def state_dict(self) -> dict[str, Tensor]:
        """The count goes on over a resumed run."""
        return {"queries": torch.tensor(self.queries)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`Teacher`."""
        self.queries = int(state["queries"])


def as_teacher(teacher: Any) -> Teacher | None:
    """A network as :class:`NetworkTeacher`, another callable as :class:`BlackBoxTeacher`, a teacher as itself, None as None.

    Raises:
        InputError: anything else, or a callable that must say its version.
    """
    if teacher is None or isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, nn.Module):
        return NetworkTeacher(teacher)
    if callable(teacher) and not isinstance(teacher, type):
        return BlackBoxTeacher(teacher)
    raise InputError(
        f"the class {teacher.__name__} is no teacher" if isinstance(teacher, type) else f"{type(teacher).__name__} is no teacher",
        where="teacher",
        remedy="give a network, a function of a batch's inputs, or a Teacher",
    )
