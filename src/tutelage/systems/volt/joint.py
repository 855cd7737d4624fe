"""Volt's joint training: one volume transformer on several data sets, each with heads of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.layers import init_weights
from tutelage.storage import fingerprint
from tutelage.systems._toy import build_with_seed
from tutelage.systems.volt.augment import SceneAugmentation, SceneDataset
from tutelage.systems.volt.method import Volt
from tutelage.systems.volt.network import ConvUNet, VoltNetwork
from tutelage.systems.volt.synthetic_rooms import CLASSES, room


class JointScenes:
    """Scenes of several data sets as one: a batch may hold any of them, each scene in its own set's augmentation.

    As :class:`SceneDataset`, with one more input: ``dataset`` [n], the number of each voxel's set, in the order of
    ``sources``. Scenes are mixed only with scenes of their set; labels stay the set's own class ids.

    Raises:
        InputError: no source.
    """

    def __init__(self, sources: Mapping[str, SceneDataset]):
        if not sources:
            raise InputError("no source", where="sources", remedy='JointScenes({"rooms": SceneDataset(…), …})')
        self.sources = dict(sources)
        lengths = torch.tensor([len(source) for source in self.sources.values()])
        self.ends = lengths.cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def fingerprint(self) -> str:
        """Of all sources, by name."""
        return fingerprint("joint-scenes-1", [[name, source.fingerprint] for name, source in self.sources.items()])

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`tutelage.distillation.data.ReplayableData`; scenes come in the order of ``indices``."""
        sources = list(self.sources.values())
        inputs: dict[str, list[Tensor]] = {}
        labels, own_seeds = [], []
        for place, index in enumerate(indices.tolist()):
            number = int(torch.searchsorted(self.ends, index, right=True))
            if index < 0 or number == len(sources):
                raise InputError(f"no scene {index} among {len(self)}", where="data", remedy="count scenes from 0")
            start = int(self.ends[number]) - len(sources[number])
            seed = None if seeds is None else seeds[place : place + 1]
            one = sources[number].batch(torch.tensor([index - start]), seed)
            one.inputs |= {"batch": one.inputs["batch"] + place, "dataset": torch.full_like(one.inputs["batch"], number)}
            for name, value in one.inputs.items():
                inputs.setdefault(name, []).append(value)
            labels.append(one.labels)
            own_seeds.append(one.seeds)
        joined = {name: torch.cat(values) for name, values in inputs.items()}
        return Batch(joined, torch.cat(labels), ids=indices, seeds=torch.cat(own_seeds))


class JointVolt(nn.Module):
    """A volume transformer with one segmentation head a data set.

    Batches of :class:`JointScenes` -> a dict: of each data set the logits [voxels of it, its classes], in the order of its
    voxels; none where the batch has none. :meth:`network_of` gives the plain network of one data set.

    Args:
        network: its encoder and decoder are copied; its head is not used.
        classes: how many classes each data set has, in the order of its data.

    Raises:
        InputError: no data set, or at the forward pass a batch without ``dataset``.
    """

    def __init__(self, network: VoltNetwork, classes: Mapping[str, int]):
        super().__init__()
        if not classes:
            raise InputError("no data set", where="classes", remedy='JointVolt(network, {"rooms": 8, …})')
        self.backbone = copy.deepcopy(network)
        width = network.head.in_features
        self.backbone.head = nn.Identity()  # type: ignore[assignment]
        self.heads = heads_of(width, classes)

    def forward(self, scenes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits of each data set."""
        return by_dataset(self.heads, self.backbone.points(scenes), dataset_of(scenes))

    def network_of(self, name: str) -> VoltNetwork:
        """A copy of the backbone with the head of one data set, in eval mode."""
        single, head = copy.deepcopy(self.backbone), copy.deepcopy(self.heads[name])
        single.head = head  # type: ignore[assignment]
        single.num_classes = int(head.out_features)  # type: ignore[arg-type]
        return single.eval()


class TeacherPerDataset(nn.Module):
    """One teacher a data set, which answers for the scenes of its own: batches of :class:`JointScenes` -> as :class:`JointVolt`."""

    def __init__(self, teachers: Mapping[str, nn.Module]):
        super().__init__()
        self.teachers = nn.ModuleDict(teachers)

    def forward(self, scenes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits of each data set that the batch holds."""
        dataset, found = dataset_of(scenes), {}
        for number, (name, teacher) in enumerate(self.teachers.items()):
            rows = dataset == number
            if bool(rows.any()):
                part = {key: value[rows] for key, value in scenes.items() if key != "dataset"}
                part["batch"] = part["batch"].unique(return_inverse=True)[1]
                found[name] = teacher(part)
        return found


def heads_of(width: int, classes: Mapping[str, int]) -> nn.ModuleDict:
    """A Linear a data set, started as Volt's heads are."""
    heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})
    init_weights(heads)
    return heads


def by_dataset(heads: nn.ModuleDict, vectors: Tensor, dataset: Tensor) -> dict[str, Tensor]:
    """Each head on the vectors [n, U] of the voxels of its data set."""
    return {name: head(vectors[dataset == number]) for number, (name, head) in enumerate(heads.items())}


def dataset_of(scenes: Mapping[str, Tensor]) -> Tensor:
    """The data set of each voxel.

    Raises:
        InputError: the batch does not say.
    """
    if "dataset" not in scenes:
        raise InputError("no field 'dataset'", where="scenes", remedy="train on JointScenes; network_of() takes plain scenes")
    return scenes["dataset"]


class JointTraining(Volt):
    """Joint training: :class:`Volt`'s loss on each data set of a batch, weighed by the share of its points in the batch.

    ``L = sum_d n_d / n L_d`` with ``L_d`` of the two heads of data set d: one learns its labels, the other, dropped at export,
    the labels of its teacher. Student: a :class:`JointVolt`; teacher: a :class:`TeacherPerDataset`; data: :class:`JointScenes`.
    Published: 500 epochs for ScanNet, 600 ScanNet200, 800 ScanNet++, 40 nuScenes, 25 Waymo, 30 SemanticKITTI.

    Raises:
        InputError: another student.
    """

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """The second heads; see :class:`tutelage.distillation.method.Method`."""
        network = unwrap_model(student)
        if not isinstance(network, JointVolt):
            raise InputError("the student is no JointVolt", where="student", remedy="JointVolt(VoltNetwork(…), classes)")
        self.uses_teacher = teacher is not None and self.config.distill > 0
        self._taps = FeatureHooks(student, ["backbone.decoder"] if self.uses_teacher else [])
        if self.uses_teacher:
            classes = {name: head.out_features for name, head in network.heads.items()}
            self.teacher_heads = heads_of(network.backbone.decoder.reduce[2].out_features, classes)  # type: ignore[arg-type]

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The logits by data set, those of the second heads as ``teacher.NAME``; the teachers' labels by data set."""
        with self._taps as taken:
            logits = dict(forward_heads(student, batch.inputs))
        if not self.uses_teacher or teacher is None:
            return logits, {}
        distilled = by_dataset(self.teacher_heads, taken["backbone.decoder"], dataset_of(batch.inputs))
        labels = {name: value.argmax(-1) for name, value in teacher(batch).items()}
        return logits | {f"teacher.{name}": value for name, value in distilled.items()}, labels

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label`` and, with a teacher, ``teacher``."""
        dataset = dataset_of(batch.inputs)
        plain = {name: value for name, value in student.items() if not name.startswith("teacher.")}
        labels = {name: batch.labels[dataset == number] for number, name in enumerate(plain)}
        terms = {"label": self._weighed(plain, labels, len(dataset))}
        if self.uses_teacher:
            distilled = {name: student[f"teacher.{name}"] for name in plain}
            given = {name: teacher.get(name, labels[name]) for name in plain}
            terms["teacher"] = self._weighed(distilled, given, len(dataset))
        return terms

    def _weighed(self, logits: Output, labels: Output, points: int) -> Tensor:
        losses = [len(labels[name]) / points * self.criterion(value, labels[name]) for name, value in logits.items()]
        return torch.stack(losses).sum()

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of four seconds: rooms, and rooms whose classes are furniture or not."""
        options = {"width": 16, "heads": 2, "depth": 2, "outputs": 8, "patch": 4}
        classes = {"rooms": len(CLASSES), "furniture": 2}

        def student() -> JointVolt:
            return JointVolt(VoltNetwork(1, 6, **options), classes)  # type: ignore[arg-type]

        def teacher() -> TeacherPerDataset:
            return TeacherPerDataset({name: ConvUNet(count, 6, (4, 8)) for name, count in classes.items()})

        scenes = [room(1000 * seed + i, 12, 3) for i in range(8)]
        for scene in scenes[4:]:
            scene.labels[:] = scene.labels >= 2
        data = JointScenes({"rooms": SceneDataset(scenes[:4], SceneAugmentation()), "furniture": SceneDataset(scenes[4:])})
        return TrainingJob(
            build_with_seed(student, seed, "student"), build_with_seed(teacher, seed, "teacher"), cls(), data,
            TrainingSettings(steps=6, batch_size=4, lr=3e-3, seed=seed), "volt, jointly",
        )  # fmt: skip
