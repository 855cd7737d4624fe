"""A sequence-to-sequence network from a question to a program: lines from a closed set, arguments copied from the question.

A bidirectional GRU reads the question, a GRU with attention (Luong, Pham, Manning, 2015) writes; a pointer over the
question's words (Vinyals, Fortunato, Jaitly, 2015; See, Liu, Manning, 2017) fills the holes of a line. Whether a step
writes a line or copies a word follows from the lines written so far, so lines and arguments never compete. Sizes ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tutelage.distillation.data import Batch
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.outputs import forward_heads as answer_of
from tutelage.distillation.teacher import Teacher

PADDING = -1
"""The label of a step beyond a program's end."""
_NEVER = -1e4


class EncoderState(NamedTuple):
    """A batch of questions as read: ``states`` [B, T, W], ``mask`` [B, T] of true words, ``same`` [B, T]: the first place
    of each word in its question."""

    states: Tensor
    mask: Tensor
    same: Tensor


class Seq2SeqNetwork(nn.Module):
    """From words [B, T] (0: padding) to log-probabilities [B, S, L + T] of L lines, then of the question's words.

    Copies of one word count as one: their probability stands at the word's first place. In a step of ``copies`` [B, S]
    no line has any probability, in the others no word has.
    """

    def __init__(self, words: int, lines: int, dim: int = 96, dropout: float = 0.1):
        super().__init__()
        self.lines = lines
        self.word = nn.Embedding(words, dim, padding_idx=0)
        self.reader = nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True)
        self.line = nn.Embedding(lines + 1, dim)  # the last one opens every program
        self.copied = nn.Linear(dim, dim)
        self.start = nn.Linear(dim, dim)
        self.hand = nn.GRU(dim, dim, batch_first=True)
        self.attend = nn.Linear(dim, dim, bias=False)
        self.mix = nn.Linear(2 * dim, dim)
        self.point = nn.Linear(dim, dim, bias=False)
        self.choose = nn.Linear(dim, lines)
        self.dropout = nn.Dropout(dropout)

    def encode(self, words: Tensor, same: Tensor) -> tuple[EncoderState, Tensor]:
        """The memory of questions, and the hand's first state [1, B, W]."""
        mask = words > 0
        lengths = mask.sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.dropout(self.word(words)), lengths, batch_first=True, enforce_sorted=False)
        out, last = self.reader(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=words.shape[1])
        return EncoderState(states, mask, same), torch.tanh(self.start(last.transpose(0, 1).flatten(1)))[None]

    def decode(self, memory: EncoderState, previous: Tensor, copies: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One or more steps: ``previous`` [B, S] is what each step follows, a line or L + 1 + the place of a copied word."""
        steps, width = previous.shape[1], memory.states.shape[2]
        places = (previous - self.lines - 1).clamp(min=0)[..., None].expand(-1, -1, width)
        words = self.copied(memory.states.gather(1, places))
        embedded = torch.where(previous[..., None] > self.lines, words, self.line(previous.clamp(max=self.lines)))
        out, state = self.hand(embedded, state)
        out = self.dropout(out)
        keys = memory.states.transpose(1, 2)
        absent = ~memory.mask[:, None]
        seen = torch.softmax((self.attend(out) @ keys).masked_fill(absent, _NEVER), -1) @ memory.states
        mixed = torch.tanh(self.mix(torch.cat([out, seen], -1)))
        pointed = torch.softmax((self.point(mixed) @ keys).masked_fill(absent, _NEVER), -1)
        merged = torch.zeros_like(pointed).scatter_add(2, memory.same[:, None].expand(-1, steps, -1), pointed)
        by_line = torch.log_softmax(self.choose(mixed), -1).masked_fill(copies[..., None], _NEVER)
        by_word = torch.log(merged + 1e-9).masked_fill(~copies[..., None], _NEVER)
        return torch.cat([by_line, by_word], -1), state

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``logprob`` of every step, each told the true one before it."""
        longest = int((batch["words"] > 0).sum(1).max())
        memory, state = self.encode(batch["words"][:, :longest], batch["same"][:, :longest])
        return {"logprob": self.decode(memory, batch["previous"], batch["copies"], state)[0]}


class Seq2SeqTraining(Method):
    """Negative log-likelihood of the true steps, the mean over all steps of the batch."""

    needs_teacher = False
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """No options."""

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass of the student."""
        return answer_of(student, batch.inputs), {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``step``; labels [B, S] are places in ``logprob``, or PADDING."""
        known = batch.labels != PADDING
        chosen = student["logprob"].gather(2, batch.labels.clamp(min=0)[..., None])[..., 0]
        return {"step": -(chosen * known).sum() / known.sum()}
