"""Shrink a trained classifier of your own:

```python
from tutelage.systems.n2n_learning import N2NLearning, train_candidate
from tutelage.distillation.job import TrainingSettings

found = N2NLearning(size=50_000).search(teacher, data, held_out, seed=0, folder="n2n", pool=2)
print(found.best.parameters, found.teacher_parameters, found.best.accuracy)
student = train_candidate(teacher, data, TrainingSettings(epochs=50), found.best.layers, seed=0)
```

`data` and `held_out` are `TensorData` of images; `held_out` is a part of the training set with labels. The same call with the
same folder goes on from the candidates that were trained. It is a search, not a method of a recipe: a recipe trains the winner.

**What it does.** The teacher is read as a list of leaf layers. A bidirectional LSTM keeps or removes each of them; from the best
child, an autoregressive LSTM then multiplies kernel, stride, channels and padding of each layer by a factor of 0.25 to 1. Each
child gets fresh weights, is trained for a few epochs on `MSE(student_logits, teacher_logits)`, and earns

`R = R_a R_c`, `R_c = C (2 - C)`, `C = 1 - parameters(student) / parameters(teacher)`,
`R_a = accuracy(student) / accuracy(teacher)`,

or -1 if it is no network or no smaller. Where it breaks a constraint, `R = (eps - 1) + eps R_a R_c` with
`eps = max(0, 1 - e / 15)^4` at update `e`. The policies learn by REINFORCE: `mean_i (R_i - b) sum_t grad log pi(a_t)`, `b` the
moving average of earlier mean rewards. An architecture that was seen is not trained again. `found.policies` may be saved with
`save_policy` and given to the search of another teacher as `policies=`.

**In SDVP**: shrink a trained classification module to a size budget before it is served.

**Differences from the authors' code.** Each rollout has its own advantage (the code gives all of them the batch's mean reward, here
`advantage="batch_mean"`); the LSTM of the second policy is trained too; `eps` does not rise again after update 15; rewards come
from held-out training images, not from the test set. No action is drawn for the type of a layer, which the code draws and ignores.

**Limits.** Teachers: `small-cnn`, `resnet`, or an `nn.Sequential` of plain layers and `BasicBlock`. Weights are never inherited
from the teacher, and there is no actor-critic variant. The teacher is asked anew for each candidate. With several workers, their
processes are started at every update.

Source: "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning" (Ashok, Rhinehart, Beainy, Kitani,
ICLR 2018, arXiv 1709.06030).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage import storage
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import as_teacher, network_fingerprint
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.reading import read_json
from tutelage.registry import system
from tutelage.seeds import derive
from tutelage.systems._toy import toy_images
from tutelage.systems.n2n_learning.architecture import (
    InvalidArchitecture,
    Layer,
    LayerNetwork,
    build,
    layers_of,
    parameters,
    removable,
    remove,
    shrink,
    shrinkable,
    states,
)
from tutelage.systems.n2n_learning.policies import (
    PolicySettings,
    RemovalPolicy,
    ShrinkagePolicy,
    make_policy,
    optimize_policy,
    reward,
)
from tutelage.workers import WorkerPool, map_tasks


class LogitMatching(Method):
    """The mean squared difference of the logits of student and teacher (Ba, Caruana, 2014)."""

    tasks = ("classification",)

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``mse``."""
        return {"mse": (student["logits"] - teacher["logits"].flatten(1)).square().mean()}


@dataclass(frozen=True)
class Candidate:
    """A student that was trained in the search: its layers, parameters, accuracy on the held-out data (0..1) and stage."""

    layers: tuple[Layer, ...]
    parameters: int
    accuracy: float
    stage: str


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        best: the candidate of the highest reward of those within the constraints.
        candidates: every architecture that was trained, once, in the order of training.
        rewards: per stage, [iterations][rollouts].
        policies: the two policies, trained; see :func:`save_policy`.
        teacher_accuracy: on the held-out data, 0..1.
        teacher_parameters: how many.
    """

    best: Candidate
    candidates: list[Candidate]
    rewards: Mapping[str, list[list[float]]]
    policies: Mapping[str, RemovalPolicy | ShrinkagePolicy]
    teacher_accuracy: float
    teacher_parameters: int


@system("n2n-learning", kind="compression")
class N2NLearning:
    """Two recurrent policies remove layers of a trained teacher and shrink the rest, rewarded for accuracy and compression."""

    @dataclass(frozen=True)
    class Config:
        """How to search.

        ``removal``, ``shrinkage``: how each policy is trained. ``training``: of a candidate. ``size``: at most so many
        parameters. ``accuracy``: at least this accuracy, 0..1, on the held-out data.
        """

        removal: PolicySettings = PolicySettings()  # noqa: RUF009  (frozen)
        shrinkage: PolicySettings = PolicySettings(lr=0.01)  # noqa: RUF009
        training: TrainingSettings = field(
            default_factory=lambda: TrainingSettings(epochs=5, lr=5e-4, weight_decay=5e-4, schedule="constant")
        )
        size: int | None = None
        accuracy: float | None = None

        def __post_init__(self) -> None:
            if self.size is not None and self.size < 1:
                raise InputError(f"a size of {self.size} parameters", where="size", remedy="at least 1, or None")
            if self.accuracy is not None and not 0 < self.accuracy <= 1:
                raise InputError(f"an accuracy of {self.accuracy}", where="accuracy", remedy="a share in 0..1, or None")

    def __init__(self, config: Config | None = None, **options: Any):
        self.config = config or self.Config(**options)

    def search(
        self,
        teacher: nn.Module,
        data: TensorData,
        held_out: TensorData,
        seed: int = 0,
        folder: str | Path | None = None,
        pool: WorkerPool | int | None = 1,
        policies: Mapping[str, RemovalPolicy | ShrinkagePolicy] | None = None,
    ) -> SearchResult:
        """Search a small student of ``teacher``.

        Args:
            teacher: a trained classifier that :func:`layers_of` can read; it is not changed.
            data: images [N, C, H, W] that candidates are trained on; labels are not used.
            held_out: labelled images that candidates are scored on; a part of the training set, not the test set.
            seed: equal seeds give equal searches, whatever the workers.
            folder: where each candidate's accuracy is kept: the same call goes on from there.
            pool: the workers that train the candidates of one update.
            policies: ``removal`` and ``shrinkage`` from an earlier search, trained on here; None: fresh ones.

        Raises:
            InputError: the teacher cannot be read, the data has no labels, or no candidate was valid and within the constraints.
            StaleError: ``folder`` holds another search.
        """
        layers = layers_of(teacher)
        evaluator = _Evaluator(self.config, teacher, data, held_out, seed, folder, pool)
        made = {"removal": make_policy(RemovalPolicy, seed), "shrinkage": make_policy(ShrinkagePolicy, seed)} | dict(policies or {})
        rewards = {}
        for stage, settings in (("removal", self.config.removal), ("shrinkage", self.config.shrinkage)):
            base = evaluator.best().layers if evaluator.found and stage == "shrinkage" else layers
            change, free = (remove, removable(base)) if stage == "removal" else (shrink, shrinkable(base))

            def score(
                iteration: int, actions: Sequence[tuple[int, ...]], base: Any = base, change: Any = change, stage: str = stage
            ) -> list[float]:
                return evaluator.rewards(iteration, [change(base, one) for one in actions], stage)

            rewards[stage] = optimize_policy(made[stage], states(base), free, score, settings, derive(seed, stage))
        best = evaluator.best(final=True)
        found = list(evaluator.found.values())
        return SearchResult(best, found, rewards, made, evaluator.teacher_accuracy, evaluator.teacher_parameters)

    @staticmethod
    def tiny_run(seed: int) -> dict[str, float]:
        """Two updates of each policy on toy images."""
        data, held_out = toy_images(seed), toy_images(seed + 1)
        shape = tuple(data.inputs.shape[1:])
        teacher = build((*_convolutions(12, 24), Layer("avgpool"), Layer("linear", channels=4, bias=True)), shape, seed)
        policy = PolicySettings(iterations=2, rollouts=2)
        training = TrainingSettings(steps=4, batch_size=32, lr=5e-3)
        found = N2NLearning(removal=policy, shrinkage=policy, training=training).search(teacher, data, held_out, seed)
        return {
            "candidates": len(found.candidates),
            "teacher's parameters": found.teacher_parameters,
            "student's parameters": found.best.parameters,
            "student's accuracy": found.best.accuracy,
        }


def _convolutions(*widths: int) -> list[Layer]:
    return [layer for w in widths for layer in (Layer("conv", 3, 1, w, 1), Layer("batchnorm"), Layer("relu"))]


class _Evaluator:
    """Trains architectures that are new, remembers all of them, and gives rewards."""

    def __init__(
        self,
        config: N2NLearning.Config,
        teacher: nn.Module,
        data: TensorData,
        held_out: TensorData,
        seed: int,
        folder: str | Path | None,
        pool: WorkerPool | int | None,
    ):
        for name, one in (("data", data), ("held_out", held_out)):
            if not isinstance(one.inputs, torch.Tensor) or one.inputs.ndim != 4 or not len(one):
                raise InputError("the search needs images [N, C, H, W], at least one", where=name, remedy="give TensorData")
        if held_out.labels is None or len(held_out.labels.unique()) < 2:
            raise InputError("the labels are missing or all alike", where="held_out", remedy="hold out images of several classes")
        self.config, self.teacher, self.data, self.held_out, self.seed, self.pool = config, teacher, data, held_out, seed, pool
        self.shape = tuple(data.inputs.shape[1:])
        self.teacher_parameters = parameters(teacher)
        self.teacher_accuracy = accuracy(teacher, held_out)
        if self.teacher_accuracy == 0:
            raise InputError("the teacher answers nothing right", where="teacher", remedy="give a trained one, and its own data")
        self.found: dict[tuple[Layer, ...], Candidate] = {}
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            parts = {"teacher": network_fingerprint(teacher), "data": data.fingerprint, "held_out": held_out.fingerprint}
            storage.RunFolder(self.folder, parts | {"training": config.training, "seed": seed})

    def rewards(self, iteration: int, architectures: Sequence[tuple[Layer, ...]], stage: str) -> list[float]:
        """Of each architecture; -1 where it is invalid or not smaller than the teacher."""
        sizes: list[int | None] = []
        for layers in architectures:
            try:
                size = parameters(build(layers, self.shape))
            except InvalidArchitecture:
                size = self.teacher_parameters
            sizes.append(size if size < self.teacher_parameters else None)
        self._train({layers: size for layers, size in zip(architectures, sizes, strict=True) if size is not None}, stage)
        return [
            -1.0 if size is None else self._reward(self.found[layers], iteration)
            for layers, size in zip(architectures, sizes, strict=True)
        ]

    def _train(self, sizes: Mapping[tuple[Layer, ...], int], stage: str) -> None:
        new = [layers for layers in sizes if layers not in self.found]
        keys = {layers: storage.fingerprint([storage.to_plain(layer) for layer in layers]) for layers in new}
        known = {layers: value for layers in new if (value := self._stored(keys[layers])) is not None}
        tasks = [(layers, derive(self.seed, "candidate", keys[layers])) for layers in new if layers not in known]
        common = (self.teacher, self.data, self.held_out, self.config.training)
        for (layers, _), value in zip(tasks, map_tasks(candidate_accuracy, tasks, self.pool, common=common), strict=True):
            known[layers] = value
            if self.folder is not None:
                storage.write_json(self.folder / "candidates" / f"{keys[layers]}.json", {"accuracy": value})
        for layers in new:
            self.found[layers] = Candidate(layers, sizes[layers], known[layers], stage)

    def _stored(self, key: str) -> float | None:
        if self.folder is None or not (file := self.folder / "candidates" / f"{key}.json").exists():
            return None
        value = read_json(file)
        if not isinstance(value, dict) or not isinstance(value.get("accuracy"), float) or not 0 <= value["accuracy"] <= 1:
            raise InputError("no accuracy in it", where=file, remedy="delete the file: its candidate is trained again")
        return value["accuracy"]

    def _violated(self, one: Candidate) -> bool:
        size, least = self.config.size, self.config.accuracy
        return (size is not None and one.parameters > size) or (least is not None and one.accuracy < least)

    def _reward(self, one: Candidate, iteration: int) -> float:
        compression = 1 - one.parameters / self.teacher_parameters
        return reward(compression, one.accuracy / self.teacher_accuracy, iteration, self._violated(one))

    def best(self, final: bool = False) -> Candidate:
        """Of the highest plain reward, of those within the constraints; before the end those that break one will do."""
        within = [one for one in self.found.values() if not self._violated(one)]
        if not within and (final or not self.found):
            raise InputError(
                f"none of {len(self.found)} candidates is valid and within the constraints",
                where="size, accuracy",
                remedy="loosen a constraint, or search longer",
            )
        ratio, total = self.teacher_accuracy, self.teacher_parameters
        return max(within or self.found.values(), key=lambda one: reward(1 - one.parameters / total, one.accuracy / ratio))


def candidate_accuracy(
    teacher: nn.Module,
    data: TensorData,
    held_out: TensorData,
    settings: TrainingSettings,
    layers: tuple[Layer, ...],
    seed: int,
) -> float:
    """The accuracy of a candidate after its short training job, 0..1."""
    return accuracy(train_candidate(teacher, data, settings, layers, seed), held_out)


def train_candidate(
    teacher: nn.Module, data: TensorData, settings: TrainingSettings, layers: Sequence[Layer], seed: int
) -> LayerNetwork:
    """A student of ``layers`` with fresh weights, trained to match the teacher's logits; for the winner, give more steps."""
    student = build(layers, tuple(data.inputs.shape[1:]), seed)
    settings = replace(settings, seed=seed % 2**31)
    job = TrainingJob(
        student,
        as_teacher(teacher),
        LogitMatching(),
        data,
        replace(settings, seed=seed % 2**31),
        "n2n candidate",
        task="classification",
    )
    return train(job).student  # type: ignore[return-value]


@torch.no_grad()
def accuracy(network: nn.Module, data: TensorData) -> float:
    """Share of right answers of ``network``, whose mode is put back."""
    training = network.training
    network.eval()
    right = sum(
        int((forward_heads(network, images)["logits"].flatten(1).argmax(1) == labels).sum())
        for images, labels in zip(data.inputs.split(500), data.labels.split(500), strict=True)
    )
    network.train(training)
    return right / len(data)
