"""A vision transformer of yours gets registers, without labels::

    from tutelage import distill
    from tutelage.systems.ph_reg import ShiftedAverage, add_registers, published_settings

    student, teacher = add_registers(vit, 16), ShiftedAverage(vit)
    result = distill(student, teacher, photos, "ph-reg", settings=published_settings(len(photos)), cache="targets")
    clean = result.student  # takes and returns what vit does

``vit``: any vision transformer of ``transformers`` or ``timm``, or a ``VisionTransformer``. ``photos``: images [C, H, W] as
the network takes them (``ImageFolder`` with an ``ImageTransform``, or any data set). With ``cache`` the targets of images
that are not augmented are made once, and an epoch costs one pass of the student. As a recipe, for ``tutelage distill``::

    method = "ph-reg"
    out = "runs/registers"

    [student]
    model = "ph-reg"
    options = { model = "hf:facebook/dinov2-small", registers = 16 }

    [teacher]
    model = "hf:facebook/dinov2-small"

    [data]
    kind = "folder"
    path = "photos"
    image_size = 518

    [settings]
    steps = 10000
    batch_size = 8
    lr = 1e-4
    weight_decay = 1e-2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, unwrap_model
from tutelage.distillation.recipe import ModelSpec
from tutelage.distillation.resolve import build_model
from tutelage.distillation.teacher import NetworkTeacher, Teacher
from tutelage.errors import InputError
from tutelage.networks.registers import RegisterViT, add_registers, patch_tokens
from tutelage.networks.vit import VisionTransformer
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.ph_reg.shifted_average import WHITE, ShiftedAverage, images_of


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - mean over patches of <s, t>``, each vector over its norm + 1e-8: tokens [B, N, D] -> [B]."""
    unit = [tokens / (tokens.norm(dim=-1, keepdim=True) + 1e-8) for tokens in (student, teacher)]
    return 1 - (unit[0] * unit[1]).sum(-1).mean(-1)


def published_settings(
    images: int,
    epochs: int = 100,
    batch_size: int = 8,
    lr: float = 1e-4,
    end: float = 5e-6,
    weight_decay: float = 1e-2,
    **others: Any,
) -> TrainingSettings:
    """The paper's schedule: epoch e of E runs at ``lr (end / lr)^(e / E)``, from e = 0 on.

    Args:
        images: how many there are; an epoch is ``images // batch_size`` steps (at least 1).
        epochs, batch_size, lr, end, weight_decay: the defaults are the paper's.
        others: further settings, such as ``precision="bf16"``, which the paper uses.

    Raises:
        InputError: no epoch, or a rate that is not above 0.
    """
    if epochs < 1 or lr <= 0 or end <= 0:
        raise InputError(f"{epochs} epochs from {lr} to {end}", where="settings", remedy="at least 1 epoch, rates above 0")
    return TrainingSettings(
        steps=epochs * max(1, images // batch_size),
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule="steps",
        gamma=(end / lr) ** (1 / epochs),
        milestones=tuple(epoch / epochs for epoch in range(1, epochs)),
        **others,
    )


def network_with_registers(model: str, registers: int = 16, weights: str | None = None, seed: int = 0) -> RegisterViT:
    """A network by the name that a recipe gives, with registers: ``[student] model = "ph-reg"``.

    Args:
        model: ``hf:NAME``, ``timm:NAME`` or a registered backbone.
        registers: M.
        weights: a safetensors file of the network without registers; None: those that its name brings.
        seed: of the registers.

    Raises:
        InputError: an unknown name, or a network without the parts of a vision transformer.
    """
    with torch.device("cpu"):
        return add_registers(build_model(ModelSpec(model, weights=weights)), registers, seed)


@system("ph-reg", kind="distillation")
class PHReg(Method):
    """PH-Reg: post-hoc registers, learned from the network's own denoised patch features, without labels.

    Large vision transformers keep global notes in a few patch tokens, whose features then no longer describe their patch.
    Registers give these notes a place. The teacher is the frozen network itself, averaged over n shifted and mirrored views
    (:class:`ShiftedAverage`): ``T_p = 1 / count_p sum_views f(view)_p``, since artifacts stay where they are in the view while
    the image moves. The student is the network with M registers before all its tokens, without positions, N(0, 1 / D):
    ``S = f(registers, image)``, patch tokens behind the final norm, [B, N, D]. Then

    ``L = [1 - mean_p cos(T_p, S_p)] + c mean (T - S)^2``, the mean over patches, the last one over all entries.

    Trained are the registers, the positions, the patch convolution and the last block; everything else stays bit for bit.
    At inference the student costs M more tokens, nothing else. Its state holds the registers; ``load_weights`` reads it
    into ``add_registers(vit, M)``, and ``to_dinov2_with_registers`` writes a model of ``transformers`` as it is.
    ``diagnose(network, images)`` measures outliers of norms, artifacts by position, smoothness, and attention to registers.

    In SDVP: clean patch features under a LOC, MATCH or SEG module, before that module's own training.

    Limits: networks with a table of relative positions (BEiT) have no place for registers, and are refused. Of CLIP, the
    tokens of the last layer behind the norm are used; the paper's variants that replace the last attention are left to the
    network that is given. The paper's figures are of large networks on VOC, ADE20K and NYUd, which are not repeated here;
    quoted at second hand and not checked: a mean mIoU of 41.85 in place of 32.21 over eight open-vocabulary sets, for CLIP.

    Source: "Vision Transformers with Self-Distilled Registers" (Chen, Yan, Zhou, Dai, Luo, 2025, arXiv 2505.21501).

    Raises:
        InputError: a student without registers, a teacher without patches, or grids that differ.
    """

    matched_heads = ("patches",)
    Network = staticmethod(network_with_registers)

    @dataclass(frozen=True)
    class Config:
        """``mse``: c, the weight of the squared error. ``register_lr``: factor on the registers' learning rate (our choice,
        for short trainings; the paper has 1). ``views``, ``shift``, ``flip``, ``fill``: of the :class:`ShiftedAverage` that is
        made of a plain network as teacher; one that is given brings its own."""

        mse: float = 1.0
        register_lr: float = 1.0
        views: int = 10
        shift: float = 0.15
        flip: float = 0.5
        fill: tuple[float, ...] = WHITE

        def __post_init__(self) -> None:
            if self.mse < 0 or self.register_lr <= 0:
                raise InputError(f"mse {self.mse}, register_lr {self.register_lr}", where="mse", remedy="1 and 1 in the paper")

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Freezes all but the four groups; see :class:`Method`."""
        network = unwrap_model(student)
        if not isinstance(network, RegisterViT):
            raise InputError(
                f"the student is a {type(network).__name__} without registers",
                where="student",
                remedy="student=add_registers(vit, 16), from tutelage.systems.ph_reg",
            )
        average = None
        if type(teacher) is NetworkTeacher:
            config = self.config
            average = ShiftedAverage(teacher.network, config.views, config.shift, config.flip, config.fill)
        self._average = [average]  # in a list: the method does not own the network
        network.requires_grad_(False)
        for parameter in network.unlocked():
            parameter.requires_grad_(True)

    def groups(self, student: nn.Module) -> Sequence[Mapping[str, Any]]:
        """Registers by themselves."""
        network: Any = unwrap_model(student)
        registers = [network.registers] if network.registers.requires_grad else []
        others = [p for p in student.parameters() if p.requires_grad and p is not network.registers]
        groups = [{"params": registers, "lr_scale": self.config.register_lr}, {"params": others}]
        return [group for group in groups if group["params"]]

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """``patches`` [B, N, D] of both."""
        assert teacher is not None
        target = (self._average[0] or teacher)(batch)
        if "patches" not in target:
            raise InputError(
                f"the teacher gives {', '.join(target)}, no patches",
                where="teacher",
                remedy="teacher=ShiftedAverage(vit), from tutelage.systems.ph_reg",
            )
        found = patch_tokens(unwrap_model(student), images_of(batch.inputs))
        if found["patches"].shape != target["patches"].shape:
            shapes = [tuple(tokens["patches"].shape) for tokens in (found, target)]
            raise InputError(
                f"patches of the student {shapes[0]}, of the teacher {shapes[1]}",
                where="student",
                remedy="make the student from the teacher's network: add_registers(vit, 16)",
            )
        return found, target

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"mse": self.config.mse}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``cosine`` and ``mse``."""
        found, target = student["patches"], teacher["patches"]
        return {
            "cosine": losses.average(cosine_distance(found, target), batch.weights),
            "mse": losses.average((found - target).square().mean((1, 2)), batch.weights),
        }

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training of a second: random networks, 8 x 8 patches."""
        vit = build_with_seed(lambda: VisionTransformer(16, 2, dim=16, depth=2, num_heads=2, in_chans=1), seed, "vit")
        data = toy_images(seed, image_size=16)
        settings = published_settings(len(data), epochs=2, batch_size=16, lr=1e-3, end=1e-4, seed=seed)
        return TrainingJob(add_registers(vit, 4, seed), ShiftedAverage(vit, 4, fill=3.0), cls(), data, settings, "ph-reg")
