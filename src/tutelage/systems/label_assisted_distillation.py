"""A segmenter gets a better teacher of its own size, which reads the label map as a further channel::

    from tutelage import distill

    result = distill(segmenter, None, scenes, "label-assisted-distillation", task="segmentation")

``segmenter``: any network of images whose ``logits`` are [B, K, h, w]. ``scenes``: images with class ids [B, H, W]; where images
are mirrored or cut, ``Augmentation(labels="map")`` moves the labels along. No teacher is given: the first half of the steps
makes one, the second half teaches the student. As a recipe, for ``tutelage distill``, with this project's U-Net::

    method = "label-assisted-distillation"
    task = "segmentation"
    out = "runs/segmenter"

    [student]
    model = "label-assisted-distillation"
    options = { in_chans = 3, out_chans = 5 }

    [data]
    file = "scenes.npz"

    [options]
    consistency = 1.0

``scenes.npz`` holds ``inputs`` [N, 3, H, W] and ``labels`` [N, H, W].

A teacher that exists already, on C + 1 channels: ``distill(segmenter, label_assisted_teacher(network, classes), scenes,
"label-assisted-distillation", options={"teacher_share": 0})``. Its answers can be cached.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.augmentation import random_draws
from tutelage.distillation.data import Batch, ReplayableData, TensorData, flatten_tree, map_tree
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.losses import channel_divergence
from tutelage.distillation.method import Method, Phase
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.tasks.categorical import CategoricalTask
from tutelage.distillation.tasks.segmentation import Segmentation
from tutelage.distillation.teacher import Teacher
from tutelage.distillation.teacher_wrappers import ExtraChannelsTeacher
from tutelage.errors import InputError
from tutelage.networks.unet import UNet, widen_input
from tutelage.registry import system
from tutelage.seeds import derive, torch_rng
from tutelage.systems._toy import build_with_seed

# -- the label channel -----------------------------------------------------------------------------------------------


def _normal(seeds: Tensor, name: str, count: int) -> Tensor:
    """Standard normal numbers [B, count] that the view seeds [B] name."""
    uniform = random_draws(seeds, derive(0, "label channel", name), count).double() + 2.0**-25
    return torch.special.ndtri(uniform).float()


def paint(regions: Tensor, values: Tensor) -> Tensor:
    """``values[b, regions[b, i, j]]``: region ids [B, H, W] and a value a region [B, K] -> [B, 1, H, W]."""
    return values.gather(1, regions.flatten(1)).unflatten(1, regions.shape[1:])[:, None]


@dataclass(frozen=True)
class LabelChannel:
    """The label map of a batch as one noisy channel [B, 1, H, W]: a function of the batch, the same for the same view.

    Args:
        classes: K. Ignored labels are painted as one more region, K.
        path: names the draws. None: no draws, but values evenly spaced in [-1.1, 1], in the order of the class ids, which
            is what a finished teacher is shown.
        gain: factor on the channel: about 1.5 times the images' standard deviation (published: 100 for images in 0..255).
        noise: deviation of the normal noise of each pixel, before the gain.
        ignore_index: the label that is left out; None: -100, and 255 where there are at most 255 classes.

    Raises:
        InputError: labels that are no maps of class ids, a class out of range, or a batch without view seeds.
    """

    classes: int
    path: str | None = None
    gain: float = 1.0
    noise: float = 0.02
    ignore_index: int | None = None

    def regions(self, labels: Tensor | None) -> Tensor:
        """Class ids [B, H, W], with K where the label is ignored."""
        if not isinstance(labels, Tensor) or labels.ndim != 3 or labels.is_floating_point():
            found = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(f"the label channel needs class ids [B, H, W], not {found}", where="labels", remedy="give label maps")
        ids = labels.long()
        ids = ids.masked_fill(~Segmentation(ignore_index=self.ignore_index).counted(ids, self.classes), self.classes)
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) > self.classes):
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise InputError(
                f"a label is {wrong}, there are {self.classes} classes", where="labels", remedy="count from 0, or name ignore_index"
            )
        return ids

    def __call__(self, batch: Batch) -> Tensor:
        """The channel, of the images' size; labels of another size are brought to it by nearest neighbours."""
        regions = self.regions(batch.labels)
        images = next((leaf for _, leaf in flatten_tree(batch.inputs) if leaf.ndim == 4), None)
        if images is None:
            raise InputError("no images [B, C, H, W] among the inputs", where="inputs", remedy="give images")
        if batch.seeds is None:
            raise InputError("the batch has no view seeds", where="seeds", remedy="Data.batch must set them")
        if regions.shape[1:] != images.shape[2:]:
            regions = F.interpolate(regions[:, None].float(), images.shape[2:], mode="nearest")[:, 0].long()
        if self.path is None:
            values = torch.linspace(-1.1, 1.0, self.classes + 1).expand(len(regions), -1)
        else:
            values = _normal(batch.seeds, f"values {self.path}", self.classes + 1)
        channel = paint(regions, values.to(regions.device))
        if self.noise:
            drawn = _normal(batch.seeds, f"noise {self.path}", channel[0].numel()).view(channel.shape)
            channel = channel + self.noise * drawn.to(channel)
        return (self.gain * channel).to(images)


def with_channel(batch: Batch, channel: Tensor) -> Batch:
    """``batch`` with ``channel`` [B, 1, H, W] behind the channels of its images."""
    return replace(batch, inputs=map_tree(lambda x: torch.cat([x, channel], 1) if x.ndim == 4 else x, batch.inputs))


def label_assisted_teacher(
    network: nn.Module, classes: int, gain: float = 1.0, noise: float = 0.02, ignore_index: int | None = None
) -> ExtraChannelsTeacher:
    """A finished teacher of C + 1 channels, which sees the labels of each batch beside the images: privileged, never to be
    scored as a network that could be used. See :class:`LabelChannel` for the arguments."""
    return ExtraChannelsTeacher(network, LabelChannel(classes, None, gain, noise, ignore_index))


# -- networks of C and C + 1 channels --------------------------------------------------------------------------------


def _stem(network: nn.Module, channels: int) -> tuple[str, nn.Conv2d]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels and module.groups == 1:
            return name, module
    raise InputError(
        f"no convolution of the student reads {channels} channels",
        where="student",
        remedy="make the teacher yourself, and wrap it by label_assisted_teacher",
    )


def _with_stem(network: nn.Module, name: str, stem: nn.Conv2d) -> nn.Module:
    changed = copy.deepcopy(network)
    if not name:
        return stem
    parent, _, child = name.rpartition(".")
    setattr(changed.get_submodule(parent), child, stem)
    return changed


def widen_network(network: nn.Module, channels: int) -> nn.Module:
    """A copy of ``network`` whose first convolution of ``channels`` inputs reads one more, with weights 0 at first."""
    name, stem = _stem(network, channels)
    return _with_stem(network, name, widen_input(stem, 1))


def fold_network(network: nn.Module, channels: int) -> nn.Module:
    """A copy of a network of ``channels`` + 1 inputs that reads ``channels``: what it gives where the last channel is 0.

    Raises:
        InputError: it has no convolution of so many inputs.
    """
    name, stem = _stem(network, channels + 1)
    folded = copy.deepcopy(stem)
    folded.in_channels = channels
    folded.weight = nn.Parameter(stem.weight.detach()[:, :channels].clone())
    return _with_stem(network, name, folded)


# -- losses ----------------------------------------------------------------------------------------------------------


def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """``1 - mean over rows of the correlation``: [N, M] and [N, M] -> scalar."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()


def dist_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """DIST (Huang et al., 2022) of maps [B, K, h, w]: classes within a pixel, and pixels within a class of the batch."""
    rows, goals = (x.movedim(1, -1).flatten(0, 2).softmax(1) for x in (student, teacher.detach()))
    return pearson_distance(rows, goals) + pearson_distance(rows.T, goals.T)


# -- the method ------------------------------------------------------------------------------------------------------


@system("label-assisted-distillation", kind="distillation")
class LabelAssistedDistillation(Method):
    """Label assisted distillation: the teacher is the student's own network with the noised label map as a further channel.

    The channel (:class:`LabelChannel`): each class of each image gets one value from N(0, 1), new in every step, and each pixel
    noise of 0.03. It tells which pixels belong together, and not which class they are.

    Phase ``teacher``: a copy of the student, its first convolution widened by weights of 0, sees two independent noisings n1, n2:
    ``L = CE(o1, y) + CE(o2, y) + c [CWD(o1, sg o2) + CWD(o2, sg o1)]``, o_i = f([x, n_i]); CWD is
    :func:`~tutelage.distillation.losses.channel_divergence` at T = 4, over every place. Published: c = 5 from a trained baseline;
    from a random start take 1, for 5 keeps a short training from learning.
    Phase ``student``: the teacher is frozen, in eval mode, and sees evenly spaced values with noise 0.02:
    ``L = CE(z_s, y) + w CWD(z_s, z_t)``, w = 3. ``distance``: ``kd`` is the KL divergence of each pixel, with the factor T^2, and
    ``dist`` is :func:`dist_divergence`. A head ``aux`` counts in CE by ``aux_teacher`` and ``aux_student``.

    No label reaches the student. The published student has the fourth channel too, and reads zeros there, in training and in
    use: that is the same function as the network of three channels, so the student keeps its own (:func:`fold_network`
    brings a published one to that form). After training, ``method.teacher_network`` is the teacher. It is privileged: its
    score with labels in is no score of a network that could be used.

    In SDVP: for modules SEG and LOC whose training masks are in part wrong.

    Limits: images are tensors [B, C, H, W]; the student's first convolution is found by its number of channels. Labels are
    compared at their own size (bilinear, corners not aligned, as in the task; published: aligned). Both phases share the settings,
    the learning rate begins anew in each.

    Source: "Make a Strong Teacher with Label Assistance: A Novel Knowledge Distillation Approach for Semantic Segmentation"
    (Qiu, Chen, Li, Wan, Xue, Pu, 2024, arXiv 2407.13254).

    Raises:
        InputError: an option out of range; a student whose first convolution is not found; a teacher beside ``teacher_share``
            above 0, or none at 0.
    """

    tasks = ("segmentation",)
    needs_labels = True
    needs_teacher = False
    student_heads = ("logits",)
    Network = UNet

    @dataclass(frozen=True)
    class Config:
        """``teacher_share``: of the steps that make the teacher; 1: it alone. ``consistency``: c. ``weight``: w. ``gain``: of the
        channel. ``values``: ``fixed`` shows evenly spaced values in the teacher's training too, the raw label map: an ablation."""

        teacher_share: float = 0.5
        consistency: float = 5.0
        weight: float = 3.0
        tau: float = 4.0
        gain: float = 1.0
        noise: float = 0.03
        teaching_noise: float = 0.02
        values: Literal["random", "fixed"] = "random"
        distance: Literal["cwd", "kd", "dist"] = "cwd"
        aux_teacher: float = 0.4
        aux_student: float = 0.02

        def __post_init__(self) -> None:
            if not 0 <= self.teacher_share <= 1:
                raise InputError(f"a share is in 0..1, this is {self.teacher_share}", where="teacher_share", remedy="try 0.5")
            if self.tau <= 0:
                raise InputError(f"a temperature is above 0, this is {self.tau}", where="tau", remedy="the paper: 4")
            for name in ("consistency", "weight", "gain", "noise", "teaching_noise", "aux_teacher", "aux_student"):
                if getattr(self, name) < 0:
                    raise InputError(f"{name} is {getattr(self, name)}", where=name, remedy="0 or more")
            for name, known in (("values", ("random", "fixed")), ("distance", ("cwd", "kd", "dist"))):
                if getattr(self, name) not in known:
                    raise InputError(f"unknown {name} {getattr(self, name)!r}", where=name, remedy=" or ".join(known))

    def phases(self) -> Sequence[Phase]:
        """The teacher's training, then the student's."""
        share = self.config.teacher_share
        both = (
            Phase("teacher", share, trains=lambda name: name.startswith("method."), restart=True),
            Phase("student", 1 - share, trains=lambda name: name.startswith("student."), restart=True),
        )
        return [phase for phase in both if phase.share > 0]

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """The teacher, a widened copy of the student; see :class:`Method`."""
        makes = self.config.teacher_share > 0
        if makes == (teacher is not None):
            raise InputError(
                "a teacher is given, and teacher_share would make one" if makes else "teacher_share is 0, and no teacher is given",
                where="teacher_share",
                remedy="set teacher_share to 0" if makes else "give label_assisted_teacher(network, classes), or a share above 0",
            )
        self.classes = forward_heads(student, example.inputs)["logits"].shape[1]
        if not makes:
            return
        images = next((leaf for _, leaf in flatten_tree(example.inputs) if leaf.ndim == 4), None)
        if images is None:
            raise InputError("no images [B, C, H, W] among the inputs", where="inputs", remedy="give images")
        network = widen_network(unwrap_model(student), images.shape[1]).requires_grad_(True)
        shown = with_channel(example, self.channel("first")(example))
        try:
            same = torch.allclose(
                forward_heads(network.eval(), shown.inputs)["logits"],
                forward_heads(student, example.inputs)["logits"],
                rtol=1e-3,
                atol=1e-4,
            )
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the widened student refuses a further channel: {error}"[:300], where="student") from error
        if not same:
            raise InputError(
                "the widened student differs from the student on the same images",
                where="student",
                remedy="make the teacher yourself, and wrap it by label_assisted_teacher",
            )
        self.teacher_network = network

    def channel(self, path: str | None) -> LabelChannel:
        """The label channel of one path of the teacher's training; None: as the finished teacher sees it."""
        config, fixed = self.config, path is None or self.config.values == "fixed"
        assert isinstance(self.task, CategoricalTask)
        noise = config.teaching_noise if path is None else config.noise
        return LabelChannel(self.classes, None if fixed else path, config.gain, noise, self.task.ignore_index)

    @property
    def _making(self) -> bool:
        return self.progress.phase.name == "teacher"

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """In the first phase the teacher's outputs on both paths; then those of student and teacher."""
        if self._making:
            first, second = (forward_heads(self.teacher_network, self.show(batch, path).inputs) for path in ("first", "second"))
            return first, second
        if teacher is not None:
            return forward_heads(student, batch.inputs), teacher(batch)
        with torch.no_grad():
            answer = forward_heads(self.teacher_network.eval(), self.show(batch, None).inputs)
        return forward_heads(student, batch.inputs), answer

    def show(self, batch: Batch, path: str | None) -> Batch:
        """``batch`` as the teacher sees it."""
        return with_channel(batch, self.channel(path)(batch))

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"distance": self.config.consistency if self._making else self.config.weight}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, of both paths or the student; ``distance``, between the paths or to the teacher."""
        config = self.config
        if self._making:
            one, other = student["logits"], teacher["logits"]
            label = self._label(batch, student, config.aux_teacher) + self._label(batch, teacher, config.aux_teacher)
            return {"label": label, "distance": two_path_divergence(one, other, config.tau)}
        return {"label": self._label(batch, student, config.aux_student), "distance": self._distance(student, teacher)}

    def _distance(self, student: Output, teacher: Output) -> Tensor:
        own, other = student["logits"], teacher["logits"]
        if self.config.distance == "kd":
            return self.task.distance(student, teacher, tau=self.config.tau)
        if self.config.distance == "dist":
            return dist_divergence(own, other)
        return channel_divergence(own, other, self.config.tau)

    def _label(self, batch: Batch, outputs: Output, share: float) -> Tensor:
        loss = self.task.label_loss(outputs, batch.labels, batch.weights)
        if share and "aux" in outputs:
            loss = loss + share * self.task.label_loss({"logits": outputs["aux"]}, batch.labels, batch.weights)
        return loss

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second: squares of three colours, both phases."""
        rng = torch_rng(seed, "squares")
        labels = torch.randint(0, 3, (16, 2, 2), generator=rng).repeat_interleave(8, 1).repeat_interleave(8, 2)
        images = F.one_hot(labels, 3).movedim(-1, 1) + 0.5 * torch.randn(16, 3, 16, 16, generator=rng)
        student = build_with_seed(lambda: UNet(3, 3, (4 * width, 8 * width)), seed, "student")
        settings = TrainingSettings(steps=8, batch_size=8, seed=seed)
        data = TensorData(images, labels)
        return TrainingJob(student, None, cls(consistency=1.0), data, settings, "label-assisted", task="segmentation")


def two_path_divergence(one: Tensor, other: Tensor, tau: float = 4.0) -> Tensor:
    """``CWD(o1, sg o2) + CWD(o2, sg o1)``; maps [B, C, h, w] -> scalar."""
    return channel_divergence(one, other, tau) + channel_divergence(other, one, tau)
