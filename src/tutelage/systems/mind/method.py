r"""MIND: a language model learns from several rationales a question, and a small network chooses those that fit it now::

    from tutelage.systems.mind import MIND, item_data, read_items
    from tutelage.systems.polyglot_teachers import transformers_text_model
    from tutelage import distill

    model = transformers_text_model("Qwen/Qwen2.5-1.5B")      # any causal model of transformers (extra hf)
    data = item_data(model, read_items("items.jsonl"))
    result = distill(model.network, None, data, MIND(), epochs=3, batch_size=4, lr=1e-5)

``items.jsonl`` holds one object a line; all lines have the same perspectives in the same order, null where one is missing::

    {"question": "2 + 3 * 4 = ?", "answer": "14", "rationales": ["3 * 4 = 12, 2 + 12 = 14", null, "Multiply first …"]}

On the command line, ``tutelage mind collect`` has a teacher write such a file, from questions of the same form without
rationales, and ``tutelage mind train`` trains a student on it::

    tutelage mind collect questions.jsonl --out items.jsonl --set endpoint.url=http://127.0.0.1:8000/v1 --set endpoint.model=NAME
    tutelage mind train items.jsonl --student Qwen/Qwen2.5-1.5B --test test.jsonl --out runs/mind

The log (``log.jsonl``) says which way of reasoning the student takes in: ``weight_of_path_1`` … are the mean weights alpha.

**What it does.** For a question x with rationales r_1 … r_K, each followed by the right answer, L_k is the student's mean
cross-entropy of the tokens of r_k and the answer. MetaNet reads the mean of the student's last states over each path, lets
the K paths attend to each other, and gives scores s_k > 0 (:mod:`tutelage.systems.mind.metanet`)::

    L_meta = KL( softmax(s / tau) || softmax(-L / tau) )               trains MetaNet alone
    I = {k : s_k >= beta max s},   alpha = softmax over I of s_k / tau_student
    L = sum_{k in I} alpha_k L_k + lambda sum_{i<j in I} alpha_i alpha_j JSD(P_i || P_j)      trains the student alone

P_k is the student's distribution at the tokens of the right answer after x and r_k. MetaNet is warmed up on the frozen student,
then trained beside it at a lower rate and over several batches an update, so that it follows smoothed losses.

**Use in SDVP**: a program writer is distilled from several rationales a question.

**Limits.** Every step runs the student on all K paths. The mean over tokens favours short rationales: the log has the agreement
of the scores with shortness. Where the entropy of alpha goes to 0, training has become that on one path; the log has it too.
s is fitted to differences of losses (tenths), so with ``tau_student = 1`` alpha is almost uniform inside I.
:func:`exact_match` compares tokens, which is stricter than a judge.

**Source**: "MIND: From Passive Mimicry to Active Reasoning through Capability-Aware Multi-Perspective CoT Distillation" (Cui, Guo,
Zhou, Yang, Lu, Xu, Song, Zhao, Ren, 2026, arXiv 2601.03717). There is no public code; the equations follow summaries of the
paper. Our choices: the embedding, MetaNet's size, softplus, beta, tau_student, lambda, rates and accumulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.losses import average
from tutelage.distillation.method import Method, Phase, Turn
from tutelage.distillation.outputs import Output, Terms, unwrap_model
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.networks.causal_lm import token_log_probs
from tutelage.registry import system
from tutelage.systems.mind import toy
from tutelage.systems.mind.items import item_data
from tutelage.systems.mind.metanet import MetaNet, consistency, path_set, path_weights, rank_agreement, ranking_loss

FIELDS = ("ids", "mask", "response", "present", "answer_places", "answer_mask")


@system("mind", kind="language")
class MIND(Method):
    """Capability-aware distillation of chains of thought: weights of rationales follow what the student can take in now.

    Data: :func:`~tutelage.systems.mind.items.item_data`. Student: (ids [B, L], mask [B, L]) -> logits [B, L, V]. There is no
    teacher network: the rationales are the teacher.

    Training: the phase ``warm-up`` (the share ``warmup`` of all steps) trains MetaNet on the frozen student, the phase ``joint``
    both. In the joint phase MetaNet's rate is ``rate_ratio`` of the student's, and it is updated every ``accumulate`` steps.

    Raises:
        InputError: an option out of range, data of another layout, or a student without a linear output layer.
    """

    needs_teacher = False
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``beta``, ``tau``, ``tau_student``: see the equations. ``consistency``: lambda. ``dim``, ``num_heads``, ``attention``: of
        MetaNet. ``filter``: rho of ``L <- rho L + (1 - rho) L_now`` for each item and path, 0: none. ``states``: the sub-module
        whose input is the path's embedding; "": the last linear layer. ``weights``: by ``metanet``; ``uniform`` over all paths;
        or ``instant``, the same rule on exp(-L) and -L of the batch itself: the two baselines."""

        beta: float = 0.6
        tau: float = 1.0
        tau_student: float = 1.0
        consistency: float = 0.1
        direction: Literal["scores_first", "target_first"] = "scores_first"
        dim: int = 256
        num_heads: int = 4
        attention: bool = True
        warmup: float = 0.1
        rate_ratio: float = 0.1
        accumulate: int = 8
        filter: float = 0.0
        states: str = ""
        weights: Literal["metanet", "uniform", "instant"] = "metanet"

        def __post_init__(self) -> None:
            for name, least, most in (
                ("beta", 0, 1), ("tau", 1e-3, 1e3), ("tau_student", 1e-3, 1e3), ("consistency", 0, 1e3),
                ("warmup", 0, 0.9), ("rate_ratio", 1e-4, 1e3), ("filter", 0, 0.999),
            ):  # fmt: skip
                check_range(name, getattr(self, name), least, most)
            check_range("accumulate", self.accumulate, 1, 10_000, whole=True)
            for name, known in (
                ("direction", ("scores_first", "target_first")),
                ("weights", ("metanet", "uniform", "instant")),
            ):
                if getattr(self, name) not in known:
                    raise InputError(f"unknown {name} {getattr(self, name)!r}", where=name, remedy=" or ".join(known))

    def __init__(self, config: Config | None = None, **options: object):
        super().__init__(config, **options)
        self.metanet: MetaNet | None = None
        self.smoothed: Tensor
        self.register_buffer("smoothed", torch.empty(0))
        self._paths = 0
        # what the student's turn found in a pass, for MetaNet's turn of the same pass: (step, micro), embeddings, losses
        self._found: tuple[tuple[int, int], Tensor, Tensor] | None = None
        self._passed: list[tuple[Tensor, Tensor]] = []

    # -- how it is trained -------------------------------------------------------------------------------------------

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Builds MetaNet for the observed shapes; see :class:`Method`."""
        labels = example.labels
        if not isinstance(labels, Mapping) or set(FIELDS) - set(labels):
            raise InputError("the labels are no paths", where="data", remedy="make the data by item_data(model, read_items(file))")
        linear = [name for name, module in unwrap_model(student).named_modules() if isinstance(module, nn.Linear)]
        if not self.config.states and not linear:
            raise InputError("the student has no linear layer", where="states", remedy='name the output layer: states="head"')
        layer = f"in:{self.config.states or linear[-1]}"
        self._hooks, self._layer = FeatureHooks(student, [layer]), layer
        self._paths = paths = labels["ids"].shape[1]
        config = self.config
        if config.weights != "metanet":
            return
        _, embeddings, losses = self._read(example, student)
        self.metanet = MetaNet(embeddings.shape[2], paths, config.dim, config.num_heads, config.attention).to(losses.device)
        if config.filter:
            self.smoothed = torch.full((len(data), paths), torch.nan, device=losses.device)

    def phases(self) -> Sequence[Phase]:
        """MetaNet's warm-up at the full rate, then both."""
        config = self.config
        if config.weights != "metanet" or not config.warmup:
            return (Phase(),)
        warm = Phase("warm-up", config.warmup, 1 / config.rate_ratio, lambda name: name.startswith("method."), restart=True)
        return (warm, Phase("joint", 1 - config.warmup, restart=True))

    def turns(self) -> Sequence[Turn]:
        """The student, then MetaNet on what the student's pass found."""
        if self.config.weights != "metanet":
            return (Turn(),)
        return (
            Turn("student", lambda name: name.startswith("student.")),
            Turn("metanet", lambda name: name.startswith("method."), accumulate=self.config.accumulate, settings={"warmup": 0}),
        )

    def groups(self, student: nn.Module) -> Sequence[Mapping[str, Any]]:
        """MetaNet's rate is a share of the student's."""
        return (
            {"params": list(student.parameters())},
            {"params": list(self.parameters()), "lr_scale": self.config.rate_ratio},
        )

    def backward(self, loss: Any) -> None:
        """In the warm-up the student's turn trains nothing."""
        total = loss()
        if total.requires_grad:
            total.backward()

    def after_step(self, student: nn.Module) -> None:
        """Takes the step's losses into the filter."""
        for ids, losses in self._passed:
            self.smoothed[ids.to(self.smoothed.device)] = losses
        self._passed = []

    # -- one pass ----------------------------------------------------------------------------------------------------

    def _read(self, batch: Batch, student: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, K, L, V], embeddings [B, K, d] without gradient, and losses [B, K] of all paths."""
        paths = batch.labels
        ids, mask = paths["ids"].flatten(0, 1), paths["mask"].flatten(0, 1)
        with self._hooks as states:
            logits = student(ids, mask)
        real = mask[..., None].float()
        embeddings = (states[self._layer].detach().float() * real).sum(1) / real.sum(1).clamp_min(1)
        counted = paths["response"].flatten(0, 1)
        logs = token_log_probs(logits.float(), ids) * counted
        losses = -logs.sum(1) / counted.sum(1).clamp_min(1)
        shape = paths["present"].shape
        return logits.unflatten(0, shape), embeddings.unflatten(0, shape), losses.unflatten(0, shape)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """``losses`` [B, K], ``scores`` [B, K], and in the student's turn ``log_probs`` [B, K, T, V] at the answer's tokens."""
        here = (self.progress.step, self.progress.micro)
        if self.progress.turn == "metanet":
            if self._found is None or self._found[0] != here:
                with torch.no_grad():
                    _, embeddings, losses = self._read(batch, student)
            else:
                _, embeddings, losses = self._found
            return {"losses": losses, "scores": self._scores(embeddings, batch)}, {}
        logits, embeddings, losses = self._read(batch, student)
        self._found = (here, embeddings, losses.detach())
        output = {"losses": losses}
        if self.metanet is not None:
            with torch.no_grad():
                output["scores"] = self._scores(embeddings, batch)
        if self.config.consistency:
            places = batch.labels["answer_places"][..., None].expand(-1, -1, -1, logits.shape[-1])
            output["log_probs"] = logits.gather(2, places).float().log_softmax(-1)
        return output, {}

    def _scores(self, embeddings: Tensor, batch: Batch) -> Tensor:
        assert self.metanet is not None
        scores: Tensor = self.metanet(embeddings, batch.labels["present"])
        return scores.float()

    def _filtered(self, losses: Tensor, batch: Batch) -> Tensor:
        """Losses smoothed over the visits of each item and path."""
        if not self.config.filter or batch.ids is None:
            return losses
        before = self.smoothed[batch.ids.to(self.smoothed.device)]
        mixed = self.config.filter * before + (1 - self.config.filter) * losses.detach()
        mixed = torch.where(before.isnan(), losses.detach(), mixed)
        if not self._passed or self._passed[-1][0] is not batch.ids:
            self._passed.append((batch.ids, mixed))
        return mixed

    def weights_of(self, losses: Tensor, scores: Tensor | None, present: Tensor) -> Tensor:
        """alpha [B, K], without gradient."""
        config = self.config
        if config.weights == "uniform":
            return present / present.sum(1, keepdim=True)
        fit, logits = (torch.exp(-losses.detach()), -losses) if scores is None else (scores, scores)
        return path_weights(logits, path_set(fit, present, config.beta), config.tau_student)

    def loss_weights(self) -> Mapping[str, float]:
        """The figures that are only logged weigh 0."""
        logged = ["paths", "entropy", *(f"weight_of_path_{k + 1}" for k in range(self._paths))]
        logged += ["agreement", "agreement_with_shortness"] if self.metanet is not None else []
        return {"consistency": self.config.consistency} | dict.fromkeys(logged, 0.0)

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``ranking`` in MetaNet's turn; else ``sft``, ``consistency``, and the figures of the log."""
        present, config = batch.labels["present"], self.config
        losses, scores = student["losses"], student.get("scores")
        if self.progress.turn == "metanet":
            assert scores is not None
            target = self._filtered(losses, batch)
            per_item = ranking_loss(scores, target, present, config.tau, config.direction == "target_first")
            return {"ranking": average(per_item, batch.weights)}
        alpha = self.weights_of(losses, scores, present)
        terms = {"sft": average((alpha * losses).sum(1), batch.weights)}
        if config.consistency:
            apart = consistency(student["log_probs"], alpha, batch.labels["answer_mask"])
            terms["consistency"] = average(apart, batch.weights)
        with torch.no_grad():
            terms["paths"] = (alpha > 0).float().sum(1).mean()
            terms["entropy"] = -torch.xlogy(alpha, alpha).sum(1).mean()
            if scores is not None:
                length = batch.labels["response"].sum(2).float()
                terms["agreement"] = rank_agreement(scores, -losses, present).mean()
                terms["agreement_with_shortness"] = rank_agreement(scores, -length, present).mean()
            for k, weight in enumerate(alpha.mean(0), 1):
                terms[f"weight_of_path_{k}"] = weight
        return terms

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second: digits to be added up."""
        model = toy.toy_student(seed, dim=16 * width, depth=1)
        data = item_data(model, toy.toy_items(toy.questions(seed)[0], 32, seed), toy.PREFIX)
        settings = TrainingSettings(steps=8, batch_size=8, lr=2e-3, seed=seed)
        return TrainingJob(model.network, None, cls(dim=16, warmup=0.25, accumulate=2, rate_ratio=0.5), data, settings, "mind")
