"""One training job of stepwise distillation: the step loss on labelled calls, the self loss on replayed ones.

    L(m) = L_step(m) + lambda L_self(m)

(Wan et al., arXiv 2309.09809; losses by head type, weights and defaults ours.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, TensorData, Tree
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Phase
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.teacher import Teacher
from tutelage.modules.visual_module import TrainingExamples, VisualModule
from tutelage.sdvp.continual.base import NO_STRATEGY, ContinualStrategy
from tutelage.sdvp.replay_sampling import ReplaySampling


class StepwiseDistillation(Method):
    """Distil labelled calls into a module (``step``), and keep what it said to replayed calls (``self``).

    ``step`` by head: classes ``a tau^2 KL(p_T || p_S) + (1-a) CE(y)``; a logit BCE; a heat-map weighted BCE over the
    classes asked for; a size L1 at the peaks; tokens CE, summed over the answer; a set of boxes DETR's loss; each the
    weighted mean ``sum w l / sum w``. ``self`` sums over ALL heads the distance to the frozen copy: tau^2 KL, BCE on
    probabilities, squared error, L1 of boxes; it leaves no head free to drift.
    Options of ``strategy`` add their own terms.
    """

    needs_teacher = False

    @dataclass(frozen=True)
    class Config:
        """tau: temperature; alpha: share of the soft loss; keep: lambda; size: weight of size heads; positive: weight of
        a heat-map's peaks (all defaults ours); retain: the training job's retain options in words, which it fills in itself."""

        tau: float = 2.0
        alpha: float = 0.5
        self_weight: float = 9.0
        size: float = 1.0
        positive: float = 3.0
        strategy: str = ""

    def __init__(
        self,
        heads: Mapping[str, str],
        config: Any = None,
        strategy: ContinualStrategy = NO_STRATEGY,
        penalty: nn.Module | None = None,
    ):
        super().__init__(config)
        self.config = replace(self.config, strategy=repr(strategy))
        self.heads, self.strategy, self.penalty = dict(heads), strategy, penalty
        self._penalty: Tensor | None = None
        self._replayed = False

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass on each group of rows; outputs are named ``group/head``."""
        out: Output = {}
        for group, inputs in batch.inputs.items():
            out |= {f"{group}/{head}": value for head, value in student(inputs).items()}
        self._penalty = self.penalty(student) if self.penalty is not None else None
        self._replayed = "replay" in batch.inputs
        return out, {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``step``, ``self`` where there is replay, ``labelled`` where old labels are, ``penalty`` where the retain option
        has one."""
        terms = {"step": self._step_loss("task", batch, student)}
        if "replay" in batch.inputs:
            replay = batch.labels["replay"]
            kept = [
                self._self_loss(kind, student[f"replay/{head}"], replay["heads"][head], replay["weights"])
                for head, kind in self.heads.items()
            ]
            terms["self"] = torch.stack(kept).sum()
        if "labelled" in batch.inputs:
            terms["labelled"] = self._step_loss("labelled", batch, student)
        if self._penalty is not None:
            terms["penalty"] = self._penalty
        return terms

    def loss_weights(self) -> Mapping[str, float]:
        """``self`` weighs lambda."""
        return {"self": self.config.self_weight} if self._replayed else {}

    def phases(self) -> tuple[Phase, ...]:
        """One stage; the retain option may freeze parts of the student."""
        return (Phase(trains=self.strategy.is_trainable),)

    def _step_loss(self, group: str, batch: Batch, student: Output) -> Tensor:
        """The step loss of a group of labelled rows, summed over heads."""
        labels = batch.labels[group]
        found = [
            self._step(kind, student[f"{group}/{head}"], labels["targets"][head], labels["weights"])
            for head, kind in self.heads.items()
        ]
        return torch.stack(found).sum()

    def _step(self, kind: str, out: Tensor, target: Mapping[str, Tensor], weights: Tensor) -> Tensor:
        c = self.config
        match kind:
            case "classes":
                logits, w = out.flatten(0, -2), weights.flatten()
                soft, hard = target["soft"].flatten(0, -2), target["hard"].flatten()
                # the teacher's probabilities at tau: p^(1/tau), renormalised
                gentle = soft.clamp_min(1e-8).log()
                kl = losses.kd(logits, gentle, c.tau, w)
                return c.alpha * kl + (1 - c.alpha) * losses.cross_entropy(logits, hard, w)
            case "logit":
                return losses.binary_cross_entropy(out.flatten(), target["probability"].flatten(), weights.flatten())
            case "heatmap":
                return heatmap_step(out, target["heat"], target["asked"], c.positive)
            case "size":
                return c.size * losses.size_l1(out, target["size"], target["peaks"])
            case "tokens":
                return losses.token_cross_entropy(out, target["tokens"], weights)
            case "set":
                return set_step(out, target["boxes"], target["real"], weights)
        raise NotImplementedError(kind)

    def _self_loss(self, kind: str, out: Tensor, frozen: Tensor, weights: Tensor) -> Tensor:
        frozen = frozen.to(out.dtype)
        if kind == "classes":
            return losses.kd(out.flatten(0, -2), frozen.flatten(0, -2), self.config.tau, weights.flatten())
        if kind == "logit":
            return losses.binary_cross_entropy(out.flatten(), frozen.flatten().sigmoid(), weights.flatten())
        if kind == "heatmap":
            return heatmap_step(out, frozen.sigmoid(), torch.ones_like(out[:, :, 0, 0]), self.config.positive)
        if kind in ("tokens", "set"):
            return losses.head_distance(kind, out, frozen, self.config.tau, weights)
        return self.config.size * out.shape[1] * losses.head_distance(kind, out, frozen, weights=weights)


def heatmap_step(logits: Tensor, heat: Tensor, queried: Tensor, positive: float) -> Tensor:
    """BCE of heat-maps [B, C, h, w], cells weighted ``1 + (positive - 1) heat``, over the classes with ``queried`` > 0;
    summed over a map's cells, so that a peak counts alike on every grid."""
    loss = nn.functional.binary_cross_entropy_with_logits(logits, heat, reduction="none")
    per_map = (loss * (1 + (positive - 1) * heat)).sum((2, 3)) * queried
    return per_map.sum() / queried.sum().clamp_min(1.0)


def set_step(predictions: Tensor, boxes: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """DETR's loss of sets [B, Q, 5] against ``boxes`` [B, T, 4], of which those are meant that are ``real`` [B, T]."""
    verdict = torch.stack([predictions[..., 0], torch.zeros_like(predictions[..., 0])], -1)  # its softmax is the logit's sigmoid
    targets = [own_boxes[there] for own_boxes, there in zip(boxes, real.bool(), strict=True)]
    labels = [torch.zeros(len(target), dtype=torch.long, device=predictions.device) for target in targets]
    return losses.set_loss(verdict, predictions[..., 1:], labels, targets, weights)


class TaskReplayData:
    """The rows of a training job: each batch takes its task rows in order, to each of them ``sampling.ratio`` replayed rows
    drawn by view seed, and one ``labelled`` row of old tasks where such are given.

    ``photometric_input``: as :attr:`~tutelage.modules.visual_module.VisualModule.photometric_input`; where it is set, a share
    of the replayed rows shows altered pixels beside the ``frozen`` outputs for the unaltered ones.
    """

    def __init__(
        self,
        task: TrainingExamples,
        replay: TrainingExamples | None = None,
        frozen: Mapping[str, Tensor] | None = None,
        labelled: TrainingExamples | None = None,
        sampling: ReplaySampling = ReplaySampling(),  # noqa: B008  (frozen)
        photometric_input: str | None = None,
    ):
        self.task, self.sampling, self.photometric_input = _with_targets(task), sampling, photometric_input
        self.replay_groups: dict[str, TensorData] = {}
        if replay is not None:
            self.replay_groups["replay"] = TensorData(replay.inputs, {"heads": dict(frozen or {}), "weights": replay.weights})
        if labelled is not None:
            self.replay_groups["labelled"] = _with_targets(labelled)

    @property
    def fingerprint(self) -> str:
        """Names every row of every group."""
        groups = "".join(group.fingerprint for group in (self.task, *self.replay_groups.values()))
        return groups if "replay" not in self.replay_groups else f"{groups}{self.sampling}{self.photometric_input}"

    def __len__(self) -> int:
        return len(self.task)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """Inputs and labels by group; without view seeds, the rows' own numbers draw the other groups."""
        task = self.task.batch(indices, seeds)
        inputs: Tree = {"task": task.inputs}
        labels: Tree = {"task": task.labels}
        draw = indices if seeds is None else seeds
        for name, group in self.replay_groups.items():
            numbers, own_seeds = self.sampling.rows(draw, len(group)) if name == "replay" else (draw % len(group), draw)
            rows = group.batch(numbers, own_seeds)
            inputs[name], labels[name] = rows.inputs, rows.labels
            if name == "replay" and self.photometric_input is not None:
                altered = self.sampling.alter_colours(rows.inputs[self.photometric_input], own_seeds)
                inputs[name] = {**rows.inputs, self.photometric_input: altered}
        return Batch(inputs, labels, ids=indices, seeds=seeds)


def _with_targets(examples: TrainingExamples) -> TensorData:
    return TensorData(examples.inputs, {"targets": examples.targets, "weights": examples.weights})


def reference_outputs(module: VisualModule, examples: TrainingExamples, rows: int = 512) -> dict[str, Tensor]:
    """Every head of the module as it stands, on all rows of an exercise, in fp16: what self-distillation keeps to."""
    parts: dict[str, list[Tensor]] = {head: [] for head in module.heads}
    with torch.no_grad():
        for start in range(0, len(examples), rows):
            out = module.forward({key: value[start : start + rows] for key, value in examples.inputs.items()})
            for head in parts:
                parts[head].append(out[head].half())
    return {head: torch.cat(found) for head, found in parts.items()}


def make_job(
    module: VisualModule,
    task: TrainingExamples,
    replay: TrainingExamples | None,
    settings: TrainingSettings,
    config: StepwiseDistillation.Config,
    strategy: ContinualStrategy = NO_STRATEGY,
    name: str = "lesson",
    sampling: ReplaySampling = ReplaySampling(),  # noqa: B008  (frozen)
) -> TrainingJob:
    """The training job that teaches a copy of ``module``'s network; the module itself stays as it is.

    ``replay``: inputs of old tasks, which ``strategy`` may need; their old answers are kept where ``config.self_weight`` > 0.
    ``sampling``: how many of them enter a batch, and in which colours.
    """
    student = strategy.prepare(module.copy_network(), module)
    method = StepwiseDistillation(module.heads, config, strategy, strategy.penalty(module, replay))
    kept = replay if config.self_weight > 0 else None
    frozen = reference_outputs(module, kept) if kept is not None else None
    labelled = strategy.labelled_examples(module)
    data = TaskReplayData(task, kept, frozen, labelled, sampling, module.photometric_input)
    return TrainingJob(student, None, method, data, settings, name)
