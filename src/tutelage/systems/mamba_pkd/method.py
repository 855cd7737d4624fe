"""Mamba-PKD: small Mamba classifiers as weak learners, each taught what its predecessors have left."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Phase
from tutelage.distillation.optim import trainable_parameters
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed, class_ids, toy_images
from tutelage.systems.mamba_pkd.network import ClassifierGroup, MambaClassifier

ROWS = 1000  # samples a pass over the training set


@system("mamba-pkd", kind="distillation")
class MambaPKD(Method):
    """Mamba-PKD: a group of small state-space classifiers, trained one after the other from one teacher.

    "Mamba base PKD for efficient knowledge compression" (Medina, Hadachi, Honeine, Bensrhair, 2025). Stage k trains
    member ``f_k`` of a :class:`ClassifierGroup` alone, with ``a CE(y, F_k) + (1 - a) T^2 KL(softmax(g / T) || softmax(F_k / T))``,
    where g are the teacher's logits and ``F_k = F_(k-1) + f_k`` (``residual``) in a sum; of a group that averages, each
    member is taught alone. Earlier members and the teacher do not change. The last layer of a member starts at zero, so
    that ``F_k`` starts at ``F_(k-1)``, and of ``checks`` looks at the loss over the plain training images (its start is
    one) the best state is kept: in a sum that loss never rises from member to member. The group's answer can be had
    after any member: :meth:`ClassifierGroup.anytime`.

    A group that boosts (``ClassifierGroup(…, combine="boost")``, after B-DISTIL: Dennis et al., 2023; the rule is recalled, not
    checked against the paper) also answers with the mean. Its first member learns as above. Member k > 0 correlates with
    ``Kp - Kn``, weights of image i and class j that sum to 1 over all of both: ``Kp ~ exp(-eta sum_(l<k) (f_l - g))`` and ``Kn``
    the inverse, which is their update after every member. It learns until ``sum_ij (Kp - Kn)(f_k - g)`` reaches ``margin``: the
    loss ``boost`` is what is missing, a batch standing for all images. Logits of members and teacher are centred by image
    there; elsewhere centring would change nothing, for a softmax does not see it. On one selection seed of the experiment's
    digits seven boosted members stayed behind seven averaged ones (45 against 52 %, eta 0.1, a margin out of reach).

    The combination, a, T, members' sizes, the image-to-sequence layout and the zero start are our choice where the paper is
    not known in detail. ``A_log`` and ``D`` get no weight decay. Heads: ``logits`` [B, C]; int64 labels [B]. Needs the
    last layer of every member under the name ``head``, and memory for the logits of all training images.

    Raises:
        InputError: a student that is no :class:`ClassifierGroup` of ``students`` members.
    """

    Network = MambaClassifier
    tasks = ("classification",)
    needs_labels = True
    before: Tensor
    teacher_logits: Tensor
    best: Tensor
    boosts = False

    @dataclass(frozen=True)
    class Config:
        """``students``: members of the group; ``a``: weight of the labels; ``tau``: temperature T; ``checks``: looks at
        the training loss in each stage; ``eta``, ``margin``: of boosting."""

        students: int = 7
        a: float = 0.5
        tau: float = 2.0
        checks: int = 4
        eta: float = 0.2
        margin: float = 1.0

        def __post_init__(self) -> None:
            for name, value in (("students", self.students), ("checks", self.checks)):
                if value < 1:
                    raise InputError(f"{value} is too few", where=name, remedy="1 or more")

    def phases(self) -> Sequence[Phase]:
        """A stage a member; the learning rate begins anew in each."""
        return [Phase(str(k), trains=_only(k), restart=True) for k in range(self.config.students)]

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Heads to zero, the teacher's logits of all plain training images, the loss of a group of none."""
        if not isinstance(student, ClassifierGroup) or len(student.students) != self.config.students:
            raise InputError(
                f"the student is no group of {self.config.students}",
                where="student",
                remedy=f"Group([…]) of {self.config.students} classifiers, or set students=",
            )
        assert teacher is not None
        for member in student.students:
            nn.init.zeros_(member.head.weight)  # type: ignore[union-attr,arg-type]
            nn.init.zeros_(member.head.bias)  # type: ignore[union-attr,arg-type]
        student.used.fill_(1)
        self.boosts = student.combine == "boost"
        self.kept = copy.deepcopy(student.students).requires_grad_(False)
        self._data = [data]  # in a list: beside the method
        device = example.inputs.device
        teacher_logits = torch.cat([teacher.uncached(batch.to(device))["logits"] for batch in _plain(data)])
        self.register_buffer("teacher_logits", teacher_logits)
        self.register_buffer("before", torch.zeros_like(teacher_logits))
        self.register_buffer("best", torch.tensor(torch.inf))
        self.best.fill_(self._start(0))

    def groups(self, student: nn.Module) -> Sequence[Mapping[str, Any]]:
        """``A_log`` and ``D`` without weight decay."""
        named = list(trainable_parameters(student, self))
        free = [parameter for name, parameter in named if name.rpartition(".")[2] in ("A_log", "D")]
        held = {id(parameter) for parameter in free}
        rest = [parameter for _, parameter in named if id(parameter) not in held]
        return [{"params": rest}, {"params": free, "weight_decay": 0.0}]

    @property
    def member(self) -> int:
        """The member that this stage trains, from 0."""
        return int(self.progress.phase.name) if self.progress.phase.name.isdigit() else 0

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The logits that the loss looks at: the group's (``residual``) or the member's own."""
        assert teacher is not None and isinstance(student, ClassifierGroup)
        teacher_outputs = teacher(batch)
        student_logits = forward_heads(student.students[self.member], batch.inputs)["logits"]
        if student.combine == "residual":
            student_logits = student_logits + self._previous_logits(student, batch)
        found = {"logits": student_logits}
        if self.boosts:
            found["share"] = self._shares(self._previous_logits(student, batch), teacher_outputs["logits"], self.member)
        return found, teacher_outputs

    @torch.no_grad()
    def _previous_logits(self, student: ClassifierGroup, batch: Batch) -> Tensor:
        """The sum of the earlier members' logits: known for a plain sample, computed for a view."""
        if batch.ids is not None and batch.seeds is not None and batch.partners is None and not bool(batch.seeds.any()):
            return self.before[batch.ids.to(self.before.device)]
        total = self.before.new_zeros(len(batch), self.before.shape[1])
        for member in student.students[: self.member]:
            total += forward_heads(member.eval(), batch.inputs)["logits"]
        return total

    def _shares(self, before: Tensor, teacher_logits: Tensor, member: int) -> Tensor:
        """``N (Kp - Kn)`` of boosting, [B, C]: from the sum of earlier members' logits, known for all training images and given
        for these."""
        over = self.config.eta * excess(before, teacher_logits, member)
        everywhere = self.config.eta * excess(self.before, self.teacher_logits, member)
        total = torch.cat([everywhere, -everywhere]).flatten().logsumexp(0)
        return len(self.before) * ((-over - total).exp() - (over - total).exp())

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return self._weights(self.member)

    def _weights(self, member: int) -> dict[str, float]:
        plain = {"label": self.config.a, "soft": 1 - self.config.a}
        if not self.boosts:
            return plain
        return {**plain, "boost": 0.0} if member == 0 else {"label": 0.0, "soft": 0.0, "boost": 1.0}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label`` and ``soft``; in boosting also ``boost``."""
        terms = {
            "label": losses.cross_entropy(student["logits"], class_ids(batch.labels), batch.weights),
            "soft": losses.kd(student["logits"], teacher["logits"], self.config.tau, batch.weights),
        }
        if "share" in student:
            edge = (student["share"] * excess(student["logits"], teacher["logits"], 1)).sum(1)
            terms["boost"] = (self.config.margin - losses.average(edge, batch.weights)).relu()
        return terms

    def after_step(self, student: nn.Module) -> None:
        """At a look, keep the member if it is the best yet; at the end of its stage, put the best back and go on."""
        assert isinstance(student, ClassifierGroup)
        done, length = self.progress.phase_step + 1, max(1, self.progress.phase_steps)
        looks = self.config.checks
        if done * looks // length == (done - 1) * looks // length:
            return
        here = student.students[self.member]
        logits = self._plain_logits(here)
        loss = self._loss(self.before + logits if student.combine == "residual" else logits, self.member)
        if loss < self.best:
            self.best.copy_(loss)
            self.kept[self.member].load_state_dict(here.state_dict())
        if done < length:
            return
        here.load_state_dict(self.kept[self.member].state_dict())
        self.before += self._plain_logits(here)
        student.used.fill_(min(self.member + 2, len(student.students)))
        if student.combine != "residual":
            self.best.fill_(self._start(self.member + 1))

    def export(self, student: nn.Module) -> nn.Module:
        """The group of the members trained so far."""
        return super().export(student)

    @torch.no_grad()
    def _plain_logits(self, member: nn.Module) -> Tensor:
        """A member's logits of all plain training images."""
        (data,), training = self._data, member.training
        logits = [forward_heads(member.eval(), batch.to(self.before.device).inputs)["logits"] for batch in _plain(data)]
        member.train(training)
        return torch.cat(logits)

    def _start(self, member: int) -> Tensor:
        """The loss of logits of zero."""
        return self._loss(torch.zeros_like(self.before), member)

    def _loss(self, logits: Tensor, member: int) -> Tensor:
        """The loss of a member's logits of all plain training images."""
        labels = torch.cat([class_ids(batch.labels) for batch in _plain(self._data[0])]).to(logits.device)
        found = {"logits": logits}
        if self.boosts:
            found["share"] = self._shares(self.before, self.teacher_logits, member)
        terms = self.loss_terms(Batch(None, labels), found, {"logits": self.teacher_logits})
        weights = self._weights(member)
        return sum((weight * terms[name] for name, weight in weights.items()), start=torch.zeros((), device=logits.device))

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of two seconds: three members of 8 channels, rows of 8 pixels as steps."""

        def network(width: int) -> MambaClassifier:
            return MambaClassifier(4, 1, width, 1, states=4, patch=None, size=8)

        student = build_with_seed(lambda: ClassifierGroup([network(8) for _ in range(3)]), seed, "student")
        teacher = build_with_seed(lambda: network(16), seed, "teacher")
        return TrainingJob(
            student, teacher, cls(students=3), toy_images(seed), TrainingSettings(steps=9, batch_size=16, seed=seed), "mamba-pkd"
        )


def excess(members: Tensor, teacher: Tensor, count: int) -> Tensor:
    """``sum_k (f_k - g)`` of logits [B, C], all centred by image, from the sum of ``count`` members' logits and the teacher's.

    The softmax does not see what centring takes away, so the other losses need none.
    """
    over = members - count * teacher.detach()
    return over - over.mean(1, keepdim=True)


def _only(k: int) -> Any:
    return lambda name: name.startswith(f"student.students.{k}.")


def _plain(data: ReplayableData) -> list[Batch]:
    """All samples, without augmentation, in order."""
    return [data.batch(rows, None) for rows in torch.arange(len(data)).split(ROWS)]
