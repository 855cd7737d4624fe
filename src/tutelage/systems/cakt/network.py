"""How likely a student is to answer the next question right, from a log of all answers::

    from tutelage.systems import cakt

    tracer = cakt.fit("answers.csv")  # columns user_id, skill_id, correct, order_id; names of students are hashed
    print(tracer.report["auc"])  # on students that were held out, with its 95 % interval
    print(tracer.predict([("fractions", 0), ("fractions", 1), ("decimals", 1)], "fractions"))

Of other layouts: ``cakt.fit(path, columns={"concept": "skill_name", "encoding": "latin-1"})``, and
``cakt.fit(cakt.read_three_lines(path))`` for the three lines a student of published data sets. In the shell, first on a simulated
log::

    tutelage cakt simulate answers.csv
    tutelage cakt fit answers.csv --out tracer/
    tutelage cakt predict tracer/ answers.csv --student "student 7" --concept "concept 03"

There is no recipe: a recipe reads images and tensors, this reads a log. As a student of any method, here with a teacher that gives
logits [B, T] too, such as a :class:`DKT`::

    data = cakt.answer_data(cakt.pieces(cakt.read_answers("answers.csv")), concepts)
    tutelage.distill(cakt.CAKT(len(concepts)), teacher, data, "kd", task="multi-label")

An LSTM reads the embeddings of all answers. For each step the last k answers on one concept, the learning curve of that
concept, are a clip of k frames, each the embedding of an answer as an H x H image. A frame that lies d steps back is multiplied
by ``exp(-d S)``, S learned. Four residual blocks of 3-D convolutions, with squeeze-and-excitation over the frames, and the mean
over frames give c; gates join it with the LSTM's state h::

    u = sigmoid(W_c [c; h]) c + sigmoid(W_h [c; h]) h

and a second LSTM and a linear layer give a logit a concept. The loss is the binary cross-entropy over all real steps.

``history_key`` says whose curve is looked at. "next", the paper's idea and the default: the concept of the question to be
answered, never its answer. "current", as the published code has it: the concept of the answer just given.

The defaults of :class:`CAKT` are the published sizes. :func:`fit` takes smaller frames and ``decay_start=0.1`` (our choice): at
the published start S = 1 a frame of 5 steps ago weighs e^-5 and S hardly moves, so that the curve is lost where concepts alternate.
The paper trains with Adam, rate 1e-3, betas (.9, .99), decay 1e-5, batch 80, 30 epochs, times .3 every 5 epochs.

Inside SDVP a concept is a family of questions and a student is a module: the chance that it gets the next one right.

Limits: the experiment's students are simulated, and built so that only answers on the same concept tell. Where nobody learns,
DKT, which is about 15 times cheaper, is ahead by 1.6 points. The gains published on real logs are 1 to 2 points of AUC. Nothing
leaves the machine.

Source: Deep Knowledge Tracing with Learning Curves (Yang, Zhu and Lu, 2020, arXiv 2008.01169).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.supervised import Supervised
from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_memory, check_range
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed
from tutelage.systems.cakt.answers import answer_data
from tutelage.systems.cakt.clips import HistoryKey, clip_steps
from tutelage.systems.cakt.simulation import simulated_answers

Curve = Literal["cnn", "lstm"]
Pooling = Literal["mean", "linear"]
Fusion = Literal["gates", "half"]


class CurveBlock(nn.Module):
    """Two 3x3x3 convolutions, a gate on each frame of each channel, and a shortcut: [M, C, k, H, H] -> [M, C', k, H, H]."""

    def __init__(self, in_chans: int, out_chans: int, frames: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(in_chans, out_chans, 3, padding=1, bias=False), nn.BatchNorm3d(out_chans), nn.ReLU(),
            nn.Conv3d(out_chans, out_chans, 3, padding=1, bias=False), nn.BatchNorm3d(out_chans),
        )  # fmt: skip
        hidden = max(1, frames // 2)
        self.gates = nn.Sequential(
            nn.Linear(frames, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, frames, bias=False), nn.Sigmoid()
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_chans != out_chans:
            self.shortcut = nn.Sequential(nn.Conv3d(in_chans, out_chans, 1, bias=False), nn.BatchNorm3d(out_chans))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clips: Tensor) -> Tensor:
        """The gated, rectified sum."""
        y = self.layers(clips)
        return (y * self.gates(y.mean((3, 4)))[..., None, None] + self.shortcut(clips)).relu()


@system("cakt", kind="education")
class CAKT(nn.Module):
    """CAKT: an LSTM over all answers, and 3-D convolutions over the last answers on the same concept.

    ``inputs``: ``interactions`` [B, T] (concept c of 1..C answered wrong: c, right: c + C) and ``next_concept`` [B, T]; both 0 in
    padding, which stands at the end. Output: logits [B, T] that the next answer is right.

    Args:
        concepts: C.
        side: H; all vectors have the width H * H.
        frames: k.
        history_key: whose curve: "next" or "current".
        decay_start: S at the start; None: no decay, which is S = 0.
        curve: "cnn", or "lstm": an LSTM over the frames of the clip in place of the convolutions (ablation).
        pooling: "mean" over frames, or a "linear" layer of all of them (ablation).
        fusion: "gates", or "half": ``(c + h) / 2`` (ablation).
        rear: whether there is a second LSTM (ablation).

    Raises:
        InputError: a size below 1, an S that is negative or not finite, or an unknown word.
    """

    def __init__(
        self,
        concepts: int,
        side: int = 15,
        frames: int = 4,
        history_key: HistoryKey = "next",
        decay_start: float | None = 1.0,
        curve: Curve = "cnn",
        pooling: Pooling = "mean",
        fusion: Fusion = "gates",
        rear: bool = True,
    ):
        super().__init__()
        for name, value, most in (("concepts", concepts, 10**7), ("side", side, 1000), ("frames", frames, 1000)):
            check_range(name, value, 1, most, whole=True)
        if decay_start is not None:
            check_range("decay_start", decay_start, 0.0, 1000.0)
        words = {"history_key": (history_key, HistoryKey), "curve": (curve, Curve), "pooling": (pooling, Pooling)}
        for name, (word, known) in (words | {"fusion": (fusion, Fusion)}).items():
            if word not in get_args(known):
                raise InputError(f"unknown value {word!r}", where=name, remedy=did_you_mean(str(word), list(get_args(known))))
        self.concepts, self.side, self.frames, self.history_key = concepts, side, frames, history_key
        self.pooling, self.fusion = pooling, fusion
        dim = side * side
        numbers = dim * (20 * dim + 3 * concepts)
        check_memory(4 * numbers, f"a network of width {dim:,}", "side, concepts", "a smaller side, or fewer concepts")
        self.embed = nn.Embedding(2 * concepts + 1, dim, padding_idx=0)
        nn.init.kaiming_normal_(self.embed.weight)
        with torch.no_grad():
            self.embed.weight[0] = 0
        self.front = nn.LSTM(dim, dim, batch_first=True)
        self.decay = None if decay_start is None else nn.Parameter(torch.tensor(float(decay_start)))
        self.blocks = self.curve_lstm = self.pool = self.gate_curve = self.gate_state = self.rear = None
        if curve == "cnn":
            widths = (1, 4, 8, 4, 1)
            self.blocks = nn.Sequential(*(CurveBlock(*pair, frames) for pair in zip(widths, widths[1:])))
            self.pool = nn.Linear(frames * dim, dim) if pooling == "linear" else None
        else:
            self.curve_lstm = nn.LSTM(dim, dim, batch_first=True)
        if fusion == "gates":
            self.gate_curve, self.gate_state = nn.Linear(2 * dim, dim), nn.Linear(2 * dim, dim)
        if rear:
            self.rear = nn.LSTM(dim, dim, batch_first=True)
        self.head = nn.Linear(dim, concepts)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, T] of the next concepts; what they are in padding means nothing."""
        logits = self.concept_logits(inputs)
        return logits.gather(2, (inputs["next_concept"] - 1).clamp_min(0)[..., None])[..., 0]

    def concept_logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, T, C]; with ``history_key="next"`` the one of the next concept is the one that was trained."""
        vectors = self.embed(inputs["interactions"])
        states, curves = self.front(vectors)[0], self._curves(vectors, inputs)
        if self.gate_curve is None or self.gate_state is None:
            fused = (curves + states) / 2
        else:
            both = torch.cat([curves, states], -1)
            fused = self.gate_curve(both).sigmoid() * curves + self.gate_state(both).sigmoid() * states
        return self.head(fused if self.rear is None else self.rear(fused)[0])

    def _curves(self, vectors: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The vectors [B, T, D] of the learning curves; 0 in padding, which no batch norm sees."""
        interactions, next_concept = inputs["interactions"], inputs["next_concept"]
        rows, steps = ((interactions > 0) & (next_concept > 0)).nonzero(as_tuple=True)
        curves = torch.zeros_like(vectors)
        if not len(rows):
            return curves
        found, back = (
            every[rows, steps] for every in clip_steps(interactions, next_concept, self.concepts, self.frames, self.history_key)
        )
        weights = (found >= 0).to(vectors.dtype)
        if self.decay is not None:
            weights = weights * torch.exp(-back * self.decay)
        clips = vectors[rows[:, None], found.clamp_min(0)] * weights[..., None]
        return curves.index_put((rows, steps), self._curve(clips))

    def _curve(self, clips: Tensor) -> Tensor:
        """[M, k, D] -> [M, D]."""
        if self.blocks is None:
            assert self.curve_lstm is not None
            return self.curve_lstm(clips)[0][:, -1]
        seen = self.blocks(clips.unflatten(2, (self.side, self.side))[:, None])[:, 0]
        return seen.mean(1).flatten(1) if self.pool is None else self.pool(seen.flatten(1))

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: eight simulated students."""
        world = simulated_answers(seed, students=8, each=12, concepts=6)
        network = build_with_seed(lambda: cls(6, side=3, frames=2, decay_start=0.1), seed, "network")
        data = answer_data(world.students, world.concepts)
        return TrainingJob(
            network, None, Supervised(), data, TrainingSettings(steps=8, batch_size=4, seed=seed), task="multi-label"
        )


class DKT(nn.Module):
    """Deep knowledge tracing (Piech et al., 2015), the baseline: embedding, one LSTM, one linear layer. Inputs and output as
    :class:`CAKT`."""

    def __init__(self, concepts: int, dim: int = 64):
        super().__init__()
        self.embed = nn.Embedding(2 * concepts + 1, dim, padding_idx=0)
        self.lstm, self.head = nn.LSTM(dim, dim, batch_first=True), nn.Linear(dim, concepts)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, T] of the next concepts."""
        logits = self.head(self.lstm(self.embed(inputs["interactions"]))[0])
        return logits.gather(2, (inputs["next_concept"] - 1).clamp_min(0)[..., None])[..., 0]
