"""A sequence network, such as a lip reader, is trained on cross-entropy, then on its own edit distance as well::

    from tutelage import distill
    from tutelage.systems.pcpg import CharacterVocabulary, error_rates, lip_reader, sequence_data, transcribe

    vocabulary = CharacterVocabulary()  # a to z, the apostrophe, the blank
    data = sequence_data(clips, texts, vocabulary)  # clips [N, 3, T, H, W], texts: one a clip
    reader = distill(lip_reader("published"), None, data, "pcpg", epochs=10, lr=1e-4).student
    print(error_rates(transcribe(reader, data, vocabulary), texts))  # {'CER': …, 'WER': …, 'exact': …}

``lengths=`` of ``sequence_data`` takes clips of unequal length. A student of your own needs three methods: ``encode``, ``decode``
and ``sample_from`` (:class:`~tutelage.systems.pcpg.text.SequenceStudent`); ``tutelage.networks.encoder_decoder.EncoderDecoder`` has
them. Where it is trained already: ``options={"warmup": 0}`` and a low rate. As a recipe, for ``tutelage distill``::

    method = "pcpg"
    out = "runs/reader"

    [student]
    model = "pcpg"
    options = { size = "small", channels = 1, height = 6, width = 8 }

    [data]
    file = "clips.npz"

    [options]
    k = 3
    weight = 0.3

``clips.npz`` holds ``inputs`` [N, C, T, H, W] and ``labels`` [N, U]: ids from 3, the end token 2, and -100 behind it.

Source: "Pseudo-Convolutional Policy Gradient for Sequence-to-Sequence Lip-Reading" (Luo, Yang, Shan, Chen, 2020,
arXiv 2003.03983).

**The loss.** ``L = (1 - weight) L_ce + weight L_pg``. ``L_ce`` is teacher-forced. For ``L_pg`` the student draws a text from its
own outputs, so that it meets its own mistakes, and is rewarded in the unit in which it is judged: with ``E_t`` the edit
distance of the first t drawn characters to the true text Y,

``r_t = E_{t-1} - E_t``, ``R_t = sum_{j >= t} gamma^(j - t) r_j / |Y|``.

The rewards sum to ``|Y| (1 - CER)``. Before they are multiplied, returns R and log-probabilities l are pooled over k neighbouring
steps by a fixed window w that moves by s steps, like a convolution that learns nothing:

``L_pg = - mean_j (sum_i w_i R_{js+i}) (sum_i w_i l_{js+i})``.

So a character is also rewarded for what its neighbours earn. k = 1 and s = 1 is REINFORCE.

**Use in SDVP**: a learned program writer can be fine-tuned on the edit distance to a known program.

**What is our choice, and why.** The paper's method section has not been consulted: network and step reward follow the first
author's public prototype (read, not copied), the window follows the abstract. The end token is a drawn step with a reward of 0.
Windows lie within the drawn steps; a text shorter than k has one window with weights scaled to the kernel's sum. The prototype
takes the most likely character as its action, which is no sample from the policy (``mode="greedy"`` here), and gives steps
behind the end a return by standardising; here they count nowhere.

**Limits.** Pooling is no unbiased estimate of the gradient. In the experiment below strings are learned more slowly with windows
than by REINFORCE (``k=1``), and on synthetic lips neither reads better than teacher forcing alone at equal updates. LRW, LRW-1000
and GRID need licensed videos: the published word accuracies (LRW 83.5 %, LRW-1000 38.7 %) are not measured here.

![Character error rates on synthetic lips, at equal updates](../images/pcpg.svg)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Phase
from tutelage.distillation.outputs import Output, Terms, unwrap_model
from tutelage.distillation.policy_gradient import advantages, discounted_returns
from tutelage.distillation.tasks import make_task
from tutelage.distillation.tasks.categorical import IGNORED
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.sampling import Sampled, Sampling
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed
from tutelage.systems.pcpg.loss import POOLED, edit_rewards, make_kernel, window_loss
from tutelage.systems.pcpg.reader import EOS, PAD, SOS, lip_reader
from tutelage.systems.pcpg.synthetic_lips import IMAGE_SIZE, LETTERS, lexicon, lips
from tutelage.systems.pcpg.text import CharacterVocabulary, SequenceStudent, inputs_of, sequence_data

BASELINES = ("none", "episode", "standardized", "batch", "greedy")


@system("pcpg", kind="language")
class PCPG(Method):
    """Cross-entropy and a policy gradient on the edit distance, pooled over neighbouring steps; needs no teacher.

    The student is a :class:`~tutelage.systems.pcpg.text.SequenceStudent`. Inputs are what it encodes, or ``{"inputs": …,
    "mask": [B, T]}`` where some frames are padding; labels [B, U] are ids with the end token, -100 behind it. Training begins
    with ``warmup`` of the steps on cross-entropy alone; then each batch is encoded once, decoded once with the true characters,
    and once with those that the student draws. The kernel is a buffer: it is saved, never trained.

    Terms: ``ce``, ``pg``.
    """

    needs_teacher = False
    needs_labels = True
    Network = staticmethod(lip_reader)
    kernel: Tensor

    @dataclass(frozen=True)
    class Config:
        """The options.

        Attributes:
            k, stride: of the window (our choice; the abstract gives no size). 1 and 1: REINFORCE.
            kernel: the k weights; None: 1 / k each.
            pooled: ``both``; or ``rewards`` or ``losses`` alone.
            gamma: discount of later rewards.
            baseline: what is taken off the returns: ``none``; ``episode``, their mean over the text's steps; ``standardized``,
                that over their unbiased deviation; ``batch``, the mean of the other texts' total returns; ``greedy``, the
                returns of the most likely text at the same step (self-critical, our choice).
            weight: of the policy gradient after the warm-up (our choice).
            warmup: share of the steps with cross-entropy alone; 0 for a student that is trained already.
            mixed_lr: factor on the learning rate after the warm-up (our choice).
            mode: ``sample``; ``greedy``: the prototype's most likely characters, which explore nothing.
            own_inputs: scheduled sampling: the probability at the end of training that the teacher-forced decoder reads what it
                would have written itself in place of the true character; it rises linearly from 0, and is applied in two passes
                (Mihaylova, Martins, 2019).
            max_length: the most characters that are drawn.
            bos_id, eos_id, pad_id: the start and end token, and padding. ``eos_id`` None: every text has ``max_length``
                characters.
        """

        k: int = 3
        stride: int = 1
        kernel: tuple[float, ...] | None = None
        pooled: Literal["both", "rewards", "losses"] = "both"
        gamma: float = 0.95
        baseline: Literal["none", "episode", "standardized", "batch", "greedy"] = "none"
        weight: float = 0.3
        warmup: float = 0.5
        mixed_lr: float = 1.0
        mode: Literal["sample", "greedy"] = "sample"
        own_inputs: float = 0.0
        max_length: int = 32
        bos_id: int = SOS
        eos_id: int | None = EOS
        pad_id: int = PAD

        def __post_init__(self) -> None:
            make_kernel(self.k, self.kernel)
            for name in ("weight", "warmup", "own_inputs", "gamma"):
                if not 0 <= getattr(self, name) <= 1:
                    raise InputError(f"{name} lies in 0..1, this is {getattr(self, name)}", where=name, remedy="such as 0.3")
            if self.stride < 1 or self.max_length < 1:
                raise InputError(f"stride {self.stride}, max_length {self.max_length}", where="stride", remedy="1 or more")
            for name, known in (("pooled", POOLED), ("baseline", BASELINES), ("mode", ("sample", "greedy"))):
                if getattr(self, name) not in known:
                    raise InputError(f"unknown {name} {getattr(self, name)!r}", where=name, remedy=", ".join(known))

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Makes the kernel, and checks the student and the labels; see :class:`Method`.

        Raises:
            InputError: the student lacks a method that is needed, or labels that are no padded texts.
        """
        network = unwrap_model(student)
        missing = [name for name in ("encode", "decode", "sample_from") if not callable(getattr(network, name, None))]
        if missing:
            raise InputError(
                f"{type(network).__name__} has no {', '.join(missing)}",
                where="student",
                remedy="give a network with encode, decode and sample_from: a lip_reader, or an EncoderDecoder",
            )
        inputs_of(example.inputs)
        self._truth(example.labels)
        self.register_buffer("kernel", make_kernel(self.config.k, self.config.kernel))

    def phases(self) -> Sequence[Phase]:
        """``warmup`` on cross-entropy, ``mixed``."""
        share = self.config.warmup
        mixed = Phase("mixed", 1 - share, self.config.mixed_lr)
        return [phase for phase in (Phase("warmup", share), mixed) if phase.share] or [mixed]

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        weight = self.config.weight if self.progress.phase.name == "mixed" else 0.0
        return {"ce": 1 - weight, "pg": weight}

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """``logits`` [B, U, V] of the true texts; after the warm-up ``ids``, ``log_probs`` [B, T], ``lengths`` [B] and
        ``baseline`` [B, T] of drawn ones."""
        config, network = self.config, cast(SequenceStudent, unwrap_model(student))
        inputs, mask = inputs_of(batch.inputs)
        memory = network.encode(inputs, mask)
        weights = self.loss_weights()
        output: Output = {}
        if weights["ce"]:
            output["logits"] = network.decode(self._read(network, batch.labels, memory, mask), memory, mask)
        if weights["pg"]:
            # the trainer seeds torch's generator anew in each pass
            rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            drawn = network.sample_from(memory, mask, self._sampling(config.mode == "greedy"), rng)
            output |= {"ids": drawn.ids, "log_probs": drawn.log_probs, "lengths": drawn.lengths}
            if config.baseline == "greedy":
                with torch.no_grad():
                    likeliest = network.sample_from(memory, mask, self._sampling(greedy=True))
                returns = self._returns(likeliest, batch.labels)
                wanted = drawn.ids.shape[1]
                output["baseline"] = F.pad(returns, (0, max(0, wanted - returns.shape[1])))[:, :wanted]
        return output, {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``ce`` and ``pg``; a term of weight 0 is not computed, and is 0."""
        zero = torch.zeros((), device=batch.labels.device)
        terms = {"ce": zero, "pg": zero.clone()}
        if "logits" in student:
            terms["ce"] = make_task("token-classification").label_loss(student, batch.labels, batch.weights)
        if "ids" in student:
            drawn = Sampled(student["ids"], student["log_probs"], student["lengths"])
            terms["pg"] = losses.average(self.policy_loss(drawn, batch.labels, student.get("baseline")), batch.weights)
        return terms

    def policy_loss(self, drawn: Sampled, labels: Tensor, baseline: Tensor | None = None) -> Tensor:
        """``L_pg`` of each drawn text [B].

        Args:
            drawn: texts, with their log-probabilities.
            labels: the true ones [B, U], -100 behind the end.
            baseline: [B, T], taken off the returns where ``config.baseline`` is ``greedy``.
        """
        config, returns = self.config, self._returns(drawn, labels)
        if config.baseline != "greedy":
            advantage = advantages(returns, drawn.mask, config.baseline)
        else:
            advantage = returns if baseline is None else (returns - baseline) * drawn.mask
        return window_loss(drawn.log_probs, advantage, drawn.mask, self.kernel, config.stride, config.pooled)

    def _returns(self, drawn: Sampled, labels: Tensor) -> Tensor:
        """``R_t / |Y|`` [B, T]."""
        truth, lengths = self._truth(labels)
        counted = drawn.mask if self.config.eos_id is None else drawn.mask & (drawn.ids != self.config.eos_id)
        rewards = edit_rewards(drawn.ids, counted, truth, lengths).to(drawn.log_probs.dtype)
        return discounted_returns(rewards, drawn.mask, self.config.gamma) / lengths.clamp_min(1)[:, None]

    def _truth(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The true ids [B, U], and how many characters each text has [B], its end token not counted.

        Raises:
            InputError: labels of another shape, or padding inside a text.
        """
        if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
            shape = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(f"labels are {shape}", where="labels", remedy="int64 ids [B, U], -100 behind the end: sequence_data")
        real = labels != IGNORED
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise InputError("padding stands inside a text", where="labels", remedy="put -100 behind the end alone")
        if self.config.eos_id is not None:
            real = real & (labels != self.config.eos_id)
        return labels, real.sum(1)

    def _read(self, network: SequenceStudent, labels: Tensor, memory: object, mask: Tensor | None) -> Tensor:
        """What the teacher-forced decoder reads [B, U]: the start token and the true characters, or some of its own."""

        def shifted(ids: Tensor) -> Tensor:
            return F.pad(ids[:, :-1], (1, 0), value=self.config.bos_id)

        true = shifted(labels.masked_fill(labels == IGNORED, self.config.pad_id))
        share = self.config.own_inputs * self.progress.fraction
        if not share:
            return true
        with torch.no_grad():
            own = shifted(network.decode(true, memory, mask).argmax(-1))
        return torch.where(torch.rand(true.shape).to(true.device) < share, own, true)

    def _sampling(self, greedy: bool) -> Sampling:
        config = self.config
        return Sampling(config.max_length, 0.0 if greedy else 1.0, eos_id=config.eos_id, pad_id=config.pad_id)

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: a small reader of words on synthetic lips."""
        vocabulary = CharacterVocabulary(LETTERS)
        clips = lips(lexicon(seed, 8, 3, 4), seed, "tiny", count=32)
        reader = build_with_seed(
            lambda: lip_reader("small", len(vocabulary), 1, *IMAGE_SIZE, hidden=12, embedding=8, max_length=6), seed, "reader"
        )
        data = sequence_data(clips.clips, clips.words, vocabulary, clips.lengths)
        settings = TrainingSettings(steps=8, batch_size=8, lr=1e-2, seed=seed)
        return TrainingJob(reader, None, cls(max_length=6), data, settings, "pcpg")
