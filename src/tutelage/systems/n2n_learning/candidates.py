"""The children of a search: their sizes, their scores after a short training, and their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tutelage import storage, workers
from tutelage.distillation.api import distill
from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.data.sources import as_data
from tutelage.distillation.evaluate import evaluate
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.supervised import Supervised
from tutelage.errors import InputError
from tutelage.reading import read_json
from tutelage.seeds import torch_rng
from tutelage.storage import fingerprint
from tutelage.systems._toy import build_with_seed
from tutelage.systems.n2n_learning.flattening import inherit_weights
from tutelage.systems.n2n_learning.layer_list import Architecture, InvalidNetwork, build, layers_key, parameter_count
from tutelage.systems.n2n_learning.policies import PolicySettings
from tutelage.systems.n2n_learning.reward import INVALID, Constraint, reward


class LogitRegression(Method):
    """``L = mean_i ||z_s - z_t||^2 / C``: the student's logits [B, C] learn the teacher's, before the softmax."""

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``mse``."""
        return {"mse": (student["logits"] - teacher["logits"]).square().mean()}


@dataclass(frozen=True)
class SearchSettings:
    """The options; the defaults are the published ones where the paper gives them.

    ``removal_iterations`` and ``shrinkage_iterations`` of ``rollouts`` each. ``decay``, ``entropy``, ``critic``: see
    ``PolicySettings``. ``loss``: ``logits`` (of the teacher) or ``labels``. ``epochs``, ``batch_size``, ``lr``,
    ``weight_decay``: of a student. ``inherit``: students start from slices of the teacher's weights. ``share``: of the data
    that is held out.
    """

    removal_iterations: int = 100
    shrinkage_iterations: int = 100
    rollouts: int = 5
    removal_lr: float = 3e-3
    shrinkage_lr: float = 1e-2
    decay: float = 0.8
    entropy: float = 0.0
    critic: bool = False
    loss: Literal["logits", "labels"] = "logits"
    epochs: float = 5.0
    batch_size: int = 64
    lr: float = 5e-4
    weight_decay: float = 5e-4
    inherit: bool = False
    share: float = 0.1

    def __post_init__(self) -> None:
        for name in ("removal_iterations", "shrinkage_iterations"):
            if getattr(self, name) < 0:
                raise InputError(f"{getattr(self, name)} iterations", where=name, remedy="0 leaves the stage out")
        if self.rollouts < 1 or self.epochs <= 0 or self.batch_size < 1:
            raise InputError("nothing to train", where="rollouts, epochs, batch_size", remedy="all above 0")
        if self.loss not in ("logits", "labels"):
            raise InputError(f"unknown loss {self.loss!r}", where="loss", remedy="logits or labels")
        if not 0 < self.share < 1:
            raise InputError(f"a share of {self.share}", where="share", remedy="between 0 and 1, such as 0.1")

    def method(self) -> Method:
        """What a student is trained by."""
        return LogitRegression() if self.loss == "logits" else Supervised()

    def of_policy(self, stage: Literal["removal", "shrinkage"]) -> PolicySettings:
        """How the policy of a stage is trained."""
        iterations, lr = getattr(self, f"{stage}_iterations"), getattr(self, f"{stage}_lr")
        return PolicySettings(iterations, self.rollouts, lr, self.decay, self.entropy, self.critic)

    def training(self) -> dict[str, Any]:
        """The settings of a student's training, but for its length."""
        return {"batch_size": self.batch_size, "lr": self.lr, "weight_decay": self.weight_decay, "progress": False}


class Candidate(NamedTuple):
    """One rollout. ``size`` (parameters) and ``accuracy`` (0..1) are None where the child is invalid; ``known``: its score comes
    from an earlier rollout."""

    stage: str
    iteration: int
    architecture: Architecture | None
    size: int | None
    accuracy: float | None
    reward: float
    known: bool


def score_candidate(
    teacher: nn.Module,
    data: ReplayableData,
    held_out: ReplayableData,
    settings: SearchSettings,
    seed: int,
    cache: Path,
    architecture: Architecture,
) -> float:
    """Train one student briefly, and give its accuracy (0..1) on the held-out data; its start depends on seed and layers."""
    student = build_with_seed(lambda: build(architecture), seed, "candidate", fingerprint(layers_key(architecture)))
    if settings.inherit:
        inherit_weights(student, architecture, teacher)
    of_teacher = settings.loss == "logits"
    trained = distill(
        student,
        teacher if of_teacher else None,
        data,
        settings.method(),
        task=None if of_teacher else "classification",
        cache=cache if of_teacher else None,
        check=False,
        epochs=settings.epochs,
        schedule="constant",
        seed=seed,
        **settings.training(),
    ).student
    return evaluate(trained, held_out, task="classification")["accuracy"] / 100


@dataclass
class Candidates:
    """All children of one search. Each architecture is trained once: ``folder`` keeps its score, and the teacher's answers."""

    teacher: nn.Module
    data: ReplayableData
    held_out: ReplayableData
    settings: SearchSettings
    constraint: Constraint
    teacher_size: int
    teacher_accuracy: float
    seed: int
    folder: Path
    processes: int = 1
    history: list[Candidate] = field(default_factory=list)

    def judge(self, stage: str, iteration: int, children: Sequence[Architecture]) -> list[float]:
        """The rewards of an iteration's children, which join the history; those not known yet are trained, each once."""
        sizes = [self.size(child) for child in children]
        files = [self.folder / "scores" / f"{self.key(child)}.json" for child in children]
        known = {self.key(one.architecture) for one in self.history if one.architecture is not None}
        self._train({file: child for file, child, size in zip(files, children, sizes) if size is not None and not file.exists()})
        for child, size, file in zip(children, sizes, files):
            if size is None:
                self.history.append(Candidate(stage, iteration, None, None, None, INVALID, False))
                continue
            accuracy = float(read_json(file)["accuracy"])
            earned = self.rule(stage).applied(self.plain_reward(accuracy, size), accuracy, size, iteration)
            self.history.append(Candidate(stage, iteration, child, size, accuracy, earned, self.key(child) in known))
            known.add(self.key(child))
        return [one.reward for one in self.history[-len(children) :]]

    def _train(self, new: dict[Path, Architecture]) -> None:
        common = (self.teacher, self.data, self.held_out, self.settings, self.seed, self.folder / "teacher")
        tasks = [(child,) for child in new.values()]
        first = 0 if (self.folder / "teacher").exists() else 1  # it stores the teacher's answers for all others
        scores = [score_candidate(*common, *task) for task in tasks[:first]]
        scores += workers.map_tasks(score_candidate, tasks[first:], self.processes, common=common)
        for file, accuracy in zip(new, scores, strict=True):
            storage.write_json(file, {"accuracy": accuracy})

    def size(self, child: Architecture) -> int | None:
        """The child's parameters; None where it cannot be built or is not smaller than the teacher."""
        try:
            size = parameter_count(child)
        except InvalidNetwork:
            return None
        return size if size < self.teacher_size else None

    def key(self, child: Architecture) -> str:
        """Names a child: by its layers, and where it inherits weights also by what they came from."""
        return fingerprint(child if self.settings.inherit else layers_key(child))

    def plain_reward(self, accuracy: float, size: int) -> float:
        """The reward without constraint."""
        return reward(accuracy, self.teacher_accuracy, size, self.teacher_size)

    def rule(self, stage: str) -> Constraint:
        """The constraint of a stage: what is left of a network is still shrunk, so that its size counts in the last stage."""
        last = stage == "shrinkage" or self.settings.shrinkage_iterations == 0
        return self.constraint if last else replace(self.constraint, max_params=None)

    def best(self, stage: str | None = None) -> Candidate | None:
        """The candidate of the highest plain reward among those that keep to the constraint, of ``stage`` (by its own rule) or
        of all; where none does, among all valid ones."""
        valid = [one for one in self.history if one.size is not None and stage in (None, one.stage)]
        rule = self.constraint if stage is None else self.rule(stage)
        kept = [one for one in valid if rule.holds(one.accuracy or 0.0, one.size or 0)]
        return max(kept or valid, key=lambda one: self.plain_reward(one.accuracy or 0.0, one.size or 0), default=None)

    def keeps(self, one: Candidate) -> bool:
        """Whether a valid candidate keeps to the constraint."""
        return self.constraint.holds(one.accuracy or 0.0, one.size or 0)

    def nothing(self) -> InputError:
        """That no child keeps to the constraint, and the nearest."""
        valid = [one for one in self.history if one.size is not None]
        seen = "none was valid"
        if valid:
            smallest, highest = min(one.size or 0 for one in valid), max(one.accuracy or 0.0 for one in valid)
            seen = f"the smallest has {smallest:,} parameters, the most accurate {highest:.3f}"
        return InputError(
            f"none of {len(self.history)} children keeps to {self.constraint}: {seen}",
            where="constraint",
            remedy="soften the constraint, or give more iterations",
        )


def split(data: ReplayableData, held_out: Any, share: float) -> tuple[ReplayableData, ReplayableData]:
    """What students are trained on, and what scores them: ``held_out``, or a share of ``data``.

    Raises:
        InputError: data that cannot be split, is too little, or without labels; held-out data of one class.
    """
    if held_out is None:
        if not isinstance(data, TensorData):
            raise InputError("only data in memory can be split", where="held_out", remedy="give held_out=…, labelled data")
        images, labels = data.inputs, data.labels
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            raise InputError("not images with labels", where="data", remedy="give TensorData(images, labels)")
        order = torch.randperm(len(data), generator=torch_rng(0, "held out"))
        count = round(share * len(data))
        if not 0 < count < len(data):
            raise InputError(f"{count} of {len(data)} samples would be held out", where="share", remedy="give more data")
        held, kept = order[:count].sort().values, order[count:].sort().values
        data, held_out = TensorData(images[kept], labels[kept], views=data.views), TensorData(images[held], labels[held])
    held_out = as_data(held_out)
    found = [held_out.batch(rows, None).labels for rows in torch.arange(len(held_out)).split(256)]
    if not isinstance(found[0], Tensor) or found[0].ndim != 1:
        raise InputError("no class ids", where="held_out", remedy="give labels [N], int64")
    if len(torch.cat(found).unique()) < 2:
        raise InputError("the held-out data is of one class", where="held_out", remedy="give data of two or more classes")
    return data, held_out
