"""A segmenter learns from many masks that are displaced, then from a few that are right::

    from tutelage import distill
    from tutelage.systems.offnadir_sda import noisy_then_clean, scores_by_height

    data = noisy_then_clean(noisy, clean, clean_share=0.25)  # a quarter of the steps on the clean tiles
    segmenter = distill(network, None, data, "offnadir-sda", steps=2000, batch_size=16, lr=1e-4).student
    print(scores_by_height(segmenter, images, masks, heights))  # {"low-rise": {"F1": …, "IoU": …}, …, "all": …}

``noisy`` and ``clean`` are data of images [B, C, H, W] with masks [B, 1, H, W] of 0 and 1 (below 0: ignored). ``network`` is any
that gives one logit a pixel: this project's U-Net, or one of segmentation_models_pytorch such as
``smp.Unet("efficientnet-b3")``. A network that was trained on displaced masks already is adapted alone:
``distill(network, None, clean, "offnadir-sda", lr=1e-5)``. As a recipe, for ``tutelage distill``::

    method = "offnadir-sda"
    out = "runs/buildings"

    [student]
    model = "offnadir-sda"
    options = { in_chans = 3, out_chans = 1 }

    [data]
    kind = "combined"
    mixing = "in-sequence"
    weights = { noisy = 3, clean = 1 }

    [data.sources.noisy]
    file = "noisy.npz"

    [data.sources.clean]
    file = "clean.npz"

    [options]
    freeze = "none"

The files hold ``inputs`` [N, 3, H, W] and ``labels`` [N, 1, H, W].

**Why.** In an image taken at an angle the roof of a building of height h stands ``h tan(angle) / pixel size`` pixels away from its
footprint, and large sets of masks mark the footprint. A square of side a, displaced by d, keeps
``IoU = (a - d) / (a + d)`` and ``F1 = (a - d) / a``: the taller the building, the worse its label.

**What it does.** Supervised domain adaptation (SDA) of one network::

    θ1 = argmin L(noisy), from the given weights;  θ2 = argmin L(clean), from θ1, at ``clean_lr`` times the rate

The data say how long each set is read; the method follows them, so that the sets are named once. While it learns from the noisy
set, no clean tile or mask enters a loss: every batch is checked, and a clean row is refused.

**What it is compared with**, in Python: ``MaskDistillation`` (a teacher trained on the noisy set, a student on the clean one),
``MutualLearning`` (two networks on the clean set), and ``settle_in_turn``, the order of the published study: the loss, then the
optimiser, the encoder, the decoder, each by the score of its trials. ``displace_masks`` makes a clean set noisy.

**Use in SDVP**: the module SEG learns from cheap displaced masks, then from a dozen right ones.

**What is our choice.** The training code is not published; alpha and T of distillation and the ways to freeze (our choice). The
optimiser keeps its moments from the noisy set. There is no plateau schedule: take ``schedule="cosine"``, which begins anew for
each set, and ``validation=`` with ``patience=11`` to stop early. Validate on further clean tiles: a share of ``data`` would hold
displaced masks too. U-Net3+ and the other decoders are not built here; any network will do.

**Limits.** The masks must be right in the clean set; where noisy masks were right (buildings without height), a few clean tiles can
make the network worse. The published figures are not measured here: F1 of SDA up to 0.943 (low-rise), 0.868 (mid-rise), 0.912
(high-rise) and 0.697 (skyscrapers), above distillation and mutual learning; the ranking of 43 encoders, 9 losses, 5 optimisers.

Source: "Supervised domain adaptation for building extraction from off-nadir aerial images" (Neupane, Aryal, Rajabifard, 2023,
arXiv 2311.03867).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.data.combined import CombinedData
from tutelage.distillation.data.mixing import InSequence
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Phase
from tutelage.distillation.optim import layer_numbers
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError, did_you_mean
from tutelage.networks.unet import UNet
from tutelage.registry import system
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.offnadir_sda.masks import loss_names, mask_loss
from tutelage.systems.offnadir_sda.tiles import tilted_tiles

FREEZE = ("none", "encoder", "half", "gradual")
STATISTICS = ("train", "fixed")
_ORDER = "noisy_then_clean(noisy, clean, …)"


def noisy_then_clean(noisy: Any, clean: Any, clean_share: float = 0.25) -> CombinedData:
    """Two sets of data, read one after the other: the sources ``noisy`` and ``clean``.

    Args:
        noisy: many images with displaced masks; whatever ``distill`` takes as data.
        clean: few images with right masks.
        clean_share: of all steps, above 0 and below 1.

    Raises:
        InputError: no such share.
    """
    if not 0 < clean_share < 1:
        raise InputError(f"a share of {clean_share:g}", where="clean_share", remedy="above 0 and below 1, such as 0.25")
    return CombinedData({"noisy": noisy, "clean": clean}, InSequence({"noisy": 1 - clean_share, "clean": clean_share}))


@system("offnadir-sda", kind="adaptation")
class OffNadirSDA(Method):
    """Supervised domain adaptation: a segmenter trained on displaced masks goes on with a few right ones; needs no teacher.

    Data: :func:`noisy_then_clean`, or any two sources read in sequence, the noisy one first; or the clean set alone, for a network
    that is trained already (``clean_lr`` is then left out). One phase for each source, with its name and its length; the learning
    rate's schedule begins anew.

    ``freeze``, in the clean phase: ``none`` trains all; ``encoder`` trains the decoder and the heads alone; ``half`` also
    the deeper half of the encoder's blocks; ``gradual`` begins like ``encoder`` and frees one block after the other, the
    deepest first. Blocks are those of :func:`~tutelage.distillation.optim.layer_numbers`. What is frozen keeps its weights and
    the statistics of its batch norms. ``statistics="fixed"``: all batch norms keep them in the clean phase, for very small sets.

    ``loss``: of :func:`~tutelage.systems.offnadir_sda.masks.mask_loss`, such as ``dice`` (which the authors' related
    release takes) or ``bce+dice``. Term: ``label``.

    Raises:
        InputError: an option that does not exist; data of another kind; a source without masks of the network's size; an
            encoder that is not found; and, in training, a row of the clean set in the noisy phase.
    """

    tasks = ("multi-label",)
    needs_labels = True
    needs_teacher = False
    student_heads = ("logits",)
    Network = UNet

    @dataclass(frozen=True)
    class Config:
        """``clean_lr``: factor on the learning rate in the clean phase (published: 1e-5 after 1e-4). ``encoder``: the name of the
        network's encoder, where something is frozen."""

        loss: str = "bce"
        clean_lr: float = 0.1
        freeze: Literal["none", "encoder", "half", "gradual"] = "none"
        statistics: Literal["train", "fixed"] = "train"
        encoder: str = "encoder"

        def __post_init__(self) -> None:
            loss_names(self.loss)
            if not (self.clean_lr > 0 and math.isfinite(self.clean_lr)):
                raise InputError(f"a factor of {self.clean_lr}", where="clean_lr", remedy="above 0; published: 0.1")
            for name, known in (("freeze", FREEZE), ("statistics", STATISTICS)):
                if getattr(self, name) not in known:
                    remedy = did_you_mean(str(getattr(self, name)), list(known))
                    raise InputError(f"unknown {name} {getattr(self, name)!r}", where=name, remedy=remedy)

    def __init__(self, config: Any = None, **options: Any):
        super().__init__(config, **options)
        self.lengths = {"noisy": 1.0, "clean": 1.0}
        self._field: str | None = None
        self._blocks: dict[str, int] = {}
        self._from: int | None = None

    # -- the two sets ------------------------------------------------------------------------------------------------

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """The names and lengths of the sources, and the blocks of the encoder; see :class:`Method`."""
        sources: dict[str, ReplayableData] = {"data": data}
        if isinstance(data, CombinedData):
            if len(data.names) != 2 or not isinstance(data.mixing, InSequence) or data.parts:
                found = f"{len(data.names)} sources, {type(data.mixing).__name__}{', kept apart' if data.parts else ''}"
                raise InputError(found, where="data", remedy=f'{_ORDER}; in a recipe mixing = "in-sequence" and two sources')
            sources, self._field = data.sources, data.field
            self.lengths = {name: float(data.mixing.lengths.get(name, 1.0)) for name in data.names}
        else:
            self.lengths, self._field = {"clean": 1.0}, None
        for name, source in sources.items():
            _check_masks(student, source, name)
        if self.config.freeze != "none":
            self._blocks = _encoder_blocks(unwrap_model(student), self.config.encoder)

    def phases(self) -> Sequence[Phase]:
        """One for each source, as long as it is read."""
        rates = [1.0, self.config.clean_lr] if len(self.lengths) == 2 else [1.0]
        return [Phase(name, share, lr=lr, restart=True) for (name, share), lr in zip(self.lengths.items(), rates, strict=True)]

    def _in_clean(self) -> bool:
        return self.progress.phase.name == list(self.lengths)[-1]

    def _check_source(self, batch: Batch) -> None:
        """Refuse rows of another set than the phase's."""
        if self._field is None or self.progress.phase.name not in self.lengths:
            return
        expected = list(self.lengths).index(self.progress.phase.name)
        if bool((batch.extra[self._field] != expected).any()):
            raise InputError(
                f"a batch of the phase {self.progress.phase.name!r} holds rows of another source",
                where="data",
                remedy=f"read the sources in sequence, as long as the phases are: {_ORDER}",
            )

    # -- what is frozen ----------------------------------------------------------------------------------------------

    def first_trained_block(self) -> int:
        """The first block of the encoder that is trained now; all behind it are too. Their number: none is."""
        count = max(self._blocks.values(), default=-1) + 1
        if not self._in_clean() or self.config.freeze == "none":
            return 0
        if self.config.freeze == "gradual":
            freed = (count + 1) * self.progress.phase_step // max(1, self.progress.phase_steps)
            return count - min(count, freed)
        return count if self.config.freeze == "encoder" else count // 2

    def _set_frozen(self, student: nn.Module) -> None:
        network, first = unwrap_model(student), self.first_trained_block()
        if self._blocks and first != self._from:
            for name, number in self._blocks.items():
                network.get_parameter(name).requires_grad_(number >= first)
            self._from = first
        fixed = self._in_clean() and self.config.statistics == "fixed"
        if not fixed and first == 0 and self.config.freeze == "none":
            return
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = self._blocks.get(f"{name}.weight", first) < first
                module.train(student.training and not fixed and not frozen)

    # -- training ----------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass of the student, on rows of the phase's own set."""
        self._check_source(batch)
        self._set_frozen(student)
        return forward_heads(student, batch.inputs), {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``."""
        return {"label": mask_loss(student["logits"], batch.labels, self.config.loss, batch.weights)}

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: drawn tiles, a U-Net of 4 and 8 channels."""
        noisy, clean = (tilted_tiles(torch_rng(seed, "tiles", name), count) for name, count in (("noisy", 16), ("clean", 4)))
        student = build_with_seed(lambda: UNet(3, 1, (4, 8)), seed, "student")
        data = noisy_then_clean(noisy.noisy, clean.clean, 0.5)
        return TrainingJob(student, None, cls(), data, TrainingSettings(steps=6, batch_size=4, seed=seed), "offnadir-sda")


def _check_masks(student: nn.Module, source: ReplayableData, name: str) -> None:
    """Refuse a source without masks of the size of the network's output; of its labels only the shape is looked at."""
    sample = source.batch(torch.zeros(1, dtype=torch.int64), None)
    logits = forward_heads(student, sample.inputs)["logits"]
    if not isinstance(sample.labels, Tensor) or sample.labels.shape != logits.shape:
        found = list(sample.labels.shape) if isinstance(sample.labels, Tensor) else "no labels"
        raise InputError(
            f"masks {found}, the network gives {list(logits.shape)}",
            where=f"sources.{name}: labels",
            remedy="give masks [N, 1, H, W] of 0 and 1, of the network's output size",
        )


def _encoder_blocks(network: nn.Module, encoder: str) -> dict[str, int]:
    """The number of the block of each trainable parameter of the encoder, by its name in the network."""
    children = [name for name, _ in network.named_modules() if name]
    if encoder not in children:
        tops = [name for name, _ in network.named_children()]
        raise InputError(f"the network has no part {encoder!r}", where="encoder", remedy=did_you_mean(encoder, tops))
    try:
        numbers = layer_numbers(network.get_submodule(encoder))
    except InputError as error:
        raise InputError(f"{encoder!r} has no list of blocks", where="encoder", remedy=error.remedy) from error
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {found: number for name, number in numbers.items() if (found := f"{encoder}.{name}") in trainable}
