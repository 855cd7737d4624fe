"""A network for keypoints and masks is fitted to a new camera from labelled images of another and unlabelled ones of the new::

    import torch
    from tutelage import distill
    from tutelage.distillation.data import TensorData
    from tutelage.distillation.data.combined import CombinedData
    from tutelage.systems.c_gac import HandNetwork, HandScores

    source = TensorData(images, {"points": points, "mask": masks})
    data = CombinedData({"source": source, "target": TensorData(new_images)})
    network = HandNetwork(keypoints=points.shape[1], in_chans=images.shape[1])
    result = distill(network, None, data, "c-gac", steps=5000, batch_size=32, lr=1e-4)
    figures = HandScores(source)(result.student)  # on labelled images, such as a test set of the new camera

``images``, ``new_images``: [N, C, S, S] in 0..1. ``points`` [N, K, 3]: x and y in 0..1 of the side, and 1 where a keypoint is
labelled, else 0. ``masks`` [N, S, S]: int64, 1 and 0; -100 is ignored. ``network``: any network with the heads ``heatmaps``
[B, K, h, w] and ``mask`` [B, 1, S, S] (logits). Labels that the target may have are not read. As a recipe, for
``tutelage distill``; the file of the source holds the arrays ``inputs``, ``labels.points`` and ``labels.mask``::

    method = "c-gac"
    out = "runs/hands"

    [student]
    model = "c-gac:hand"

    [data]
    kind = "combined"
    [data.sources.source]
    file = "source.npz"
    [data.sources.target]
    file = "target.npz"
    labels = false

    [settings]
    steps = 5000
    batch_size = 32
    lr = 1e-4

Source: "Domain Adaptive Hand Keypoint and Pixel Localization in the Wild" (Ohkawa, Li, Fu, Furuta, Kitani, Sato, 2022,
arXiv 2203.08344).

**Networks.** Two teachers p1, p2 and the student start from different weights. First all learn from the source alone; then the
student learns from both domains with the mask head frozen; then with all of it. The student is exported.

**Loss.** ``l(p, y) = 1e7 Huber(heat maps, Gaussians at the keypoints) + 100 BCE(mask)``, with the Huber loss of slope
0.01. A pseudo-label is the peak of the teachers' mean heat map, drawn as a fresh Gaussian, and their mean soft mask, both of the
clean image x. One random change T (turn, shift, mirror) moves the image and the pseudo-label alike; colours, blur and erasing
change the image alone::

    d(x)      = l(p1(x), p2(x)), the same both ways, without the target's entropy; keypoints of both redrawn
    w(x)      = 2 (1 - sigmoid(rate d(x)))
    L_student = l(p(T x), T y) of the source + gamma mean_x w(x) l(p(T x), T pseudo-label(x))
    L_teacher = l(p_k(x), y) of the source + gamma l(p_k(x), what the student sees)

``rate`` is set once, when the first adaptation begins, so that the median target image has w = 0.5 (our choice). Redrawing matters:
two raw heat maps that see nothing are both flat, and agree.

**Published training.** Networks trained on the source; then both rounds with Adam, a rate of 1e-6, betas (0.5, 0.999), weight decay
5e-4, batches of 16, and up to 50 epochs of at most 5,000 images of each domain.

**Choosing a model without labels.** The log's term ``confidence`` is the mean w of the target images; the paper chooses by labelled
target images. Here nothing is chosen: the last student is exported.

**Use in SDVP**: a LOC or SEG module is fitted to a user's own camera without labels of it.

**What differs from the reference implementation, and why.** Its released loop uses one network as its own teacher, with w = 1; this
is the method of the paper. Pixel centres lie at halves, so that a mirror image mirrors the Gaussians too (``floor`` gives the
reference's). Images without a hand count in the mean overlap. What the student sees becomes a target of the teachers as theirs
becomes its own: redrawn. The loss of the mask stays on while its head is frozen, or the layers below would move away from it (our
choice). Both teachers see the same batches: their start weights keep them apart.

**Limits.** One process. A recipe scores nothing; ``HandScores`` does. The teachers' start weights come from ``reset_parameters`` of
their layers: a network with weights of its own kind needs two given teachers. The 4 points of the paper on HO3D are not measured
here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.distillation import losses
from tutelage.distillation.augmentation import Augmentation
from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.data.combined import CombinedData, part
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Phase, Turn
from tutelage.distillation.multi_view import View
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.networks.unet import UNet
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed
from tutelage.systems.c_gac.hand_network import HandNetwork
from tutelage.systems.c_gac.labels import HandLabels, HandLoss, confidence, hand_labels
from tutelage.systems.c_gac.pointers import pointers
from tutelage.systems.c_gac.warp import random_warps

SOURCE, TARGET = "source", "target"
TEACHERS = "teachers"
CALIBRATION = 1024
"""Most samples that the rate is set by."""


@system("c-gac", kind="adaptation")
class CGAC(Method):
    """C-GAC: self-training under geometric changes, each image weighted by how far two teachers agree on it.

    Data: :class:`~tutelage.distillation.data.combined.CombinedData` of ``source`` and ``target``. The two teachers are made from
    the student's network with other start weights, and learn in the first phase. Where they are trained already, give them,
    ``teacher=EnsembleTeacher([one, other])``, and ``pretrain=0``: the method trains copies.

    Terms of the student: ``source``, ``target``, and, of weight 0, ``confidence``, the mean w. Of the teachers, added up over
    both: ``teachers_source``, ``teachers_target``.

    Raises:
        InputError: data without both domains or without labels of the source, heads that do not fit the labels, one teacher or
            three, or teachers that would never learn.
    """

    Network = HandNetwork
    needs_teacher = False
    needs_labels = True
    deterministic_teacher = False
    student_heads = ("heatmaps", "mask")
    matched_heads = ()
    teachers: nn.ModuleList
    rate: Tensor

    @dataclass(frozen=True)
    class Config:
        """The options; defaults as published, ours where the paper is silent.

        Attributes:
            gamma: weight of the target's terms; 0: the source alone.
            pretrain, pose, both: shares of the steps on the source alone, with the mask head frozen, and with all trained.
            frozen: pattern of the parameters that the phase ``pose`` does not train.
            move_teachers: whether teachers learn from the student; if not, they must be given.
            weighting: ``confidence`` (w), ``none`` (1), or ``shuffled``: w of another image of the batch, for comparison.
            rate: of the confidence; None: the median target image has 0.5.
            heatmap, sigma, floor, pose_weight, mask_weight, delta: see :class:`HandLoss`.
            rotation, translation, flip, quarter_turns: of T, see :func:`random_warps`.
            colour, erase, blur: strength of jitter, and probabilities of erasing a part and of a blur of 0.1 to 1 pixels.
        """

        gamma: float = 0.1
        pretrain: float = 2.0
        pose: float = 1.0
        both: float = 1.0
        frozen: str = "*mask*"
        move_teachers: bool = True
        weighting: Literal["confidence", "none", "shuffled"] = "confidence"
        rate: float | None = None
        heatmap: Literal["huber", "bce"] = "huber"
        sigma: float = 4.0
        floor: bool = False
        pose_weight: float = 1e7
        mask_weight: float = 100.0
        delta: float = 0.01
        rotation: float = 45.0
        translation: float = 0.2
        flip: float = 0.5
        quarter_turns: bool = False
        colour: float = 0.2
        erase: float = 0.2
        blur: float = 0.2

        def __post_init__(self) -> None:
            for name in ("gamma", "pretrain", "pose", "both", "pose_weight", "mask_weight", "rotation", "colour"):
                check_range(name, getattr(self, name), 0, 1e12)
            for name in ("translation", "flip", "erase", "blur"):
                check_range(name, getattr(self, name), 0, 1)
            for name in ("sigma", "delta"):
                if not getattr(self, name) > 0:
                    raise InputError(f"{name} is {getattr(self, name)}", where=name, remedy="above 0")
            if self.rate is not None and not 0 <= self.rate < math.inf:
                raise InputError(f"a rate of {self.rate}", where="rate", remedy="0 or more, or None: set by the data")
            if not self.pretrain + self.pose + self.both:
                raise InputError("no phase has a share of the steps", where="both", remedy="pretrain, pose or both above 0")
            known = {"weighting": ("confidence", "none", "shuffled"), "heatmap": ("huber", "bce")}
            for name, values in known.items():
                if getattr(self, name) not in values:
                    raise InputError(f"unknown {name} {getattr(self, name)!r}", where=name, remedy=", ".join(values))

        @property
        def loss(self) -> HandLoss:
            """The task's loss."""
            return HandLoss(self.heatmap, self.sigma, self.floor, self.pose_weight, self.mask_weight, self.delta)

        @property
        def view(self) -> View | None:
            """What changes an image and leaves everything in its place; None: nothing does."""
            if not (self.colour or self.erase or self.blur):
                return None
            change = Augmentation(colour=self.colour, erase=self.erase)
            return View(augmentation=change, blur=(0.1, 1.0) if self.blur else None, blur_probability=self.blur)

    def __init__(self, config: Any = None, **options: Any):
        super().__init__(config, **options)
        self._loss, self._view = self.config.loss, self.config.view

    # -- stages ------------------------------------------------------------------------------------------------------

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Checks both domains, and makes the teachers; see :class:`Method`."""
        config, network = self.config, unwrap_model(student)
        source = part(example, SOURCE)
        part(example, TARGET)  # refuses data without it
        labels = hand_labels(source.labels)
        if not bool((labels.points[..., 2] > 0).any()) and not bool((labels.mask >= 0).any()):
            raise InputError("the source has no labels", where="sources.source", remedy="labels belong to the source: swap them?")
        heads = forward_heads(student, source.inputs[:2])
        _check_heads(heads, labels)
        given = list(teacher.networks) if teacher is not None else []
        if given and len(given) != 2:
            raise InputError(f"{len(given)} teachers", where="teacher", remedy="two: EnsembleTeacher([one, other]); or none")
        if not given and not config.pretrain:
            raise InputError(
                "teachers with start weights know nothing", where="pretrain", remedy="above 0, or give two trained teachers"
            )
        if not given and not config.move_teachers:
            raise InputError(
                "teachers that stand still must be trained before", where="move_teachers", remedy="give two trained teachers"
            )
        self.teachers = nn.ModuleList(copy.deepcopy(one) for one in (given or [network, network]))
        self.teachers.requires_grad_(config.move_teachers)
        for one in self.teachers if not given else ():
            for module in one.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        self.register_buffer("rate", torch.tensor(-1.0 if config.rate is None else config.rate))
        self._data = data

    def phases(self) -> Sequence[Phase]:
        """The source alone, then the target with the mask head frozen, then all."""
        config = self.config
        known = [
            Phase(SOURCE, config.pretrain),
            Phase("pose", config.pose, trains=lambda name: not fnmatch(name, config.frozen)),
            Phase("both", config.both),
        ]
        return [phase for phase in known if phase.share]

    def turns(self) -> Sequence[Turn]:
        """The student, then the teachers if they move."""
        if not self.config.move_teachers:
            return (Turn(),)
        student = Turn("student", trains=lambda name: name.startswith("student."))
        return (student, Turn(TEACHERS, trains=lambda name: name.startswith("method.")))

    @property
    def adapting(self) -> bool:
        """Whether the target counts in this step."""
        return self.config.gamma > 0 and self.progress.phase.name != SOURCE

    # -- one step ----------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """Losses of the images, ``source`` [B'] and ``target`` [B''], and weights ``w`` [B'']. Of the target, inputs alone are
        taken from the batch."""
        source, target = part(batch, SOURCE), part(batch, TARGET).inputs
        labels = hand_labels(source.labels)
        if self.progress.turn == TEACHERS:
            return self._teachers_pass(source.inputs, labels, target, student), {}
        found = {"source": self._changed(student, source.inputs, labels)}
        if self.adapting:
            self._set_rate()
            pseudo, w = self.pseudo_labels(target)
            found |= {"target": self._changed(student, target, pseudo), "w": w}
        return found, {}

    def _changed(self, student: nn.Module, images: Tensor, labels: HandLabels) -> Tensor:
        """The student's loss on images and labels that one T has moved: [B]."""
        config = self.config
        size = (images.shape[-2], images.shape[-1])
        drawn = random_warps(len(images), size, config.rotation, config.translation, config.flip, config.quarter_turns)
        warp = type(drawn)(drawn.matrix.to(images), drawn.shift.to(images))
        moved = warp.image(images)
        if self._view is not None:
            seeds = torch.randint(2**31, (len(images),))  # the trainer seeds torch's generator anew in each pass
            moved = self._view.make(moved.cpu(), seeds, 0)[0][:, 0].to(images)
        return self._loss(forward_heads(student, moved), labels.moved(warp))

    def _teachers_pass(self, images: Tensor, labels: HandLabels, target: Tensor, student: nn.Module) -> Output:
        pseudo = None
        if self.adapting:
            was = student.training
            with torch.no_grad():
                pseudo = self._loss.predict(forward_heads(student.eval(), target))
            student.train(was)
        source_loss, target_loss = [], []
        for one in self.teachers:
            one.train()
            source_loss.append(self._loss(forward_heads(one, images), labels))
            if pseudo is not None:
                target_loss.append(self._loss(forward_heads(one, target), pseudo))
        found = {"source": torch.stack(source_loss).sum(0)}
        return found | ({"target": torch.stack(target_loss).sum(0)} if target_loss else {})

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """See the class."""
        weights = part(batch, SOURCE).weights
        source, nothing = losses.average(student["source"], weights), student["source"].new_zeros(())
        target, w = student.get("target"), student.get("w")
        if self.progress.turn == TEACHERS:
            return {"teachers_source": source, "teachers_target": nothing if target is None else target.mean()}
        if target is None or w is None:
            return {"source": source, "target": nothing, "confidence": nothing}
        return {"source": source, "target": (w * target).mean(), "confidence": w.mean()}

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        gamma = self.config.gamma if self.adapting else 0.0
        own = {"target": gamma, "confidence": 0.0}
        return own | ({"teachers_target": gamma} if self.config.move_teachers else {})

    # -- what teachers say -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor) -> tuple[HandLabels, Tensor]:
        """The teachers' mean on clean images, and each image's weight [B]; see ``Config.weighting``."""
        outputs = self._answers(images)
        pseudo = self._loss.predict(*outputs)
        if self.config.weighting == "none":
            return pseudo, torch.ones(len(images), device=images.device)
        w = confidence(self._apart(outputs), self.rate)
        if self.config.weighting == "shuffled":
            w = w[torch.randperm(len(w)).to(w.device)]
        return pseudo, w

    @torch.no_grad()
    def disagreement(self, images: Tensor) -> Tensor:
        """d of clean images, [B]."""
        return self._apart(self._answers(images))

    def _answers(self, images: Tensor) -> list[Output]:
        return [forward_heads(one.eval(), images) for one in self.teachers]

    def _apart(self, outputs: Sequence[Output]) -> Tensor:
        one, other = (self._loss.predict(output) for output in outputs)
        return self._loss.disagreement(one, other, outputs[0]["heatmaps"].shape[2:])

    def _set_rate(self) -> None:
        """``log 3 / median d`` over target images, once; 0, so that w is 1, where the teachers do not differ."""
        if float(self.rate) >= 0 or self.config.weighting == "none":
            return
        count = len(self._data)
        found = []
        for rows in torch.linspace(0, count - 1, min(count, CALIBRATION)).long().split(64):
            images = part(self._data.batch(rows, None), TARGET).inputs
            if images is not None and len(images):
                found.append(self.disagreement(images.to(self.rate.device)))
        median = float(torch.cat(found).median())
        self.rate.fill_(math.log(3) / median if median > 1e-20 else 0.0)

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: a small U-Net on toy hands."""
        student = build_with_seed(lambda: UNet(1, {"heatmaps": 1, "mask": 1}, (4, 8)), seed, "student")
        source, target = pointers(seed, SOURCE, 32).data, TensorData(pointers(seed, TARGET, 32, target=True).data.inputs)
        method = cls(heatmap="bce", sigma=2.0, pose_weight=5.0, mask_weight=1.0, gamma=1.0, quarter_turns=True, translation=0.0)
        settings = TrainingSettings(steps=8, batch_size=16, lr=1e-2, seed=seed)
        return TrainingJob(student, None, method, CombinedData({SOURCE: source, TARGET: target}), settings, "c-gac")


def _check_heads(heads: Output, labels: HandLabels) -> None:
    """Refuse heads that do not fit the labels; their names are checked by the trainer."""
    maps, mask = heads["heatmaps"], heads["mask"]
    if maps.ndim != 4 or maps.shape[1] != labels.points.shape[1]:
        raise InputError(
            f"heat maps {list(maps.shape)} for {labels.points.shape[1]} keypoints",
            where="student: heatmaps",
            remedy=f"build the network for {labels.points.shape[1]} keypoints: [B, K, h, w]",
        )
    if mask.shape[1:] != labels.mask.shape[1:]:
        raise InputError(
            f"masks {list(mask.shape[1:])} for labels {list(labels.mask.shape[1:])}",
            where="student: mask",
            remedy="bring the labels to the size of the network's mask",
        )
